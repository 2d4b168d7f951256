//! What a small Llama answers, to the bit: `kept_bits.txt` has hashes of the tokens and
//! log-probabilities of fifty requests, on every instruction set of x86-64 and on the CUDA
//! kernels that the shim runs. A change of how steps are scheduled, launched or computed
//! must leave them as they are.
//!
//! A line is a device and a dtype, then a hash for each request. Where a difference is
//! meant, the line that the failure prints takes the old one's place.

use std::{collections::BTreeMap, sync::Arc};

use sconce::Dtype;
use sconce_cuda_shim::ShimDriver;
use sconce_kernels::{StepLimits, cpu::Isa, cuda::Cuda};
use sconce_runner::{LoadError, LoadOptions, Quantization};
use sconce_scheduler::{
    CacheGroups, Output, PrefixKey, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{
    Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId, TokenLogprobs,
    TokenMasks,
};

use crate::tiny::{self, VOCAB};

const KEPT: &str = include_str!("kept_bits.txt");
const REQUESTS: usize = 50;

/// How much is asked of what. Most of the time some sequence has to give way: the blocks are
/// one full context's and a few more.
struct Workload {
    /// Bounds of the prompts' lengths, each as likely.
    prompt_lens: &'static [usize],
    max_tokens: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    num_blocks: usize,
}

const LONG: Workload = Workload {
    prompt_lens: &[1, 3, 17, 33, 64, 130, 300],
    max_tokens: 64,
    max_num_seqs: 8,
    max_num_batched_tokens: 48,
    num_blocks: 26,
};

/// For kernels that are imitated thread by thread.
const SHORT: Workload = Workload {
    prompt_lens: &[1, 3, 12, 24, 40],
    max_tokens: 12,
    max_num_seqs: 8,
    max_num_batched_tokens: 40,
    num_blocks: 7,
};

impl Workload {
    fn longest_prompt(&self) -> usize {
        self.prompt_lens.iter().copied().fold(0, usize::max)
    }

    fn max_model_len(&self) -> usize {
        self.longest_prompt() + self.max_tokens
    }
}

/// splitmix64 (Steele, Lea, Flood, 2014): the same numbers with every version of every crate.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// A request, and the step before which it arrives.
struct Arrival {
    step: usize,
    prompt: Vec<TokenId>,
    params: SamplingParams,
}

/// Requests of many lengths and kinds, in order of arrival. Some begin like one before.
fn arrivals(workload: &Workload) -> Vec<Arrival> {
    let mut numbers = Numbers(7);
    let mut step = 0;
    let mut arrivals: Vec<Arrival> = Vec::new();
    for index in 0..REQUESTS {
        step += numbers.below(4);
        let longest = numbers.one_of(workload.prompt_lens);
        let mut prompt = Vec::new();
        if index > 0 && numbers.below(2) == 0 {
            prompt.clone_from(&arrivals[index - 1 - numbers.below(index.min(6))].prompt);
            prompt.truncate(workload.longest_prompt() - 1);
        }
        let len = longest.max(prompt.len() + 1);
        let len = prompt.len() + 1 + numbers.below(len - prompt.len());
        prompt.resize_with(len, || numbers.below(VOCAB) as TokenId);
        let is_greedy = numbers.below(3) == 0;
        let params = SamplingParams {
            max_tokens: 1 + numbers.below(workload.max_tokens) as u32,
            min_tokens: 1,
            temperature: if is_greedy { 0.0 } else { numbers.one_of(&[0.5, 0.9, 1.4]) },
            top_k: numbers.one_of(&[0, 0, 5, 40]),
            top_p: numbers.one_of(&[1.0, 1.0, 0.6, 0.95]),
            min_p: numbers.one_of(&[0.0, 0.0, 0.0, 0.02]),
            repetition_penalty: numbers.one_of(&[1.0, 1.0, 1.2]),
            presence_penalty: numbers.one_of(&[0.0, 0.0, 0.4]),
            frequency_penalty: numbers.one_of(&[0.0, 0.0, -0.3, 0.5]),
            seed: index as u64 * 1_000_003,
            logit_bias: if numbers.below(8) == 0 { vec![(65, 3.0), (66, -2.0)] } else { vec![] },
            stop_token_ids: if numbers.below(8) == 0 { (0..12).collect() } else { vec![] },
            eos_token_ids: Arc::from([2]),
            logprobs: numbers.one_of(&[None, Some(0), Some(3), Some(20)]),
            prompt_logprobs: numbers.one_of(&[None, None, None, Some(2)]),
        };
        params.validate(VOCAB).expect("the parameters are valid");
        arrivals.push(Arrival { step, prompt, params });
    }
    arrivals
}

/// FNV-1a over what one request got.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(&mut self, number: u32) {
        for byte in number.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add_logprobs(&mut self, TokenLogprobs { token, logprob, top, .. }: &TokenLogprobs) {
        for (token, logprob) in std::iter::once(&(*token, *logprob)).chain(top) {
            self.add(*token);
            self.add(logprob.to_bits());
        }
    }
}

/// What each request got so far, and how often sequences gave way or found a prefix.
struct Kept {
    /// Of each request: its tokens, their log-probabilities, its prompt's.
    hashes: Vec<[Hash; 3]>,
    ended: usize,
    preemptions: u64,
    prefix_hits: u64,
}

impl Kept {
    fn take(&mut self, output: &Output) {
        let [tokens, logprobs, prompt] = &mut self.hashes[output.request.0 as usize];
        output.token.iter().for_each(|token| tokens.add(*token));
        output.logprobs.iter().for_each(|of_token| logprobs.add_logprobs(of_token));
        output.prompt_logprobs.iter().for_each(|of_token| prompt.add_logprobs(of_token));
        self.ended += usize::from(output.finish.is_some());
    }

    /// The line of `kept_bits.txt`, without the name.
    fn line(&self) -> String {
        let hashes = self.hashes.iter().map(|parts| {
            let mut whole = Hash::EMPTY;
            for Hash(part) in parts {
                whole.add(*part as u32);
                whole.add((part >> 32) as u32);
            }
            format!(" {:08x}", (whole.0 >> 32) as u32 ^ whole.0 as u32)
        });
        hashes.collect()
    }
}

/// The border to the executor: computes a batch.
fn compute(runner: &mut impl Executor, batch: &ScheduledBatch, result: &mut StepResult) {
    runner.launch(batch).expect("the batch is launched");
    runner.sample(&TokenMasks::default()).expect("the batch is sampled");
    runner.wait(result).expect("the batch is computed");
}

/// The border to the scheduler: runs all requests to their ends.
fn answer(mut runner: impl Executor, workload: &Workload) -> Kept {
    let config = SchedulerConfig {
        max_num_seqs: workload.max_num_seqs,
        max_num_batched_tokens: workload.max_num_batched_tokens,
        max_model_len: workload.max_model_len(),
        num_blocks: workload.num_blocks,
        groups: CacheGroups::ONE,
        depth: 1,
        max_queued: REQUESTS,
        prefix_cache: Some(PrefixKey([3, 4])),
        policy: SchedulingPolicy::Fair,
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    let mut kept =
        Kept { hashes: vec![[Hash::EMPTY; 3]; REQUESTS], ended: 0, preemptions: 0, prefix_hits: 0 };
    let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
    let mut outputs = Vec::new();
    let mut arrivals = arrivals(workload).into_iter().zip(0..).peekable();
    for step in 0.. {
        while let Some((Arrival { prompt, params, .. }, id)) =
            arrivals.next_if(|(arrival, _)| arrival.step <= step)
        {
            let request = Request::new(RequestId(id), prompt, Arc::new(params));
            scheduler.add(request).expect("the request is taken");
        }
        scheduler.schedule(&mut batch);
        if batch.is_empty() {
            if arrivals.peek().is_none() {
                break;
            }
            continue;
        }
        compute(&mut runner, &batch, &mut result);
        scheduler.commit(&batch, &mut result, &mut outputs);
        outputs.drain(..).for_each(|output| kept.take(&output));
    }
    assert_eq!(kept.ended, REQUESTS, "every request ends");
    kept.preemptions = scheduler.stats().preemptions;
    kept.prefix_hits = scheduler.stats().prefix_cache_hits;
    kept
}

/// What a request's hash is where it is not known: its tokens changed on purpose while no machine
/// with these instructions was at hand.
const NOT_KNOWN: &str = "-";

/// Compares an answer with the line of that name, and remembers what differs. A level of
/// instructions that no machine had when the file was written has no line.
fn compare(name: &str, kept: &Kept, differing: &mut Vec<String>) {
    assert!(kept.preemptions >= 5, "{name}: {} preemptions", kept.preemptions);
    assert!(kept.prefix_hits >= 100, "{name}: {} cached tokens", kept.prefix_hits);
    let lines: BTreeMap<_, _> = KEPT.lines().filter_map(|line| line.split_once(' ')).collect();
    let line = match lines.get(name) {
        Some(line) => *line,
        None if name.starts_with("avx-vnni/") => return,
        None => "",
    };
    let now = kept.line();
    let pairs = line.split_whitespace().zip(now.split_whitespace()).enumerate();
    let differs = |(_, (kept, now)): &(usize, (&str, &str))| kept != now && *kept != NOT_KNOWN;
    let requests: Vec<usize> = pairs.filter(differs).map(|(i, _)| i).collect();
    if !requests.is_empty() || line.split_whitespace().count() != REQUESTS {
        differing.push(format!("{name}, requests {requests:?}:\n{name}{now}"));
    }
}

fn options(dtype: Dtype, workload: &Workload) -> LoadOptions {
    /// Two layers of K and V with one head of 64 numbers, of four bytes at most.
    const BLOCK_BYTES: usize = 2 * 2 * 16 * 64 * 4;
    LoadOptions {
        dtype: Some(dtype),
        max_model_len: Some(workload.max_model_len()),
        max_num_seqs: workload.max_num_seqs,
        max_num_batched_tokens: Some(workload.max_num_batched_tokens),
        kv_cache_memory_bytes: Some((workload.num_blocks * BLOCK_BYTES) as u64),
        threads: Some(2),
        ..LoadOptions::new(tiny::tiny())
    }
}

/// On other processors the C library's functions may round otherwise.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_cpu_answers_the_same_bits_as_ever() {
    let mut differing = Vec::new();
    for isa in Isa::available() {
        for (name, dtype, quantization) in [
            ("f32", Dtype::F32, None),
            ("bf16", Dtype::Bf16, None),
            ("int8", Dtype::Bf16, Some(Quantization::Int8)),
        ] {
            let options = LoadOptions { cpu_isa: Some(isa), quantization, ..options(dtype, &LONG) };
            let loaded = sconce_runner::load_on_cpu(&options, &mut |_, _, _| {});
            let kept = answer(loaded.expect("the model loads").runner, &LONG);
            compare(&format!("{}/{name}", isa.flag()), &kept, &mut differing);
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn the_cuda_kernels_answer_the_same_bits_as_ever() {
    let make = |dtype, limits: StepLimits| {
        Ok::<_, LoadError>(Cuda::new(ShimDriver::default(), dtype, limits)?)
    };
    let options = options(Dtype::Bf16, &SHORT);
    let loaded = sconce_runner::load_on(&options, 0, make, &mut |_, _, _| {});
    let mut differing = Vec::new();
    compare("cuda/bf16", &answer(loaded.expect("the model loads").runner, &SHORT), &mut differing);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
