//! Checkpoints whose weights are in fp8 already: which ways of storing them are read.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Fields, clip, refuse};
use crate::{ModelError, json};

/// What to tell of a checkpoint that is quantized in another way.
const READ: &str = "absent, or one of fp8's (compressed-tensors with format float-quantized, fp8 \
                    in e4m3, modelopt with FP8): other quantized checkpoints are not read, only \
                    f32, bf16 and f16 weights (--quantization int8 and fp8 quantize those while \
                    loading)";

/// Rows and columns of a block of a weight that has a scale, where blocks have.
pub(crate) const BLOCK: usize = sconce_kernels::fp8::RUN;

/// That weights are in e4m3, each with a scale, or one for each output, or one for each block of
/// [`BLOCK`] x [`BLOCK`]: which, a weight's own scales tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredFp8;

/// How weights are stored, by config.json.
///
/// # Errors
/// A way that is not read, by name.
pub(crate) fn stored_fp8(config: &Fields<'_>) -> Result<Option<StoredFp8>, ModelError> {
    let field = "compression_config";
    if let Some(quantization) = config.given(field) {
        let method = quantization["quant_method"].as_str().unwrap_or("present");
        return Err(refuse(field, &clip(method), READ.to_owned()));
    }
    let field = "quantization_config";
    let Some(quantization) = config.given(field) else { return Ok(None) };
    let Some(map) = quantization.as_object() else {
        return Err(refuse(field, &clip(&quantization.to_string()), READ.to_owned()));
    };
    let own = Fields::new("quantization_config.", map);
    match own.nullable_string("quant_method")? {
        Some("compressed-tensors") => compressed_tensors(&own)?,
        Some("fp8") => plain_fp8(&own)?,
        Some("modelopt") => modelopt(&own)?,
        method => return Err(refuse(field, &clip(method.unwrap_or("present")), READ.to_owned())),
    }
    Ok(Some(StoredFp8))
}

/// How weights are stored, by the file in which ModelOpt says it beside config.json.
///
/// # Errors
/// A file that cannot be read, a way that is not.
pub(crate) fn beside_config(dir: &Path) -> Result<Option<StoredFp8>, ModelError> {
    let path = dir.join("hf_quant_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let file: Map<String, Value> = json::read(&path)?;
    let file = Fields::new("hf_quant_config.json: ", &file);
    let Some(own) = file.object("quantization", "hf_quant_config.json: quantization.")? else {
        return Ok(None);
    };
    if own.given("quant_algo").is_none() {
        return Ok(None);
    }
    modelopt(&own).map(|()| Some(StoredFp8))
}

fn compressed_tensors(own: &Fields<'_>) -> Result<(), ModelError> {
    one_of(own, "format", &["float-quantized"])?;
    one_of(own, "quantization_status", &["compressed"])?;
    if let Some(sparsity) = own.object("sparsity_config", "quantization_config.sparsity_config.")? {
        one_of(&sparsity, "format", &["dense"])?;
    }
    let groups = own.object("config_groups", "quantization_config.config_groups.")?;
    let groups = groups.map(|groups| groups.entries().clone()).unwrap_or_default();
    if groups.is_empty() {
        let accepted = "groups of weights in e4m3".to_owned();
        return Err(refuse(own.path("config_groups"), &"absent", accepted));
    }
    for group in groups.values().filter_map(Value::as_object) {
        let group = Fields::new("quantization_config.config_groups.*.", group);
        let of = |field, prefix| group.object(field, prefix);
        let weights = of("weights", "quantization_config.config_groups.*.weights.")?;
        let Some(weights) = weights else {
            let accepted = "weights in e4m3".to_owned();
            return Err(refuse(group.path("weights"), &"absent", accepted));
        };
        eight_bit_floats(&weights)?;
        one_of(&weights, "strategy", &["tensor", "channel", "block"])?;
        only_block(&weights, "block_structure")?;
        if !weights.flag("symmetric", true)? {
            return Err(refuse(weights.path("symmetric"), &"false", "true".to_owned()));
        }
        // However inputs are quantized, here it is done row by row, or not at all.
        let inputs = "quantization_config.config_groups.*.input_activations.";
        if let Some(inputs) = of("input_activations", inputs)? {
            eight_bit_floats(&inputs)?;
        }
    }
    Ok(())
}

fn eight_bit_floats(own: &Fields<'_>) -> Result<(), ModelError> {
    let bits = own.size("num_bits", 8, 64)?;
    if bits != 8 {
        return Err(refuse(own.path("num_bits"), &bits, "8".to_owned()));
    }
    match own.nullable_string("type")? {
        Some("float") => Ok(()),
        other => {
            let other = clip(other.unwrap_or("absent"));
            Err(refuse(own.path("type"), &other, "float".to_owned()))
        }
    }
}

fn plain_fp8(own: &Fields<'_>) -> Result<(), ModelError> {
    one_of(own, "fmt", &["e4m3"])?;
    one_of(own, "activation_scheme", &["dynamic", "static"])?;
    only_block(own, "weight_block_size")
}

fn modelopt(own: &Fields<'_>) -> Result<(), ModelError> {
    match own.nullable_string("quant_algo")? {
        Some("FP8") => Ok(()),
        other => {
            let other = clip(other.unwrap_or("absent"));
            Err(refuse(own.path("quant_algo"), &other, "FP8".to_owned()))
        }
    }
}

/// A field that is absent or one of these.
fn one_of(own: &Fields<'_>, field: &str, accepted: &[&str]) -> Result<(), ModelError> {
    match own.nullable_string(field)? {
        Some(given) if !accepted.contains(&given) => {
            Err(refuse(own.path(field), &clip(given), accepted.join(" or ")))
        }
        _ => Ok(()),
    }
}

/// Blocks that are absent or of the one size that is read.
fn only_block(own: &Fields<'_>, field: &str) -> Result<(), ModelError> {
    let block = own.counts(field, super::MAX_SIZE)?;
    if block.is_empty() || block == [BLOCK, BLOCK] {
        return Ok(());
    }
    Err(refuse(own.path(field), &format!("{block:?}"), format!("[{BLOCK}, {BLOCK}]")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(quantization: Value) -> Result<bool, String> {
        let config = json!({ "quantization_config": quantization });
        let fields = Fields::new("", config.as_object().expect("an object"));
        stored_fp8(&fields).map(|stored| stored.is_some()).map_err(|error| error.to_string())
    }

    fn group(weights: Value) -> Value {
        let groups = json!({ "group_0": {
            "targets": ["Linear"], "weights": weights,
            "input_activations": { "num_bits": 8, "type": "float", "dynamic": true },
        }});
        json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "quantization_status": "compressed", "ignore": ["lm_head"], "config_groups": groups,
        })
    }

    #[test]
    fn the_layouts_of_fp8_are_read() {
        for strategy in ["tensor", "channel"] {
            let weights = json!({ "num_bits": 8, "type": "float", "strategy": strategy });
            assert_eq!(read(group(weights)), Ok(true));
        }
        let block = json!({
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128],
        });
        assert_eq!(read(group(block)), Ok(true));
        let plain = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
        });
        assert_eq!(read(plain), Ok(true));
        assert_eq!(read(json!({ "quant_method": "fp8" })), Ok(true));
        assert_eq!(read(json!({ "quant_method": "modelopt", "quant_algo": "FP8" })), Ok(true));
        assert_eq!(read(Value::Null), Ok(false));
    }

    #[test]
    fn what_is_stored_otherwise_is_named() {
        let mut packed = group(json!({ "num_bits": 8, "type": "float", "strategy": "channel" }));
        packed["format"] = json!("pack-quantized");
        let weights = |bits, kind: &str| json!({ "num_bits": bits, "type": kind });
        for (quantization, word) in [
            (packed, "format is pack-quantized"),
            (group(weights(4, "float")), "num_bits is 4"),
            (group(weights(8, "int")), "type is int"),
            (json!({ "quant_method": "compressed-tensors" }), "config_groups is absent"),
            (
                json!({ "quant_method": "fp8", "weight_block_size": [64, 128] }),
                "weight_block_size is [64, 128], but must be [128, 128]",
            ),
            (json!({ "quant_method": "fp8", "fmt": "e5m2" }), "fmt is e5m2"),
            (
                json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" }),
                "quant_algo is NVFP4, but must be FP8",
            ),
            (json!({ "quant_method": "awq" }), "quantization_config is awq"),
            (json!("fp8"), "quantization_config is \"fp8\""),
        ] {
            let error = read(quantization).expect_err(word);
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_file_of_modelopt_says_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(beside_config(dir.path()).expect("no file"), None);
        for (algorithm, is_read) in [("FP8", true), ("W4A8_AWQ", false)] {
            let file = json!({ "quantization": { "quant_algo": algorithm } });
            std::fs::write(dir.path().join("hf_quant_config.json"), file.to_string())
                .expect("a file");
            let read = beside_config(dir.path());
            match read {
                Ok(stored) => assert!(is_read && stored.is_some()),
                Err(error) => {
                    let told = error.to_string();
                    assert!(!is_read && told.contains("quant_algo is W4A8_AWQ"), "{told}");
                }
            }
        }
    }
}
