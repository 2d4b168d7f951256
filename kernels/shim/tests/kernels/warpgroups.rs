//! Attention by products of warp groups, which only one architecture has: the shim built
//! with these emulated runs the cases of attention, and must find planted faults.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sconce_cuda_shim::{
    Bench, ShimDriver,
    cases::{
        self,
        attention::{Case, packed},
        element::Element,
    },
};

use super::mutations::{only_f16_heads_of_64, with_changed};

const KERNELS: [&str; 2] = ["decode_attention.cu", "prefill_attention.cu"];
/// Compiles these products, emulated, in place of `mma` where they are used.
const EMULATED: (&str, &str) = ("#define WARPGROUP_PRODUCTS 0", "#define WARPGROUP_PRODUCTS 1");

fn run(case: &str, bench: &mut Bench<ShimDriver>) -> Result<(), String> {
    let (_, run) = cases::all().into_iter().find(|(name, _)| *name == case).expect("a case");
    catch_unwind(AssertUnwindSafe(|| run(bench))).map_err(|_| format!("{case} failed"))
}

#[test]
fn warp_groups_attend_as_warps_do() {
    let outcome = with_changed(
        &KERNELS,
        "warpgroups",
        &[EMULATED],
        |text| text,
        |bench| {
            [
                "every_dtype_and_head_dim_matches_the_reference",
                "chunks_of_prompts_match_the_reference",
                "masks_and_caps_match_the_reference",
                "a_rows_bits_depend_on_its_own_context_only",
                "a_prompts_bits_do_not_depend_on_its_cuts",
            ]
            .into_iter()
            .try_for_each(|case| run(case, bench))
        },
    );
    outcome.expect("the cases pass");
}

#[test]
fn faults_of_warp_groups_are_found() {
    let faults = [
        // Values of other tokens.
        ("moved(from, k * 2 * SWIZZLED_UNIT)", "moved(from, k * SWIZZLED_UNIT)"),
        // Pieces where they would lie without the swizzle.
        ("(piece % 8 ^ row % 8) * 16", "piece % 8 * 16"),
        // Scores that are read while they are under way.
        ("await_products<0>();\n        pin(next.x);", "pin(next.x);"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("warpgroup{index}");
        let edit = |text: String| only_f16_heads_of_64(&text);
        let outcome = with_changed(&KERNELS, &name, &[EMULATED, fault], edit, |bench| {
            Case::new(Element::F16, (1, 4, 64), &[(601, 20), (75, 70)]).check(bench, packed())
        });
        outcome.expect_err("the fault must be found");
    }
}
