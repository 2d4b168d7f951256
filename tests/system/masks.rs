//! Constrained requests through a scheduler and a model: they generate what their masks
//! allow, the same tokens however late a mask is, and beside them nothing changes.

use std::sync::Arc;

use sconce::Dtype;
use sconce_cuda_shim::ShimDriver;
use sconce_kernels::{StepLimits, cuda::Cuda};
use sconce_runner::{LoadError, LoadOptions};
use sconce_scheduler::{
    CacheGroups, PrefixKey, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{
    End, Executor, RequestId, Sample, SamplingParams, ScheduledBatch, StepResult, TokenId,
    TokenLogprobs, TokenMasks,
};

use crate::tiny::{self, VOCAB};

const REQUESTS: usize = 10;
const MAX_TOKENS: u32 = 10;
const MAX_MODEL_LEN: usize = 64;
const NUM_BLOCKS: usize = 14;

/// Whether a request is constrained; the last one's masks come to allow nothing.
fn is_constrained(request: usize) -> bool {
    request % 2 == 1
}

fn dead_end(request: usize) -> bool {
    request == REQUESTS - 1
}

/// What a constrained request may generate after what it has: about one token in three, for
/// some of them one alone now and then.
fn allows(request: usize, generated: &[TokenId], token: TokenId) -> bool {
    if dead_end(request) && generated.len() == 3 {
        return false;
    }
    let last = generated.last().copied().unwrap_or(7);
    if request.is_multiple_of(3) && generated.len() % 4 == 2 {
        return token == 100 + last % 50;
    }
    token % 3 == last % 3 && token >= 3
}

fn params(request: usize) -> SamplingParams {
    let base = SamplingParams {
        max_tokens: MAX_TOKENS,
        seed: request as u64 * 77,
        eos_token_ids: Arc::from([2]),
        logprobs: [None, Some(3)][request / 2 % 2],
        ..SamplingParams::default()
    };
    match request / 2 % 4 {
        0 => SamplingParams { temperature: 0.0, ..base },
        1 => SamplingParams { temperature: 1.2, ..base },
        2 => SamplingParams { temperature: 0.8, top_p: 0.9, repetition_penalty: 1.2, ..base },
        _ => SamplingParams { temperature: 1.0, top_k: 20, logit_bias: vec![(65, 3.0)], ..base },
    }
}

/// What a request got.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<TokenLogprobs>,
    end: Option<End>,
}

/// How the requests are run.
#[derive(Clone, Copy, PartialEq)]
enum Masks {
    /// As if none were constrained.
    Off,
    Ready,
    /// Two of three are not ready when first asked for.
    Late,
}

fn answer(mut runner: impl Executor, masks: Masks) -> Vec<Answer> {
    let config = SchedulerConfig {
        max_num_seqs: 6,
        max_num_batched_tokens: 20,
        max_model_len: MAX_MODEL_LEN,
        num_blocks: NUM_BLOCKS,
        groups: CacheGroups::ONE,
        depth: 1,
        max_queued: REQUESTS,
        prefix_cache: Some(PrefixKey([3, 4])),
        policy: SchedulingPolicy::Fair,
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    for id in 0..REQUESTS {
        // Some begin alike.
        let prompt = (0..5 + id as u32 * 3).map(|i| (i * 31 + id as u32 / 3) % 256).collect();
        let mut request = Request::new(RequestId(id as u64), prompt, Arc::new(params(id)));
        request.is_constrained = masks != Masks::Off && is_constrained(id);
        scheduler.add(request).expect("the request is taken");
    }
    let mut answers = vec![Answer::default(); REQUESTS];
    let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
    let (mut outputs, mut token_masks) = (Vec::new(), TokenMasks::default());
    let (mut asked, mut skipped) = (0, 0);
    loop {
        scheduler.schedule(&mut batch);
        if batch.is_empty() {
            break;
        }
        runner.launch(&batch).expect("the batch is launched");
        token_masks.clear();
        for (row, sequence) in batch.sequences.iter().enumerate() {
            let Sample::Token { constrained: true, .. } = sequence.sample else { continue };
            let request = sequence.request.0 as usize;
            let generated = &answers[request].tokens;
            asked += 1;
            // Some masks have no words for the last tokens, which they do not allow.
            let num_words = if request == 1 { 5 } else { VOCAB / 32 };
            token_masks.push(row, num_words, |words| {
                for token in (0..num_words as u32 * 32).filter(|&t| allows(request, generated, t)) {
                    words[token as usize / 32] |= 1 << (token % 32);
                }
                masks == Masks::Ready || asked % 3 == 0
            });
        }
        runner.sample(&token_masks).expect("the batch is sampled");
        for row in token_masks.skipped() {
            skipped += 1;
            scheduler.skip_sample(batch.sequences[row].request);
        }
        runner.wait(&mut result).expect("the batch is computed");
        scheduler.commit(&batch, &mut result, &mut outputs);
        scheduler.check_invariants();
        for output in outputs.drain(..) {
            let answer = &mut answers[output.request.0 as usize];
            answer.tokens.extend(output.token);
            answer.logprobs.extend(output.logprobs);
            answer.end = answer.end.or(output.finish);
        }
    }
    assert_eq!(skipped > 20, masks == Masks::Late, "{skipped} masks were late");
    assert!(answers.iter().all(|answer| answer.end.is_some()), "every request ends");
    answers
}

/// `load` makes a runner of its own for each way to run the requests.
fn check<E: Executor>(load: impl Fn() -> E) {
    let masked = answer(load(), Masks::Ready);
    let plain = answer(load(), Masks::Off);
    let mut changed = 0;
    for (request, Answer { tokens, end, .. }) in masked.iter().enumerate() {
        if !is_constrained(request) {
            assert_eq!(masked[request], plain[request], "request {request} has no mask");
            continue;
        }
        for (i, &token) in tokens.iter().enumerate() {
            assert!(allows(request, &tokens[..i], token), "request {request}: {tokens:?}");
            assert!(request != 1 || token < 160, "{token} is beyond the mask");
        }
        if dead_end(request) {
            assert_eq!((tokens.len(), *end), (3, Some(End::NothingAllowed)));
        } else {
            assert_eq!((tokens.len(), *end), (MAX_TOKENS as usize, Some(End::Length)));
        }
        changed += usize::from(*tokens != plain[request].tokens);
    }
    assert_eq!(changed, REQUESTS / 2, "every mask matters");
    assert_eq!(answer(load(), Masks::Late), masked, "late masks change nothing");
}

fn options(dtype: Dtype) -> LoadOptions {
    /// Two layers of K and V with one head of 64 numbers, of four bytes at most.
    const BLOCK_BYTES: usize = 2 * 2 * 16 * 64 * 4;
    LoadOptions {
        dtype: Some(dtype),
        max_model_len: Some(MAX_MODEL_LEN),
        max_num_seqs: 6,
        max_num_batched_tokens: Some(20),
        kv_cache_memory_bytes: Some((NUM_BLOCKS * BLOCK_BYTES) as u64),
        threads: Some(2),
        ..LoadOptions::new(tiny::tiny())
    }
}

#[test]
fn masks_bound_what_a_cpu_generates() {
    check(|| {
        let loaded = sconce_runner::load_on_cpu(&options(Dtype::F32), &mut |_, _, _| {});
        loaded.expect("the model loads").runner
    });
}

#[test]
fn masks_bound_what_the_cuda_kernels_generate() {
    check(|| {
        let make = |dtype, limits: StepLimits| {
            Ok::<_, LoadError>(Cuda::new(ShimDriver::default(), dtype, limits)?)
        };
        let loaded = sconce_runner::load_on(&options(Dtype::Bf16), 0, make, &mut |_, _, _| {});
        loaded.expect("the model loads").runner
    });
}
