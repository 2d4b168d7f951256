//! What the host writes for the device, on its way through pinned memory.
#![expect(unsafe_code, reason = "pinned memory is copied from as far as it is filled")]

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DriverError, HostSlice, PinnedHostSlice,
    SyncOnDrop,
};

/// Bytes of one pinned buffer; uploads go through them piece by piece.
const PINNED_BYTES: usize = 8 << 20;
/// Pinned buffers: while one is copied, the next is filled. A step has two uploads, its lists and
/// its sampling's, and two steps are in flight: none of them waits for another's.
const NUM_PINNED: usize = 4;

/// Host memory that the device reads by itself, in turns.
pub(super) struct Uploads {
    buffers: Vec<PinnedBuffer>,
    next: usize,
}

/// A piece of it.
struct PinnedBuffer {
    memory: PinnedHostSlice<u8>,
    /// Recorded after each copy from it. cudarc records the memory's own event only while it
    /// tracks events, which it does not here.
    read: CudaEvent,
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // Whether or not the device still works, nothing reads the memory after this.
        let _ = self.read.synchronize();
    }
}

impl Uploads {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let buffer = |_| {
            // SAFETY: what is in it is written before it is read.
            let memory = unsafe { context.alloc_pinned(PINNED_BYTES) }?;
            Ok(PinnedBuffer { memory, read: context.new_event(None)? })
        };
        Ok(Self { buffers: (0..NUM_PINNED).map(buffer).collect::<Result<_, _>>()?, next: 0 })
    }

    /// Copies bytes to the memory from byte `at` on, later than this returns.
    pub(super) fn ask(
        &mut self,
        stream: &Arc<CudaStream>,
        memory: &mut CudaSlice<u8>,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), DriverError> {
        for (index, piece) in bytes.chunks(PINNED_BYTES).enumerate() {
            let buffer = &mut self.buffers[self.next];
            self.next = (self.next + 1) % NUM_PINNED;
            // Until the device has read what it held.
            buffer.read.synchronize()?;
            buffer.memory.as_mut_slice()?[..piece.len()].copy_from_slice(piece);
            let at = at + index * PINNED_BYTES;
            let mut to = memory.slice_mut(at..at + piece.len());
            stream.memcpy_htod(&Prefix { buffer: &buffer.memory, len: piece.len() }, &mut to)?;
            buffer.read.record(stream)?;
        }
        Ok(())
    }
}

/// The first bytes of a pinned buffer.
struct Prefix<'a> {
    buffer: &'a PinnedHostSlice<u8>,
    len: usize,
}

impl HostSlice<u8> for Prefix<'_> {
    fn len(&self) -> usize {
        self.len
    }

    unsafe fn stream_synced_slice<'a>(
        &'a self,
        stream: &'a CudaStream,
    ) -> (&'a [u8], SyncOnDrop<'a>) {
        // SAFETY: as for the whole buffer.
        let (slice, sync) = unsafe { self.buffer.stream_synced_slice(stream) };
        (&slice[..self.len], sync)
    }

    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        _stream: &'a CudaStream,
    ) -> (&'a mut [u8], SyncOnDrop<'a>) {
        unreachable!("uploads only read")
    }
}
