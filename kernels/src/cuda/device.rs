//! A GPU, through candle's device and cudarc.
//!
//! One thread owns it, and everything goes to one stream: candle's, so that what candle
//! puts into the device's memory needs no other order.
#![expect(unsafe_code, reason = "launches and copies are given addresses")]

use std::{
    collections::HashMap,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use candle_core::CudaDevice;
use cudarc::{
    cublas::{self, CudaBlas, result::CublasError},
    driver::{
        CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr as _, DriverError,
        result as cuda, sys,
    },
    nvrtc::Ptx,
};

use super::{
    DevicePointer, Driver, Fp8Matmul, Fp8Scaling, KernelParams, Launch, Matmul, TileMap,
    flight::Steps,
    lt_library::{self, LtLibrary},
    start, tile_map,
    uploads::Uploads,
};
use crate::{Dtype, KernelError};

/// The kernels: each `.cu` file's stem, and its machine code for every architecture.
const FATBINS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What cuBLAS gets to work in, as NVIDIA advises for Hopper.
const BLAS_WORKSPACE_BYTES: usize = 32 << 20;
/// Dynamic shared memory that a launch may have without asking: 48 KiB, of which there may be
/// static memory too.
const PLAIN_SHARED_BYTES: usize = 40 << 10;

/// A CUDA device.
pub struct CudaDriver {
    stream: Arc<CudaStream>,
    /// Candle's side of the device, with cuRAND's handle and a share of cuBLAS's: it goes
    /// before the last share of that, so that each is destroyed under a guard of its own.
    _device: Unpanicking<CudaDevice>,
    blas: Unpanicking<Arc<CudaBlas>>,
    blas_workspace: CudaSlice<u8>,
    modules: HashMap<&'static str, Arc<CudaModule>>,
    /// With the dynamic shared memory that each may have.
    functions: HashMap<String, (CudaFunction, usize)>,
    uploads: Mutex<Uploads>,
    steps: Steps,
    description: String,
    setting: String,
    multiprocessors: usize,
    /// What a block may have.
    shared_bytes: usize,
    /// Whether a kernel's blocks may start while the kernel before it still runs; each waits
    /// for that itself (`await_previous` in `sconce.cuh`). What is compiled from PTX does not.
    starts_early: bool,
    has_warp_groups: bool,
    lt: LtLibrary,
    fp8_scalings: &'static [Fp8Scaling],
}

/// What is dropped without a panic: cudarc unwraps what destroying a handle of cuBLAS or
/// cuRAND returns, which may be the error for which a driver is dropped.
struct Unpanicking<T>(Option<T>);

impl<T> Unpanicking<T> {
    fn new(inner: T) -> Self {
        Self(Some(inner))
    }
}

impl<T> std::ops::Deref for Unpanicking<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken by its drop only")
    }
}

impl<T> Drop for Unpanicking<T> {
    fn drop(&mut self) {
        let inner = self.0.take();
        // Said on standard error by the panic; the handle's memory is lost with the process.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(inner)));
    }
}

/// Memory of a device.
pub struct CudaMemory(CudaSlice<u8>);

/// What was recorded of one stream.
pub struct RecordedGraph(CudaGraph);

// SAFETY: a graph may be used by any thread, by one at a time (CUDA Driver API, "Graph object
// thread safety"), and all that is done with it takes the driver, which one thread owns.
unsafe impl Send for RecordedGraph {}

impl CudaDriver {
    /// Takes a device into use.
    ///
    /// # Errors
    /// There is no such device, no driver for it, or one that cannot run the kernels.
    pub fn new(ordinal: usize) -> Result<Self, KernelError> {
        let device = start::open(ordinal)?;
        let stream = device.cuda_stream();
        let context = stream.context();
        let failed = |error| device_error("starting the device", error);
        // SAFETY: this thread gives the device's one stream everything it is to do, so
        // the order that events would establish is there already.
        unsafe { device.disable_event_tracking() };
        keep_freed_memory(context.cu_device()).map_err(failed)?;
        let attribute = |attribute| context.attribute(attribute).map_err(failed);
        let multiprocessors =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?;
        let (major, minor) = context.compute_capability().map_err(failed)?;
        let name = context.name().map_err(failed)?;
        let gib = context.total_mem().map_err(failed)? as f64 / f64::from(1 << 30);
        let description = format!("{name}, sm_{major}{minor}, {gib:.0} GiB");
        let blas = Unpanicking::new(device.cublas_handle());
        let setting = format!(
            "{name}, sm_{major}{minor}, driver of CUDA {}, cuBLAS {}, kernels {:016x}",
            start::driver_version()?,
            blas_version(&blas)?,
            fingerprint()
        );
        let device = Unpanicking::new(device);
        let blas_workspace = stream.alloc_zeros::<u8>(BLAS_WORKSPACE_BYTES).map_err(failed)?;
        let address = blas_workspace.device_ptr(&stream).0;
        // SAFETY: the workspace lives as long as the driver, and it alone uses the handle.
        let set = unsafe {
            cublas::sys::cublasSetWorkspace_v2(
                *blas.handle(),
                address as *mut c_void,
                BLAS_WORKSPACE_BYTES,
            )
        };
        set.result().map_err(|error| blas_error("cuBLAS's workspace", error))?;
        let mut modules = HashMap::new();
        for &(file, fatbin) in FATBINS {
            let module = context.load_module(Ptx::from_binary(fatbin.to_vec()));
            modules.insert(file, module.map_err(|error| device_error(file, error))?);
        }
        Ok(Self {
            uploads: Mutex::new(Uploads::new(context).map_err(failed)?),
            steps: Steps::new(context).map_err(failed)?,
            _device: device,
            blas,
            blas_workspace,
            modules,
            functions: HashMap::new(),
            description,
            setting,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
            shared_bytes: usize::try_from(shared_bytes).unwrap_or(PLAIN_SHARED_BYTES),
            starts_early: matches!(major, 9 | 10),
            has_warp_groups: (major, minor) == (9, 0),
            lt: LtLibrary::default(),
            fp8_scalings: lt_library::scalings((major, minor)),
            stream,
        })
    }

    /// A kernel, ready for launches of so much shared memory.
    fn function(&mut self, launch: &Launch<'_>) -> Result<sys::CUfunction, KernelError> {
        let failed = |error| device_error(launch.kernel, error);
        if !self.functions.contains_key(launch.kernel) {
            let module = self.modules.get(launch.file).ok_or_else(|| KernelError::Device {
                op: launch.kernel.to_owned(),
                reason: format!("{}.cu is not part of this build", launch.file),
                sticky: false,
            })?;
            let function = module.load_function(launch.kernel).map_err(failed)?;
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as SHARE;
            // In percent: as many blocks at a time as the multiprocessor's memory holds. The same
            // for all: where two kernels differ in it, one waits for the other's end.
            function.set_attribute(SHARE, 100).map_err(failed)?;
            self.functions.insert(launch.kernel.to_owned(), (function, PLAIN_SHARED_BYTES));
        }
        let (function, most) = self.functions.get_mut(launch.kernel).expect("it was put there");
        if launch.shared_bytes > *most {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX;
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            function.set_attribute(MAX, bytes).map_err(failed)?;
            *most = launch.shared_bytes;
        }
        Ok(function.cu_function())
    }

    /// The device's UUID as NVIDIA's tools write it: `GPU-` and five groups of hex digits.
    #[must_use]
    pub fn uuid(&self) -> Option<String> {
        let uuid = self.stream.context().uuid().ok()?;
        let hex: String = uuid.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
        let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Some(format!("GPU-{}", groups.join("-")))
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// The device failed.
    pub fn synchronize(&self) -> Result<(), KernelError> {
        self.stream.synchronize().map_err(|error| device_error("waiting for the device", error))
    }

    /// Where cuBLASLt computes.
    fn place(&self) -> lt_library::Place {
        lt_library::Place {
            handle: (*self.blas.handle()).cast(),
            stream: self.stream.cu_stream(),
            workspace: DevicePointer(self.blas_workspace.device_ptr(&self.stream).0),
            workspace_bytes: BLAS_WORKSPACE_BYTES,
        }
    }

    /// How many algorithms cuBLASLt has for it; none, where it says that it cannot.
    fn proposed(&mut self, product: &lt_library::Product) -> u8 {
        let place = self.place();
        self.lt.proposed(place, product).map_or(0, |all| u8::try_from(all.len()).unwrap_or(u8::MAX))
    }

    fn by_lt(&mut self, op: &str, product: &lt_library::Product) -> Result<(), KernelError> {
        let place = self.place();
        self.lt.multiply(place, product).map_err(|error| {
            self.unless_lost(KernelError::Device {
                op: op.to_owned(),
                reason: format!("{error:?}"),
                sticky: false,
            })
        })
    }

    /// A library's error, or that the device is lost: a library says no more than that a launch
    /// failed, the driver says that.
    fn unless_lost(&self, error: KernelError) -> KernelError {
        match self.synchronize() {
            Err(lost @ KernelError::Device { sticky: true, .. }) => lost,
            _ => error,
        }
    }
}

impl Driver for CudaDriver {
    type Memory = CudaMemory;
    type Graph = RecordedGraph;

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn setting(&self) -> String {
        self.setting.clone()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn has_warp_groups(&self) -> bool {
        self.has_warp_groups
    }

    fn tile_map(&self, at: DevicePointer, rows: usize, columns: usize) -> Option<TileMap> {
        tile_map::encode(at, rows, columns)
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<CudaMemory, KernelError> {
        self.stream.alloc_zeros(bytes.max(1)).map(CudaMemory).map_err(|error| {
            if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                KernelError::OutOfMemory { what: what.to_owned(), bytes }
            } else {
                device_error(what, error)
            }
        })
    }

    fn address(&self, memory: &CudaMemory) -> DevicePointer {
        DevicePointer(memory.0.device_ptr(&self.stream).0)
    }

    fn upload(&self, memory: &mut CudaMemory, at: usize, bytes: &[u8]) -> Result<(), KernelError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = uploads.ask(&self.stream, &mut memory.0, at, bytes);
        asked.map_err(|error| device_error("an upload", error))
    }

    fn download(&self, memory: &CudaMemory, bytes: &mut [u8]) -> Result<(), KernelError> {
        let failed = |error| device_error("a download", error);
        if !bytes.is_empty() {
            let from = memory.0.slice(..bytes.len());
            self.stream.memcpy_dtoh(&from, bytes).map_err(failed)?;
        }
        self.synchronize()
    }

    fn begin_step(&mut self) -> Result<(), KernelError> {
        let begun = self.steps.begin(&self.stream);
        begun.map_err(|error| device_error("a step's beginning", error))
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn make_results_room(&mut self, bytes: usize) -> Result<(), KernelError> {
        let made = self.steps.make_room(self.stream.context(), bytes);
        made.map_err(|error| device_error("room for results", error))
    }

    fn end_step(&mut self, memory: &CudaMemory, bytes: usize) -> Result<(), KernelError> {
        let ended = self.steps.end(&self.stream, &memory.0, bytes);
        ended.map_err(|error| device_error("a step's end", error))
    }

    fn wait_step(&mut self, bytes: &mut [u8]) -> Result<Option<Duration>, KernelError> {
        let waited = self.steps.wait(bytes);
        waited.map(Some).map_err(|error| device_error("waiting for a step", error))
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        let finished = self.steps.finish(&self.stream);
        finished.map(Some).map_err(|error| device_error("waiting for a step", error))
    }

    fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError> {
        let function = self.function(launch)?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: 1,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: u32::try_from(launch.shared_bytes).unwrap_or(u32::MAX),
            hStream: self.stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.starts_early),
        };
        // SAFETY: a kernel takes one parameter, declared as `P` in its `.cu` file, which
        // the driver copies, as it does the attribute, before it returns. That its addresses
        // are of memory large enough is checked by the backend, which keeps that memory.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        launched.result().map_err(|error| device_error(launch.kernel, error))
    }

    fn matmul(&mut self, product: &Matmul) -> Result<(), KernelError> {
        use cublas::sys::{
            cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            cublasOperation_t as Operation, cudaDataType,
        };
        const ONE: f32 = 1.0;
        const OP: &str = "a product";
        if let Some(choice) = product.choice {
            return self.by_lt(OP, &lt_library::Product::of(product, choice));
        }
        let data_type = |dtype| match dtype {
            Dtype::F32 => cudaDataType::CUDA_R_32F,
            Dtype::F16 => cudaDataType::CUDA_R_16F,
            Dtype::Bf16 => cudaDataType::CUDA_R_16BF,
        };
        let size = |n: usize| {
            i32::try_from(n).map_err(|_| KernelError::Shape {
                op: "matmul",
                what: "a dimension",
                got: n.to_string(),
                expected: "below 2^31".to_owned(),
            })
        };
        let (rows, n, k) = (size(product.rows)?, size(product.n)?, size(product.k)?);
        let keep = if product.accumulate { 1.0_f32 } else { 0.0 };
        let pointer = |pointer: DevicePointer| pointer.0 as *mut c_void;
        let (dtype, out_dtype) = (data_type(product.dtype), data_type(product.out_dtype));
        // cuBLAS has columns first: what it sees are the transposes, and
        // out^T = w x^T, where w is transposed back.
        // SAFETY: the backend checked that the matrices have these shapes, and keeps
        // them; alpha and beta are read before the call returns.
        let done = unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                Operation::CUBLAS_OP_T,
                Operation::CUBLAS_OP_N,
                n,
                rows,
                k,
                std::ptr::from_ref(&ONE).cast(),
                pointer(product.w),
                dtype,
                k,
                pointer(product.x),
                dtype,
                k,
                std::ptr::from_ref(&keep).cast(),
                pointer(product.out),
                out_dtype,
                size(product.out_stride)?,
                CUBLAS_COMPUTE_32F,
                CUBLAS_GEMM_DFALT,
            )
        };
        done.map_err(|error| self.unless_lost(blas_error(OP, error)))
    }

    fn fp8_products(&self) -> &[Fp8Scaling] {
        self.fp8_scalings
    }

    fn fp8_matmul(&mut self, product: &Fp8Matmul) -> Result<(), KernelError> {
        self.by_lt("a product in fp8", &product.into())
    }

    fn choices(&mut self, product: &Matmul) -> Result<u8, KernelError> {
        let chosen = product.choice.map(|choice| lt_library::Product::of(product, choice));
        Ok(chosen.map_or(0, |product| self.proposed(&product)))
    }

    fn fp8_choices(&mut self, product: &Fp8Matmul) -> Result<u8, KernelError> {
        Ok(self.proposed(&product.into()))
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        // Other threads' calls are no concern of a stream that is this one's alone.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_NOT_SUPPORTED => KernelError::Unsupported {
                what: "a CUDA graph".to_owned(),
                device: "this CUDA device",
                accepted: "steps that are launched kernel by kernel are (--enforce-eager)",
            },
            _ => device_error("the beginning of a graph", error),
        })
    }

    fn end_capture(&mut self) -> Result<RecordedGraph, KernelError> {
        const OP: &str = "a graph";
        let failed = |error| device_error(OP, error);
        // What cudarc noted as it dropped something would keep it from ending the capture.
        let noted = self.stream.context().check_err();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        noted.map_err(failed)?;
        let graph = graph.map_err(failed)?;
        let graph = graph.ok_or_else(|| KernelError::Device {
            op: OP.to_owned(),
            reason: "nothing was recorded".to_owned(),
            sticky: false,
        })?;
        // So that the first step that replays it does not wait for this.
        graph.upload().map_err(failed)?;
        Ok(RecordedGraph(graph))
    }

    fn replay(&mut self, graph: &RecordedGraph) -> Result<(), KernelError> {
        graph.0.launch().map_err(|error| device_error("a graph's launch", error))
    }

    fn memory_info(&self) -> Result<(usize, usize), KernelError> {
        let failed = |error| device_error("the device's memory", error);
        self.synchronize()?;
        let context = self.stream.context();
        // SAFETY: the pool is the device's own, and what is in use stays.
        unsafe {
            let pool = cuda::device::get_default_mem_pool(context.cu_device()).map_err(failed)?;
            cuda::mem_pool::trim_to(pool, 0).map_err(failed)?;
        }
        context.mem_get_info().map_err(failed)
    }
}

/// cuBLAS's version, as it counts them.
fn blas_version(blas: &CudaBlas) -> Result<i32, KernelError> {
    let mut version = 0;
    // SAFETY: the handle lives, and the library writes one integer.
    let asked = unsafe { cublas::sys::cublasGetVersion_v2(*blas.handle(), &raw mut version) };
    asked.result().map_err(|error| blas_error("cuBLAS's version", error))?;
    Ok(version)
}

/// What tells the kernels of this build from another's (FNV-1a, over words).
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (_, fatbin) in FATBINS {
        for word in fatbin.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// Memory that is freed stays with the process: the next allocation has it at once.
fn keep_freed_memory(device: sys::CUdevice) -> Result<(), DriverError> {
    let mut threshold = u64::MAX;
    // SAFETY: the pool is the device's own, and the attribute is a u64.
    unsafe {
        let pool = cuda::device::get_default_mem_pool(device)?;
        cuda::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_mut(&mut threshold).cast(),
        )
    }
}

pub(super) fn device_error(op: &str, error: DriverError) -> KernelError {
    KernelError::Device {
        op: op.to_owned(),
        reason: format!("{error:?}"),
        sticky: is_sticky(error.0),
    }
}

fn blas_error(op: &str, error: CublasError) -> KernelError {
    KernelError::Device { op: op.to_owned(), reason: format!("{error:?}"), sticky: false }
}

/// Whether an error leaves the process without its context: by the driver's
/// documentation, it must then be ended.
fn is_sticky(error: sys::CUresult) -> bool {
    use sys::CUresult as E;
    matches!(
        error,
        E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_EXTERNAL_DEVICE
    )
}
