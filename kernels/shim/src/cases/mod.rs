//! What the kernels must compute, whatever runs them: each case panics, naming what is
//! wrong, unless the kernels give what the f64 references do.

pub mod attention;
pub mod backend;
pub mod element;
mod elementwise;
mod experts;
pub mod fp8;
pub mod graphs;
pub mod overlap;
pub mod prefixes;
mod products;
mod rope_products;
mod sampling;
pub mod sampling_masks;
mod sampling_runs;
mod sampling_wide;
mod token_logprobs;

use sconce_kernels::cuda::Driver;

use crate::Bench;

/// A case: its name, and what runs it.
pub type Case<D> = (&'static str, fn(&mut Bench<D>));

/// Every kernel's cases, but for those of whole backends.
#[must_use]
pub fn all<D: Driver>() -> Vec<Case<D>> {
    macro_rules! cases {
        ($($module:ident :: $case:ident,)*) => {
            vec![$((stringify!($case), $module::$case::<D>),)*]
        };
    }
    cases![
        elementwise::embedding_gather_copies_the_tokens_rows,
        elementwise::embedding_scaled_multiplies_the_tokens_rows,
        elementwise::rms_norm_norms_each_row,
        elementwise::rms_norm_add_adds_each_normed_row,
        elementwise::soft_cap_bounds_every_logit,
        elementwise::table_edits_change_their_entries,
        elementwise::gates_are_silu_or_gelu,
        elementwise::add_bias_adds_to_every_row,
        elementwise::copy_blocks_moves_whole_blocks_of_every_layer,
        elementwise::rope_rotates_queries_and_writes_keys_and_values_to_their_slots,
        products::products_of_few_rows_match_the_reference,
        products::gated_products_match_the_reference,
        products::normed_products_match_the_reference,
        products::a_products_bits_do_not_depend_on_its_rows,
        products::skinny_products_match_the_reference,
        products::a_skinny_products_bits_do_not_depend_on_its_rows,
        products::products_of_few_rows_with_fp8_match_the_reference,
        products::a_products_bits_with_fp8_do_not_depend_on_its_rows,
        rope_products::products_that_rotate_give_what_two_launches_do,
        fp8::rows_are_quantized_by_their_largest_number,
        fp8::weights_in_e4m3_are_widened,
        fp8::sums_are_scaled_by_row_and_output,
        experts::rows_go_to_their_likeliest_experts,
        experts::experts_add_what_the_reference_says,
        experts::experts_in_fp8_add_what_the_reference_says,
        experts::a_rows_bits_are_its_own_among_experts,
        attention::every_dtype_and_head_dim_matches_the_reference,
        attention::every_context_matches_the_reference,
        attention::chunks_of_prompts_match_the_reference,
        attention::every_group_matches_the_reference,
        attention::masks_and_caps_match_the_reference,
        attention::queries_beyond_f16_match_the_reference,
        attention::a_rows_bits_depend_on_its_own_context_only,
        attention::a_prompts_bits_do_not_depend_on_its_cuts,
        attention::groups_of_warps_attend_as_warps_do,
        prefixes::a_shared_prefix_changes_no_bit,
        sampling::the_drawn_token_is_the_references,
        sampling::log_probabilities_are_of_the_raw_logits,
        sampling::the_order_of_threads_and_the_neighbours_change_nothing,
        sampling::rows_that_cannot_be_drawn_from_say_so,
        sampling::what_slots_sampled_last_is_counted,
        sampling_wide::vocabularies_of_any_length_draw_the_references_token,
        sampling_wide::equals_go_to_the_lowest_ids,
        sampling_wide::most_rows_are_settled_by_their_slices,
        sampling_wide::a_row_with_penalties_is_searched_raw_and_drawn_from_changed,
        sampling_wide::a_rows_bits_are_its_own_over_several_slices,
        sampling_wide::a_slice_that_cannot_be_drawn_from_ends_its_row,
        sampling_runs::a_row_is_the_same_however_its_slices_are_shared_out,
        sampling_runs::wide_nuclei_are_settled_by_a_second_look,
        token_logprobs::given_tokens_are_scored_and_ranked,
        sampling_masks::only_what_a_mask_allows_is_drawn,
        sampling_masks::a_mask_of_all_changes_no_bits_nor_do_neighbours_masks,
        sampling_masks::a_row_with_nothing_left_says_so,
    ]
}
