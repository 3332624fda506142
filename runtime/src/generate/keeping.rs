//! The kept state of one video: what it is made from, where it lies, and where a run goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engines::manifest::hash_file;

use crate::chain::call::AnchorInput;
use crate::chain::decoders::Resumed;
use crate::chain::events::Settings;
use crate::chain::snapshot::{Begin, Keeper, Kept};
use crate::generate::engine::Engine;
use crate::generate::error::GenerateError;
use crate::generate::journal::{Found, Identity, Journal, JournalError};
use crate::generate::prepared::Prepared;
use crate::media::partial;
use crate::media::target::{Format, Target};
use crate::numbers::geometry::Geometry;

/// The state that a run begins with, and the states that it keeps.
#[derive(Default)]
pub(crate) struct StateOf {
    pub(crate) journal: Option<Arc<Journal>>,
    found: Option<Arc<Found>>,
    /// Input of the second anchor, once it is known.
    second_anchor: Option<AnchorInput>,
}

/// What is known of a video before it is made.
pub(crate) struct Known<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) engine: &'a Engine,
    pub(crate) geometry: &'a Geometry,
    pub(crate) settings: &'a Settings,
}

impl StateOf {
    /// Finds the state of an earlier run, and makes the journal of this one, as the request says.
    ///
    /// # Errors
    /// The state is damaged or that of another video; an input cannot be read again.
    pub(crate) fn video(video: &Known<'_>) -> Result<Self, GenerateError> {
        let keeping = &video.prepared.request.keeping;
        if keeping.every.is_none() && !keeping.resume {
            return Ok(Self::default());
        }
        if let Some((flag, path)) = unrepeatable(video) {
            return match keeping.resume {
                true => Err(JournalError::Pipe { flag, path }.into()),
                false => Ok(Self::default()),
            };
        }
        if let Some(reason) = hindrance(video)? {
            return match keeping.resume {
                true => Err(JournalError::Outputs { reason }.into()),
                false => Ok(Self::default()),
            };
        }
        let partial = partial::name(&video.prepared.request.files.video);
        let folder = partial.with_extension(STATE);
        let identity = identity(video)?;
        let found = match keeping.resume {
            true => Found::open(&folder, &identity)?.map(Arc::new),
            false => None,
        };
        let rings = video.engine.models().config().dit.layers * video.prepared.request.calls();
        let blocks = (video.settings.blocks, false);
        let journal = keeping
            .every
            .map(|every| Arc::new(Journal::new(folder, identity, rings, every, blocks)));
        Ok(Self {
            journal,
            second_anchor: found.as_ref().and_then(|f| f.second_anchor.clone()),
            found,
        })
    }

    /// Returns what the denoiser begins with.
    pub(crate) fn start(&self) -> Option<Begin> {
        let found = self.found.as_ref()?;
        Some(Begin {
            block: found.block(),
            rings: Arc::clone(found) as Arc<dyn Kept>,
            second_anchor: found.second_anchor.clone(),
        })
    }

    /// Returns what the decoder begins with.
    pub(crate) fn resumed(&self) -> Option<Resumed> {
        let found = self.found.as_ref()?;
        Some(Resumed {
            block: found.block(),
            frames: found.frames(),
            state: found.decoder.clone(),
        })
    }

    /// Returns what takes the rings.
    pub(crate) fn keeper(&self) -> Option<Arc<dyn Keeper>> {
        let journal = self.journal.as_ref()?;
        Some(Arc::clone(journal) as Arc<dyn Keeper>)
    }

    /// Returns the state of an earlier run.
    pub(crate) fn found(&self) -> Option<&Found> {
        self.found.as_deref()
    }

    /// Remembers the input of the second anchor.
    pub(crate) fn anchor(&mut self, input: &AnchorInput) {
        self.second_anchor = Some(input.clone());
    }

    /// Returns the input of the second anchor.
    pub(crate) fn second_anchor(&self) -> Option<&AnchorInput> {
        self.second_anchor.as_ref()
    }

    /// Says whether another run can go on from a state.
    pub(crate) fn resumes(&self) -> bool {
        let kept = self.journal.as_ref().and_then(|j| j.whole());
        kept.is_some() || self.found.is_some()
    }
}

/// Returns an input that cannot be read a second time.
fn unrepeatable(video: &Known<'_>) -> Option<(&'static str, PathBuf)> {
    let request = &video.prepared.request;
    let inputs = [("--image", &request.image), ("--audio", &request.audio)];
    let pipe = |(flag, path): &(&str, &PathBuf)| {
        let arrives = *flag == "--audio" && request.live.is_some();
        arrives || !path.is_file()
    };
    let found = inputs.into_iter().find(pipe);
    found.map(|(flag, path)| (flag, path.clone()))
}

/// Ending of the folder of a video's state: `talk.mp4` has `talk.partial.state`.
pub(crate) const STATE: &str = "state";

/// Returns why a run with these outputs cannot go on to the same bytes, if so.
fn hindrance(video: &Known<'_>) -> Result<Option<String>, GenerateError> {
    let files = &video.prepared.request.files;
    let mp4 = |target: &Target| {
        let format = Format::Mp4;
        matches!(target, Target::File { format: f, .. } if *f == format)
    };
    let encoding = &files.encoding;
    let codec = encoding.codec.as_deref().unwrap_or("libx264");
    Ok(match &files.targets()?[..] {
        [target] if !mp4(target) => Some("the output is another one".to_owned()),
        [_] if codec != "libx264" => Some(format!("--vcodec is {codec}")),
        [_] if encoding.filters.is_some() || encoding.fps.is_some() => {
            Some("filters remember earlier frames".to_owned())
        }
        [_] => None,
        all => Some(format!("there are {} outputs", all.len())),
    })
}

/// Returns everything that the bytes of a video depend on.
fn identity(video: &Known<'_>) -> Result<Identity, JournalError> {
    let (request, engine) = (&video.prepared.request, video.engine);
    let hash = |path: &Path| {
        hash_file(path).map_err(|source| JournalError::File {
            path: path.to_owned(),
            source,
        })
    };
    let settings = &video.settings;
    let manifest = engine.models().dir().join("manifest.json");
    let mut all: Identity = [
        ("program", env!("CARGO_PKG_VERSION").to_owned()),
        ("models", hash(&manifest)?),
        ("image", hash(&request.image)?),
        ("audio", hash(&request.audio)?),
        ("prompt", request.prompt.clone()),
        (
            "picture reading",
            format!("{:?} {:?}", request.reading, request.fit),
        ),
        ("audio channel", format!("{:?}", request.channels)),
        ("size", settings.effective_size.to_string()),
        ("blocks", settings.blocks.to_string()),
        ("frames", settings.frames.to_string()),
        ("timing", format!("{:?}", request.timing)),
        ("mode", settings.mode.to_owned()),
        ("sample_steps", settings.steps.to_string()),
        ("sample_solver", settings.solver.to_owned()),
        ("sample_shift", settings.shift.to_string()),
        ("sample_guide_scale", settings.guide_scale.to_string()),
        ("infer_frames", settings.infer_frames.to_string()),
        ("ring_blocks", video.geometry.ring_blocks.to_string()),
        ("base_seed", settings.seed.to_string()),
        ("encoding", format!("{:?}", request.files.encoding)),
        ("device", engine.plan().kind.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if request.guidance.scale.is_on() {
        let negative = request.guidance.negative_prompt.clone();
        all.insert("negative_prompt".to_owned(), negative);
    }
    if let Some(replay) = &request.replay {
        all.insert("replay".to_owned(), hash(replay)?);
    }
    let machine = request.keeping.machine.iter();
    all.extend(machine.map(|(name, value)| ((*name).to_owned(), value.clone())));
    Ok(all)
}
