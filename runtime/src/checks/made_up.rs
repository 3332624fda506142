//! Makes up tensors for measurements and comparisons. The same seed gives the same numbers.

use engines::components::dit;
use engines::contract::{DType, Port};
use engines::dim::Bindings;
use engines::memory::{Class, Memory, MemoryError};
use engines::recipe::Recipe;
use engines::tensor::Tensor;
use half::{bf16, f16};

/// Numbers of one sequence. The count is prime, so that the rows of a matrix differ.
const COUNT: usize = 65_521;

/// Returns numbers of variance 1, uniformly distributed, from a fixed sequence.
pub(crate) fn numbers(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    // Knuth's MMIX generator; the upper 24 bits fill a float's mantissa.
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt()
    };
    (0..COUNT).map(|_| next()).collect()
}

/// Returns a tensor on the host; `value` gives each element by its index. Elements of other types
/// than floats are zero.
pub(crate) fn filled(dtype: DType, shape: &[usize], value: impl Fn(usize) -> f32) -> Tensor {
    let mut t = Tensor::zeros(dtype, shape);
    match dtype {
        DType::F32 => fill::<f32>(&mut t, value),
        DType::BF16 => fill::<bf16>(&mut t, |i| bf16::from_f32(value(i))),
        DType::F16 => fill::<f16>(&mut t, |i| f16::from_f32(value(i))),
        DType::I64 | DType::U8 | DType::Bool => {}
    }
    t
}

fn fill<E: engines::tensor::Element>(t: &mut Tensor, value: impl Fn(usize) -> E) {
    let elements = t.as_mut_slice::<E>().iter_mut().enumerate();
    elements.for_each(|(i, x)| *x = value(i));
}

/// Returns a tensor of numbers of variance 1 on the host.
pub(crate) fn tensor(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let numbers = numbers(seed);
    filled(dtype, shape, |i| numbers[i % numbers.len()])
}

/// Returns a tensor of numbers of variance 1 in a device's memory.
///
/// # Errors
/// The device has too little memory.
pub(crate) fn on_device(
    memory: &dyn Memory,
    class: Class,
    dtype: DType,
    shape: &[usize],
    seed: u64,
) -> Result<Tensor, MemoryError> {
    tensor(dtype, shape, seed).copied_to(memory, class)
}

/// Returns a tensor for a port: floats of variance 1, or whole numbers that the graph accepts. A
/// block is written at the start of the ring, and attention sees `keys` keys.
pub(crate) fn for_port(
    port: &Port,
    recipe: Recipe,
    sizes: &Bindings,
    keys: i64,
    seed: u64,
) -> Tensor {
    let dims = port.dims();
    let size = |d: &engines::dim::Dim| d.eval(sizes).and_then(|n| usize::try_from(n).ok());
    let shape: Vec<usize> = dims.iter().map(|d| size(d).unwrap_or(1)).collect();
    let dtype = port.dtype(recipe);
    if dtype != DType::I64 {
        return tensor(dtype, &shape, seed);
    }
    let mut t = Tensor::zeros(dtype, &shape);
    let value = match port.name {
        n if n == dit::KV_LEN.name => keys,
        n if n == dit::SLOT.name => 0,
        // A token id that every vocabulary has.
        _ => 3,
    };
    t.as_mut_slice::<i64>().fill(value);
    t
}

#[cfg(test)]
mod tests {
    use engines::components::symbols;

    use super::*;

    #[test]
    fn ports_of_every_recipe_are_filled_with_the_same_numbers() {
        let sizes = symbols::bindings([
            (symbols::LANES, 2),
            (symbols::TOKEN_ROWS, 4),
            (symbols::TOKEN_COLUMNS, 4),
            (symbols::BLOCK_FRAMES, 3),
            (symbols::MODEL_WIDTH, 8),
        ]);
        let made = |recipe| for_port(&dit::HIDDEN, recipe, &sizes, 136, 1);
        let (single, half) = (made(Recipe::Fp32), made(Recipe::Bf16));
        assert_eq!((single.dtype(), half.dtype()), (DType::F32, DType::BF16));
        assert_eq!(single.shape(), half.shape());
        let values = single.as_slice::<f32>();
        let power = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((power - 1.0).abs() < 0.2, "{power} of {}", values.len());
        let rounded = values.iter().map(|&v| bf16::from_f32(v));
        assert!(rounded.eq(half.as_slice::<bf16>().iter().copied()));
        let keys = for_port(&dit::KV_LEN, Recipe::Bf16, &sizes, 136, 1);
        assert_eq!(keys.as_slice::<i64>(), [136, 136]);
    }
}
