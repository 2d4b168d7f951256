//! Every CUDA kernel, run by the shim, against the f64 references.

mod forms;
mod mutations;
mod warpgroups;

use sconce_cuda_shim::{Bench, ShimDriver, cases};

/// Each case is a test, so that they run side by side.
macro_rules! tests {
    ($($case:ident)*) => {
        $(#[test]
        fn $case() {
            let (_, run) = cases::all()
                .into_iter()
                .find(|(name, _)| *name == stringify!($case))
                .expect("a case of that name");
            run(&mut Bench::new(ShimDriver::default()));
        })*

        #[test]
        fn every_case_is_a_test() {
            let names = [$(stringify!($case)),*];
            let all: Vec<_> = cases::all::<ShimDriver>().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names[..], all[..]);
        }
    };
}

tests! {
    embedding_gather_copies_the_tokens_rows
    embedding_scaled_multiplies_the_tokens_rows
    rms_norm_norms_each_row
    rms_norm_add_adds_each_normed_row
    soft_cap_bounds_every_logit
    table_edits_change_their_entries
    gates_are_silu_or_gelu
    add_bias_adds_to_every_row
    copy_blocks_moves_whole_blocks_of_every_layer
    rope_rotates_queries_and_writes_keys_and_values_to_their_slots
    products_of_few_rows_match_the_reference
    gated_products_match_the_reference
    normed_products_match_the_reference
    a_products_bits_do_not_depend_on_its_rows
    skinny_products_match_the_reference
    a_skinny_products_bits_do_not_depend_on_its_rows
    products_of_few_rows_with_fp8_match_the_reference
    a_products_bits_with_fp8_do_not_depend_on_its_rows
    products_that_rotate_give_what_two_launches_do
    rows_are_quantized_by_their_largest_number
    weights_in_e4m3_are_widened
    sums_are_scaled_by_row_and_output
    rows_go_to_their_likeliest_experts
    experts_add_what_the_reference_says
    experts_in_fp8_add_what_the_reference_says
    a_rows_bits_are_its_own_among_experts
    every_dtype_and_head_dim_matches_the_reference
    every_context_matches_the_reference
    chunks_of_prompts_match_the_reference
    every_group_matches_the_reference
    masks_and_caps_match_the_reference
    queries_beyond_f16_match_the_reference
    a_rows_bits_depend_on_its_own_context_only
    a_prompts_bits_do_not_depend_on_its_cuts
    groups_of_warps_attend_as_warps_do
    a_shared_prefix_changes_no_bit
    the_drawn_token_is_the_references
    log_probabilities_are_of_the_raw_logits
    the_order_of_threads_and_the_neighbours_change_nothing
    rows_that_cannot_be_drawn_from_say_so
    what_slots_sampled_last_is_counted
    vocabularies_of_any_length_draw_the_references_token
    equals_go_to_the_lowest_ids
    most_rows_are_settled_by_their_slices
    a_row_with_penalties_is_searched_raw_and_drawn_from_changed
    a_rows_bits_are_its_own_over_several_slices
    a_slice_that_cannot_be_drawn_from_ends_its_row
    a_row_is_the_same_however_its_slices_are_shared_out
    wide_nuclei_are_settled_by_a_second_look
    given_tokens_are_scored_and_ranked
    only_what_a_mask_allows_is_drawn
    a_mask_of_all_changes_no_bits_nor_do_neighbours_masks
    a_row_with_nothing_left_says_so
}

#[test]
fn a_layer_over_ragged_batches_is_the_cpus() {
    cases::backend::a_layer_over_ragged_batches_is_the_cpus(ShimDriver::default);
}

#[test]
fn products_with_fp8_by_every_form_match_the_reference() {
    cases::fp8::products_with_fp8_by_every_form_match_the_reference(ShimDriver::default);
}

#[test]
fn masks_of_any_length_reach_the_kernels() {
    cases::sampling_masks::masks_of_any_length_reach_the_kernels(ShimDriver::default);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    cases::backend::what_does_not_fit_is_refused_by_name(ShimDriver::default);
}

#[test]
fn a_replayed_step_is_the_step_that_is_staged() {
    cases::graphs::a_replayed_step_is_the_step_that_is_staged(ShimDriver::default);
}

#[test]
fn steps_in_flight_sample_as_one_by_one() {
    cases::overlap::steps_in_flight_sample_as_one_by_one(ShimDriver::default);
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    cases::graphs::what_cannot_be_recorded_is_refused(ShimDriver::default);
}
