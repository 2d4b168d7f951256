//! A model small enough for portable code, and for a GPU that a CPU imitates.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Its dimensions.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) head_dim: usize,
}

/// The bytes.
pub(crate) const VOCAB: usize = 256;

/// The folder of that name, filled by `make` if it is not there; test processes share it.
pub(crate) fn folder(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = parent.join(format!("made-{name}"));
    if !dir.is_dir() {
        let half = tempfile::tempdir_in(parent).expect("the target folder takes folders");
        make(half.path());
        // Another process may have been first, with the same.
        if let Err(error) = fs::rename(half.path(), &dir) {
            assert!(dir.is_dir(), "{error}");
        }
    }
    dir
}

/// Random weights, always the same: two layers of two heads that share one of K and V, a
/// vocabulary of bytes.
pub(crate) fn tiny() -> PathBuf {
    tiny_with(64)
}

/// The same with heads of another size.
pub(crate) fn tiny_with(head_dim: usize) -> PathBuf {
    made(Shape { hidden: 128, intermediate: 256, head_dim })
}

/// The same with other dimensions.
pub(crate) fn made(Shape { hidden, intermediate, head_dim }: Shape) -> PathBuf {
    folder(&format!("tiny-{hidden}-{intermediate}-{head_dim}-1"), |to| {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head_dim,
            "hidden_act": "silu", "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false,
            "mlp_bias": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
        });
        let write = |name: &str, text: String| {
            fs::write(to.join(name), text).expect("the folder takes files");
        };
        write("config.json", config.to_string());
        write("tokenizer.json", byte_tokenizer().to_string());
        let mut rng = StdRng::seed_from_u64(5);
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        // Uniform in [-scale, scale], in bf16: the upper half of an f32.
        let mut matrix = |name: String, rows: usize, cols: usize, scale: f32| {
            let bytes = (0..rows * cols).flat_map(|_| {
                let x: f32 = rng.random_range(-scale..scale);
                u16::try_from(x.to_bits() >> 16).expect("half of its bits").to_le_bytes()
            });
            tensors.push((name, vec![rows, cols], bytes.collect()));
        };
        matrix("model.embed_tokens.weight".to_owned(), VOCAB, hidden, 1.0);
        // Logits far enough apart that rounding seldom decides.
        let scale = 0.5 * (128.0 / hidden as f32).sqrt();
        matrix("lm_head.weight".to_owned(), VOCAB, hidden, scale);
        for layer in 0..2 {
            let scale = (3.0 / hidden as f32).sqrt();
            for (name, rows, cols) in [
                ("self_attn.q_proj", 2 * head_dim, hidden),
                ("self_attn.k_proj", head_dim, hidden),
                ("self_attn.v_proj", head_dim, hidden),
                ("self_attn.o_proj", hidden, 2 * head_dim),
                ("mlp.gate_proj", intermediate, hidden),
                ("mlp.up_proj", intermediate, hidden),
                ("mlp.down_proj", hidden, intermediate),
            ] {
                matrix(format!("model.layers.{layer}.{name}.weight"), rows, cols, scale);
            }
        }
        const ONE: [u8; 2] = 0x3f80_u16.to_le_bytes();
        let mut norm = |name: String| tensors.push((name, vec![hidden], ONE.repeat(hidden)));
        norm("model.norm.weight".to_owned());
        for layer in 0..2 {
            for name in ["input_layernorm", "post_attention_layernorm"] {
                norm(format!("model.layers.{layer}.{name}.weight"));
            }
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::BF16, shape.clone(), bytes);
            (name.as_str(), view.expect("as many bytes as elements"))
        });
        safetensors::serialize_to_file(views, None, &to.join("model.safetensors"))
            .expect("the folder takes files");
    })
}

/// A tokenizer.json whose tokens are the bytes, written as GPT-2 writes them.
fn byte_tokenizer() -> Value {
    let is_plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let vocab: HashMap<String, u32> = (0..256)
        .map(|byte| {
            let code = if is_plain(byte) { Some(byte) } else { others.next() };
            let letter = code.and_then(char::from_u32).expect("a character");
            (letter.to_string(), byte)
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}
