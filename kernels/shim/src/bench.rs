//! A device with the buffers of a case on it.

use std::collections::HashMap;

use bytemuck::{NoUninit, Pod};
use sconce_kernels::{
    KernelError,
    cuda::{DevicePointer, Driver, KernelParams, Launch},
};

/// A device, and what a case has put into its memory.
pub struct Bench<D: Driver> {
    driver: D,
    /// With their sizes in bytes.
    buffers: HashMap<u64, (D::Memory, usize)>,
}

impl<D: Driver> Bench<D> {
    /// A bench with nothing on it.
    pub fn new(driver: D) -> Self {
        Self { driver, buffers: HashMap::new() }
    }

    /// The device.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Gives the device away; what was on it is freed.
    pub fn into_driver(self) -> D {
        self.driver
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.buffers.clear();
    }

    /// A buffer of these elements.
    ///
    /// # Panics
    /// If the device has no room.
    pub fn buffer<T: NoUninit>(&mut self, data: &[T]) -> DevicePointer {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let memory = self.driver.allocate(bytes.len(), "a test's buffer");
        let mut memory = memory.expect("the device has room for a test");
        self.driver.upload(&mut memory, 0, bytes).expect("the device takes it");
        let address = self.driver.address(&memory);
        self.buffers.insert(address.0, (memory, bytes.len()));
        address
    }

    /// What a buffer holds.
    ///
    /// # Panics
    /// If there is no such buffer, or the device failed.
    pub fn read<T: Pod>(&self, pointer: DevicePointer) -> Vec<T> {
        let (memory, bytes) = &self.buffers[&pointer.0];
        let mut data = vec![0; *bytes];
        self.driver.download(memory, &mut data).expect("the device gives it");
        bytemuck::pod_collect_to_vec(&data)
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// The device failed; the shim does when something is wrong in the kernel.
    pub fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError> {
        self.driver.launch(launch, params)
    }
}
