//! How products of few rows are shared out on a GPU.

use proptest::prelude::*;
use sconce_kernels::cuda::SkinnyPlan;

/// Of an H100 or H200: multiprocessors, and what a block's shared memory may have.
const HOPPER: (usize, usize) = (132, 227 << 10);

/// The busiest multiprocessor computes at most a twentieth more than its share of an 8B's weights.
#[test]
fn weights_of_an_8b_are_shared_out_evenly() {
    let (multiprocessors, shared_bytes) = HOPPER;
    let weights = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];
    for (n, k) in weights {
        for rows in SkinnyPlan::ROWS {
            let plan = SkinnyPlan::of((rows, n, k), (false, false), multiprocessors, shared_bytes);
            let plan = plan.expect("it is a product of few rows");
            let tasks = (n / 16).div_ceil(plan.tiles);
            let busiest = tasks.div_ceil(plan.blocks) * plan.tiles * 16;
            let share = n as f64 / multiprocessors as f64;
            assert!(busiest as f64 <= share * 1.05, "{n} x {k}, {rows} rows: {plan:?}");
        }
    }
}

proptest! {
    /// A plan fits the device, its panels are all of K, and a norm's row is in one.
    #[test]
    fn a_plan_fits_its_device(
        rows in 0_usize..20,
        (tiles, units) in (1_usize..300, 1_usize..300),
        (is_gated, is_normed) in any::<(bool, bool)>(),
        multiprocessors in 1_usize..200,
        kib in 16_usize..228,
    ) {
        let (n, k) = (tiles * 16, units * 64);
        let ends = (is_gated, is_normed);
        let plan = SkinnyPlan::of((rows, n, k), ends, multiprocessors, kib << 10);
        let Some(plan) = plan else {
            // There is a reason.
            let is_few = SkinnyPlan::ROWS.contains(&rows);
            let is_split = is_gated && !n.is_multiple_of(32);
            let least = SkinnyPlan::shared_bytes(rows.div_ceil(8), 3, if is_normed { units } else { 16 });
            prop_assert!(!is_few || is_split || least + 2048 > kib << 10);
            return Ok(());
        };
        let SkinnyPlan { groups, tiles, panel, blocks, shared_bytes } = plan;
        prop_assert!(SkinnyPlan::ROWS.contains(&rows) && (rows..rows + 8).contains(&(groups * 8)));
        prop_assert!(shared_bytes + 1024 < kib << 10);
        prop_assert_eq!(shared_bytes, SkinnyPlan::shared_bytes(groups, tiles, panel));
        prop_assert!(panel == units || (panel < units && panel.is_multiple_of(16) && !is_normed));
        prop_assert!((1..=multiprocessors).contains(&blocks));
        let can = if is_gated { 2..=2 } else { 1..=3 };
        prop_assert!(can.contains(&tiles));
    }
}
