//! The matrices of one module of a LoRA.

use crate::checkpoint::error::LoraFault as Fault;
use crate::checkpoint::stored::StoredTensors;

/// Keys of one module.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    pub(super) a: Option<String>,
    pub(super) b: Option<String>,
    pub(super) alpha: Option<String>,
}

/// The two matrices of one module.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// Key of A, `[rank, in]`.
    pub(super) a: String,
    /// Key of B, `[out, rank]`.
    pub(super) b: String,
    pub(super) rank: usize,
    /// Factor of `B @ A`, without the strength of the file.
    pub(super) factor: f64,
}

/// Returns the pair of a module, without its factor, or its fault.
pub(super) fn pair(tensors: &StoredTensors, module: &str, keys: &Keys) -> Result<Module, Fault> {
    let half = |has, lacks| Fault::Half {
        module: module.to_owned(),
        has,
        lacks,
    };
    let (a, b) = match (&keys.a, &keys.b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => return Err(half("lora_A (lora_down)", "lora_B (lora_up)")),
        (None, Some(_)) => return Err(half("lora_B (lora_up)", "lora_A (lora_down)")),
        (None, None) => return Err(half("alpha", "lora_A and lora_B")),
    };
    for key in [a, b] {
        if shape(tensors, key).len() != 2 {
            return Err(Fault::Rank2 {
                key: key.clone(),
                got: shape(tensors, key).to_vec(),
            });
        }
    }
    match (shape(tensors, a)[0], shape(tensors, b)[1]) {
        (a, b) if a != b || a == 0 => Err(Fault::RankOfPair {
            module: module.to_owned(),
            a,
            b,
        }),
        (rank, _) => Ok(Module {
            a: a.clone(),
            b: b.clone(),
            rank,
            factor: 0.0,
        }),
    }
}

/// Returns the shape of a tensor; none where the tensor is missing.
pub(super) fn shape<'c>(tensors: &'c StoredTensors, key: &str) -> &'c [usize] {
    tensors.info(key).map_or(&[], |i| &i.shape)
}
