//! Every model family against transformers: for each folder of `tests/reference/families`,
//! a small random checkpoint, logits and greedy tokens are those that transformers computed
//! in f32, however the requests are served.
//!
//! The CPU computes in f32, and the CUDA kernels, run by the shim, in f16. Both must give the
//! same tokens, all of them: `families.py` chose prompts after which the best token is ahead
//! of the next by [`LEAST_MARGIN`] at least, far more than f16's error.

use std::{path::PathBuf, sync::Arc};

use sconce::Dtype;
use sconce_cuda_shim::ShimDriver;
use sconce_kernels::{Backend, StepLimits, cuda::Cuda};
use sconce_runner::{LoadError, LoadOptions, LoadedModel, ModelRunner};
use sconce_scheduler::{
    PrefixKey, Request, Scheduler, SchedulerConfig, SchedulerStats, SchedulingPolicy,
};
use sconce_types::{
    CacheGroups, Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId,
    TokenMasks,
};
use serde_json::Value;

use crate::{golden::ids, model};

const LEAST_MARGIN: f64 = 0.05;
const NEW_TOKENS: usize = 64;
const MAX_MODEL_LEN: usize = 160;

/// A folder.
struct Golden {
    name: String,
    dir: PathBuf,
    cases: Vec<Case>,
}

struct Case {
    prompt: Vec<TokenId>,
    /// The greedy continuation.
    tokens: Vec<TokenId>,
    /// After every token of the prompt, `[prompt.len(), vocab_size]`.
    logits: Vec<f32>,
}

fn families() -> Vec<Golden> {
    let mut names: Vec<String> = std::fs::read_dir(model::reference("families"))
        .expect("the families are committed")
        .map(|entry| entry.expect("the folder is readable").file_name())
        .map(|name| name.into_string().expect("names are UTF-8"))
        .collect();
    names.sort();
    assert!(names.len() >= 3, "only {names:?} are there");
    names.into_iter().map(golden).collect()
}

fn golden(name: String) -> Golden {
    let dir = model::reference("families").join(&name);
    let bytes = std::fs::read(dir.join("logits.safetensors")).expect("it is committed");
    let logits = safetensors::SafeTensors::deserialize(&bytes).expect("it is whole");
    let case = |(index, case): (usize, &Value)| {
        let margins = case["margins"].as_array().expect("a margin a token");
        for margin in margins {
            let margin = margin.as_f64().expect("a number");
            assert!(margin >= LEAST_MARGIN, "{name}: a margin of {margin}");
        }
        let logits = logits.tensor(&index.to_string()).expect("logits of every prompt");
        Case {
            prompt: ids(&case["prompt"]),
            tokens: ids(&case["tokens"]),
            logits: bytemuck::pod_collect_to_vec(logits.data()),
        }
    };
    let json = model::reference_json(&format!("families/{name}/golden.json"));
    let cases: Vec<Case> =
        json.as_array().expect("a list of cases").iter().enumerate().map(case).collect();
    assert!(cases.len() == ALL.len(), "{name}: {} cases", cases.len());
    assert!(cases.iter().all(|case| case.tokens.len() == NEW_TOKENS), "{name}: too few tokens");
    let longest = cases.iter().map(|case| case.prompt.len()).max().unwrap_or(0);
    assert!(longest + NEW_TOKENS <= MAX_MODEL_LEN, "{name}: {longest} tokens");
    Golden { name, dir, cases }
}

/// A family's model on a backend.
struct Served<'a, B: Backend> {
    golden: &'a Golden,
    runner: ModelRunner<B>,
    groups: CacheGroups,
}

/// How requests are served.
struct Way {
    name: &'static str,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    /// Blocks beside those that the longest request takes alone.
    spare_blocks: usize,
    /// Cases that come together; the next ones when those have ended.
    rounds: &'static [&'static [usize]],
    has_prefix_cache: bool,
}

const ALL: &[usize] = &[0, 1, 2, 3];
const ALONE: Way = Way {
    name: "alone",
    max_num_seqs: 1,
    max_num_batched_tokens: MAX_MODEL_LEN,
    spare_blocks: 0,
    rounds: &[ALL],
    has_prefix_cache: false,
};
const BATCHED: Way = Way { name: "batched", max_num_seqs: ALL.len(), spare_blocks: 64, ..ALONE };
const CHUNKED: Way = Way { name: "chunked", max_num_batched_tokens: 19, ..BATCHED };
const PREEMPTED: Way = Way { name: "preempted", spare_blocks: 2, ..CHUNKED };
const CACHED: Way = Way { name: "cached", rounds: &[ALL, ALL], has_prefix_cache: true, ..CHUNKED };
/// All of it in as few steps as can be: one request alone, then again, before the others take
/// the blocks that it left.
const CROWDED: Way = Way {
    name: "crowded",
    spare_blocks: 4,
    rounds: &[&[2], &[2, 0, 1, 3]],
    has_prefix_cache: true,
    ..CHUNKED
};

impl<'a, B: Backend + 'static> Served<'a, B> {
    fn new(golden: &'a Golden, loaded: LoadedModel<ModelRunner<B>>) -> Self {
        Self { golden, runner: loaded.runner, groups: loaded.info.groups }
    }

    /// The root of the mean square error of the prompts' logits, relative to that of
    /// transformers'.
    fn error_of_logits(&mut self) -> f64 {
        let (mut difference, mut norm) = (0.0, 0.0);
        for case in &self.golden.cases {
            let logits = self.runner.score(&case.prompt).expect("the model computes");
            assert_eq!(logits.len(), case.logits.len(), "{}", self.golden.name);
            for (&got, &want) in logits.iter().zip(&case.logits) {
                difference += (f64::from(got) - f64::from(want)).powi(2);
                norm += f64::from(want).powi(2);
            }
        }
        f64::sqrt(difference / norm)
    }

    /// Serves cases, and holds their tokens against transformers'.
    fn serve(&mut self, way: &Way) -> SchedulerStats {
        let Self { golden: Golden { name, cases, .. }, runner, groups } = self;
        let &Way { max_num_seqs, max_num_batched_tokens, .. } = way;
        let num_blocks = groups.peak_blocks(MAX_MODEL_LEN, max_num_batched_tokens, 1);
        let config = SchedulerConfig {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: MAX_MODEL_LEN,
            num_blocks: num_blocks + way.spare_blocks,
            groups: *groups,
            depth: 1,
            max_queued: cases.len(),
            prefix_cache: way.has_prefix_cache.then_some(PrefixKey([5, 6])),
            policy: SchedulingPolicy::Fair,
        };
        let mut scheduler = Scheduler::new(config).expect("the limits are valid");
        let params = Arc::new(SamplingParams {
            max_tokens: u32::try_from(NEW_TOKENS).expect("few"),
            temperature: 0.0,
            ..SamplingParams::default()
        });
        let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
        let mut outputs = Vec::new();
        for round in way.rounds {
            for &index in *round {
                let id = RequestId(index as u64);
                let request = Request::new(id, cases[index].prompt.clone(), params.clone());
                scheduler.add(request).expect("the request is taken");
            }
            let mut tokens = vec![Vec::new(); cases.len()];
            loop {
                scheduler.schedule(&mut batch);
                if batch.is_empty() {
                    break;
                }
                runner.launch(&batch).expect("the batch is launched");
                runner.sample(&TokenMasks::default()).expect("the batch is sampled");
                runner.wait(&mut result).expect("the batch is computed");
                scheduler.commit(&batch, &mut result, &mut outputs);
                for output in outputs.drain(..) {
                    tokens[usize::try_from(output.request.0).expect("few")].extend(output.token);
                }
            }
            for &index in *round {
                assert_eq!(tokens[index], cases[index].tokens, "{name}, {}: {index}", way.name);
            }
        }
        scheduler.stats()
    }
}

/// Room for a model's cache, all of whose blocks the shim is handed at every launch.
fn options(golden: &Golden, dtype: Dtype, kv_cache_memory_bytes: u64) -> LoadOptions {
    LoadOptions {
        dtype: Some(dtype),
        max_model_len: Some(MAX_MODEL_LEN),
        max_num_seqs: 32,
        max_num_batched_tokens: Some(ALONE.max_num_batched_tokens),
        kv_cache_memory_bytes: Some(kv_cache_memory_bytes),
        threads: Some(2),
        ..LoadOptions::new(&golden.dir)
    }
}

#[test]
fn logits_and_greedy_tokens_of_every_family_are_those_of_transformers() {
    for golden in families() {
        let options = options(&golden, Dtype::F32, 16 << 20);
        let loaded = sconce_runner::load_on_cpu(&options, &mut |_, _, _| {});
        let mut served = Served::new(&golden, loaded.expect("the model loads"));
        let (name, error) = (&golden.name, served.error_of_logits());
        // Sums in another order; 1e-6 was measured.
        assert!(error > 0.0 && error < 1e-5, "{name}: relative error {error:e}");
        for way in [ALONE, BATCHED, CHUNKED] {
            served.serve(&way);
        }
        let preemptions = served.serve(&PREEMPTED).preemptions;
        assert!(preemptions > 0, "{name}: nothing gave way");
        let found = served.serve(&CACHED).prefix_cache_hits;
        // The full blocks of prompts of 20, 45 and 80 tokens, but of none its last token.
        assert!(found >= 16 + 32 + 64, "{name}: {found} tokens were found in the cache");
        served.serve(&CROWDED);
    }
}

#[test]
fn the_cuda_kernels_give_the_greedy_tokens_of_transformers_for_every_family() {
    let check = |golden: &Golden| {
        let make = |dtype, limits: StepLimits| {
            Ok::<_, LoadError>(Cuda::new(ShimDriver::default(), dtype, limits)?)
        };
        let options = LoadOptions {
            cuda_graph_sizes: Some(vec![2, 8]),
            ..options(golden, Dtype::F16, 640 << 10)
        };
        let loaded = sconce_runner::load_on(&options, 0, make, &mut |_, _, _| {});
        let mut served = Served::new(golden, loaded.expect("the model loads"));
        let (name, error) = (&golden.name, served.error_of_logits());
        // f16 rounds to 5e-4, in every layer; 2e-3 was measured.
        assert!(error > 0.0 && error < 4e-3, "{name}: relative error {error:e}");
        let stats = served.serve(&CROWDED);
        assert!(stats.preemptions > 0, "{name}: nothing gave way");
        assert!(stats.prefix_cache_hits > 0, "{name}: nothing was found in the cache");
    };
    // On as many cores as there are: the shim takes one.
    let families = families();
    std::thread::scope(|scope| {
        for golden in &families {
            scope.spawn(move || check(golden));
        }
    });
}
