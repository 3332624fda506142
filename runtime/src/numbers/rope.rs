//! Rotary position tables for the noisy tokens of a block and for the sink tokens, computed in f64
//! and handed to the graphs as f32. Three axes (latent frame, token row, token column) share the
//! head's frequencies; a table row is the concatenation of the axes' angles. The reference indexes
//! a table of 45000 frames and stops there (two hours); angles here are computed, so there is no
//! such end.

use std::ops::Range;

/// Latent frames of one block.
pub(crate) const BLOCK_FRAMES: usize = 3;
/// Frame index of the reference tokens before any shift.
pub(crate) const REF_FRAME: i64 = 30;
/// Frame index of the newest motion frame (`post`), of the next two (`2x`), and of the sixteen
/// oldest in groups of four (`4x`).
const POST_FRAME: i64 = -1;
const FRAME_2X: i64 = -3;
const FRAMES_4X: [i64; 4] = [-19, -14, -9, -4];
const THETA: f64 = 10000.0;

/// Cosines and sines, each `[tokens, head_dim/2]` row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// How far the reference token has moved: `max(0, f0 - (30 - relative_dist))` (reference
/// `CausalWanModel_S2V`, relative position of the ref frame). `f0` is the block's first global
/// latent frame.
pub(crate) fn ref_shift(f0: usize, relative_dist: u32) -> usize {
    (f0 + relative_dist as usize).saturating_sub(REF_FRAME as usize)
}

/// The tables of one video size: rows and columns never change, so their angles are computed once.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    rows: Axis,
    columns: Axis,
    frame_width: usize,
}

/// Cosines and sines of one axis at positions `0..n`, `[n, width]`.
#[derive(Clone, Debug)]
struct Axis {
    count: usize,
    width: usize,
    table: Table,
}

impl Axis {
    fn new(width: usize, positions: impl Iterator<Item = i64>) -> Self {
        let mut table = Table::default();
        let mut count = 0;
        for position in positions {
            count += 1;
            for j in 0..width {
                let angle =
                    position as f64 * (1.0 / THETA.powf(2.0 * j as f64 / (2 * width) as f64));
                table.cos.push(angle.cos() as f32);
                table.sin.push(angle.sin() as f32);
            }
        }
        Self {
            count,
            width,
            table,
        }
    }

    fn at(&self, index: usize) -> Range<usize> {
        index * self.width..(index + 1) * self.width
    }
}

impl Rope {
    /// Tables for `h x w` tokens a frame and heads of `head_dim`.
    pub(crate) fn new(h: usize, w: usize, head_dim: usize) -> Self {
        let [frame_width, row_width, column_width] = split(head_dim);
        Self {
            rows: Axis::new(row_width, 0..h as i64),
            columns: Axis::new(column_width, 0..w as i64),
            frame_width,
        }
    }

    /// Noisy tokens of the block that starts at global latent frame `f0`: `[3*h*w, head_dim/2]`,
    /// frame-major, then row, then column.
    pub(crate) fn noisy(&self, f0: usize) -> Table {
        let first = f0 as i64;
        let mut out = Table::default();
        self.group(&mut out, first..first + BLOCK_FRAMES as i64, 1);
        out
    }

    /// Sink tokens `[ref | post | 2x | 4x]`: `[cond_tokens, head_dim/2]`. Only the reference moves,
    /// by `shift` (see [`ref_shift`]).
    pub(crate) fn cond(&self, shift: usize) -> Table {
        let ref_frame = REF_FRAME + shift as i64;
        let mut out = Table::default();
        self.group(&mut out, ref_frame..ref_frame + 1, 1);
        self.group(&mut out, POST_FRAME..POST_FRAME + 1, 1);
        self.group(&mut out, FRAME_2X..FRAME_2X + 1, 2);
        self.group(&mut out, FRAMES_4X, 4);
        out
    }

    /// Appends frames x rows x columns, each side thinned to `1/stride` of its tokens.
    fn group(&self, out: &mut Table, frames: impl IntoIterator<Item = i64>, stride: usize) {
        let rows = spread(self.rows.count, self.rows.count / stride);
        let columns = spread(self.columns.count, self.columns.count / stride);
        let frames = Axis::new(self.frame_width, frames.into_iter());
        for frame in 0..frames.count {
            for &row in &rows {
                for &column in &columns {
                    for (axis, index) in
                        [(&frames, frame), (&self.rows, row), (&self.columns, column)]
                    {
                        out.cos.extend_from_slice(&axis.table.cos[axis.at(index)]);
                        out.sin.extend_from_slice(&axis.table.sin[axis.at(index)]);
                    }
                }
            }
        }
    }
}

/// Frequencies of the (frame, row, column) axes: thirds of `head_dim/2`, the rest to the frame. 128
/// -> 22, 21, 21.
fn split(head_dim: usize) -> [usize; 3] {
    let half = head_dim / 2;
    [half - 2 * (half / 3), half / 3, half / 3]
}

/// `numpy.linspace(0, n - 1, count).astype(int)`, float steps and truncation included.
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
                let worst =
                    golden::worst(&table.cos, &set.f32s("rope", &format!("{name}.cos"))).max(
                        golden::worst(&table.sin, &set.f32s("rope", &format!("{name}.sin"))),
                    );
                assert!(worst <= 1e-6, "{name}: {worst}");
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
        assert_eq!(table.cos.len(), 3 * 32 * half);
        for (index, position) in [(0, 13.0), (22, 2.0), (43, 5.0)] {
            assert!((f64::from(table.cos[row * half + index]) - f64::cos(position)).abs() < 1e-7);
            assert!((f64::from(table.sin[row * half + index]) - f64::sin(position)).abs() < 1e-7);
        }
        let tokens = crate::fixtures::sizes::config(1).sink_tokens(4, 8);
        assert_eq!((rope.cond(0).cos.len(), tokens), (tokens * half, 80));
    }

    #[test]
    fn the_tables_go_on_after_the_references_45000_frames() {
        let frame: f64 = 1_000_000.0;
        let table = Rope::new(4, 4, 128).noisy(1_000_000);
        assert!((f64::from(table.cos[0]) - frame.cos()).abs() < 1e-7);
    }
}
