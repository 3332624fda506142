//! A PEFT LoRA as a lazy overlay: `W' = round(W + scale * (B @ A))`. The sum is computed when a
//! tensor is read, and rounded to the stored type of W.
//!
//! The reference merges in the same way before it runs: `liveavatar` loads the LoRA with peft and
//! casts the sum to bf16. A merge in f32 without the rounding moves a prediction by about 1e-2. The
//! scale is `alpha / rank` from the reference's yaml; the file does not hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use super::dtype::StoredDType;
use super::error::{CheckpointError, Faults, LoraFault as Fault};
use super::product::product;
use super::stored::StoredTensors;

const WANT: &str = "[base_model.model.]MODULE.lora_A[.default].weight";
const PREFIX: &str = "base_model.model.";
const SIDES: [(&str, Side); 4] = [
    (".lora_A.default.weight", Side::A),
    (".lora_B.default.weight", Side::B),
    (".lora_A.weight", Side::A),
    (".lora_B.weight", Side::B),
];
/// Rows of B in one product: their sums fit a core's cache.
const ROWS: usize = 64;
/// Fewest multiply-adds for which threads save more time than they cost.
const PARALLEL_FROM: usize = 1 << 24;

/// The strength of a LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoraScale {
    /// `alpha / rank` as configured; the rank of the file may differ.
    AlphaRank {
        /// Numerator.
        alpha: f64,
        /// Denominator.
        rank: u32,
    },
    /// The factor itself.
    Scale(f64),
}

impl Default for LoraScale {
    /// Returns the published configuration: 64 / 128.
    fn default() -> Self {
        Self::AlphaRank {
            alpha: 64.0,
            rank: 128,
        }
    }
}

impl LoraScale {
    /// Returns the factor before `B @ A`. It is not finite when the rank is 0.
    pub fn factor(self) -> f64 {
        match self {
            Self::AlphaRank { alpha, rank } => alpha / f64::from(rank),
            Self::Scale(s) => s,
        }
    }
}

/// An opened LoRA file. Its own tensors are checked; no checkpoint was compared yet.
#[derive(Debug)]
pub struct Lora {
    file: PathBuf,
    tensors: StoredTensors,
    modules: BTreeMap<String, Pair>,
    rank: usize,
    scale: f32,
}

/// The facts of a LoRA.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LoraReport {
    /// The LoRA file.
    pub file: PathBuf,
    /// Rows of every `lora_A`.
    pub rank: usize,
    /// Factor before `B @ A`.
    pub scale: f32,
    /// Element types of the LoRA's tensors.
    pub dtypes: BTreeSet<String>,
    /// Number of adapted modules.
    pub modules: usize,
    /// Adapted modules by kind: `self_attn.q` -> 40.
    pub targets: BTreeMap<String, usize>,
}

/// Keys of `lora_A` `[rank, in]` and `lora_B` `[out, rank]`.
#[derive(Clone, Debug, Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

impl Lora {
    /// Opens a safetensors file or folder of LoRA weights.
    ///
    /// # Errors
    /// A key that is no half of a pair, a pair without one half, pairs of different ranks.
    pub fn open(path: &Path, scale: LoraScale) -> Result<Self, CheckpointError> {
        let tensors = StoredTensors::open(path)?;
        let fail = |faults: Vec<Fault>| CheckpointError::Lora {
            file: path.to_owned(),
            faults: Faults(faults),
        };
        let factor = scale.factor();
        if !factor.is_finite() {
            return Err(fail(vec![Fault::Scale { got: factor }]));
        }
        let (modules, mut faults) = pairs(&tensors);
        if modules.is_empty() {
            let found = tensors.names().take(4).map(str::to_owned).collect();
            return Err(fail(vec![Fault::NoMatch { want: WANT, found }]));
        }
        let ranks: Vec<_> = modules
            .iter()
            .filter_map(|(m, p)| {
                rank(&tensors, m, p)
                    .map_err(|f| faults.push(f))
                    .ok()
                    .map(|r| (m, r))
            })
            .collect();
        let first = ranks.first().map_or(0, |&(_, r)| r);
        faults.extend(ranks.iter().filter(|&&(_, r)| r != first).map(|&(m, got)| {
            Fault::RankDiffers {
                module: m.clone(),
                want: first,
                got,
            }
        }));
        if !faults.is_empty() {
            return Err(fail(faults));
        }
        Ok(Self {
            file: path.to_owned(),
            tensors,
            modules,
            rank: first,
            scale: factor as f32,
        })
    }

    /// Returns the rank, the scale and the adapted modules.
    pub fn report(&self) -> LoraReport {
        let mut targets = BTreeMap::new();
        for module in self.modules.keys() {
            *targets.entry(kind(module)).or_default() += 1;
        }
        let dtypes = self
            .tensors
            .names()
            .filter_map(|n| self.tensors.info(n))
            .map(|i| i.dtype.to_string())
            .collect();
        LoraReport {
            file: self.file.clone(),
            rank: self.rank,
            scale: self.scale,
            dtypes,
            modules: self.modules.len(),
            targets,
        }
    }

    /// Returns the number of elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors
            .names()
            .map(|n| shape(&self.tensors, n).iter().product::<usize>() as u64)
            .sum()
    }

    /// Binds every module to its tensor `MODULE.weight` `[out, in]`. `shape_of` returns the shape
    /// of a tensor.
    pub(super) fn onto<'s>(
        self,
        shape_of: impl Fn(&str) -> Option<&'s [usize]>,
    ) -> Result<Merge, CheckpointError> {
        let report = self.report();
        let mut faults = Vec::new();
        let mut pairs = BTreeMap::new();
        for (module, pair) in self.modules {
            let (Some(a), Some(b)) = (pair.a, pair.b) else {
                continue;
            };
            let key = format!("{module}.weight");
            let got = vec![shape(&self.tensors, &b)[0], shape(&self.tensors, &a)[1]];
            match shape_of(&key) {
                None => faults.push(Fault::Unmatched { module, key }),
                Some(want) if want != got => faults.push(Fault::Shape {
                    module,
                    key,
                    want: want.to_vec(),
                    got,
                }),
                Some(_) => {
                    pairs.insert(key, (a, b));
                }
            }
        }
        if faults.is_empty() {
            Ok(Merge {
                tensors: self.tensors,
                pairs,
                report,
            })
        } else {
            Err(CheckpointError::Lora {
                file: self.file,
                faults: Faults(faults),
            })
        }
    }
}

/// A LoRA that is bound to a checkpoint: the keys of A and B for each base key.
#[derive(Debug)]
pub(super) struct Merge {
    tensors: StoredTensors,
    pairs: BTreeMap<String, (String, String)>,
    report: LoraReport,
}

impl Merge {
    pub(super) fn report(&self) -> &LoraReport {
        &self.report
    }

    pub(super) fn targets(&self, key: &str) -> bool {
        self.pairs.contains_key(key)
    }

    /// Returns the keys of the base tensors that the LoRA changes.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// Returns every file that holds one of the LoRA's tensors.
    pub(super) fn files(&self) -> BTreeSet<&Path> {
        self.tensors.files()
    }

    /// Adds `scale * (B @ A)` to `w` `[out, in]` on all cores and rounds to `dtype`.
    pub(super) fn apply(
        &self,
        key: &str,
        w: &mut [f32],
        dtype: StoredDType,
    ) -> Result<(), CheckpointError> {
        if let Some((a, b)) = self.pairs.get(key) {
            let delta = Delta {
                a: &self.tensors.read_f32(a)?,
                b: &self.tensors.read_f32(b)?,
                rank: self.report.rank,
                scale: self.report.scale,
            };
            delta.add(w, dtype);
        }
        Ok(())
    }

    /// Adds `scale * (B @ A)` to some rows and columns, `w` `[rows, columns]`, on the caller's
    /// thread. Each value has the same bits as in [`Merge::apply`].
    pub(super) fn apply_tile(
        &self,
        key: &str,
        (rows, columns): (Range<usize>, Range<usize>),
        w: &mut [f32],
        dtype: StoredDType,
    ) -> Result<(), CheckpointError> {
        let (Some((a, b)), rank) = (self.pairs.get(key), self.report.rank) else {
            return Ok(());
        };
        let width = columns.len();
        let (mut part, b) = (
            Vec::new(),
            self.tensors
                .read_f32_range(b, rows.start * rank..rows.end * rank)?,
        );
        self.tensors
            .read_f32_tile(a, 0..rank, &columns, &mut part)?;
        let delta = Delta {
            a: &part,
            b: &b,
            rank,
            scale: self.report.scale,
        };
        delta.add_rows(w, width, dtype);
        Ok(())
    }
}

/// `scale * (b @ a)`, `a` `[rank, in]`, `b` `[out, rank]`.
struct Delta<'a> {
    a: &'a [f32],
    b: &'a [f32],
    rank: usize,
    scale: f32,
}

impl Delta<'_> {
    fn add(&self, w: &mut [f32], dtype: StoredDType) {
        let (columns, rows) = (self.a.len() / self.rank, self.b.len() / self.rank);
        if columns == 0 || rows == 0 {
            return;
        }
        let threads = if w.len().saturating_mul(self.rank) < PARALLEL_FROM {
            1
        } else {
            thread::available_parallelism().map_or(1, NonZero::get)
        };
        let share = rows.div_ceil(threads);
        thread::scope(|scope| {
            for (w, b) in w
                .chunks_mut(share * columns)
                .zip(self.b.chunks(share * self.rank))
            {
                let part = Delta { b, ..*self };
                scope.spawn(move || part.add_rows(w, columns, dtype));
            }
        });
    }

    /// Adds [`ROWS`] rows at a time, so that their sums stay in a core's cache.
    fn add_rows(&self, w: &mut [f32], columns: usize, dtype: StoredDType) {
        let mut sums = vec![0f32; ROWS.min(w.len() / columns.max(1)) * columns];
        for (w, b) in w
            .chunks_mut(ROWS * columns)
            .zip(self.b.chunks(ROWS * self.rank))
        {
            let sums = &mut sums[..w.len()];
            product(self.a, b, self.rank, columns, sums);
            for (w, &mut sum) in w.iter_mut().zip(sums) {
                *w += self.scale * sum;
            }
            dtype.round_all(w);
        }
    }
}

/// Returns the pairs of a file by module, and every key that is no half of a pair.
fn pairs(tensors: &StoredTensors) -> (BTreeMap<String, Pair>, Vec<Fault>) {
    let mut modules: BTreeMap<String, Pair> = BTreeMap::new();
    let mut faults = Vec::new();
    for key in tensors.names() {
        let bare = key.strip_prefix(PREFIX).unwrap_or(key);
        let Some((module, side)) = SIDES
            .iter()
            .find_map(|(end, side)| bare.strip_suffix(end).map(|m| (m, *side)))
        else {
            faults.push(Fault::NotLora {
                key: key.to_owned(),
                want: WANT,
            });
            continue;
        };
        let pair = modules.entry(module.to_owned()).or_default();
        let slot = if side == Side::A {
            &mut pair.a
        } else {
            &mut pair.b
        };
        if let Some(first) = slot.replace(key.to_owned()) {
            faults.push(Fault::Twice {
                module: module.to_owned(),
                first,
                second: key.to_owned(),
            });
        }
    }
    (modules, faults)
}

/// Returns the rank of a pair, or the fault of the pair.
fn rank(tensors: &StoredTensors, module: &str, pair: &Pair) -> Result<usize, Fault> {
    let module = module.to_owned();
    let (a, b) = match (&pair.a, &pair.b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => {
            return Err(Fault::Half {
                module,
                has: "lora_A",
                lacks: "lora_B",
            });
        }
        _ => {
            return Err(Fault::Half {
                module,
                has: "lora_B",
                lacks: "lora_A",
            });
        }
    };
    for key in [a, b] {
        if shape(tensors, key).len() != 2 {
            return Err(Fault::Rank2 {
                key: key.clone(),
                got: shape(tensors, key).to_vec(),
            });
        }
        match tensors.info(key).map(|i| i.dtype) {
            Some(StoredDType::F32 | StoredDType::BF16 | StoredDType::F16 | StoredDType::F64)
            | None => {}
            Some(got) => {
                return Err(Fault::DType {
                    key: key.clone(),
                    got,
                });
            }
        }
    }
    match (shape(tensors, a)[0], shape(tensors, b)[1]) {
        (a, b) if a != b || a == 0 => Err(Fault::RankOfPair { module, a, b }),
        (rank, _) => Ok(rank),
    }
}

fn shape<'c>(tensors: &'c StoredTensors, key: &str) -> &'c [usize] {
    tensors.info(key).map_or(&[], |i| &i.shape)
}

/// Returns a module's name without its layer number: `blocks.3.self_attn.q` ->
/// `blocks.self_attn.q`, `blocks.3.ffn.0` -> `blocks.ffn.0`.
fn kind(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let last = parts.len().saturating_sub(1);
    let kept = parts
        .iter()
        .enumerate()
        .filter(|&(i, p)| i == last || !p.bytes().all(|b| b.is_ascii_digit()));
    kept.map(|(_, &p)| p).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::safetensors::Dtype;
    use ::safetensors::tensor::TensorView;
    use half::bf16;
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::checkpoint::Checkpoint;

    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

    fn bf16s(shape: &[usize], f: impl Fn(usize) -> f32) -> (Dtype, Vec<usize>, Vec<u8>) {
        let n = shape.iter().product();
        (
            Dtype::BF16,
            shape.to_vec(),
            (0..n)
                .flat_map(|i| bf16::from_f32(f(i)).to_le_bytes())
                .collect(),
        )
    }

    fn entry(
        key: &str,
        (d, s, b): (Dtype, Vec<usize>, Vec<u8>),
    ) -> (String, Dtype, Vec<usize>, Vec<u8>) {
        (key.to_owned(), d, s, b)
    }

    fn write(dir: &TempDir, name: &str, tensors: &Tensors) -> PathBuf {
        let path = dir.path().join(name);
        let views = tensors
            .iter()
            .map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
        fs::write(&path, ::safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn wave(i: usize) -> f32 {
        (i as f32 * 0.37).sin()
    }

    /// A base with `m.q.weight` `[3, 2]` and LoRA tensors `lora`, merged with scale 0.5.
    fn merged(lora: &Tensors) -> Result<Checkpoint, CheckpointError> {
        let dir = tempdir().unwrap();
        let base = write(
            &dir,
            "base.safetensors",
            &vec![
                entry("m.q.weight", bf16s(&[3, 2], wave)),
                entry("m.q.bias", bf16s(&[3], wave)),
            ],
        );
        let lora = write(&dir, "lora.safetensors", lora);
        Checkpoint::open(&base)?.with_lora(Lora::open(&lora, LoraScale::default())?)
    }

    fn pair(prefix: &str, infix: &str) -> Tensors {
        vec![
            entry(
                &format!("{prefix}m.q.lora_A{infix}.weight"),
                bf16s(&[4, 2], |i| wave(i + 9)),
            ),
            entry(
                &format!("{prefix}m.q.lora_B{infix}.weight"),
                bf16s(&[3, 4], |i| wave(i + 5)),
            ),
        ]
    }

    #[test]
    fn every_spelling_merges_to_the_same_rounded_sum() {
        let b16 = |x: f32| bf16::from_f32(x).to_f32();
        let want: Vec<f32> = (0..6)
            .map(|i| {
                let (row, col) = (i / 2, i % 2);
                let dot: f32 = (0..4)
                    .map(|r| b16(wave(row * 4 + r + 5)) * b16(wave(r * 2 + col + 9)))
                    .sum();
                b16(b16(wave(i)) + 0.5 * dot)
            })
            .collect();
        for (prefix, infix) in [
            ("", ".default"),
            ("base_model.model.", ".default"),
            ("", ""),
            ("base_model.model.", ""),
        ] {
            let c = merged(&pair(prefix, infix)).unwrap();
            assert_eq!(c.read_f32("m.q.weight").unwrap(), want, "{prefix} {infix}");
            assert_eq!(
                c.read_f32("m.q.bias").unwrap(),
                [0, 1, 2].map(|i| b16(wave(i)))
            );
            assert_eq!(c.computed("m.q.weight"), Some("LoRA merge"));
            assert!(matches!(
                c.bytes("m.q.weight"),
                Err(CheckpointError::Computed { .. })
            ));
            let report = c.lora().unwrap();
            assert_eq!((report.rank, report.scale, report.modules), (4, 0.5, 1));
            assert_eq!(report.targets, BTreeMap::from([("m.q".to_owned(), 1)]));
        }
    }

    #[test]
    fn each_fault_is_named() {
        let a = |shape: &[usize]| entry("m.q.lora_A.default.weight", bf16s(shape, wave));
        let b = |shape: &[usize]| entry("m.q.lora_B.default.weight", bf16s(shape, wave));
        let other = |key: &str, shape: &[usize]| entry(key, bf16s(shape, wave));
        let cases: Vec<(Tensors, &str)> = vec![
            (
                vec![other("x.diff", &[1])],
                "no key matches [base_model.model.]MODULE.lora_A[.default].weight; it has x.diff",
            ),
            (vec![a(&[4, 2])], "module m.q has lora_A but no lora_B"),
            (vec![b(&[3, 4])], "module m.q has lora_B but no lora_A"),
            (
                vec![a(&[4, 2]), b(&[3, 5])],
                "module m.q: lora_A has rank 4, lora_B has rank 5",
            ),
            (
                vec![a(&[4, 3]), b(&[3, 4])],
                "module m.q: B @ A is [3, 3], m.q.weight is [3, 2]",
            ),
            (
                vec![a(&[4, 2, 1]), b(&[3, 4])],
                "key m.q.lora_A.default.weight has shape [4, 2, 1], wanted two dimensions",
            ),
            (
                vec![a(&[4, 2]), b(&[3, 4]), other("m.q.bias", &[3])],
                "key m.q.bias is not a LoRA weight: the base model would be overwritten",
            ),
            (
                vec![
                    a(&[4, 2]),
                    b(&[3, 4]),
                    other("m.x.lora_A.weight", &[2, 2]),
                    other("m.x.lora_B.weight", &[2, 2]),
                ],
                "module m.x has rank 2, the first has 4",
            ),
            (
                vec![
                    a(&[4, 2]),
                    b(&[3, 4]),
                    other("m.x.lora_A.weight", &[4, 2]),
                    other("m.x.lora_B.weight", &[2, 4]),
                ],
                "module m.x has no tensor m.x.weight in the checkpoint",
            ),
            (
                vec![
                    a(&[4, 2]),
                    b(&[3, 4]),
                    other("base_model.model.m.q.lora_A.weight", &[4, 2]),
                ],
                "module m.q is listed twice",
            ),
        ];
        for (lora, want) in cases {
            let error = merged(&lora).unwrap_err().to_string();
            assert!(error.contains(want), "{error} has no {want:?}");
        }
    }

    #[test]
    fn a_scale_that_is_no_number_is_refused() {
        let dir = tempdir().unwrap();
        let lora = write(&dir, "lora.safetensors", &pair("", ""));
        let error = Lora::open(
            &lora,
            LoraScale::AlphaRank {
                alpha: 64.0,
                rank: 0,
            },
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.ends_with("scale inf is not a finite number"),
            "{error}"
        );
    }

    #[test]
    fn threads_and_blocks_do_not_change_the_sum() {
        let (rows, columns, rank) = (2 * ROWS + 37, 525, 5);
        let a: Vec<f32> = (0..rank * columns).map(wave).collect();
        let b: Vec<f32> = (0..rows * rank).map(|i| wave(i + 3)).collect();
        let delta = Delta {
            a: &a,
            b: &b,
            rank,
            scale: 0.25,
        };
        let mut w = vec![1.0; rows * columns];
        delta.add(&mut w, StoredDType::F32);
        let mut parts = vec![1.0; rows * columns];
        for (w, b) in parts.chunks_mut(10 * columns).zip(b.chunks(10 * rank)) {
            Delta { b, ..delta }.add_rows(w, columns, StoredDType::F32);
        }
        assert_eq!(w, parts);
        let dot: f32 = (0..rank)
            .map(|r| b[20 * rank + r] * a[r * columns + 520])
            .sum();
        assert!((w[20 * columns + 520] - (1.0 + 0.25 * dot)).abs() < 1e-6);
    }

    #[test]
    fn parts_of_a_target_have_the_bits_of_the_whole() {
        let dir = tempdir().unwrap();
        let (rows, columns, rank) = (2 * ROWS + 37, 70, 5);
        let base = [entry("m.q.weight", bf16s(&[rows, columns], wave))];
        let lora = [
            entry("m.q.lora_A.weight", bf16s(&[rank, columns], wave)),
            entry("m.q.lora_B.weight", bf16s(&[rows, rank], wave)),
        ];
        let base = write(&dir, "base.safetensors", &base.to_vec());
        let lora = write(&dir, "lora.safetensors", &lora.to_vec());
        let c = Checkpoint::open(&base)
            .unwrap()
            .with_lora(Lora::open(&lora, LoraScale::default()).unwrap())
            .unwrap();
        let whole = c.read_f32("m.q.weight").unwrap();
        assert_ne!(whole[70], bf16::from_f32(wave(70)).to_f32());
        let mut tile = Vec::new();
        for (r, cols) in [(0..rows, 0..columns), (3..4, 0..1), (60..140, 33..70)] {
            c.read_f32_tile("m.q.weight", r.clone(), cols.clone(), &mut tile)
                .unwrap();
            let part = |r| &whole[r * columns..][cols.clone()];
            assert_eq!(tile, r.flat_map(part).copied().collect::<Vec<_>>());
        }
        for range in [0..1, 69..142, 5000..rows * columns] {
            let part = c.read_f32_range("m.q.weight", range.clone()).unwrap();
            assert_eq!(part, whole[range]);
        }
        let beyond = c.read_f32_tile("m.q.weight", 0..1, 0..columns + 1, &mut tile);
        assert!(matches!(beyond, Err(CheckpointError::Range { .. })));
        assert_eq!(c.lora_work(), (1, (rows * columns * rank) as u64));
        assert_eq!(c.files().len(), 2);
        assert_eq!(c.without(|k| k == "m.q.weight").lora_work(), (0, 0));
    }

    /// The shared set is not part of the repository: without it this test has nothing to say.
    #[test]
    fn merged_rows_are_within_one_bf16_ulp_of_the_reference() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
        if !shared.is_dir() {
            return;
        }
        let lora = Lora::open(
            &shared.join("ckpt/LiveAvatar/liveavatar.safetensors"),
            LoraScale::default(),
        )
        .unwrap();
        let merged = Checkpoint::open(&shared.join("ckpt/Wan2.2-S2V-14B"))
            .unwrap()
            .with_lora(lora)
            .unwrap();
        let golden = Checkpoint::open(&shared.join("golden/lora.safetensors")).unwrap();
        let (mut off, mut all) = (0, 0);
        for name in golden.names() {
            let want = golden.read_f32(name).unwrap();
            let got = merged
                .read_f32(name.strip_prefix("merged_rows.").unwrap())
                .unwrap();
            for (&got, &want) in got.iter().zip(&want) {
                let ulp = f32::from_bits(want.abs().to_bits() & 0x7F80_0000) / 128.0;
                assert!(
                    (got - want).abs() <= ulp,
                    "{name}: {got} is not within one ulp of {want}"
                );
                off += usize::from(got != want);
                all += 1;
            }
        }
        assert!(all > 10_000);
        assert!(
            off * 1000 <= all,
            "{off} of {all} values round the other way"
        );
    }
}
