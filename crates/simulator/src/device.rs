//! How long a simulated device's steps take, and what an engine on it may use.

use std::{fs, io, path::PathBuf};

use sconce_scheduler::{CacheGroups, SchedulerConfig, SchedulingPolicy};
use sconce_types::{Input, ScheduledBatch};
use serde::{Deserialize, Serialize};

/// A device with a model on it: the time of a step as a sum, and an engine's limits.
///
/// What a token attends to is priced for prompts and for decodes apart: a prompt's chunk
/// reads its context once for all its tokens, a decode for one. A fit that does not tell
/// them apart (as [`StepModel`](sconce_scheduler::StepModel) does not) gives both one price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Seconds of any step.
    pub step: f64,
    /// Seconds of a prompt token.
    pub prefill: f64,
    /// Seconds of a sequence that decodes.
    pub decode: f64,
    /// Seconds of a pair of a prompt token and one that it attends to.
    pub prefill_attended: f64,
    /// Seconds of a token of context of a sequence that decodes.
    pub decode_attended: f64,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens computed in one step.
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and output together.
    pub max_model_len: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// Requests that may be unfinished beside those that run.
    pub max_queued: usize,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No preset has this name, and it is not a file's either.
    #[error(
        "the device is `{name}`, but must be cpu-smollm2, h200-8b or a JSON file, and as a file: \
         {source}"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Why it is not a file.
        source: io::Error,
    },
    /// The file does not hold a device.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
}

/// Bytes that a device's file may have.
const MAX_FILE: u64 = 1 << 16;
/// Seconds that any of the parts may take.
const MAX_PART: f64 = 1e3;

impl Device {
    /// SmolLM2-135M on a few CPU cores. Assumed: 5 ms a step, 0.3 ms a prompt token, 0.5 ms
    /// a decode, 10 ns an attended pair.
    #[must_use]
    pub fn cpu_smollm2() -> Self {
        Self {
            step: 5e-3,
            prefill: 3e-4,
            decode: 5e-4,
            prefill_attended: 1e-8,
            decode_attended: 1e-8,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_model_len: 8192,
            num_blocks: 4096,
            max_queued: 1024,
        }
    }

    /// A Llama-like model of 8 billion parameters in bf16 on an H200; nothing of it is
    /// measured. Assumed: a step reads 16 GB of weights at 4.3 TB/s, nine tenths of the
    /// memory's speed; a prompt token takes 16 GFLOP and a pair 0.52 MFLOP (32 layers of
    /// 4096) at half of 989 TFLOP/s; a decode reads 131 KB of keys and values a token of
    /// context (8 heads of 128), and 10 µs beside, its arithmetic hidden behind the weights.
    /// Nine tenths of 141 GB hold the weights and 52,000 blocks.
    #[must_use]
    pub fn h200_8b() -> Self {
        let (memory, arithmetic) = (4.3e12, 0.5 * 989e12);
        Self {
            step: 16e9 / memory,
            prefill: 16e9 / arithmetic,
            decode: 1e-5,
            prefill_attended: 524_288.0 / arithmetic,
            decode_attended: 131_072.0 / memory,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len: 32_768,
            num_blocks: 52_000,
            max_queued: 1024,
        }
    }

    /// A preset by name, `cpu-smollm2` or `h200-8b`, or a JSON file with all the fields.
    ///
    /// # Errors
    /// An unknown name, or a file that does not hold a device.
    pub fn load(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu-smollm2" => return Ok(Self::cpu_smollm2()),
            "h200-8b" => return Ok(Self::h200_8b()),
            _ => {}
        }
        let unknown = |source| DeviceError::Unknown { name: name.to_owned(), source };
        let malformed = |reason| DeviceError::Malformed { path: name.into(), reason };
        let file = fs::File::open(name).map_err(unknown)?;
        let mut text = String::new();
        let read = io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text);
        read.map_err(unknown)?;
        let device: Self =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        device.check().map_err(malformed)?;
        Ok(device)
    }

    /// Says what nothing could run under.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (field, seconds) in [
            ("step", self.step),
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("prefill_attended", self.prefill_attended),
            ("decode_attended", self.decode_attended),
        ] {
            let least = if field == "step" { 1e-9 } else { 0.0 };
            if !(least..=MAX_PART).contains(&seconds) {
                return Err(format!(
                    "{field} is {seconds} seconds, but must be from {least} to {MAX_PART}"
                ));
            }
        }
        self.limits(SchedulingPolicy::Fcfs).validate().map_err(|error| error.to_string())
    }

    /// A scheduler's limits. As in an engine, places of all unfinished requests are counted
    /// at its door, so that its scheduler has room for any.
    pub(crate) fn limits(&self, policy: SchedulingPolicy) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            num_blocks: self.num_blocks,
            max_queued: self.places(),
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None,
            policy,
        }
    }

    /// Requests that may be unfinished.
    pub(crate) fn places(&self) -> usize {
        self.max_queued.saturating_add(self.max_num_seqs)
    }

    /// Seconds that a step of this batch takes.
    #[must_use]
    pub fn seconds(&self, batch: &ScheduledBatch) -> f64 {
        let (mut prompts, mut decodes, mut pairs, mut context) = (0, 0, 0.0, 0);
        for sequence in &batch.sequences {
            match &sequence.input {
                Input::LastSampled => {
                    decodes += 1;
                    context += sequence.num_computed_tokens + 1;
                }
                Input::Tokens(tokens) => {
                    prompts += tokens.len();
                    let len = tokens.len() as f64;
                    pairs += len * (sequence.num_computed_tokens as f64 + (len + 1.0) / 2.0);
                }
            }
        }
        self.step
            + self.prefill * prompts as f64
            + self.decode * f64::from(decodes)
            + self.prefill_attended * pairs
            + self.decode_attended * context as f64
    }
}
