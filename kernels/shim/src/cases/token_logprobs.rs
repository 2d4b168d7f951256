//! Log-probabilities and ranks of given tokens.

use sconce_kernels::{
    cuda::{
        Driver, Launch, MAX_TOP, SAMPLE_RUN_BYTES, SAMPLE_SHARED_BYTES, SAMPLE_SLICE,
        SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES, SampledRow, TokenLogprobs,
    },
    reference,
};

use super::sampling_runs::rows;
use crate::Bench;

/// Scores a token in each row, with so many likeliest ones; rows are shared out among so many
/// blocks at most.
fn score<D: Driver>(
    bench: &mut Bench<D>,
    logits: &[f32],
    (tokens, num_top): (&[u32], &[u32]),
    most_runs: usize,
) -> Vec<(SampledRow, Vec<(u32, f32)>)> {
    let (rows, vocab_size) = (tokens.len(), logits.len() / tokens.len());
    let slices = vocab_size.div_ceil(SAMPLE_SLICE);
    let runs = slices.div_ceil(slices.div_ceil(most_runs));
    bench.clear();
    let [of_runs, candidates, likeliest, bins] =
        SAMPLE_RUN_BYTES.map(|bytes| bench.buffer(&vec![0xff_u8; rows * runs * bytes]));
    let params = TokenLogprobs {
        logits: bench.buffer(logits),
        tokens: bench.buffer(tokens),
        num_top: bench.buffer(num_top),
        out: bench.buffer(&vec![0_u8; rows * size_of::<SampledRow>()]),
        top: bench.buffer(&vec![0_u32; rows * MAX_TOP * 2]),
        slices: bench.buffer(&vec![0xff_u8; rows * slices * SAMPLE_SLICE_BYTES]),
        runs: of_runs,
        candidates,
        likeliest,
        bins,
        states: bench.buffer(&vec![0_u8; rows * SAMPLE_STATE_BYTES]),
        vocab_size: vocab_size as u32,
        padding: 0,
    };
    let launch = Launch {
        file: "sampling",
        kernel: "token_logprobs",
        grid: [runs as u32, rows as u32],
        threads: 512,
        shared_bytes: SAMPLE_SHARED_BYTES,
    };
    bench.launch(&launch, &params).expect("the kernel runs");
    let rest = Launch { kernel: "token_logprobs_rest", grid: [1, rows as u32], ..launch };
    bench.launch(&rest, &params).expect("the kernel runs");
    let (out, top) = (bench.read::<SampledRow>(params.out), bench.read::<u32>(params.top));
    let tops = top.chunks_exact(MAX_TOP * 2).zip(&out).map(|(top, row)| {
        let pairs = top.chunks_exact(2).take(row.num_top as usize);
        pairs.map(|pair| (pair[0], f32::from_bits(pair[1]))).collect()
    });
    out.iter().copied().zip(tops).collect()
}

pub(super) fn given_tokens_are_scored_and_ranked<D: Driver>(bench: &mut Bench<D>) {
    for (name, row) in rows() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // A stable sort: equals stay in order of their ids.
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).expect("no NaN"));
        let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let want = reference::log_softmax(&wide);
        let last = row.len() - 1;
        // Ranks, ids at the borders of slices, and ids among others.
        let ranks = [0, 1, 2, 30, 99, 4000, last];
        let ids = [0, 1, SAMPLE_SLICE - 1, SAMPLE_SLICE, 2 * SAMPLE_SLICE, 7777, last];
        let tokens: Vec<u32> =
            ranks.iter().map(|&rank| order[rank]).chain(ids).map(|token| token as u32).collect();
        let num_top: Vec<u32> = [0, 3, 20, 32].into_iter().cycle().take(tokens.len()).collect();
        let logits = row.repeat(tokens.len());
        for runs in [1, 2, 3] {
            let got = score(bench, &logits, (&tokens, &num_top), runs);
            for ((&token, &num), (scored, top)) in tokens.iter().zip(&num_top).zip(&got) {
                let what = format!("{name}, token {token}, {runs} runs: {scored:?}");
                assert_eq!(scored.token, token, "{what}");
                let rank = 1 + order.iter().position(|&one| one == token as usize).expect("all");
                assert_eq!(scored.rank as usize, rank, "{what}");
                let ids: Vec<usize> = top.iter().map(|&(token, _)| token as usize).collect();
                assert_eq!(ids, order[..num as usize], "{what}");
                for (token, logprob) in top.iter().copied().chain([(token, scored.logprob)]) {
                    let far = (f64::from(logprob) - want[token as usize]).abs();
                    assert!(far < 1e-4, "{what}: {token} has {logprob}");
                }
            }
        }
    }
    // A row without a distribution has no numbers, and its neighbours theirs.
    let mut logits = vec![0.0; 300];
    logits[150] = f32::NAN;
    let got = score(bench, &logits, (&[7, 7, 7], &[2, 2, 2]), 1);
    let of = |row: usize| (got[row].0.logprob, got[row].1.len());
    assert!(of(1).0.is_nan() && of(1).1 == 0, "{got:?}");
    for row in [0, 2] {
        assert!((of(row).0 + 100.0_f32.ln()).abs() < 1e-5 && of(row).1 == 2, "{got:?}");
        assert_eq!(got[row].0.rank, 8);
    }
}
