use sconce_kernels::{Device as _, Ops as _, cpu::Isa, reference};

use crate::case::{assert_close, bits, buffer, cpu, every_isa, numbers, step, wide};

#[test]
fn rms_norm_is_its_formula() {
    for mut cpu in every_isa() {
        for (rows, hidden) in [(1, 1), (1, 576), (3, 577), (7, 15), (33, 64)] {
            let (x, weight) = (numbers(1, rows * hidden), numbers(2, hidden));
            let input = buffer(&cpu, &x, hidden);
            let mut out = cpu.buffer(rows, hidden).expect("memory");
            cpu.rms_norm(rows, &input, &weight, 1e-5, &mut out).expect("shapes fit");
            for (row, x) in x.chunks_exact(hidden).enumerate() {
                let want = reference::rms_norm(&wide(x), &wide(&weight), f64::from(1e-5_f32));
                let what = format!("{} rms_norm of {hidden}", cpu.isa().name());
                assert_close(&what, out.row(row), &want, |i| want[i].abs() * 4e-6 + 1e-12);
            }
            // On top of a residual.
            let residual = numbers(3, rows * hidden);
            let mut sum = buffer(&cpu, &residual, hidden);
            cpu.rms_norm_add(rows, &input, &weight, 1e-5, &mut sum).expect("shapes fit");
            let normed = out.rows(rows).iter().zip(&residual);
            let want: Vec<f64> = normed.map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            let what = format!("{} rms_norm_add of {hidden}", cpu.isa().name());
            assert_close(&what, sum.rows(rows), &want, |i| want[i].abs() * 4e-6 + 1e-6);
        }
    }
}

#[test]
fn logits_are_capped_by_their_formula_wherever_they_stand() {
    // More than a task has, and a part of one.
    let (rows, vocab_size) = (3, 9_000);
    let x: Vec<f32> = numbers(7, rows * vocab_size).iter().map(|x| x * 90.0).collect();
    for isa in Isa::available() {
        let run = |threads: usize, from: usize| {
            let mut cpu = cpu(isa, threads);
            let mut logits = buffer(&cpu, &x[from * vocab_size..], vocab_size);
            cpu.soft_cap(rows - from, 30.0, &mut logits).expect("shapes fit");
            logits.rows(rows - from).to_vec()
        };
        let got = run(1, 0);
        let want = reference::soft_cap(&wide(&x), 30.0);
        assert_close("soft_cap", &got, &want, |i| want[i].abs() * 4e-7);
        for from in [0, 1, 2] {
            assert_eq!(bits(&run(2, from)), bits(&got[from * vocab_size..]), "{isa:?} {from}");
        }
        // Rows that are not in use stay.
        let mut cpu = cpu(isa, 2);
        let mut logits = buffer(&cpu, &x, vocab_size);
        cpu.soft_cap(1, 30.0, &mut logits).expect("shapes fit");
        assert_eq!(logits.row(1), &x[vocab_size..2 * vocab_size]);
    }
}

#[test]
fn rows_have_the_same_bits_on_any_number_of_threads() {
    let (rows, n) = (9, 100);
    let (x, weight) = (numbers(4, rows * n), numbers(5, n));
    for isa in Isa::available() {
        let run = |threads: usize, from: usize| {
            let mut cpu = cpu(isa, threads);
            let rows = rows - from;
            let input = buffer(&cpu, &x[from * n..], n);
            let mut normed = cpu.buffer(rows, n).expect("memory");
            cpu.rms_norm(rows, &input, &weight, 1e-6, &mut normed).expect("shapes fit");
            cpu.rms_norm_add(rows, &input, &weight, 1e-5, &mut normed).expect("shapes fit");
            bits(normed.rows(rows))
        };
        let normed = run(1, 0);
        for from in [0, 1, 8] {
            assert_eq!(run(2, from), normed[from * n..]);
        }
    }
}

#[test]
fn gathered_rows_are_copies() {
    let mut cpu = cpu(Isa::detect(), 2);
    let x = buffer(&cpu, &numbers(6, 5 * 7), 7);
    let mut out = cpu.buffer(4, 7).expect("memory");
    let step = step(&mut cpu, &[0; 5], &[2, 4, 0, 4]);
    cpu.gather_rows(&step, 1..4, &x, &mut out).expect("shapes fit");
    assert_eq!(out.rows(3), [x.row(4), x.row(0), x.row(4)].concat());
    let error = cpu.gather_rows(&step, 1..5, &x, &mut out).expect_err("there are four");
    assert!(error.to_string().contains("1..5"), "{error}");
    let short = buffer(&cpu, &numbers(6, 4 * 7), 7);
    let error = cpu.gather_rows(&step, 1..4, &short, &mut out).expect_err("there is no row 4");
    assert!(error.to_string().contains('5'), "{error}");
}
