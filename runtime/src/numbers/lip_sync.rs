//! Measures by how much the lips of a video are behind its sound.
//!
//! The picture is a grid of cells, each with its brightness a frame. A mouth that opens changes the
//! brightness of its cells with the loudness of the voice, so the cells that follow the sound best
//! are the mouth, whoever speaks and wherever. They are found at every offset; the offset at which
//! they follow best is the coarse answer, and how far it stands out is the confidence. Two methods
//! then measure on those cells alone.

use std::fmt;
use std::str::FromStr;

/// Largest offset that is looked for, in frames to both sides: 0.6 s.
pub(crate) const REACH: usize = 15;
/// Fewest frames that are measured: an offset needs twice the reach, and as much to compare.
pub(crate) const LEAST_FRAMES: usize = 4 * REACH;
/// Cells that make a mouth.
const MOUTH: usize = 4;
/// Frames of the moving mean that is taken off, one second: turns of the head are slower.
const SLOW: usize = 25;
/// Brightness, in levels, below which a cell counts as still.
const STILL: f64 = 0.5;
/// Loudness below the loudest frame, as a factor, that counts as silence: -50 dB.
const FLOOR: f64 = 0.003;
/// Deviation of the loudness, as a decimal logarithm, below which the sound never changes.
const EVEN: f64 = 1e-3;
/// Frames around the best offset that belong to it.
const PEAK: usize = 4;
/// How far the best offset stands out where it is certain.
const CERTAIN: f64 = 0.25;
/// Frames by which the method may differ from the coarse offset.
const AGREEMENT: f64 = 2.0;
/// Confidence from which an offset is corrected.
pub(crate) const TRUSTED: f64 = 0.4;

/// How the offset between lips and sound is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlignMethod {
    /// It is not measured.
    #[default]
    None,
    /// Openings of the mouth are compared with rises of the loudness.
    Onset,
    /// The movement of the mouth is warped onto the loudness, and the median of the warp counts.
    Dtw,
}

impl AlignMethod {
    /// Returns the name that users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Onset => "onset",
            Self::Dtw => "dtw",
        }
    }
}

impl FromStr for AlignMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Onset, Self::Dtw];
        let found = all.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| format!("wants none, onset or dtw, got `{text}`"))
    }
}

/// A measured offset.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Offset {
    /// Frames by which the lips are behind the sound; negative where they are ahead.
    pub frames: f64,
    /// From 0, a guess, to 1.
    pub confidence: f64,
    /// Correlation of the mouth with the loudness at the coarse offset.
    pub correlation: f64,
}

impl Offset {
    /// The offset of a video that shows no lips, or has no sound.
    pub(crate) const UNKNOWN: Self = Self {
        frames: 0.0,
        confidence: 0.0,
        correlation: 0.0,
    };

    /// Returns whether the confidence is high enough for a correction.
    pub fn is_trusted(&self) -> bool {
        self.confidence >= TRUSTED
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.frames < 0.0 {
            "ahead of"
        } else {
            "behind"
        };
        let frames = self.frames.abs();
        write!(
            f,
            "lips are {frames:.1} frames ({:.0} ms) {side} the sound, confidence {:.2}",
            40.0 * frames,
            self.confidence
        )
    }
}

/// What was measured in a video, and what was done about it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Alignment {
    /// Name of the method.
    pub method: &'static str,
    /// The offset.
    #[serde(flatten)]
    pub offset: Offset,
    /// Frames that were measured.
    pub measured_frames: usize,
    /// Milliseconds by which the sound was moved, later or (negative) earlier.
    pub moved_ms: f64,
}

impl fmt::Display for Alignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            method,
            offset,
            measured_frames,
            moved_ms,
        } = self;
        if *offset == Offset::UNKNOWN {
            return write!(
                f,
                "{method} over {measured_frames} frames: no offset can be told; this wants \
                 {LEAST_FRAMES} frames with a face that moves, and sound"
            );
        }
        write!(f, "{method} over {measured_frames} frames: {offset}; ")?;
        match *moved_ms {
            0.0 if !offset.is_trusted() => {
                let least = TRUSTED;
                write!(f, "nothing is moved below a confidence of {least}")
            }
            0.0 => write!(f, "nothing was moved"),
            ms => write!(
                f,
                "the sound was moved {:.0} ms {}",
                ms.abs(),
                if ms > 0.0 { "later" } else { "earlier" }
            ),
        }
    }
}

/// Measures the offset of a video at 25 frames a second. `cells` has the brightness of every cell
/// for each frame, and `loudness` the root mean square of the sound in each frame.
pub(crate) fn measure(cells: &[Vec<f32>], loudness: &[f32], method: AlignMethod) -> Offset {
    let frames = cells.len().min(loudness.len());
    let Some(count) = cells.first().map(Vec::len) else {
        return Offset::UNKNOWN;
    };
    if method == AlignMethod::None || frames < LEAST_FRAMES {
        return Offset::UNKNOWN;
    }
    let level = levels(&loudness[..frames]);
    let heard = without_slow(&level);
    let cell = |at: usize| -> Vec<f64> {
        let values = cells[..frames].iter().map(|frame| f64::from(frame[at]));
        without_slow(&values.collect::<Vec<_>>())
    };
    let moving: Vec<Vec<f64>> = (0..count)
        .map(cell)
        .filter(|c| deviation(c) > STILL)
        .collect();
    if moving.len() < MOUTH || deviation(&heard) < EVEN {
        return Offset::UNKNOWN;
    }
    let followed: Vec<Vec<f64>> = moving.iter().map(|c| correlations(c, &heard)).collect();
    let strength: Vec<f64> = (0..=2 * REACH).map(|at| strongest(&followed, at)).collect();
    let coarse = largest(&strength);
    let far = strength.iter().enumerate();
    let far = far.filter(|(at, _)| at.abs_diff(coarse) > PEAK);
    let margin = strength[coarse] - far.map(|(_, &s)| s).fold(0.0, f64::max);
    let opening = mouth(&moving, &followed, coarse);
    let found = match method {
        AlignMethod::Onset | AlignMethod::None => onset(&opening, &level),
        AlignMethod::Dtw => warp(&opening, &heard),
    };
    let agrees = (found - (coarse as f64 - REACH as f64)).abs() <= AGREEMENT;
    let edge = coarse == 0 || coarse == 2 * REACH;
    let certain = (margin / CERTAIN).clamp(0.0, 1.0);
    Offset {
        frames: found,
        confidence: if agrees && !edge { certain } else { 0.0 },
        correlation: strength[coarse],
    }
}

/// Returns loudness on a logarithmic scale, with a floor under the loudest frame.
fn levels(loudness: &[f32]) -> Vec<f64> {
    let values = || loudness.iter().map(|&v| f64::from(v));
    let floor = values().fold(1e-9, f64::max) * FLOOR;
    values().map(|v| v.max(floor).log10()).collect()
}

/// Takes the moving mean off.
fn without_slow(values: &[f64]) -> Vec<f64> {
    let half = SLOW / 2;
    let mean = |at: usize| {
        let around = at.saturating_sub(half)..(at + half + 1).min(values.len());
        let n = around.len() as f64;
        values[around].iter().sum::<f64>() / n
    };
    values
        .iter()
        .enumerate()
        .map(|(at, v)| v - mean(at))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (squares / values.len().max(1) as f64).sqrt()
}

/// Returns the correlation of `seen` with `heard` at every offset from `-REACH` to `REACH`. At a
/// positive offset, `seen` is behind.
fn correlations(seen: &[f64], heard: &[f64]) -> Vec<f64> {
    let at = |index: usize| {
        let (behind, ahead) = (index.saturating_sub(REACH), REACH.saturating_sub(index));
        let n = seen.len() - behind - ahead;
        correlation(&seen[behind..behind + n], &heard[ahead..ahead + n])
    };
    (0..=2 * REACH).map(at).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (mean(a), mean(b));
    let pairs = a.iter().zip(b).map(|(x, y)| (x - mean_a, y - mean_b));
    let (xy, xx, yy) = pairs.fold((0.0, 0.0, 0.0), |(xy, xx, yy), (x, y)| {
        (xy + x * y, xx + x * x, yy + y * y)
    });
    let product: f64 = xx * yy;
    if product > 0.0 {
        xy / product.sqrt()
    } else {
        0.0
    }
}

/// Returns the mean of the largest correlations of any cells at one offset.
fn strongest(followed: &[Vec<f64>], at: usize) -> f64 {
    let mut all: Vec<f64> = followed.iter().map(|f| f[at].abs()).collect();
    all.sort_by(|a, b| b.total_cmp(a));
    mean(&all[..MOUTH])
}

fn largest(values: &[f64]) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(at, _)| at)
}

/// Returns how far the mouth is open: the mean of the cells that follow best at an offset, each in
/// its own deviation, and turned so that it grows with the loudness.
fn mouth(moving: &[Vec<f64>], followed: &[Vec<f64>], at: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..moving.len()).collect();
    order.sort_by(|&a, &b| followed[b][at].abs().total_cmp(&followed[a][at].abs()));
    let part = |frame: usize, cell: usize| {
        moving[cell][frame] * followed[cell][at].signum() / deviation(&moving[cell])
    };
    let open = |frame: usize| order[..MOUTH].iter().map(|&c| part(frame, c)).sum::<f64>();
    let frames = moving.first().map_or(0, Vec::len);
    (0..frames)
        .map(|frame| open(frame) / MOUTH as f64)
        .collect()
}

/// Returns the offset at which rises of both agree best, with a parabola through three offsets.
fn onset(opening: &[f64], level: &[f64]) -> f64 {
    let rises = |values: &[f64]| -> Vec<f64> {
        let rise = |pair: &[f64]| (pair[1] - pair[0]).max(0.0);
        std::iter::once(0.0)
            .chain(values.windows(2).map(rise))
            .collect()
    };
    let agreement = correlations(&rises(opening), &rises(level));
    let best = largest(&agreement);
    let mut at = best as f64 - REACH as f64;
    if let Some(&[before, peak, after]) = best.checked_sub(1).and_then(|b| agreement.get(b..b + 3))
    {
        let bend = before - 2.0 * peak + after;
        if bend < 0.0 {
            at += 0.5 * (before - after) / bend;
        }
    }
    at
}

/// A place of a warping path: the frame of the picture, and the column. A column is the offset of
/// the picture behind the sound, plus the reach.
type Step = (usize, usize);

/// Columns of a frame.
const COLUMNS: usize = 2 * REACH + 1;

/// Returns the middle of the offsets along the path that warps one onto the other.
///
/// The ends are free, and no step of the path is further than [`REACH`] from equal times.
fn warp(opening: &[f64], heard: &[f64]) -> f64 {
    let scaled = |values: &[f64]| -> Vec<f64> {
        let (mean, deviation) = (mean(values), deviation(values).max(1e-9));
        values.iter().map(|v| (v - mean) / deviation).collect()
    };
    let (cost, from) = paths(&scaled(opening), &scaled(heard));
    let n = cost.len();
    let last = (0..COLUMNS).map(|column| (n - 1, column));
    // The sound's last frame, in the columns of earlier pictures.
    let end = (0..n).filter_map(|frame| Some((frame, (frame + REACH + 1).checked_sub(n)?)));
    let ends = last.chain(end.filter(|&(_, column)| column < COLUMNS));
    let ends = ends.filter(|&(f, c)| cost[f][c].is_finite());
    let Some(mut at) = ends.min_by(|a, b| cost[a.0][a.1].total_cmp(&cost[b.0][b.1])) else {
        return 0.0;
    };
    let mut offsets = vec![at.1];
    while from[at.0][at.1] != at {
        at = from[at.0][at.1];
        offsets.push(at.1);
    }
    offsets.sort_unstable();
    let middle = &offsets[offsets.len() / 4..offsets.len() - offsets.len() / 4];
    middle.iter().sum::<usize>() as f64 / middle.len() as f64 - REACH as f64
}

/// Returns the cost of the cheapest path to each place, and the place before it. A path begins at
/// itself.
fn paths(seen: &[f64], heard: &[f64]) -> (Vec<[f64; COLUMNS]>, Vec<[Step; COLUMNS]>) {
    let n = seen.len();
    let mut cost = vec![[f64::INFINITY; COLUMNS]; n];
    let mut from = vec![[(0, 0); COLUMNS]; n];
    for frame in 0..n {
        // A later sound is a smaller column, and steps within a frame come from an earlier sound.
        for column in (0..COLUMNS).rev() {
            let sound = (frame + REACH).checked_sub(column).filter(|&at| at < n);
            let Some(sound) = sound else { continue };
            let begins = frame == 0 || sound == 0;
            let start = if begins { 0.0 } else { f64::INFINITY };
            let mut best = (start, (frame, column));
            let before = frame.checked_sub(1);
            let steps = [
                before.map(|f| (f, column)),
                before.zip(column.checked_sub(1)),
                Some((frame, column + 1)).filter(|&(_, c)| c < COLUMNS),
            ];
            for (f, c) in steps.into_iter().flatten() {
                if cost[f][c] < best.0 {
                    best = (cost[f][c], (f, c));
                }
            }
            cost[frame][column] = best.0 + (seen[frame] - heard[sound]).powi(2);
            from[frame][column] = best.1;
        }
    }
    (cost, from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::rng;

    /// Returns noise from -0.5 to 0.5 that depends on its key alone.
    fn noise(key: u64, at: usize) -> f64 {
        f64::from(rng::relative_dist(key, at as u64, 1)) / 26.0 - 0.65
    }

    /// Returns the opening of a mouth: syllables of a few frames, with pauses.
    fn syllables(frames: usize) -> Vec<f64> {
        let mut value = 0.0;
        let step = |at: usize| {
            let target = if at / 40 % 3 == 2 {
                0.0
            } else {
                (noise(7, at / 4) + 0.5).max(0.0)
            };
            value += 0.6 * (target - value);
            value
        };
        (0..frames).map(step).collect()
    }

    /// Draws a person whose mouth covers 5 of 64 cells and is `behind` frames behind the sound.
    fn person(frames: usize, behind: isize) -> (Vec<Vec<f32>>, Vec<f32>) {
        let open = syllables(frames + 2 * REACH);
        let frame = |at: usize| {
            let opening = open[(at as isize + REACH as isize - behind) as usize];
            let cell = |cell: usize| {
                let own = 4.0 * noise(cell as u64 + 100, at) + 10.0 * (at as f64 / 90.0).sin();
                let mouth = if (30..35).contains(&cell) {
                    -60.0 * opening
                } else {
                    0.0
                };
                (120.0 + own + mouth) as f32
            };
            (0..64).map(cell).collect()
        };
        let loud = |at: usize| (open[at + REACH].powi(2) + 1e-4) as f32;
        (
            (0..frames).map(frame).collect(),
            (0..frames).map(loud).collect(),
        )
    }

    #[test]
    fn a_known_offset_is_found_by_both_methods() {
        for behind in [-11, -6, -1, 0, 3, 8, 12] {
            let (cells, loudness) = person(200, behind);
            for method in [AlignMethod::Onset, AlignMethod::Dtw] {
                let found = measure(&cells, &loudness, method);
                let error = (found.frames - behind as f64).abs();
                assert!(error <= 1.0, "{method:?} {behind}: {found:?}");
                assert!(found.is_trusted(), "{method:?} {behind}: {found:?}");
            }
        }
    }

    #[test]
    fn another_persons_sound_is_not_trusted() {
        let (cells, _) = person(200, 0);
        for key in 0..8 {
            let other: Vec<f32> = (0..200)
                .map(|at| (noise(key, at / 3) + 0.7) as f32)
                .collect();
            for method in [AlignMethod::Onset, AlignMethod::Dtw] {
                let found = measure(&cells, &other, method);
                assert!(!found.is_trusted(), "{key}: {found:?}");
            }
        }
    }

    #[test]
    fn a_still_picture_silence_and_a_short_video_have_no_offset() {
        let (cells, loudness) = person(200, 3);
        let still = vec![cells[0].clone(); 200];
        for (cells, loudness) in [
            (&still[..], &loudness[..]),
            (&cells[..], &[0.0; 200][..]),
            (&cells[..LEAST_FRAMES - 1], &loudness[..]),
            (&[][..], &loudness[..]),
        ] {
            assert_eq!(measure(cells, loudness, AlignMethod::Dtw), Offset::UNKNOWN);
        }
    }
}
