//! Routing, and the products of rows with the experts that they go to.

use sconce_kernels::{
    Activation, Device as _, Dtype, KernelError, Ops as _, Routing, WeightDtype,
    cpu::{Cpu, CpuRoutes, Isa},
    reference,
};

use crate::case::{assert_close, bits, buffer, cpu, every_isa, numbers, rounded, tensor, wide};

const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Int8];

/// Sizes of a layer of experts.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    routing: Routing,
}

const SIZES: Sizes = Sizes {
    hidden: 48,
    intermediate: 32,
    routing: Routing { num_experts: 7, top_k: 3, normalise: true },
};

/// Its weights: gates with what they gate, then those back.
struct Weights {
    gate_up: Vec<f32>,
    down: Vec<f32>,
}

impl Weights {
    fn new(sizes: &Sizes) -> Self {
        let Sizes { hidden, intermediate, routing } = *sizes;
        let len = routing.num_experts * hidden * intermediate;
        Self { gate_up: numbers(21, 2 * len), down: numbers(22, len) }
    }
}

fn route(cpu: &mut Cpu, routing: Routing, scores: &[f32]) -> CpuRoutes {
    let rows = scores.len() / routing.num_experts;
    let mut routes = cpu.routes(rows, routing).expect("memory");
    let scores = buffer(cpu, scores, routing.num_experts);
    cpu.route(rows, &scores, &mut routes).expect("shapes fit");
    routes
}

/// The residual with what the experts add to it.
fn run(
    cpu: &mut Cpu,
    dtype: WeightDtype,
    sizes: &Sizes,
    weights: &Weights,
    (x, scores, residual): (&[f32], &[f32], &[f32]),
) -> Vec<f32> {
    let Sizes { hidden, intermediate, routing } = *sizes;
    let Routing { num_experts, top_k, .. } = routing;
    let rows = x.len() / hidden;
    let routes = route(cpu, routing, scores);
    let shape = [num_experts * 2 * intermediate, hidden];
    let gate_up = cpu.matrix(&[tensor(&weights.gate_up, &shape)], dtype).expect("packs");
    let shape = [num_experts * hidden, intermediate];
    let down = cpu.matrix(&[tensor(&weights.down, &shape)], dtype).expect("packs");
    let x = buffer(cpu, x, hidden);
    let mut gated = cpu.buffer(rows, top_k * intermediate).expect("memory");
    cpu.experts_gated(rows, &x, &routes, &gate_up, Activation::Silu, &mut gated)
        .expect("shapes fit");
    let mut scratch = cpu.buffer(rows, top_k * hidden).expect("memory");
    let mut out = buffer(cpu, residual, hidden);
    cpu.experts_add(rows, &gated, &routes, &down, &mut scratch, &mut out).expect("shapes fit");
    out.rows(rows).to_vec()
}

#[test]
fn a_row_goes_to_the_likeliest_experts() {
    for mut cpu in every_isa() {
        for (num_experts, top_k) in [(1, 1), (4, 4), (7, 3), (60, 4), (128, 8)] {
            for normalise in [false, true] {
                let routing = Routing { num_experts, top_k, normalise };
                let scores: Vec<f32> =
                    numbers(1, 9 * num_experts).iter().map(|x| x * 6.0).collect();
                let routes = route(&mut cpu, routing, &scores);
                for (row, scores) in scores.chunks_exact(num_experts).enumerate() {
                    let want = reference::route(&wide(scores), routing);
                    let (got, weights): (Vec<u32>, Vec<f32>) = routes.of_row(row).unzip();
                    let (experts, want): (Vec<usize>, Vec<f64>) = want.into_iter().unzip();
                    assert!(got.iter().map(|&expert| expert as usize).eq(experts), "{routing:?}");
                    assert_close(&format!("{routing:?}"), &weights, &want, |i| 2e-6 * want[i]);
                }
            }
        }
    }
}

#[test]
fn equal_scores_go_to_the_lowest_experts_and_nan_goes_somewhere() {
    let mut cpu = cpu(Isa::detect(), 2);
    let routing = Routing { num_experts: 6, top_k: 3, normalise: true };
    let n = f32::NAN;
    let scores = [[1.0, 2.0, 1.0, 2.0, 1.0, 0.0], [0.0; 6], [0.0, n, 0.0, 0.0, 0.0, 0.0], [n; 6]];
    let routes = route(&mut cpu, routing, scores.as_flattened());
    let experts = |row| routes.of_row(row).map(|(expert, _)| expert).collect::<Vec<_>>();
    assert_eq!(experts(0), [1, 3, 0]);
    assert_eq!(experts(1), [0, 1, 2]);
    for row in [2, 3] {
        assert!(experts(row).iter().all(|&expert| expert < 6));
        assert!(routes.of_row(row).all(|(_, weight)| weight.is_nan()));
    }
}

#[test]
fn experts_add_what_the_reference_says() {
    for mut cpu in every_isa() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (rows, sizes) in [
                (1, SIZES),
                (9, SIZES),
                // Whole chunks of rows, of several tiles.
                (200, SIZES),
                (
                    5,
                    Sizes {
                        routing: Routing { top_k: 7, normalise: false, ..SIZES.routing },
                        ..SIZES
                    },
                ),
                (3, Sizes { hidden: 16, intermediate: 272, ..SIZES }),
            ] {
                let Sizes { hidden, intermediate, routing } = sizes;
                let (x, residual) = (numbers(2, rows * hidden), numbers(3, rows * hidden));
                let scores = numbers(4, rows * routing.num_experts);
                let weights = Weights::new(&sizes);
                let got = run(&mut cpu, dtype.into(), &sizes, &weights, (&x, &scores, &residual));
                let what = format!("{} {dtype:?} {rows} rows of {sizes:?}", cpu.isa().name());
                let of_dtype = |x: &[f32]| wide(&rounded(x, dtype));
                let weights = (of_dtype(&weights.gate_up), of_dtype(&weights.down));
                for row in 0..rows {
                    let of_row = row * hidden..(row + 1) * hidden;
                    let scores = &scores[row * routing.num_experts..][..routing.num_experts];
                    let chosen = reference::route(&wide(scores), routing);
                    let x = of_dtype(&x[of_row.clone()]);
                    let weights = (&*weights.0, &*weights.1);
                    let added =
                        reference::experts(&x, &chosen, weights, intermediate, Activation::Silu);
                    let residual = wide(&residual[of_row.clone()]);
                    let want: Vec<f64> = residual.iter().zip(added).map(|(a, b)| a + b).collect();
                    // Sums of numbers below 1; gated units are rounded to bf16 again.
                    let units = (hidden as f64).sqrt() * (intermediate as f64).sqrt();
                    let unit = if dtype == Dtype::F32 { 2e-6 } else { 2e-3 };
                    assert_close(&what, &got[of_row], &want, |_| units * unit);
                }
            }
        }
    }
}

/// Neither neighbours, which share its experts or do not, nor threads.
#[test]
fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
    let Sizes { hidden, routing, .. } = SIZES;
    let most = 130;
    let (x, residual) = (numbers(5, most * hidden), numbers(6, most * hidden));
    let mut scores = numbers(7, most * routing.num_experts);
    // Most go to the first expert, so that it has several chunks.
    scores.iter_mut().step_by(routing.num_experts).take(110).for_each(|score| *score += 3.0);
    let weights = Weights::new(&SIZES);
    for isa in Isa::available() {
        for dtype in DTYPES {
            let whole = (&*x, &*scores, &*residual);
            let all = run(&mut cpu(isa, 1), dtype, &SIZES, &weights, whole);
            for threads in [1, 3] {
                for rows in [1, 2, 7, 16, 57, 129] {
                    let from = most - rows;
                    let own = (
                        &x[from * hidden..],
                        &scores[from * routing.num_experts..],
                        &residual[from * hidden..],
                    );
                    let some = run(&mut cpu(isa, threads), dtype, &SIZES, &weights, own);
                    assert_eq!(
                        bits(&some),
                        bits(&all[from * hidden..]),
                        "{isa:?} {dtype:?} {rows}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut cpu = cpu(Isa::detect(), 1);
    let routing = SIZES.routing;
    for top_k in [0, 8] {
        let error = cpu.routes(4, Routing { top_k, ..routing }).err().expect("it is refused");
        assert!(error.to_string().contains("from 1 to 7"), "{error}");
    }
    let mut routes = route(&mut cpu, routing, &numbers(1, 2 * 7));
    let matrix = |n: usize| cpu.matrix(&[tensor(&vec![0.0; n * 16], &[n, 16])], WeightDtype::F32);
    let [odd, fits] = [7 * 16, 7 * 32].map(|n| matrix(n).expect("packs"));
    let [x, scores] = [16, 7].map(|cols| cpu.buffer(3, cols).expect("memory"));
    let mut out = cpu.buffer(3, 3 * 16).expect("memory");
    let said = |result: Result<(), KernelError>, named: &str| {
        let error = result.expect_err("it is refused").to_string();
        assert!(error.contains(named), "{error}");
    };
    said(cpu.route(3, &scores, &mut routes), "at most 2");
    let silu = Activation::Silu;
    said(cpu.experts_gated(2, &x, &routes, &odd, silu, &mut out), "a multiple of 32");
    said(cpu.experts_gated(1, &x, &routes, &fits, silu, &mut out), "rows that were routed");
    said(cpu.experts_gated(2, &scores, &routes, &fits, silu, &mut out), "[at least 2, 16]");
}
