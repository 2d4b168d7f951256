//! Products of few rows, by each of their forms, beside cuBLAS.

use anyhow::Result;
use sconce_kernels::{
    Activation, Device as _, Dtype, Ops as _,
    cuda::{Cuda, Driver, Gemv, GemvForm, ProductForm, SkinnyPlan},
};

use crate::{
    kernels::{activations, random, result},
    timing::{Repetitions, seconds_in},
};

/// As an operation of a model's layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Linear,
    Add,
    Gated,
    Logits,
}

/// Weights that take turns are so many bytes at least: no cache holds them.
const BEYOND_CACHES: usize = 400 << 20;
const REPETITIONS: Repetitions = Repetitions { seconds: 0.004, number: 5 };

const FORMS: [GemvForm; 4] = [GemvForm::DEFAULT, form(2, 4, 2), form(1, 8, 1), form(1, 8, 2)];

const fn form(rows: u32, ahead: u32, blocks: u32) -> GemvForm {
    GemvForm { rows, ahead, threads: 512, blocks }
}

/// Of a Llama of 8 B: each weight by as many rows as are given.
pub(crate) fn run<D: Driver>(
    cuda: &mut Cuda<D>,
    (hidden, intermediate, vocab_size): (usize, usize, usize),
    dry_run: bool,
) -> Result<()> {
    let shapes = [
        ("qkv", Operation::Linear, hidden + hidden / 2, hidden),
        ("o", Operation::Add, hidden, hidden),
        ("gate_up", Operation::Gated, 2 * intermediate, hidden),
        ("down", Operation::Add, hidden, intermediate),
        ("lm_head", Operation::Logits, vocab_size, hidden),
    ];
    for (name, operation, n, k) in shapes {
        let bytes = n * k * 2;
        let turns = if dry_run { 1 } else { 1 + BEYOND_CACHES / bytes };
        let numbers = [random(40, n, k)?];
        let weights = (0..turns)
            .map(|_| cuda.matrix(&numbers, Dtype::Bf16.into()))
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = if operation == Operation::Gated { n / 2 } else { n };
        for rows in [1, 2, 4, 8, 16] {
            let x = activations(cuda, 50, rows, k)?;
            let mut scratch = cuda.buffer(rows, n)?;
            let mut out = match operation {
                Operation::Logits => cuda.logits_buffer(rows, n)?,
                _ => cuda.buffer(rows, outputs)?,
            };
            // Of a gated unit a warp has both rows; some forms are there for few rows.
            let can = |form: &GemvForm| match operation {
                Operation::Gated if form.rows == 1 => false,
                _ => rows == 1 || (form.blocks == 1 && (form.rows > 1 || rows == 2)),
            };
            let of_gemv = FORMS.into_iter().filter(|form| rows <= Gemv::MAX_ROWS && can(form));
            let skinny = SkinnyPlan::ROWS.contains(&rows).then_some(ProductForm::Skinny);
            let own = of_gemv.map(ProductForm::FewRows).chain(skinny);
            for form in [ProductForm::Library].into_iter().chain(own) {
                cuda.use_product_form(Some(form));
                let time = seconds_in(REPETITIONS, cuda, dry_run, |cuda, call| {
                    let w = &weights[call % turns];
                    match operation {
                        Operation::Linear | Operation::Logits => {
                            cuda.linear(rows, &x, w, None, &mut out)
                        }
                        Operation::Add => cuda.linear_add(rows, &x, w, None, &mut out),
                        Operation::Gated => {
                            let (silu, scratch) = (Activation::Silu, Some(&mut scratch));
                            cuda.linear_gated(rows, &x, w, None, silu, scratch, &mut out)
                        }
                    }
                })?;
                let by = match form {
                    ProductForm::Library | ProductForm::Fp8(..) | ProductForm::Proposed(_) => {
                        "cuBLAS".to_owned()
                    }
                    ProductForm::Skinny => "skinny".to_owned(),
                    ProductForm::FewRows(GemvForm { rows, ahead, threads, blocks }) => {
                        format!("{rows} rows, {ahead} ahead, {blocks} x {threads} threads")
                    }
                };
                let moved = bytes
                    + rows * (k * 2 + outputs * if operation == Operation::Logits { 4 } else { 2 });
                result(&format!("{name} {n}x{k} of {rows} rows: {by}"), time, moved, 0.0);
            }
        }
    }
    cuda.use_product_form(None);
    Ok(())
}
