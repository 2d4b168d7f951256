//! Runs the CUDA kernels of `kernels/cuda` on a CPU, for tests.
//!
//! The same `.cu` files that nvcc compiles for devices are compiled as C++ against
//! a shim of CUDA's execution model (`shim.hpp`) into a program that this crate
//! starts and hands launches to. A block's threads run in an order shuffled by a
//! seed, shared memory starts poisoned, asynchronous copies land as late as they
//! may, and AddressSanitizer watches every buffer's borders.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use sconce_kernels::cuda::{DevicePointer, KernelParams};

mod compile;
mod driver;

pub use compile::compile;
pub use driver::ShimDriver;

/// The compiler that built the shim.
#[must_use]
pub fn compiler() -> &'static Path {
    Path::new(env!("SCONCE_SHIM_CXX"))
}

/// A launch's buffers: what its parameters point to.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<Vec<u8>>,
}

impl Memory {
    /// A buffer of these elements.
    pub fn buffer<T: bytemuck::NoUninit>(&mut self, data: &[T]) -> DevicePointer {
        self.buffers.push(bytemuck::cast_slice(data).to_vec());
        // 0 is null.
        DevicePointer((self.buffers.len() as u64) << OFFSET_BITS)
    }

    /// What a buffer holds.
    ///
    /// # Panics
    /// If the pointer is not this memory's, or its bytes are no whole elements.
    #[must_use]
    pub fn read<T: bytemuck::Pod>(&self, pointer: DevicePointer) -> Vec<T> {
        let (buffer, offset) = place(pointer);
        bytemuck::pod_collect_to_vec(&self.buffers[buffer][offset..])
    }

    /// A buffer's bytes from the pointer on.
    ///
    /// # Panics
    /// If the pointer is not this memory's.
    pub fn bytes_mut(&mut self, pointer: DevicePointer) -> &mut [u8] {
        let (buffer, offset) = place(pointer);
        &mut self.buffers[buffer][offset..]
    }
}

/// Bits of a pointer that are the offset in its buffer.
const OFFSET_BITS: u32 = 40;

/// The buffer's index and the offset in it.
fn place(pointer: DevicePointer) -> (usize, usize) {
    let buffer = (pointer.0 >> OFFSET_BITS).checked_sub(1).expect("the pointer is not null");
    let offset = pointer.0 & ((1 << OFFSET_BITS) - 1);
    let size = |n: u64| usize::try_from(n).expect("a buffer fits the memory");
    (size(buffer), size(offset))
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u64,
    /// Shuffles blocks and threads.
    pub seed: u64,
}

/// The program that runs the kernels.
pub struct Shim {
    program: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Shim {
    /// Starts the program.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Path::new(env!("SCONCE_SHIM")))
    }

    /// Starts another build of the program.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn of(program: &Path) -> Self {
        let mut program = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shim was built");
        let input = program.stdin.take();
        let output = program.stdout.take().expect("stdout is piped");
        Self { program, input, output }
    }

    /// Runs a kernel; the memory holds what it left there.
    ///
    /// # Errors
    /// What the shim or a sanitizer found is on standard error; here is how the
    /// program ended. It cannot be used any more then.
    ///
    /// # Panics
    /// If the parameters point to what the memory has not.
    pub fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
        memory: &mut Memory,
    ) -> Result<(), String> {
        let bytes = bytemuck::bytes_of(params);
        let pointers: Vec<(usize, DevicePointer)> = P::POINTERS
            .iter()
            .map(|&at| (at, bytemuck::pod_read_unaligned(&bytes[at..at + 8])))
            .filter(|&(_, pointer)| pointer != DevicePointer::NULL)
            .collect();
        // Each buffer that they point into goes once.
        let used: BTreeSet<usize> = pointers.iter().map(|&(_, pointer)| place(pointer).0).collect();
        let used = Vec::from_iter(used);
        let sent = self.send(launch, bytes, &pointers, &used, memory);
        let received = sent.and_then(|()| {
            used.iter().try_for_each(|&buffer| self.output.read_exact(&mut memory.buffers[buffer]))
        });
        received.map_err(|error| {
            self.input = None;
            match self.program.wait() {
                Ok(status) => format!("{}: {status}", launch.kernel),
                Err(_) => format!("{}: {error}", launch.kernel),
            }
        })
    }

    fn send(
        &mut self,
        launch: &Launch<'_>,
        params: &[u8],
        pointers: &[(usize, DevicePointer)],
        used: &[usize],
        memory: &Memory,
    ) -> std::io::Result<()> {
        let mut message = Vec::new();
        let count = |n: usize| u32::try_from(n).expect("a launch is small").to_le_bytes();
        message.extend(count(launch.kernel.len()));
        message.extend(launch.kernel.as_bytes());
        message.extend(launch.seed.to_le_bytes());
        launch.grid.iter().for_each(|n| message.extend(n.to_le_bytes()));
        message.extend(launch.threads.to_le_bytes());
        message.extend(launch.shared_bytes.to_le_bytes());
        message.extend(count(used.len()));
        for &buffer in used {
            let buffer = &memory.buffers[buffer];
            message.extend((buffer.len() as u64).to_le_bytes());
            message.extend(buffer);
        }
        message.extend(count(params.len()));
        message.extend(params);
        message.extend(count(pointers.len()));
        for &(at, pointer) in pointers {
            let (buffer, offset) = place(pointer);
            let sent = used.binary_search(&buffer).expect("every buffer pointed into is used");
            message.extend(count(at));
            message.extend(count(sent));
            message.extend((offset as u64).to_le_bytes());
        }
        let input = self.input.as_mut().expect("the shim has not ended");
        input.write_all(&message)?;
        input.flush()
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _ = self.program.wait();
    }
}
