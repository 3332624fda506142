//! Weight streaming, which the safe binding lacks: three calls on the engine itself, of the
//! enterprise library. It serves graphs with their weights inside, the text encoder above all.
//! Weights of a transformer layer are inputs of its graph. They stream through our own slots, and
//! leave an engine nothing to stream.

use super::TensorRtError;
use std::pin::Pin;
use std::ptr::NonNull;
use trtx::CudaEngine;
use trtx::trtx_sys::nvinfer1::ICudaEngine;

/// Sets how many bytes of an engine's weights may be on the device; the rest stream from the host.
/// Before its first context: the budget cannot change while there is one. Returns the budget that
/// was set.
///
/// # Errors
/// The library refuses.
#[expect(unsafe_code, reason = "calls that the binding does not wrap")]
pub(super) fn set_budget(
    component: &str,
    engine: &mut CudaEngine<'static>,
    budget: u64,
) -> Result<u64, TensorRtError> {
    let refused = |reason: &str| TensorRtError::Run {
        component: component.to_owned(),
        reason: format!("weight streaming: {reason}"),
    };
    let address = address(engine).ok_or_else(|| refused("the binding hides the engine"))?;
    // SAFETY: `engine` owns the object at the address and is borrowed exclusively for this
    // function.
    let raw = unsafe { Pin::new_unchecked(&mut *address.as_ptr()) };
    let all = u64::try_from(raw.getStreamableWeightsSize()).unwrap_or(0);
    if all == 0 {
        return Ok(0);
    }
    let budget = budget.min(all);
    let bytes = i64::try_from(budget).unwrap_or(i64::MAX);
    if raw.setWeightStreamingBudgetV2(bytes) {
        Ok(budget)
    } else {
        Err(refused(&format!(
            "a budget of {budget} of {all} bytes was refused"
        )))
    }
}

/// Returns the address of the engine's object. Its type keeps the pointer to itself and prints it.
fn address(engine: &CudaEngine<'static>) -> Option<NonNull<ICudaEngine>> {
    let text = format!("{engine:?}");
    let digits = text.split('"').nth(1)?;
    let address = usize::from_str_radix(digits, 16).ok()?;
    NonNull::new(std::ptr::with_exposed_provenance_mut(address))
}
