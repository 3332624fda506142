//! Compares two videos, two run files or two traces: the first block that differs, by how much, and
//! whether the sound does. Videos are decoded, so that equal pictures in other files are equal.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use engines::contract::DType;
use engines::error_kind::ErrorKind;
use engines::tensor::Tensor;
use engines::tensor_file::{self, TensorFileError, Tensors};
use serde::Serialize;

use crate::generate::run_file::{self, RunFile, RunFileError};
use crate::media::video_facts::ProbeError;
use crate::media::video_frames::{Pixels, SoundError, VideoFrames, VideoSound};
use crate::numbers::timing::FPS;

/// Frames of a block, and those of the first block.
const BLOCK_FRAMES: usize = 12;
const FIRST_BLOCK_FRAMES: usize = 9;
/// Most levels of a pixel.
const PEAK: f64 = 255.0;
/// Ending of a trace.
const TRACE: &str = "safetensors";

/// A difference of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distance {
    /// Largest difference.
    pub max: f64,
    /// Mean of the absolute differences.
    pub mean: f64,
    /// Peak signal-to-noise ratio in dB; `None` for equal numbers, and for numbers without a peak.
    pub psnr_db: Option<f64>,
}

/// Sums of differences on the way.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    max: f64,
    absolute: f64,
    squares: f64,
    count: usize,
}

impl Sums {
    fn add(&mut self, a: f64, b: f64) {
        let d = (a - b).abs();
        // A number that is none differs from every other.
        let d = if d.is_nan() && !(a.is_nan() && b.is_nan()) {
            f64::INFINITY
        } else {
            d
        };
        let d = if d.is_nan() { 0.0 } else { d };
        self.max = self.max.max(d);
        self.absolute += d;
        self.squares += d * d;
        self.count += 1;
    }

    fn join(&mut self, other: &Self) {
        self.max = self.max.max(other.max);
        self.absolute += other.absolute;
        self.squares += other.squares;
        self.count += other.count;
    }

    fn distance(&self, peak: Option<f64>) -> Distance {
        let count = self.count.max(1) as f64;
        let noise = self.squares / count;
        let psnr_db = peak
            .filter(|_| noise > 0.0)
            .map(|peak| 10.0 * (peak * peak / noise).log10());
        Distance {
            max: self.max,
            mean: self.absolute / count,
            psnr_db,
        }
    }
}

/// The pictures of two videos.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Picture {
    /// Width and height of each video.
    pub sizes: [[usize; 2]; 2],
    /// Frames of each video.
    pub frames: [usize; 2],
    /// Blocks that differ, among those that both videos have.
    pub differing_blocks: usize,
    /// The first block that differs.
    pub first: Option<BlockDiff>,
    /// Difference over all frames that both videos have.
    pub all: Distance,
}

/// A block of two videos that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockDiff {
    /// Number of the block, from 0.
    pub block: usize,
    /// Its first and its last frame, from 0.
    pub frames: [usize; 2],
    /// When it begins.
    pub seconds: f64,
    /// Difference of its frames, in levels of 255. `None` where one video has no such frame.
    pub distance: Option<Distance>,
}

/// The sounds of two videos.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sound {
    /// Rate and channels of each video; `None` without sound.
    pub forms: [Option<(u32, usize)>; 2],
    /// Length of each video's sound.
    pub seconds: [f64; 2],
    /// When the first sample differs.
    pub first_seconds: Option<f64>,
    /// Difference of the samples that both videos have, in parts of full scale.
    pub all: Distance,
}

/// A tensor of two traces that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// Difference of its elements; `None` where it is missing or has another shape or type.
    pub distance: Option<Distance>,
}

/// The difference of two files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diff {
    /// The files.
    pub files: [PathBuf; 2],
    /// Whether nothing differs.
    pub equal: bool,
    /// What two run files state differently.
    pub stated: Vec<String>,
    /// The pictures of videos.
    pub picture: Option<Picture>,
    /// The sounds of videos.
    pub sound: Option<Sound>,
    /// Tensors of traces that differ, in the order of a run.
    pub tensors: Vec<TensorDiff>,
}

/// Two files differ.
#[derive(Debug, thiserror::Error)]
#[error("{} and {} differ: {what}", files[0].display(), files[1].display())]
pub struct FilesDiffer {
    /// The files.
    pub files: [PathBuf; 2],
    /// The first difference.
    pub what: String,
}

/// Why files cannot be compared, or how they differ.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The files are of two kinds.
    #[error(
        "{}: wants a file of the kind of {}: a video, a run file or a trace",
        b.display(),
        a.display()
    )]
    Kinds {
        /// The first file.
        a: PathBuf,
        /// The second one.
        b: PathBuf,
    },
    /// They differ.
    #[error(transparent)]
    Differ(#[from] FilesDiffer),
    /// A video cannot be read.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The sound of a video cannot be read.
    #[error(transparent)]
    Sound(SoundError),
    /// A run file cannot be read.
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    /// A trace cannot be read.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
}

impl DiffError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Kinds { .. } => ErrorKind::Usage,
            Self::Differ(_) => ErrorKind::Verification,
            Self::Probe(e) => e.kind(),
            Self::Sound(e) => e.kind(),
            Self::RunFile(e) => e.kind(),
            Self::Tensors(e) => e.kind(),
        }
    }
}

/// Compares two files of the same kind.
///
/// # Errors
/// A file cannot be read, or the files are of two kinds.
pub fn diff(a: &Path, b: &Path) -> Result<Diff, DiffError> {
    let kind = |path: &Path| match path.extension() {
        Some(ending) if ending == TRACE => 2,
        _ => u8::from(run_file::is_named(path)),
    };
    let files = [a.to_owned(), b.to_owned()];
    let mut diff = match (kind(a), kind(b)) {
        (0, 0) => videos(a, b)?,
        (1, 1) => runs(a, b)?,
        (2, 2) => traces(a, b)?,
        _ => {
            let [a, b] = files;
            return Err(DiffError::Kinds { a, b });
        }
    };
    diff.files = files;
    diff.equal = diff.what().is_none();
    Ok(diff)
}

impl Diff {
    /// Passes if nothing differs.
    ///
    /// # Errors
    /// [`FilesDiffer`] with the first difference.
    pub fn verdict(&self) -> Result<(), FilesDiffer> {
        match self.what() {
            None => Ok(()),
            Some(what) => Err(FilesDiffer {
                files: self.files.clone(),
                what,
            }),
        }
    }

    /// Returns the first difference in words.
    fn what(&self) -> Option<String> {
        let picture = self.picture.as_ref().and_then(Picture::what);
        let sound = || self.sound.as_ref().and_then(Sound::what);
        let tensor = || self.tensors.first().map(TensorDiff::to_string);
        picture.or_else(sound).or_else(tensor)
    }
}

/// Compares what two run files state, and their videos.
fn runs(a: &Path, b: &Path) -> Result<Diff, DiffError> {
    let read = |path| RunFile::read(path);
    let (one, two) = (read(a)?, read(b)?);
    let mut stated = Vec::new();
    let mut note = |name: &str, one: String, two: String| {
        if one != two {
            stated.push(format!("{name}: {one} and {two}"));
        }
    };
    note("program", one.program.clone(), two.program.clone());
    let hash = |run: &RunFile| run.models.manifest_sha256.clone();
    note("models", hash(&one), hash(&two));
    let names: BTreeSet<&String> = one.values.keys().chain(two.values.keys()).collect();
    for name in names.into_iter().filter(|name| *name != "out") {
        let value = |run: &RunFile| {
            let found = run.values.get(name);
            found.map_or_else(|| "nothing".to_owned(), |v| v.value.to_string())
        };
        note(&format!("--{name}"), value(&one), value(&two));
    }
    for name in one.inputs.keys() {
        let hash = |run: &RunFile| format!("{:?}", run.inputs.get(name).map(|i| &i.sha256));
        if hash(&one) != hash(&two) {
            stated.push(format!("the file of --{name}"));
        }
    }
    let mut diff = videos(&one.video(a), &two.video(b))?;
    diff.stated = stated;
    Ok(diff)
}

/// Compares two videos, frame by frame and sample by sample.
fn videos(a: &Path, b: &Path) -> Result<Diff, DiffError> {
    Ok(Diff {
        picture: Some(pictures(a, b)?),
        sound: Some(sounds(a, b)?),
        ..Diff::default()
    })
}

/// Returns the block of a frame.
fn block_of(frame: usize) -> usize {
    match frame.checked_sub(FIRST_BLOCK_FRAMES) {
        None => 0,
        Some(later) => 1 + later / BLOCK_FRAMES,
    }
}

fn first_frame(block: usize) -> usize {
    match block.checked_sub(1) {
        None => 0,
        Some(later) => FIRST_BLOCK_FRAMES + later * BLOCK_FRAMES,
    }
}

fn pictures(a: &Path, b: &Path) -> Result<Picture, DiffError> {
    let (mut one, mut two) = (VideoFrames::open(a)?, VideoFrames::open(b)?);
    let (mut frames, mut sizes) = ([0, 0], [[0, 0]; 2]);
    let mut blocks: Vec<Option<Sums>> = Vec::new();
    let mut all = Sums::default();
    loop {
        let pair = [one.next_frame()?, two.next_frame()?];
        for (at, frame) in pair.iter().enumerate() {
            if let Some(frame) = frame {
                frames[at] += 1;
                sizes[at] = [frame.width, frame.height];
            }
        }
        let at = frames[0].max(frames[1]);
        match pair {
            [None, None] => break,
            [Some(a), Some(b)] if (a.width, a.height) == (b.width, b.height) => {
                let block = block_of(at - 1);
                blocks.resize(blocks.len().max(block + 1), Some(Sums::default()));
                let sums = levels(&a, &b);
                all.join(&sums);
                if let Some(block) = &mut blocks[block] {
                    block.join(&sums);
                }
            }
            _ => {
                let block = block_of(at - 1);
                blocks.resize(blocks.len().max(block + 1), Some(Sums::default()));
                blocks[block] = None;
            }
        }
    }
    let differs = |sums: &Option<Sums>| sums.is_none_or(|s| s.max > 0.0);
    let first = blocks.iter().position(differs).map(|block| BlockDiff {
        block,
        frames: [
            first_frame(block),
            first_frame(block + 1).min(frames[0].max(frames[1])) - 1,
        ],
        seconds: first_frame(block) as f64 / f64::from(FPS),
        distance: blocks[block].map(|sums| sums.distance(Some(PEAK))),
    });
    Ok(Picture {
        sizes,
        frames,
        differing_blocks: blocks.iter().filter(|b| differs(b)).count(),
        first,
        all: all.distance(Some(PEAK)),
    })
}

fn levels(a: &Pixels, b: &Pixels) -> Sums {
    let mut sums = Sums::default();
    if a.planes == b.planes {
        sums.count = a.planes.len();
        return sums;
    }
    for (&a, &b) in a.planes.iter().zip(&b.planes) {
        sums.add(a.into(), b.into());
    }
    sums
}

fn sounds(a: &Path, b: &Path) -> Result<Sound, DiffError> {
    let open = |path| VideoSound::open(path).map_err(DiffError::Sound);
    let (mut one, mut two) = (open(a)?, open(b)?);
    let forms = [&one, &two].map(|sound| sound.as_ref().map(VideoSound::form));
    let (mut lengths, mut sums, mut first) = ([0, 0], Sums::default(), None);
    loop {
        let read = |sound: &mut Option<VideoSound>| match sound {
            Some(sound) => {
                let (rate, channels) = sound.form();
                Ok((
                    sound.read(rate as usize).map_err(DiffError::Sound)?,
                    channels,
                ))
            }
            None => Ok::<_, DiffError>((Vec::new(), 1)),
        };
        let ((a, channels), (b, others)) = (read(&mut one)?, read(&mut two)?);
        if a.is_empty() && b.is_empty() {
            break;
        }
        if forms[0] == forms[1] {
            let different = a.iter().zip(&b).position(|(a, b)| a != b);
            let ends = (a.len() != b.len()).then(|| a.len().min(b.len()));
            if let Some(at) = different.or(ends) {
                first.get_or_insert(lengths[0] + at / channels);
            }
            a.iter()
                .zip(&b)
                .for_each(|(&a, &b)| sums.add(a.into(), b.into()));
        }
        lengths[0] += a.len() / channels;
        lengths[1] += b.len() / others;
    }
    let rate = |at: usize| forms[at].map_or(1.0, |(rate, _)| f64::from(rate));
    Ok(Sound {
        forms,
        seconds: [0, 1].map(|at| lengths[at] as f64 / rate(at)),
        first_seconds: first.map(|at| at as f64 / rate(0)),
        all: sums.distance(Some(1.0)),
    })
}

/// Compares the tensors of two traces.
fn traces(a: &Path, b: &Path) -> Result<Diff, DiffError> {
    let (one, two): (Tensors, Tensors) = (tensor_file::read(a)?, tensor_file::read(b)?);
    let names: BTreeSet<&String> = one.keys().chain(two.keys()).collect();
    let mut names: Vec<&String> = names.into_iter().collect();
    names.sort_by_key(|name| order(name));
    let compare = |name: &String| {
        let distance = match (one.get(name), two.get(name)) {
            (Some(a), Some(b)) if a.shape() == b.shape() && a.dtype() == b.dtype() => {
                if a.bytes() == b.bytes() {
                    return None;
                }
                let mut sums = Sums::default();
                let pairs = numbers(a).into_iter().zip(numbers(b));
                pairs.for_each(|(a, b)| sums.add(a, b));
                let peak = (a.dtype() == DType::U8).then_some(PEAK);
                Some(sums.distance(peak))
            }
            _ => None,
        };
        let name = name.clone();
        Some(TensorDiff { name, distance })
    };
    Ok(Diff {
        tensors: names.into_iter().filter_map(compare).collect(),
        ..Diff::default()
    })
}

/// Returns a key that sorts tensors as a run makes them: conditions, blocks by number, frames.
fn order(name: &str) -> (u8, usize, &str) {
    let number = |text: &str| {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        text[..digits.unwrap_or(text.len())].parse().ok()
    };
    match name.strip_prefix("block").and_then(number) {
        Some(block) => (1, block, name),
        None if name.starts_with("frames") => (2, 0, name),
        None => (0, 0, name),
    }
}

/// Returns the elements of a tensor as numbers.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>().iter().map(|&v| v.into()).collect(),
        DType::BF16 => tensor
            .as_slice::<half::bf16>()
            .iter()
            .map(|v| v.to_f64())
            .collect(),
        DType::I64 => tensor.as_slice::<i64>().iter().map(|&v| v as f64).collect(),
        _ => tensor.bytes().iter().map(|&v| v.into()).collect(),
    }
}

impl Picture {
    fn what(&self) -> Option<String> {
        let ([a, b], [n, m]) = (self.sizes, self.frames);
        if a != b {
            return Some(format!(
                "the pictures are {}x{} and {}x{}",
                a[0], a[1], b[0], b[1]
            ));
        }
        let first = self.first.as_ref()?;
        let [from, to] = first.frames;
        let at = format!(
            "block {} (frames {from} to {to}, {:.2} s)",
            first.block, first.seconds
        );
        Some(match first.distance {
            None => format!("{at}: one video has {n} frames, the other {m}"),
            Some(distance) => format!("{at}: {}", levels_text(&distance)),
        })
    }
}

fn levels_text(distance: &Distance) -> String {
    let psnr = distance
        .psnr_db
        .map_or_else(String::new, |db| format!(", PSNR {db:.2} dB"));
    format!(
        "max {} levels, mean {:.4}{psnr}",
        distance.max, distance.mean
    )
}

impl Sound {
    fn what(&self) -> Option<String> {
        let form = |form: Option<(u32, usize)>| {
            form.map_or_else(
                || "none".to_owned(),
                |(rate, channels)| format!("{rate} Hz x {channels}"),
            )
        };
        if self.forms[0] != self.forms[1] {
            let [a, b] = self.forms.map(form);
            return Some(format!("the sounds are {a} and {b}"));
        }
        let first = self.first_seconds?;
        let [a, b] = self.seconds;
        let lengths = match a == b {
            true => String::new(),
            false => format!("; lengths {a:.3} s and {b:.3} s"),
        };
        let max = self.all.max;
        Some(format!(
            "the sound from {first:.3} s on, by at most {max:.6} of full scale{lengths}"
        ))
    }
}

impl fmt::Display for TensorDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.distance {
            None => write!(f, "{name}: one file lacks it, or has another shape or type"),
            Some(Distance { max, mean, .. }) => write!(f, "{name}: max {max:.3e}, mean {mean:.3e}"),
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for stated in &self.stated {
            writeln!(f, "stated differently: {stated}")?;
        }
        if let Some(picture) = &self.picture {
            match picture.what() {
                None => writeln!(f, "picture: equal, {} frames", picture.frames[0])?,
                Some(what) => writeln!(
                    f,
                    "picture: first difference in {what}\n   {} blocks differ; over all frames {}",
                    picture.differing_blocks,
                    levels_text(&picture.all)
                )?,
            }
        }
        if let Some(sound) = &self.sound {
            match (sound.what(), sound.forms[0]) {
                (Some(what), _) => writeln!(f, "sound: differs: {what}")?,
                (None, None) => writeln!(f, "sound: none in both")?,
                (None, Some(_)) => writeln!(f, "sound: equal, {:.3} s", sound.seconds[0])?,
            }
        }
        for tensor in &self.tensors {
            writeln!(f, "{tensor}")?;
        }
        write!(f, "{}", if self.equal { "equal" } else { "different" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_has_nine_frames() {
        let blocks: Vec<usize> = [0, 8, 9, 20, 21, 33].map(block_of).into();
        assert_eq!(blocks, [0, 0, 1, 1, 2, 3]);
        for block in 0..5 {
            assert_eq!(block_of(first_frame(block)), block);
            assert_eq!(block_of(first_frame(block + 1) - 1), block);
        }
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        let mut sums = Sums::default();
        let pairs = [(0.0, 2.0), (5.0, 5.0), (3.0, 1.0), (7.0, 7.0)];
        pairs.iter().for_each(|&(a, b)| sums.add(a, b));
        let distance = sums.distance(Some(PEAK));
        assert_eq!((distance.max, distance.mean), (2.0, 1.0));
        // 10 log10(255 * 255 / 2)
        assert!((distance.psnr_db.unwrap() - 45.120).abs() < 1e-3);
        let mut none = Sums::default();
        none.add(f64::NAN, 1.0);
        assert_eq!(none.max, f64::INFINITY);
    }

    #[test]
    fn traces_name_the_first_tensor_in_the_order_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, changed: &[&str]| {
            let mut tensors = Tensors::new();
            for tensor in ["context", "block2.latents", "block10.latents", "frames_u8"] {
                let value = if changed.contains(&tensor) {
                    1.5_f32
                } else {
                    1.0
                };
                tensors.insert(tensor.to_owned(), Tensor::from_slice(&[1], &[value]));
            }
            let path = dir.path().join(name);
            tensor_file::write(&path, &tensors).unwrap();
            path
        };
        let a = write("a.safetensors", &[]);
        let same = diff(&a, &write("s.safetensors", &[])).unwrap();
        assert!(same.equal && same.verdict().is_ok());
        let b = write(
            "b.safetensors",
            &["frames_u8", "block10.latents", "block2.latents"],
        );
        let differs = diff(&a, &b).unwrap();
        let names: Vec<&str> = differs.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["block2.latents", "block10.latents", "frames_u8"]);
        let error = differs.verdict().unwrap_err().to_string();
        assert!(
            error.ends_with("block2.latents: max 5.000e-1, mean 5.000e-1"),
            "{error}"
        );
        assert!(diff(&a, Path::new("v.mp4")).is_err());
    }
}
