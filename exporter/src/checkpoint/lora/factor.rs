//! Decides the factor of each module: from the flags, from its own alpha, from the statements of
//! the file, or, where a file has no alpha at all, as published.

use std::collections::{BTreeMap, BTreeSet};

use super::module::{Keys, Module, shape};
use super::scale::{LoraScale, Statement};
use crate::checkpoint::dtype::StoredDType;
use crate::checkpoint::error::LoraFault as Fault;
use crate::checkpoint::stored::StoredTensors;

/// Gives each module its factor. Returns the place that the factors come from.
pub(super) fn set_factors(
    tensors: &StoredTensors,
    keys: &BTreeMap<String, Keys>,
    modules: &mut BTreeMap<String, Module>,
    scale: LoraScale,
    statements: &[Statement],
) -> Result<String, Vec<Fault>> {
    let (mut origins, mut faults) = (BTreeSet::new(), Vec::new());
    let mut without = Vec::new();
    for (name, module) in modules.iter_mut() {
        let alpha = keys.get(name).and_then(|k| k.alpha.as_deref());
        let found = match (scale.given(module.rank), alpha) {
            (Some(factor), _) => Ok(("from the flags".to_owned(), factor)),
            (None, Some(key)) => number(tensors, key)
                .map(|alpha| ("alpha in the file".to_owned(), alpha / module.rank as f64)),
            (None, None) if statements.is_empty() => {
                without.push(name.clone());
                continue;
            }
            (None, None) => agreed(statements, name, module.rank),
        };
        match found {
            Ok((origin, factor)) if (factor as f32).is_finite() => {
                module.factor = factor;
                origins.insert(origin);
            }
            Ok((_, got)) => faults.push(Fault::Scale { got }),
            Err(fault) => faults.push(fault),
        }
    }
    if without.len() == modules.len() {
        for module in modules.values_mut() {
            module.factor = LoraScale::PUBLISHED;
        }
        return Ok("no alpha in the file; 64 / 128 as published".to_owned());
    }
    if !without.is_empty() {
        let (modules, of) = (without, modules.len());
        faults.push(Fault::NoAlpha { modules, of });
    }
    faults.dedup();
    match faults.is_empty() {
        true => Ok(origins.into_iter().collect::<Vec<_>>().join(" and ")),
        false => Err(faults),
    }
}

/// Returns the factor of a module in which all statements agree, with their first source.
fn agreed(statements: &[Statement], module: &str, rank: usize) -> Result<(String, f64), Fault> {
    let mut first: Option<(&Statement, f64)> = None;
    for statement in statements {
        let factor = statement.factor(module, rank)?;
        match first {
            None => first = Some((statement, factor)),
            Some((other, before)) if (before - factor).abs() > 1e-9 * before.abs() => {
                return Err(Fault::Disagree {
                    first: format!("{} gives {before}", other.source),
                    second: format!("{} gives {factor}", statement.source),
                });
            }
            Some(_) => {}
        }
    }
    let (statement, factor) = first.expect("the caller has a statement");
    Ok((format!("alpha of {}", statement.source), factor))
}

/// Reads a tensor that holds one number. Some trainers store alpha as a whole number.
fn number(tensors: &StoredTensors, key: &str) -> Result<f64, Fault> {
    let fault = || Fault::NotNumber {
        key: key.to_owned(),
        got: shape(tensors, key).to_vec(),
    };
    let (info, bytes) = tensors.get(key).ok_or_else(fault)?;
    let whole = match (info.dtype, bytes) {
        (StoredDType::I64, bytes) => bytes.try_into().ok().map(|b| i64::from_le_bytes(b) as f64),
        (StoredDType::I32, bytes) => bytes.try_into().ok().map(|b| i32::from_le_bytes(b).into()),
        _ => None,
    };
    let float = || match tensors.read_f32(key).ok()?[..] {
        [number] => Some(f64::from(number)),
        _ => None,
    };
    whole.or_else(float).ok_or_else(fault)
}
