//! Requests to the sampling kernel, and its answers, as the device has them.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{
    DevicePointer, Driver, Launch, MAX_SAMPLE_SLICES, MAX_TOP, SAMPLE_RUN_BYTES,
    SAMPLE_SHARED_BYTES, SAMPLE_SLICE, SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES, SampleRow,
    SampledRow, Sampling, TokenLogprobs,
    staging::{Staging, room},
    word,
};
use crate::{
    KernelError, StepLimits,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};

/// Threads of a block; `sampling.cu` has the same number.
const THREADS: u32 = 512;
/// Tokens that the lists of one launch have at least room for, beside what one row
/// may bring.
const LISTED: usize = 1 << 16;

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct TokenBias {
    token: u32,
    bias: f32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Seen {
    token: u32,
    output_count: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TopToken {
    token: u32,
    logprob: f32,
}

/// What blocks leave for the last block of their row.
struct Workspace<M> {
    slices: DevicePointer,
    /// `runs`, `candidates`, `likeliest` and `bins`.
    of_runs: [DevicePointer; 4],
    states: DevicePointer,
    _memory: M,
}

impl<M> Workspace<M> {
    fn new<D: Driver<Memory = M>>(driver: &D, max_rows: usize) -> Result<Self, KernelError> {
        let slices = max_rows * MAX_SAMPLE_SLICES * SAMPLE_SLICE_BYTES;
        // A row has no more runs than slices.
        let runs = Sampling::most_runs(max_rows, driver.multiprocessors());
        let runs = runs.min(max_rows * MAX_SAMPLE_SLICES);
        let sizes = SAMPLE_RUN_BYTES.map(|bytes| (runs * bytes).next_multiple_of(16));
        let bytes = slices + sizes.iter().sum::<usize>() + max_rows * SAMPLE_STATE_BYTES;
        let memory = driver.allocate(bytes, "sampling's workspace")?;
        let mut next = driver.address(&memory).0;
        let mut part = |bytes: usize| {
            let start = DevicePointer(next);
            next += bytes as u64;
            start
        };
        Ok(Self {
            slices: part(slices),
            of_runs: sizes.map(&mut part),
            states: part(0),
            _memory: memory,
        })
    }
}

/// Lists and results of one launch after another. Room for masks is made when the first
/// comes, for as many as a step may have.
pub(super) struct SamplingBuffers<M> {
    staging: Staging<M>,
    /// Bytes that the lists of one launch take at most, without masks.
    list_bytes: usize,
    /// Tokens that the lists of one launch may have together.
    max_listed: usize,
    /// Room for the raw logits of all listed tokens.
    _raw: M,
    raw_address: DevicePointer,
    max_rows: usize,
    workspace: Workspace<M>,
    /// [`SampledRow`]s, then as many times [`MAX_TOP`] [`TopToken`]s.
    out: M,
    out_address: DevicePointer,
    words: Vec<u32>,
    rows: Vec<SampleRow>,
    biases: Vec<TokenBias>,
    banned: Vec<u32>,
    seen: Vec<Seen>,
    /// A bit for each token of the vocabulary, one mask after another.
    masks: Vec<u32>,
}

impl<M> SamplingBuffers<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        limits: &StepLimits,
    ) -> Result<Self, KernelError> {
        let max_rows = limits.max_num_seqs;
        // A row lists its bias, its bans and what it has seen.
        let max_listed = LISTED.max(4 * limits.max_model_len);
        let list_bytes =
            room::<SampleRow>(max_rows) + 2 * room::<Seen>(max_listed) + room::<u32>(max_listed);
        let raw = driver.allocate(3 * max_listed * size_of::<f32>(), "logits set aside")?;
        let results = max_rows * (size_of::<SampledRow>() + MAX_TOP * size_of::<TopToken>());
        let out = driver.allocate(results, "sampled tokens")?;
        Ok(Self {
            staging: Staging::new(driver, list_bytes, "sampling's lists")?,
            list_bytes,
            max_listed,
            raw_address: driver.address(&raw),
            _raw: raw,
            max_rows,
            workspace: Workspace::new(driver, max_rows)?,
            out_address: driver.address(&out),
            out,
            words: Vec::with_capacity(results / size_of::<u32>()),
            rows: Vec::new(),
            biases: Vec::new(),
            banned: Vec::new(),
            seen: Vec::new(),
            masks: Vec::new(),
        })
    }

    /// Draws a token for each request from `logits [requests.len(), vocab_size]`.
    pub(super) fn sample<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        check_vocab_size("sample", vocab_size)?;
        if requests.iter().any(|request| request.allowed.is_some()) {
            let masks = room::<u32>(self.max_rows * mask_words(vocab_size));
            self.staging.grow(driver, self.list_bytes + masks, "sampling's lists and masks")?;
        }
        let mut done = 0;
        while done < requests.len() {
            let count = self.list(&requests[done..], vocab_size)?;
            let at = done * vocab_size * size_of::<f32>();
            let logits = DevicePointer(logits.0 + at as u64);
            self.launch(driver, logits, vocab_size)?;
            let requests = &requests[done..done + count];
            let with_top = requests.iter().any(|request| request.num_logprobs.is_some());
            let (rows, tops) = self.results(driver, count, with_top)?;
            out.extend(rows.iter().zip(requests).enumerate().map(|(i, (row, request))| {
                match row.token {
                    SampledRow::NON_FINITE => return Sampled::NonFinite,
                    SampledRow::NOTHING_ALLOWED => return Sampled::NothingAllowed,
                    _ => {}
                }
                let top = || top_of(tops, i, row.num_top);
                let logprobs = request.num_logprobs.map(|_| Logprobs {
                    token: row.token,
                    logprob: row.logprob,
                    top: top(),
                });
                Sampled::Token { token: row.token, logprobs }
            }));
            done += count;
        }
        Ok(())
    }

    /// Lists what the first requests ask, as many as there is room for, and tells how
    /// many those are.
    fn list(
        &mut self,
        requests: &[SampleRequest<'_>],
        vocab_size: usize,
    ) -> Result<usize, KernelError> {
        let Self { rows, biases, banned, seen, masks, .. } = self;
        let mask_words = mask_words(vocab_size);
        rows.clear();
        biases.clear();
        banned.clear();
        seen.clear();
        masks.clear();
        for request in requests.iter().take(self.max_rows) {
            let tokens = [
                biases.len() + request.logit_bias.len(),
                banned.len() + request.banned.len(),
                seen.len() + request.seen.len(),
            ];
            if tokens.iter().any(|&tokens| tokens > self.max_listed) {
                break;
            }
            let border = |len: usize| u32::try_from(len).expect("lists are below 2^32 tokens");
            let firsts = [biases.len(), banned.len(), seen.len()].map(border);
            biases
                .extend(request.logit_bias.iter().map(|&(token, bias)| TokenBias { token, bias }));
            banned.extend(request.banned);
            let seen_tokens = request.seen.iter();
            seen.extend(
                seen_tokens.map(|seen| Seen { token: seen.token, output_count: seen.output_count }),
            );
            let mask = request.allowed.map_or(-1, |allowed| {
                let mask = masks.len() / mask_words;
                masks.extend(allowed.iter().take(mask_words));
                masks.resize((mask + 1) * mask_words, 0);
                i32::try_from(mask).expect("a launch has few rows")
            });
            let num_logprobs =
                request.num_logprobs.map_or(-1, |num| num.min(MAX_TOP as u32) as i32);
            rows.push(SampleRow {
                temperature: request.temperature,
                top_p: request.top_p,
                min_p: request.min_p,
                repetition_penalty: request.repetition_penalty,
                presence_penalty: request.presence_penalty,
                frequency_penalty: request.frequency_penalty,
                top_k: request.top_k,
                seed: [request.seed as u32, (request.seed >> 32) as u32],
                index: request.index,
                num_logprobs,
                bias: [firsts[0], border(biases.len())],
                banned: [firsts[1], border(banned.len())],
                seen: [firsts[2], border(seen.len())],
                mask,
            });
        }
        if rows.is_empty() {
            return Err(KernelError::Shape {
                op: "sample",
                what: "a request's lists",
                got: "more tokens".to_owned(),
                expected: format!("at most {} in each", self.max_listed),
            });
        }
        Ok(rows.len())
    }

    fn launch<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
    ) -> Result<(), KernelError> {
        let Self { staging, workspace, rows, biases, banned, seen, masks, .. } = self;
        staging.clear();
        let raw = |list: usize| {
            DevicePointer(self.raw_address.0 + (list * self.max_listed * size_of::<f32>()) as u64)
        };
        let [runs, candidates, likeliest, bins] = workspace.of_runs;
        let params = Sampling {
            logits,
            requests: staging.push(rows)?,
            biases: staging.push(biases)?,
            banned: staging.push(banned)?,
            seen: staging.push(seen)?,
            masks: staging.push(masks)?,
            bias_raw: raw(0),
            banned_raw: raw(1),
            seen_raw: raw(2),
            out: self.out_address,
            top: top_address(self.out_address, rows.len()),
            slices: workspace.slices,
            runs,
            candidates,
            likeliest,
            bins,
            states: workspace.states,
            vocab_size: word(vocab_size),
            padding: 0,
        };
        staging.send(driver)?;
        let runs = Sampling::runs(vocab_size, rows.len(), driver.multiprocessors());
        driver.launch(&launch("sampling", runs, rows.len()), &params)?;
        if rows.iter().any(may_be_left_open) {
            driver.launch(&launch("sampling_rest", runs, rows.len()), &params)?;
        }
        Ok(())
    }

    /// The log-probabilities of `tokens[i]` at row `i` of the logits.
    pub(super) fn logprobs<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError> {
        check_vocab_size("logprobs", vocab_size)?;
        let mut first = 0;
        for (tokens, num_top) in tokens.chunks(self.max_rows).zip(num_top.chunks(self.max_rows)) {
            let at = first * vocab_size * size_of::<f32>();
            first += tokens.len();
            self.staging.clear();
            let [runs, candidates, likeliest, bins] = self.workspace.of_runs;
            let params = TokenLogprobs {
                logits: DevicePointer(logits.0 + at as u64),
                tokens: self.staging.push(tokens)?,
                num_top: self.staging.push(num_top)?,
                out: self.out_address,
                top: top_address(self.out_address, tokens.len()),
                slices: self.workspace.slices,
                runs,
                candidates,
                likeliest,
                bins,
                states: self.workspace.states,
                vocab_size: word(vocab_size),
                padding: 0,
            };
            self.staging.send(driver)?;
            let runs = Sampling::runs(vocab_size, tokens.len(), driver.multiprocessors());
            driver.launch(&launch("token_logprobs", runs, tokens.len()), &params)?;
            if num_top.iter().any(|&num| num > 0) {
                driver.launch(&launch("token_logprobs_rest", 1, tokens.len()), &params)?;
            }
            let (rows, tops) = self.results(driver, tokens.len(), true)?;
            out.extend(rows.iter().enumerate().map(|(i, row)| Logprobs {
                token: row.token,
                logprob: row.logprob,
                top: top_of(tops, i, row.num_top),
            }));
        }
        Ok(())
    }

    /// Waits for a launch of `count` rows.
    fn results<D: Driver<Memory = M>>(
        &mut self,
        driver: &D,
        count: usize,
        with_top: bool,
    ) -> Result<(&[SampledRow], &[TopToken]), KernelError> {
        let words = |bytes: usize| bytes / size_of::<u32>();
        let row_words = words(count * size_of::<SampledRow>());
        let top_words = if with_top { words(count * MAX_TOP * size_of::<TopToken>()) } else { 0 };
        self.words.resize(row_words + top_words, 0);
        driver.download(&self.out, bytemuck::cast_slice_mut(&mut self.words))?;
        let (rows, tops) = self.words.split_at(row_words);
        Ok((bytemuck::cast_slice(rows), bytemuck::cast_slice(tops)))
    }
}

fn launch(kernel: &'static str, runs: usize, rows: usize) -> Launch<'static> {
    let grid = [word(runs), word(rows)];
    Launch { file: "sampling", kernel, grid, threads: THREADS, shared_bytes: SAMPLE_SHARED_BYTES }
}

/// Whether a row may need a search of the whole of it.
fn may_be_left_open(row: &SampleRow) -> bool {
    row.num_logprobs > 0
        || row.temperature > 0.0 && (row.top_k > 0 || row.top_p < 1.0 || row.min_p > 0.0)
}

/// # Errors
/// There are more tokens than the workspace's slices hold.
fn check_vocab_size(op: &'static str, vocab_size: usize) -> Result<(), KernelError> {
    const MOST: usize = MAX_SAMPLE_SLICES * SAMPLE_SLICE;
    if vocab_size <= MOST {
        return Ok(());
    }
    Err(KernelError::Shape {
        op,
        what: "the vocabulary",
        got: vocab_size.to_string(),
        expected: format!("at most {MOST} tokens"),
    })
}

/// Words of a row's mask.
const fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// Where the likeliest tokens lie behind `rows` results.
fn top_address(out: DevicePointer, rows: usize) -> DevicePointer {
    DevicePointer(out.0 + (rows * size_of::<SampledRow>()) as u64)
}

fn top_of(tops: &[TopToken], row: usize, num_top: u32) -> Vec<(u32, f32)> {
    let own = tops.iter().skip(row * MAX_TOP).take(num_top as usize);
    own.map(|top| (top.token, top.logprob)).collect()
}
