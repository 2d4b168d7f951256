//! Encoders: the executor that makes an embedding of each prompt.
//!
//! A text is a request of one token that nobody reads: so admission, shares, limits and
//! metering are those of any other. There is no cache, so a prompt that the scheduler gives in
//! chunks is computed whole with its last one; blocks count the tokens of texts under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sconce_kernels::{
    BLOCK_SIZE, CacheDtype, Device as _, Dtype, KernelError, KvLayout, StepLimits, StepPlan,
    WeightDtype,
    cpu::{Cpu, CpuConfig, CpuKvCache, CpuStep, Isa},
};
use sconce_models::{
    Encoder, EncoderCheckpoint, LoadedEncoder, Pass, Pooling, SentenceConfig, Workspace,
};
use sconce_types::{
    CacheGroups, EmbeddingInfo, Executor, ExecutorError, Input, RequestId, Sample, SampleOutcome,
    ScheduledBatch, StepResult, TokenId, TokenMasks,
};

use crate::{
    DeviceChoice, LoadError, LoadOptions, LoadPhase, LoadTimes, LoadedModel, ModelInfo,
    Quantization,
};

/// The token that is said to be sampled after each text.
const NO_TOKEN: TokenId = 0;
/// A row's length is at least this when rows are scaled to length 1.
const LEAST_LENGTH: f32 = 1e-12;

/// Makes embeddings on a CPU.
pub struct EncoderRunner {
    cpu: Cpu,
    model: Box<dyn Encoder<Cpu>>,
    sentence: SentenceConfig,
    step: CpuStep,
    /// Of nothing: operations are told of a step together with a cache.
    cache: CpuKvCache,
    workspace: Workspace<Cpu>,
    plan: StepPlan,
    /// Rows of a forward pass at most.
    max_rows: usize,
    /// The texts of running sequences.
    slots: Vec<Vec<TokenId>>,
    result: StepResult,
}

/// Loads an encoder, which runs on a CPU, in f32 unless another dtype is asked for.
///
/// # Errors
/// A checkpoint that cannot be used, limits that do not fit it, a GPU asked for.
pub(crate) fn load(
    options: &LoadOptions,
    checkpoint: &EncoderCheckpoint,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<LoadedModel<EncoderRunner>, LoadError> {
    options.check()?;
    if options.device == DeviceChoice::Cuda {
        let reason = "models that make embeddings run on the CPU".to_owned();
        return Err(LoadError::NoDevice { reason });
    }
    let limit = checkpoint.max_tokens();
    let max_tokens = options.max_model_len.unwrap_or(limit);
    if max_tokens > limit {
        return Err(LoadError::MaxModelLen { asked: max_tokens, limit });
    }
    let max_num_seqs = options.max_num_seqs;
    let max_num_batched_tokens = options.max_num_batched_tokens.unwrap_or(512);
    let mut times = LoadTimes::default();
    let started = Instant::now();
    let isa = options.cpu_isa.map(Isa::or_lower);
    let mut cpu = Cpu::new(CpuConfig { threads: options.threads, isa });
    times.device = started.elapsed();
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let weights = match options.quantization {
        None => dtype.into(),
        Some(Quantization::Int8) => WeightDtype::Int8,
        Some(Quantization::Fp8) => return Err(LoadError::Kernel(crate::load::no_fp8_on_a_cpu())),
    };
    let started = Instant::now();
    let LoadedEncoder { model, weight_bytes, warnings } =
        checkpoint.load(&cpu, weights, &mut |done, all| progress(LoadPhase::Tensors, done, all))?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", options.dir.display());
    }
    times.weights = started.elapsed();
    // A prompt is computed whole, however small its last chunk.
    let max_rows = max_num_batched_tokens.max(max_tokens);
    let limits =
        StepLimits { max_num_batched_tokens: max_rows, max_num_seqs, max_model_len: max_tokens };
    let layout =
        KvLayout { num_blocks: 0, num_groups: 0, layers: Vec::new(), dtype: CacheDtype::F32 };
    let config = checkpoint.config();
    let sentence = checkpoint.sentence().clone();
    let info = ModelInfo {
        device: cpu.describe_for(weights),
        architecture: checkpoint.architecture().to_owned(),
        dtype,
        quantization: options.quantization,
        kv_cache_dtype: CacheDtype::F32,
        weight_bytes,
        vocab_size: config.vocab_size,
        // The scheduler counts the token that nobody reads.
        max_model_len: max_tokens + 1,
        max_num_batched_tokens,
        num_blocks: (max_tokens + 1).div_ceil(BLOCK_SIZE).saturating_mul(max_num_seqs),
        groups: CacheGroups::ONE,
        kv_cache_bytes: 0,
        load_times: times,
        num_graphs: 0,
        energy: "not measured".to_owned(),
        embedding: Some(EmbeddingInfo {
            dimensions: config.hidden_size,
            matryoshka: sentence.matryoshka.clone(),
            is_normalized: sentence.normalize,
            max_tokens,
        }),
        form_faults: Vec::new(),
    };
    let mut runner = EncoderRunner {
        step: cpu.step(&limits, &[])?,
        cache: cpu.kv_cache(&layout, &limits)?,
        workspace: Workspace::new(max_rows, 1),
        plan: StepPlan::new(0),
        cpu,
        model,
        sentence,
        max_rows,
        slots: vec![Vec::new(); max_num_seqs],
        result: StepResult::default(),
    };
    // The first pass allocates what passes take; none after it may take more.
    runner.slots[0] = vec![NO_TOKEN];
    runner.embed(&[0])?;
    runner.workspace.freeze();
    Ok(LoadedModel { runner, meter: None, info })
}

impl EncoderRunner {
    /// The embeddings of the texts in these slots, in their order, in passes of as many texts
    /// as have room.
    fn embed(&mut self, slots: &[usize]) -> Result<Vec<Vec<f32>>, KernelError> {
        let mut embeddings = Vec::with_capacity(slots.len());
        let mut rest = slots;
        while !rest.is_empty() {
            self.plan.clear();
            let mut count = 0;
            for &slot in rest {
                let text = &self.slots[slot];
                if count > 0 && self.plan.num_tokens() + text.len() > self.max_rows {
                    break;
                }
                let slot = u32::try_from(slot).expect("slots are below 2^32");
                self.plan.push(slot, text, 0, &[] as &[Vec<u32>]);
                count += 1;
            }
            rest = &rest[count..];
            let Self { cpu, model, step, cache, workspace, plan, sentence, .. } = self;
            cpu.stage(plan, step, cache)?;
            let rows = plan.num_tokens();
            let hidden = model.forward(&mut Pass::begin(cpu, step, rows, cache, workspace))?;
            let buffer = workspace.get(&hidden);
            for sequence in 0..count {
                let states = &buffer.rows(rows)[plan.rows(sequence).start * buffer.cols()..];
                let states = &states[..plan.rows(sequence).len() * buffer.cols()];
                embeddings.push(pool(sentence, states, buffer.cols()));
            }
            workspace.free(hidden);
        }
        Ok(embeddings)
    }

    fn compute(&mut self, batch: &ScheduledBatch) -> Result<(), KernelError> {
        for admitted in &batch.admitted {
            let text = &admitted.token_ids[..admitted.prompt_len];
            text.clone_into(&mut self.slots[admitted.slot.index()]);
        }
        let whole: Vec<(RequestId, usize)> = batch
            .sequences
            .iter()
            .filter(|sequence| is_whole(sequence.sample, &sequence.input))
            .map(|sequence| (sequence.request, sequence.slot.index()))
            .collect();
        let slots: Vec<usize> = whole.iter().map(|&(_, slot)| slot).collect();
        let mut embeddings = self.embed(&slots)?.into_iter();
        self.result.clear(batch.step);
        for sequence in &batch.sequences {
            if sequence.sample == Sample::Nothing {
                self.result.push(SampleOutcome::Nothing);
                continue;
            }
            if is_whole(sequence.sample, &sequence.input) {
                let embedding = embeddings.next().expect("each whole text has an embedding");
                if !embedding.iter().all(|x| x.is_finite()) {
                    self.result.push(SampleOutcome::NonFiniteLogits);
                    continue;
                }
                self.result.embeddings.push((sequence.request, Arc::from(embedding)));
            }
            self.result.push_token(NO_TOKEN);
        }
        Ok(())
    }
}

/// Whether a sequence's text ends with this chunk.
fn is_whole(sample: Sample, input: &Input) -> bool {
    sample != Sample::Nothing && *input != Input::LastSampled
}

/// From a text's hidden states `[len, cols]` to its embedding.
fn pool(sentence: &SentenceConfig, states: &[f32], cols: usize) -> Vec<f32> {
    let mut out = states[..cols].to_vec();
    if sentence.pooling == Pooling::Mean {
        for state in states.chunks_exact(cols).skip(1) {
            out.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
        }
        let scale = 1.0 / (states.len() / cols) as f32;
        out.iter_mut().for_each(|x| *x *= scale);
    }
    if sentence.normalize {
        let length = out.iter().map(|x| x * x).sum::<f32>().sqrt().max(LEAST_LENGTH);
        out.iter_mut().for_each(|x| *x /= length);
    }
    out
}

/// One step at a time, computed when it is launched.
impl Executor for EncoderRunner {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.compute(batch).map_err(|error| match error {
            KernelError::OutOfMemory { .. } => ExecutorError::Fatal(error.to_string()),
            error => ExecutorError::Step(error.to_string()),
        })
    }

    fn sample(&mut self, _: &TokenMasks) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        std::mem::swap(result, &mut self.result);
        Ok(())
    }

    fn failed_step_time(&mut self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_pooled_as_the_model_says() {
        let states = [1.0, 2.0, -3.0, 4.0, 5.0, 9.0];
        let config = |pooling, normalize| SentenceConfig {
            pooling,
            normalize,
            max_seq_length: None,
            matryoshka: None,
        };
        assert_eq!(pool(&config(Pooling::Mean, false), &states, 2), [1.0, 5.0]);
        assert_eq!(pool(&config(Pooling::Cls, false), &states, 2), [1.0, 2.0]);
        assert_eq!(pool(&config(Pooling::Cls, true), &[3.0, 4.0, 9.0, 9.0], 2), [0.6, 0.8]);
        // A vector of no length stays one of numbers.
        assert_eq!(pool(&config(Pooling::Mean, true), &[0.0; 4], 2), [0.0, 0.0]);
    }
}
