//! Checks the numbers that the runtime computes without an engine: the schedule, random numbers and
//! rotary tables. Also compares the weights of the export with the reference's merged weights.

use engines::contract::DType;
use engines::manifest::Models;
use engines::tensor::Tensor;
use half::bf16;

use super::checkup::{Checkup, Problem, lacks, number_in};
use crate::numbers::rng::TorchGenerator;
use crate::numbers::rope::{self, Rope, ref_shift};
use crate::numbers::schedule;

/// Runs the checks of this file.
pub(super) fn check(checkup: &Checkup<'_>) {
    schedules(checkup);
    checkup.part(
        "schedule",
        "scheduler",
        |n| n.starts_with("step."),
        |_| euler(checkup),
    );
    checkup.part(
        "random numbers",
        "rng",
        |_| true,
        |names| names.iter().try_for_each(|n| random(checkup, n)),
    );
    checkup.part(
        "rotary tables",
        "rope",
        |n| !n.ends_with("_f16"),
        |names| names.iter().try_for_each(|n| rotary(checkup, n)),
    );
    checkup.part(
        "export",
        "lora",
        |n| n.starts_with("merged_rows."),
        |names| names.iter().try_for_each(|n| merged(checkup, n)),
    );
}

fn schedules(checkup: &Checkup<'_>) {
    checkup.part(
        "schedule",
        "scheduler",
        |n| n.starts_with("steps"),
        |names| {
            for name in names {
                let values = match (
                    number_in(name, "steps", ".sigmas"),
                    number_in(name, "steps", ".timesteps"),
                ) {
                    (Some(n), _) => schedule::sigmas(n)?,
                    (_, Some(n)) => schedule::timesteps(n)?,
                    _ => continue,
                };
                checkup.table.check(
                    "schedule",
                    "scheduler",
                    name,
                    &Tensor::from_slice(&[values.len()], &values),
                );
            }
            Ok(())
        },
    );
}

/// Checks the update of the samples. Each sample is made from the reference's sample before it.
fn euler(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let steps = (0..)
        .take_while(|i| {
            checkup
                .golden
                .entry("scheduler", &format!("step.v{i}"))
                .is_some()
        })
        .count();
    let sigmas = schedule::sigmas(steps)?;
    let note = "the host applies the graph's formula, because these samples are smaller than a \
                frame's tokens; e2e_tpp_steps.*.x and e2e_tpp.*.latents check the graph's update";
    let mut sample = checkup.input("scheduler", "step.sample0")?;
    for i in 0..steps {
        let v = checkup.input("scheduler", &format!("step.v{i}"))?;
        if v.dtype() != DType::F32 || sample.dtype() != DType::F32 || v.shape() != sample.shape() {
            return Err(Problem::Lacks(format!(
                "scheduler.step.v{i}: wanted {sample:?}, found {v:?}"
            )));
        }
        let by = sigmas[i + 1] - sigmas[i];
        let next: Vec<f32> = sample
            .as_slice::<f32>()
            .iter()
            .zip(v.as_slice::<f32>())
            .map(|(x, v)| x + by * v)
            .collect();
        let name = format!("step.sample{}", i + 1);
        checkup.table.check_noted(
            "schedule",
            "scheduler",
            &name,
            &Tensor::from_slice(v.shape(), &next),
            note,
        );
        match checkup.golden.tensor("scheduler", &name)? {
            Some(theirs) => sample = theirs,
            None => break,
        }
    }
    Ok(())
}

fn random(checkup: &Checkup<'_>, name: &str) -> Result<(), Problem> {
    let want = checkup
        .golden
        .tensor("rng", name)?
        .ok_or_else(|| lacks(format!("rng.{name}")))?;
    let Some((seed, kind)) = name.strip_prefix("seed").and_then(|n| n.split_once('.')) else {
        return Ok(());
    };
    let Ok(seed) = seed.parse() else {
        return Ok(());
    };
    let (mut generator, count) = (TorchGenerator::new(seed), want.shape().iter().product());
    let found = match kind {
        "f32" | "f32_small" => Tensor::from_slice(want.shape(), &generator.randn(count)),
        "bf16" => Tensor::from_slice::<bf16>(want.shape(), &generator.randn_bf16(count)),
        _ => return Ok(()),
    };
    checkup.table.check("random numbers", "rng", name, &found);
    Ok(())
}

/// Returns the token rows and columns of the golden set's transformer inputs.
pub(super) fn tokens(checkup: &Checkup<'_>) -> Result<(usize, usize), Problem> {
    Ok((
        checkup.number("/dit_sink/latent_h")? / 2,
        checkup.number("/dit_sink/latent_w")? / 2,
    ))
}

fn rotary(checkup: &Checkup<'_>, name: &str) -> Result<(), Problem> {
    if let Some(stride) = number_in(name, "index_", "x") {
        return thinned(checkup, name, stride);
    }
    let Some((table, part)) = name.rsplit_once('.') else {
        return Ok(());
    };
    let (h, w) = tokens(checkup)?;
    let rope = Rope::new(h, w, checkup.dit().head_dim());
    let made = if let Some(first) = number_in(table, "noisy.f", "") {
        rope.noisy(first)
    } else if let Some((first, distance)) = table
        .strip_prefix("cond.f")
        .and_then(|t| t.split_once("_rel"))
    {
        let (Ok(first), Ok(distance)) = (first.parse(), distance.parse()) else {
            return Ok(());
        };
        rope.cond(ref_shift(first, distance))
    } else {
        return Ok(());
    };
    let values = match part {
        "cos" => made.cos,
        "sin" => made.sin,
        _ => return Ok(()),
    };
    checkup
        .table
        .check("rotary tables", "rope", name, &Tensor::from(values));
    Ok(())
}

/// Checks which tokens a group keeps of every `stride` tokens. A row of the table holds a number of
/// tokens, the kept tokens, and -1 as filling.
fn thinned(checkup: &Checkup<'_>, name: &str, stride: usize) -> Result<(), Problem> {
    let want = checkup
        .golden
        .tensor("rope", name)?
        .ok_or_else(|| lacks(format!("rope.{name}")))?;
    let (DType::I64, &[count, columns], true) = (want.dtype(), want.shape(), stride > 0) else {
        return Ok(());
    };
    let rows = want
        .as_slice::<i64>()
        .chunks_exact(columns.max(1))
        .flat_map(|row| {
            let n = usize::try_from(row[0]).unwrap_or_default();
            let kept = rope::spread(n, n / stride).into_iter().map(|i| i as i64);
            std::iter::once(row[0])
                .chain(kept)
                .chain(std::iter::repeat(-1))
                .take(columns)
                .collect::<Vec<_>>()
        });
    checkup.table.check(
        "rotary tables",
        "rope",
        name,
        &Tensor::from_slice(&[count, columns], &rows.collect::<Vec<i64>>()),
    );
    Ok(())
}

/// Checks the first rows of a merged weight in the export's data files.
fn merged(checkup: &Checkup<'_>, name: &str) -> Result<(), Problem> {
    let key = name.trim_start_matches("merged_rows.");
    let want = checkup
        .golden
        .tensor("lora", name)?
        .ok_or_else(|| lacks(format!("lora.{name}")))?;
    let rows = want.shape()[0];
    let found = stored_rows(checkup.models(), key, rows)?;
    let found = found.ok_or_else(|| {
        Problem::Failed(format!(
            "the export has no matrix of at least {rows} rows that was made from {key}"
        ))
    })?;
    checkup.table.check("export", "lora", name, &found);
    Ok(())
}

/// Reads rows `0..rows` of the `[out, in]` matrix that was made from checkpoint key `key`.
fn stored_rows(models: &Models, key: &str, rows: usize) -> Result<Option<Tensor>, Problem> {
    let manifest = models.manifest();
    for component in &manifest.components {
        let data = manifest.data.iter().find(|d| d.file.file == component.data);
        let weights = data
            .iter()
            .flat_map(|d| &d.weights)
            .filter(|w| w.key == key && w.shape.len() == 2);
        for w in weights.filter(|w| component.weights.values().any(|n| *n == w.name)) {
            let Some((w, values)) = models.read_weight(component, &w.name)? else {
                continue;
            };
            let (out, inner) = if w.transposed {
                (w.shape[1], w.shape[0])
            } else {
                (w.shape[0], w.shape[1])
            };
            if out < rows {
                continue;
            }
            let at = |r: usize, c: usize| {
                if w.transposed {
                    values[c * out + r]
                } else {
                    values[r * inner + c]
                }
            };
            let kept: Vec<f32> = (0..rows)
                .flat_map(|r| (0..inner).map(move |c| (r, c)))
                .map(|(r, c)| at(r, c))
                .collect();
            return Ok(Some(Tensor::from_slice(&[rows, inner], &kept)));
        }
    }
    Ok(None)
}
