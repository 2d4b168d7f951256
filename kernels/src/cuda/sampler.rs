//! Requests to the sampling kernel, and its answers, as the device has them.

use std::{collections::VecDeque, time::Duration};

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{
    CountLast, DevicePointer, Driver, Launch, MAX_SAMPLE_SLICES, MAX_TOP, SAMPLE_RUN_BYTES,
    SAMPLE_SHARED_BYTES, SAMPLE_SLICE, SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES, SampleRow,
    SampledRow, Sampling, TokenLogprobs, UncountedRow,
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
    /// Rows of a step, and slots.
    pub(super) max_rows: usize,
    workspace: Workspace<M>,
    /// [`SampledRow`]s, then as many times [`MAX_TOP`] [`TopToken`]s.
    out: M,
    out_address: DevicePointer,
    /// What each slot sampled last; tokens of the vocabulary from the start, for 0 is one.
    _last_sampled: M,
    pub(super) last_sampled: DevicePointer,
    words: Vec<u32>,
    /// What log-probabilities the rows want of the steps that have ended, the oldest first, and
    /// the memory of those that were waited for.
    ended: VecDeque<Vec<Option<u32>>>,
    spare: Vec<Vec<Option<u32>>>,
    rows: Vec<SampleRow>,
    uncounted: Vec<UncountedRow>,
    biases: Vec<TokenBias>,
    banned: Vec<u32>,
    seen: Vec<Seen>,
    /// A bit for each token of the vocabulary, one mask after another.
    masks: Vec<u32>,
}

impl<M> SamplingBuffers<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &mut D,
        limits: &StepLimits,
    ) -> Result<Self, KernelError> {
        let max_rows = limits.max_num_seqs;
        // A row lists its bias, its bans and what it has seen.
        let max_listed = LISTED.max(4 * limits.max_model_len);
        let list_bytes = room::<SampleRow>(max_rows)
            + room::<UncountedRow>(max_rows)
            + 2 * room::<Seen>(max_listed)
            + room::<u32>(max_listed);
        let raw = driver.allocate(3 * max_listed * size_of::<f32>(), "logits set aside")?;
        let results = max_rows * (size_of::<SampledRow>() + MAX_TOP * size_of::<TopToken>());
        let out = driver.allocate(results, "sampled tokens")?;
        let last_sampled = driver.allocate(max_rows * size_of::<u32>(), "last tokens")?;
        driver.make_results_room(results)?;
        Ok(Self {
            last_sampled: driver.address(&last_sampled),
            _last_sampled: last_sampled,
            ended: VecDeque::new(),
            spare: Vec::new(),
            uncounted: Vec::new(),
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

    /// Draws a token for each request from `logits [requests.len(), vocab_size]`, and waits for
    /// them.
    pub(super) fn sample<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        for (index, requests) in requests.chunks(self.max_rows).enumerate() {
            let at = index * self.max_rows * vocab_size * size_of::<f32>();
            self.draw(driver, logits.behind(at), vocab_size, requests)?;
            let with_top = requests.iter().any(|request| request.num_logprobs.is_some());
            let (rows, tops) = self.results(driver, requests.len(), with_top)?;
            let wanted = requests.iter().map(|request| request.num_logprobs);
            read_sampled(rows, tops, wanted, out);
        }
        Ok(())
    }

    /// The same without waiting: what comes of it is read by [`Self::wait_step`].
    pub(super) fn end_step<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        sampled: Option<(DevicePointer, usize, &[SampleRequest<'_>])>,
    ) -> Result<(), KernelError> {
        let mut wanted = self.spare.pop().unwrap_or_default();
        wanted.clear();
        if let Some((logits, vocab_size, requests)) = sampled {
            if requests.len() > self.max_rows {
                return Err(KernelError::Shape {
                    op: "end_step",
                    what: "requests",
                    got: requests.len().to_string(),
                    expected: format!("at most {}", self.max_rows),
                });
            }
            self.draw(driver, logits, vocab_size, requests)?;
            wanted.extend(requests.iter().map(|request| request.num_logprobs));
        }
        let with_top = wanted.iter().any(Option::is_some);
        let (row_words, top_words) = result_words(wanted.len(), with_top);
        driver.end_step(&self.out, (row_words + top_words) * size_of::<u32>())?;
        self.ended.push_back(wanted);
        Ok(())
    }

    /// Waits for the oldest step that has ended.
    pub(super) fn wait_step<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        out: &mut Vec<Sampled>,
    ) -> Result<Option<Duration>, KernelError> {
        let wanted = self.ended.front().expect("a step is waited for once it has ended");
        let with_top = wanted.iter().any(Option::is_some);
        let (row_words, top_words) = result_words(wanted.len(), with_top);
        self.words.resize(row_words + top_words, 0);
        let time = driver.wait_step(bytemuck::cast_slice_mut(&mut self.words))?;
        let (rows, tops) = self.words.split_at(row_words);
        let (rows, tops) = (bytemuck::cast_slice(rows), bytemuck::cast_slice(tops));
        read_sampled(rows, tops, wanted.iter().copied(), out);
        self.spare.extend(self.ended.pop_front());
        Ok(time)
    }

    /// Launches what draws a token for each request, of which there are at most `max_rows`.
    fn draw<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
        requests: &[SampleRequest<'_>],
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
            let logits = logits.behind(at);
            self.launch(driver, logits, vocab_size, (done, requests.len()))?;
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
        let Self { rows, uncounted, biases, banned, seen, masks, .. } = self;
        let mask_words = mask_words(vocab_size);
        rows.clear();
        uncounted.clear();
        biases.clear();
        banned.clear();
        seen.clear();
        masks.clear();
        for request in requests {
            // Of what its slot sampled last, where the device is to count that.
            let uncounted_slot = request.slot.filter(|_| request.last_is_uncounted);
            let tokens = [
                biases.len() + request.logit_bias.len(),
                banned.len() + request.banned.len(),
                seen.len() + request.seen.len() + usize::from(uncounted_slot.is_some()),
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
            if let Some(slot) = uncounted_slot {
                seen.push(Seen { token: u32::MAX, output_count: 0 });
                uncounted.push(UncountedRow { slot, seen: [firsts[2], border(seen.len())] });
            }
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
                slot: request.slot.map_or(-1, |slot| i32::try_from(slot).expect("slots are few")),
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

    /// Launches what was listed, whose results are those from `first` on of so many rows.
    fn launch<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        logits: DevicePointer,
        vocab_size: usize,
        (first, all_rows): (usize, usize),
    ) -> Result<(), KernelError> {
        let Self { staging, workspace, rows, uncounted, biases, banned, seen, masks, .. } = self;
        staging.clear();
        let raw = |list: usize| self.raw_address.behind(list * self.max_listed * size_of::<f32>());
        let tops = first * MAX_TOP * size_of::<TopToken>();
        let [runs, candidates, likeliest, bins] = workspace.of_runs;
        let uncounted_rows = staging.push(uncounted)?;
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
            out: self.out_address.behind(first * size_of::<SampledRow>()),
            top: top_address(self.out_address, all_rows).behind(tops),
            last_sampled: self.last_sampled,
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
        if !uncounted.is_empty() {
            let (seen, last_sampled) = (params.seen, self.last_sampled);
            let params = CountLast { rows: uncounted_rows, seen, last_sampled };
            driver.launch(&CountLast::launch(word(uncounted.len())), &params)?;
        }
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
                logits: logits.behind(at),
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
                rank: Some(row.rank),
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
        let (row_words, top_words) = result_words(count, with_top);
        self.words.resize(row_words + top_words, 0);
        driver.download(&self.out, bytemuck::cast_slice_mut(&mut self.words))?;
        let (rows, tops) = self.words.split_at(row_words);
        Ok((bytemuck::cast_slice(rows), bytemuck::cast_slice(tops)))
    }
}

/// Words that the results of so many rows take: without, then of their likeliest tokens.
const fn result_words(rows: usize, with_top: bool) -> (usize, usize) {
    let tops = if with_top { rows * MAX_TOP * size_of::<TopToken>() } else { 0 };
    (rows * size_of::<SampledRow>() / size_of::<u32>(), tops / size_of::<u32>())
}

/// Appends what rows gave, with log-probabilities where they are wanted.
fn read_sampled(
    rows: &[SampledRow],
    tops: &[TopToken],
    wanted: impl Iterator<Item = Option<u32>>,
    out: &mut Vec<Sampled>,
) {
    out.extend(rows.iter().zip(wanted).enumerate().map(|(i, (row, wanted))| {
        let &SampledRow { token, logprob, num_top, rank: _ } = row;
        match token {
            SampledRow::NON_FINITE => return Sampled::NonFinite,
            SampledRow::NOTHING_ALLOWED => return Sampled::NothingAllowed,
            _ => {}
        }
        let logprobs = |_| Logprobs { token, logprob, rank: None, top: top_of(tops, i, num_top) };
        Sampled::Token { token, logprobs: wanted.map(logprobs) }
    }));
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
    out.behind(rows * size_of::<SampledRow>())
}

fn top_of(tops: &[TopToken], row: usize, num_top: u32) -> Vec<(u32, f32)> {
    let own = tops.iter().skip(row * MAX_TOP).take(num_top as usize);
    own.map(|top| (top.token, top.logprob)).collect()
}
