//! Weight normalisation over the last dimension, as the positional convolution of wav2vec2 stores
//! it (`torch.nn.utils.weight_norm(conv, dim=2)`):
//! `w[:, :, k] = g[0, 0, k] * v[:, :, k] / ||v[:, :, k]||`.

use super::error::{CheckpointError, WeightNormFault as Fault};

/// Endings of the names of (g, v): of the older hook and of the newer parametrization.
const FORMS: [(&str, &str); 2] = [
    (".weight_g", ".weight_v"),
    (
        ".parametrizations.weight.original0",
        ".parametrizations.weight.original1",
    ),
];

/// The keys of a magnitude `g` `[1, 1, K]` and of a direction `v` `[O, I, K]`.
#[derive(Debug)]
pub(super) struct WeightNorm {
    pub(super) g: String,
    pub(super) v: String,
}

impl WeightNorm {
    /// Computes the weight `[O, I, K]` in f32. The norms are summed in f64.
    pub(super) fn compute(&self, g: &[f32], v: &[f32]) -> Result<Vec<f32>, CheckpointError> {
        let mut norms = vec![0f64; g.len()];
        for row in v.chunks_exact(g.len()) {
            row.iter()
                .zip(&mut norms)
                .for_each(|(&x, n)| *n += f64::from(x) * f64::from(x));
        }
        let gains: Vec<f64> = g
            .iter()
            .zip(&norms)
            .map(|(&g, n)| f64::from(g) / n.sqrt())
            .collect();
        Ok(v.chunks_exact(g.len())
            .flat_map(|row| {
                row.iter()
                    .zip(&gains)
                    .map(|(&x, g)| (f64::from(x) * g) as f32)
            })
            .collect())
    }
}

/// Returns all pairs, each under the name of the weight that it makes.
pub(super) fn find<'a, 's>(
    keys: impl Iterator<Item = &'a str>,
    shape: impl Fn(&str) -> Option<&'s [usize]>,
) -> Result<Vec<(String, WeightNorm)>, Vec<Fault>> {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for key in keys {
        for (end_g, end_v) in FORMS {
            let sibling = |end, other| {
                key.strip_suffix(end)
                    .map(|module: &str| (module, format!("{module}{other}")))
            };
            if let Some((_, g)) = sibling(end_v, end_g).filter(|(_, g)| shape(g).is_none()) {
                faults.push(Fault::Half {
                    have: key.to_owned(),
                    lacks: g,
                });
            }
            if let Some((module, v)) = sibling(end_g, end_v) {
                let plain = format!("{module}.weight");
                match pair(key, v, &plain, &shape) {
                    Ok(norm) => found.push((plain, norm)),
                    Err(fault) => faults.push(fault),
                }
            }
        }
    }
    if faults.is_empty() {
        Ok(found)
    } else {
        Err(faults)
    }
}

fn pair<'s>(
    g: &str,
    v: String,
    plain: &str,
    shape: &impl Fn(&str) -> Option<&'s [usize]>,
) -> Result<WeightNorm, Fault> {
    let g = g.to_owned();
    let Some(v_shape) = shape(&v) else {
        return Err(Fault::Half { have: g, lacks: v });
    };
    if shape(plain).is_some() {
        return Err(Fault::Twice {
            key: plain.to_owned(),
            g,
            v,
        });
    }
    let want = [1, 1, v_shape.last().copied().unwrap_or(0)];
    match shape(&g) {
        Some(got) if got == want && v_shape.len() == 3 && want[2] > 0 => Ok(WeightNorm { g, v }),
        got => Err(Fault::Shape {
            want: want.to_vec(),
            got: got.unwrap_or_default().to_vec(),
            g,
            v,
        }),
    }
}
