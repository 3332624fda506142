//! A model on a placement: loaded once, shared by any number of videos.

use std::sync::{Arc, Mutex, PoisonError};

use engines::backend::{Backend, LoadOptions, Loading, plain};
use engines::cancel::Cancel;
use engines::manifest::Models;

use crate::chain::clock::{Clock, Timed};
use crate::chain::encoders::AudioAdapter;
use crate::chain::error::ChainError;
use crate::chain::events::{Observer, PlannedMemory};
use crate::chain::executor::Chains;
use crate::chain::kept::KeptSessions;
use crate::chain::vae::{Decoder, Encoder};
use crate::generate::error::GenerateError;
use crate::placement::devices::Devices;
use crate::placement::error::PlacementError;
use crate::placement::footprints::{AtATime, Footprints, Workload};
use crate::placement::plan::Plan;

/// An opened export on a placement.
///
/// Nothing is loaded at first: the encoders of the first video run before the transformer comes.
/// From then on the transformer, the VAE decoder and the audio adapter stay loaded. Videos share
/// them, also several at a time. The encoders stay as well where [`Plan::encoders_stay`] says so.
pub struct Engine {
    models: Models,
    devices: Devices,
    plan: Plan,
    loading: Loading,
    /// Where the encoders run.
    encoders: Option<Arc<dyn Backend>>,
    loaded: Mutex<Option<Arc<Loaded>>>,
    clock: Arc<Clock>,
}

/// The parts of an engine that stay loaded between videos.
pub(crate) struct Loaded {
    pub(crate) chains: Chains,
    adapter: AudioAdapter,
    decoder: Decoder,
    /// Encodes motion between clips, where a mode wants that.
    encoder: Mutex<Option<Encoder>>,
}

impl Engine {
    /// Makes an engine without taps or faults.
    pub fn new(models: Models, devices: Devices, plan: Plan) -> Self {
        Self::timed(models, devices, plan, Arc::default())
    }

    /// As [`Self::new`], with a clock that the opening of the models may have used already.
    pub fn timed(models: Models, devices: Devices, plan: Plan, clock: Arc<Clock>) -> Self {
        let timed = |backend| Arc::new(Timed::new(backend, Arc::clone(&clock))) as Arc<dyn Backend>;
        Self {
            models,
            devices: devices.map(timed),
            plan,
            loading: plain(),
            encoders: None,
            loaded: Mutex::new(None),
            clock,
        }
        .with_encoders()
    }

    /// The same engine, with taps and faults by component.
    #[must_use]
    pub fn with_loading(self, loading: Loading) -> Self {
        Self { loading, ..self }
    }

    fn with_encoders(mut self) -> Self {
        let backend = self.devices.get(self.plan.encoders).ok();
        self.encoders = backend.map(|backend| match self.plan.encoders_stay {
            true => Arc::new(KeptSessions::new(Arc::clone(backend))),
            false => Arc::clone(backend),
        });
        self
    }

    /// The export.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The placement.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Counts the time of every component.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Taps and faults by component.
    pub(crate) fn loading(&self) -> &Loading {
        &self.loading
    }

    /// Refuses a placement whose devices are missing or too small for `work`. Returns what `work`
    /// holds on devices with a memory of their own.
    ///
    /// # Errors
    /// [`GenerateError::Placement`].
    pub(crate) fn fits(&self, work: Workload<'_>) -> Result<Vec<PlannedMemory>, GenerateError> {
        for device in self.plan.device_ids() {
            self.devices.get(device)?;
        }
        let footprints = Footprints::new(&self.devices, &self.plan, work)?;
        footprints.check(&self.devices)?;
        let planned = footprints.devices.iter().map(|(&home, holds)| {
            let ledger = self.devices.get(home)?.memory().ledger();
            Ok(PlannedMemory {
                device: ledger.device().to_owned(),
                bytes: holds.total(),
            })
        });
        planned.collect()
    }

    /// Counts the videos like `work` that fit at a time.
    pub(super) fn videos(&self, work: Workload<'_>, host: u64) -> Result<AtATime, PlacementError> {
        Footprints::at_a_time(&self.devices, &self.plan, work, host)
    }

    /// Returns the backend of the encoders. Frees the rest of the engine first, if the encoders do
    /// not fit beside it and no other video uses it.
    ///
    /// # Errors
    /// A device or a component is missing.
    pub(crate) fn encoders(&self, work: Workload<'_>) -> Result<&dyn Backend, GenerateError> {
        self.devices.get(self.plan.encoders)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.is_some()
            && !Footprints::new(&self.devices, &self.plan, work)?.fit_beside(&self.devices)
        {
            loaded.take_if(|l| Arc::strong_count(l) == 1);
        }
        let backend = self.encoders.as_deref();
        Ok(backend.expect("the plan's devices are there"))
    }

    /// Returns the loaded parts, and loads them if this is the first video.
    ///
    /// # Errors
    /// A component is missing or does not load, memory runs out, or `cancel` asks to stop.
    pub(crate) fn load(
        &self,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Arc<Loaded>, ChainError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded {
            return Ok(Arc::clone(loaded));
        }
        let (loading, config) = (&self.loading_until(cancel), self.models.config());
        let adapter = AudioAdapter::load(&**self.devices.get(self.plan.encoders)?, loading)?;
        let chains = Chains::load(&self.plan, &self.devices, &config.dit, loading, observer)?;
        let vae = self.devices.get(self.plan.vae)?;
        let made = Arc::new(Loaded {
            chains,
            adapter,
            decoder: Decoder::load(&**vae, loading, &config.vae)?,
            encoder: Mutex::new(None),
        });
        *loaded = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Taps and faults by component, for loads that end when `cancel` asks to stop.
    fn loading_until(&self, cancel: &Cancel) -> Loading {
        let (loading, cancel) = (Arc::clone(&self.loading), cancel.clone());
        Arc::new(move |component| LoadOptions {
            cancel: cancel.clone(),
            ..loading(component)
        })
    }

    /// Returns an encoder of motion on the decoder's device, for one video.
    ///
    /// # Errors
    /// A component does not load.
    pub(crate) fn motion_encoder(
        &self,
        loaded: &Loaded,
        cancel: &Cancel,
    ) -> Result<Encoder, ChainError> {
        let mut kept = loaded
            .encoder
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = &*kept {
            return Ok(encoder.another(cancel));
        }
        let backend = self.devices.get(self.plan.vae)?;
        let config = &self.models.config().vae;
        let encoder = Encoder::load(&**backend, &self.loading_until(cancel), config)?;
        let first = encoder.another(cancel);
        *kept = Some(encoder);
        Ok(first)
    }
}

impl Loaded {
    /// Returns the decoder for one video.
    pub(crate) fn decoder(&self, cancel: &Cancel) -> Decoder {
        self.decoder.another(cancel)
    }

    /// Returns the audio adapter for one video.
    pub(crate) fn adapter(&self, cancel: &Cancel) -> AudioAdapter {
        self.adapter.another(cancel)
    }
}
