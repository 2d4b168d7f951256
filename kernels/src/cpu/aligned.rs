//! Memory that starts on a cache line.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::Pod;

use crate::KernelError;

/// Bytes of a cache line.
const LINE: usize = 64;
const WORDS: usize = LINE / size_of::<u64>();

/// A zero-initialised slice that starts on a cache line.
///
/// The memory is asked for in words, not in aligned lines: only so does the
/// allocator hand out the system's zeroed pages as they are, so that what is
/// never touched costs neither time nor memory.
pub(crate) struct AlignedVec<T> {
    words: Vec<u64>,
    /// The first word that starts a line.
    start: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// No memory; `what` says for what.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self, KernelError> {
        let bytes = len.checked_mul(size_of::<T>());
        let out_of_memory = || KernelError::OutOfMemory {
            what: what.to_owned(),
            bytes: bytes.unwrap_or(usize::MAX),
        };
        let lines = bytes.ok_or_else(out_of_memory)?.div_ceil(LINE) + 1;
        let words = bytemuck::allocation::try_zeroed_vec::<u64>(lines * WORDS)
            .map_err(|()| out_of_memory())?;
        let start = words.as_ptr().align_offset(LINE);
        assert!(start < WORDS, "a line starts within a line's length");
        Ok(Self { words, start, len, element: PhantomData })
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words[self.start..])[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words[self.start..])[..self.len]
    }
}
