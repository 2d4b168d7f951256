//! Products with weights in fp8, of few rows and of many, by each of their forms.

use anyhow::Result;
use sconce_kernels::{
    Device as _, Fp8Weight, Ops as _,
    cuda::{Cuda, Driver, Gemv, GemvForm, ProductForm},
    fp8,
    ops::sampling::uniform,
};

use crate::{
    kernels::{activations, result},
    timing::{Repetitions, seconds_in},
};

/// Weights that take turns are so many bytes at least: no cache holds them.
const BEYOND_CACHES: usize = 400 << 20;
const REPETITIONS: Repetitions = Repetitions { seconds: 0.004, number: 5 };

/// Random numbers of a repeating pattern, with scales of rows, or of runs of them.
fn weight(n: usize, k: usize, has_runs: bool) -> Fp8Weight {
    const PERIOD: u32 = 65_521;
    let pattern = (0..PERIOD).map(|i| fp8::narrow((uniform(40, i) * 2.0 - 1.0) as f32));
    let pattern: Vec<u8> = pattern.collect();
    let bits = pattern.iter().copied().cycle().take(n * k).collect();
    let runs = if has_runs { k.div_ceil(fp8::RUN) } else { 1 };
    Fp8Weight { bits, n, k, scales: vec![0.5; n * runs] }
}

/// Of a Llama of 8 B: each weight of its layers by one to four rows, and by as many as are given.
pub(crate) fn run<D: Driver>(
    cuda: &mut Cuda<D>,
    (hidden, intermediate): (usize, usize),
    many: &[usize],
    dry_run: bool,
) -> Result<()> {
    let shapes = [
        ("qkv", hidden + hidden / 2, hidden),
        ("o", hidden, hidden),
        ("gate_up", 2 * intermediate, hidden),
        ("down", hidden, intermediate),
    ];
    let of_tensor_cores = cuda.driver().fp8_products().to_vec();
    for (name, n, k) in shapes {
        for has_runs in [false, true] {
            let turns = if dry_run { 1 } else { 1 + BEYOND_CACHES / (n * k) };
            let numbers = [weight(n, k, has_runs)];
            let weights =
                (0..turns).map(|_| cuda.fp8_matrix(&numbers)).collect::<Result<Vec<_>, _>>()?;
            for &rows in [1, 2, 4].iter().chain(many.iter().filter(|rows| **rows > Gemv::MAX_ROWS))
            {
                let x = activations(cuda, 50, rows, k)?;
                let mut out = cuda.buffer(rows, n)?;
                let mut forms = vec![ProductForm::Library];
                if rows <= Gemv::MAX_ROWS {
                    forms.push(ProductForm::FewRows(GemvForm::DEFAULT));
                }
                if !has_runs {
                    forms.extend(
                        of_tensor_cores.iter().map(|&scaling| ProductForm::Fp8(scaling, 0)),
                    );
                }
                for form in forms {
                    cuda.use_product_form(Some(form));
                    let time = seconds_in(REPETITIONS, cuda, dry_run, |cuda, call| {
                        cuda.linear(rows, &x, &weights[call % turns], None, &mut out)
                    })?;
                    let scales = if has_runs { "runs" } else { "rows" };
                    let what =
                        format!("fp8 {name} {n}x{k} of {rows} rows, scaled {scales}: {form}");
                    let operations = 2.0 * rows as f64 * n as f64 * k as f64;
                    result(&what, time, n * k + rows * (n + k) * 2, operations);
                }
            }
        }
    }
    cuda.use_product_form(None);
    Ok(())
}
