use candle_core::DType;
use proptest::prelude::*;
use sconce_kernels::{
    Device as _, Dtype, KernelError, Ops as _, WeightDtype,
    cpu::{Cpu, Isa},
    reference,
};

use crate::case::{
    assert_close, bits, buffer, cpu, every_isa, numbers, rounded, step, tensor, wide,
};

const FLOATS: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Int8];

/// `linear` on the given numbers, as a vector.
pub(crate) fn run(
    cpu: &mut Cpu,
    dtype: WeightDtype,
    (rows, k, n): (usize, usize, usize),
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let matrix = cpu.matrix(&[tensor(w, &[n, k])], dtype).expect("packs");
    let bias = bias.map(<[f32]>::to_vec);
    let x = buffer(cpu, x, k);
    let mut out = cpu.buffer(rows, n).expect("memory");
    cpu.linear(rows, &x, &matrix, bias.as_ref(), &mut out).expect("shapes fit");
    out.rows(rows).to_vec()
}

fn check(cpu: &mut Cpu, dtype: Dtype, rows: usize, k: usize, n: usize) {
    let what = format!("{} {dtype:?} [{rows}, {k}] x [{n}, {k}]", cpu.isa().name());
    let (x, w, bias) = (numbers(1, rows * k), numbers(2, n * k), numbers(3, n));
    let got = run(cpu, dtype.into(), (rows, k, n), &x, &w, Some(&bias));
    let (x, w) = (wide(&rounded(&x, dtype)), wide(&rounded(&w, dtype)));
    let want: Vec<f64> =
        x.chunks_exact(k).flat_map(|x| reference::linear(x, &w, Some(&wide(&bias)))).collect();
    // Every partial sum is below k, and each of k steps rounds it.
    let tolerance = 1e-7 * (k as f64).max(8.0) * (k as f64).sqrt();
    assert_close(&what, &got, &want, |_| tolerance);
}

#[test]
fn linear_is_the_product_for_odd_shapes() {
    for mut cpu in every_isa() {
        for dtype in FLOATS {
            for (rows, k, n) in [
                (1, 1, 1),
                (1, 576, 960),
                (1, 577, 17),
                (2, 33, 100),
                (3, 31, 16),
                (5, 40, 129),
                (7, 15, 64),
                (13, 100, 80),
                (64, 96, 48),
                (130, 64, 33),
            ] {
                check(&mut cpu, dtype, rows, k, n);
            }
        }
    }
}

#[test]
fn linear_is_the_product_for_a_whole_vocabulary() {
    for mut cpu in every_isa() {
        check(&mut cpu, Dtype::Bf16, 1, 64, 49_152);
        check(&mut cpu, Dtype::F32, 2, 32, 49_153);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn linear_is_the_product_for_any_shape(
        rows in 1_usize..20,
        k in 1_usize..200,
        n in 1_usize..200,
        dtype in prop::sample::select(FLOATS.to_vec()),
    ) {
        for mut cpu in every_isa() {
            check(&mut cpu, dtype, rows, k, n);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
    let (k, n, most) = (577, 210, 65);
    let (x, w, bias) = (numbers(4, most * k), numbers(5, n * k), numbers(6, n));
    for isa in Isa::available() {
        for dtype in DTYPES {
            let all = run(&mut cpu(isa, 1), dtype, (most, k, n), &x, &w, Some(&bias));
            for threads in [1, 2, 3] {
                let mut cpu = cpu(isa, threads);
                for rows in [1, 2, 5, 6, 7, 12, 16, 33, 64, 65] {
                    // The last rows, so that rows change their place in a tile.
                    let from = most - rows;
                    let (x, all) = (&x[from * k..], &all[from * n..]);
                    let some = run(&mut cpu, dtype, (rows, k, n), x, &w, Some(&bias));
                    assert_eq!(bits(&some), bits(all), "{isa:?} {dtype:?} {rows} rows");
                }
            }
        }
    }
}

/// Where bf16 is widened, exactly, a product is f32's, for any number of rows.
#[test]
fn bf16_that_is_widened_gives_the_bits_of_f32() {
    let (k, n, most) = (578, 83, 130);
    let (x, w) = (numbers(16, most * k), numbers(17, n * k));
    let (wide_x, wide_w) = (rounded(&x, Dtype::Bf16), rounded(&w, Dtype::Bf16));
    for isa in Isa::available().into_iter().filter(|isa| !isa.has_bf16()) {
        let mut cpu = cpu(isa, 2);
        for rows in [1, 3, 6, 8, 9, 17, 24, 48, 130] {
            let shape = (rows, k, n);
            let (x, wide_x) = (&x[..rows * k], &wide_x[..rows * k]);
            let bf16 = run(&mut cpu, WeightDtype::Bf16, shape, x, &w, None);
            let f32 = run(&mut cpu, WeightDtype::F32, shape, wide_x, &wide_w, None);
            assert_eq!(bits(&bf16), bits(&f32), "{isa:?} {rows} rows");
        }
    }
}

#[test]
fn a_column_has_the_same_bits_in_any_panel() {
    let (k, n) = (96, 100);
    let (x, w) = (numbers(7, k), numbers(8, n * k));
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            let all = run(&mut cpu, dtype, (1, k, n), &x, &w, None);
            for column in [0, 15, 16, 63, 64, 99] {
                let row = &w[column * k..][..k];
                let one = run(&mut cpu, dtype, (1, k, 1), &x, row, None);
                assert_eq!(one[0].to_bits(), all[column].to_bits(), "{dtype:?} column {column}");
            }
        }
    }
}

#[test]
fn linear_add_adds_to_what_is_there() {
    let (rows, k, n) = (3, 40, 50);
    let (x, w, residual) = (numbers(9, rows * k), numbers(10, n * k), numbers(11, rows * n));
    for mut cpu in every_isa() {
        let product = run(&mut cpu, WeightDtype::Bf16, (rows, k, n), &x, &w, None);
        let matrix = cpu.matrix(&[tensor(&w, &[n, k])], WeightDtype::Bf16).expect("packs");
        let x = buffer(&cpu, &x, k);
        let mut out = buffer(&cpu, &residual, n);
        cpu.linear_add(rows, &x, &matrix, None, &mut out).expect("shapes fit");
        let want: Vec<f32> = residual.iter().zip(&product).map(|(a, b)| a + b).collect();
        assert_eq!(out.rows(rows), want);
    }
}

#[test]
fn weights_pack_from_any_dtype_layout_and_number_of_parts() {
    let (k, n) = (37, 45);
    // Numbers that every dtype holds exactly.
    let w: Vec<f32> = numbers(12, n * k).iter().map(|x| (x * 100.0).round() / 4.0).collect();
    let x = numbers(13, k);
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            let whole = run(&mut cpu, dtype, (1, k, n), &x, &w, None);
            let whole_tensor = tensor(&w, &[n, k]);
            let transposed = whole_tensor.t().and_then(|t| t.contiguous()).expect("transposes");
            let narrow = |from: usize, len: usize| whole_tensor.narrow(0, from, len).expect("rows");
            let cast = |to| whole_tensor.to_dtype(to).expect("casts");
            let forms = [
                vec![cast(DType::BF16)],
                vec![cast(DType::F16)],
                vec![transposed.t().expect("transposes")],
                vec![narrow(0, 1), narrow(1, 20), narrow(21, 24)],
                vec![cast(DType::BF16).narrow(0, 0, 19).expect("rows"), narrow(19, 26)],
            ];
            for parts in forms {
                let matrix = cpu.matrix(&parts, dtype).expect("packs");
                let input = buffer(&cpu, &x, k);
                let mut out = cpu.buffer(1, n).expect("memory");
                cpu.linear(1, &input, &matrix, None, &mut out).expect("shapes fit");
                assert_eq!(bits(out.row(0)), bits(&whole), "{dtype:?} {parts:?}");
            }
        }
    }
}

#[test]
fn embeddings_are_the_rows_of_the_table() {
    let (vocab_size, hidden) = (83, 35);
    let table = numbers(14, vocab_size * hidden);
    for mut cpu in every_isa() {
        for dtype in FLOATS {
            let matrix =
                cpu.matrix(&[tensor(&table, &[vocab_size, hidden])], dtype.into()).expect("packs");
            let tokens = [82, 0, 15, 16, 0];
            let embedded = step(&mut cpu, &tokens, &[]);
            let mut out = cpu.buffer(5, hidden).expect("memory");
            cpu.embedding_gather(&embedded, &matrix, 1.0, &mut out).expect("shapes fit");
            for (row, token) in tokens.into_iter().enumerate() {
                let want = &table[token as usize * hidden..][..hidden];
                assert_eq!(out.row(row), rounded(want, dtype), "token {token}");
            }
            // A factor is rounded as the table is.
            let scale = 640_f32.sqrt();
            cpu.embedding_gather(&embedded, &matrix, scale, &mut out).expect("shapes fit");
            let scale = rounded(&[scale], dtype)[0];
            for (row, token) in tokens.into_iter().enumerate() {
                let want = rounded(&table[token as usize * hidden..][..hidden], dtype);
                let want: Vec<f32> = want.iter().map(|x| x * scale).collect();
                assert_eq!(out.row(row), want, "token {token}, scaled");
            }
            let outside = step(&mut cpu, &[1, 83], &[]);
            let error =
                cpu.embedding_gather(&outside, &matrix, 1.0, &mut out).expect_err("83 is outside");
            assert!(error.to_string().contains("83"), "{error}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let mut cpu = cpu(Isa::detect(), 1);
    let matrix =
        cpu.matrix(&[tensor(&numbers(15, 32 * 8), &[32, 8])], WeightDtype::F32).expect("packs");
    let x = cpu.buffer(2, 8).expect("memory");
    let mut out = cpu.buffer(2, 32).expect("memory");
    let mut narrow = cpu.buffer(2, 31).expect("memory");
    let operand = |result: Result<(), KernelError>| match result {
        Err(KernelError::Shape { what, .. }) => what,
        other => panic!("a shape error was expected, not {other:?}"),
    };
    assert_eq!(operand(cpu.linear(2, &narrow, &matrix, None, &mut out)), "x");
    assert_eq!(operand(cpu.linear(3, &x, &matrix, None, &mut out)), "x");
    assert_eq!(operand(cpu.linear(2, &x, &matrix, None, &mut narrow)), "out");
    assert_eq!(operand(cpu.linear(2, &x, &matrix, Some(&vec![0.0; 31]), &mut out)), "bias");
    cpu.linear(0, &x, &matrix, None, &mut out).expect("no rows are no work");

    let cube = tensor(&[0.0; 8], &[2, 2, 2]);
    assert!(cpu.matrix(&[cube], WeightDtype::F32).is_err());
    assert!(cpu.matrix(&[], WeightDtype::F32).is_err());
    let unequal = [tensor(&[0.0; 8], &[2, 4]), tensor(&[0.0; 6], &[2, 3])];
    assert!(cpu.matrix(&unequal, WeightDtype::Bf16).is_err());
    let integers = tensor(&[0.0; 8], &[2, 4]).to_dtype(DType::U32).expect("casts");
    assert!(matches!(cpu.matrix(&[integers], WeightDtype::F32), Err(KernelError::Dtype { .. })));
}
