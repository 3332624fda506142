//! Compares every component of an export on a device with the same component on the CPU. Both get
//! the same made-up inputs; outputs, next states and rings are compared. A call must not change a
//! bit of the ring's other rows. Golden numbers are compared by [`crate::checks::verify`].

use std::fmt;

use engines::backend::ort::{Ort, Runtime};
use engines::backend::{Backend, Elsewhere, EngineError, LoadOptions, Session, run_named};
use engines::components::{dit, speech, symbols, text, vae};
use engines::contract::{DType, NEXT, Port, StateKind};
use engines::dim::Bindings;
use engines::error_kind::ErrorKind;
use engines::manifest::{ModelConfig, Models};
use engines::recipe::Recipe;
use engines::tensor::Tensor;
use engines::tensor_file::Tensors;

use crate::checks::made_up;
use crate::numbers::geometry::Geometry;

/// The comparison of one output of one component.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Row {
    /// Name of the component.
    pub component: String,
    /// Name of the output, or the reason why there is none.
    pub output: String,
    /// Largest difference, over the largest value of the CPU. Infinite when a value is not finite
    /// or when the call changed a row of the ring that it must keep.
    pub difference: f64,
    /// Whether the difference is within the tolerance.
    pub passed: bool,
}

/// The comparison of an export.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Report {
    /// Name of the device.
    pub device: String,
    /// Precision of the export.
    pub recipe: Recipe,
    /// Largest difference that passes.
    pub tolerance: f64,
    /// All outputs, in the order of the components.
    pub rows: Vec<Row>,
    /// Graph nodes that ran on the host, by component. They compute sizes only: a component with
    /// other nodes on the host does not load.
    pub elsewhere: Vec<(String, Vec<Elsewhere>)>,
}

/// Outputs that differ from the CPU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{failed} of {rows} outputs differ from the CPU's")]
pub struct Differs {
    /// Outputs that differ.
    pub failed: usize,
    /// All outputs.
    pub rows: usize,
}

impl Differs {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Verification
    }
}

impl Report {
    /// Judges the rows.
    ///
    /// # Errors
    /// [`Differs`] when any output differs.
    pub(crate) fn verdict(&self) -> Result<(), Differs> {
        match self.rows.iter().filter(|r| !r.passed).count() {
            0 => Ok(()),
            failed => Err(Differs {
                failed,
                rows: self.rows.len(),
            }),
        }
    }
}

/// Returns the largest difference that passes.
fn tolerance(recipe: Recipe) -> f64 {
    match recipe {
        Recipe::Fp32 => 1e-4,
        // One rounding is 1/256. Another order of summation makes a few roundings in a layer.
        Recipe::Bf16 | Recipe::Fp8 => 0.03,
    }
}

/// Runs every component on the device and on the CPU. A component that fails on the device becomes
/// a row that failed.
///
/// # Errors
/// A component does not load or run on the CPU.
pub(crate) fn run(
    device: &Ort,
    host: &Runtime,
    models: Models,
    geometry: &Geometry,
) -> Result<Report, EngineError> {
    let cpu = Ort::with(models, host.clone());
    let recipe = device.recipe();
    let tolerance = tolerance(recipe);
    let (mut rows, mut elsewhere) = (Vec::new(), Vec::new());
    for (component, sizes) in components(device.models().config(), geometry) {
        let mut theirs = load(&cpu, &component)?;
        let inputs = inputs(&*theirs, &sizes);
        let in_place = theirs.contract().state_kind == StateKind::InPlace;
        let wanted = run_named(&mut *theirs, &**cpu.memory(), inputs.clone())?;
        let ran = load(device, &component).and_then(|mut ours| {
            let found = run_named(&mut *ours, &**device.memory(), inputs.clone())?;
            Ok((found, ours.elsewhere().to_vec()))
        });
        // The other components are compared even if the device cannot run this component.
        let (found, nodes) = match ran {
            Ok(ran) => ran,
            Err(error) => {
                rows.push(Row {
                    output: error
                        .to_string()
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                    component,
                    difference: f64::INFINITY,
                    passed: false,
                });
                continue;
            }
        };
        for (output, want) in &wanted {
            let mut difference = difference(&found[output], want);
            let ring = output.strip_suffix(NEXT).filter(|_| in_place);
            let kept = |ring: &str| untouched(&inputs[ring], &found[output], &written(&sizes));
            if ring.is_some_and(|ring| !kept(ring)) {
                difference = f64::INFINITY;
            }
            rows.push(Row {
                component: component.clone(),
                output: output.clone(),
                passed: difference <= tolerance,
                difference,
            });
        }
        if !nodes.is_empty() {
            elsewhere.push((component, nodes));
        }
    }
    Ok(Report {
        device: device.memory().place().to_string(),
        recipe,
        tolerance,
        rows,
        elsewhere,
    })
}

fn load(backend: &Ort, component: &str) -> Result<Box<dyn Session>, EngineError> {
    backend.load(component, &LoadOptions::default())
}

/// Lists every component once, with sizes for its symbols. One layer stands for its kind.
fn components(c: &ModelConfig, geometry: &Geometry) -> Vec<(String, Bindings)> {
    let mut all = geometry.bindings(c, 2);
    all.extend(symbols::bindings([
        (symbols::SAMPLES, 8_000),
        (symbols::SEQUENCE, 24),
        (symbols::SEQUENCE_ROWS, 24),
    ]));
    let inject = &c.dit.audio_inject_layers;
    let mut layers: Vec<usize> = inject.first().copied().into_iter().collect();
    layers.extend((0..c.dit.layers).find(|l| !inject.contains(l)));
    let speech_layers = [0, c.speech.layers.saturating_sub(1)].map(|l| c.speech.layer(l).0);
    let fixed = [
        text::ENCODER,
        speech::ENCODER_FEATURES,
        speech::ENCODER_POSITIONS,
        speech::ADAPTER,
        vae::ENCODER_FIRST,
        vae::ENCODER_NEXT,
        vae::DECODER_FIRST,
        vae::DECODER_NEXT,
        dit::TEXT_EMBED,
        dit::SINK_EMBED,
        dit::EMBED,
        dit::HEAD,
    ];
    let names = fixed.map(|c| c.name.to_owned()).into_iter();
    let names = names
        .chain(speech_layers)
        .chain([dit::sink_layer_name(0)])
        .chain(layers.into_iter().map(dit::layer_name));
    names.map(|n| (n, all.clone())).collect()
}

/// Makes the inputs and the state of one call, by port. Attention sees two blocks, or one where the
/// ring holds no more.
fn inputs(session: &dyn Session, sizes: &Bindings) -> Tensors {
    let (contract, recipe) = (session.contract(), session.recipe());
    let block = written(sizes).end as i64;
    let seen = (2 * block).min(sizes[symbols::RING_TOKENS]);
    let keys = sizes[symbols::SINK_TOKENS] + seen;
    let ports = contract.graph_inputs().zip(1..);
    let made = |(p, seed): (&Port, u64)| {
        (
            p.name.to_owned(),
            made_up::for_port(p, recipe, sizes, keys, seed),
        )
    };
    ports.map(made).collect()
}

/// Returns the rows of the ring that the call writes.
fn written(sizes: &Bindings) -> std::ops::Range<usize> {
    let factors = [
        symbols::BLOCK_FRAMES,
        symbols::TOKEN_ROWS,
        symbols::TOKEN_COLUMNS,
    ];
    let block: i64 = factors.map(|s| sizes[s]).iter().product();
    0..usize::try_from(block).unwrap_or(0)
}

fn floats(t: &Tensor) -> Vec<f64> {
    match t.dtype() {
        DType::F32 => t.as_slice::<f32>().iter().map(|&x| f64::from(x)).collect(),
        DType::BF16 => {
            let data = t.as_slice::<half::bf16>().iter();
            data.map(|x| f64::from(x.to_f32())).collect()
        }
        DType::F16 => {
            let data = t.as_slice::<half::f16>().iter();
            data.map(|x| f64::from(x.to_f32())).collect()
        }
        DType::I64 => t.as_slice::<i64>().iter().map(|&x| x as f64).collect(),
        // Drops the lowest bit of a level: another order of roundings may change it.
        DType::U8 | DType::Bool => t.bytes().iter().map(|&x| f64::from(x / 2)).collect(),
    }
}

fn difference(found: &Tensor, want: &Tensor) -> f64 {
    if (found.dtype(), found.shape()) != (want.dtype(), want.shape()) {
        return f64::INFINITY;
    }
    let (found, want) = (floats(found), floats(want));
    let scale = want.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let finite = found.iter().chain(&want).all(|x| x.is_finite());
    let apart = found.iter().zip(&want).map(|(a, b)| (a - b).abs());
    match finite {
        true => apart.fold(0.0, f64::max) / scale,
        false => f64::INFINITY,
    }
}

/// Returns whether the rows outside `written` of `[lanes, heads, rows, d]` have the same bits.
fn untouched(before: &Tensor, after: &Tensor, written: &std::ops::Range<usize>) -> bool {
    let &[_, _, rows, d] = before.shape() else {
        return false;
    };
    let row = d * before.dtype().size();
    let heads = before.bytes().chunks_exact(rows * row);
    let mut pairs = heads.zip(after.bytes().chunks_exact(rows * row));
    pairs.all(|(a, b)| {
        a[..written.start * row] == b[..written.start * row]
            && a[written.end * row..] == b[written.end * row..]
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} against the CPU, {}: tolerance {}",
            self.device, self.recipe, self.tolerance
        )?;
        for r in &self.rows {
            let verdict = if r.passed { "ok" } else { "DIFFERS" };
            writeln!(
                f,
                "{:<28} {:<40} {:>10.2e} {verdict}",
                r.component, r.output, r.difference
            )?;
        }
        for (component, nodes) in &self.elsewhere {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            writeln!(f, "{component}: sizes are computed by {}", nodes.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_not_to_be_written_is_noticed() {
        let before = Tensor::from_slice(&[1, 2, 3, 1], &[0f32, 1., 2., 3., 4., 5.]);
        let after = |values: &[f32]| Tensor::from_slice(&[1, 2, 3, 1], values);
        assert!(untouched(
            &before,
            &after(&[9., 1., 2., 9., 4., 5.]),
            &(0..1)
        ));
        assert!(!untouched(
            &before,
            &after(&[9., 1., 2., 9., 4., 6.]),
            &(0..1)
        ));
        assert!(!untouched(
            &before,
            &after(&[9., 7., 2., 9., 4., 5.]),
            &(0..1)
        ));
    }

    #[test]
    fn what_is_not_finite_or_not_alike_never_passes() {
        let t = |v: f32| Tensor::from_slice(&[2], &[1.0, v]);
        assert!((difference(&t(2.0), &t(4.0)) - 0.5).abs() < 1e-12);
        assert_eq!(difference(&t(f32::NAN), &t(4.0)), f64::INFINITY);
        let other = Tensor::from_slice(&[1, 2], &[1f32, 4.0]);
        assert_eq!(difference(&other, &t(4.0)), f64::INFINITY);
    }
}
