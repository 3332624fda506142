//! Rotary position tables for the noisy tokens of a block and for the sink tokens.
//!
//! Tables are computed in f64 and given to the graphs as f32. Three axes (latent frame, token row,
//! token column) share the frequencies of a head. A table row is the angles of the three axes, one
//! after the other. The reference indexes a table of 45000 frames and ends there (two hours).
//! This code computes the angles, so it has no such end.

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

/// Latent frames of one block.
pub(crate) const BLOCK_FRAMES: usize = 3;
/// Frame index of the reference tokens before any shift.
pub(crate) const REF_FRAME: i64 = 30;
/// Frame index of the newest motion frame (`post`).
const POST_FRAME: i64 = -1;
/// First frame index of the two motion frames before it (`2x`).
const FRAME_2X: i64 = -3;
/// First frame index of each group of four among the sixteen oldest motion frames (`4x`).
const FRAMES_4X: [i64; 4] = [-19, -14, -9, -4];
/// Base of the frequencies, as in the reference.
const THETA: f64 = 10000.0;

/// Cosines and sines of the positions of tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    /// Cosines, `[tokens, head_dim/2]`.
    pub cos: Array2<f32>,
    /// Sines, `[tokens, head_dim/2]`.
    pub sin: Array2<f32>,
}

/// Returns how far the reference token has moved: `max(0, f0 - (30 - relative_dist))`.
///
/// `f0` is the block's first global latent frame. Reference: `CausalWanModel_S2V`, relative
/// position of the ref frame.
pub(crate) fn ref_shift(f0: usize, relative_dist: u32) -> usize {
    (f0 + relative_dist as usize).saturating_sub(REF_FRAME as usize)
}

/// The tables of one video size. Rows and columns never change, so their angles are computed once.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    rows: Table,
    columns: Table,
    frame_width: usize,
}

impl Rope {
    /// Computes the angles for `h x w` tokens a frame and heads of `head_dim`.
    pub(crate) fn new(h: usize, w: usize, head_dim: usize) -> Self {
        let [frame_width, row_width, column_width] = split(head_dim);
        let positions = |n: usize| (0..n as i64).collect::<Vec<_>>();
        Self {
            rows: Table::of_axis(row_width, &positions(h)),
            columns: Table::of_axis(column_width, &positions(w)),
            frame_width,
        }
    }

    /// Returns the table of the block that starts at global latent frame `f0`.
    ///
    /// Its `3*h*w` rows go by frame, then by row, then by column.
    pub(crate) fn noisy(&self, f0: usize) -> Table {
        let frames: [i64; BLOCK_FRAMES] = std::array::from_fn(|i| (f0 + i) as i64);
        self.group(&frames, 1)
    }

    /// Returns the table of the sink tokens `[ref | post | 2x | 4x]`.
    ///
    /// Only the reference moves, by `shift` (see [`ref_shift`]).
    pub(crate) fn cond(&self, shift: usize) -> Table {
        let groups = [
            self.group(&[REF_FRAME + shift as i64], 1),
            self.group(&[POST_FRAME], 1),
            self.group(&[FRAME_2X], 2),
            self.group(&FRAMES_4X, 4),
        ];
        let join = |part: fn(&Table) -> ArrayView2<'_, f32>| {
            concatenate(Axis(0), &groups.each_ref().map(part)).expect("tables of one head")
        };
        Table {
            cos: join(|t| t.cos.view()),
            sin: join(|t| t.sin.view()),
        }
    }

    /// Returns the table of frames x rows x columns. Each side keeps `1/stride` of its tokens.
    fn group(&self, frames: &[i64], stride: usize) -> Table {
        let kept = |side: &Table| spread(side.cos.nrows(), side.cos.nrows() / stride);
        let (rows, columns) = (kept(&self.rows), kept(&self.columns));
        let count = frames.len() * rows.len() * columns.len();
        let column_of = |token| columns[token % columns.len()];
        let row_of = |token| rows[token / columns.len() % rows.len()];
        let frame_of = |token| token / columns.len() / rows.len();
        let places = [
            (0..count).map(frame_of).collect(),
            (0..count).map(row_of).collect(),
            (0..count).map(column_of).collect(),
        ];
        let frames = Table::of_axis(self.frame_width, frames);
        let axes = [&frames, &self.rows, &self.columns];
        Table {
            cos: gather(&axes.map(|axis| axis.cos.view()), &places),
            sin: gather(&axes.map(|axis| axis.sin.view()), &places),
        }
    }
}

/// Picks the rows `places` of each axis and puts them side by side, `[tokens, head_dim/2]`.
fn gather(axes: &[ArrayView2<'_, f32>; 3], places: &[Vec<usize>; 3]) -> Array2<f32> {
    let width = axes.iter().map(|axis| axis.ncols()).sum();
    let mut out = Array2::zeros((places[0].len(), width));
    let mut first = 0;
    for (axis, at) in axes.iter().zip(places) {
        let end = first + axis.ncols();
        out.slice_mut(s![.., first..end])
            .assign(&axis.select(Axis(0), at));
        first = end;
    }
    out
}

impl Table {
    /// Computes the angles of one axis with `width` frequencies, `[positions, width]`.
    fn of_axis(width: usize, positions: &[i64]) -> Self {
        let angles = Array2::from_shape_fn((positions.len(), width), |(i, j)| {
            positions[i] as f64 * (1.0 / THETA.powf(2.0 * j as f64 / (2 * width) as f64))
        });
        Self {
            cos: angles.mapv(|angle| angle.cos() as f32),
            sin: angles.mapv(|angle| angle.sin() as f32),
        }
    }
}

/// Returns the frequencies of the (frame, row, column) axes. Row and column have a third of
/// `head_dim/2` each, the frame has the rest: 128 gives 22, 21 and 21.
fn split(head_dim: usize) -> [usize; 3] {
    let half = head_dim / 2;
    [half - 2 * (half / 3), half / 3, half / 3]
}

/// Returns `numpy.linspace(0, n - 1, count).astype(int)`, with its float steps and truncation.
pub(crate) fn spread(n: usize, count: usize) -> Vec<usize> {
    let last = n.saturating_sub(1);
    let step = if count > 1 {
        last as f64 / (count - 1) as f64
    } else {
        0.0
    };
    let mut points: Vec<usize> = (0..count).map(|i| (i as f64 * step) as usize).collect();
    if count > 1 {
        points[count - 1] = last;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    #[test]
    fn the_head_is_split_as_the_reference_does() {
        for (head_dim, want) in [
            (128, [22, 21, 21]),
            (64, [12, 10, 10]),
            (32, [6, 5, 5]),
            (24, [4, 4, 4]),
        ] {
            assert_eq!(split(head_dim), want);
        }
    }

    #[test]
    fn only_a_block_beyond_the_distance_moves_the_reference() {
        for (f0, dist, want) in [
            (0, 30, 0),
            (0, 4, 0),
            (12, 10, 0),
            (15, 30, 15),
            (300, 4, 274),
            (26, 4, 0),
            (27, 4, 1),
        ] {
            assert_eq!(ref_shift(f0, dist), want, "f0 {f0}, distance {dist}");
        }
    }

    #[test]
    fn tables_match_the_reference() {
        for set in golden::sets() {
            let [h, w] =
                ["h", "w"].map(|side| set.number(&format!("/values/dit_sink/latent_{side}")) / 2);
            let rope = Rope::new(h, w, set.number("/config/head_dim"));
            let close = |name: &str, table: &Table| {
                for (part, side) in [("cos", &table.cos), ("sin", &table.sin)] {
                    let want = set.f32s("rope", &format!("{name}.{part}"));
                    let worst = golden::worst(side.as_slice().unwrap(), &want);
                    assert!(worst <= 1e-6, "{name}.{part}: {worst}");
                }
            };
            for f0 in [0, 12, 15, 300] {
                close(&format!("noisy.f{f0}"), &rope.noisy(f0));
            }
            for (f0, dist) in [(0, 30), (12, 10), (15, 30), (300, 4)] {
                close(
                    &format!("cond.f{f0}_rel{dist}"),
                    &rope.cond(ref_shift(f0, dist)),
                );
            }
        }
    }

    #[test]
    fn thinned_positions_are_numpys() {
        assert_eq!(spread(24, 12), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]);
        assert_eq!(spread(44, 11), [0, 4, 8, 12, 17, 21, 25, 30, 34, 38, 43]);
        assert_eq!(spread(4, 1), [0]);
        assert_eq!(spread(3, 0), [0usize; 0]);
        for (set, (name, stride)) in golden::sets()
            .iter()
            .flat_map(|s| [("index_2x", 2), ("index_4x", 4)].map(|n| (s, n)))
        {
            let table = set.i64s("rope", name);
            for row in table.chunks(table.len() / 32) {
                let n = row[0] as usize;
                let want: Vec<usize> = row[1..]
                    .iter()
                    .filter(|&&i| i >= 0)
                    .map(|&i| i as usize)
                    .collect();
                assert_eq!(spread(n, n / stride), want, "{name} of {n}");
            }
        }
    }

    #[test]
    fn a_row_holds_the_angles_of_its_place() {
        let rope = Rope::new(4, 8, 128);
        let table = rope.noisy(12);
        let (row, half) = (32 + 2 * 8 + 5, 64); // frame 13, row 2, column 5
        assert_eq!(table.cos.dim(), (3 * 32, half));
        for (index, position) in [(0, 13.0), (22, 2.0), (43, 5.0)] {
            assert!((f64::from(table.cos[[row, index]]) - f64::cos(position)).abs() < 1e-7);
            assert!((f64::from(table.sin[[row, index]]) - f64::sin(position)).abs() < 1e-7);
        }
        let tokens = crate::fixtures::sizes::config(1).sink_tokens(4, 8);
        assert_eq!((rope.cond(0).cos.dim(), tokens), ((tokens, half), 80));
    }

    /// Returns cos and sin of `frame` times a frequency, by powers of one rotation and not by the
    /// angle.
    fn turned(frame: u64, frequency: f64) -> (f64, f64) {
        let times = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
        let (mut power, mut all, mut left) =
            ((frequency.cos(), frequency.sin()), (1.0, 0.0), frame);
        while left > 0 {
            if left & 1 == 1 {
                all = times(all, power);
            }
            power = times(power, power);
            left >>= 1;
        }
        all
    }

    /// The last of the reference's 45,000 frames and the first beyond them, then those after 10,000
    /// and 1,000,000 seconds of video, and the block before f32 could not count frames.
    #[test]
    fn the_tables_go_on_after_the_references_45000_frames() {
        let rope = Rope::new(4, 4, 128);
        let sink_row = |tokens: &Table, i: usize| [tokens.cos[[0, i]], tokens.sin[[0, i]]];
        for f0 in [44_997, 45_000, 62_499, 6_249_999, 16_777_215] {
            let (table, shift) = (rope.noisy(f0), ref_shift(f0, 10));
            let cond = rope.cond(shift);
            assert_eq!(shift, f0 - 20);
            for i in 0..22 {
                let frequency = 1.0 / 10_000_f64.powf(2.0 * i as f64 / 44.0);
                let moved = (f0 + 10) as u64;
                let rows = (0..3).map(|t| (f0 as u64 + t, 16 * t as usize));
                let rows = rows.map(|(frame, row)| {
                    let at = [row, i];
                    (frame, [table.cos[at], table.sin[at]])
                });
                for (frame, got) in rows.chain([(moved, sink_row(&cond, i))]) {
                    let (cos, sin) = turned(frame, frequency);
                    let off = got.map(f64::from);
                    let off = (off[0] - cos).abs().max((off[1] - sin).abs());
                    assert!(off < 1e-7, "frame {frame}, frequency {i}: {off}");
                }
            }
        }
    }
}
