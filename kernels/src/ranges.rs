//! Ranges on the timeline of NVIDIA's profilers, with the feature `nvtx`.
//!
//! NVTX is a header, whose functions look for a profiler when the first is called
//! (`stubs/nvtx.c`): without one a range costs a branch, and without the feature nothing.
#![cfg_attr(feature = "nvtx", expect(unsafe_code, reason = "NVTX is C"))]

use std::{ffi::CStr, marker::PhantomData};

/// A range of this thread, until it is dropped. Ranges of a thread lie within each other.
#[derive(Debug)]
#[must_use = "a range ends when it is dropped"]
pub struct Range {
    /// It begins and ends on one thread.
    of_thread: PhantomData<*const ()>,
}

/// Begins a range.
#[inline]
pub fn range(name: &'static CStr) -> Range {
    #[cfg(feature = "nvtx")]
    // SAFETY: the name is a string that ends with 0, and lives for ever.
    unsafe {
        sconce_range_push(name.as_ptr());
    }
    #[cfg(not(feature = "nvtx"))]
    let _ = name;
    Range { of_thread: PhantomData }
}

#[cfg(feature = "nvtx")]
impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: this thread has pushed it, and popped all that it pushed since.
        unsafe { sconce_range_pop() }
    }
}

#[cfg(feature = "nvtx")]
unsafe extern "C" {
    fn sconce_range_push(name: *const std::ffi::c_char);
    fn sconce_range_pop();
}
