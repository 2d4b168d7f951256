//! A model on a device.

use std::path::Path;

use anyhow::Result;
use sconce_kernels::cuda::{Cuda, Driver};
use sconce_runner::{LoadOptions, LoadedModel, ModelRunner};

/// Loads a model, for so many sequences of so many tokens.
pub(crate) fn load<D: Driver + 'static>(
    driver: D,
    dir: &Path,
    max_num_seqs: usize,
    max_model_len: usize,
    max_num_batched_tokens: usize,
) -> Result<LoadedModel<ModelRunner<Cuda<D>>>> {
    let options = LoadOptions {
        forms_dir: Some(std::env::temp_dir().join("sconce-gpu-forms")),
        max_model_len: Some(max_model_len),
        max_num_seqs,
        max_num_batched_tokens: Some(max_num_batched_tokens),
        ..LoadOptions::new(dir)
    };
    let make = |dtype, limits| Ok(Cuda::new(driver, dtype, limits)?);
    Ok(sconce_runner::load_on(&options, max_num_batched_tokens, make, &mut |_, _, _| {})?)
}
