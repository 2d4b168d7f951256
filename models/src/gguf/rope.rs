//! How a GGUF file says that RoPE is scaled.

use std::fs::File;

use candle_core::{Device, quantized::gguf_file::Content};
use serde_json::{Value, json};

use super::{
    GgufError,
    metadata::{Metadata, refuse},
};
use crate::{RopeScaling, rope::frequencies};

/// A tensor `[head_dim / 2]` that divides RoPE's frequencies.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// `rope_scaling` of config.json; null if RoPE is not scaled.
pub(super) fn scaling(
    metadata: &Metadata<'_>,
    content: &Content,
    file: &mut File,
    head_dim: usize,
) -> Result<Value, GgufError> {
    if content.tensor_infos.contains_key(DIVISORS) {
        return llama3(metadata, content, file, head_dim);
    }
    // As llama.cpp: without a type a factor means linear scaling, under the older key too,
    // and a factor of 0 means no scaling.
    let older = metadata.float_or(&metadata.key("rope.scale_linear"), 0.0)?;
    let factor = metadata.float_or(&metadata.key("rope.scaling.factor"), older)?;
    match metadata.optional_string(&metadata.key("rope.scaling.type"))? {
        Some("none") => Ok(Value::Null),
        None | Some("linear") if factor == 0.0 => Ok(Value::Null),
        None | Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor })),
        Some(other) => {
            let accepted = "\"none\" or \"linear\"";
            Err(refuse(&metadata.key("rope.scaling.type"), &other, accepted))
        }
    }
}

/// llama.cpp stores what Llama 3.1's scaling makes of every frequency, not its
/// parameters. All of Meta's models differ in the factor alone, which is the
/// largest divisor, so the rest can be checked.
fn llama3(
    metadata: &Metadata<'_>,
    content: &Content,
    file: &mut File,
    head_dim: usize,
) -> Result<Value, GgufError> {
    let fail = |reason: String| GgufError::Tensor { name: DIVISORS.to_owned(), reason };
    let shape = content.tensor_infos[DIVISORS].shape.dims();
    if shape != [head_dim / 2] {
        return Err(fail(format!("is {shape:?}, but must be [{}]", head_dim / 2)));
    }
    let divisors = content
        .tensor(file, DIVISORS, &Device::Cpu)
        .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>())
        .map_err(|error| fail(error.to_string()))?;
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let (low_freq_factor, high_freq_factor, original_max_position_embeddings) = (1.0, 4.0, 8192);
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    };
    let theta = metadata.float_or(&metadata.key("rope.freq_base"), 10_000.0)?;
    let expected = frequencies(head_dim, theta, RopeScaling::Default)
        .into_iter()
        .zip(frequencies(head_dim, theta, scaling))
        .map(|(base, scaled)| base / scaled);
    let fits = |(divisor, expected): (&f32, f64)| {
        (f64::from(*divisor) - expected).abs() <= 1e-3 * expected.abs()
    };
    if !divisors.iter().zip(expected).all(fits) {
        return Err(fail("is not the scaling of Llama 3.1".to_owned()));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor,
        "original_max_position_embeddings": original_max_position_embeddings,
    }))
}
