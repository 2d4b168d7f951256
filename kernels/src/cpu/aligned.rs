//! Memory that starts on a cache line.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "advice on huge pages"))]

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::Pod;

use crate::KernelError;

/// Bytes of a cache line.
const LINE: usize = 64;
/// x86-64's and AArch64's usual huge page.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;
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

    /// `len` zeros for what every step reads from end to end: on huge pages, as far as the
    /// system has them and the slice spans them. Prefetching stops at a page's end, and
    /// every page costs a walk of the page table.
    ///
    /// # Errors
    /// No memory; `what` says for what.
    pub(crate) fn zeroed_to_stream(len: usize, what: &str) -> Result<Self, KernelError> {
        let slice = Self::zeroed(len, what)?;
        #[cfg(target_os = "linux")]
        advise_huge_pages(&slice.words);
        Ok(slice)
    }
}

/// Asks for huge pages where none of the memory has been written yet.
#[cfg(target_os = "linux")]
fn advise_huge_pages(words: &[u64]) {
    use rustix::mm::{Advice, madvise};
    // Whole huge pages only, so whole pages of any size.
    let skipped = words.as_ptr().align_offset(HUGE_PAGE);
    let bytes = size_of_val(words.get(skipped..).unwrap_or_default()) / HUGE_PAGE * HUGE_PAGE;
    if bytes > 0 {
        let first = words[skipped..].as_ptr().cast_mut();
        // SAFETY: whole pages within the slice; the advice changes what backs them, not what
        // they hold. A system without huge pages refuses it, and nothing is lost.
        let _ = unsafe { madvise(first.cast(), bytes, Advice::LinuxHugepage) };
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
