//! Faults planted in the kernels' sources, each of which must be found: a test that
//! cannot fail proves nothing.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process,
};

use sconce_cuda_shim::{
    Bench, ShimDriver, build,
    cases::{
        self,
        attention::{Case, spread},
        element::Element,
        prefixes::sharing,
    },
    has_missed_a_kernel,
};
use sconce_kernels::{Mask, cuda::AttentionRoom};

/// Replaces one piece of the attention kernel's source, builds the shim with it, and
/// hands it to a check, which must not pass with it, but must without.
fn must_be_found(
    name: &str,
    fault: (&str, &str),
    check: impl Fn(&mut Bench<ShimDriver>) -> Result<(), String>,
) {
    must_be_found_in(&["decode_attention.cu", "prefill_attention.cu"], name, fault, check);
}

/// The same in any file that these kernels are made of.
fn must_be_found_in(
    kernels: &[&str],
    name: &str,
    fault: (&str, &str),
    check: impl Fn(&mut Bench<ShimDriver>) -> Result<(), String>,
) {
    check(&mut Bench::new(ShimDriver::default()))
        .unwrap_or_else(|error| panic!("{name}: without the fault: {error}"));
    fails_with(kernels, name, fault, check);
}

/// The same of a check that is a test, which passes without the fault.
fn fails_with(
    kernels: &[&str],
    name: &str,
    fault: (&str, &str),
    check: impl Fn(&mut Bench<ShimDriver>) -> Result<(), String>,
) {
    let only_64 = |text: String| only_f16_heads_of_64(&text);
    with_changed(kernels, name, &[fault], only_64, check).expect_err("the fault must be found");
}

/// Replaces pieces of these kernels' sources, each of which stands there once, edits all
/// further, and hands a shim built of them to a check.
pub(crate) fn with_changed(
    kernels: &[&str],
    name: &str,
    changes: &[(&str, &str)],
    edit: impl Fn(String) -> String,
    check: impl Fn(&mut Bench<ShimDriver>) -> Result<(), String>,
) -> Result<(), String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", process::id()));
    fs::create_dir_all(&folder).expect("the target folder takes files");
    let mut changed = vec![0; changes.len()];
    for entry in fs::read_dir(here.join("../cuda")).expect("the kernels' folder") {
        let path = entry.expect("an entry").path();
        let mut text = fs::read_to_string(&path).expect("a source");
        for (changed, (from, to)) in changed.iter_mut().zip(changes) {
            *changed += text.matches(from).count();
            text = text.replace(from, to);
        }
        let file = folder.join(path.file_name().expect("a file's name"));
        fs::write(file, edit(text)).expect("the target folder takes files");
    }
    assert!(changed.iter().all(|&n| n == 1), "{name}: {changes:?} stand in the sources once");
    let program = folder.join("shim");
    let kernels: Vec<_> = kernels.iter().map(|kernel| folder.join(kernel)).collect();
    build(&folder, &kernels, &program).expect("the fault compiles");
    let outcome = check(&mut Bench::new(ShimDriver::of(&program)));
    assert!(!has_missed_a_kernel(), "{name}: the check needs kernels that were left out");
    fs::remove_dir_all(&folder).expect("the target folder is ours");
    outcome
}

/// Without the attention kernels that no case here runs, so that a fault is soon compiled.
pub(crate) fn only_f16_heads_of_64(text: &str) -> String {
    let instance = "ATTENTION(name, T, C, ";
    let stays = |line: &&str| {
        let is_of_bf16 = line.starts_with("ATTENTION_OF_HEAD_DIMS(") && line.contains(", bf16, ");
        let is_of_other_heads =
            line.contains(instance) && !line.contains("C, 64)") && !line.contains("C, D)");
        let is_of_other_groups = line.starts_with("PREFILL_") && !line.contains("f16, f16, 64)");
        !is_of_bf16 && !is_of_other_heads && !is_of_other_groups
    };
    text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect()
}

fn decode_and_prompt() -> Case {
    Case::new(Element::F16, (1, 4, 64), &[(601, 1), (75, 70)])
}

fn of_any_order(case: &Case, bench: &mut Bench<ShimDriver>) -> Result<(), String> {
    // Each launch has another order.
    (0..3).try_for_each(|_| case.check(bench, spread()))
}

#[test]
fn a_dropped_barrier_is_found() {
    let faults = [
        (
            "__syncthreads();\n        const C* tile = slots + (asked",
            "__syncwarp();\n        const C* tile = slots + (asked",
        ),
        (
            "__syncthreads();\n        return slots + after(free);",
            "__syncwarp();\n        return slots + after(free);",
        ),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("barrier{index}");
        must_be_found(&name, fault, |bench| of_any_order(&decode_and_prompt(), bench));
    }
}

/// Values of the tile whose keys are asked for, and not of the one before.
#[test]
fn values_of_the_next_tile_are_found() {
    let fault = ("HALF == KEYS ? key_block : value_block", "key_block");
    must_be_found("values", fault, |bench| of_any_order(&decode_and_prompt(), bench));
}

#[test]
fn a_page_off_by_one_is_found() {
    let faults = [
        ("blocks[own / BLOCK_TOKENS]", "blocks[min(own + 16, end - 1) / BLOCK_TOKENS]"),
        ("blocks[of_lane / BLOCK_TOKENS]", "blocks[min(of_lane + 16, end - 1) / BLOCK_TOKENS]"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("page{index}");
        must_be_found(&name, fault, |bench| of_any_order(&decode_and_prompt(), bench));
    }
}

/// The numbers come out right, nearly, but not the bits.
#[test]
fn chunks_merged_in_the_wrong_order_are_found() {
    let fault = (
        "const Vector<float> w = weights[at / D * MERGED_AT_ONCE + c];",
        "const Vector<float> w = weights[at / D * MERGED_AT_ONCE + num - 1 - c];",
    );
    must_be_found("order", fault, |bench| {
        let how = spread();
        let case = |queries| Case {
            cancelling: true,
            ..Case::new(Element::F16, (1, 4, 64), &[(601, queries)])
        };
        let decoded = case(1).run(bench, how)?;
        let prefilled = case(5).run(bench, how)?;
        if prefilled.ends_with(&decoded) { Ok(()) } else { Err("other bits".to_owned()) }
    });
}

#[test]
fn an_unmasked_tail_is_found() {
    let faults = [
        ("at > last || at < first", "at > last + 64 || at < first"),
        ("at > newest || at < oldest", "at > newest + 64 || at < oldest"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("tail{index}");
        must_be_found(&name, fault, |bench| of_any_order(&decode_and_prompt(), bench));
    }
}

/// What lies below a window may be another sequence's.
#[test]
fn a_page_that_a_window_has_left_is_found() {
    let faults = [
        ("page_token >= seen && page_token < end", "page_token < end"),
        ("page_token < seen || page_token >= end", "page_token >= end"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        must_be_found(&format!("window{index}"), fault, |bench| {
            let mut case = Case::new(Element::F16, (1, 4, 64), &[(601, 1), (300, 20)]);
            case.params.mask = Mask::Sliding(70);
            of_any_order(&case, bench)
        });
    }
}

/// Another sequence's query; a KV head's partial results among those of another; a chunk's added to
/// those before it.
#[test]
fn a_prefix_that_is_shared_wrongly_is_found() {
    let faults = [
        ("this->query_in(sharer(row).query, row)", "(Sequence<T, C, D>::query(row))"),
        ("* own.num_partials + index", "* (own.num_partials - 1) + index"),
        ("            all.clear();\n", ""),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let kernels = ["prefix_attention.cu", "decode_attention.cu"];
        must_be_found_in(&kernels, &format!("prefix{index}"), fault, |bench| {
            let mut case = sharing(Element::F16, Element::F16, (2, 4, 64), 4);
            case.sequences.retain(|&(_, queries)| queries == 1);
            // Sequences before the others, that share nothing.
            case.sequences.splice(0..0, [(300, 1), (40, 1)]);
            case.together = true;
            // In two pieces.
            case.check(bench, AttentionRoom { multiprocessors: 4, ..spread() })
        });
    }
}

#[test]
fn a_stale_scale_is_found() {
    let fault = ("return p.v_scale * (sizeof(C)", "return (sizeof(C)");
    must_be_found("scale", fault, |bench| {
        let case = Case { cache_element: Element::E4m3, ..decode_and_prompt() };
        of_any_order(&case, bench)
    });
}

/// Plants a fault in sampling, which a case must find.
fn case_must_find(name: &str, fault: (&str, &str), case: &str) {
    case_must_find_in(&["sampling.cu"], name, fault, case);
}

/// Plants a fault in the kernels of experts.
fn expert_case_must_find(name: &str, fault: (&str, &str), case: &str) {
    case_must_find_in(&["experts.cu", "route.cu"], name, fault, case);
}

fn case_must_find_in(kernels: &[&str], name: &str, fault: (&str, &str), case: &str) {
    fails_with(kernels, name, fault, |bench| {
        let (_, run) =
            cases::all().into_iter().find(|(name, _)| *name == case).expect("a case of that name");
        catch_unwind(AssertUnwindSafe(|| run(bench))).map_err(|_| "the case failed".to_owned())
    });
}

/// Another run may have told of less.
#[test]
fn a_bound_of_one_run_only_is_found() {
    let fault = ("block_largest(threadIdx.x < work.num_runs ?", "block_largest(threadIdx.x < 1 ?");
    case_must_find("threshold", fault, "a_row_is_the_same_however_its_slices_are_shared_out");
}

#[test]
fn a_list_that_overflows_unnoticed_is_found() {
    let fault =
        ("entries[atomicAdd(taken, 1u)] = own[i];", "entries[atomicAdd(taken, 1u)] = own[0];");
    case_must_find("thin", fault, "a_row_is_the_same_however_its_slices_are_shared_out");
}

#[test]
fn a_bound_that_sinks_is_found() {
    let fault = ("if (bound <= from) {", "if (bound > LAST_BIN) {");
    case_must_find("sinking", fault, "a_row_is_the_same_however_its_slices_are_shared_out");
}

#[test]
fn a_border_that_is_one_bin_off_is_found() {
    let fault = ("edge(found[0] + 1), edge(found[1])", "edge(found[0]), edge(found[1])");
    case_must_find("border", fault, "wide_nuclei_are_settled_by_a_second_look");
}

/// One that lies between the borders is taken as kept; a draw too few comes before that from the
/// survivors.
#[test]
fn tokens_that_are_rejected_wrongly_are_found() {
    let faults = [
        (
            "rejection.possible.keeps(logit, token)) {\n            break;",
            "rejection.possible.keeps(logit, token)) {\n            return token;",
        ),
        ("REJECTIONS = 4", "REJECTIONS = 3"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("rejection{index}");
        case_must_find(&name, fault, "wide_nuclei_are_settled_by_a_second_look");
    }
}

#[test]
fn a_lost_carry_is_found() {
    let fault = ("uint32_t(amount >> 32) + carry;", "uint32_t(amount >> 32) + 0 * carry;");
    case_must_find("carry", fault, "equals_go_to_the_lowest_ids");
}

#[test]
fn zeros_told_apart_by_their_signs_are_found() {
    let fault = ("__float_as_uint(logit + 0.0f)", "__float_as_uint(logit)");
    case_must_find("zeros", fault, "equals_go_to_the_lowest_ids");
}

#[test]
fn equals_drawn_in_any_order_are_found() {
    let fault = ("own == key && candidate <= token", "own == key && candidate >= token");
    case_must_find("equals", fault, "equals_go_to_the_lowest_ids");
}

#[test]
fn a_mask_that_the_second_slice_reads_from_its_start_is_found() {
    let fault = (
        "? row.allowed[token / 32] >> token % 32 : 0",
        "? row.allowed[token % SLICE / 32] >> token % 32 : 0",
    );
    case_must_find("mask-slice", fault, "only_what_a_mask_allows_is_drawn");
}

#[test]
fn likeliest_tokens_under_a_mask_are_found() {
    let fault = ("searched = with_all(row);", "searched = row;");
    case_must_find("mask-likeliest", fault, "only_what_a_mask_allows_is_drawn");
}

#[test]
fn what_is_no_token_but_kept_is_found() {
    let fault = ("request.slot >= 0 && token < NOTHING_ALLOWED", "request.slot >= 0");
    case_must_find("kept", fault, "rows_that_cannot_be_drawn_from_say_so");
}

#[test]
fn a_token_that_is_kept_before_it_is_drawn_is_found() {
    let fault = ("p.keep(request, token);\n        state.open", "state.open");
    case_must_find("kept-late", fault, "wide_nuclei_are_settled_by_a_second_look");
}

#[test]
fn a_token_that_is_not_counted_is_found() {
    let fault = ("found[0] == 0) {", "found[0] == 2) {");
    case_must_find_in(&["count_last.cu"], "count", fault, "what_slots_sampled_last_is_counted");
}

#[test]
fn a_choice_of_the_highest_of_equal_experts_is_found() {
    let fault = ("others < expert", "others > expert");
    expert_case_must_find("equal-experts", fault, "rows_go_to_their_likeliest_experts");
}

#[test]
fn rows_taken_for_places_are_found() {
    let fault = ("p.sources == nullptr ? place : p.sources[place]", "place");
    expert_case_must_find("sources", fault, "experts_add_what_the_reference_says");
}

#[test]
fn gates_for_what_they_gate_are_found() {
    let fault = ("row / 8 % 2 == 1", "row / 8 % 2 == 0");
    expert_case_must_find("gates", fault, "experts_add_what_the_reference_says");
}

#[test]
fn experts_that_overwrite_what_is_being_read_are_found() {
    let fault = ("load(stage ^ 1, from + PIECES)", "load(stage, from + PIECES)");
    expert_case_must_find("stages", fault, "experts_add_what_the_reference_says");
}

/// Plants a fault in the products of few rows.
fn product_case_must_find(name: &str, fault: (&str, &str), case: &str) {
    case_must_find_in(&["gemv.cu"], name, fault, case);
}

#[test]
fn a_product_that_begins_before_its_rows_are_there_is_found() {
    let fault = (
        "        }\n    }\n    __syncthreads();\n}\n\n// Adds to `sums`",
        "        }\n    }\n    __syncwarp();\n}\n\n// Adds to `sums`",
    );
    product_case_must_find("staged", fault, "products_of_few_rows_match_the_reference");
}

#[test]
fn a_run_beyond_a_rows_end_is_found() {
    let fault = ("u * WARP, u * WARP < left)", "u * WARP, u * WARP < left + 1)");
    product_case_must_find("run", fault, "products_of_few_rows_match_the_reference");
}

#[test]
fn rows_of_a_task_that_come_too_late_are_found() {
    let fault = ("begin_task(task + stride)", "begin_task(task)");
    product_case_must_find("task", fault, "products_of_few_rows_match_the_reference");
}

#[test]
fn a_unit_gated_by_another_is_found() {
    let fault = ("(lane + M) % WARP", "(lane + 1) % WARP");
    product_case_must_find("gate", fault, "gated_products_match_the_reference");
}

/// Sums are added up before all are there; rows are looked for in a panel as if it were all of
/// them.
#[test]
fn a_skinny_products_faults_are_found() {
    let faults = [
        (
            "own[3]};\n            }\n        }\n        __syncthreads();",
            "own[3]};\n            }\n        }\n        __syncwarp();",
        ),
        ("(unit - first) * UNIT_PIECES + half", "unit * UNIT_PIECES + half"),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let name = format!("skinny{index}");
        case_must_find_in(&["skinny.cu"], &name, fault, "skinny_products_match_the_reference");
    }
}

/// A pair's second row is looked for where gated units have it; a sine of another dimension.
#[test]
fn heads_that_are_rotated_wrongly_in_their_product_are_found() {
    let kernels = ["gemv.cu", "skinny.cu", "rope_and_cache.cu"];
    for (index, fault) in [
        ("p.epilogue == ROPE ? p.rope.head_dim / 2 : p.n / 2", "p.n / 2"),
        ("table[half + dim]", "table[half + (dim ^ 1)]"),
    ]
    .into_iter()
    .enumerate()
    {
        let case = "products_that_rotate_give_what_two_launches_do";
        case_must_find_in(&kernels, &format!("rotated{index}"), fault, case);
    }
}

#[test]
fn a_norm_of_another_row_is_found() {
    let fault = ("sum += partial[warp * M + m];", "sum += partial[warp * M];");
    product_case_must_find("norm", fault, "normed_products_match_the_reference");
}
