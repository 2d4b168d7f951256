//! A quick hash of request ids.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use sconce_types::RequestId;

/// What is kept by request. Ids are counted by the engine, not chosen by clients, so
/// nobody can make them collide, and a hash of one multiplication is enough.
pub type ByRequest<T> = HashMap<RequestId, T, BuildHasherDefault<IdHasher>>;

/// Fibonacci hashing: the high bits of a product with 2^64 divided by the golden ratio.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The table takes its index from the low bits, its tags from the high ones.
        self.0 = product ^ (product >> 32);
    }
}
