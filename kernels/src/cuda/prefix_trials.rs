//! Whether attention computes a prefix that sequences share once, for all of them: if that is
//! right, and faster, on a device. No bit of a result depends on it.

use super::{
    Cuda, Driver, PromptForm,
    attention_batch::{AttentionBatch, trial_params},
    head_trials::{Heads, TwoForms},
    word,
};
use crate::{BLOCK_SIZE, Findings, KernelError, SharedPrefix, StepPlan, Verdict};

const TOGETHER: &str = "together";
const PREFIXES: TwoForms =
    TwoForms { begin: "attention over shared prefixes", forms: ["each by itself", TOGETHER] };

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

impl<D: Driver> Cuda<D> {
    /// Has attention share prefixes where steps name some, whether or not it was tried, or never;
    /// `None`: where it was found faster.
    pub fn use_shared_prefixes(&mut self, shares: Option<bool>) {
        self.shares_prefixes = shares;
    }

    /// Whether attention with such heads gains by it.
    pub(super) fn shares(&self, heads: Heads) -> bool {
        let found = || self.form_of_heads(&PREFIXES, heads) == Some(TOGETHER);
        self.shares_prefixes.unwrap_or_else(found)
    }

    /// Tries what is not known of it, and has attention with these heads share prefixes from then on
    /// where that is faster.
    pub(super) fn try_prefixes(
        &mut self,
        heads: &[Heads],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        self.try_two_forms(&PREFIXES, heads, (found, keep), |cuda, form, heads| {
            cuda.try_sharing(form == TOGETHER, heads)
        })
    }

    /// Tries again what `found` knows of it.
    pub(super) fn try_prefixes_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let heads = self.forget_heads(&PREFIXES, found);
        self.try_prefixes(&heads, found, keep)
    }

    fn try_sharing(&mut self, together: bool, heads: Heads) -> Result<Verdict, KernelError> {
        // There are no prompts.
        let time = |cuda: &mut Self, batch: &_, calls| {
            cuda.time_attention(PromptForm::Warps, batch, calls)
        };
        let small = self.decode_batch(SMALL, together, heads)?;
        time(self, &small, 1)?;
        let got = self.attended(&small)?;
        if let Some(at) = got.iter().position(|x| !x.is_finite()) {
            return Ok(Verdict::Wrong(format!("number {at} is {}", got[at])));
        }
        if together {
            let plain = self.decode_batch(SMALL, false, heads)?;
            time(self, &plain, 1)?;
            let want = self.attended(&plain)?;
            let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
            if let Some(at) = got.iter().zip(&want).position(differs) {
                let how = format!("number {at} is {}, not {}", got[at], want[at]);
                return Ok(Verdict::Wrong(how));
            }
        }
        let large = |cuda: &Self| cuda.decode_batch(LARGE, together, heads);
        self.time_trial(small, large, CALLS, time)
    }

    fn decode_batch(
        &self,
        decodes: Decodes,
        together: bool,
        (head_dim, cache): Heads,
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
