//! Which decodes of a step have their first tokens in the same blocks, where a device gains by
//! reading those once.

use std::ops::Range;

use sconce_kernels::{BLOCK_SIZE, SharedPrefix, StepPlan};

/// Of fewer sequences no prefix is shared: a device computes a block of rows of it in the time
/// in which it would read two.
const LEAST_SEQS: usize = 4;
/// Blocks of a unit of prefixes.
const UNIT_BLOCKS: usize = SharedPrefix::UNIT / BLOCK_SIZE;
/// Of a sequence that takes no part.
const NONE: u32 = u32::MAX;

/// Finds shared prefixes, once for as long as the same sequences decode: what they share does not
/// change then, since blocks in common are whole and are written no more.
#[derive(Debug)]
pub(crate) struct Prefixes {
    /// Cache groups in which prefixes may be shared, and how many tokens fewer must be read for
    /// it to pay.
    least: Vec<(u32, usize)>,
    /// By sequence, the slots of those that were looked at.
    looked_at: Vec<u32>,
    /// Of those: groups and tokens, each with a range of sequences.
    found: Vec<(u32, usize, Range<usize>)>,
    sequences: Vec<u32>,
}

impl Prefixes {
    pub(crate) fn new(least: Vec<(u32, usize)>) -> Self {
        Self { least, looked_at: Vec::new(), found: Vec::new(), sequences: Vec::new() }
    }

    /// Forgets what was found: another sequence has a slot, or other blocks.
    pub(crate) fn forget(&mut self) {
        self.looked_at.clear();
    }

    /// Notes in the plan which of its sequences share prefixes; `table` is a slot's block table in
    /// a group.
    pub(crate) fn note<'a>(&mut self, plan: &mut StepPlan, table: impl Fn(u32, u32) -> &'a [u32]) {
        if self.least.is_empty() || plan.num_seqs() < LEAST_SEQS {
            return;
        }
        let slot = |s: usize| if plan.rows(s).len() == 1 { plan.slots[s] } else { NONE };
        let slots = (0..plan.num_seqs()).map(slot);
        if !slots.clone().eq(self.looked_at.iter().copied()) {
            self.looked_at.clear();
            self.looked_at.extend(slots);
            self.find(&plan.context_lens, table);
        }
        for (group, num_tokens, sequences) in &self.found {
            plan.share_prefix(*group, *num_tokens, &self.sequences[sequences.clone()]);
        }
    }

    fn find<'a>(&mut self, context_lens: &[u32], table: impl Fn(u32, u32) -> &'a [u32]) {
        self.found.clear();
        self.sequences.clear();
        for (group, least) in self.least.clone() {
            // Of each sequence the blocks of the units that lie before its row.
            let taking_part = (0..).zip(&self.looked_at).filter(|&(_, &slot)| slot != NONE);
            let mut tables: Vec<(&[u32], u32)> = taking_part
                .map(|(sequence, &slot)| {
                    let before = context_lens[sequence as usize].saturating_sub(1) as usize;
                    let blocks = before / SharedPrefix::UNIT * UNIT_BLOCKS;
                    (&table(group, slot)[..blocks], sequence)
                })
                .filter(|(blocks, _)| !blocks.is_empty())
                .collect();
            tables.sort_unstable();
            // Units that neighbours have in common.
            let common = tables.windows(2).map(|pair| {
                let (one, other) = (pair[0].0.chunks(UNIT_BLOCKS), pair[1].0.chunks(UNIT_BLOCKS));
                one.zip(other).take_while(|(one, other)| one == other).count()
            });
            let common: Vec<usize> = common.collect();
            let mut left = Vec::new();
            left.push(0..common.len());
            while let Some(range) = left.pop() {
                let best = largest(&common[range.clone()]);
                if best.units * best.range.len() * SharedPrefix::UNIT < least.max(1) {
                    continue;
                }
                let members = range.start + best.range.start..range.start + best.range.end;
                if members.len() + 1 >= LEAST_SEQS {
                    let first = self.sequences.len();
                    let members = &tables[members.start..=members.end];
                    self.sequences.extend(members.iter().map(|(_, sequence)| sequence));
                    self.sequences[first..].sort_unstable();
                    let found = first..self.sequences.len();
                    self.found.push((group, best.units * SharedPrefix::UNIT, found));
                }
                // The neighbours of the best are in it; others may share other prefixes.
                left.push(range.start..members.start.saturating_sub(1).max(range.start));
                left.push((members.end + 1).min(range.end)..range.end);
            }
        }
    }
}

/// A run of neighbours, and the units that all of them have in common.
#[derive(Debug, PartialEq)]
struct Run {
    units: usize,
    range: Range<usize>,
}

/// The run with the most units in common, those of each counted: the largest rectangle under a
/// histogram, in one pass with a stack.
fn largest(common: &[usize]) -> Run {
    let mut best = Run { units: 0, range: 0..0 };
    // Starts of runs that go on, and their units, ascending.
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (at, units) in common.iter().copied().chain([0]).enumerate() {
        let mut start = at;
        while let Some(&(from, of_run)) = open.last()
            && of_run >= units
        {
            if of_run * (at - from) > best.units * best.range.len() {
                best = Run { units: of_run, range: from..at };
            }
            start = from;
            open.pop();
        }
        open.push((start, units));
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_run_is_as_large_as_any(
            common in prop::collection::vec(0_usize..6, 0..12),
        ) {
            let size = |range: &Range<usize>| {
                let units = common[range.clone()].iter().min().copied().unwrap_or(0);
                (units, units * range.len())
            };
            let ranges = (0..common.len()).flat_map(|start| {
                (start..=common.len()).map(move |end| start..end)
            });
            let most = ranges.map(|range| size(&range).1).max().unwrap_or(0);
            let best = largest(&common);
            prop_assert_eq!(size(&best.range), (best.units, most));
        }

        /// What is noted are blocks that all have, each sequence is in one prefix at most, and none
        /// that is left out could have joined.
        #[test]
        fn what_is_noted_is_in_common(
            // Each one's units of three trunks, and of its own.
            sequences in prop::collection::vec((0_u32..3, 0_usize..6, 0_usize..3, 1_usize..3), 0..30),
            least in 1_usize..12,
        ) {
            let tables: Vec<Vec<u32>> = (0..)
                .zip(&sequences)
                .map(|(sequence, &(trunk, shared, own, _))| {
                    let shared = (0..(shared * UNIT_BLOCKS) as u32).map(|i| trunk * 1000 + i);
                    let own = (0..((own + 1) * UNIT_BLOCKS) as u32)
                        .map(|i| 10_000 + sequence * 1000 + i);
                    shared.chain(own).collect()
                })
                .collect();
            let mut prefixes = Prefixes::new(vec![(0, least * SharedPrefix::UNIT)]);
            let mut plan = StepPlan::new(1);
            for (slot, (table, &(.., rows))) in (0..).zip(tables.iter().zip(&sequences)) {
                let context = table.len() * BLOCK_SIZE;
                plan.push(slot, &vec![0; rows], context - rows, &[table]);
            }
            prefixes.note(&mut plan, |_, slot| &tables[slot as usize]);
            let mut seen = Vec::new();
            for prefix in &plan.prefixes {
                let sharers = &plan.sharers[prefix.sharers.clone()];
                let num_tokens = prefix.num_tokens as usize;
                prop_assert!(sharers.len() >= LEAST_SEQS && sharers.is_sorted_by(|a, b| a < b));
                prop_assert!(num_tokens * (sharers.len() - 1) >= least * SharedPrefix::UNIT);
                let blocks = |sharer: u32| &tables[sharer as usize][..num_tokens / BLOCK_SIZE];
                for &sharer in sharers {
                    prop_assert_eq!(blocks(sharer), blocks(sharers[0]));
                    prop_assert_eq!(sequences[sharer as usize].3, 1);
                    prop_assert!(num_tokens < plan.context_lens[sharer as usize] as usize);
                    prop_assert!(!seen.contains(&sharer));
                    seen.push(sharer);
                }
                for other in (0..tables.len() as u32).filter(|other| !sharers.contains(other)) {
                    let joins = sequences[other as usize].3 == 1
                        && blocks_of(&tables[other as usize], num_tokens) == Some(blocks(sharers[0]));
                    prop_assert!(!joins || seen.contains(&other), "{other} could have joined");
                }
            }
            // Found once, and the same while the same sequences decode.
            let (noted, sharers) = (plan.prefixes.clone(), plan.sharers.clone());
            plan.prefixes.clear();
            plan.sharers.clear();
            prefixes.note(&mut plan, |_, _| unreachable!("nothing has changed"));
            prop_assert_eq!((&plan.prefixes, &plan.sharers), (&noted, &sharers));
        }
    }

    fn blocks_of(table: &[u32], num_tokens: usize) -> Option<&[u32]> {
        table.get(..num_tokens / BLOCK_SIZE)
    }

    #[test]
    fn another_sequence_of_a_slot_is_looked_at() {
        let same = vec![7; 2 * UNIT_BLOCKS];
        let other: Vec<u32> = (0..2 * UNIT_BLOCKS as u32).collect();
        let plan = || {
            let mut plan = StepPlan::new(1);
            (0..4).for_each(|slot| plan.push(slot, &[0], 300, &[&same]));
            plan
        };
        let mut prefixes = Prefixes::new(vec![(0, SharedPrefix::UNIT)]);
        let mut first = plan();
        prefixes.note(&mut first, |_, _| &same);
        assert_eq!(first.sharers, [0, 1, 2, 3]);
        prefixes.forget();
        let mut second = plan();
        prefixes.note(&mut second, |_, slot| if slot == 2 { &other } else { &same });
        assert!(second.prefixes.is_empty(), "three are too few");
    }
}
