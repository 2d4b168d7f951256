//! A model on a device.

use std::path::Path;

use anyhow::Result;
use sconce_kernels::cuda::{Cuda, Driver};
use sconce_runner::{LoadOptions, LoadedModel, ModelRunner};
use sconce_scheduler::{SchedulerConfig, SchedulingPolicy};
use sconce_types::Executor;

/// For how much a model is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Sequences of a step.
    pub(crate) max_num_seqs: usize,
    /// Tokens of a sequence.
    pub(crate) max_model_len: usize,
    /// Tokens of a step.
    pub(crate) max_batched: usize,
}

impl Limits {
    /// A scheduler of all that a model was loaded for, for so many requests.
    pub(crate) fn scheduler<E: Executor>(
        self,
        loaded: &LoadedModel<E>,
        max_queued: usize,
    ) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_batched,
            max_model_len: self.max_model_len,
            num_blocks: loaded.info.num_blocks,
            max_queued,
            groups: loaded.info.groups,
            depth: loaded.runner.depth(),
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        }
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// By the form that is fastest for a number of rows.
    Fastest,
    /// So that no row's bits depend on how many others there are.
    Deterministic,
}

/// Loads a model.
pub(crate) fn load<D: Driver + 'static>(
    driver: D,
    dir: &Path,
    limits: Limits,
    products: Products,
) -> Result<LoadedModel<ModelRunner<Cuda<D>>>> {
    let Limits { max_num_seqs, max_model_len, max_batched } = limits;
    let options = LoadOptions {
        forms_dir: Some(std::env::temp_dir().join("sconce-gpu-forms")),
        max_model_len: Some(max_model_len),
        max_num_seqs,
        max_num_batched_tokens: Some(max_batched),
        ..LoadOptions::new(dir)
    };
    let is_deterministic = products == Products::Deterministic;
    let make =
        |dtype, limits| Ok(Cuda::new(driver, dtype, limits)?.deterministic(is_deterministic));
    Ok(sconce_runner::load_on(&options, max_batched, make, &mut |_, _, _| {})?)
}
