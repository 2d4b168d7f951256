//! Faults planted in attention by groups of warps: products that are under way, tiles that
//! arrive, turns.

use sconce_cuda_shim::cases::{
    attention::{Case, packed},
    element::Element,
};
use sconce_kernels::cuda::PromptForm;

use super::mutations::{only_f16_heads_of_64, with_changed};

const KERNELS: [&str; 1] = ["prefill_groups.cu"];

/// Each of these must be found where this form computes attention.
fn must_be_found(form: PromptForm, stem: &str, faults: &[(&str, &str)]) {
    let edit = |text: String| -> String {
        let text = only_f16_heads_of_64(&text);
        let other = if form == PromptForm::Boxes { "PREFILL_GROUPS(" } else { "PREFILL_BULK(" };
        let stays = |line: &&str| !line.starts_with(other);
        text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect()
    };
    for (index, fault) in faults.iter().enumerate() {
        let name = format!("{stem}{index}");
        let outcome = with_changed(&KERNELS, &name, &[*fault], edit, |bench| {
            let case = Case::new(Element::F16, (1, 4, 64), &[(601, 20), (75, 70)]);
            Case { form, ..case }.check(bench, packed())
        });
        outcome.expect_err("the fault must be found");
    }
}

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
        ("shared.full[place.slot].await(place.parity);", "(void)place;"),
        ("shared.empty[slot].await(parity);\n                if", "if"),
        // A tile that is published while it is copied.
        ("copy_async_wait<Shared::AHEAD>();", "copy_async_wait<Shared::AHEAD + 1>();"),
        // A turn that never comes.
        ("if (group == 0 || !is_last) {", "if (group == 1) {"),
    ];
    must_be_found(PromptForm::Groups, "warpgroup", &faults);
}

#[test]
fn faults_of_bulk_copies_are_found() {
    let faults = [
        // A slot that is overwritten too early.
        ("shared.empty[slot].await(parity);\n            T*", "T*"),
        // A tile that counts as there when half of it is.
        ("full.expect(TILE_PAGES * PAGE_BYTES);", "full.expect(TILE_PAGES * PAGE_BYTES / 2);"),
        // What a page's rows hold that do not exist.
        ("if (exist < BLOCK_TOKENS) {", "if (exist == 0) {"),
        // Values of pages that were looked up with other keys.
        ("behind = block;", "behind = ahead;"),
    ];
    must_be_found(PromptForm::Boxes, "bulk", &faults);
}
