//! Sampling under masks: only tokens whose bits are set are drawn, and rows without a mask
//! are as they would be without their neighbours'.

use candle_core::Tensor;
use sconce_kernels::{
    CacheDtype, Device as _, Dtype, KvLayout, Ops as _, Sampler as _, StepLimits, StepPlan,
    cuda::{Cuda, Driver, SampledRow},
    ops::sampling::{SampleRequest, Sampled, SeenToken},
    reference,
};

use super::{
    element::numbers,
    sampling::{Row, sample},
    sampling_wide::{check, check_top, normal, requests, seeded},
};
use crate::Bench;

/// Bits for the tokens that `is_allowed`.
fn mask(vocab_size: usize, is_allowed: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut words = vec![0; vocab_size.div_ceil(32)];
    for token in (0..vocab_size).filter(|&token| is_allowed(token)) {
        words[token / 32] |= 1 << (token % 32);
    }
    words
}

/// Masks from one token to all, and of one slice only.
fn masks(seed: u64, vocab_size: usize) -> Vec<Vec<u32>> {
    let random = numbers(seed, vocab_size);
    vec![
        mask(vocab_size, |token| token == vocab_size * 5 / 7),
        mask(vocab_size, |token| random[token] < -0.98 || token == vocab_size / 3),
        mask(vocab_size, |token| random[token] < 0.0),
        mask(vocab_size, |token| random[token] < 0.99),
        mask(vocab_size, |token| token >= vocab_size / 2),
        mask(vocab_size, |_| true),
    ]
}

/// The lists of a request that adjusts logits, inside any vocabulary.
fn adjusting(vocab_size: usize) -> (Vec<SeenToken>, Vec<(u32, f32)>, Vec<u32>) {
    let at = |part: usize| (vocab_size * part / 12) as u32;
    let seen = (0..12).map(|i| SeenToken { token: at(i), output_count: i as u32 % 3 }).collect();
    let bias = (0..12).map(|i| (at(i) + 1, i as f32 - 3.0)).collect();
    (seen, bias, vec![at(3) + 2, at(9) + 2])
}

/// Checks a row under a mask: drawn from what is left, reported of all.
fn check_masked(row: &[f32], request: &SampleRequest<'_>, got: &Row, what: &str) {
    let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
    let left: Vec<f32> =
        reference::adjusted_logits(&wide, request).iter().map(|&logit| logit as f32).collect();
    let only_drawn = SampleRequest {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        seed: request.seed,
        index: request.index,
        ..SampleRequest::default()
    };
    assert!(left[got.token as usize] > f32::NEG_INFINITY, "{what}: {} is out", got.token);
    check(&left, &only_drawn, got, what);
    if let Some(num) = request.num_logprobs {
        check_top(row, num as usize, got, what);
    }
}

pub(super) fn only_what_a_mask_allows_is_drawn<D: Driver>(bench: &mut Bench<D>) {
    let mut were_open = 0;
    // One slice; two, with rows that start anywhere; three.
    for (vocab_size, seed) in [(100, 1), (9001, 2), (17_004, 3)] {
        let masks = masks(seed, vocab_size);
        let (seen, bias, banned) = adjusting(vocab_size);
        let plain = requests();
        let adjusted = plain.iter().map(|request| SampleRequest {
            repetition_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: 0.2,
            seen: &seen,
            logit_bias: &bias,
            banned: &banned,
            ..*request
        });
        // Every request under some masks, every mask under all kinds of requests.
        let all = plain.iter().copied().chain(adjusted).zip(seed..).map(|(request, i)| {
            let num_logprobs = [None, Some(20)][i as usize / 2 % 2];
            SampleRequest { seed: seed * 1000 + i, index: i as u32, num_logprobs, ..request }
        });
        let all: Vec<SampleRequest<'_>> = all
            .enumerate()
            .flat_map(|(i, request)| {
                let masks = masks.iter().skip(i % 2).step_by(2);
                masks.map(move |mask| SampleRequest { allowed: Some(mask), ..request })
            })
            .collect();
        let rows: Vec<Vec<f32>> = (0..all.len() as u64)
            // Some are so level that the whole row is searched.
            .map(|i| normal(seed * 100 + i, vocab_size, [2.7, 2.7, 0.02][i as usize % 3]))
            .collect();
        let got = sample(bench, &rows.concat(), &all);
        for (i, (request, row)) in all.iter().zip(&rows).enumerate() {
            check_masked(row, request, &got[i], &format!("row {i} of {vocab_size}"));
            were_open += usize::from(got[i].was_open);
        }
    }
    assert!(were_open > 10, "{were_open} rows were searched whole");
}

pub(super) fn a_mask_of_all_changes_no_bits_nor_do_neighbours_masks<D: Driver>(
    bench: &mut Bench<D>,
) {
    const LEN: usize = 17_001;
    let plain: Vec<_> = seeded(requests(), 9)
        .into_iter()
        .map(|request| SampleRequest { num_logprobs: Some(5), ..request })
        .collect();
    let rows: Vec<Vec<f32>> = (0..plain.len() as u64).map(|i| normal(i, LEN, 2.7)).collect();
    let want = sample(bench, &rows.concat(), &plain);
    let masks = masks(4, LEN);
    let all = &masks[5];
    let masked = plain.iter().map(|request| SampleRequest { allowed: Some(all), ..*request });
    assert_eq!(sample(bench, &rows.concat(), &masked.collect::<Vec<_>>()), want);
    // Every other row has a mask of few.
    let mixed: Vec<_> = (0..)
        .zip(&plain)
        .map(|(i, request)| {
            let allowed = (i % 2 == 0).then_some(&masks[1 + i % 3][..]);
            SampleRequest { allowed, ..*request }
        })
        .collect();
    let together = sample(bench, &rows.concat(), &mixed);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(sample(bench, row, &mixed[i..=i])[0], together[i], "row {i}");
        if i % 2 == 1 {
            assert_eq!(together[i], want[i], "row {i} has no mask");
        }
    }
}

pub(super) fn a_row_with_nothing_left_says_so<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 9000;
    let level = vec![0.5; LEN];
    // Only the last 100 have a probability.
    let mut half = vec![f32::NEG_INFINITY; LEN];
    half[8900..].fill(1.0);
    let mut wrong = normal(3, LEN, 2.0);
    wrong[8500] = f32::NAN;
    let none = mask(LEN, |_| false);
    let two = mask(LEN, |token| token == 3 || token == 8999);
    let most = mask(LEN, |token| token < 8900);
    let base = SampleRequest { num_logprobs: Some(20), ..SampleRequest::default() };
    let infinite = SampleRequest { logit_bias: &[(7, f32::INFINITY)], ..base };
    let cases = [
        (&level, SampleRequest { allowed: Some(&none), ..base }, Some(SampledRow::NOTHING_ALLOWED)),
        (&level, SampleRequest { allowed: Some(&[]), ..base }, Some(SampledRow::NOTHING_ALLOWED)),
        (
            &level,
            SampleRequest { allowed: Some(&two), banned: &[3, 8999], ..base },
            Some(SampledRow::NOTHING_ALLOWED),
        ),
        (&half, SampleRequest { allowed: Some(&most), ..base }, Some(SampledRow::NOTHING_ALLOWED)),
        // The row's own fault comes first, wherever it is.
        (&wrong, SampleRequest { allowed: Some(&two), ..base }, Some(SampledRow::NON_FINITE)),
        (&wrong, SampleRequest { allowed: Some(&none), ..base }, Some(SampledRow::NON_FINITE)),
        (&level, SampleRequest { allowed: None, ..infinite }, Some(SampledRow::NON_FINITE)),
        // No bias makes up for a mask.
        (&level, SampleRequest { allowed: Some(&two), banned: &[3], ..infinite }, Some(8999)),
        (&half, SampleRequest { allowed: Some(&two), ..base }, Some(8999)),
    ];
    for temperature in [0.0, 1.0] {
        for (top_p, num_logprobs) in [(1.0, None), (0.9, None), (1.0, Some(20)), (0.9, Some(20))] {
            let requests: Vec<_> = cases
                .iter()
                .map(|(_, r, _)| SampleRequest { temperature, top_p, num_logprobs, ..*r })
                .collect();
            let rows: Vec<f32> = cases.iter().flat_map(|(row, ..)| row.iter().copied()).collect();
            let got = sample(bench, &rows, &requests);
            for (i, (got, (.., want))) in got.iter().zip(&cases).enumerate() {
                assert_eq!(Some(got.token), *want, "row {i} at {temperature}, {top_p}");
            }
        }
    }
}

/// The backend takes masks that are shorter or longer than the vocabulary, on some rows of a
/// step and not of the next.
///
/// # Panics
/// If it does not.
pub fn masks_of_any_length_reach_the_kernels<D: Driver>(device: impl Fn() -> D) {
    const VOCAB: usize = 1000;
    const LIMITS: StepLimits =
        StepLimits { max_num_batched_tokens: 16, max_num_seqs: 4, max_model_len: 16 };
    let table = numbers(3, VOCAB * 16);
    let mut cuda = Cuda::new(device(), Dtype::Bf16, LIMITS).expect("the backend");
    let table = Tensor::from_slice(&table, &[VOCAB, 16], &candle_core::Device::Cpu);
    let table = table.expect("a tensor of its own shape");
    let table = cuda.matrix(&[table], Dtype::Bf16.into()).expect("packs");
    let mut plan = StepPlan::new(1);
    plan.push(0, &[7, 8, 9, 10], 0, &[&[0]]);
    let (mut hidden, mut logits) =
        (cuda.buffer(4, 16).expect("room"), cuda.logits_buffer(4, VOCAB).expect("room"));
    let layout = KvLayout::uniform(1, 1, (1, 64), CacheDtype::Bf16);
    let mut cache = cuda.kv_cache(&layout, &LIMITS).expect("it fits");
    let mut step = cuda.step(&LIMITS, &[]).expect("it fits");
    cuda.stage(&plan, &mut step, &mut cache).expect("it fits");
    cuda.embedding_gather(&step, &table, 1.0, &mut hidden).expect("it runs");
    let mut sampled = |allowed: [Option<&[u32]>; 4]| {
        cuda.linear(4, &hidden, &table, None, &mut logits).expect("it runs");
        let rows = cuda.read(&logits, 4).expect("it is read");
        let requests = allowed.map(|allowed| SampleRequest { allowed, ..Default::default() });
        let mut got = Vec::new();
        cuda.sample(&mut logits, &requests, &mut got).expect("it runs");
        for ((row, request), got) in rows.chunks_exact(VOCAB).zip(&requests).zip(&got) {
            let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
            let left = reference::adjusted_logits(&wide, request);
            let best = (0..VOCAB).max_by(|&a, &b| left[a].total_cmp(&left[b]).then(b.cmp(&a)));
            let best = best.filter(|&best| left[best] > f64::NEG_INFINITY);
            let want = best.map_or(Sampled::NothingAllowed, |best| Sampled::Token {
                token: best as u32,
                logprobs: None,
            });
            assert_eq!(*got, want, "{:?}", request.allowed);
        }
    };
    let long = vec![0x1111_1111; 100];
    sampled([None; 4]);
    sampled([None, Some(&[0x8000_0100, 0xff]), None, Some(&long)]);
    sampled([Some(&[]), Some(&long), Some(&[0, 0, 6]), Some(&[u32::MAX; 32])]);
    sampled([None; 4]);
}
