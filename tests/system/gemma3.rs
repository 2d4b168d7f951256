//! What a Gemma 3 holds of the cache, by the scheduler's account.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype as Stored, tensor::TensorView};
use sconce::Dtype;
use sconce_runner::LoadOptions;
use sconce_scheduler::{Request, Scheduler, SchedulerConfig, SchedulingPolicy};
use sconce_types::{
    Executor as _, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenMasks,
};
use serde_json::json;

use crate::tiny::folder;

const LAYERS: usize = 18;
const HIDDEN: usize = 32;
const VOCAB: usize = 16;
const HEAD_DIM: usize = 256;
const WINDOW: usize = 512;
const PROMPT: usize = 4096;

/// Gemma 3 270M's layers, windows, and heads of K and V; the rest is small, and zeros.
fn cached_as_270m() -> PathBuf {
    folder("gemma3-270m-cache-1", |to| {
        let config = json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": HIDDEN,
            "num_hidden_layers": LAYERS, "num_attention_heads": 1, "num_key_value_heads": 1,
            "head_dim": HEAD_DIM, "max_position_embeddings": 32_768, "sliding_window": WINDOW,
        });
        fs::write(to.join("config.json"), config.to_string()).expect("the folder takes files");
        write_zeros(to);
    })
}

fn write_zeros(to: &Path) {
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("pre_feedforward_layernorm", vec![HIDDEN]),
            ("post_feedforward_layernorm", vec![HIDDEN]),
            ("self_attn.q_norm", vec![HEAD_DIM]),
            ("self_attn.k_norm", vec![HEAD_DIM]),
            ("self_attn.q_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEAD_DIM]),
            ("mlp.gate_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.up_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, HIDDEN]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let zeros = vec![0; 2 * HEAD_DIM * HIDDEN];
    let views = shapes.into_iter().map(|(name, shape)| {
        let bytes = &zeros[..2 * shape.iter().product::<usize>()];
        let view = TensorView::new(Stored::BF16, shape, bytes).expect("as many bytes as elements");
        (format!("{name}.weight"), view)
    });
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors"))
        .expect("the folder takes files");
}

/// A block holds K and V of 16 tokens in as many layers as a cache group has, of which 270M
/// has three without a window.
#[test]
fn a_long_sequence_holds_what_its_layers_windows_need() {
    let options = LoadOptions {
        dtype: Some(Dtype::Bf16),
        max_model_len: Some(PROMPT + 64),
        max_num_seqs: 2,
        max_num_batched_tokens: Some(512),
        kv_cache_memory_bytes: Some(64 << 20),
        threads: Some(2),
        ..LoadOptions::new(cached_as_270m())
    };
    let loaded = sconce_runner::load_on_cpu(&options, &mut |_, _, _| {}).expect("it loads");
    let (mut runner, info) = (loaded.runner, loaded.info);
    let block_bytes = info.kv_cache_bytes / info.num_blocks;
    let config = SchedulerConfig {
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: info.max_num_batched_tokens,
        max_model_len: info.max_model_len,
        num_blocks: info.num_blocks,
        groups: info.groups,
        depth: 1,
        max_queued: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    let params = SamplingParams { max_tokens: 40, temperature: 0.0, ..SamplingParams::default() };
    let id = RequestId(1);
    scheduler.add(Request::new(id, vec![3; PROMPT], Arc::new(params))).expect("it is taken");
    let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
    let mut outputs = Vec::new();
    let token = 2 * HEAD_DIM * 2;
    let (mut most, mut generated) = (0.0_f64, 0);
    loop {
        scheduler.schedule(&mut batch);
        if batch.is_empty() {
            break;
        }
        runner.launch(&batch).expect("the batch is launched");
        runner.sample(&TokenMasks::default()).expect("the batch is sampled");
        runner.wait(&mut result).expect("the batch is computed");
        scheduler.commit(&batch, &mut result, &mut outputs);
        generated += outputs.drain(..).filter(|output| output.token.is_some()).count();
        if generated == 0 || scheduler.num_blocks(id) == 0 {
            continue;
        }
        let held = scheduler.num_blocks(id) * block_bytes;
        assert_eq!(scheduler.stats().used_blocks, scheduler.num_blocks(id));
        let needed = (LAYERS / 6 * (PROMPT + generated - 1) + LAYERS / 6 * 5 * WINDOW) * token;
        if generated == 1 {
            println!("{:.2} MiB held, {:.2} needed", mib(held), mib(needed));
            let without = LAYERS * PROMPT * token;
            assert!(held * 3 < without, "{:.1} MiB without windows", mib(without));
        }
        most = most.max(held as f64 / needed as f64);
    }
    assert_eq!(generated, 40);
    assert!(most <= 1.1, "{most} times what the windows need");
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
