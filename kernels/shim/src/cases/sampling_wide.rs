//! Sampling from vocabularies of several slices, and from rows that are hard to cut.

use sconce_kernels::{
    cuda::{Driver, SampledRow},
    ops::sampling::{SampleRequest, SeenToken},
    reference,
};

use super::{
    element::numbers,
    sampling::{Row, sample},
};
use crate::Bench;

/// About normal, of standard deviation `spread`.
pub(super) fn normal(seed: u64, len: usize, spread: f32) -> Vec<f32> {
    let parts = [0, 1, 2, 3].map(|part| numbers(seed * 4 + part, len));
    let [a, b, c, d] = &parts;
    // Numbers in [-1, 1) have a variance of a third.
    let factor = spread * (3.0_f32 / 4.0).sqrt();
    (0..len).map(|i| (a[i] + b[i] + c[i] + d[i]) * factor).collect()
}

/// A few likely tokens among many that are not.
fn peaked(seed: u64, len: usize) -> Vec<f32> {
    let mut logits = normal(seed, len, 2.0);
    for (i, peak) in numbers(seed + 77, 12).iter().enumerate() {
        logits[(seed as usize * 31 + i * 7919) % len] = 20.0 + peak * 3.0;
    }
    logits
}

/// What each kind of request asks, at a temperature.
pub(super) fn requests() -> Vec<SampleRequest<'static>> {
    let base = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    vec![
        SampleRequest::default(),
        base,
        SampleRequest { temperature: 0.7, top_k: 50, top_p: 0.9, ..base },
        SampleRequest { top_p: 0.95, ..base },
        SampleRequest { temperature: 2.0, top_p: 0.999, ..base },
        SampleRequest { min_p: 0.02, ..base },
        SampleRequest { top_k: 3000, ..base },
    ]
}

/// Checks a row against the reference; a border in sums may move by rounding.
pub(super) fn check(logits: &[f32], request: &SampleRequest<'_>, got: &Row, what: &str) {
    const ROUNDING: f64 = 2e-6;
    let wide: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    let token = got.token as usize;
    if request.temperature < 1e-5 {
        let best = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(Some(token), wide.iter().position(|&logit| logit == best), "{what}");
        return;
    }
    assert!(reference::may_be_drawn(&wide, request, token, ROUNDING), "{what}: not {token}");
}

/// Checks that the `num` likeliest tokens are reported, equals by id.
pub(super) fn check_top(logits: &[f32], num: usize, got: &Row, what: &str) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN"));
    let tokens: Vec<usize> = got.top.iter().map(|&(token, _)| token as usize).collect();
    assert_eq!(tokens, order[..num], "{what}");
    let wide: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    let want = reference::log_softmax(&wide);
    for (token, logprob) in got.top.iter().copied().chain([(got.token, got.logprob)]) {
        let want = want[token as usize];
        assert!((f64::from(logprob) - want).abs() < 1e-4, "{what}: {token}: {logprob}, not {want}");
    }
}

/// Each request on its own row, some with others' numbers.
pub(super) fn seeded(
    requests: Vec<SampleRequest<'static>>,
    seed: u64,
) -> Vec<SampleRequest<'static>> {
    let seeds = (0..).map(|i| seed * 1000 + i);
    requests
        .into_iter()
        .zip(seeds)
        .map(|(request, seed)| SampleRequest { seed, index: seed as u32 % 5, ..request })
        .collect()
}

pub(super) fn vocabularies_of_any_length_draw_the_references_token<D: Driver>(
    bench: &mut Bench<D>,
) {
    // A slice and one more; rows that do not start at 16 bytes; as many as there are.
    for (vocab_size, seed) in [(8192, 1), (8193, 2), (20_003, 3), (128_256, 4)] {
        let requests = seeded(requests(), seed);
        let rows: Vec<Vec<f32>> = (0..requests.len() as u64)
            .map(|i| {
                if (i + seed).is_multiple_of(2) {
                    normal(seed * 10 + i, vocab_size, 2.7)
                } else {
                    peaked(seed * 10 + i, vocab_size)
                }
            })
            .collect();
        let got = sample(bench, &rows.concat(), &requests);
        for (i, (request, row)) in requests.iter().zip(&rows).enumerate() {
            check(row, request, &got[i], &format!("row {i} of {vocab_size}"));
        }
    }
    let request = SampleRequest { temperature: 1.0, top_k: 100, seed: 5, ..Default::default() };
    let row = normal(5, 262_144, 2.0);
    let got = sample(bench, &row, &[request]);
    check(&row, &request, &got[0], "262,144 tokens");
}

pub(super) fn equals_go_to_the_lowest_ids<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 9001;
    let base = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    let level = vec![-1.5; LEN];
    // The last 500 of the first slice and all of the second.
    let mut two: Vec<f32> = vec![-2.0; LEN];
    two[7692..].fill(1.0);
    // A zero of the other sign is no larger.
    let mut zeros: Vec<f32> = vec![-1.0; LEN];
    zeros[8500] = -0.0;
    zeros[8600] = 0.0;
    // Small weights, whose sums are far beyond 32 bits.
    let mut small: Vec<f32> = vec![-8.0; LEN];
    small[8999] = 0.0;
    let cases = [
        (&level, SampleRequest::default()),
        (&level, SampleRequest { top_k: 1, ..base }),
        (&level, SampleRequest { top_k: 700, ..base }),
        (&level, SampleRequest { top_p: 0.5, ..base }),
        (&level, base),
        (&two, SampleRequest { top_k: 1, ..base }),
        (&two, SampleRequest { top_k: 600, ..base }),
        (&two, SampleRequest { top_k: 3, top_p: 0.5, ..base }),
        (&two, SampleRequest { min_p: 0.5, ..base }),
        (&zeros, SampleRequest::default()),
        (&zeros, SampleRequest { top_k: 1, ..base }),
        (&small, SampleRequest { top_p: 0.8, ..base }),
    ];
    let requests: Vec<_> = cases
        .iter()
        .zip(40..)
        .map(|((_, request), seed)| SampleRequest { seed, num_logprobs: Some(20), ..*request })
        .collect();
    let rows: Vec<f32> = cases.iter().flat_map(|(row, _)| row.iter().copied()).collect();
    let got = sample(bench, &rows, &requests);
    for (i, (row, _)) in cases.iter().enumerate() {
        check(row, &requests[i], &got[i], &format!("row {i}"));
        check_top(row, 20, &got[i], &format!("row {i}"));
    }
    // Too many equals for what slices tell of: these rows were searched whole.
    assert!(got[2].was_open && got[3].was_open, "a level row is left open");
}

pub(super) fn most_rows_are_settled_by_their_slices<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 20_000;
    let base = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    let flat = normal(1, LEN, 2.7);
    let peaked = peaked(2, LEN);
    // All but one are further down than bins go: they have no weight, but are reported.
    let mut spike = normal(3, LEN, 0.5);
    spike[13_000] = 300.0;
    let few = SampleRequest { top_k: 50, top_p: 0.9, num_logprobs: Some(20), ..base };
    let nucleus = SampleRequest { top_p: 0.95, ..base };
    let cases = [
        (&flat, SampleRequest { num_logprobs: Some(20), ..Default::default() }, false),
        (&flat, few, false),
        (&flat, nucleus, false),
        (&flat, SampleRequest { top_k: 120, ..base }, false),
        // Little of the row is kept, and more than is listed.
        (&flat, SampleRequest { top_p: 0.1, temperature: 4.0, ..base }, true),
        (&flat, SampleRequest { top_k: 200, temperature: 4.0, ..base }, true),
        (&peaked, few, false),
        (&peaked, nucleus, false),
        (&peaked, SampleRequest { min_p: 0.1, ..base }, false),
        (&spike, nucleus, false),
        (&spike, few, true),
    ];
    let requests: Vec<_> =
        cases.iter().zip(70..).map(|((_, r, _), seed)| SampleRequest { seed, ..*r }).collect();
    let rows: Vec<f32> = cases.iter().flat_map(|(row, ..)| row.iter().copied()).collect();
    let got = sample(bench, &rows, &requests);
    for (i, (row, _, open)) in cases.iter().enumerate() {
        assert_eq!(got[i].was_open, *open, "row {i}");
        check(row, &requests[i], &got[i], &format!("row {i}"));
        if requests[i].num_logprobs.is_some() {
            check_top(row, 20, &got[i], &format!("row {i}"));
        }
    }
    // Wide filters that keep most of a row: its border matters to few draws.
    for wide in
        [nucleus, SampleRequest { top_k: 3000, ..base }, SampleRequest { min_p: 1e-4, ..base }]
    {
        let requests: Vec<_> = (0..10).map(|index| SampleRequest { index, ..wide }).collect();
        let got = sample(bench, &flat.repeat(requests.len()), &requests);
        for (request, got) in requests.iter().zip(&got) {
            check(&flat, request, got, &format!("{request:?}"));
        }
        let num_open = got.iter().filter(|row| row.was_open).count();
        assert!(num_open <= 1, "{num_open} of 10 are open: {wide:?}");
    }
}

pub(super) fn a_row_with_penalties_is_searched_raw_and_drawn_from_changed<D: Driver>(
    bench: &mut Bench<D>,
) {
    const LEN: usize = 12_000;
    const SEEN: &[SeenToken] =
        &[SeenToken { token: 11_000, output_count: 3 }, SeenToken { token: 40, output_count: 0 }];
    let mut row = normal(9, LEN, 0.01);
    row[11_000] = 90.0;
    row[9000] = 85.0;
    row[40] = -90.0;
    let request = SampleRequest {
        temperature: 1.0,
        top_p: 0.6,
        repetition_penalty: 1.5,
        presence_penalty: 1.0,
        seen: SEEN,
        logit_bias: &[(9000, -85.0), (11_000, -90.0), (20_000, 5.0)],
        banned: &[7, 11_999],
        seed: 3,
        num_logprobs: Some(20),
        ..SampleRequest::default()
    };
    let got = &sample(bench, &row, &[request])[0];
    assert!(got.was_open, "the rest of the row is level");
    let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
    let inside = SampleRequest { logit_bias: &request.logit_bias[..2], ..request };
    let changed: Vec<f32> =
        reference::adjusted_logits(&wide, &inside).iter().map(|&logit| logit as f32).collect();
    let only_drawn = SampleRequest { top_p: 0.6, ..SampleRequest::default() };
    let only_drawn = SampleRequest { temperature: 1.0, seed: 3, ..only_drawn };
    check(&changed, &only_drawn, got, "the changed row");
    check_top(&row, 20, got, "the raw row");
}

pub(super) fn a_rows_bits_are_its_own_over_several_slices<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 17_001;
    let requests: Vec<_> = seeded(requests(), 6)
        .into_iter()
        .map(|request| SampleRequest { num_logprobs: Some(5), ..request })
        .collect();
    let mut rows: Vec<Vec<f32>> =
        (0..requests.len() as u64).map(|i| normal(100 + i, LEN, 2.7)).collect();
    // A neighbour from which nothing can be drawn, whichever slice says so.
    rows[1][16_900] = f32::NAN;
    let together = sample(bench, &rows.concat(), &requests);
    assert_eq!(together[1].token, SampledRow::NON_FINITE);
    assert_eq!(sample(bench, &rows.concat(), &requests), together);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(sample(bench, row, &requests[i..=i])[0], together[i], "row {i}");
    }
}

pub(super) fn a_slice_that_cannot_be_drawn_from_ends_its_row<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 24_000;
    let request = SampleRequest {
        temperature: 1.0,
        top_p: 0.9,
        num_logprobs: Some(20),
        ..SampleRequest::default()
    };
    let base = normal(8, LEN, 3.0);
    let mut rows = Vec::new();
    for at in [0, 8192, 23_999] {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let mut row = base.clone();
            row[at] = wrong;
            rows.push(row);
        }
    }
    let bad = rows.len();
    // Slices with nothing to draw are no harm, and a lone token is drawn.
    let mut holes = base.clone();
    holes[8192..16_384].fill(f32::NEG_INFINITY);
    let mut lone = vec![f32::NEG_INFINITY; LEN];
    lone[20_000] = -7.0;
    rows.extend([holes, lone]);
    let got = sample(bench, &rows.concat(), &vec![request; rows.len()]);
    for (i, row) in got[..bad].iter().enumerate() {
        assert_eq!(row.token, SampledRow::NON_FINITE, "row {i}");
    }
    check(&rows[bad], &request, &got[bad], "a slice of nothing");
    assert_eq!(got[bad].top.len(), 20);
    assert_eq!((got[bad + 1].token, got[bad + 1].top.len()), (20_000, 1));
}
