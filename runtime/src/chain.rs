//! The model running: encoders, the wavefront executor and decoders.

pub(crate) mod call;
pub(crate) mod cancellable;
pub(crate) mod clock;
pub(crate) mod decoders;
pub(crate) mod encoders;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod executor;
pub(crate) mod hearing;
pub(crate) mod host_session;
pub(crate) mod job;
pub(crate) mod kept;
pub(crate) mod offload;
pub(crate) mod page_locks;
pub(crate) mod ring;
pub(crate) mod snapshot;
pub(crate) mod source;
pub(crate) mod stage;
pub(crate) mod vae;

pub use clock::{Begun, Clock, Spent};
pub use decoders::Mode;
pub use encoders::encode_speech;
pub use engines::cancel::Cancel;
pub use error::ChainError;
pub use events::{Event, Observer, Phase, Silent, Summary};
