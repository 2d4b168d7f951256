//! Sampling against the reference's distribution and the request's own number.

use sconce_kernels::{
    cuda::{
        CountLast, Driver, Launch, MAX_TOP, SAMPLE_RUN_BYTES, SAMPLE_SHARED_BYTES, SAMPLE_SLICE,
        SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES, SampleRow, SampledRow, Sampling, UncountedRow,
    },
    ops::sampling::{SampleRequest, SeenToken},
    reference,
};

use super::element::numbers;
use crate::Bench;

/// What the kernel gave for a row.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) token: u32,
    pub(super) logprob: f32,
    pub(super) top: Vec<(u32, f32)>,
    /// Whether the second launch had something to do.
    pub(super) was_open: bool,
    /// Whether it searched the whole row.
    pub(super) was_searched: bool,
}

/// What a slot sampled before.
const KEPT_BEFORE: u32 = 7;

/// Samples rows of equal length, each shared out among as many blocks as it has slices.
pub(super) fn sample<D: Driver>(
    bench: &mut Bench<D>,
    logits: &[f32],
    requests: &[SampleRequest<'_>],
) -> Vec<Row> {
    sample_in_runs(bench, logits, requests, usize::MAX)
}

/// The same, with so many blocks a row at most.
pub(super) fn sample_in_runs<D: Driver>(
    bench: &mut Bench<D>,
    logits: &[f32],
    requests: &[SampleRequest<'_>],
    most_runs: usize,
) -> Vec<Row> {
    let (mut biases, mut banned, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rows, mut masks) = (Vec::new(), Vec::new());
    let vocab_size = logits.len() / requests.len();
    let mask_words = vocab_size.div_ceil(32);
    for request in requests {
        let border = |list: &Vec<u32>, words: usize| (list.len() / words) as u32;
        let (bias, ban, see) = (border(&biases, 2), border(&banned, 1), border(&seen, 2));
        biases.extend(request.logit_bias.iter().flat_map(|&(token, bias)| [token, bias.to_bits()]));
        banned.extend(request.banned);
        seen.extend(request.seen.iter().flat_map(|seen| [seen.token, seen.output_count]));
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
            num_logprobs: request.num_logprobs.map_or(-1, |num| num as i32),
            bias: [bias, border(&biases, 2)],
            banned: [ban, border(&banned, 1)],
            seen: [see, border(&seen, 2)],
            mask: request.allowed.map_or(-1, |allowed| {
                masks.extend((0..mask_words).map(|i| allowed.get(i).copied().unwrap_or(0)));
                (masks.len() / mask_words) as i32 - 1
            }),
            // Every fourth is kept for nobody.
            slot: if rows.len() % 4 == 3 { -1 } else { rows.len() as i32 },
        });
    }
    bench.clear();
    let mut room = |list: &[u32], words: usize| bench.buffer(&vec![0.0_f32; list.len() / words]);
    let raw = [room(&biases, 2), room(&banned, 1), room(&seen, 2)];
    let slices = vocab_size.div_ceil(SAMPLE_SLICE);
    let runs = slices.div_ceil(slices.div_ceil(most_runs));
    let of_slices = bench.buffer(&vec![0xff_u8; rows.len() * slices * SAMPLE_SLICE_BYTES]);
    let of_runs =
        SAMPLE_RUN_BYTES.map(|bytes| bench.buffer(&vec![0xff_u8; rows.len() * runs * bytes]));
    let params = Sampling {
        logits: bench.buffer(logits),
        requests: bench.buffer(&rows),
        biases: bench.buffer(&biases),
        banned: bench.buffer(&banned),
        seen: bench.buffer(&seen),
        masks: bench.buffer(&masks),
        bias_raw: raw[0],
        banned_raw: raw[1],
        seen_raw: raw[2],
        out: bench.buffer(&vec![0_u8; rows.len() * size_of::<SampledRow>()]),
        top: bench.buffer(&vec![0_u32; rows.len() * MAX_TOP * 2]),
        last_sampled: bench.buffer(&vec![KEPT_BEFORE; rows.len()]),
        slices: of_slices,
        runs: of_runs[0],
        candidates: of_runs[1],
        likeliest: of_runs[2],
        bins: of_runs[3],
        states: bench.buffer(&vec![0_u8; rows.len() * SAMPLE_STATE_BYTES]),
        vocab_size: vocab_size as u32,
        padding: 0,
    };
    let launch = Launch {
        file: "sampling",
        kernel: "sampling",
        grid: [runs as u32, rows.len() as u32],
        threads: 512,
        shared_bytes: SAMPLE_SHARED_BYTES,
    };
    bench.launch(&launch, &params).expect("the kernel runs");
    let rest = Launch { kernel: "sampling_rest", ..launch };
    bench.launch(&rest, &params).expect("the kernel runs");
    let top = bench.read::<u32>(params.top);
    let out = bench.read::<SampledRow>(params.out);
    let states = bench.read::<[u32; 4]>(params.states);
    assert!(states.iter().all(|&[ticket, ..]| ticket == 0), "tickets are left for the next launch");
    let kept = bench.read::<u32>(params.last_sampled);
    for (row, (kept, SampledRow { token, .. })) in kept.into_iter().zip(&out).enumerate() {
        let is_kept = row % 4 != 3 && *token < SampledRow::NOTHING_ALLOWED;
        assert_eq!(kept, if is_kept { *token } else { KEPT_BEFORE }, "of row {row}");
    }
    out.iter()
        .zip(top.chunks_exact(MAX_TOP * 2))
        .zip(&states)
        .map(|((row, top), &[_, open, ..])| Row {
            was_open: open != 0,
            was_searched: open & 5 != 0,
            token: row.token,
            logprob: row.logprob,
            top: top
                .chunks_exact(2)
                .take(row.num_top as usize)
                .map(|top| (top[0], f32::from_bits(top[1])))
                .collect(),
        })
        .collect()
}

/// Logits of a few units, with equals among them.
fn logits(seed: u64, len: usize) -> Vec<f32> {
    numbers(seed, len).iter().map(|x| (x * 40.0).round() / 4.0).collect()
}

fn requests() -> Vec<SampleRequest<'static>> {
    const SEEN: &[SeenToken] = &[
        SeenToken { token: 3, output_count: 2 },
        SeenToken { token: 17, output_count: 0 },
        SeenToken { token: 90_000, output_count: 1 },
    ];
    let base = SampleRequest { temperature: 0.8, ..SampleRequest::default() };
    let filtered = SampleRequest { top_k: 40, top_p: 0.9, min_p: 0.01, ..base };
    let penalized = SampleRequest {
        repetition_penalty: 1.3,
        presence_penalty: 0.5,
        frequency_penalty: 0.2,
        seen: SEEN,
        logit_bias: &[(5, 30.0), (6, -100.0), (80_000, 1.0)],
        banned: &[7, 70_000],
        ..base
    };
    let mut all = vec![
        SampleRequest::default(),
        base,
        SampleRequest { temperature: 1e-6, ..base },
        SampleRequest { temperature: f32::INFINITY, ..base },
        SampleRequest { top_k: 1, ..base },
        SampleRequest { top_k: 7, ..base },
        SampleRequest { top_p: 0.5, ..base },
        SampleRequest { top_p: 0.0, ..base },
        SampleRequest { min_p: 0.3, ..base },
        filtered,
        penalized,
        SampleRequest { top_p: 0.7, temperature: 0.5, ..penalized },
    ];
    for (index, request) in (0..).zip(&mut all) {
        request.seed = 0x1234_5678_9abc_def0 + index;
        request.index = index as u32;
    }
    all
}

pub(super) fn the_drawn_token_is_the_references<D: Driver>(bench: &mut Bench<D>) {
    for vocab_size in [100, 512, 3001] {
        let requests = requests();
        let rows: Vec<f32> =
            (0..requests.len() as u64).flat_map(|row| logits(row, vocab_size)).collect();
        let got = sample(bench, &rows, &requests);
        for (i, (request, row)) in requests.iter().zip(rows.chunks_exact(vocab_size)).enumerate() {
            let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
            let inside = |token: u32| (token as usize) < vocab_size;
            let seen: Vec<_> = request.seen.iter().copied().filter(|s| inside(s.token)).collect();
            let bias: Vec<_> =
                request.logit_bias.iter().copied().filter(|&(token, _)| inside(token)).collect();
            let banned: Vec<_> =
                request.banned.iter().copied().filter(|&token| inside(token)).collect();
            let request =
                SampleRequest { seen: &seen, logit_bias: &bias, banned: &banned, ..*request };
            let token = got[i].token as usize;
            if request.temperature < 1e-5 {
                let adjusted = reference::adjusted_logits(&wide, &request);
                let best = adjusted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let first = adjusted.iter().position(|&logit| logit == best);
                assert_eq!(Some(token), first, "row {i} of {vocab_size}");
                continue;
            }
            let temperature = request.temperature.min(1e9);
            let request = SampleRequest { temperature, ..request };
            // Rounding may move a border past a number that lies at it.
            let is_right = reference::may_be_drawn(&wide, &request, token, 1e-5);
            assert!(is_right, "row {i} of {vocab_size}: not {token}");
        }
    }
}

pub(super) fn log_probabilities_are_of_the_raw_logits<D: Driver>(bench: &mut Bench<D>) {
    let vocab_size = 1000;
    let requests: Vec<_> = requests()
        .into_iter()
        .map(|request| SampleRequest { num_logprobs: Some(20), ..request })
        .collect();
    let rows: Vec<f32> =
        (0..requests.len() as u64).flat_map(|row| logits(row, vocab_size)).collect();
    let got = sample(bench, &rows, &requests);
    for (row, got) in rows.chunks_exact(vocab_size).zip(&got) {
        let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let want = reference::log_softmax(&wide);
        assert!((f64::from(got.logprob) - want[got.token as usize]).abs() < 1e-4);
        let mut order: Vec<usize> = (0..vocab_size).collect();
        order.sort_by(|&a, &b| wide[b].total_cmp(&wide[a]));
        let tokens: Vec<usize> = got.top.iter().map(|&(token, _)| token as usize).collect();
        assert_eq!(tokens, order[..20]);
        for &(token, logprob) in &got.top {
            assert!((f64::from(logprob) - want[token as usize]).abs() < 1e-4);
        }
    }
}

pub(super) fn the_order_of_threads_and_the_neighbours_change_nothing<D: Driver>(
    bench: &mut Bench<D>,
) {
    let requests: Vec<_> = requests()
        .into_iter()
        .map(|request| SampleRequest { num_logprobs: Some(3), ..request })
        .collect();
    let rows: Vec<f32> = (0..requests.len() as u64).flat_map(|row| logits(row, 700)).collect();
    let together = sample(bench, &rows, &requests);
    assert_eq!(sample(bench, &rows, &requests), together);
    for (i, row) in rows.chunks_exact(700).enumerate() {
        let alone = sample(bench, row, &requests[i..=i]);
        assert_eq!(alone[0], together[i], "row {i}");
    }
}

pub(super) fn rows_that_cannot_be_drawn_from_say_so<D: Driver>(bench: &mut Bench<D>) {
    let len = 600;
    let mut rows = Vec::new();
    let mut wrong = logits(1, len);
    wrong[599] = f32::NAN;
    rows.extend(&wrong);
    wrong[599] = f32::INFINITY;
    rows.extend(&wrong);
    rows.extend(vec![f32::NEG_INFINITY; len]);
    // Of this one something is left.
    let mut few = vec![f32::NEG_INFINITY; len];
    few[77] = -3.0;
    rows.extend(&few);
    let request = SampleRequest { temperature: 1.0, num_logprobs: Some(2), ..Default::default() };
    let got = sample(bench, &rows, &[request; 4]);
    for row in &got[..3] {
        assert_eq!(row.token, SampledRow::NON_FINITE);
    }
    assert_eq!((got[3].token, got[3].top.len()), (77, 1));
}

/// In lists that have the token and in lists that do not, more than a block has threads.
pub(super) fn what_slots_sampled_last_is_counted<D: Driver>(bench: &mut Bench<D>) {
    let list = |from: u32, len: u32| (from..from + len).flat_map(|token| [token, token % 3]);
    // Its last entry is free.
    let free = || [u32::MAX, 0].into_iter();
    let lists = [(100, 300), (5, 0), (40, 1), (40, 2)];
    let last_sampled = [7_u32, 41, 399, 100];
    let slots = [2, 1, 3, 1];
    let (mut seen, mut want, mut rows): (Vec<u32>, Vec<u32>, _) = (vec![], vec![], vec![]);
    for ((from, len), slot) in lists.into_iter().zip(slots) {
        let first = seen.len() as u32 / 2;
        let token = last_sampled[slot as usize];
        let mut counted: Vec<u32> = list(from, len).chain(free()).collect();
        seen.extend(&counted);
        rows.push(UncountedRow { slot, seen: [first, seen.len() as u32 / 2] });
        match counted.chunks_exact_mut(2).find(|entry| entry[0] == token) {
            Some(entry) => entry[1] += 1,
            None => counted.splice(len as usize * 2.., [token, 1]).for_each(drop),
        }
        want.extend(counted);
    }
    bench.clear();
    let params = CountLast {
        rows: bench.buffer(&rows),
        seen: bench.buffer(&seen),
        last_sampled: bench.buffer(&last_sampled),
    };
    bench.launch(&CountLast::launch(rows.len() as u32), &params).expect("the kernel runs");
    assert_eq!(bench.read::<u32>(params.seen), want);
}
