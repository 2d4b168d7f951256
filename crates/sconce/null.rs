//! The null model: no weights, and steps that take no time. What a server of it
//! can do is what Sconce itself costs: HTTP, text, scheduling, the engine's loop.
//!
//! `null` is as fast as that; `null:20ms` gives each step a time, which makes a
//! server of known latency: a measure for the clients that measure servers.

use std::time::Duration;

use sconce_engine::{Built, CacheGroups, SchedulerConfig};
use sconce_runner::LoadTimes;
use sconce_types::{
    BLOCK_SIZE, Executor, ExecutorError, Sample, SampleOutcome, ScheduledBatch, StepResult,
    TokenId, TokenMask, TokenMasks,
};

use crate::{Options, start::Loaded};

/// The name that stands for it where a model is asked for.
pub(crate) const NAME: &str = "null";

/// Context, unless another is asked for.
const MAX_MODEL_LEN: usize = 32_768;
/// Tokens that the cache would hold if there were one.
const CACHE_TOKENS: usize = 1 << 21;
/// Tokens in the vocabulary: the bytes, and an end token that is never sampled.
const VOCAB_SIZE: usize = 257;

/// The time of a step, if the name of a model is the null model's.
pub(crate) fn step_time(model: &str) -> Option<Duration> {
    if model == NAME {
        return Some(Duration::ZERO);
    }
    let ms: f64 = model.strip_prefix("null:")?.strip_suffix("ms")?.parse().ok()?;
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

/// Says the alphabet, over and over, and what a mask allows instead; blocks and contexts are
/// never looked at.
struct NullExecutor {
    /// The letters of the step's rows, those that sample.
    rows: Vec<Option<TokenId>>,
    result: StepResult,
    step_time: Duration,
}

impl Executor for NullExecutor {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.result.clear(batch.step);
        let letters = batch.sequences.iter().map(|sequence| match sequence.sample {
            Sample::Nothing => None,
            Sample::Token { output_index, .. } => Some(letter(output_index)),
        });
        self.rows.extend(letters);
        Ok(())
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        for (row, letter) in self.rows.drain(..).enumerate() {
            let Some(letter) = letter else {
                self.result.push(SampleOutcome::Nothing);
                continue;
            };
            match masks.get(row) {
                TokenMask::Skip => self.result.push(SampleOutcome::Skipped),
                mask if mask.allows(letter) => self.result.push_token(letter),
                mask => match (0..VOCAB_SIZE as TokenId).find(|&token| mask.allows(token)) {
                    Some(token) => self.result.push_token(token),
                    None => self.result.push(SampleOutcome::NothingAllowed),
                },
            }
        }
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        if !self.step_time.is_zero() {
            std::thread::sleep(self.step_time);
        }
        std::mem::swap(&mut self.result, result);
        Ok(())
    }
}

fn letter(output_index: u32) -> TokenId {
    u32::from(b'a') + output_index % 26
}

/// What an engine of the null model is built from.
pub(crate) fn build(
    options: &Options,
    step_time: Duration,
) -> Built<impl Executor + use<>, Loaded> {
    let max_model_len = options.max_model_len.unwrap_or(MAX_MODEL_LEN);
    let config = SchedulerConfig {
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens.unwrap_or(512),
        max_model_len,
        num_blocks: CACHE_TOKENS.max(max_model_len).div_ceil(BLOCK_SIZE),
        max_queued: options.max_num_queued_reqs,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: options.scheduling_policy,
    };
    let info = Loaded {
        architecture: format!("no weights; a step takes {step_time:?}"),
        device: "none".to_owned(),
        dtype: None,
        quantization: None,
        kv_cache_dtype: None,
        weight_bytes: 0,
        kv_cache_bytes: 0,
        load_times: LoadTimes::default(),
        num_graphs: 0,
        energy: "not measured: no device".to_owned(),
        embedding: None,
        form_faults: Vec::new(),
    };
    let executor = NullExecutor { rows: Vec::new(), result: StepResult::default(), step_time };
    Built { executor, energy: None, config, vocab_size: VOCAB_SIZE, info }
}

#[cfg(test)]
mod tests {
    use sconce_types::SamplingParams;

    use super::*;
    use crate::Sconce;

    #[test]
    fn its_name_may_give_a_step_its_time() {
        assert_eq!(step_time("null"), Some(Duration::ZERO));
        assert_eq!(step_time("null:2.5ms"), Some(Duration::from_micros(2_500)));
        for other in ["null:", "null:5", "null:-1ms", "null:infms", "nullable", "./null"] {
            assert_eq!(step_time(other), None, "{other}");
        }
    }

    #[test]
    fn it_answers_with_as_many_letters_as_asked_for() {
        let sconce = Sconce::start(&Options::new(NAME), &()).expect("it needs nothing to start");
        assert_eq!(sconce.text().vocab_size(), VOCAB_SIZE);
        let params = SamplingParams { max_tokens: 30, ..SamplingParams::default() };
        let mut answer = sconce.chat(&[("user", "Héllo")], params).expect("it is taken");
        let mut text = String::new();
        while let Some(piece) = answer.blocking_next() {
            text.push_str(&piece.expect("nothing can fail"));
        }
        assert_eq!(text, "abcdefghijklmnopqrstuvwxyzabcd");
        assert_eq!(sconce.text().encode("é", true).expect("bytes are tokens"), [0xc3, 0xa9]);
    }
}
