//! Sampling where a row's slices are shared out among fewer blocks, and where what it keeps is
//! too much for lists.

use sconce_kernels::{cuda::Driver, ops::sampling::SampleRequest};

use super::{
    sampling::{Row, sample_in_runs},
    sampling_wide::{check, check_top, normal, seeded},
};
use crate::Bench;

/// Two slices and a part of one.
const LEN: usize = 20_580;

/// What keeps many tokens, and what the lists settle.
fn requests() -> Vec<SampleRequest<'static>> {
    let base = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    vec![
        SampleRequest::default(),
        base,
        SampleRequest { top_k: 50, top_p: 0.9, ..base },
        SampleRequest { top_p: 0.95, ..base },
        SampleRequest { temperature: 1.5, top_p: 0.8, ..base },
        SampleRequest { temperature: 0.1, top_p: 0.999, ..base },
        SampleRequest { min_p: 1e-4, ..base },
        SampleRequest { top_k: 3000, ..base },
        // So many have no weight.
        SampleRequest { temperature: 0.05, top_k: 20_000, ..base },
        SampleRequest { top_k: 3000, top_p: 0.9, ..base },
    ]
}

/// Rows whose lists fill in different ways.
fn rows() -> Vec<(&'static str, Vec<f32>)> {
    // A few far above all others, which are equal.
    let mut stairs = vec![-90.0; LEN];
    for i in 0..100 {
        stairs[i * 197] = (i % 7) as f32 / 8.0;
    }
    // Neighbours are alike, so that few threads have all that is large.
    let blocks = normal(4, LEN / 20, 2.7);
    let steps = (0..LEN).map(|i| blocks[i / 20 % blocks.len()] + (i % 20) as f32 * 1e-4);
    vec![
        ("normal", normal(3, LEN, 2.7)),
        ("ascending", (0..LEN).map(|i| i as f32 * 24.0 / LEN as f32).collect()),
        ("far", normal(5, LEN, 2.0).iter().map(|x| x - 900.0).collect()),
        ("stairs", stairs),
        ("steps", steps.collect()),
        ("level", normal(6, LEN, 0.02)),
    ]
}

pub(super) fn a_row_is_the_same_however_its_slices_are_shared_out<D: Driver>(bench: &mut Bench<D>) {
    for (seed, (name, row)) in (20..).zip(rows()) {
        let requests: Vec<_> = seeded(requests(), seed)
            .into_iter()
            .enumerate()
            .map(|(i, request)| SampleRequest {
                num_logprobs: (i % 2 == 0).then_some(20),
                ..request
            })
            .collect();
        let logits = row.repeat(requests.len());
        let want = sample_in_runs(bench, &logits, &requests, 3);
        for (i, (request, got)) in requests.iter().zip(&want).enumerate() {
            check(&row, request, got, &format!("{name}, row {i}"));
            if request.num_logprobs.is_some() {
                check_top(&row, 20, got, &format!("{name}, row {i}"));
            }
        }
        for runs in [1, 2] {
            assert_eq!(
                sample_in_runs(bench, &logits, &requests, runs),
                want,
                "{name}, {runs} runs"
            );
        }
    }
}

pub(super) fn wide_nuclei_are_settled_by_a_second_look<D: Driver>(bench: &mut Bench<D>) {
    let row = normal(7, LEN, 2.7);
    for (seed, share) in (1..).zip([0.5, 0.95, 0.999]) {
        let base = SampleRequest { temperature: 1.0, seed, ..SampleRequest::default() };
        let wide = [
            SampleRequest { top_p: share, temperature: 1.5, ..base },
            SampleRequest { top_p: share, temperature: 4.0, ..base },
            SampleRequest { min_p: 1e-3, index: 1, ..base },
            SampleRequest { top_k: 700 + 500 * seed as u32, ..base },
        ];
        let logits = row.repeat(wide.len());
        for runs in [1, 3] {
            let got = sample_in_runs(bench, &logits, &wide, runs);
            for (i, (request, got)) in wide.iter().zip(&got).enumerate() {
                let Row { was_open, was_searched, .. } = *got;
                assert!(was_open && !was_searched, "{share}, row {i}, {runs} runs");
                check(&row, request, got, &format!("{share}, row {i}, {runs} runs"));
            }
        }
    }
}
