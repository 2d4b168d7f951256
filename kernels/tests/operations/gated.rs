//! Gated units: alone, and with the product that they are of in one operation.

use sconce_kernels::{
    Activation, Device as _, Dtype, Ops as _, WeightDtype,
    cpu::{Cpu, Isa},
    reference,
};

use crate::case::{assert_close, bits, buffer, cpu, every_isa, numbers, rounded, tensor, wide};

const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];
const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Int8];

/// `linear_gated` on the given numbers; `n` is the intermediate size.
fn run(
    cpu: &mut Cpu,
    activation: Activation,
    dtype: WeightDtype,
    (rows, k, n): (usize, usize, usize),
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let matrix = cpu.matrix(&[tensor(w, &[2 * n, k])], dtype).expect("packs");
    let bias = bias.map(<[f32]>::to_vec);
    let x = buffer(cpu, x, k);
    let mut out = cpu.buffer(rows, n).expect("memory");
    cpu.linear_gated(rows, &x, &matrix, bias.as_ref(), activation, None, &mut out)
        .expect("shapes fit");
    out.rows(rows).to_vec()
}

#[test]
fn the_gate_is_its_formula_from_end_to_end_of_its_range() {
    for mut cpu in every_isa() {
        for (rows, n) in [(1, 16), (5, 48), (9, 80)] {
            let mut x: Vec<f32> = numbers(3, rows * 2 * n).iter().map(|x| x * 20.0).collect();
            for (x, extreme) in x.iter_mut().step_by(7).zip([0.0, 87.5, -87.5, 200.0, -200.0]) {
                *x = extreme;
            }
            // The identity: sums are the input as it is.
            let mut w = vec![0.0; 4 * n * n];
            w.iter_mut().step_by(2 * n + 1).for_each(|w| *w = 1.0);
            for activation in ACTIVATIONS {
                let got =
                    run(&mut cpu, activation, WeightDtype::F32, (rows, 2 * n, n), &x, &w, None);
                for (got, x) in got.chunks_exact(n).zip(x.chunks_exact(2 * n)) {
                    let want = reference::gated(activation, &wide(&x[..n]), &wide(&x[n..]));
                    let what = format!("{} {activation:?} of {n}", cpu.isa().name());
                    // Far below 0 the rounding of GELU's argument grows with it, and the
                    // reference's 1 + tanh has no bits left.
                    let (relative, absolute) = match activation {
                        Activation::Silu => (1e-6, 1e-30),
                        Activation::GeluTanh => (2e-5, 1e-12),
                    };
                    assert_close(&what, got, &want, |i| want[i].abs() * relative + absolute);
                }
                // Alone it has the same bits.
                let mut alone = cpu.buffer(rows, n).expect("memory");
                let x = buffer(&cpu, &x, 2 * n);
                cpu.gated(rows, activation, &x, &mut alone).expect("shapes fit");
                assert_eq!(bits(alone.rows(rows)), bits(&got), "{activation:?}");
            }
        }
    }
}

#[test]
fn it_is_the_gate_of_the_product() {
    for mut cpu in every_isa() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (rows, k, n) in
                [(1, 33, 16), (2, 576, 112), (7, 15, 48), (13, 40, 1536), (64, 96, 80)]
            {
                let (x, w) = (numbers(1, rows * k), numbers(2, 2 * n * k));
                let bias = numbers(3, 2 * n);
                let got = run(
                    &mut cpu,
                    Activation::Silu,
                    dtype.into(),
                    (rows, k, n),
                    &x,
                    &w,
                    Some(&bias),
                );
                let (x, w) = (wide(&rounded(&x, dtype)), wide(&rounded(&w, dtype)));
                for (got, x) in got.chunks_exact(n).zip(x.chunks_exact(k)) {
                    let sums = reference::linear(x, &w, Some(&wide(&bias)));
                    let want = reference::gated(Activation::Silu, &sums[..n], &sums[n..]);
                    let what = format!("{} {dtype:?} [{rows}, {k}] x {n}", cpu.isa().name());
                    // A sum's error, times what either factor multiplies it with.
                    let sum = 1e-7 * (k as f64).max(8.0) * (k as f64).sqrt();
                    let largest = sums.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
                    assert_close(&what, got, &want, |_| 2.2 * largest * sum);
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
    let (k, n, most) = (77, 112, 65);
    let (x, w, bias) = (numbers(4, most * k), numbers(5, 2 * n * k), numbers(6, 2 * n));
    for isa in Isa::available() {
        for dtype in DTYPES {
            let all =
                run(&mut cpu(isa, 1), Activation::Silu, dtype, (most, k, n), &x, &w, Some(&bias));
            for threads in [1, 2, 3] {
                let mut cpu = cpu(isa, threads);
                for rows in [1, 2, 6, 7, 8, 9, 33, 64] {
                    let from = most - rows;
                    let some = run(
                        &mut cpu,
                        Activation::Silu,
                        dtype,
                        (rows, k, n),
                        &x[from * k..],
                        &w,
                        Some(&bias),
                    );
                    assert_eq!(bits(&some), bits(&all[from * n..]), "{isa:?} {dtype:?} {rows}");
                }
            }
        }
    }
}

#[test]
fn halves_that_are_no_whole_panels_are_refused() {
    let mut cpu = cpu(Isa::detect(), 1);
    let matrix = cpu.matrix(&[tensor(&[0.0; 24 * 2], &[24, 2])], WeightDtype::F32).expect("packs");
    let x = cpu.buffer(1, 2).expect("memory");
    let mut out = cpu.buffer(1, 12).expect("memory");
    let silu = Activation::Silu;
    let refused = cpu.linear_gated(1, &x, &matrix, None, silu, None, &mut out);
    let error = refused.expect_err("12 is refused");
    assert!(error.to_string().contains("32"), "{error}");
}
