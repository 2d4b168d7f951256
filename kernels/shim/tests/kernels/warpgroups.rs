//! Faults planted in attention by groups of warps: products that are under way, tiles that
//! arrive, turns.

use sconce_cuda_shim::cases::{
    attention::{Case, packed},
    element::Element,
};

use super::mutations::{only_f16_heads_of_64, with_changed};

const KERNELS: [&str; 1] = ["prefill_groups.cu"];

#[test]
fn faults_of_warp_groups_are_found() {
    let faults = [
        // Values of other tokens.
        ("moved(from, k * 2 * SWIZZLED_UNIT)", "moved(from, k * SWIZZLED_UNIT)"),
        // Pieces where they would lie without the swizzle.
        ("(piece % 8 ^ row % 8) * 16", "piece % 8 * 16"),
        // Scores that are read while they are under way.
        ("await_products<1>();\n        pin(scores.x);", "pin(scores.x);"),
        // A tile that is read before it is there, and one that is overwritten too early.
        ("shared.full[next].await(parity);", ""),
        ("shared.empty[slot].await(parity);", ""),
        // A tile that is published while it is copied.
        ("copy_async_wait<Shared::AHEAD>();", "copy_async_wait<Shared::AHEAD + 1>();"),
        // A turn that never comes.
        ("if (group == 0 || !is_last) {", "if (group == 1) {"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("warpgroup{index}");
        let edit = |text: String| only_f16_heads_of_64(&text);
        let outcome = with_changed(&KERNELS, &name, &[fault], edit, |bench| {
            let case = Case::new(Element::F16, (1, 4, 64), &[(601, 20), (75, 70)]);
            Case { by_groups: true, ..case }.check(bench, packed())
        });
        outcome.expect_err("the fault must be found");
    }
}
