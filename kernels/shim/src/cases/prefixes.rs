//! Attention over prefixes that sequences share.

use sconce_kernels::cuda::Driver;

use super::{
    attention::{Case, How, packed, spread},
    element::Element,
};
use crate::Bench;

/// Sequences that have three chunks in common; others, and prompts, beside them. They share
/// nothing yet.
#[must_use]
pub fn sharing(element: Element, cache: Element, heads: (usize, usize, usize), num: usize) -> Case {
    let mut sequences: Vec<_> = (0..num).map(|i| (769 + i % 7 * 30, 1)).collect();
    sequences.splice(1..1, [(40, 1), (260, 3), (70, 30)]);
    Case { cache_element: cache, shared: 768, ..Case::new(element, heads, &sequences) }
}

/// A prefix that is computed once gives the bits that it gives each sequence by itself, however
/// it is shared out.
pub(super) fn a_shared_prefix_changes_no_bit<D: Driver>(bench: &mut Bench<D>) {
    // With the blocks that compute a piece of it.
    let mut cases = [
        // 140 rows of a KV head.
        (2, sharing(Element::Bf16, Element::Bf16, (1, 10, 64), 14)),
        (2, sharing(Element::F16, Element::E4m3, (2, 3, 80), 4)),
        (1, sharing(Element::Bf16, Element::E4m3, (1, 8, 128), 4)),
        (1, sharing(Element::F16, Element::F16, (1, 4, 96), 4)),
        // 70 rows: more than a block's of so many dimensions.
        (2, sharing(Element::Bf16, Element::Bf16, (1, 7, 256), 10)),
        (1, sharing(Element::Bf16, Element::E4m3, (1, 2, 256), 3)),
    ];
    for (index, (blocks, case)) in cases.iter_mut().enumerate() {
        if index % 3 == 1 {
            case.params.soft_cap = Some(2.0);
        }
        let what = format!("{:?} over {:?}, {:?}", case.element, case.cache_element, case.params);
        let each = case.run(bench, packed()).unwrap_or_else(|error| panic!("{what}: {error}"));
        case.compare(&each).unwrap_or_else(|error| panic!("{what}: {error}"));
        case.together = true;
        // In one piece, in two of one chunk and two, and chunk by chunk.
        let pieces = |num: usize| How { multiprocessors: num * *blocks, ..spread() };
        let hows = [pieces(2), pieces(1), spread()];
        for how in &hows[..if index == 0 { 3 } else { 1 + index % 2 }] {
            let together = case.run(bench, *how).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(together == each, "{what}, {how:?}: other bits");
        }
    }
}
