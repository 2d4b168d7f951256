//! Small lists on their way to the device, several in one copy.

use bytemuck::NoUninit;

use super::{DevicePointer, Driver};
use crate::KernelError;

/// Where a list starts in the memory.
const ALIGNMENT: usize = 16;

/// A piece of device memory of a fixed size, and the bytes that will fill it.
pub(super) struct Staging<M> {
    memory: M,
    address: DevicePointer,
    capacity: usize,
    bytes: Vec<u8>,
}

impl<M> Staging<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        capacity: usize,
        what: &str,
    ) -> Result<Self, KernelError> {
        let memory = driver.allocate(capacity, what)?;
        let address = driver.address(&memory);
        Ok(Self { memory, address, capacity, bytes: Vec::with_capacity(capacity) })
    }

    /// Makes room for so many bytes in all, in new memory; what was added is lost.
    pub(super) fn grow<D: Driver<Memory = M>>(
        &mut self,
        driver: &D,
        capacity: usize,
        what: &str,
    ) -> Result<(), KernelError> {
        if capacity > self.capacity {
            *self = Self::new(driver, capacity, what)?;
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds a list and tells where it will lie.
    ///
    /// # Errors
    /// There is no room left.
    pub(super) fn push<T: NoUninit>(&mut self, list: &[T]) -> Result<DevicePointer, KernelError> {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        let list: &[u8] = bytemuck::cast_slice(list);
        if at + list.len() > self.capacity {
            return Err(self.no_room(list.len()));
        }
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(list);
        Ok(self.address.behind(at))
    }

    /// Adds a list and bytes of `filler` behind it, up to `len` elements in all: what follows then
    /// lies at the same place whatever the list's own length.
    ///
    /// # Errors
    /// There is no room left.
    pub(super) fn push_padded<T: NoUninit>(
        &mut self,
        list: &[T],
        len: usize,
        filler: u8,
    ) -> Result<DevicePointer, KernelError> {
        let address = self.push(list)?;
        let missing = len.saturating_sub(list.len()) * size_of::<T>();
        if self.bytes.len() + missing > self.capacity {
            return Err(self.no_room(missing));
        }
        self.bytes.resize(self.bytes.len() + missing, filler);
        Ok(address)
    }

    fn no_room(&self, bytes: usize) -> KernelError {
        KernelError::Shape {
            op: "upload",
            what: "a step's lists",
            got: format!("{} bytes", self.bytes.len() + bytes),
            expected: format!("at most the {} that the limits allow", self.capacity),
        }
    }

    /// Copies what was added.
    pub(super) fn send<D: Driver<Memory = M>>(&mut self, driver: &D) -> Result<(), KernelError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        driver.upload(&mut self.memory, 0, &self.bytes)
    }
}

/// Bytes that a list of `len` may take in a [`Staging`].
pub(super) const fn room<T>(len: usize) -> usize {
    len * size_of::<T>() + ALIGNMENT
}
