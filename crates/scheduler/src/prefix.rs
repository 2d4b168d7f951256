//! Hashes of full blocks, by which equal prefixes are found.

use std::{fmt, hash::Hasher as _};

use sconce_types::{BLOCK_SIZE, RequestId, TokenId};
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::{Scheduler, Span};

/// The hash of a full block: of its tokens and of all that come before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(pub u128);

/// The key of all block hashes. Without it nobody can make two blocks of one hash, so it is
/// drawn at random when a server starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrefixKey(pub [u64; 2]);

impl fmt::Debug for PrefixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrefixKey(..)")
    }
}

impl PrefixKey {
    /// What comes before a sequence's first block: equal tokens under different salts
    /// have different hashes.
    pub(crate) fn root(self, salt: u64) -> BlockHash {
        let mut hasher = self.hasher();
        hasher.write_u64(salt);
        BlockHash(hasher.finish128().as_u128())
    }

    /// The hash of a block of these tokens after another.
    pub(crate) fn child(self, parent: BlockHash, tokens: &[TokenId]) -> BlockHash {
        let mut hasher = self.hasher();
        hasher.write_u64(parent.0 as u64);
        hasher.write_u64((parent.0 >> 64) as u64);
        // Whole words of the hash: half of the work of one at a time.
        let (pairs, rest) = tokens.as_chunks::<2>();
        pairs.iter().for_each(|&[a, b]| hasher.write_u64(u64::from(a) | u64::from(b) << 32));
        rest.iter().for_each(|&token| hasher.write_u32(token));
        BlockHash(hasher.finish128().as_u128())
    }

    fn hasher(self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

impl Scheduler {
    /// Gives a waiting sequence the longest prefix of it that is cached, in whole blocks:
    /// all blocks of groups that keep everything, and of a window those that the next token
    /// needs. Its last token is always computed: what follows is sampled from it.
    pub(crate) fn share_prefix(&mut self, id: RequestId) {
        let Some(key) = self.config.prefix_cache else { return };
        let sequence = self.sequences.get_mut(&id).expect("only known sequences are admitted");
        // The log-probabilities of a prompt are those of tokens that are computed.
        if sequence.params.prompt_logprobs.is_some() {
            return;
        }
        let groups = self.config.groups;
        let spans = groups.spans();
        let mut len = (sequence.len() - 1) / BLOCK_SIZE;
        for index in 0..len {
            let hash = sequence.block_hash(key, index);
            let mut kept = spans.iter().zip(0..).filter(|(span, _)| **span == Span::All);
            if !kept.all(|(_, group)| self.pool.find((hash, group)).is_some()) {
                len = index;
                break;
            }
        }
        if groups.has_windows() {
            len = longest_in_windows(spans, len, |index, group| {
                self.pool.find((sequence.block_hash(key, index), group)).is_some()
            });
        }
        for (span, group) in spans.iter().zip(0..) {
            let first = span.first_needed(len * BLOCK_SIZE) / BLOCK_SIZE;
            sequence.table.begin(group as usize, first);
            for index in first..len {
                let hash = sequence.block_hash(key, index);
                let block = self.pool.find((hash, group)).expect("it was found above");
                self.pool.share(block);
                sequence.table.push(group as usize, index, block);
            }
        }
        sequence.num_keyed = len;
        sequence.num_scheduled = len * BLOCK_SIZE;
        sequence.num_computed = sequence.num_scheduled;
        self.queue.hold(sequence.tenant, sequence.table.num_held());
    }

    /// Takes it away again from one that is not admitted after all.
    pub(crate) fn unshare_prefix(&mut self, id: RequestId) {
        let sequence = self.sequences.get_mut(&id).expect("only known sequences are admitted");
        self.queue.release(sequence.tenant, sequence.table.num_held());
        sequence.table.release(&mut self.pool);
        sequence.num_keyed = 0;
        sequence.num_scheduled = 0;
        sequence.num_computed = 0;
    }

    /// Counts what an admitted sequence found.
    pub(crate) fn note_prefix(&mut self, id: RequestId) {
        if self.config.prefix_cache.is_none() {
            return;
        }
        let sequence = self.sequences.get_mut(&id).expect("only known sequences are admitted");
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(sequence.num_scheduled);
            self.prefix_cache_queries += sequence.prompt_len as u64;
            self.prefix_cache_hits += sequence.num_scheduled as u64;
            let cost = self.costs.cached * sequence.num_scheduled as f64;
            self.queue.charge(sequence.tenant, cost);
        }
    }
}

/// The longest prefix of at most `len` blocks of which every window has those that the next
/// token needs.
fn longest_in_windows(
    spans: &[Span],
    mut len: usize,
    mut is_cached: impl FnMut(usize, u32) -> bool,
) -> usize {
    loop {
        let before = len;
        for (span, group) in spans.iter().zip(0..).filter(|(span, _)| **span != Span::All) {
            let mut index = len;
            while index > span.first_needed(len * BLOCK_SIZE) / BLOCK_SIZE {
                index -= 1;
                if !is_cached(index, group) {
                    len = index;
                }
            }
        }
        if len == before {
            return len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_key_salt_predecessors_and_tokens() {
        let names = |key: u64, salt, tokens: [[TokenId; 2]; 2]| {
            let key = PrefixKey([key, 2]);
            let first = key.child(key.root(salt), &tokens[0]);
            [first, key.child(first, &tokens[1])]
        };
        let [first, second] = names(1, 3, [[4, 5], [6, 7]]);
        assert_ne!(first, second);
        assert_eq!([first, second], names(1, 3, [[4, 5], [6, 7]]));
        assert_eq!(first, names(1, 3, [[4, 5], [9, 9]])[0]);
        assert_ne!(second, names(1, 3, [[4, 8], [6, 7]])[1], "what came before differs");
        for other in [names(9, 3, [[4, 5], [6, 7]]), names(1, 9, [[4, 5], [6, 7]])] {
            assert_ne!(first, other[0]);
            assert_ne!(second, other[1]);
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", PrefixKey([123_456, 1])), "PrefixKey(..)");
    }
}
