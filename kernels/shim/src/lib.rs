//! The tests of the CUDA kernels of `kernels/cuda`: what each must compute ([`cases`]),
//! on any device; and a device to run them on without a GPU ([`ShimDriver`]).
//!
//! The same `.cu` files that nvcc compiles for devices are compiled as C++ against
//! a shim of CUDA's execution model (`shim.hpp`) into a program that this crate
//! starts and hands launches to. A block's threads run in an order shuffled by a
//! seed, shared memory starts poisoned, asynchronous copies land as late as they
//! may, and AddressSanitizer watches every buffer's borders.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use sconce_kernels::cuda::{DevicePointer, Launch};

mod bench;
pub mod cases;
mod compile;
mod driver;

use compile::{Compiler, PARTS};

pub use bench::Bench;
pub use driver::{ShimDriver, ShimGraph};

/// The compiler that built the shim.
#[must_use]
pub fn compiler() -> &'static Path {
    Path::new(env!("SCONCE_SHIM_CXX"))
}

/// Builds the shim with other kernels, which may include headers from `cuda`.
///
/// # Errors
/// The compiler failed; what it said is in the error.
pub fn build(cuda: &Path, kernels: &[PathBuf], program: &Path) -> std::io::Result<()> {
    let built = Path::new(env!("SCONCE_SHIM_PARTS"));
    let parts = PARTS.map(|name| built.join(name).with_extension("o"));
    let shim = Path::new(env!("CARGO_MANIFEST_DIR"));
    Compiler { path: compiler(), shim }.program(cuda, kernels, &parts, program)
}

/// Whether a launch was of a kernel that the shim was not built with.
static HAS_MISSED_A_KERNEL: AtomicBool = AtomicBool::new(false);

/// How the program ends where it has no such kernel.
const NO_SUCH_KERNEL: i32 = 4;

/// Whether a launch was of a kernel that its shim was not built with: then what it found says
/// nothing of the kernels.
pub fn has_missed_a_kernel() -> bool {
    HAS_MISSED_A_KERNEL.load(Ordering::Relaxed)
}

/// What launches' parameters point to.
#[derive(Default)]
struct Memory {
    buffers: Vec<Vec<u8>>,
}

impl Memory {
    /// A buffer of so many zeros.
    fn allocate(&mut self, bytes: usize) -> DevicePointer {
        self.buffers.push(vec![0; bytes]);
        // 0 is null.
        DevicePointer((self.buffers.len() as u64) << OFFSET_BITS)
    }

    /// Leaves a buffer empty; its number is not used again.
    fn free(&mut self, pointer: DevicePointer) {
        self.buffers[place(pointer).0] = Vec::new();
    }

    /// A buffer's bytes from the pointer on.
    fn bytes_mut(&mut self, pointer: DevicePointer) -> &mut [u8] {
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

/// The program that runs the kernels.
struct Shim {
    program: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Shim {
    /// Starts a build of the program.
    fn of(program: &Path) -> Self {
        let mut program = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shim was built");
        let input = program.stdin.take();
        let output = program.stdout.take().expect("stdout is piped");
        Self { program, input, output }
    }

    /// Runs a kernel on a parameter of these bytes, of which those from each of `pointers` on are
    /// an address, with threads in the order of a seed; the memory holds what it left there. What the shim or a sanitizer finds is on standard error; the error says
    /// how the program ended. It cannot be used any more then.
    fn launch(
        &mut self,
        launch: &Launch<'_>,
        seed: u64,
        (bytes, pointers): (&[u8], &[usize]),
        memory: &mut Memory,
    ) -> Result<(), String> {
        let pointers: Vec<(usize, DevicePointer)> = pointers
            .iter()
            .map(|&at| (at, bytemuck::pod_read_unaligned(&bytes[at..at + 8])))
            .filter(|&(_, pointer)| pointer != DevicePointer::NULL)
            .collect();
        // Each buffer that they point into goes once.
        let used: BTreeSet<usize> = pointers.iter().map(|&(_, pointer)| place(pointer).0).collect();
        let used = Vec::from_iter(used);
        let sent = self.send((launch, seed), bytes, &pointers, &used, memory);
        let received = sent.and_then(|()| {
            used.iter().try_for_each(|&buffer| self.output.read_exact(&mut memory.buffers[buffer]))
        });
        received.map_err(|error| {
            self.input = None;
            match self.program.wait() {
                Ok(status) => {
                    let is_missing = status.code() == Some(NO_SUCH_KERNEL);
                    HAS_MISSED_A_KERNEL.fetch_or(is_missing, Ordering::Relaxed);
                    format!("{}: {status}", launch.kernel)
                }
                Err(_) => format!("{}: {error}", launch.kernel),
            }
        })
    }

    fn send(
        &mut self,
        (launch, seed): (&Launch<'_>, u64),
        params: &[u8],
        pointers: &[(usize, DevicePointer)],
        used: &[usize],
        memory: &Memory,
    ) -> std::io::Result<()> {
        let mut message = Vec::new();
        let count = |n: usize| u32::try_from(n).expect("a launch is small").to_le_bytes();
        message.extend(count(launch.kernel.len()));
        message.extend(launch.kernel.as_bytes());
        message.extend(seed.to_le_bytes());
        let [x, y] = launch.grid;
        [x, y, 1].iter().for_each(|n| message.extend(n.to_le_bytes()));
        message.extend(launch.threads.to_le_bytes());
        message.extend((launch.shared_bytes as u64).to_le_bytes());
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

impl Drop for Shim {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _ = self.program.wait();
    }
}
