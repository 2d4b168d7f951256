//! The CUDA form of every operation.
//!
//! [`Cuda`] decides which kernel of `kernels/cuda` runs on what; a [`Driver`] runs
//! it. What kernels are given ([`KernelParams`]) is plain data, field by field what
//! the `.cu` files declare, so that the same launches run on a device and in the shim
//! that tests them without one.

mod attention;
mod attention_batch;
mod attention_plan;
mod attention_trials;
mod backend;
#[cfg(feature = "cuda")]
mod device;
mod driver;
mod few_rows;
#[cfg(feature = "cuda")]
mod flight;
mod fp8_products;
mod head_trials;
#[cfg(feature = "cuda")]
mod lt_library;
mod memory;
mod names;
mod ops;
mod params;
mod prefix_plan;
mod prefix_trials;
mod product_trials;
mod products;
mod rope_trials;
mod routes;
mod sampler;
mod staging;
#[cfg(feature = "cuda")]
mod start;
mod step;
#[cfg(feature = "cuda")]
mod tile_map;
#[cfg(feature = "cuda")]
mod uploads;

pub use attention::PromptForm;
pub use attention_plan::{AttentionPlan, AttentionRoom, GroupTables, Work};

pub use backend::{Cuda, CudaGraph};
#[cfg(feature = "cuda")]
pub use device::{CudaDriver, CudaMemory, RecordedGraph};
pub use driver::{Choice, Driver, Fp8Matmul, Fp8Scaling, Launch, Matmul};
pub use few_rows::SkinnyPlan;
pub use memory::{CudaBuffer, CudaKvCache, CudaMatrix, CudaVector};
pub use params::{
    AddBias, AddExperts, BulkAttention, CopyBlocks, CountLast, DevicePointer, EmbeddingGather,
    EntryEdit, ExpertProduct, Gated, Gemv, GemvForm, KernelParams, MAX_SAMPLE_SLICES, MAX_TOP,
    PagedAttention, PrefixAttention, QuantizeRows, RmsNorm, RopeAndCache, RopeEnd, Route,
    SAMPLE_RUN_BYTES, SAMPLE_SHARED_BYTES, SAMPLE_SLICE, SAMPLE_SLICE_BYTES, SAMPLE_STATE_BYTES,
    SampleRow, SampledRow, Sampling, ScaleSums, Sharer, Skinny, SoftCap, SortByExpert, TableEdits,
    TileMap, TokenLogprobs, UncountedRow, WidenWeight,
};
pub use products::ProductForm;
pub use routes::CudaRoutes;
pub use step::CudaStep;

/// A size as kernels have it.
fn word(n: usize) -> u32 {
    u32::try_from(n).expect("sizes are below 2^32")
}
