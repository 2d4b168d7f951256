//! Attention of prompts by each of its forms, on random numbers: which are right, and how fast.

use std::time::Duration;

use super::{
    Cuda, Driver, PromptForm,
    attention_batch::{AttentionBatch, GROUP, head_of, rounded, trial_params},
    names,
};
use crate::{BLOCK_SIZE, CacheDtype, Dtype, Findings, KernelError, StepPlan, Verdict, reference};

/// A prompt whose attention is tried: KV heads, of four Q heads each, tokens of context, and how
/// many of the last ask.
#[derive(Clone, Copy)]
struct Prompt {
    num_kv_heads: usize,
    context: usize,
    tokens: usize,
}

/// More than a chunk and a block's rows, ends of pages and tiles: what is compared with the
/// reference.
const SMALL: Prompt = Prompt { num_kv_heads: 1, context: 301, tokens: 40 };
/// What is timed.
const LARGE: Prompt = Prompt { num_kv_heads: 8, context: 2048, tokens: 2048 };
/// Calls that are timed together.
const CALLS: u32 = 8;

impl Prompt {
    /// Where in the cache a token's K or V of a head begins, in heads of elements.
    fn place(self, half: usize, head: usize, token: usize) -> usize {
        let block = token / BLOCK_SIZE * 2 + half;
        (block * self.num_kv_heads + head) * BLOCK_SIZE + token % BLOCK_SIZE
    }
}

fn operation(head_dim: usize, dtype: Dtype) -> String {
    format!("attention of prompts, heads of {head_dim}, {dtype:?}")
}

/// The head_dim in the name of an operation.
fn head_dim_of(operation: &str) -> Option<usize> {
    let rest = operation.strip_prefix("attention of prompts, heads of ")?;
    rest.split_once(',')?.0.parse().ok()
}

impl<D: Driver> Cuda<D> {
    /// Tries what is not known of attention of prompts with heads of these sizes, each with the
    /// dtype of its cache, and has each take its best form from then on.
    pub(super) fn try_attention(
        &mut self,
        kinds: &[(usize, CacheDtype)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        if !self.driver.has_warp_groups() {
            return Ok(());
        }
        let has_choice = |(head_dim, cache): &&(usize, CacheDtype)| {
            names::prefill_groups((self.dtype, *cache), *head_dim, false).is_some()
        };
        let mut head_dims: Vec<usize> =
            kinds.iter().filter(has_choice).map(|(head_dim, _)| *head_dim).collect();
        head_dims.sort_unstable();
        head_dims.dedup();
        for head_dim in head_dims {
            let operation = operation(head_dim, self.dtype);
            if PromptForm::ALL.iter().any(|form| !found.knows(&operation, form.name())) {
                for form in PromptForm::ALL {
                    let attempt = || self.try_prompts(form, head_dim);
                    found.try_form(&operation, form.name(), keep, attempt)?;
                }
                keep(found);
            }
            let best = found.best(&operation);
            let best = best.ok_or_else(|| Findings::none_is_right(&operation))?;
            if let Some(form) = PromptForm::ALL.into_iter().find(|form| form.name() == best) {
                self.prompt_forms.insert(head_dim, form);
            }
        }
        Ok(())
    }

    /// Tries again what `found` knows of it, or heads of 128 if it knows nothing.
    pub(super) fn try_attention_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let known = found.trials().iter().filter_map(|trial| head_dim_of(&trial.operation));
        let mut kinds: Vec<_> = known.map(|head_dim| (head_dim, self.dtype.into())).collect();
        if kinds.is_empty() {
            kinds.push((128, self.dtype.into()));
        }
        kinds.iter().for_each(|(head_dim, _)| found.forget(&operation(*head_dim, self.dtype)));
        self.try_attention(&kinds, found, keep)
    }

    fn try_prompts(&mut self, form: PromptForm, head_dim: usize) -> Result<Verdict, KernelError> {
        let small = self.prompt_batch(SMALL, head_dim)?;
        let attention = &small.attention;
        if form == PromptForm::Boxes
            && let (cache, rows) = (attention.params.cache, attention.cache_rows)
            && self.driver.tile_map(cache, rows, head_dim).is_none()
        {
            return Err(KernelError::Unsupported {
                what: "a map of a tensor".to_owned(),
                device: "this device",
                accepted: "tiles are copied by threads",
            });
        }
        // The first loads what there is to load.
        self.time_attention(form, &small, 1)?;
        if let Err(how) = self.compare(&small, head_dim)? {
            return Ok(Verdict::Wrong(how));
        }
        let large = |cuda: &Self| cuda.prompt_batch(LARGE, head_dim);
        self.time_trial(small, large, CALLS, |cuda, batch, calls| {
            cuda.time_attention(form, batch, calls)
        })
    }

    /// Of one call.
    pub(super) fn time_attention(
        &mut self,
        form: PromptForm,
        batch: &AttentionBatch<D::Memory>,
        calls: u32,
    ) -> Result<Duration, KernelError> {
        self.driver.begin_step()?;
        for _ in 0..calls {
            self.launch_attention(form, &batch.attention, &batch.work)?;
        }
        Ok(self.driver.finish()?.unwrap_or_default() / calls)
    }

    fn prompt_batch(
        &self,
        prompt: Prompt,
        head_dim: usize,
    ) -> Result<AttentionBatch<D::Memory>, KernelError> {
        let Prompt { num_kv_heads, context, tokens } = prompt;
        let blocks: Vec<u32> = (0..).take(context.div_ceil(BLOCK_SIZE)).collect();
        let mut step = StepPlan::new(1);
        step.push(0, &vec![0; tokens], context - tokens, &[&blocks]);
        let params = trial_params(num_kv_heads, head_dim);
        self.attention_batch(&params, self.dtype.into(), &step, &[blocks])
    }

    /// What is wrong with the results of the small prompt, if anything is.
    fn compare(
        &self,
        batch: &AttentionBatch<D::Memory>,
        head_dim: usize,
    ) -> Result<Result<(), String>, KernelError> {
        let got = self.attended(batch)?;
        let params = trial_params(SMALL.num_kv_heads, head_dim);
        let (q, cache) = (rounded(3, self.dtype), rounded(4, self.dtype));
        let of_cache = |half| -> Vec<Vec<f64>> {
            let places = (0..SMALL.context).map(|token| SMALL.place(half, 0, token));
            places.map(|place| head_of(&cache, place, head_dim)).collect()
        };
        let (keys, values) = (of_cache(0), of_cache(1));
        // Weights are rounded once, and so is the result; values are below 1.
        let epsilon = if self.dtype == Dtype::F16 { 2_f64.powi(-11) } else { 2_f64.powi(-8) };
        for row in 0..SMALL.tokens * GROUP {
            let position = SMALL.context - SMALL.tokens + row / GROUP;
            let q = head_of(&q, row, head_dim);
            let want = reference::attention(&params, position, &q, &keys, &values);
            for (d, want) in want.into_iter().enumerate() {
                let got = f64::from(got[row * head_dim + d]);
                let off = (got - want).abs();
                if off.is_nan() || off > epsilon * 1.5 {
                    return Ok(Err(format!("dimension {d} of row {row} is {got}, not {want}")));
                }
            }
        }
        Ok(Ok(()))
    }
}
