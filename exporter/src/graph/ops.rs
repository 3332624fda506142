//! The operators, each with its meaning, its shape rule and its ONNX node. The file is a long list
//! whose entries stand alone. All operators are in opset 24 of the default domain. Not here: layers
//! with weights of their own (`nn.rs`).
//!
//! A negative axis counts from the back. A float given to an operator becomes a scalar constant.
use super::builder::{Builder, IntoDim, Value, is_unknown, same, unknown};
use super::print::Dims;
use super::{Attribute, Fact};
use Attribute::{Float, Int, Ints, Text};
use engines::contract::DType;
use engines::dim::Dim;
use std::ops::Range;
use std::panic::Location;

type Inferred = Result<Fact, String>;
type Attributes = Vec<(&'static str, Attribute)>;

fn resolve(axis: isize, rank: usize) -> Result<usize, String> {
    let index = if axis < 0 {
        rank.checked_add_signed(axis)
    } else {
        usize::try_from(axis).ok()
    };
    index
        .filter(|&i| i < rank)
        .ok_or_else(|| format!("no axis {axis} in rank {rank}"))
}

/// Returns the index of an axis that the shape must have.
fn axis_i64(axis: isize) -> i64 {
    i64::try_from(axis).unwrap_or(i64::MAX)
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().cloned().fold(Dim::from(1), |a, d| a * d)
}

fn is_one(dim: &Dim) -> bool {
    dim.as_const() == Some(1)
}

/// Broadcasts one pair of dimensions by NumPy's rule.
fn broadcast_dim(a: &Dim, b: &Dim) -> Option<Dim> {
    match (is_one(a), is_one(b)) {
        (true, _) => Some(b.clone()),
        (_, true) => Some(a.clone()),
        _ => same(a, b),
    }
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1);
    let at = |dims: &[Dim], i: usize| {
        (i + dims.len())
            .checked_sub(rank)
            .map_or_else(|| one.clone(), |i| dims[i].clone())
    };
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i), at(b, i));
            broadcast_dim(&x, &y).ok_or_else(|| format!("{x} and {y} do not broadcast"))
        })
        .collect()
}

fn float(fact: Fact) -> Inferred {
    match fact.dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(fact),
        other => Err(format!("wants floats, not {other}")),
    }
}

fn wants(what: &str, fact: &Fact, dtype: DType, rank: usize) -> Result<(), String> {
    let fits = fact.dtype == dtype && fact.dims.len() == rank;
    if fits {
        Ok(())
    } else {
        Err(format!("{what} wants {dtype} of rank {rank}"))
    }
}

/// Returns the number of elements of `start..end` (step 1) on an axis. Negative ends count from the
/// back, as in Python.
fn slice_len(dim: &Dim, start: i64, end: i64) -> Result<Dim, String> {
    if let Some(n) = dim.as_const() {
        let at = |i: i64| if i < 0 { (n + i).max(0) } else { i.min(n) };
        let len = at(end) - at(start);
        return if len > 0 {
            Ok(Dim::from(len))
        } else {
            Err(format!("{start}..{end} of {n} is empty"))
        };
    }
    if is_unknown(dim) {
        return Ok(unknown());
    }
    let at = |i: i64| {
        if i == i64::MAX {
            dim.clone()
        } else if i < 0 {
            dim.clone() + Dim::from(i)
        } else {
            Dim::from(i)
        }
    };
    let len = at(end) - at(start);
    if len.as_const().is_some_and(|n| n < 1) {
        Err(format!("{start}..{end} of {dim} is empty"))
    } else {
        Ok(len)
    }
}

/// Returns the numbers that ONNX's Reshape takes for `want`: sizes, 0 for a dimension that stays at
/// its index, and at most one -1.
fn reshape_spec(have: &[Dim], want: &[Dim]) -> Result<Vec<i64>, String> {
    let fail = |why: &str| Err(format!("cannot become {}: {why}", Dims(want)));
    if want.iter().any(|d| d.as_const().is_some_and(|c| c < 1)) {
        return fail("a dimension is below 1");
    }
    let known = !have.iter().chain(want).any(is_unknown);
    if known && product(have) != product(want) {
        return fail("another number of elements");
    }
    let kept = |i: usize| have.get(i).is_some_and(|h| !is_unknown(h) && *h == want[i]);
    let spec: Vec<i64> = (0..want.len())
        .map(|i| want[i].as_const().unwrap_or(if kept(i) { 0 } else { -1 }))
        .collect();
    match spec.iter().filter(|&&n| n == -1).count() {
        0 | 1 => Ok(spec),
        _ if !known => Ok(spec),
        _ => fail("more than one symbolic dimension moves"),
    }
}

/// Returns `floor((size + before + after - kernel) / stride) + 1`.
fn conv_dim(size: &Dim, kernel: &Dim, stride: i64, before: i64, after: i64) -> Result<Dim, String> {
    if is_unknown(size) || is_unknown(kernel) {
        return Ok(unknown());
    }
    let out = (size.clone() + Dim::from(before + after) - kernel.clone()).floor_div(stride.max(1))
        + Dim::from(1);
    if out.as_const().is_some_and(|n| n < 1) {
        Err(format!("kernel {kernel} is larger than {size}"))
    } else {
        Ok(out)
    }
}

/// Elementwise functions of one float tensor.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $op:literal $attributes:expr;)*) => {
        impl<'g> Value<'g> {
            $($(#[$doc])*
            #[track_caller]
            #[must_use]
            pub fn $name(self) -> Self {
                self.node($op, [self], $attributes, || float(self.fact()))
            })*
        }
    };
}

unary! {
    /// Computes the square root.
    sqrt => "Sqrt" vec![];
    /// Computes `1 / (1 + exp(-x))`.
    sigmoid => "Sigmoid" vec![];
    /// Computes GELU by the error function, which is torch's default.
    gelu_erf => "Gelu" vec![("approximate", Text("none"))];
    /// Computes GELU by the tanh formula, torch's `approximate="tanh"`.
    gelu_tanh => "Gelu" vec![("approximate", Text("tanh"))];
}

impl<'g> Value<'g> {
    /// Adds one node with one output.
    #[track_caller]
    fn node<I: Into<Option<Value<'g>>>>(
        self,
        op: &'static str,
        inputs: impl IntoIterator<Item = I>,
        attributes: Attributes,
        infer: impl FnOnce() -> Inferred,
    ) -> Self {
        let outputs = self
            .builder()
            .emit(Location::caller(), op, inputs, attributes, || {
                infer().map(|f| vec![f])
            });
        outputs
            .and_then(|v| v.first().copied())
            .unwrap_or_else(|| self.builder().poison())
    }

    #[track_caller]
    fn wrong(self, op: &'static str, reason: String) -> Self {
        self.builder()
            .fault(Location::caller(), op, &[self], reason)
    }

    fn indices(self, list: &[i64]) -> Self {
        self.builder().const_i64([list.len()], list.to_vec())
    }

    #[track_caller]
    fn binary(self, op: &'static str, other: Self) -> Self {
        self.compare(op, other, None)
    }

    #[track_caller]
    fn compare(self, op: &'static str, other: Self, result: Option<DType>) -> Self {
        self.node(op, [self, other], vec![], || {
            let (a, b) = (self.fact(), other.fact());
            if a.dtype != b.dtype {
                return Err(format!("{} and {} do not mix", a.dtype, b.dtype));
            }
            Ok(Fact {
                dtype: result.unwrap_or(a.dtype),
                dims: broadcast(&a.dims, &b.dims)?,
            })
        })
    }

    /// Returns the number as an operand of this f32 tensor.
    #[track_caller]
    fn with_number(self, op: &'static str, x: f32) -> Result<Self, Self> {
        if self.dtype() == DType::F32 {
            Ok(self.builder().scalar(x))
        } else {
            Err(self.wrong(op, format!("number {x} wants f32")))
        }
    }

    /// Multiplies matrices: `[.., M, K] x [.., K, N] -> [.., M, N]`. Leading dimensions are
    /// broadcast.
    #[track_caller]
    #[must_use]
    pub fn matmul(self, w: Self) -> Self {
        self.node("MatMul", [self, w], vec![], || {
            let (a, b) = (float(self.fact())?, float(w.fact())?);
            if a.dtype != b.dtype {
                return Err(format!("{} and {} do not mix", a.dtype, b.dtype));
            }
            let ([a_lead @ .., m, k], [b_lead @ .., l, n]) = (a.dims.as_slice(), b.dims.as_slice())
            else {
                return Err("wants two axes or more on both sides".into());
            };
            same(k, l).ok_or_else(|| format!("inner dimensions {k} and {l} differ"))?;
            let mut dims = broadcast(a_lead, b_lead)?;
            dims.extend([m.clone(), n.clone()]);
            Ok(Fact {
                dtype: a.dtype,
                dims,
            })
        })
    }

    /// Changes the shape and keeps the elements in row-major order. The shape becomes a constant:
    /// numbers, 0 for a symbolic dimension that keeps its index, and at most one -1. A shape that
    /// these cannot express is an error; see [`Self::reshape_from`].
    #[track_caller]
    #[must_use]
    pub fn reshape(self, dims: impl IntoIterator<Item: IntoDim>) -> Self {
        let want = self.builder().dims(dims);
        let have = self.fact();
        if self.is_poisoned() {
            return self.builder().poison();
        }
        let spec = match reshape_spec(&have.dims, &want) {
            Ok(spec) => spec,
            Err(reason) => return self.wrong("Reshape", reason),
        };
        self.node("Reshape", [self, self.indices(&spec)], vec![], || {
            Ok(Fact {
                dtype: have.dtype,
                dims: want,
            })
        })
    }

    /// Changes the shape as [`Self::reshape`] does, with any number of symbolic dimensions. Each is
    /// read at run time from an axis of `self` or of `sources` that has exactly that dimension, or
    /// 2, 4 or 8 times it.
    #[track_caller]
    #[must_use]
    pub fn reshape_from(self, dims: impl IntoIterator<Item: IntoDim>, sources: &[Self]) -> Self {
        let want = self.builder().dims(dims);
        let have = self.fact();
        if [self].iter().chain(sources).any(Self::is_poisoned) {
            return self.builder().poison();
        }
        if product(&have.dims) != product(&want) {
            return self.wrong(
                "Reshape",
                format!("cannot become {}: another number of elements", Dims(&want)),
            );
        }
        let mut sizes = Vec::new();
        for d in &want {
            let axis_of = |v: &Self, by: i64| {
                v.dims()
                    .iter()
                    .position(|x| x.exact_div(by).as_ref() == Some(d))
            };
            let factors = [1i64, 2, 4, 8];
            let found = factors.into_iter().find_map(|by| {
                [self]
                    .iter()
                    .chain(sources)
                    .find_map(|v| Some((*v, axis_of(v, by)?, by)))
            });
            sizes.push(match (d.as_const(), found) {
                (Some(c), _) => self.indices(&[c]),
                (None, Some((v, axis, 1))) => v.size(axis.cast_signed()),
                (None, Some((v, axis, by))) => v.size(axis.cast_signed()) / self.indices(&[by]),
                (None, None) => {
                    return self.wrong(
                        "Reshape",
                        format!("cannot become {}: no axis given is {d}", Dims(&want)),
                    );
                }
            });
        }
        let shape = self.builder().concat(0, &sizes);
        self.node("Reshape", [self, shape], vec![], || {
            Ok(Fact {
                dtype: have.dtype,
                dims: want,
            })
        })
    }

    /// Joins neighbouring axes: `flatten(1..3)` is `[B, L, N, D] -> [B, L*N, D]`.
    #[track_caller]
    #[must_use]
    pub fn flatten(self, axes: Range<usize>) -> Self {
        let have = self.dims();
        if axes.start >= axes.end || axes.end > have.len() {
            return self.wrong("Reshape", format!("no axes {axes:?} to flatten"));
        }
        let (mut want, joined) = (have[..axes.start].to_vec(), product(&have[axes.clone()]));
        want.push(joined);
        want.extend_from_slice(&have[axes.end..]);
        self.reshape(want)
    }

    /// Reorders axes: output axis `i` is input axis `order[i]`.
    #[track_caller]
    #[must_use]
    pub fn transpose(self, order: &[usize]) -> Self {
        let perm = order.iter().map(|&i| axis_i64(i.cast_signed())).collect();
        self.node("Transpose", [self], vec![("perm", Ints(perm))], || {
            let fact = self.fact();
            let mut sorted = order.to_vec();
            sorted.sort_unstable();
            if sorted != (0..fact.dims.len()).collect::<Vec<_>>() {
                return Err(format!(
                    "{order:?} is not an order of {} axes",
                    fact.dims.len()
                ));
            }
            Ok(Fact {
                dims: order.iter().map(|&i| fact.dims[i].clone()).collect(),
                ..fact
            })
        })
    }

    /// Inserts an axis of size 1 so that it stands at `axis` of the result.
    #[track_caller]
    #[must_use]
    pub fn unsqueeze(self, axis: isize) -> Self {
        self.node(
            "Unsqueeze",
            [self, self.indices(&[axis_i64(axis)])],
            vec![],
            || {
                let mut fact = self.fact();
                let at = resolve(axis, fact.dims.len() + 1)?;
                fact.dims.insert(at, Dim::from(1));
                Ok(fact)
            },
        )
    }

    /// Drops an axis of size 1.
    #[track_caller]
    #[must_use]
    pub fn squeeze(self, axis: isize) -> Self {
        self.node(
            "Squeeze",
            [self, self.indices(&[axis_i64(axis)])],
            vec![],
            || {
                let mut fact = self.fact();
                let at = resolve(axis, fact.dims.len())?;
                let gone = fact.dims.remove(at);
                same(&gone, &Dim::from(1))
                    .ok_or_else(|| format!("axis {axis} is {gone}, not 1"))?;
                Ok(fact)
            },
        )
    }

    /// Takes the elements `start..end` of an axis, as in Python: a negative end counts from the
    /// back, and `i64::MAX` is the end. On a symbolic axis both ends must lie inside it.
    #[track_caller]
    #[must_use]
    pub fn slice(self, axis: isize, start: i64, end: i64) -> Self {
        self.slice_step(axis, start, end, 1)
    }

    /// Takes every `step`-th element of `start..end`.
    #[track_caller]
    #[must_use]
    pub fn slice_step(self, axis: isize, start: i64, end: i64, step: i64) -> Self {
        let c = |i| self.indices(&[i]);
        let (starts, ends, axes) = (c(start), c(end), c(axis_i64(axis)));
        let mut inputs = vec![self, starts, ends, axes];
        if step != 1 {
            inputs.push(c(step));
        }
        self.node("Slice", inputs, vec![], || {
            let mut fact = self.fact();
            let at = resolve(axis, fact.dims.len())?;
            if step < 1 {
                return Err(format!("step {step} is below 1"));
            }
            let len = slice_len(&fact.dims[at], start, end)?;
            fact.dims[at] = if is_unknown(&len) {
                len
            } else {
                (len + Dim::from(step - 1)).floor_div(step)
            };
            Ok(fact)
        })
    }

    /// Splits an axis into `parts` equal parts.
    #[track_caller]
    #[must_use]
    pub fn split(self, axis: isize, parts: usize) -> Vec<Self> {
        let count = i64::try_from(parts).unwrap_or(i64::MAX);
        let attributes = vec![("axis", Int(axis_i64(axis))), ("num_outputs", Int(count))];
        let outputs = self
            .builder()
            .emit(Location::caller(), "Split", [self], attributes, || {
                let mut fact = self.fact();
                let at = resolve(axis, fact.dims.len())?;
                let part = fact.dims[at]
                    .exact_div(count)
                    .or_else(|| is_unknown(&fact.dims[at]).then(unknown));
                fact.dims[at] =
                    part.ok_or_else(|| format!("{} does not divide into {parts}", fact.dims[at]))?;
                Ok(vec![fact; parts])
            });
        outputs.unwrap_or_else(|| vec![self.builder().poison(); parts])
    }

    /// Splits an axis into an array: `let [q, k, v] = x.split_into(-1)`.
    #[track_caller]
    #[must_use]
    pub fn split_into<const N: usize>(self, axis: isize) -> [Self; N] {
        let parts = self.split(axis, N);
        std::array::from_fn(|i| parts[i])
    }

    /// Returns the size of one axis at run time, i64 `[1]`.
    #[track_caller]
    #[must_use]
    pub fn size(self, axis: isize) -> Self {
        let at = resolve(axis, self.rank()).map_or(0, |i| axis_i64(i.cast_signed()));
        self.node(
            "Shape",
            [self],
            vec![("start", Int(at)), ("end", Int(at + 1))],
            || {
                resolve(axis, self.rank())?;
                Ok(Fact {
                    dtype: DType::I64,
                    dims: vec![Dim::from(1)],
                })
            },
        )
    }

    /// Returns `[0, 1, .., n - 1]` as i64 `[n]`, where n is the size of `axis`.
    #[track_caller]
    #[must_use]
    pub fn range_like(self, axis: isize) -> Self {
        let b = self.builder();
        let n = self.dim(axis);
        let limit = self.size(axis).squeeze(0);
        let (start, step) = (
            b.const_i64([0i64; 0], vec![0]),
            b.const_i64([0i64; 0], vec![1]),
        );
        self.node("Range", [start, limit, step], vec![], || {
            Ok(Fact {
                dtype: DType::I64,
                dims: vec![n],
            })
        })
    }

    /// Repeats the first axis to the size of `like`'s first: `[G, ..] -> [B, ..]`, where G is 1 or
    /// B at run time.
    #[track_caller]
    #[must_use]
    pub fn broadcast_leading(self, like: Self) -> Self {
        let (lanes, others) = (like.size(0), self.rank().saturating_sub(1));
        let shape = if others > 0 {
            self.builder()
                .concat(0, &[lanes, self.indices(&vec![1; others])])
        } else {
            lanes
        };
        self.node("Expand", [self, shape], vec![], || {
            let mut fact = self.fact();
            let first = fact.dims.first_mut().ok_or("has no axis")?;
            let lanes = like.dim(0);
            let clash = !is_one(first)
                && first.as_const().is_some()
                && lanes.as_const().is_some()
                && *first != lanes;
            if clash {
                return Err(format!("{first} lanes do not become {lanes}"));
            }
            *first = lanes;
            Ok(fact)
        })
    }

    /// Pads. ONNX Runtime has no Pad in bf16 on any device, so bf16 goes through f32, which changes
    /// no value.
    #[track_caller]
    fn pad(self, mode: &'static str, axis: isize, before: i64, after: i64) -> Self {
        if self.dtype() == DType::BF16 {
            let wide = self.cast(DType::F32).pad(mode, axis, before, after);
            return wide.cast(DType::BF16);
        }
        let inputs = [
            Some(self),
            Some(self.indices(&[before, after])),
            None,
            Some(self.indices(&[axis_i64(axis)])),
        ];
        self.node("Pad", inputs, vec![("mode", Text(mode))], || {
            let mut fact = self.fact();
            let at = resolve(axis, fact.dims.len())?;
            fact.dims[at] = fact.dims[at].clone() + Dim::from(before + after);
            Ok(fact)
        })
    }

    /// Repeats the first and last element of an axis.
    #[track_caller]
    #[must_use]
    pub fn pad_edge(self, axis: isize, before: i64, after: i64) -> Self {
        self.pad("edge", axis, before, after)
    }

    /// Adds zeros before and after an axis.
    #[track_caller]
    #[must_use]
    pub fn pad_zero(self, axis: isize, before: i64, after: i64) -> Self {
        self.pad("constant", axis, before, after)
    }

    /// Takes elements of an axis by i64 indices, whose shape replaces the axis.
    #[track_caller]
    #[must_use]
    pub fn gather(self, indices: Self, axis: isize) -> Self {
        self.node(
            "Gather",
            [self, indices],
            vec![("axis", Int(axis_i64(axis)))],
            || {
                let (mut fact, by) = (self.fact(), indices.fact());
                let at = resolve(axis, fact.dims.len())?;
                if by.dtype != DType::I64 {
                    return Err(format!("indices are {}, not i64", by.dtype));
                }
                fact.dims.splice(at..=at, by.dims);
                Ok(fact)
            },
        )
    }

    /// Converts to another element type.
    #[track_caller]
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.dtype() == dtype {
            return self;
        }
        self.node(
            "Cast",
            [self],
            vec![("to", Int(super::write::onnx_type(dtype).into()))],
            || {
                Ok(Fact {
                    dtype,
                    ..self.fact()
                })
            },
        )
    }

    /// Converts to f32. In a recipe of another type this begins an island of f32; in fp32 it
    /// changes nothing.
    #[track_caller]
    #[must_use]
    pub fn to_f32(self) -> Self {
        self.cast(DType::F32)
    }

    /// Converts to the type that the recipe computes in.
    #[track_caller]
    #[must_use]
    pub fn to_compute(self) -> Self {
        self.cast(self.builder().recipe().compute())
    }

    /// Computes `x * sigmoid(x)`.
    #[track_caller]
    #[must_use]
    pub fn silu(self) -> Self {
        self.binary("Mul", self.sigmoid())
    }

    /// Computes exponentials that sum to 1 along an axis.
    #[track_caller]
    #[must_use]
    pub fn softmax(self, axis: isize) -> Self {
        self.node(
            "Softmax",
            [self],
            vec![("axis", Int(axis_i64(axis)))],
            || {
                resolve(axis, self.rank())?;
                float(self.fact())
            },
        )
    }

    /// Limits each element to `lo..=hi`.
    #[track_caller]
    #[must_use]
    pub fn clip(self, lo: f32, hi: f32) -> Self {
        let (lo, hi) = match (self.with_number("Clip", lo), self.with_number("Clip", hi)) {
            (Ok(lo), Ok(hi)) => (lo, hi),
            (Err(poisoned), _) | (_, Err(poisoned)) => return poisoned,
        };
        self.node("Clip", [self, lo, hi], vec![], || float(self.fact()))
    }

    /// Takes the larger of each element and a number.
    #[track_caller]
    #[must_use]
    pub fn maximum(self, x: f32) -> Self {
        self.with_number("Max", x)
            .map_or_else(|poisoned| poisoned, |x| self.binary("Max", x))
    }

    #[track_caller]
    fn reduce(self, op: &'static str, axes: &[isize], keepdims: bool) -> Self {
        let list: Vec<i64> = axes.iter().map(|&a| axis_i64(a)).collect();
        self.node(
            op,
            [self, self.indices(&list)],
            vec![("keepdims", Int(keepdims.into()))],
            || {
                let mut fact = float(self.fact())?;
                let mut at = axes
                    .iter()
                    .map(|&a| resolve(a, fact.dims.len()))
                    .collect::<Result<Vec<_>, _>>()?;
                at.sort_unstable();
                for i in at.into_iter().rev() {
                    if keepdims {
                        fact.dims[i] = Dim::from(1);
                    } else {
                        fact.dims.remove(i);
                    }
                }
                Ok(fact)
            },
        )
    }

    /// Sums over axes.
    #[track_caller]
    #[must_use]
    pub fn reduce_sum(self, axes: &[isize], keepdims: bool) -> Self {
        self.reduce("ReduceSum", axes, keepdims)
    }

    /// Computes the Euclidean norm over axes.
    #[track_caller]
    #[must_use]
    pub fn reduce_l2(self, axes: &[isize], keepdims: bool) -> Self {
        self.reduce("ReduceL2", axes, keepdims)
    }

    /// Scales to zero mean and unit variance over `axis` and all axes after it, then applies
    /// `weight` and `bias` of that shape. ONNX requires a scale: without a weight it is a constant
    /// of ones, so the axes must then be constant.
    #[track_caller]
    #[must_use]
    pub fn layer_norm(
        self,
        axis: isize,
        eps: f32,
        weight: Option<Self>,
        bias: Option<Self>,
    ) -> Self {
        let dims = self.dims();
        let tail = match resolve(axis, dims.len()) {
            Ok(at) => dims[at..].to_vec(),
            Err(reason) => return self.wrong("LayerNormalization", reason),
        };
        if self.is_poisoned() {
            return self.builder().poison();
        }
        let size = product(&tail)
            .as_const()
            .and_then(|n| usize::try_from(n).ok());
        let scale = match (weight, size) {
            (Some(w), _) => w,
            (None, Some(n)) => self.builder().ones(&tail, n, self.dtype()),
            (None, None) => {
                return self.wrong(
                    "LayerNormalization",
                    format!("without a weight {} must be constant", Dims(&tail)),
                );
            }
        };
        let inputs: Vec<Value<'_>> = [self, scale].into_iter().chain(bias).collect();
        self.node(
            "LayerNormalization",
            inputs,
            vec![("axis", Int(axis_i64(axis))), ("epsilon", Float(eps))],
            || {
                for v in [Some(scale), bias].into_iter().flatten() {
                    suits("weight or bias", &v.dims(), &tail)?;
                    one_type(self, v)?;
                }
                float(self.fact())
            },
        )
    }

    /// Divides by the root of the mean square of the last axis (plus `eps`), then multiplies by
    /// `weight` `[D]`.
    #[track_caller]
    #[must_use]
    pub fn rms_norm(self, eps: f32, weight: Self) -> Self {
        self.node(
            "RMSNormalization",
            [self, weight],
            vec![("axis", Int(-1)), ("epsilon", Float(eps))],
            || {
                suits("weight", &weight.dims(), &[self.dim(-1)])?;
                one_type(self, weight)?;
                float(self.fact())
            },
        )
    }

    /// Rotates pairs of the last axis. x `[B, N, L, D]`, cos and sin `[B, L, D/2]`. Interleaved
    /// pairs are `(0, 1), (2, 3), ..`; otherwise the halves are paired.
    #[track_caller]
    #[must_use]
    pub fn rotary(self, cos: Self, sin: Self, interleaved: bool) -> Self {
        self.node(
            "RotaryEmbedding",
            [self, cos, sin],
            vec![("interleaved", Int(interleaved.into()))],
            || {
                let fact = float(self.fact())?;
                let [b, _, l, d] = fact.dims.as_slice() else {
                    return Err("wants [B, N, L, D]".into());
                };
                let half = if is_unknown(d) {
                    unknown()
                } else {
                    d.exact_div(2).ok_or_else(|| format!("{d} is odd"))?
                };
                for table in [cos, sin] {
                    one_type(self, table)?;
                    suits(
                        "table",
                        &table.dims(),
                        &[b.clone(), l.clone(), half.clone()],
                    )?;
                }
                Ok(fact)
            },
        )
    }

    /// See [`attention`]; `self` is the query.
    #[track_caller]
    #[must_use]
    pub fn attention(self, k: Self, v: Self, options: AttentionOptions<'g>) -> Self {
        attention(self, k, v, options)
    }

    /// See [`tensor_scatter`]; `self` is the past.
    #[track_caller]
    #[must_use]
    pub fn tensor_scatter(self, update: Self, write_indices: Self, axis: isize) -> Self {
        tensor_scatter(self, update, write_indices, axis)
    }

    #[track_caller]
    fn conv<const N: usize>(
        self,
        w: Self,
        bias: Option<Self>,
        stride: [i64; N],
        pads: &[i64],
        groups: i64,
    ) -> Self {
        let attributes = vec![
            ("group", Int(groups)),
            ("pads", Ints(pads.to_vec())),
            ("strides", Ints(stride.to_vec())),
        ];
        let inputs: Vec<Value<'_>> = [self, w].into_iter().chain(bias).collect();
        self.node("Conv", inputs, attributes, || {
            let (x, k) = (float(self.fact())?, w.fact());
            one_type(self, w)?;
            let ([batch, channels, sizes @ ..], [out, per_group, kernel @ ..]) =
                (x.dims.as_slice(), k.dims.as_slice())
            else {
                return Err("wants a batch and channels".into());
            };
            if sizes.len() != N || kernel.len() != N {
                return Err(format!("wants {N} spatial axes on both"));
            }
            let want = per_group.clone() * Dim::from(groups);
            same(channels, &want)
                .ok_or_else(|| format!("{channels} channels, kernel wants {want}"))?;
            if let Some(bias) = bias {
                suits("bias", &bias.dims(), std::slice::from_ref(out))?;
                one_type(self, bias)?;
            }
            let mut dims = vec![batch.clone(), out.clone()];
            for i in 0..N {
                dims.push(conv_dim(
                    &sizes[i],
                    &kernel[i],
                    stride[i],
                    pads[i],
                    pads[N + i],
                )?);
            }
            Ok(Fact { dims, ..x })
        })
    }

    /// Applies a convolution: `[B, C, L] -> [B, O, L']`. w `[O, C/groups, K]`, pads `[begin, end]`.
    #[track_caller]
    #[must_use]
    pub fn conv1d(
        self,
        w: Self,
        bias: Option<Self>,
        stride: i64,
        pads: [i64; 2],
        groups: i64,
    ) -> Self {
        self.conv(w, bias, [stride], &pads, groups)
    }

    /// Applies a convolution: `[B, C, H, W] -> [B, O, H', W']`. w `[O, C/groups, Kh, Kw]`, pads
    /// `[top, left, bottom, right]`.
    #[track_caller]
    #[must_use]
    pub fn conv2d(
        self,
        w: Self,
        bias: Option<Self>,
        stride: [i64; 2],
        pads: [i64; 4],
        groups: i64,
    ) -> Self {
        self.conv(w, bias, stride, &pads, groups)
    }

    /// Applies a convolution: `[B, C, T, H, W] -> [B, O, T', H', W']`. w
    /// `[O, C/groups, Kt, Kh, Kw]`, pads `[front, top, left, back, bottom, right]`.
    #[track_caller]
    #[must_use]
    pub fn conv3d(
        self,
        w: Self,
        bias: Option<Self>,
        stride: [i64; 3],
        pads: [i64; 6],
        groups: i64,
    ) -> Self {
        self.conv(w, bias, stride, &pads, groups)
    }

    /// Repeats each pixel twice along the last `axes` axes, as torch's `nearest-exact` (and
    /// `nearest`) with factor 2. ONNX Runtime has no Resize in bf16 on any device, so bf16 goes
    /// through f16: the same values between 2^-14 and 65504, rounded to 2^-24 below.
    #[track_caller]
    #[must_use]
    pub fn resize_nearest2x(self, axes: usize) -> Self {
        if self.dtype() == DType::BF16 {
            let half = self.cast(DType::F16).resize_nearest2x(axes);
            return half.cast(DType::BF16);
        }
        let rank = self.rank();
        let scales = (0..rank)
            .map(|i| if i + axes >= rank { 2.0 } else { 1.0 })
            .collect();
        let inputs = [
            Some(self),
            None,
            Some(self.builder().const_f32([rank], scales)),
        ];
        let attributes = vec![
            ("coordinate_transformation_mode", Text("asymmetric")),
            ("mode", Text("nearest")),
            ("nearest_mode", Text("floor")),
        ];
        self.node("Resize", inputs, attributes, || {
            let mut fact = float(self.fact())?;
            let Some(kept) = rank.checked_sub(axes) else {
                return Err(format!("wants {axes} axes or more"));
            };
            for d in &mut fact.dims[kept..] {
                *d = d.clone() * Dim::from(2);
            }
            Ok(fact)
        })
    }
}

fn one_type(a: Value<'_>, b: Value<'_>) -> Result<(), String> {
    let (a, b) = (a.dtype(), b.dtype());
    if a == b {
        Ok(())
    } else {
        Err(format!("{a} and {b} do not mix"))
    }
}

fn suits(what: &str, got: &[Dim], want: &[Dim]) -> Result<(), String> {
    let fits = got.len() == want.len() && got.iter().zip(want).all(|(g, w)| same(g, w).is_some());
    if fits {
        Ok(())
    } else {
        Err(format!("{what} wants {}, got {}", Dims(want), Dims(got)))
    }
}

impl<'w> Builder<'w> {
    /// Joins values along an axis; the other dimensions must agree.
    #[track_caller]
    pub fn concat(&'w self, axis: isize, parts: &[Value<'w>]) -> Value<'w> {
        let joined = self.emit(
            Location::caller(),
            "Concat",
            parts.iter().copied(),
            vec![("axis", Int(axis_i64(axis)))],
            || {
                let facts: Vec<Fact> = parts.iter().map(|v| v.fact()).collect();
                let (first, rest) = facts.split_first().ok_or("nothing to join")?;
                let mut fact = first.clone();
                let at = resolve(axis, fact.dims.len())?;
                for other in rest {
                    if other.dtype != fact.dtype || other.dims.len() != fact.dims.len() {
                        return Err("types and ranks must agree".into());
                    }
                    for (i, (a, b)) in fact.dims.iter_mut().zip(&other.dims).enumerate() {
                        *a = match i == at {
                            true => a.clone() + b.clone(),
                            false => same(a, b).ok_or_else(|| format!("{a} and {b} differ"))?,
                        };
                    }
                }
                Ok(vec![fact])
            },
        );
        joined.map_or_else(|| self.poison(), |v| v[0])
    }
}

/// Options of [`attention`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'g> {
    /// Factor on the scores; `None` is `1 / sqrt(D)`.
    pub scale: Option<f32>,
    /// Mask: bool (true attends) or a bias of the query's type, broadcast to `[B, N, L, S]`.
    pub mask: Option<Value<'g>>,
    /// Number of keys in use per lane, i64 `[B]`. Later keys are ignored.
    pub kv_len: Option<Value<'g>>,
}

/// Applies the operator Attention-24 per head: q `[B, N, L, D]`, k `[B, M, S, D]`, v `[B, M, S, E]`
/// (M divides N) -> `[B, N, L, E]`.
#[track_caller]
pub fn attention<'g>(
    q: Value<'g>,
    k: Value<'g>,
    v: Value<'g>,
    options: AttentionOptions<'g>,
) -> Value<'g> {
    let mut inputs = vec![
        Some(q),
        Some(k),
        Some(v),
        options.mask,
        None,
        None,
        options.kv_len,
    ];
    while inputs.last().is_some_and(Option::is_none) {
        inputs.pop();
    }
    let attributes: Attributes = options
        .scale
        .map(|s| ("scale", Float(s)))
        .into_iter()
        .collect();
    q.node("Attention", inputs, attributes, || {
        attention_fact(q, k, v, options)
    })
}

fn attention_fact<'g>(
    q: Value<'g>,
    k: Value<'g>,
    v: Value<'g>,
    options: AttentionOptions<'g>,
) -> Inferred {
    let (fact, kf, vf) = (float(q.fact())?, k.fact(), v.fact());
    let ([b, n, l, d], [kb, kn, s, kd], [vb, vn, vs, e]) =
        (fact.dims.as_slice(), kf.dims.as_slice(), vf.dims.as_slice())
    else {
        return Err("wants [B, N, L, D], [B, M, S, D] and [B, M, S, E]".into());
    };
    if kf.dtype != fact.dtype || vf.dtype != fact.dtype {
        return Err("types differ".into());
    }
    for (x, y) in [(b, kb), (b, vb), (kn, vn), (s, vs), (d, kd)] {
        same(x, y).ok_or_else(|| format!("{x} and {y} differ"))?;
    }
    let grouped = kn
        .as_const()
        .zip(n.as_const())
        .is_some_and(|(m, n)| m > 0 && n % m == 0);
    if !grouped && same(n, kn).is_none() {
        return Err(format!("{kn} key heads do not serve {n}"));
    }
    if let Some(mask) = options.mask.map(Value::fact) {
        let want = [b.clone(), n.clone(), l.clone(), s.clone()];
        let fits = (mask.dtype == DType::Bool || mask.dtype == fact.dtype)
            && broadcast(&mask.dims, &want).is_ok_and(|d| suits("", &d, &want).is_ok());
        if !fits {
            return Err(format!("mask {mask} does not fit {}", Dims(&want)));
        }
    }
    if let Some(lens) = options.kv_len.map(Value::fact) {
        wants("kv_len", &lens, DType::I64, 1)?;
        suits("kv_len", &lens.dims, std::slice::from_ref(b))?;
    }
    Ok(Fact {
        dims: vec![b.clone(), n.clone(), l.clone(), e.clone()],
        ..fact.clone()
    })
}

/// Writes `update` into `past` along `axis`, lane `b` from `write_indices[b]` on; rows must not
/// pass the end. past `[B, .., S, ..]`, update the same with fewer on the axis, write_indices i64
/// `[B]` -> past's shape. With both bound to one memory nothing is copied.
#[track_caller]
pub fn tensor_scatter<'g>(
    past: Value<'g>,
    update: Value<'g>,
    write_indices: Value<'g>,
    axis: isize,
) -> Value<'g> {
    let attributes = vec![("axis", Int(axis_i64(axis))), ("mode", Text("linear"))];
    past.node(
        "TensorScatter",
        [past, update, write_indices],
        attributes,
        || {
            let (fact, new, at) = (past.fact(), update.fact(), write_indices.fact());
            let axis = resolve(axis, fact.dims.len())?;
            if axis == 0 || new.dtype != fact.dtype || new.dims.len() != fact.dims.len() {
                return Err(
                    "update must have the past's type and rank, and the axis must not be the lane"
                        .into(),
                );
            }
            for (i, (a, b)) in fact.dims.iter().zip(&new.dims).enumerate() {
                if i != axis {
                    same(a, b).ok_or_else(|| format!("{a} and {b} differ"))?;
                } else if a.as_const().zip(b.as_const()).is_some_and(|(a, b)| b > a) {
                    return Err(format!("{b} rows do not fit into {a}"));
                }
            }
            wants("write_indices", &at, DType::I64, 1)?;
            suits("write_indices", &at.dims, &fact.dims[..1])?;
            Ok(fact)
        },
    )
}

/// Arithmetic between values, and with a number on either side of an f32 tensor.
macro_rules! arithmetic {
    ($($trait:ident $method:ident $op:literal),*) => {
        $(impl<'g> std::ops::$trait for Value<'g> {
            type Output = Value<'g>;
            #[track_caller]
            fn $method(self, other: Self) -> Value<'g> {
                self.binary($op, other)
            }
        }

        impl<'g> std::ops::$trait<f32> for Value<'g> {
            type Output = Value<'g>;
            #[track_caller]
            fn $method(self, x: f32) -> Value<'g> {
                match self.with_number($op, x) {
                    Ok(x) => self.binary($op, x),
                    Err(poisoned) => poisoned,
                }
            }
        }

        impl<'g> std::ops::$trait<Value<'g>> for f32 {
            type Output = Value<'g>;
            #[track_caller]
            fn $method(self, v: Value<'g>) -> Value<'g> {
                match v.with_number($op, self) {
                    Ok(x) => x.binary($op, v),
                    Err(poisoned) => poisoned,
                }
            }
        })*
    };
}
arithmetic!(Add add "Add", Sub sub "Sub", Mul mul "Mul", Div div "Div");

#[cfg(test)]
mod tests {
    use super::*;
    use engines::contract::Port;
    use std::collections::BTreeMap;

    fn dims(text: &str) -> Vec<Dim> {
        text.split_whitespace()
            .map(|d| Dim::parse(d).unwrap())
            .collect()
    }

    /// Returns the shape that `f` gives for inputs of the given shapes, or its fault.
    fn shape_of(inputs: &[&str], f: impl for<'g> Fn(&[Value<'g>]) -> Value<'g>) -> String {
        let source = BTreeMap::<String, Vec<usize>>::new();
        let b = Builder::new("t", &source);
        let input = |(i, text): (usize, &&str)| {
            // The ports of contracts are consts, so a test leaks its ports.
            let leak = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
            let (dtype, shape) = text
                .strip_prefix("i64 ")
                .map_or((DType::F32, *text), |shape| (DType::I64, shape));
            let (dtype, shape) = shape
                .strip_prefix("bool ")
                .map_or((dtype, shape), |shape| (DType::Bool, shape));
            b.input(&Port::new(
                leak(format!("in{i}")),
                dtype,
                leak(shape.to_owned()),
            ))
        };
        let values: Vec<Value<'_>> = inputs.iter().enumerate().map(input).collect();
        let shape = format!("{:?}", f(&values));
        match b.finish() {
            Ok(_) => shape,
            Err(e) => {
                e.0.iter()
                    .map(|e| e.fault.to_string())
                    .collect::<Vec<_>>()
                    .join("; ")
            }
        }
    }

    #[test]
    fn reshapes_are_lowered_to_numbers_zeros_and_one_minus_one() {
        for (have, want, spec) in [
            ("B L 256", "B L 4 64", Ok(vec![0, 0, 4, 64])),
            ("B L 4 64", "B L 256", Ok(vec![0, 0, 256])),
            ("B L 256", "B*L 256", Ok(vec![-1, 256])),
            ("B L 256", "1 B*L 256", Ok(vec![1, -1, 256])),
            ("B 3*h*w 6", "B 3 h*w 6", Ok(vec![0, 3, -1, 6])),
            ("B 3 h*w 6", "B 3*h*w 6", Ok(vec![0, -1, 6])),
            ("4 6", "2 12", Ok(vec![2, 12])),
            (
                "B L 8",
                "L B 8",
                Err("cannot become [L, B, 8]: more than one symbolic dimension moves"),
            ),
            (
                "B F*h*w 8",
                "B F h*w 8",
                Err("cannot become [B, F, h*w, 8]: more than one symbolic dimension moves"),
            ),
            (
                "B L 8",
                "B L 9",
                Err("cannot become [B, L, 9]: another number of elements"),
            ),
            (
                "B L 8",
                "B 0",
                Err("cannot become [B, 0]: a dimension is below 1"),
            ),
        ] {
            assert_eq!(
                reshape_spec(&dims(have), &dims(want)),
                spec.map_err(str::to_owned),
                "{have} -> {want}"
            );
        }
    }

    #[test]
    fn dimensions_broadcast_as_numpy_and_unknown_ones_match() {
        for (a, b, want) in [
            ("B L 8", "8", Ok("B L 8")),
            ("B 1 8", "L 1", Ok("B L 8")),
            ("", "2*h", Ok("2*h")),
            ("1", "B", Ok("B")),
            ("B", "L", Err("B and L do not broadcast")),
            ("3 4", "3 5", Err("4 and 5 do not broadcast")),
        ] {
            assert_eq!(
                broadcast(&dims(a), &dims(b)),
                want.map(dims).map_err(str::to_owned),
                "{a} with {b}"
            );
        }
        assert_eq!(broadcast(&[unknown()], &dims("B")), Ok(dims("B")));
    }

    #[test]
    fn slices_have_pythons_length() {
        for (dim, start, end, want) in [
            ("10", 2, i64::MAX, "8"),
            ("10", -3, i64::MAX, "3"),
            ("10", 0, -4, "6"),
            ("10", -4, -1, "3"),
            ("10", 3, 100, "7"),
            ("T", 1, i64::MAX, "T - 1"),
            ("T", -2, i64::MAX, "2"),
            ("T", 0, -2, "T - 2"),
            ("T", 1, 3, "2"),
            ("T", -3, -1, "2"),
            ("10", 4, 4, "4..4 of 10 is empty"),
            ("T", 3, 1, "3..1 of T is empty"),
        ] {
            let got = slice_len(&dims(dim)[0], start, end);
            assert_eq!(
                got.map_or_else(|e| e, |d| d.to_string()),
                want,
                "{start}..{end} of {dim}"
            );
        }
    }

    type Op = for<'g> fn(&[Value<'g>]) -> Value<'g>;

    #[test]
    fn each_operator_gives_its_shape() {
        let cases: [(&[&str], Op, &str); 18] = [
            (&["B L 8", "8 4"], |v| v[0].matmul(v[1]), "f32 [B, L, 4]"),
            (
                &["B N L 8", "B 1 8 S"],
                |v| v[0].matmul(v[1]),
                "f32 [B, N, L, S]",
            ),
            (&["B L 8"], |v| v[0].transpose(&[2, 0, 1]), "f32 [8, B, L]"),
            (
                &["B L 8"],
                |v| v[0].unsqueeze(-1).unsqueeze(0),
                "f32 [1, B, L, 8, 1]",
            ),
            (&["B 1 8"], |v| v[0].squeeze(-2), "f32 [B, 8]"),
            (&["B L 8"], |v| v[0].split(-1, 4)[3], "f32 [B, L, 2]"),
            (&["B 2*L"], |v| v[0].split_into::<2>(1)[0], "f32 [B, L]"),
            (
                &["B L 8", "B 3 8"],
                |v| v[0].builder().concat(1, v),
                "f32 [B, L + 3, 8]",
            ),
            (
                &["G 3 8", "B L"],
                |v| v[0].broadcast_leading(v[1]),
                "f32 [B, 3, 8]",
            ),
            (
                &["B L 8"],
                |v| v[0].pad_edge(1, 2, 1).pad_zero(-1, 0, 4),
                "f32 [B, L + 3, 12]",
            ),
            (
                &["V 8", "i64 B L"],
                |v| v[0].gather(v[1], 0),
                "f32 [B, L, 8]",
            ),
            (&["B L 8"], |v| v[0].range_like(1), "i64 [L]"),
            (
                &["T 8"],
                |v| v[0].slice_step(0, 1, i64::MAX, 2),
                "f32 [floor((T)/2), 8]",
            ),
            (&["B L 8"], |v| v[0].reduce_l2(&[-1], true), "f32 [B, L, 1]"),
            (&["B L 4 8"], |v| v[0].flatten(1..3), "f32 [B, 4*L, 8]"),
            (
                &["L B 8"],
                |v| v[0].reshape_from(dims("B 2 L 4"), &[]),
                "f32 [B, 2, L, 4]",
            ),
            (
                &["B 4 L", "6 2 3"],
                |v| v[0].conv1d(v[1], None, 1, [2, 0], 2),
                "f32 [B, 6, L]",
            ),
            (
                &["T 4 h w"],
                |v| v[0].resize_nearest2x(2),
                "f32 [T, 4, 2*h, 2*w]",
            ),
        ];
        for (inputs, op, want) in cases {
            assert_eq!(shape_of(inputs, op), want, "{inputs:?}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_say_why() {
        let cases: [(&[&str], Op, &str); 16] = [
            (
                &["B L 8", "9 4"],
                |v| v[0].matmul(v[1]),
                "MatMul(f32 [B, L, 8], f32 [9, 4]): inner dimensions 8 and 9 differ",
            ),
            (
                &["B", "i64 B"],
                |v| v[0] + v[1],
                "Add(f32 [B], i64 [B]): f32 and i64 do not mix",
            ),
            (
                &["i64 B"],
                |v| v[0] * 2.0,
                "Mul(i64 [B]): number 2 wants f32",
            ),
            (
                &["i64 B"],
                |v| v[0].sqrt(),
                "Sqrt(i64 [B]): wants floats, not i64",
            ),
            (
                &["B L"],
                |v| v[0].transpose(&[1, 1]),
                "Transpose(f32 [B, L]): [1, 1] is not an order of 2 axes",
            ),
            (
                &["B L"],
                |v| v[0].softmax(2),
                "Softmax(f32 [B, L]): no axis 2 in rank 2",
            ),
            (
                &["B 7"],
                |v| v[0].split(1, 2)[0],
                "Split(f32 [B, 7]): 7 does not divide into 2",
            ),
            (
                &["B 7"],
                |v| v[0].squeeze(1),
                "Squeeze(f32 [B, 7], i64 [1]): axis 1 is 7, not 1",
            ),
            (
                &["B 7", "L 7"],
                |v| v[0].builder().concat(1, v),
                "Concat(f32 [B, 7], f32 [L, 7]): B and L differ",
            ),
            (
                &["2 3", "4 3"],
                |v| v[0].broadcast_leading(v[1]),
                "Expand(f32 [2, 3], i64 [2]): 2 lanes do not become 4",
            ),
            (
                &["B D"],
                |v| v[0].layer_norm(-1, 1e-6, None, None),
                "LayerNormalization(f32 [B, D]): without a weight [D] must be constant",
            ),
            (
                &["B 8", "7"],
                |v| v[0].rms_norm(1e-6, v[1]),
                "RMSNormalization(f32 [B, 8], f32 [7]): weight wants [8], got [7]",
            ),
            (
                &["B N L 8", "B L 8"],
                |v| v[0].rotary(v[1], v[1], true),
                "RotaryEmbedding(f32 [B, N, L, 8], f32 [B, L, 8], f32 [B, L, 8]): \
                 table wants [B, L, 4], got [B, L, 8]",
            ),
            (
                &["B 4 T h w", "6 3 1 3 3"],
                |v| v[0].conv3d(v[1], None, [1; 3], [0; 6], 1),
                "Conv(f32 [B, 4, T, h, w], f32 [6, 3, 1, 3, 3]): 4 channels, kernel wants 3",
            ),
            (
                &["B 2 6 4", "B 2 7 4", "i64 B"],
                |v| v[0].tensor_scatter(v[1], v[2], -2),
                "TensorScatter(f32 [B, 2, 6, 4], f32 [B, 2, 7, 4], i64 [B]): \
                 7 rows do not fit into 6",
            ),
            (
                &["B L 8"],
                |v| v[0].reshape_from(dims("B h 8"), &[]),
                "Reshape(f32 [B, L, 8]): cannot become [B, h, 8]: another number of elements",
            ),
        ];
        for (inputs, op, want) in cases {
            assert_eq!(shape_of(inputs, op), want, "{inputs:?}");
        }
    }

    #[test]
    fn attention_checks_heads_mask_and_lengths() {
        let kv = ["B 8 L 16", "B 8 S 16", "B 8 S 32"];
        let cases: [(&[&str], Op, &str); 6] = [
            (
                &kv,
                |v| v[0].attention(v[1], v[2], AttentionOptions::default()),
                "f32 [B, 8, L, 32]",
            ),
            (
                &["B 8 L 16", "B 2 S 16"],
                |v| v[0].attention(v[1], v[1], AttentionOptions::default()),
                "f32 [B, 8, L, 16]",
            ),
            (
                &["B 8 L 16", "B 3 S 16"],
                |v| v[0].attention(v[1], v[1], AttentionOptions::default()),
                "Attention(f32 [B, 8, L, 16], f32 [B, 3, S, 16], f32 [B, 3, S, 16]): \
                 3 key heads do not serve 8",
            ),
            (
                &["B 8 L 16", "B 8 S 16", "i64 B"],
                |v| {
                    v[0].attention(
                        v[1],
                        v[1],
                        AttentionOptions {
                            kv_len: Some(v[2]),
                            ..Default::default()
                        },
                    )
                },
                "f32 [B, 8, L, 16]",
            ),
            (
                &["B 8 L 16", "B 8 S 16", "i64 L"],
                |v| {
                    v[0].attention(
                        v[1],
                        v[1],
                        AttentionOptions {
                            kv_len: Some(v[2]),
                            ..Default::default()
                        },
                    )
                },
                "Attention(f32 [B, 8, L, 16], f32 [B, 8, S, 16], f32 [B, 8, S, 16], i64 [L]): \
                 kv_len wants [B], got [L]",
            ),
            (
                &["B 8 L 16", "B 8 S 16", "bool L L"],
                |v| {
                    v[0].attention(
                        v[1],
                        v[1],
                        AttentionOptions {
                            mask: Some(v[2]),
                            ..Default::default()
                        },
                    )
                },
                "Attention(f32 [B, 8, L, 16], f32 [B, 8, S, 16], f32 [B, 8, S, 16], bool [L, L]): \
                 mask bool [L, L] does not fit [B, 8, L, S]",
            ),
        ];
        for (inputs, op, want) in cases {
            assert_eq!(shape_of(inputs, op), want, "{inputs:?}");
        }
    }
}
