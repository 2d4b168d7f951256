//! Memory that starts on a cache line.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::{Pod, Zeroable};

use crate::KernelError;

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A zero-initialised slice that starts on a cache line. The allocator hands
/// out zeroed pages lazily, so what is never touched costs no memory.
pub(crate) struct AlignedVec<T> {
    lines: Vec<Line>,
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
        let num_lines = bytes.ok_or_else(out_of_memory)?.div_ceil(64);
        let lines =
            bytemuck::allocation::try_zeroed_vec(num_lines).map_err(|()| out_of_memory())?;
        Ok(Self {
            lines,
            len,
            element: PhantomData,
        })
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
