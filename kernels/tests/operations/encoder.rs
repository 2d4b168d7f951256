//! What encoders compute beside other models.

use sconce_kernels::{
    CacheDtype, Device as _, EncoderOps as _, KvLayout, StepLimits, StepPlan, TableRow,
    WeightDtype,
    cpu::{Cpu, CpuStep},
    reference,
};

use crate::case::{assert_close, bits, buffer, every_isa, numbers, tensor, wide};

/// A staged step of whole sequences of so many tokens, without a cache.
fn step(cpu: &mut Cpu, lens: &[usize]) -> CpuStep {
    let limits = StepLimits { max_num_batched_tokens: 128, max_num_seqs: 8, max_model_len: 64 };
    let layout =
        KvLayout { num_blocks: 0, num_groups: 0, layers: Vec::new(), dtype: CacheDtype::F32 };
    let mut cache = cpu.kv_cache(&layout, &limits).expect("it holds nothing");
    let mut plan = StepPlan::new(0);
    for (slot, &len) in (0..).zip(lens) {
        plan.push(slot, &vec![1; len], 0, &[] as &[Vec<u32>]);
    }
    let mut step = cpu.step(&limits, &[]).expect("memory");
    cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
    step
}

#[test]
fn layer_norm_is_its_formula() {
    for mut cpu in every_isa() {
        for (rows, hidden, offset) in [(1, 1, 0.0), (3, 384, 0.0), (7, 15, 0.0), (2, 577, 100.0)] {
            let x: Vec<f32> = numbers(1, rows * hidden).iter().map(|x| x + offset).collect();
            let (weight, bias) = (numbers(2, hidden), numbers(3, hidden));
            let input = buffer(&cpu, &x, hidden);
            let mut out = cpu.buffer(rows, hidden).expect("memory");
            cpu.layer_norm(rows, &input, (&weight, &bias, 1e-5), &mut out).expect("shapes fit");
            for (row, x) in x.chunks_exact(hidden).enumerate() {
                let eps = f64::from(1e-5_f32);
                let want = reference::layer_norm(&wide(x), &wide(&weight), &wide(&bias), eps);
                let what = format!("{} layer_norm of {hidden}", cpu.isa().name());
                let tolerance = if offset > 0.0 { 1e-4 } else { 3e-6 };
                assert_close(&what, out.row(row), &want, |_| tolerance);
            }
            let short = weight[1..].to_vec();
            let refused = cpu.layer_norm(rows, &input, (&weight, &short, 1e-5), &mut out);
            assert!(refused.is_err());
        }
    }
}

#[test]
fn gelu_is_its_formula_everywhere() {
    let x: Vec<f32> = (-1600..=1600).map(|i| i as f32 * 0.01).collect();
    let want: Vec<f64> = x.iter().map(|&x| reference::gelu(x.into())).collect();
    // A well-known value of the exact form; the tanh form has 0.841192 here.
    assert!((reference::gelu(1.0) - 0.841_344_746_068_543).abs() < 1e-12);
    for mut cpu in every_isa() {
        let mut rows = buffer(&cpu, &x, 3201);
        cpu.gelu(1, &mut rows).expect("shapes fit");
        assert_close("gelu", rows.row(0), &want, |i| want[i].abs() * 3e-7 + 4e-7);
    }
}

#[test]
fn rows_of_tables_are_added_by_position() {
    let (hidden, lens) = (24, [3, 1, 5]);
    let table = numbers(5, 64 * hidden);
    for mut cpu in every_isa() {
        let step = step(&mut cpu, &lens);
        let matrix = cpu.matrix(&[tensor(&table, &[64, hidden])], WeightDtype::F32);
        let matrix = matrix.expect("it is packed");
        let before = numbers(6, 9 * hidden);
        for (row, positions) in
            [(TableRow::Position, [0, 1, 2, 0, 0, 1, 2, 3, 4]), (TableRow::Same(7), [7; 9])]
        {
            let mut out = buffer(&cpu, &before, hidden);
            cpu.table_add(&step, row, &matrix, &mut out).expect("shapes fit");
            let rows = positions.iter().map(|&position: &usize| &table[position * hidden..]);
            let added = rows.flat_map(|row| &row[..hidden]).zip(&before);
            let want: Vec<f32> = added.map(|(a, b)| b + a).collect();
            assert_eq!(out.rows(9), want, "{row:?}");
        }
        let mut out = buffer(&cpu, &before, hidden);
        assert!(cpu.table_add(&step, TableRow::Same(64), &matrix, &mut out).is_err());
        let small = cpu.matrix(&[tensor(&table[..4 * hidden], &[4, hidden])], WeightDtype::F32);
        let small = small.expect("it is packed");
        assert!(cpu.table_add(&step, TableRow::Position, &small, &mut out).is_err());
    }
}

#[test]
fn full_attention_sees_its_whole_sequence_and_no_other() {
    let (heads, lens) = (3, [1, 37, 4, 6]);
    for head_dim in [5, 16, 32] {
        let cols = heads * head_dim;
        let total: usize = lens.iter().sum();
        let qkv: Vec<f32> = numbers(7, total * 3 * cols).iter().map(|x| x * 3.0).collect();
        for mut cpu in every_isa() {
            let staged = step(&mut cpu, &lens);
            let mut out = cpu.buffer(total, cols).expect("memory");
            let input = buffer(&cpu, &qkv, 3 * cols);
            cpu.full_attention(&staged, heads, &input, &mut out).expect("shapes fit");
            let mut first = 0;
            for len in lens {
                let rows = &qkv[first * 3 * cols..][..len * 3 * cols];
                for head in 0..heads {
                    let part = |which: usize| -> Vec<f64> {
                        let at = which * cols + head * head_dim;
                        let of_rows = rows.chunks_exact(3 * cols);
                        of_rows.flat_map(|row| wide(&row[at..][..head_dim])).collect()
                    };
                    let want = reference::full_attention(&part(0), &part(1), &part(2), head_dim);
                    for (row, want) in want.chunks_exact(head_dim).enumerate() {
                        let got = &out.row(first + row)[head * head_dim..][..head_dim];
                        assert_close("full_attention", got, want, |_| 1e-5);
                    }
                }
                // Alone it has the same bits.
                let alone = step(&mut cpu, &[len]);
                let mut own = cpu.buffer(len, cols).expect("memory");
                let input = buffer(&cpu, rows, 3 * cols);
                cpu.full_attention(&alone, heads, &input, &mut own).expect("shapes fit");
                assert_eq!(
                    bits(own.rows(len)),
                    bits(&out.rows(total)[first * cols..][..len * cols])
                );
                first += len;
            }
            assert!(cpu.full_attention(&staged, 2 * heads + 1, &input, &mut out).is_err());
        }
    }
}
