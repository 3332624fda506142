//! Reasons why a graph or its data file cannot be written.
use engines::error_kind::ErrorKind;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// A graph or a data file that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system refused an operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// File that was being written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A tensor could not be read.
    #[error("weight {key}: {source}")]
    Read {
        /// Checkpoint key.
        key: String,
        /// The checkpoint's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The number of elements of a tensor differs from its shape.
    #[error("weight {key} wants {want} elements, got {got}")]
    Length {
        /// Checkpoint key.
        key: String,
        /// Number of elements by the shape.
        want: usize,
        /// Number of elements read.
        got: usize,
    },
    /// Two graphs use one initializer name for different tensors.
    #[error("weight {name} is {one} in one graph and {other} in another")]
    Clash {
        /// Name of the initializer.
        name: String,
        /// Type and shape.
        one: String,
        /// Type and shape.
        other: String,
    },
    /// The layout lacks a weight of the graph.
    #[error("graph {graph}: weight {name} is in no data file")]
    Unplaced {
        /// Component.
        graph: String,
        /// Name of the initializer.
        name: String,
    },
}

impl WriteError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            _ => ErrorKind::Model,
        }
    }
}
