//! Whether attention computes a prefix that sequences share once, for all of them: if that is
//! right, and faster, on a device. No bit of a result depends on it.

use std::time::{Duration, Instant};

use super::{
    Cuda, Driver, PromptForm,
    attention_batch::{AttentionBatch, trial_params},
    names,
    product_trials::SLOW,
    word,
};
use crate::{
    BLOCK_SIZE, CacheDtype, Dtype, Findings, KernelError, SharedPrefix, StepPlan, Verdict,
};

/// In the order in which they are preferred.
const FORMS: [&str; 2] = [EACH, TOGETHER];
const EACH: &str = "each by itself";
const TOGETHER: &str = "together";

/// Sequences that decode, with tokens in common, and more that are each one's own.
#[derive(Clone, Copy)]
struct Decodes {
    num_kv_heads: usize,
    num_seqs: usize,
    shared: usize,
    /// Of the last sequence, the most.
    own: usize,
}

/// More rows than a warp's, several chunks, ends of pages: what is compared.
const SMALL: Decodes =
    Decodes { num_kv_heads: 1, num_seqs: 5, shared: 2 * SharedPrefix::UNIT, own: 40 };
/// What is timed.
const LARGE: Decodes =
    Decodes { num_kv_heads: 8, num_seqs: 64, shared: 8 * SharedPrefix::UNIT, own: 32 };
/// Calls that are timed together.
const CALLS: u32 = 4;

const BEGIN: &str = "attention over shared prefixes, heads of ";

fn operation(head_dim: usize, dtype: Dtype, cache: CacheDtype) -> String {
    format!("{BEGIN}{head_dim}, {dtype:?}, cache {cache:?}")
}

/// The size of heads and the dtype of the cache in the name of an operation that begins like this.
pub(super) fn kind_of(operation: &str, begin: &str, dtype: Dtype) -> Option<(usize, CacheDtype)> {
    let rest = operation.strip_prefix(begin)?;
    let head_dim = rest.split_once(',')?.0.parse().ok()?;
    let caches = [dtype.into(), CacheDtype::Fp8E4m3];
    let cache = caches.into_iter().find(|cache| rest.ends_with(&format!("{cache:?}")))?;
    Some((head_dim, cache))
}

impl<D: Driver> Cuda<D> {
    /// Has attention share prefixes where steps name some, whether or not it was tried, or never;
    /// `None`: where it was found faster.
    pub fn use_shared_prefixes(&mut self, shares: Option<bool>) {
        self.shares_prefixes = shares;
    }

    /// Whether attention with such heads, over a cache of that dtype, gains by it.
    pub(super) fn shares(&self, head_dim: usize, cache: CacheDtype) -> bool {
        self.shares_prefixes.unwrap_or_else(|| self.sharing.contains(&(head_dim, cache)))
    }

    /// Tries what is not known of attention with heads of these sizes, each with the dtype of its
    /// cache, and has it share prefixes from then on where that is faster.
    pub(super) fn try_prefixes(
        &mut self,
        kinds: &[(usize, CacheDtype)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let has_kernel = |&&(head_dim, cache): &&(usize, CacheDtype)| {
            names::prefix_attention((self.dtype, cache), head_dim).is_some()
        };
        let kinds: Vec<_> = kinds.iter().filter(has_kernel).copied().collect();
        for (head_dim, cache) in kinds {
            let operation = operation(head_dim, self.dtype, cache);
            if FORMS.iter().any(|form| !found.knows(&operation, form)) {
                for form in FORMS {
                    let attempt = || self.try_sharing(form == TOGETHER, head_dim, cache);
                    found.try_form(&operation, form, keep, attempt)?;
                }
                keep(found);
            }
            let best = found.best(&operation);
            if best.ok_or_else(|| Findings::none_is_right(&operation))? == TOGETHER {
                self.sharing.insert((head_dim, cache));
            } else {
                self.sharing.remove(&(head_dim, cache));
            }
        }
        Ok(())
    }

    /// Tries again what `found` knows of it, or heads of 128 if it knows nothing.
    pub(super) fn try_prefixes_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let dtype = self.dtype;
        let known =
            found.trials().iter().filter_map(|trial| kind_of(&trial.operation, BEGIN, dtype));
        let mut kinds: Vec<_> = known.collect();
        kinds.dedup();
        if kinds.is_empty() {
            kinds.push((128, dtype.into()));
        }
        kinds.iter().for_each(|&(head_dim, cache)| {
            found.forget(&operation(head_dim, dtype, cache));
        });
        self.try_prefixes(&kinds, found, keep)
    }

    fn try_sharing(
        &mut self,
        together: bool,
        head_dim: usize,
        cache: CacheDtype,
    ) -> Result<Verdict, KernelError> {
        let small = self.decode_batch(SMALL, together, (head_dim, cache))?;
        // The first loads what there is to load.
        self.time_batch(&small, 1)?;
        let got = self.attended(&small)?;
        if let Some(at) = got.iter().position(|x| !x.is_finite()) {
            return Ok(Verdict::Wrong(format!("number {at} is {}", got[at])));
        }
        if together {
            let plain = self.decode_batch(SMALL, false, (head_dim, cache))?;
            self.time_batch(&plain, 1)?;
            let want = self.attended(&plain)?;
            let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
            if let Some(at) = got.iter().zip(&want).position(differs) {
                let how = format!("number {at} is {}, not {}", got[at], want[at]);
                return Ok(Verdict::Wrong(how));
            }
        }
        let started = Instant::now();
        let about = self.time_batch(&small, 1)?;
        // An emulated device may keep time of its own.
        if about >= SLOW || started.elapsed() >= SLOW {
            return Ok(Verdict::Right(about));
        }
        let timed = match self.decode_batch(LARGE, together, (head_dim, cache)) {
            Err(KernelError::OutOfMemory { .. }) => small,
            other => other?,
        };
        self.time_batch(&timed, CALLS).map(Verdict::Right)
    }

    /// Of one call.
    fn time_batch(
        &mut self,
        batch: &AttentionBatch<D::Memory>,
        calls: u32,
    ) -> Result<Duration, KernelError> {
        self.driver.begin_step()?;
        for _ in 0..calls {
            // There are no prompts.
            self.launch_attention(PromptForm::Warps, &batch.attention, &batch.work)?;
        }
        Ok(self.driver.finish()?.unwrap_or_default() / calls)
    }

    fn decode_batch(
        &self,
        decodes: Decodes,
        together: bool,
        (head_dim, cache): (usize, CacheDtype),
    ) -> Result<AttentionBatch<D::Memory>, KernelError> {
        let Decodes { num_kv_heads, num_seqs, shared, own } = decodes;
        let blocks_of_own = own.div_ceil(BLOCK_SIZE);
        let blocks_of_shared = shared / BLOCK_SIZE;
        let mut step = StepPlan::new(1);
        let tables: Vec<Vec<u32>> = (0..num_seqs)
            .map(|sequence| {
                let first = blocks_of_shared + sequence * blocks_of_own;
                (0..blocks_of_shared).chain(first..first + blocks_of_own).map(word).collect()
            })
            .collect();
        for (sequence, table) in tables.iter().enumerate() {
            let len = shared + 1 + own * sequence / num_seqs;
            step.push(word(sequence), &[0], len - 1, &[table]);
        }
        if together {
            let all: Vec<u32> = (0..word(num_seqs)).collect();
            step.share_prefix(0, shared, &all);
        }
        self.attention_batch(&trial_params(num_kv_heads, head_dim), cache, &step, &tables)
    }
}
