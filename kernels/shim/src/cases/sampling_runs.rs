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
        SampleRequest { top_k: 120, ..base },
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
pub(super) fn rows() -> Vec<(&'static str, Vec<f32>)> {
    // A few far above all others, which are equal.
    let mut stairs = vec![-90.0; LEN];
    for i in 0..100 {
        stairs[i * 197] = (i % 7) as f32 / 8.0;
    }
    // Neighbours are alike, so that few threads have all that is large.
    let blocks = normal(4, LEN / 20, 2.7);
    let steps = (0..LEN).map(|i| blocks[i / 20 % blocks.len()] + (i % 20) as f32 * 1e-4);
    // A slice of equals, too many to list, among the largest of another.
    let mut ledge = normal(8, LEN, 2.7);
    ledge[8192..16_384].fill(7.0);
    // A slice whose bins lie a whole ring below those of the next.
    let mut jump = normal(9, LEN, 2.7);
    jump[..8192].iter_mut().for_each(|x| *x -= 64.0);
    // A hundred threads have all that is large of the first slice, so that what is listed
    // beside it has to make room for the second's.
    let mut cliff = normal(10, LEN, 0.1);
    for (i, x) in cliff[..8192].iter_mut().enumerate() {
        if i % 2048 < 400 {
            *x = if i < 60 { 8.0 } else { 5.0 };
        }
    }
    cliff[8192..8592].fill(6.0);
    // Equals that are given up, then little above the bins that they were counted in.
    let mut sunk = vec![-9.0; LEN];
    sunk[..16_384].fill(0.05);
    sunk[16_384..16_484].fill(0.01);
    sunk[16_392] = 1.0;
    // Too many to list, and all in the last bin.
    let huge = (0..LEN).map(|i| 1e9 + ((i * 7919) % LEN) as f32 * 16_384.0);
    vec![
        ("normal", normal(3, LEN, 2.7)),
        ("sunk", sunk),
        ("huge", huge.collect()),
        ("jump", jump),
        ("cliff", cliff),
        ("ledge", ledge),
        ("ascending", (0..LEN).map(|i| i as f32 * 24.0 / LEN as f32).collect()),
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

/// Of rows that keep more than is listed, but little of the whole, or many equals at the border.
pub(super) fn wide_nuclei_are_settled_by_a_second_look<D: Driver>(bench: &mut Bench<D>) {
    let row = normal(7, LEN, 2.7);
    // A border among equals, which a bin holds, below a few others.
    let mut plateau: Vec<f32> = (0..LEN).map(|i| if i % 13 == 0 { 3.0 } else { -4.0 }).collect();
    plateau.iter_mut().step_by(997).for_each(|x| *x = 4.0);
    let base = SampleRequest { temperature: 4.0, ..SampleRequest::default() };
    let wide = |share: f32| {
        [
            (&row, SampleRequest { top_p: share, temperature: 3.0, ..base }),
            (&row, SampleRequest { top_p: share, ..base }),
            (&row, SampleRequest { min_p: 0.1 + share, ..base }),
            (&row, SampleRequest { top_k: 200 + (share * 1000.0) as u32, ..base }),
            (&plateau, SampleRequest { top_p: share / 2.0, temperature: 1.0, ..base }),
        ]
    };
    let mut num_open = [0; 5];
    for (seed, share) in (1..).zip([0.1, 0.15, 0.2, 0.25, 0.3]) {
        let rows = wide(share);
        let requests = seeded(rows.iter().map(|(_, request)| *request).collect(), seed);
        let logits: Vec<f32> = rows.iter().flat_map(|(row, _)| row.iter().copied()).collect();
        for runs in [1, 3] {
            let got = sample_in_runs(bench, &logits, &requests, runs);
            for (i, ((row, _), got)) in rows.iter().zip(&got).enumerate() {
                let Row { was_open, was_searched, .. } = *got;
                assert!(!was_searched, "{share}, row {i}, {runs} runs");
                check(row, &requests[i], got, &format!("{share}, row {i}, {runs} runs"));
                num_open[i] += u32::from(was_open);
            }
        }
    }
    assert!(num_open.iter().all(|&num| num > 1), "rows were left open: {num_open:?}");
}
