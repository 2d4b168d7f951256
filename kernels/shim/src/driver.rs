//! The shim as a device of the CUDA backend.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use half::{bf16, f16};
use sconce_kernels::{
    Dtype, KernelError,
    cuda::{DevicePointer, Driver, Fp8Matmul, Fp8Scaling, KernelParams, Launch, Matmul, TileMap},
    fp8,
};

use crate::{Memory, Shim};

/// A device that is the shim, so that the CUDA backend runs whole on a CPU, with its
/// own kernels; products are plain loops in f32.
pub struct ShimDriver {
    memory: Arc<Mutex<Memory>>,
    shim: Shim,
    /// Launches so far: each is shuffled by another seed.
    launches: u64,
    /// What is being recorded.
    recording: Option<Vec<Recorded>>,
    /// What steps gave that have ended and were not waited for.
    ended: VecDeque<Vec<u8>>,
}

/// What was recorded, to be done again with the same parameters.
pub struct ShimGraph(Vec<Recorded>);

#[derive(Clone)]
enum Recorded {
    Launch(RecordedLaunch),
    Product(Matmul),
    Fp8Product(Fp8Matmul),
}

/// A launch and its parameter, as they were when it was asked for.
#[derive(Clone)]
struct RecordedLaunch {
    file: String,
    kernel: String,
    grid: [u32; 2],
    threads: u32,
    shared_bytes: usize,
    params: Vec<u8>,
    pointers: &'static [usize],
}

/// A piece of the shim's memory.
pub struct ShimMemory {
    all: Arc<Mutex<Memory>>,
    address: DevicePointer,
    bytes: usize,
}

impl Drop for ShimMemory {
    fn drop(&mut self) {
        lock(&self.all).free(self.address);
    }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ShimDriver {
    /// Starts another build of the shim.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn of(program: &Path) -> Self {
        Self {
            memory: Arc::default(),
            shim: Shim::of(program),
            launches: 0,
            recording: None,
            ended: VecDeque::new(),
        }
    }

    fn run(&mut self, launch: &Launch<'_>, params: (&[u8], &[usize])) -> Result<(), KernelError> {
        self.launches += 1;
        let mut memory = lock(&self.memory);
        let launched = self.shim.launch(launch, self.launches, params, &mut memory);
        launched.map_err(|reason| KernelError::Device {
            op: launch.kernel.to_owned(),
            reason,
            sticky: true,
        })
    }

    /// As the driver refuses it while something is recorded.
    fn not_in_capture(&self, what: &str) -> Result<(), KernelError> {
        if self.recording.is_none() {
            return Ok(());
        }
        Err(KernelError::Device {
            op: what.to_owned(),
            reason: "it was asked for while a graph was recorded".to_owned(),
            sticky: false,
        })
    }

    fn multiply(&self, product: &Matmul) {
        let Matmul { rows, n, k, dtype, out_dtype, out_stride, accumulate, .. } = *product;
        let mut memory = lock(&self.memory);
        let x = floats(memory.bytes_mut(product.x), rows * k, dtype);
        let w = floats(memory.bytes_mut(product.w), n * k, dtype);
        for (r, x) in x.chunks_exact(k).enumerate() {
            let at = r * out_stride * out_dtype.size();
            let out = &mut memory.bytes_mut(product.out)[at..];
            put_row(out, out_dtype, accumulate, w.chunks_exact(k).map(|w| dot(x, w)));
        }
        assert!(out_stride >= n, "rows of the product overlap");
    }

    fn multiply_fp8(&self, product: &Fp8Matmul) {
        let Fp8Matmul { rows, n, k, out_dtype, accumulate, .. } = *product;
        assert!(n % 16 == 0 && k % 16 == 0, "{product:?} is not of whole pieces");
        let mut memory = lock(&self.memory);
        let mut widened = |at: DevicePointer, len: usize| -> Vec<f32> {
            memory.bytes_mut(at)[..len].iter().copied().map(fp8::widen).collect()
        };
        let (x, w) = (widened(product.x, rows * k), widened(product.w, n * k));
        let [of_rows, of_outputs] = match product.scales {
            None => [vec![1.0; rows], vec![1.0; n]],
            Some([rows_at, outputs_at]) => {
                let of_rows = floats(memory.bytes_mut(rows_at), rows, Dtype::F32);
                [of_rows, floats(memory.bytes_mut(outputs_at), n, Dtype::F32)]
            }
        };
        for (r, x) in x.chunks_exact(k).enumerate() {
            let out = &mut memory.bytes_mut(product.out)[r * n * out_dtype.size()..];
            let outputs = w.chunks_exact(k).zip(&of_outputs);
            let sums = outputs.map(|(w, scale)| dot(x, w) * of_rows[r] * scale);
            put_row(out, out_dtype, accumulate, sums);
        }
    }
}

impl Default for ShimDriver {
    fn default() -> Self {
        Self::of(Path::new(env!("SCONCE_SHIM")))
    }
}

impl Driver for ShimDriver {
    type Memory = ShimMemory;
    type Graph = ShimGraph;

    fn describe(&self) -> String {
        "the CUDA kernels on a CPU".to_owned()
    }

    fn has_warp_groups(&self) -> bool {
        true
    }

    /// As `tensor_map.hpp` has it; what a device would refuse is a mistake.
    fn tile_map(&self, at: DevicePointer, rows: usize, columns: usize) -> Option<TileMap> {
        const MARK: u64 = 0x7e45_04a9;
        const BOX: [u64; 2] = [64, 16];
        assert!(at.0.is_multiple_of(16) && columns.is_multiple_of(8), "a tensor is not aligned");
        assert!((1..1 << 32).contains(&rows) && (1..1 << 32).contains(&columns), "no such tensor");
        let mut map = [0; 16];
        map[0] = at.0;
        map[1] = rows as u64;
        map[2] = columns as u64 | MARK << 32;
        map[3] = BOX[0] | BOX[1] << 32;
        Some(TileMap(map))
    }

    fn multiprocessors(&self) -> usize {
        2
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<ShimMemory, KernelError> {
        self.not_in_capture(what)?;
        let address = lock(&self.memory).allocate(bytes);
        Ok(ShimMemory { all: Arc::clone(&self.memory), address, bytes })
    }

    fn address(&self, memory: &ShimMemory) -> DevicePointer {
        memory.address
    }

    fn upload(&self, to: &mut ShimMemory, at: usize, bytes: &[u8]) -> Result<(), KernelError> {
        self.not_in_capture("an upload")?;
        lock(&self.memory).bytes_mut(to.address)[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, from: &ShimMemory, bytes: &mut [u8]) -> Result<(), KernelError> {
        assert!(bytes.len() <= from.bytes, "more is read than there is");
        self.not_in_capture("a download")?;
        bytes.copy_from_slice(&lock(&self.memory).bytes_mut(from.address)[..bytes.len()]);
        Ok(())
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn end_step(&mut self, memory: &ShimMemory, bytes: usize) -> Result<(), KernelError> {
        assert!(self.ended.len() < 2, "a step ends when there is room for it");
        let mut results = vec![0; bytes];
        self.download(memory, &mut results)?;
        self.ended.push_back(results);
        Ok(())
    }

    fn wait_step(&mut self, bytes: &mut [u8]) -> Result<Option<Duration>, KernelError> {
        let results = self.ended.pop_front().expect("a step is waited for once it has ended");
        bytes.copy_from_slice(&results);
        Ok(None)
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        self.not_in_capture("a wait")?;
        Ok(None)
    }

    fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError> {
        let bytes = bytemuck::bytes_of(params);
        let Some(recording) = &mut self.recording else {
            return self.run(launch, (bytes, P::POINTERS));
        };
        recording.push(Recorded::Launch(RecordedLaunch {
            file: launch.file.to_owned(),
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            params: bytes.to_vec(),
            pointers: P::POINTERS,
        }));
        Ok(())
    }

    fn matmul(&mut self, product: &Matmul) -> Result<(), KernelError> {
        match &mut self.recording {
            Some(recording) => recording.push(Recorded::Product(*product)),
            None => self.multiply(product),
        }
        Ok(())
    }

    fn choices(&mut self, _: &Matmul) -> Result<u8, KernelError> {
        Ok(2)
    }

    fn fp8_products(&self) -> &[Fp8Scaling] {
        &[Fp8Scaling::Library, Fp8Scaling::Own]
    }

    fn fp8_matmul(&mut self, product: &Fp8Matmul) -> Result<(), KernelError> {
        match &mut self.recording {
            Some(recording) => recording.push(Recorded::Fp8Product(*product)),
            None => self.multiply_fp8(product),
        }
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        self.not_in_capture("a capture")?;
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<ShimGraph, KernelError> {
        self.recording.take().map(ShimGraph).ok_or_else(|| KernelError::Device {
            op: "a graph".to_owned(),
            reason: "nothing was recorded".to_owned(),
            sticky: false,
        })
    }

    fn replay(&mut self, graph: &ShimGraph) -> Result<(), KernelError> {
        self.not_in_capture("a replay")?;
        for recorded in &graph.0 {
            match recorded {
                Recorded::Launch(recorded) => {
                    let RecordedLaunch { file, kernel, grid, threads, shared_bytes, .. } = recorded;
                    let launch = Launch {
                        file,
                        kernel,
                        grid: *grid,
                        threads: *threads,
                        shared_bytes: *shared_bytes,
                    };
                    self.run(&launch, (&recorded.params, recorded.pointers))?;
                }
                Recorded::Product(product) => self.multiply(product),
                Recorded::Fp8Product(product) => self.multiply_fp8(product),
            }
        }
        Ok(())
    }

    fn memory_info(&self) -> Result<(usize, usize), KernelError> {
        // Little, for all of a cache goes to the shim at every launch.
        Ok((4 << 20, 4 << 20))
    }
}

/// Numbers out of bytes that hold a dtype.
fn floats(bytes: &[u8], len: usize, dtype: Dtype) -> Vec<f32> {
    let bytes = &bytes[..len * dtype.size()];
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F16 => pairs().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Dtype::Bf16 => pairs().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}

/// Stores sums, or adds them to what is there.
fn put_row(out: &mut [u8], dtype: Dtype, adds: bool, sums: impl Iterator<Item = f32>) {
    for (sum, bytes) in sums.zip(out.chunks_exact_mut(dtype.size())) {
        let sum = if adds { sum + floats(bytes, 1, dtype)[0] } else { sum };
        match dtype {
            Dtype::F32 => bytes.copy_from_slice(&sum.to_le_bytes()),
            Dtype::F16 => bytes.copy_from_slice(&f16::from_f32(sum).to_le_bytes()),
            Dtype::Bf16 => bytes.copy_from_slice(&bf16::from_f32(sum).to_le_bytes()),
        }
    }
}

/// Sums side by side, so that the compiler makes vectors of them.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (x_parts, w_parts) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
    let rest: f32 = x_parts.remainder().iter().zip(w_parts.remainder()).map(|(x, w)| x * w).sum();
    for (x, w) in x_parts.zip(w_parts) {
        for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(w)) {
            *sum += x * w;
        }
    }
    sums.iter().sum::<f32>() + rest
}
