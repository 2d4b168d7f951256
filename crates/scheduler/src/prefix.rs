//! Names of full blocks, by which equal beginnings are found.

use std::{fmt, hash::Hasher as _};

use sconce_types::TokenId;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// The name of a full block: a hash of its tokens and of all that come before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(pub u128);

/// The key of all names. Nobody who does not know it can make two blocks of one name,
/// so it is drawn at random when a server starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrefixKey(pub [u64; 2]);

impl fmt::Debug for PrefixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrefixKey(..)")
    }
}

impl PrefixKey {
    /// What comes before a sequence's first block: equal tokens under different salts
    /// have different names.
    pub(crate) fn root(self, salt: u64) -> BlockHash {
        let mut hasher = self.hasher();
        hasher.write_u64(salt);
        BlockHash(hasher.finish128().as_u128())
    }

    /// The name of a block of these tokens after another.
    pub(crate) fn child(self, parent: BlockHash, tokens: &[TokenId]) -> BlockHash {
        let mut hasher = self.hasher();
        hasher.write_u128(parent.0);
        tokens.iter().for_each(|&token| hasher.write_u32(token));
        BlockHash(hasher.finish128().as_u128())
    }

    fn hasher(self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_key_salt_predecessors_and_tokens() {
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
