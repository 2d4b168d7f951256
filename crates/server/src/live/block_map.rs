//! Whose each block is, in few bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sconce_engine::BlockCode;
use sconce_types::TenantId;

/// The code of all tenants but the one that looks.
const OTHERS: u8 = BlockCode::LAST;

/// The code of a tenant's blocks for one who sees everything, or only this tenant.
pub(super) fn code(tenant: TenantId, view: Option<TenantId>) -> u8 {
    match view {
        None => BlockCode::of(tenant),
        Some(own) if own == tenant => BlockCode::FIRST_TENANT,
        Some(_) => OTHERS,
    }
}

/// A map of blocks as a client knows it.
#[derive(Default)]
pub(super) struct MapDeltas {
    /// What the client was told; blocks beyond its end are free.
    known: Vec<u8>,
}

impl MapDeltas {
    /// What to change in the map that the client has, which is all free at first: runs of
    /// (blocks to skip, blocks to set, their code), in base64. Counts are in LEB128: seven bits
    /// a byte, the lowest first, the top bit set where more follow.
    pub(super) fn next(&mut self, blocks: &[u8], view: Option<TenantId>) -> String {
        let own = view.map(BlockCode::of);
        let shown = |code: u8| match own {
            None => code,
            _ if code < BlockCode::FIRST_TENANT => code,
            // With more tenants than codes the last code is several tenants'.
            Some(own) if own == code && own != BlockCode::LAST => BlockCode::FIRST_TENANT,
            Some(_) => OTHERS,
        };
        self.known.resize(blocks.len(), BlockCode::FREE);
        let mut changes = Vec::new();
        let (mut at, mut told) = (0, 0);
        while at < blocks.len() {
            let code = shown(blocks[at]);
            if self.known[at] == code {
                at += 1;
                continue;
            }
            let start = at;
            while at < blocks.len() && shown(blocks[at]) == code && self.known[at] != code {
                self.known[at] = code;
                at += 1;
            }
            push_count(&mut changes, start - told);
            push_count(&mut changes, at - start);
            changes.push(code);
            told = at;
        }
        STANDARD.encode(changes)
    }
}

fn push_count(bytes: &mut Vec<u8>, mut count: usize) {
    while count >= 0x80 {
        bytes.push(count as u8 | 0x80);
        count >>= 7;
    }
    bytes.push(count as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a client does.
    fn apply(map: &mut [u8], changes: &str) {
        let bytes = STANDARD.decode(changes).expect("it is base64");
        let mut bytes = bytes.into_iter();
        let mut at = 0;
        while bytes.len() > 0 {
            let mut count = || {
                let (mut count, mut shift) = (0, 0);
                for byte in bytes.by_ref() {
                    count |= usize::from(byte & 0x7f) << shift;
                    shift += 7;
                    if byte < 0x80 {
                        break;
                    }
                }
                count
            };
            at += count();
            let end = at + count();
            map[at..end].fill(bytes.next().expect("a code"));
            at = end;
        }
    }

    proptest! {
        #[test]
        fn a_client_that_applies_all_changes_has_the_map(
            maps in prop::collection::vec(prop::collection::vec(0u8..5, 400), 1..6),
        ) {
            let (mut deltas, mut map) = (MapDeltas::default(), vec![0; 400]);
            for blocks in &maps {
                apply(&mut map, &deltas.next(blocks, None));
                prop_assert_eq!(&map, blocks);
            }
            prop_assert_eq!(deltas.next(&map, None), "", "nothing has changed");
        }
    }

    #[test]
    fn a_tenant_sees_its_own_blocks_and_those_of_others_as_one() {
        let (mut deltas, mut map) = (MapDeltas::default(), vec![0; 600]);
        let mut blocks = [0, 1, 2, 3, 4, 3, 255].to_vec();
        blocks.resize(600, 3);
        apply(&mut map, &deltas.next(&blocks, Some(TenantId(1))));
        assert_eq!(map[..7], [0, 1, OTHERS, 2, OTHERS, 2, OTHERS]);
        assert!(map[7..].iter().all(|&code| code == 2));
        assert_eq!(code(TenantId(1), Some(TenantId(1))), 2);
        // One of many that share a code sees none of its blocks rather than another's.
        let (mut deltas, mut map) = (MapDeltas::default(), vec![0; 600]);
        apply(&mut map, &deltas.next(&[BlockCode::LAST; 600], Some(TenantId(999))));
        assert!(map.iter().all(|&code| code == OTHERS));
    }

    #[test]
    fn large_pools_with_long_runs_are_few_bytes() {
        let blocks: Vec<u8> = (0..1_000_000).map(|block| (block / 100_000) as u8).collect();
        assert!(MapDeltas::default().next(&blocks, None).len() < 100);
    }
}
