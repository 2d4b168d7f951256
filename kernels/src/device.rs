//! What holds a model: memory, weights, the KV cache, and the steps that it is given.

use std::time::Duration;

use candle_core::Tensor;

use crate::{
    AttentionKind, CacheDtype, Findings, Fp8Weight, KernelError, KvLayout, StepLimits, StepPlan,
    WeightDtype, ops::Routing,
};

/// A device and what lies in its memory. One thread owns it.
///
/// A step is a value: [`Device::stage`] tells the device of all that varies in it, once,
/// and operations read the staged [`Device::Step`]. So nothing is uploaded, planned or
/// allocated inside a forward pass, and there may be several steps at a time.
pub trait Device: Send {
    /// Activations `[capacity, cols]`, in the dtype the device computes in, or logits
    /// in f32.
    type Buffer: Send;
    /// A weight `[n, k]`, in the device's own layout.
    type Matrix: Send + Sync;
    /// A weight `[n]`, f32.
    type Vector: Send + Sync;
    /// The keys and values of every layer ([`KvLayout`]), and the block tables
    /// `[num_groups][max_num_seqs][blocks_per_seq]` by which sequences find them.
    type KvCache: Send;
    /// A step as the device is told of it.
    type Step: Send;
    /// Which experts each row goes to, and the rows in the order of experts.
    type Routes: Send;
    /// Work that was recorded, to be asked for in one call as often as it is wanted.
    type Graph: Send;

    /// What a person should know of the device: its name, instruction set, threads.
    fn describe(&self) -> String;

    /// What the choice between several forms of an operation depends on: the kind of device,
    /// its driver and libraries, and this build. `None` where there is one form of each.
    fn setting(&self) -> Option<String> {
        None
    }

    /// Tries the forms of operations on weights like those that were made, and of attention with
    /// `heads` of so many dimensions over a cache of that dtype, as far as `found` does not know
    /// them, and uses the best of each from then on. `keep` is told what is
    /// known whenever a form is about to be tried, which then counts as one that failed: it
    /// may end the process.
    ///
    /// # Errors
    /// The device failed, or no form of an operation gives what it should.
    fn try_forms(
        &mut self,
        heads: &[(usize, CacheDtype)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let _ = (heads, found, keep);
        Ok(())
    }

    /// How many tokens of context fewer must be read in a step, over all sequences that have a
    /// prefix in common, for it to pay that they share it ([`StepPlan::share_prefix`]), in layers
    /// that attend in this way over a cache of that dtype. `None`: it never does.
    fn least_shared(&self, attention: &AttentionKind, cache: CacheDtype) -> Option<usize> {
        let _ = (attention, cache);
        None
    }

    /// Free and total bytes of the device's memory; `None` where it is the machine's.
    ///
    /// # Errors
    /// The device failed.
    fn memory_info(&self) -> Result<Option<(usize, usize)>, KernelError>;

    /// Allocates activations of `capacity` rows, zeroed.
    ///
    /// # Errors
    /// No memory.
    fn buffer(&self, capacity: usize, cols: usize) -> Result<Self::Buffer, KernelError>;

    /// Allocates logits of `capacity` rows, or scores of experts, f32 on every device.
    ///
    /// # Errors
    /// No memory.
    fn logits_buffer(
        &self,
        capacity: usize,
        vocab_size: usize,
    ) -> Result<Self::Buffer, KernelError>;

    /// Allocates the routes of `capacity` rows.
    ///
    /// # Errors
    /// More experts for a row than there are, or more than the device computes; no memory.
    fn routes(&self, capacity: usize, routing: Routing) -> Result<Self::Routes, KernelError>;

    /// Packs weights stored as `[n_i, k]` (a checkpoint's `weight`) into one
    /// matrix of `n = Σ n_i` rows, converting to `dtype`.
    ///
    /// # Errors
    /// Unequal `k`, a tensor that is not two-dimensional, a `k` whose sums
    /// could exceed i32 in int8, no memory.
    fn matrix(&self, parts: &[Tensor], dtype: WeightDtype) -> Result<Self::Matrix, KernelError>;

    /// Whether it computes with weights of [`WeightDtype::Fp8E4m3`].
    fn takes_fp8(&self) -> bool {
        false
    }

    /// Packs weights that are in e4m3 already into one matrix of
    /// [`WeightDtype::Fp8E4m3`]: their numbers and scales stay what they are.
    ///
    /// # Errors
    /// As [`Self::matrix`]; a device that computes with no such weights.
    fn fp8_matrix(&self, parts: &[Fp8Weight]) -> Result<Self::Matrix, KernelError> {
        let _ = parts;
        Err(KernelError::Unsupported {
            what: "a weight in fp8".to_owned(),
            device: "this device",
            accepted: "weights in f32, bf16 and f16, and quantized to int8, are",
        })
    }

    /// Bytes that a weight takes in the device's memory, scales included.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    /// A vector of the parts end to end, converted to f32.
    ///
    /// # Errors
    /// A tensor that is not one-dimensional, no memory.
    fn vector(&self, parts: &[Tensor]) -> Result<Self::Vector, KernelError>;

    /// Allocates a KV cache, with block tables for the limits' slots.
    ///
    /// # Errors
    /// A layout that cannot be ([`KvLayout::page_lens`]) or that the device does not
    /// compute, no memory.
    fn kv_cache(
        &self,
        layout: &KvLayout,
        limits: &StepLimits,
    ) -> Result<Self::KvCache, KernelError>;

    /// Allocates all that steps of these limits take, for a model whose layers attend in
    /// these ways.
    ///
    /// # Errors
    /// A way to attend that the device has not, no memory.
    fn step(
        &mut self,
        limits: &StepLimits,
        attention: &[AttentionKind],
    ) -> Result<Self::Step, KernelError>;

    /// Begins a step: checks the plan, plans its attention, and tells the device of both
    /// in one copy; changes the cache's block tables. Operations that are given `step` and
    /// `cache` compute this plan from then on.
    ///
    /// # Errors
    /// The device failed, or the plan does not fit the limits or the cache: then no table
    /// has changed.
    fn stage(
        &mut self,
        plan: &StepPlan,
        step: &mut Self::Step,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError>;

    /// Whether steps of `step`'s kind may have a [`StepPlan::bucket`], and be recorded.
    fn records(&self, step: &Self::Step) -> bool;

    /// Records what `work` asks for, operations on the step that is staged, which has a
    /// bucket; nothing of it is computed. `work` has been done once before without this, so
    /// that all it needs is loaded and allocated. What comes of it lies where it would.
    ///
    /// # Errors
    /// `work`'s, or the device refused something: nothing is recorded then.
    fn capture<T>(
        &mut self,
        step: &Self::Step,
        work: impl FnOnce(&mut Self) -> Result<T, KernelError>,
    ) -> Result<(Self::Graph, T), KernelError>;

    /// Computes what was recorded, of the step that is staged: another one of the same bucket.
    ///
    /// # Errors
    /// The device failed, or what is staged does not lie where it was recorded.
    fn replay(&mut self, graph: &Self::Graph, step: &Self::Step) -> Result<(), KernelError>;

    /// A buffer's first `rows` rows, for tests and for reading results:
    /// `[rows * cols]`.
    ///
    /// # Errors
    /// The device failed.
    fn read(&mut self, buffer: &Self::Buffer, rows: usize) -> Result<Vec<f32>, KernelError>;

    /// Waits until all of the step is computed, and says what the device took for it, if it
    /// measures that.
    ///
    /// # Errors
    /// The device failed, perhaps at something that it was asked for earlier.
    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        Ok(None)
    }
}
