//! Weights that a checkpoint holds in e4m3, and their scales.

use candle_core::{DType, Tensor};
use sconce_kernels::{Fp8Weight, KernelError, mapped::MappedSafetensors};

use crate::config::BLOCK;

/// The name of a weight's scales, if it is in e4m3: what its numbers are multiplied with, though
/// some call it the inverse.
pub(super) fn scale_of(files: &MappedSafetensors, weight: &str) -> Option<String> {
    let stem = weight.strip_suffix(".weight")?;
    if files.describe(weight)?.0 != Some(DType::F8E4M3) {
        return None;
    }
    let name = |end: &str| format!("{stem}.{end}");
    let inverse = name("weight_scale_inv");
    Some(if files.describe(&inverse).is_some() { inverse } else { name("weight_scale") })
}

/// Tensors that may stand beside a weight in e4m3, and that nothing here needs: how its input,
/// or a cache of what it gives, was to be quantized.
pub(super) fn beside(weight: &str) -> impl Iterator<Item = String> + '_ {
    let stem = weight.strip_suffix(".weight").unwrap_or(weight);
    let ends = ["input_scale", "output_scale", "k_scale", "v_scale"];
    ends.into_iter().map(move |end| format!("{stem}.{end}"))
}

/// Rows and columns of the blocks that have one of these scales, for a weight `[n, k]`.
pub(super) fn block(scales: &[usize], (n, k): (usize, usize)) -> Option<(usize, usize)> {
    let of_blocks = [n.div_ceil(BLOCK), k.div_ceil(BLOCK)];
    match scales {
        [] | [1] | [1, 1] => Some((n, k)),
        [rows] | [rows, 1] if *rows == n => Some((1, k)),
        scales if *scales == of_blocks => Some((BLOCK, BLOCK.min(k))),
        _ => None,
    }
}

/// What shapes scales may have, in words.
pub(super) fn shapes((n, k): (usize, usize)) -> String {
    let blocks = [n.div_ceil(BLOCK), k.div_ceil(BLOCK)];
    format!("[], [1], [{n}, 1] or {blocks:?}")
}

/// A weight of a tensor and its scales, which were checked.
pub(super) fn weight(weight: &Tensor, scales: &Tensor) -> Result<Fp8Weight, KernelError> {
    let sizes = weight.dims2()?;
    let block = block(scales.dims(), sizes).unwrap_or(sizes);
    let scales: Vec<f32> = scales.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Fp8Weight::of_blocks(weight, &scales, block)
}
