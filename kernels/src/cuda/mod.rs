//! What the CUDA kernels of `kernels/cuda` are given: their parameters, as the
//! `.cu` files declare them, and the plan of an attention launch. Plain data, so
//! that the same launches run on a device and in the shim that tests them.

mod attention_plan;
mod params;

pub use attention_plan::{AttentionPlan, Work};
pub use params::{
    CopyBlocks, DevicePointer, EmbeddingGather, Gated, KernelParams, MAX_TOP, PagedAttention,
    RmsNorm, RopeAndCache, SampleRow, SampledRow, Sampling,
};
