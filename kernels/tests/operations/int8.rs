//! Products with int8 weights: exact where everything is a whole number, within
//! the error of rounding elsewhere, and the same on every instruction set.

use proptest::prelude::*;
use sconce_kernels::{
    Device as _, KernelError, Ops as _, WeightDtype,
    cpu::{Cpu, Isa},
    reference,
};

use crate::{
    case::{assert_close, bits, buffer, cpu, every_isa, numbers, step, tensor, wide},
    linear::run,
};

const ODD_SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 3, 17),
    (1, 576, 960),
    (1, 577, 17),
    (2, 34, 100),
    (3, 31, 16),
    (4, 32, 65),
    (5, 40, 129),
    (6, 63, 80),
    (7, 15, 64),
    (13, 100, 80),
    (130, 64, 33),
];

/// Whole numbers up to 127, of which each row of `k` has one of ±127: what int8
/// holds exactly, with a scale of 1.
fn whole_numbers(seed: u64, rows: usize, k: usize) -> Vec<i32> {
    let mut numbers: Vec<i32> =
        numbers(seed, rows * k).iter().map(|x| (x * 127.5) as i32).collect();
    for (index, row) in numbers.chunks_exact_mut(k).enumerate() {
        row[index * 7 % k] = if index % 2 == 0 { 127 } else { -127 };
    }
    numbers
}

/// Rows that are so many times the given ones after they are rotated. A rotation
/// is its own inverse but for a factor, which is given too.
fn rotated_back(rows: &[i32], k: usize, scale: f32) -> (Vec<f32>, f32) {
    let rotate = |row: &[i32]| {
        let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        reference::rotate(&row).0.into_iter().map(|x| x as f32 * scale)
    };
    let factor = reference::rotate(&vec![0.0; k]).1 as f32;
    (rows.chunks_exact(k).flat_map(rotate).collect(), factor)
}

fn check_whole_numbers(cpu: &mut Cpu, (rows, k, n): (usize, usize, usize)) {
    let (x, w) = (whole_numbers(1, rows, k), whole_numbers(2, n, k));
    // Powers of two, so that scaling rounds nothing.
    let (x_back, factor) = rotated_back(&x, k, 0.125);
    let (w_back, _) = rotated_back(&w, k, 4.0);
    let got = run(cpu, WeightDtype::Int8, (rows, k, n), &x_back, &w_back, None);
    let dot = |x: &[i32], w: &[i32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<i32>();
    let want = x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w)));
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let isa = cpu.isa().name();
        let want = want as f32 * 0.5 * factor;
        assert_eq!(*got, want, "{isa} [{rows}, {k}] x [{n}, {k}]: {index}");
    }
}

#[test]
fn products_of_whole_numbers_are_exact() {
    for mut cpu in every_isa() {
        for shape in ODD_SHAPES {
            check_whole_numbers(&mut cpu, shape);
        }
        check_whole_numbers(&mut cpu, (1, 62, 49_152));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_of_whole_numbers_are_exact_for_any_shape(
        rows in 1_usize..20,
        k in 1_usize..200,
        n in 1_usize..200,
    ) {
        for mut cpu in every_isa() {
            check_whole_numbers(&mut cpu, (rows, k, n));
        }
    }
}

fn largest(row: &[f64]) -> f64 {
    row.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

/// A rotated number is off by half a step at most, so a product of two by
/// `|x| dw + |w| dx + dx dw`, and a sum by the sum of that.
#[test]
fn the_error_is_that_of_rounding_to_int8() {
    for mut cpu in every_isa() {
        for (rows, k, n) in ODD_SHAPES {
            let (x, w, bias) = (numbers(3, rows * k), numbers(4, n * k), numbers(5, n));
            let got = run(&mut cpu, WeightDtype::Int8, (rows, k, n), &x, &w, Some(&bias));
            let want: Vec<f64> = x
                .chunks_exact(k)
                .flat_map(|x| reference::linear(&wide(x), &wide(&w), Some(&wide(&bias))))
                .collect();
            let what = format!("{} [{rows}, {k}] x [{n}, {k}]", cpu.isa().name());
            // The sum and half a step of each row.
            let sizes = |rows: &[f32]| -> Vec<(f64, f64)> {
                let size = |row: &[f32]| {
                    let row = reference::rotate(&wide(row)).0;
                    (row.iter().map(|x| x.abs()).sum(), largest(&row) / 254.0)
                };
                rows.chunks_exact(k).map(size).collect()
            };
            let (x, w) = (sizes(&x), sizes(&w));
            let factor = reference::rotate(&vec![0.0; k]).1 as f64;
            assert_close(&what, &got, &want, |index| {
                let ((x, dx), (w, dw)) = (x[index / n], w[index % n]);
                (x * dw + w * dx + k as f64 * dx * dw) / factor * 1.0001 + 1e-6
            });
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (rows, k, n) in ODD_SHAPES {
        let (x, w, bias) = (numbers(6, rows * k), numbers(7, n * k), numbers(8, n));
        let mut all = every_isa().map(|mut cpu| {
            let out = run(&mut cpu, WeightDtype::Int8, (rows, k, n), &x, &w, Some(&bias));
            (cpu.isa(), bits(&out))
        });
        let (_, portable) = all.next().expect("every machine has the portable one");
        for (isa, out) in all {
            assert!(out == portable, "{isa:?} [{rows}, {k}] x [{n}, {k}]");
        }
    }
}

#[test]
fn numbers_between_two_steps_go_to_the_even_one() {
    let x = [127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 126.5, -126.5, 3.49, -3.51];
    let want = [127.0, 0.0, 0.0, 2.0, -2.0, 2.0, -2.0, 126.0, -126.0, 3.0, -4.0];
    let k = x.len();
    let mut identity = vec![0.0; k * k];
    (0..k).for_each(|i| identity[i * k + i] = 1.0);
    for mut cpu in every_isa() {
        // 1 is 127 steps of 1 / 127, so each input comes out to within an ulp.
        let got = run(&mut cpu, WeightDtype::Int8, (1, k, k), &x, &identity, None);
        assert_close(cpu.isa().name(), &got, &want, |_| 1e-4);
    }
}

/// The longest rows of the largest numbers, of equal and of opposite signs.
#[test]
fn the_longest_sums_do_not_overflow() {
    let most = usize::try_from(i32::MAX / (127 * 127)).expect("a positive number");
    for mut cpu in every_isa() {
        let (x, factor) = rotated_back(&vec![127; most], most, 1.0);
        let w = [x.clone(), x.iter().map(|x| -x).collect()].concat();
        let got = run(&mut cpu, WeightDtype::Int8, (1, most, 2), &x, &w, None);
        let sum = (most * 127 * 127) as f32 * factor;
        assert_eq!(got, [sum, -sum]);
        let longer = tensor(&vec![1.0; most + 1], &[1, most + 1]);
        match cpu.matrix(&[longer], WeightDtype::Int8) {
            Err(KernelError::Shape { got, expected, .. }) => {
                assert_eq!(got, (most + 1).to_string());
                assert!(expected.contains(&most.to_string()), "{expected}");
            }
            _ => panic!("a sum of {} products could overflow", most + 1),
        }
    }
}

#[test]
fn rows_that_are_not_finite_become_nan_and_no_others_do() {
    let (rows, k, n) = (5, 20, 18);
    let mut x = numbers(9, rows * k);
    let w = numbers(10, n * k);
    for mut cpu in every_isa() {
        let fine = run(&mut cpu, WeightDtype::Int8, (rows, k, n), &x, &w, None);
        let mut bad_w = w.clone();
        (bad_w[3 * k], bad_w[4 * k + 5]) = (f32::NAN, f32::NEG_INFINITY);
        let out = run(&mut cpu, WeightDtype::Int8, (rows, k, n), &x, &bad_w, None);
        for (index, (got, fine)) in out.iter().zip(&fine).enumerate() {
            assert!(if matches!(index % n, 3 | 4) { got.is_nan() } else { got == fine });
        }
        let good_x = x.clone();
        (x[2 * k], x[3 * k + 19]) = (f32::INFINITY, f32::NAN);
        let out = run(&mut cpu, WeightDtype::Int8, (rows, k, n), &x, &w, None);
        for (index, (got, fine)) in out.iter().zip(&fine).enumerate() {
            assert!(if matches!(index / n, 2 | 3) { got.is_nan() } else { got == fine });
        }
        x = good_x;
    }
}

#[test]
fn rows_of_zeros_and_of_numbers_next_to_zero_give_the_bias() {
    let (k, n) = (9, 3);
    let bias = numbers(11, n);
    let w = numbers(12, n * k);
    for mut cpu in every_isa() {
        for x in [0.0, f32::from_bits(1), -f32::MIN_POSITIVE, 1e-37] {
            let got = run(&mut cpu, WeightDtype::Int8, (1, k, n), &[x; 9], &w, Some(&bias));
            assert_close("near zero", &got, &wide(&bias), |_| 1e-30);
        }
        let zeros = vec![0.0; n * k];
        let got = run(&mut cpu, WeightDtype::Int8, (1, k, n), &[1.0; 9], &zeros, Some(&bias));
        assert_eq!(got, bias);
    }
}

#[test]
fn a_weight_takes_a_byte_an_element_and_eight_an_output() {
    let cpu = cpu(Isa::detect(), 1);
    let matrix = cpu.matrix(&[tensor(&numbers(13, 32 * 8), &[32, 8])], WeightDtype::Int8);
    assert_eq!(cpu.matrix_bytes(&matrix.expect("packs")), 32 * 8 + 32 * 8);
}

/// One row that stands out costs the others of its row little: that is what
/// rotation is for.
#[test]
fn an_outlier_does_not_set_the_error_of_its_row() {
    let (k, n) = (1536, 50);
    let (mut x, w) = (numbers(15, k), numbers(16, n * k));
    let error = |cpu: &mut Cpu, x: &[f32]| {
        let got = run(cpu, WeightDtype::Int8, (1, k, n), x, &w, None);
        let want = reference::linear(&wide(x), &wide(&w), None);
        let square = |(got, want): (&f32, &f64)| (f64::from(*got) - want).powi(2);
        (got.iter().zip(&want).map(square).sum::<f64>() / n as f64).sqrt()
    };
    let mut cpu = cpu(Isa::detect(), 1);
    let even = error(&mut cpu, &x);
    x[700] = 100.0;
    let uneven = error(&mut cpu, &x);
    // Its own rotation over 128 blocks makes 100 about 100 / sqrt(128).
    assert!(uneven < 8.0 * even, "{even} without an outlier, {uneven} with one");
}

#[test]
fn embeddings_are_rows_of_the_table_within_half_a_step() {
    for hidden in [35, 96] {
        let table = numbers(17, 83 * hidden);
        for mut cpu in every_isa() {
            let matrix =
                cpu.matrix(&[tensor(&table, &[83, hidden])], WeightDtype::Int8).expect("packs");
            let tokens = [82, 0, 15, 16, 0];
            let embedded = step(&mut cpu, &tokens, &[]);
            let mut out = cpu.buffer(5, hidden).expect("memory");
            cpu.embedding_gather(&embedded, &matrix, 1.0, &mut out).expect("shapes fit");
            for (row, token) in tokens.into_iter().enumerate() {
                let want = wide(&table[token as usize * hidden..][..hidden]);
                let half_a_step = largest(&reference::rotate(&want).0) / 254.0;
                assert_close("embedding", out.row(row), &want, |_| half_a_step * 1.0001);
            }
        }
    }
}

/// One table is both embedding and output: a token's row is what the product
/// with it uses.
#[test]
fn an_embedding_is_the_row_that_products_use() {
    let (vocab_size, hidden) = (40, 22);
    let table = numbers(14, vocab_size * hidden);
    for mut cpu in every_isa() {
        let matrix =
            cpu.matrix(&[tensor(&table, &[vocab_size, hidden])], WeightDtype::Int8).expect("packs");
        let tokens = [39, 16];
        let embedded = step(&mut cpu, &tokens, &[]);
        let mut rows = cpu.buffer(2, hidden).expect("memory");
        cpu.embedding_gather(&embedded, &matrix, 1.0, &mut rows).expect("shapes fit");
        for i in 0..hidden {
            // A unit vector reads one column of the table.
            let mut unit = vec![0.0; hidden];
            unit[i] = 127.0;
            let mut out = cpu.buffer(1, vocab_size).expect("memory");
            cpu.linear(1, &buffer(&cpu, &unit, hidden), &matrix, None, &mut out)
                .expect("shapes fit");
            for (row, token) in [(0, 39), (1, 16)] {
                let (got, want) = (out.row(0)[token], rows.row(row)[i] * 127.0);
                assert!((got - want).abs() <= want.abs() * 1e-6, "{got}, not {want}");
            }
        }
    }
}
