//! What sampling takes: the whole of it, lists in and tokens out, and its kernels alone.
//!
//! The same logits at every call: no request changes them. They are about normal, which makes
//! the nucleus of top-p wide: a sixth of the vocabulary.

use anyhow::Result;
use sconce_kernels::{
    Device as _, Ops as _, Sampler as _,
    cuda::{
        Cuda, Driver, Launch, MAX_TOP, SAMPLE_RUN_BYTES, SAMPLE_SHARED_BYTES, SAMPLE_SLICE,
        SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES, SampleRow, SampledRow, Sampling,
    },
    ops::sampling::{SampleRequest, uniform},
};

use crate::{
    kernels::{activations, matrix, result},
    timing::seconds,
};

/// What rows ask.
fn settings() -> [(&'static str, SampleRequest<'static>); 7] {
    let greedy = SampleRequest::default();
    let base = SampleRequest { temperature: 0.8, ..greedy };
    [
        ("greedy", greedy),
        ("temperature", base),
        ("top-k, top-p", SampleRequest { top_k: 50, top_p: 0.9, ..base }),
        ("wide top-p", SampleRequest { temperature: 1.0, top_p: 0.95, ..base }),
        ("greedy, 20 logprobs", SampleRequest { num_logprobs: Some(20), ..greedy }),
        ("wide top-k", SampleRequest { top_k: 2000, ..base }),
        ("wide min-p", SampleRequest { min_p: 1e-3, ..base }),
    ]
}

/// From requests to results.
pub(crate) fn whole<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: usize,
    vocab_size: usize,
    dry_run: bool,
) -> Result<()> {
    let k = 64;
    let head = matrix(cuda, 91, vocab_size, k)?;
    let x = activations(cuda, 90, rows, k)?;
    let mut logits = cuda.logits_buffer(rows, vocab_size)?;
    cuda.linear(rows, &x, &head, None, &mut logits)?;
    for (name, request) in &settings()[..5] {
        let requests: Vec<_> =
            (0..rows as u64).map(|seed| SampleRequest { seed, ..*request }).collect();
        let mut sampled = Vec::with_capacity(rows);
        let time = seconds(cuda, dry_run, |cuda, _| {
            sampled.clear();
            cuda.sample(&mut logits, &requests, &mut sampled)
        })?;
        result(&format!("sampling {rows} rows, {name}"), time, rows * vocab_size * 4, 0.0);
    }
    Ok(())
}

/// The kernels, one launch after another.
pub(crate) fn kernels<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: usize,
    vocab_size: usize,
    dry_run: bool,
) -> Result<()> {
    let driver = cuda.driver_mut();
    let multiprocessors = driver.multiprocessors();
    let usual = Sampling::runs(vocab_size, rows, multiprocessors);
    let slices = vocab_size.div_ceil(SAMPLE_SLICE);
    // Twice as many blocks, of which a multiprocessor has one after another.
    let all_runs = [usual, (2 * usual).min(slices)];
    let most_runs = all_runs[1];
    let sizes = [
        rows * vocab_size * 4,
        rows * size_of::<SampleRow>(),
        rows * size_of::<SampledRow>(),
        rows * MAX_TOP * 8,
        rows * slices * SAMPLE_SLICE_BYTES,
        rows * most_runs * SAMPLE_RUN_BYTES[0],
        rows * most_runs * SAMPLE_RUN_BYTES[1],
        rows * most_runs * SAMPLE_RUN_BYTES[2],
        rows * most_runs * SAMPLE_RUN_BYTES[3],
        rows * SAMPLE_STATE_BYTES,
    ];
    let mut memories = sizes
        .iter()
        .map(|bytes| driver.allocate(bytes.next_multiple_of(256), "sampling's measurement"))
        .collect::<Result<Vec<_>, _>>()?;
    let one: Vec<f32> = (0..vocab_size as u32)
        .map(|i| {
            let sum: f64 = (0..4).map(|part| uniform(part, i) * 2.0 - 1.0).sum();
            (sum * 2.67 * (3.0_f64 / 4.0).sqrt()) as f32
        })
        .collect();
    let row_bytes = vocab_size * 4;
    for row in 0..rows {
        let mut own = one.clone();
        own.rotate_left(row * 1009 % vocab_size);
        driver.upload(&mut memories[0], row * row_bytes, bytemuck::cast_slice(&own))?;
    }
    driver.upload(&mut memories[9], 0, &vec![0; sizes[9]])?;
    for (name, request) in settings() {
        let row = SampleRow {
            temperature: request.temperature,
            top_p: request.top_p,
            min_p: request.min_p,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            top_k: request.top_k,
            seed: [0; 2],
            index: 0,
            num_logprobs: request.num_logprobs.map_or(-1, |num| num as i32),
            bias: [0; 2],
            banned: [0; 2],
            seen: [0; 2],
            mask: -1,
            slot: -1,
        };
        // Each row draws for itself, as it does in a server.
        let requests: Vec<_> =
            (0..rows as u32).map(|seed| SampleRow { seed: [seed, 0], ..row }).collect();
        cuda.driver_mut().upload(&mut memories[1], 0, bytemuck::cast_slice(&requests))?;
        let at = |i: usize| cuda.driver().address(&memories[i]);
        let params = Sampling {
            logits: at(0),
            requests: at(1),
            biases: at(1),
            banned: at(1),
            seen: at(1),
            masks: at(1),
            bias_raw: at(1),
            banned_raw: at(1),
            seen_raw: at(1),
            out: at(2),
            top: at(3),
            last_sampled: at(1),
            slices: at(4),
            runs: at(5),
            candidates: at(6),
            likeliest: at(7),
            bins: at(8),
            states: at(9),
            vocab_size: vocab_size as u32,
            padding: 0,
        };
        let is_filtered = request.top_k > 0 || request.top_p < 1.0 || request.min_p > 0.0;
        let second = is_filtered || request.num_logprobs.is_some();
        for runs in all_runs {
            let launch = Launch {
                file: "sampling",
                kernel: "sampling",
                grid: [runs as u32, rows as u32],
                threads: 512,
                shared_bytes: SAMPLE_SHARED_BYTES,
            };
            let rest = Launch { kernel: "sampling_rest", ..launch };
            let time = seconds(cuda, dry_run, |cuda, _| {
                cuda.driver_mut().launch(&launch, &params)?;
                if second { cuda.driver_mut().launch(&rest, &params) } else { Ok(()) }
            })?;
            let name = format!("sampling's kernels {rows} rows, {name}, {runs} runs");
            result(&name, time, rows * vocab_size * 4, 0.0);
            if usual == slices {
                break;
            }
        }
    }
    Ok(())
}
