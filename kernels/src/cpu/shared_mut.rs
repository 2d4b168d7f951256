//! A slice whose disjoint parts are written by the tasks of a parallel region.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one slice")]

use std::marker::PhantomData;

/// A mutable slice that tasks of one region share, each writing its own part.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out only through `slice`, whose callers keep them disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part of `len` elements from `from` on.
    ///
    /// # Safety
    /// No other part that overlaps it is in use.
    ///
    /// # Panics
    /// If the part does not lie within the slice.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts disjoint")]
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from.checked_add(len).is_some_and(|end| end <= self.len), "a part lies within");
        // SAFETY: within the slice by the assertion, disjoint by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// Where the element at `from` is.
    ///
    /// # Panics
    /// If it does not lie within the slice.
    pub(crate) fn pointer(&self, from: usize) -> *mut T {
        assert!(from < self.len, "an element lies within");
        // SAFETY: within the slice by the assertion.
        unsafe { self.start.add(from) }
    }
}
