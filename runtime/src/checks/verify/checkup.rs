//! The things that every check uses: the export, the golden set and the table of results. A check
//! that cannot continue ends with a [`Problem`].

use std::sync::Arc;

use engines::backend::{Backend, Loading};
use engines::cancel::Cancel;
use engines::components::dit::DitConfig;
use engines::contract::DType;
use engines::manifest::Models;
use engines::tensor::Tensor;
use half::bf16;

use super::golden::Golden;
use super::subject::Subject;
use super::table::Table;
use crate::checks::error::CheckError;

/// Why a check ended early.
pub(super) enum Problem {
    /// The golden set lacks an input of the check: its tensors are not checked.
    Lacks(String),
    /// Every input exists, but the value could not be made: its tensors fail.
    Failed(String),
}

impl<E: Into<CheckError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Failed(error.into().to_string())
    }
}

/// Makes a [`Problem::Lacks`] that names the missing thing.
pub(super) fn lacks(missing: impl Into<String>) -> Problem {
    Problem::Lacks(format!("the golden set lacks {}", missing.into()))
}

/// The things that every check of one pass uses.
pub(super) struct Checkup<'a> {
    /// The export.
    pub subject: &'a Subject,
    /// The reference's tensors.
    pub golden: &'a Golden,
    /// The table that the checks fill.
    pub table: Table<'a>,
    /// Ends the pass early.
    pub cancel: &'a Cancel,
}

impl Checkup<'_> {
    /// Returns the backend of the export.
    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.subject.backend
    }

    /// Returns the taps and faults by component.
    pub(super) fn loading(&self) -> &Loading {
        &self.subject.loading
    }

    /// Returns the export.
    pub(super) fn models(&self) -> &Models {
        &self.subject.models
    }

    /// Returns the sizes of the transformer.
    pub(super) fn dit(&self) -> &DitConfig {
        &self.models().config().dit
    }

    /// Runs one check for the open tensors of a file that `covers` selects. Without such tensors
    /// the check does not run.
    pub(super) fn part(
        &self,
        component: &str,
        file: &'static str,
        covers: impl Fn(&str) -> bool,
        run: impl FnOnce(&[String]) -> Result<(), Problem>,
    ) {
        self.parts(
            component,
            &[file],
            |_, name| covers(name),
            |names| run(&names.iter().map(|(_, n)| n.clone()).collect::<Vec<_>>()),
        );
    }

    /// Runs one check as [`Self::part`] does, for several files at once.
    pub(super) fn parts(
        &self,
        component: &str,
        files: &[&'static str],
        covers: impl Fn(&str, &str) -> bool,
        run: impl FnOnce(&[(&'static str, String)]) -> Result<(), Problem>,
    ) {
        let open = files
            .iter()
            .flat_map(|&f| self.table.open(f).into_iter().map(move |n| (f, n)));
        let names: Vec<(&'static str, String)> = open.filter(|(f, n)| covers(f, n)).collect();
        if names.is_empty() || self.cancel.is_cancelled() {
            return;
        }
        if let Err(problem) = run(&names) {
            let open = names
                .iter()
                .filter(|(file, name)| self.table.is_open(file, name));
            open.for_each(|(file, name)| match &problem {
                Problem::Lacks(reason) => self.table.not_checked(file, name, reason),
                Problem::Failed(reason) => self.table.failed(component, file, name, reason),
            });
        }
    }

    /// Compares a value, if its tensor is open. Some tensors do not concern this export.
    pub(super) fn check_open(&self, component: &str, file: &str, name: &str, value: &Tensor) {
        if self.table.is_open(file, name) {
            self.table.check(component, file, name, value);
        }
    }

    /// Returns a tensor that is the input of a check.
    pub(super) fn input(&self, file: &str, name: &str) -> Result<Tensor, Problem> {
        let found = self.golden.tensor(file, name)?;
        if found.is_some() {
            self.table.input(file, name);
        }
        found.ok_or_else(|| lacks(format!("{file}.{name}")))
    }

    /// Returns an input of type f32 with `rank` dimensions.
    pub(super) fn floats(&self, file: &str, name: &str, rank: usize) -> Result<Tensor, Problem> {
        let t = self.input(file, name)?;
        if t.dtype() == DType::F32 && t.shape().len() == rank {
            return Ok(t);
        }
        Err(Problem::Lacks(format!(
            "{file}.{name}: wanted f32 of {rank} dimensions, found {} {:?}",
            t.dtype(),
            t.shape()
        )))
    }

    /// Returns a whole number of the manifest's `values`, by JSON pointer.
    pub(super) fn number(&self, pointer: &str) -> Result<usize, Problem> {
        self.golden
            .number(pointer)
            .ok_or_else(|| lacks(format!("values{}", pointer.replace('/', "."))))
    }

    /// Returns a whole number of the manifest's `config`.
    pub(super) fn config(&self, name: &str) -> Result<usize, Problem> {
        self.golden
            .config(name)
            .ok_or_else(|| lacks(format!("config.{name}")))
    }
}

/// Parses the number in `name` between `prefix` and `suffix`.
pub(super) fn number_in(name: &str, prefix: &str, suffix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?
        .strip_suffix(suffix)?
        .parse()
        .ok()
}

/// Puts a dimension of 1 in front.
pub(super) fn lane(t: Tensor) -> Tensor {
    let shape = [&[1], t.shape()].concat();
    t.reshaped(&shape)
}

/// Cuts `range` out of the last dimension: `[.., T]` to `[.., range]`, in f32.
pub(super) fn last(t: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let mut shape = t.shape().to_vec();
    let side = shape
        .last_mut()
        .map_or(1, |s| std::mem::replace(s, range.len()));
    let rows = t.as_slice::<f32>().chunks_exact(side.max(1));
    let data: Vec<f32> = rows.flat_map(|row| &row[range.clone()]).copied().collect();
    Tensor::from_slice(&shape, &data)
}

/// Converts bf16 values to f32. Leaves other types unchanged.
pub(super) fn widened(t: &Tensor) -> Tensor {
    match t.dtype() {
        DType::BF16 => {
            let data: Vec<f32> = t.as_slice::<bf16>().iter().map(|x| x.to_f32()).collect();
            Tensor::from_slice(t.shape(), &data)
        }
        _ => t.clone(),
    }
}

/// Swaps two dimensions: `[1, A, B, C]` to `[1, B, A, C]`, in f32.
pub(super) fn swapped(t: &Tensor) -> Tensor {
    let &[one, a, b, c] = t.shape() else {
        return t.clone();
    };
    let t = widened(t);
    let data = t.as_slice::<f32>();
    let rows = (0..b).flat_map(|j| (0..a).map(move |i| (i * b + j) * c));
    let out: Vec<f32> = rows.flat_map(|at| &data[at..at + c]).copied().collect();
    Tensor::from_slice(&[one, b, a, c], &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_out_of_names() {
        for (name, prefix, suffix, want) in [
            ("steps4.sigmas", "steps", ".sigmas", Some(4)),
            ("steps.sigmas", "steps", ".sigmas", None),
            ("encode.latents17", "encode.latents", "", Some(17)),
            ("encode.latents_repeat5", "encode.latents", "", None),
            (
                "encode.latents_repeat5",
                "encode.latents_repeat",
                "",
                Some(5),
            ),
        ] {
            assert_eq!(number_in(name, prefix, suffix), want, "{name}");
        }
    }

    #[test]
    fn cuts_and_swaps_keep_the_elements() {
        let t = Tensor::from_slice(
            &[1, 2, 3, 2],
            &(0..12).map(|i| i as f32).collect::<Vec<_>>(),
        );
        let s = swapped(&t);
        assert_eq!(
            (s.shape(), &s.as_slice::<f32>()[..6]),
            (&[1, 3, 2, 2][..], &[0., 1., 6., 7., 2., 3.][..])
        );
        assert_eq!(swapped(&s).as_slice::<f32>(), t.as_slice::<f32>());
        let cut = last(&t.reshaped(&[4, 3]), 1..3);
        assert_eq!(
            (cut.shape(), &cut.as_slice::<f32>()[..4]),
            (&[4, 2][..], &[1., 2., 4., 5.][..])
        );
    }
}
