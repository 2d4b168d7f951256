use sconce_kernels::{
    Sampler as _,
    cpu::{Cpu, Isa},
    ops::sampling::{Logprobs, SampleRequest, Sampled, SeenToken, uniform},
    reference,
};

use crate::case::{buffer, cpu, every_isa, numbers, wide};

fn sample(cpu: &mut Cpu, rows: &[f32], requests: &[SampleRequest<'_>]) -> Vec<Sampled> {
    let mut logits = buffer(cpu, rows, rows.len() / requests.len());
    let mut out = Vec::new();
    cpu.sample(&mut logits, requests, &mut out).expect("shapes fit");
    out
}

fn token(sampled: &Sampled) -> u32 {
    match sampled {
        Sampled::Token { token, .. } => *token,
        Sampled::NonFinite | Sampled::NothingAllowed => panic!("a token was expected"),
    }
}

/// Logits as a model's are: a few clear favourites and a long tail.
fn peaked(seed: u64, len: usize) -> Vec<f32> {
    numbers(seed, len).iter().map(|x| x.powi(3) * 9.0).collect()
}

/// Requests that between them use every filter and every adjustment.
fn requests<'a>(seen: &'a [SeenToken], bias: &'a [(u32, f32)]) -> Vec<SampleRequest<'a>> {
    let plain = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    vec![
        plain,
        SampleRequest { temperature: 0.6, ..plain },
        SampleRequest { temperature: 3.0, ..plain },
        SampleRequest { top_k: 1, ..plain },
        SampleRequest { top_k: 40, ..plain },
        SampleRequest { top_k: 129, ..plain },
        SampleRequest { top_k: 700, temperature: 2.0, ..plain },
        SampleRequest { top_p: 0.9, ..plain },
        SampleRequest { top_p: 0.95, temperature: 1.7, ..plain },
        SampleRequest { top_p: 0.999, temperature: 5.0, ..plain },
        SampleRequest { top_p: 0.0, ..plain },
        SampleRequest { min_p: 0.05, ..plain },
        SampleRequest { min_p: 1.0, ..plain },
        SampleRequest { min_p: 0.01, top_k: 60, top_p: 0.8, temperature: 1.5, ..plain },
        SampleRequest { repetition_penalty: 1.3, seen, ..plain },
        SampleRequest { presence_penalty: 0.7, frequency_penalty: 0.4, seen, top_k: 9, ..plain },
        SampleRequest { logit_bias: bias, banned: &[0, 5], top_p: 0.7, ..plain },
        SampleRequest {
            repetition_penalty: 0.8,
            presence_penalty: -0.5,
            frequency_penalty: -0.1,
            seen,
            logit_bias: bias,
            banned: &[17],
            min_p: 0.02,
            ..plain
        },
    ]
}

/// Seen tokens and biases among the likeliest, where they matter.
fn adjustments(logits: &[f32]) -> (Vec<SeenToken>, Vec<(u32, f32)>) {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    let seen = |(i, &token): (usize, &u32)| SeenToken { token, output_count: i as u32 % 4 };
    let seen = order.iter().step_by(2).take(20).enumerate().map(seen).collect();
    let bias = order.iter().skip(1).step_by(3).take(9).zip(0..);
    (seen, bias.map(|(&token, i)| (token, i as f32 * 0.5 - 2.0)).collect())
}

#[test]
fn the_drawn_token_is_the_references() {
    for mut cpu in every_isa() {
        for vocab_size in [1_000, 5_003, 49_152] {
            let logits = peaked(1, vocab_size);
            let (seen, bias) = adjustments(&logits);
            for (case, request) in requests(&seen, &bias).into_iter().enumerate() {
                let wide = wide(&logits);
                let draws: Vec<_> = (0..20)
                    .map(|i| SampleRequest { seed: 7 << 40 | 9, index: i, ..request })
                    .collect();
                let rows = logits.repeat(draws.len());
                for (draw, sampled) in draws.iter().zip(sample(&mut cpu, &rows, &draws)) {
                    let (token, isa) = (token(&sampled) as usize, cpu.isa().name());
                    assert!(
                        reference::may_be_drawn(&wide, draw, token, 1e-5),
                        "{isa} case {case} of {vocab_size}: not {token}, {draw:?}"
                    );
                }
            }
        }
    }
}

/// Pearson's chi-squared statistic stays below `df + 4 sqrt(2 df) + 6` but for
/// about one seed in ten thousand; the seed is fixed.
#[test]
fn tokens_are_drawn_as_often_as_their_probabilities_say() {
    const DRAWS: u32 = 6_000;
    let vocab_size = 130;
    let logits: Vec<f32> = numbers(2, vocab_size).iter().map(|x| x * 3.0).collect();
    let (seen, bias) = adjustments(&logits);
    for mut cpu in every_isa() {
        for (case, request) in requests(&seen, &bias).into_iter().enumerate() {
            let probabilities = reference::distribution(&wide(&logits), &request);
            let draws: Vec<_> =
                (0..DRAWS).map(|index| SampleRequest { seed: 11, index, ..request }).collect();
            let mut counts = vec![0.0; vocab_size];
            for sampled in sample(&mut cpu, &logits.repeat(draws.len()), &draws) {
                counts[token(&sampled) as usize] += 1.0;
            }
            // Rare tokens share a cell.
            let (mut statistic, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
            for (&probability, &count) in probabilities.iter().zip(&counts) {
                let expected = probability * f64::from(DRAWS);
                if expected == 0.0 {
                    assert_eq!(count, 0.0, "case {case}: a filtered token was drawn");
                } else if expected < 5.0 {
                    rare = (rare.0 + expected, rare.1 + count);
                } else {
                    statistic += (count - expected).powi(2) / expected;
                    cells += 1.0;
                }
            }
            if rare.0 >= 5.0 {
                statistic += (rare.1 - rare.0).powi(2) / rare.0;
                cells += 1.0;
            }
            let df: f64 = cells - 1.0;
            let limit = df + 4.0 * (2.0 * df).sqrt() + 6.0;
            let isa = cpu.isa().name();
            assert!(statistic <= limit, "{isa} case {case}: {statistic} of {cells} cells");
        }
    }
}

#[test]
fn greedy_takes_the_likeliest_and_of_equals_the_lowest_id() {
    for mut cpu in every_isa() {
        for vocab_size in [1, 3, 64, 1_001] {
            for at in [0, vocab_size / 2, vocab_size - 1] {
                let mut logits: Vec<f32> = numbers(3, vocab_size).iter().map(|x| x - 2.0).collect();
                logits[at..].fill(-0.5);
                let got = sample(&mut cpu, &logits, &[SampleRequest::default()]);
                assert_eq!(got, [Sampled::Token { token: at as u32, logprobs: None }]);
            }
        }
        let logits = [1.0, 3.0, 2.0, 3.0];
        let mut with = |request| token(&sample(&mut cpu, &logits, &[request])[0]);
        assert_eq!(with(SampleRequest { banned: &[1], ..SampleRequest::default() }), 3);
        assert_eq!(with(SampleRequest { logit_bias: &[(0, 2.5)], ..SampleRequest::default() }), 0);
        let seen = [SeenToken { token: 1, output_count: 1 }];
        let penalized =
            SampleRequest { presence_penalty: 0.1, seen: &seen, ..SampleRequest::default() };
        assert_eq!(with(penalized), 3);
        // The prompt's tokens bear the repetition penalty only.
        let seen = [SeenToken { token: 1, output_count: 0 }];
        let penalized =
            SampleRequest { presence_penalty: 0.1, seen: &seen, ..SampleRequest::default() };
        assert_eq!(with(penalized), 1);
        let repeated =
            SampleRequest { repetition_penalty: 1.1, seen: &seen, ..SampleRequest::default() };
        assert_eq!(with(repeated), 3);
    }
}

#[test]
fn log_probabilities_are_of_the_raw_logits() {
    let vocab_size = 4_000;
    let logits = peaked(4, vocab_size);
    let want = reference::log_softmax(&wide(&logits));
    let mut order: Vec<usize> = (0..vocab_size).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let check = |got: &Logprobs, num_top: usize| {
        let close = |got: f32, want: f64| (f64::from(got) - want).abs() < 1e-5;
        assert!(close(got.logprob, want[got.token as usize]), "{got:?}");
        let tokens: Vec<usize> = got.top.iter().map(|&(token, _)| token as usize).collect();
        assert_eq!(tokens, order[..num_top]);
        assert!(got.top.iter().all(|&(token, logprob)| close(logprob, want[token as usize])));
    };
    for mut cpu in every_isa() {
        let best = order[0] as u32;
        let requests: Vec<_> = [0, 1, 5, 20, 100, 3_000]
            .map(|num_top| SampleRequest {
                temperature: if num_top % 2 == 0 { 0.0 } else { 0.8 },
                num_logprobs: Some(num_top),
                logit_bias: &[(3, 1.0), (7, 100.0)],
                banned: if num_top == 5 { &[7] } else { &[] },
                seed: 5,
                ..SampleRequest::default()
            })
            .into();
        let got = sample(&mut cpu, &logits.repeat(requests.len()), &requests);
        for (request, got) in requests.iter().zip(got) {
            let Sampled::Token { token, logprobs: Some(logprobs) } = got else {
                panic!("log-probabilities were asked for: {got:?}")
            };
            assert_eq!(token, logprobs.token);
            assert!(token == 7 || request.banned == [7], "the bias decides");
            check(&logprobs, request.num_logprobs.expect("asked for") as usize);
        }
        let rows = buffer(&cpu, &logits.repeat(3), vocab_size);
        let mut out = Vec::new();
        cpu.logprobs(&rows, &[best, 0, 3_999], &[0, 3, 50], &mut out).expect("shapes fit");
        assert_eq!(out.iter().map(|l| l.token).collect::<Vec<_>>(), [best, 0, 3_999]);
        out.iter().zip([0, 3, 50]).for_each(|(got, num_top)| check(got, num_top));
        for got in &out {
            let place = order.iter().position(|&token| token == got.token as usize);
            assert_eq!(got.rank, place.map(|place| place as u32 + 1), "{got:?}");
        }
        // Equals by their ids.
        let level = buffer(&cpu, &[1.0, 2.0, 2.0, -1.0, 2.0, -0.0, 0.0].repeat(7), 7);
        let mut out = Vec::new();
        cpu.logprobs(&level, &[0, 1, 2, 3, 4, 5, 6], &[0; 7], &mut out).expect("shapes fit");
        assert_eq!(
            out.iter().map(|got| got.rank).collect::<Vec<_>>(),
            [4, 1, 2, 7, 3, 5, 6].map(Some)
        );
        assert!(cpu.logprobs(&rows, &[4_000], &[0], &mut out).is_err());
        assert!(cpu.logprobs(&rows, &[1], &[], &mut out).is_err());
    }
}

#[test]
fn a_row_that_is_not_finite_is_alone_in_it() {
    let vocab_size = 200;
    let good = peaked(6, vocab_size);
    let spoilt = |at: usize, value: f32| {
        let mut row = good.clone();
        row[at] = value;
        row
    };
    let rows = [
        good.clone(),
        spoilt(0, f32::NAN),
        good.clone(),
        spoilt(199, -f32::NAN),
        spoilt(100, f32::INFINITY),
        vec![f32::NEG_INFINITY; vocab_size],
        vec![f32::NAN; vocab_size],
        spoilt(50, f32::NEG_INFINITY),
        good.clone(),
    ];
    let everything: Vec<u32> = (0..vocab_size as u32).collect();
    for mut cpu in every_isa() {
        for temperature in [0.0, 1.0] {
            for num_logprobs in [None, Some(2)] {
                let request = SampleRequest {
                    temperature,
                    num_logprobs,
                    seed: 3,
                    top_p: 0.9,
                    ..SampleRequest::default()
                };
                let mut requests = [request; 9];
                requests[8].banned = &everything;
                let got = sample(&mut cpu, &rows.concat(), &requests);
                let finite: Vec<_> = got.iter().map(|got| *got != Sampled::NonFinite).collect();
                assert_eq!(finite, [true, false, true, false, false, false, false, true, true]);
                assert_eq!(got[8], Sampled::NothingAllowed);
                assert_eq!(got[0], got[2]);
                assert_eq!(got[..1], sample(&mut cpu, &good, &[request]));
            }
        }
    }
}

/// Under masks of one token, few, half, all, and of fewer words than the vocabulary has.
#[test]
fn only_what_a_mask_allows_is_drawn_and_log_probabilities_are_of_all() {
    for vocab_size in [100, 5_003] {
        let logits = peaked(8, vocab_size);
        let (seen, bias) = adjustments(&logits);
        let random = numbers(9, vocab_size);
        let mask = |is_allowed: &dyn Fn(usize) -> bool| -> Vec<u32> {
            let bit = |token: usize| u32::from(is_allowed(token)) << (token % 32);
            let words = (0..vocab_size.div_ceil(32)).map(|word| word * 32..word * 32 + 32);
            words.map(|tokens| tokens.filter(|&t| t < vocab_size).map(bit).sum()).collect()
        };
        let mut masks = vec![
            mask(&|token| token == vocab_size * 2 / 3),
            mask(&|token| random[token] < -0.95),
            mask(&|token| random[token] < 0.0),
            mask(&|token| token % 2 == 1),
        ];
        let short = masks[2][..masks[2].len() / 2].to_vec();
        let long = [&masks[2][..], &[u32::MAX; 3]].concat();
        masks.extend([short, long]);
        let all = mask(&|_| true);
        let want_logprobs = reference::log_softmax(&wide(&logits));
        for mut cpu in every_isa() {
            for (case, request) in requests(&seen, &bias).into_iter().enumerate() {
                let greedy = SampleRequest { temperature: 0.0, ..request };
                let draws: Vec<_> = (0..6)
                    .map(|index| SampleRequest { seed: 5, index, ..request })
                    .chain([greedy])
                    .map(|draw| SampleRequest { num_logprobs: Some(3), ..draw })
                    .collect();
                let rows = logits.repeat(draws.len());
                let under = |allowed| -> Vec<_> {
                    draws.iter().map(|draw| SampleRequest { allowed, ..*draw }).collect()
                };
                let plain = sample(&mut cpu, &rows, &under(None));
                assert_eq!(sample(&mut cpu, &rows, &under(Some(&all))), plain, "case {case}");
                let Sampled::Token { logprobs: Some(of_all), .. } = &plain[0] else {
                    panic!("{plain:?}")
                };
                for allowed in &masks {
                    let masked = SampleRequest { allowed: Some(allowed), ..request };
                    let probabilities = reference::distribution(&wide(&logits), &masked);
                    for sampled in sample(&mut cpu, &rows, &under(Some(allowed))) {
                        let token = token(&sampled) as usize;
                        let what = format!("case {case} of {vocab_size}: token {token}");
                        assert!(probabilities[token] > 0.0, "{what}");
                        let Sampled::Token { logprobs: Some(logprobs), .. } = sampled else {
                            panic!("{what}")
                        };
                        assert_eq!(logprobs.top, of_all.top, "{what}");
                        let far = f64::from(logprobs.logprob) - want_logprobs[token];
                        assert!(far.abs() < 1e-5, "{what}: {logprobs:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_mask_that_leaves_nothing_is_the_rows_own_end() {
    let mut logits = vec![0.5; 100];
    logits[70] = f32::NEG_INFINITY;
    let only = |token: usize| {
        let mut words = vec![0_u32; 4];
        words[token / 32] = 1 << (token % 32);
        words
    };
    let (of_70, of_99) = (only(70), only(99));
    for mut cpu in every_isa() {
        for temperature in [0.0, 1.0] {
            let plain = SampleRequest { temperature, top_p: 0.9, ..SampleRequest::default() };
            let requests = [
                plain,
                SampleRequest { allowed: Some(&[]), ..plain },
                SampleRequest { allowed: Some(&[0; 4]), ..plain },
                SampleRequest { allowed: Some(&of_70), ..plain },
                SampleRequest { allowed: Some(&of_99), banned: &[99], ..plain },
                // No bias makes up for a mask.
                SampleRequest { allowed: Some(&of_99), logit_bias: &[(3, f32::INFINITY)], ..plain },
            ];
            let got = sample(&mut cpu, &logits.repeat(requests.len()), &requests);
            assert_eq!(got[..1], sample(&mut cpu, &logits, &[plain]));
            assert!(got[1..5].iter().all(|got| *got == Sampled::NothingAllowed), "{got:?}");
            assert_eq!(token(&got[5]), 99);
        }
    }
}

#[test]
fn a_row_draws_the_same_token_in_any_batch_and_on_any_number_of_threads() {
    let vocab_size = 2_000;
    let (seen, bias) = adjustments(&peaked(0, vocab_size));
    let requests: Vec<_> = (0..)
        .zip(requests(&seen, &bias))
        .map(|(i, request)| SampleRequest { seed: i, index: 3, num_logprobs: Some(2), ..request })
        .collect();
    let rows: Vec<_> = (0..requests.len() as u64).map(|i| peaked(i, vocab_size)).collect();
    for isa in Isa::available() {
        let together = sample(&mut cpu(isa, 2), &rows.concat(), &requests);
        let mut alone = cpu(isa, 1);
        for ((row, request), together) in rows.iter().zip(&requests).zip(&together).rev() {
            assert_eq!(sample(&mut alone, row, &[*request])[0], *together);
        }
    }
}

#[test]
fn extremes_of_what_a_request_may_ask_end_in_a_token() {
    let logits = [f32::MAX, -f32::MAX, 0.0, f32::MIN_POSITIVE, f32::NEG_INFINITY, 1.0];
    let plain = SampleRequest { temperature: 1.0, ..SampleRequest::default() };
    for mut cpu in every_isa() {
        for request in [
            SampleRequest { temperature: f32::MIN_POSITIVE / 8.0, ..plain },
            SampleRequest { temperature: f32::MIN_POSITIVE, top_p: 0.5, ..plain },
            SampleRequest { temperature: f32::MAX, ..plain },
            SampleRequest { temperature: f32::INFINITY, top_p: 0.3, ..plain },
            SampleRequest { temperature: f32::NAN, ..plain },
            SampleRequest { top_k: u32::MAX, top_p: f32::NAN, min_p: f32::NAN, ..plain },
            SampleRequest { top_p: -1.0, min_p: 2.0, ..plain },
            SampleRequest { temperature: -1.0, ..plain },
        ] {
            let got = sample(&mut cpu, &logits, &[request]);
            let token = token(&got[0]) as usize;
            assert!(logits[token] > f32::NEG_INFINITY, "{request:?} drew token {token}");
        }
        // A bias that makes a logit infinite leaves nothing to draw from.
        let infinite = SampleRequest { logit_bias: &[(0, f32::INFINITY)], ..plain };
        assert_eq!(sample(&mut cpu, &logits, &[infinite]), [Sampled::NonFinite]);
        // What is outside the vocabulary cannot be drawn anyway.
        let outside = SampleRequest { logit_bias: &[(6, 5.0)], banned: &[u32::MAX], ..plain };
        assert_eq!(token(&sample(&mut cpu, &logits, &[outside])[0]), 0);
    }
}

#[test]
fn the_uniform_numbers_fill_the_unit_interval_evenly() {
    const CELLS: usize = 50;
    const DRAWS: u32 = 50_000;
    let mut counts = [0.0; CELLS];
    for index in 0..DRAWS {
        let u = uniform(u64::from(index % 3) << 33, index);
        assert!((0.0..1.0).contains(&u));
        counts[(u * CELLS as f64) as usize] += 1.0;
    }
    let expected = f64::from(DRAWS) / CELLS as f64;
    let statistic: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(statistic < 49.0 + 4.0 * 98_f64.sqrt(), "chi-squared {statistic}");
}
