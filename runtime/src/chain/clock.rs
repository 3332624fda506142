//! A clock on the components of an engine: how long they take to open, and how long their calls
//! take. A summary shows with it where the time of a video went.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engines::backend::{Backend, Elsewhere, EngineError, LoadOptions, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::contract::{Contract, Port};
use engines::memory::Memory;
use engines::recipe::Recipe;
use engines::tensor::View;
use engines::weights::{BoundWeights, HostWeights};

/// The calls of one component of the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Spent {
    /// Name that users know, such as `transformer`.
    pub component: &'static str,
    /// Calls of its graphs.
    pub calls: usize,
    /// Sum of the calls' durations. Calls of several components run at a time, so the sum over
    /// components may be more than the duration of a run.
    pub seconds: f64,
}

/// The calls of one component on one device.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Busy {
    /// Name that users know.
    pub(crate) component: &'static str,
    /// Name of the device, such as `cuda:0`.
    pub(crate) device: String,
    /// Calls of its graphs.
    pub(crate) calls: usize,
    /// Sum of the calls' durations.
    pub(crate) seconds: f64,
}

/// A component and the device that it runs on.
type Place = (&'static str, Arc<str>);

/// Times of an engine since it exists, or between two moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// Time in which at least one component was being opened.
    pub(crate) opening: Duration,
    /// Calls and their duration by component and device.
    calls: BTreeMap<Place, (usize, Duration)>,
}

impl Times {
    /// Returns what was added since `before`.
    fn since(&self, before: &Self) -> Self {
        let added = |(place, &(calls, time)): (&Place, &(usize, Duration))| {
            let (had, took) = before.calls.get(place).copied().unwrap_or_default();
            (calls > had).then(|| (place.clone(), (calls - had, time.saturating_sub(took))))
        };
        Self {
            opening: self.opening.saturating_sub(before.opening),
            calls: self.calls.iter().filter_map(added).collect(),
        }
    }

    /// Returns the calls of each component on all devices, the one that took longest first.
    pub(crate) fn spent(&self) -> Vec<Spent> {
        let mut sums: BTreeMap<&'static str, (usize, Duration)> = BTreeMap::new();
        for ((component, _), (calls, time)) in &self.calls {
            let sum = sums.entry(component).or_default();
            *sum = (sum.0 + calls, sum.1 + *time);
        }
        let one = |(component, (calls, time)): (&'static str, (usize, Duration))| Spent {
            component,
            calls,
            seconds: time.as_secs_f64(),
        };
        let mut all: Vec<Spent> = sums.into_iter().map(one).collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all
    }

    /// Returns the calls of each component on each device, the one that took longest first.
    pub(crate) fn busy(&self) -> Vec<Busy> {
        let one = |((component, device), &(calls, time)): (&Place, &(usize, Duration))| Busy {
            component,
            device: device.to_string(),
            calls,
            seconds: time.as_secs_f64(),
        };
        let mut all: Vec<Busy> = self.calls.iter().map(one).collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all
    }
}

/// When a video was asked for, by the clock of an engine.
#[derive(Clone, Debug)]
pub struct Begun {
    pub(crate) at: Instant,
    times: Times,
}

/// The clock. Videos that are made at the same time on one engine count together.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    times: Times,
    /// Components that are being opened, and since when there is at least one.
    opening: usize,
    since: Option<Instant>,
}

impl Clock {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the moment at which a user begins to wait for a video.
    pub fn begin(&self) -> Begun {
        Begun {
            at: Instant::now(),
            times: self.running().times.clone(),
        }
    }

    /// Returns what was counted since a video was asked for.
    pub(crate) fn since(&self, begun: &Begun) -> Times {
        self.running().times.since(&begun.times)
    }

    /// Runs `open` and counts its time as opening. What is opened at the same time counts once.
    pub fn opening<T>(&self, open: impl FnOnce() -> T) -> T {
        {
            let mut running = self.running();
            running.opening += 1;
            running.since.get_or_insert_with(Instant::now);
        }
        let opened = open();
        let mut running = self.running();
        running.opening -= 1;
        if running.opening == 0 {
            let since = running.since.take();
            running.times.opening += since.map_or(Duration::ZERO, |s| s.elapsed());
        }
        opened
    }

    fn call<T>(&self, place: &Place, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = call();
        let took = began.elapsed();
        let (component, device) = place;
        tracing::debug!(component, %device, seconds = took.as_secs_f64(), "call");
        let mut running = self.running();
        let (calls, time) = running.times.calls.entry(place.clone()).or_default();
        *calls += 1;
        *time += took;
        result
    }
}

/// Returns the name that users know for the graphs of a contract.
fn component_of(contract: &Contract) -> &'static str {
    const NAMES: [(&str, &str); 6] = [
        ("text_encoder", "text encoder"),
        ("audio_encoder", "speech encoder"),
        ("audio_adapter", "audio adapter"),
        ("vae_encoder", "VAE encoder"),
        ("vae_decoder", "VAE decoder"),
        ("dit", "transformer"),
    ];
    let found = NAMES.iter().find(|(p, _)| contract.name.starts_with(p));
    found.map_or(contract.name, |(_, name)| name)
}

/// Hands every call on to another backend, and counts the time.
pub(crate) struct Timed {
    inner: Arc<dyn Backend>,
    clock: Arc<Clock>,
}

impl Timed {
    /// Wraps `inner`.
    pub(crate) fn new(inner: Arc<dyn Backend>, clock: Arc<Clock>) -> Self {
        Self { inner, clock }
    }

    fn timed(
        &self,
        load: impl FnOnce() -> Result<Box<dyn Session>, EngineError>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let began = Instant::now();
        let inner = self.clock.opening(load)?;
        let device = self.inner.memory().ledger().device();
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(
            component = inner.component(),
            device,
            seconds,
            "component opened"
        );
        Ok(Box::new(TimedSession {
            place: (component_of(inner.contract()), device.into()),
            clock: Arc::clone(&self.clock),
            inner,
        }))
    }
}

impl Backend for Timed {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.inner.memory()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.timed(|| self.inner.load(component, options))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.timed(|| self.inner.load_unbound(component, options))
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.clock.opening(|| self.inner.weights(component))
    }
}

struct TimedSession {
    inner: Box<dyn Session>,
    place: Place,
    clock: Arc<Clock>,
}

impl Session for TimedSession {
    fn component(&self) -> &str {
        self.inner.component()
    }

    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.inner.bind(weights);
    }

    fn elsewhere(&self) -> &[Elsewhere] {
        self.inner.elsewhere()
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        let inner = &mut self.inner;
        self.clock.call(&self.place, || inner.run(inputs, state))
    }

    fn run_until(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        let inner = &mut self.inner;
        self.clock
            .call(&self.place, || inner.run_until(inputs, state, cancel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, geometry};
    use engines::backend::FeatureCache;
    use engines::components::vae;
    use engines::contract::DType;
    use engines::tensor::Tensor;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn a_video_counts_its_own_calls_and_openings() {
        let clock = Arc::<Clock>::default();
        let fake: Arc<dyn Backend> = Arc::new(Fake::new(config(2), geometry(24)));
        let backend = Timed::new(fake, Arc::clone(&clock));
        let first = clock.begin();
        let options = LoadOptions::default();
        let mut session = backend.load("vae_encoder_first", &options).unwrap();
        let mut call = || {
            let pixels = Tensor::zeros(DType::F32, &[1, 3, 1, 16, 16]);
            let inputs = [(&vae::ENCODER_FIRST.inputs[0], pixels.view())];
            let state = State::Replace(&mut FeatureCache::new());
            session.run(&inputs, state).unwrap();
        };
        (0..3).for_each(|_| call());
        let second = clock.begin();
        call();
        let calls = |begun| {
            let spent = clock.since(begun).spent();
            spent
                .iter()
                .map(|s| (s.component, s.calls))
                .collect::<Vec<_>>()
        };
        assert_eq!(calls(&first), [("VAE encoder", 4)]);
        assert_eq!(calls(&second), [("VAE encoder", 1)]);
        assert!(clock.since(&first).opening > Duration::ZERO);
        assert_eq!(clock.since(&second).opening, Duration::ZERO);
    }

    #[test]
    fn components_that_open_at_the_same_time_count_once() {
        let (clock, pause) = (Clock::default(), Duration::from_millis(50));
        let (begun, together) = (clock.begin(), Barrier::new(4));
        let open = || {
            together.wait();
            thread::sleep(pause);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| clock.opening(open));
            }
        });
        let (opening, most) = (clock.since(&begun).opening, begun.at.elapsed());
        assert!(
            opening >= pause && opening <= most,
            "{opening:?} in {most:?}"
        );
    }

    #[test]
    fn the_component_that_took_longest_comes_first() {
        let mut times = Times::default();
        for (component, device, seconds) in [
            ("transformer", "cuda:0", 2),
            ("transformer", "cuda:1", 1),
            ("VAE decoder", "cuda:1", 4),
        ] {
            let took = (4, Duration::from_secs(seconds));
            times.calls.insert((component, device.into()), took);
        }
        let spent: Vec<_> = times
            .spent()
            .iter()
            .map(|s| (s.component, s.calls))
            .collect();
        assert_eq!(spent, [("VAE decoder", 4), ("transformer", 8)]);
        let busy = times.busy();
        let busy: Vec<_> = busy.iter().map(|b| (b.component, &*b.device)).collect();
        let want = [
            ("VAE decoder", "cuda:1"),
            ("transformer", "cuda:0"),
            ("transformer", "cuda:1"),
        ];
        assert_eq!(busy, want);
    }
}
