//! Models for a GPU that a CPU imitates. Each is made once, in a folder that the test
//! processes share.

use std::{fs, path::PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

pub(super) use crate::tiny::{tiny, tiny_with};
use crate::{
    model,
    tiny::{Shape, folder, made},
};

/// Layers of the default model that are kept.
const NUM_LAYERS: usize = 2;

/// The tiny model with two weights, Q, K and V's and the logits', that are large enough for their
/// products' forms to be tried.
pub(super) fn wide() -> PathBuf {
    made(Shape { hidden: 8192, intermediate: 32, head_dim: 64 })
}

/// The default model without all but its first layers.
pub(super) fn cut() -> PathBuf {
    folder("cut-1", |to| {
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(model::dir().join(name), to.join(name)).expect("a file of the model");
        }
        let config = fs::read(model::dir().join("config.json")).expect("a config");
        let mut config: Value = serde_json::from_slice(&config).expect("JSON");
        config["num_hidden_layers"] = NUM_LAYERS.into();
        fs::write(to.join("config.json"), config.to_string()).expect("the folder takes files");
        let bytes = fs::read(model::dir().join("model.safetensors")).expect("weights");
        let all = SafeTensors::deserialize(&bytes).expect("a checkpoint");
        let kept = all.tensors().into_iter().filter(|(name, _)| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            layer.is_none_or(|(layer, _)| layer.parse::<usize>().is_ok_and(|n| n < NUM_LAYERS))
        });
        safetensors::serialize_to_file(kept, None, &to.join("model.safetensors"))
            .expect("the folder takes files");
    })
}
