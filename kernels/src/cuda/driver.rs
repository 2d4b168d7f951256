//! What the CUDA backend needs of a device: memory, copies, launches, products.
//!
//! There are two: a GPU through cudarc, and the shim of `kernels/shim`, which runs
//! the same kernels on a CPU for tests. So all that decides which kernel runs on what
//! is tested without a GPU.

use std::time::Duration;

use super::{DevicePointer, KernelParams, TileMap};
use crate::{Dtype, KernelError};

/// A device with one stream: what is asked of it happens in order, later than the
/// call returns unless it reads something back.
pub trait Driver: Send {
    /// Device memory; freed when dropped.
    type Memory: Send + Sync;
    /// Launches and products that were recorded, with their parameters.
    type Graph: Send;

    /// What a person should know of the device.
    fn describe(&self) -> String;

    /// What times of kernels depend on: the kind of device, its driver, its libraries and the
    /// build that the kernels are of.
    fn setting(&self) -> String {
        self.describe()
    }

    /// Multiprocessors, which run blocks side by side.
    fn multiprocessors(&self) -> usize;

    /// Whether tensor cores multiply what groups of four warps have in shared memory (`wgmma`,
    /// which compute capability 9.0 alone has): `prefill_groups.cu` runs then.
    fn has_warp_groups(&self) -> bool {
        false
    }

    /// What copies boxes of 16 rows of 64 elements of two bytes out of a tensor of `rows` rows of
    /// `columns` (`bulk_copies.cuh`), if the device has such copies.
    fn tile_map(&self, at: DevicePointer, rows: usize, columns: usize) -> Option<TileMap> {
        let _ = (at, rows, columns);
        None
    }

    /// Bytes of shared memory that a block may have.
    fn shared_bytes(&self) -> usize {
        // What compute capability 8.6 has, the least of all that kernels are compiled for.
        99 << 10
    }

    /// Memory of `bytes`, zeroed, for `what`.
    ///
    /// # Errors
    /// No memory.
    fn allocate(&self, bytes: usize, what: &str) -> Result<Self::Memory, KernelError>;

    /// Where the memory starts; aligned to 256 bytes.
    fn address(&self, memory: &Self::Memory) -> DevicePointer;

    /// Copies bytes to the memory, from byte `at` on.
    ///
    /// # Errors
    /// The device failed.
    fn upload(&self, memory: &mut Self::Memory, at: usize, bytes: &[u8])
    -> Result<(), KernelError>;

    /// Waits for all that was asked for, then copies the memory's first bytes.
    ///
    /// # Errors
    /// The device failed, now or at something asked for earlier.
    fn download(&self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Marks the beginning of a step, for [`Self::finish`].
    ///
    /// # Errors
    /// The device failed.
    fn begin_step(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Whether steps can be ended without being waited for ([`Self::end_step`]).
    fn overlaps(&self) -> bool {
        false
    }

    /// Makes room on the host for so many bytes of what each of two steps gives.
    ///
    /// # Errors
    /// No memory.
    fn make_results_room(&mut self, bytes: usize) -> Result<(), KernelError> {
        let _ = bytes;
        Ok(())
    }

    /// Ends the step that began last, and has the memory's first `bytes` copied to the host, as
    /// many as there is room for at most. Two steps may have ended that are not waited for.
    ///
    /// # Errors
    /// The device failed.
    fn end_step(&mut self, memory: &Self::Memory, bytes: usize) -> Result<(), KernelError> {
        let _ = (memory, bytes);
        Err(KernelError::Unsupported {
            what: "a step that is not waited for".to_owned(),
            device: "this device",
            accepted: "steps are computed one at a time",
        })
    }

    /// Waits for the oldest step that has ended, and not for what was asked for later. Fills
    /// `bytes` with what was copied for it, and says what the device took for it, if it measures
    /// that.
    ///
    /// # Errors
    /// The device failed. The step is still the oldest.
    fn wait_step(&mut self, bytes: &mut [u8]) -> Result<Option<Duration>, KernelError> {
        let _ = bytes;
        self.finish()
    }

    /// Waits for all that was asked for. What the device took for it since the step began, if
    /// it measures that; nothing where that step has ended.
    ///
    /// # Errors
    /// The device failed, now or at something asked for earlier.
    fn finish(&mut self) -> Result<Option<Duration>, KernelError>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// The device refused it.
    fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError>;

    /// Multiplies matrices.
    ///
    /// # Errors
    /// The device refused it.
    fn matmul(&mut self, product: &Matmul) -> Result<(), KernelError>;

    /// How many algorithms a library proposes for a product of its choice's rows that is like this
    /// one otherwise; the choice's rank is no matter.
    ///
    /// # Errors
    /// The library failed.
    fn choices(&mut self, product: &Matmul) -> Result<u8, KernelError> {
        let _ = product;
        Ok(0)
    }

    /// The same of a product in e4m3.
    ///
    /// # Errors
    /// The library failed.
    fn fp8_choices(&mut self, product: &Fp8Matmul) -> Result<u8, KernelError> {
        let _ = product;
        Ok(u8::from(!self.fp8_products().is_empty()))
    }

    /// How products of e4m3 with e4m3 may be scaled, if there are such.
    fn fp8_products(&self) -> &[Fp8Scaling] {
        &[]
    }

    /// Multiplies matrices in e4m3.
    ///
    /// # Errors
    /// The device refused it, or [`Self::fp8_products`] has no such product.
    fn fp8_matmul(&mut self, product: &Fp8Matmul) -> Result<(), KernelError> {
        let _ = product;
        Err(KernelError::Unsupported {
            what: "a product in fp8".to_owned(),
            device: "this device",
            accepted: "products in float16 and bfloat16 are",
        })
    }

    /// Records launches and products from here on, instead of doing them. Nothing is copied,
    /// allocated or waited for until [`Self::end_capture`], and no kernel is launched for the
    /// first time.
    ///
    /// # Errors
    /// The device refused it: [`KernelError::Unsupported`] if it records nothing at all.
    fn begin_capture(&mut self) -> Result<(), KernelError>;

    /// Ends what [`Self::begin_capture`] began, whether or not all went well in between.
    ///
    /// # Errors
    /// Something was asked for that cannot be recorded.
    fn end_capture(&mut self) -> Result<Self::Graph, KernelError>;

    /// Does what was recorded, in one call.
    ///
    /// # Errors
    /// The device refused it.
    fn replay(&mut self, graph: &Self::Graph) -> Result<(), KernelError>;

    /// Free and total bytes of the device's memory.
    ///
    /// # Errors
    /// The device failed.
    fn memory_info(&self) -> Result<(usize, usize), KernelError>;
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The `.cu` file's stem.
    pub file: &'a str,
    /// The kernel's name in it.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
}

/// `out[r] = w · x[r]`, or `out[r] += w · x[r]`: row-major, summed in f32.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// `[rows, k]`
    pub x: DevicePointer,
    /// `[n, k]`
    pub w: DevicePointer,
    /// `[rows, n]`
    pub out: DevicePointer,
    /// Rows of `x`.
    pub rows: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Of `x` and `w`: f16 or bf16.
    pub dtype: Dtype,
    /// Of `out`: as `dtype`, or f32.
    pub out_dtype: Dtype,
    /// Elements from one row of `out` to the next.
    pub out_stride: usize,
    /// Whether `out` is added to.
    pub accumulate: bool,
    /// The algorithm; `None`: the library's own choice.
    pub choice: Option<Choice>,
}

/// One of the algorithms that a library proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its place among them.
    pub rank: u8,
    /// The rows of the product that they are proposed for.
    pub rows: usize,
}

impl Choice {
    /// As many are asked for.
    pub const MOST: u8 = 6;
}

/// What scales the sums of e4m3 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8Scaling {
    /// The product itself, by a number for each row and each output.
    Library,
    /// A kernel of ours, after it.
    Own,
}

/// `out[r] = w · x[r]` of e4m3 numbers, row-major, summed in f32.
#[derive(Clone, Copy, Debug)]
pub struct Fp8Matmul {
    /// `[rows, k]`
    pub x: DevicePointer,
    /// `[n, k]`
    pub w: DevicePointer,
    /// `[rows]` and `[n]`, f32: what sums are multiplied with. Only of a product that has
    /// [`Fp8Scaling::Library`].
    pub scales: Option<[DevicePointer; 2]>,
    /// `[rows, n]`
    pub out: DevicePointer,
    /// Rows of `x`.
    pub rows: usize,
    /// Outputs, a multiple of 16.
    pub n: usize,
    /// Inputs, a multiple of 16.
    pub k: usize,
    /// Of `out`: f16, bf16 or f32.
    pub out_dtype: Dtype,
    /// Whether `out` is added to.
    pub accumulate: bool,
    /// The algorithm.
    pub choice: Choice,
}
