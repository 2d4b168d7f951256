//! What a scheduler asks of an executor in one step, and what it gets back.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{BlockId, RequestId, SamplingParams, Slot, TokenId};

/// One step's work: a ragged batch that mixes prefill chunks and decodes.
///
/// The arrays are flat and reused from step to step, so that a step in steady
/// state allocates nothing; each sequence names its ranges in them.
#[derive(Clone, Debug, Default)]
pub struct ScheduledBatch {
    /// Counts from 1 over the engine's life.
    pub step: u64,
    /// Sequences that take a slot in this step; the executor (re)initialises their slots
    /// before it computes anything. A preempted sequence is admitted anew.
    pub admitted: Vec<AdmittedSequence>,
    /// The sequences to compute, in the order of the batch's rows.
    pub sequences: Vec<ScheduledSequence>,
    /// Input tokens of all sequences whose input is [`Input::Tokens`].
    pub token_ids: Vec<TokenId>,
    /// Entries of block tables that are new since the slot's last step. The executor keeps
    /// the tables by slot; an entry holds until it is overwritten.
    pub table_edits: Vec<TableEdit>,
    /// Input tokens in all, [`Input::LastSampled`] counting one each.
    pub num_tokens: usize,
    /// Rows of [`Sample::Token`] that are constrained.
    pub num_constrained: usize,
}

impl ScheduledBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.admitted.clear();
        self.sequences.clear();
        self.token_ids.clear();
        self.table_edits.clear();
        self.num_tokens = 0;
        self.num_constrained = 0;
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// A sequence that takes a slot.
#[derive(Clone, Debug)]
pub struct AdmittedSequence {
    /// Whose.
    pub request: RequestId,
    /// Where.
    pub slot: Slot,
    /// How its tokens are sampled.
    pub params: Arc<SamplingParams>,
    /// All its tokens so far: the prompt, then what it generated before a
    /// preemption.
    pub token_ids: Vec<TokenId>,
    /// How many of them are the prompt's.
    pub prompt_len: usize,
}

/// One entry of a slot's block table: tokens `index * BLOCK_SIZE ..` of the sequence lie in
/// `block`, in the cache layers of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEdit {
    /// Whose table.
    pub slot: Slot,
    /// The cache group.
    pub group: u32,
    /// The entry.
    pub index: u32,
    /// What it is from now on.
    pub block: BlockId,
}

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct ScheduledSequence {
    /// Whose.
    pub request: RequestId,
    /// Its slot.
    pub slot: Slot,
    /// The tokens to compute.
    pub input: Input,
    /// Tokens whose keys and values are in the cache already: the position of
    /// the first input token.
    pub num_computed_tokens: usize,
    /// Blocks that it holds, over all cache groups.
    pub num_blocks: usize,
    /// Its table's new entries: a range of [`ScheduledBatch::table_edits`].
    pub table_edits: Range<usize>,
    /// What to sample after the last input token.
    pub sample: Sample,
}

/// Where a sequence's input tokens are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A range of [`ScheduledBatch::token_ids`].
    Tokens(Range<usize>),
    /// The one token that the executor sampled last for this slot. The
    /// scheduler need not know it, so a step can be launched before the one
    /// before it has been read back.
    LastSampled,
}

impl Input {
    /// The number of input tokens.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(range) => range.len(),
            Self::LastSampled => 1,
        }
    }

    /// Whether there are none (no scheduled sequence is so).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a sequence samples in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// The chunk ends before the last known token.
    Nothing,
    /// Sample the output token with this index (0 is the first generated). The
    /// index counts over preemptions, so that it can drive the seeded generator.
    Token {
        /// The index.
        output_index: u32,
        /// Whether a mask comes with the call of [`crate::Executor::sample`].
        constrained: bool,
    },
}

/// Which tokens the constrained rows of a step may sample.
#[derive(Clone, Debug, Default)]
pub struct TokenMasks {
    /// By row, ascending: an index of [`ScheduledBatch::sequences`], and its words.
    rows: Vec<(usize, RowMask)>,
    words: Vec<u32>,
}

#[derive(Clone, Debug)]
enum RowMask {
    Skip,
    Words(Range<usize>),
}

/// What a row may sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenMask<'a> {
    /// Any token.
    All,
    /// Token `t` if bit `t % 32` of word `t / 32` is set.
    Bits(&'a [u32]),
    /// The mask was not ready: the row samples nothing, and is computed again.
    Skip,
}

impl TokenMasks {
    /// Removes all masks and keeps their memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.words.clear();
    }

    /// Adds the mask of a row above all that have one: `num_words` words that `fill` is
    /// given, all zero. Where `fill` says `false` the mask is not ready and the row is skipped.
    ///
    /// # Panics
    /// If rows do not ascend.
    pub fn push(&mut self, row: usize, num_words: usize, fill: impl FnOnce(&mut [u32]) -> bool) {
        assert!(self.rows.last().is_none_or(|&(last, _)| last < row), "masks ascend by row");
        let from = self.words.len();
        self.words.resize(from + num_words, 0);
        let mask = if fill(&mut self.words[from..]) {
            RowMask::Words(from..from + num_words)
        } else {
            self.words.truncate(from);
            RowMask::Skip
        };
        self.rows.push((row, mask));
    }

    /// What a row may sample.
    #[must_use]
    #[inline]
    pub fn get(&self, row: usize) -> TokenMask<'_> {
        if self.rows.is_empty() { TokenMask::All } else { self.find(row) }
    }

    fn find(&self, row: usize) -> TokenMask<'_> {
        match self.rows.binary_search_by_key(&row, |&(row, _)| row) {
            Err(_) => TokenMask::All,
            Ok(at) => match &self.rows[at].1 {
                RowMask::Skip => TokenMask::Skip,
                RowMask::Words(range) => TokenMask::Bits(&self.words[range.clone()]),
            },
        }
    }

    /// The rows that are skipped, ascending.
    pub fn skipped(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().filter(|(_, mask)| matches!(mask, RowMask::Skip)).map(|&(row, _)| row)
    }

    /// Whether no row has a mask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl TokenMask<'_> {
    /// Whether a token may be sampled.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        match self {
            Self::All => true,
            Self::Bits(words) => {
                let word = words.get(token as usize / 32).copied().unwrap_or(0);
                word >> (token % 32) & 1 == 1
            }
            Self::Skip => false,
        }
    }
}

/// What a step computed. The arrays are flat and reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepResult {
    /// The step it answers.
    pub step: u64,
    /// What the step took on the device; `None` where the device does not measure that.
    pub device_time: Option<Duration>,
    /// When the step's inputs were on their way to the device, after which it was launched; where
    /// the executor says it.
    pub staged: Option<Instant>,
    /// Tokens of context that sequences had in common with another, and that were not read again
    /// for each of them.
    pub num_shared_tokens: usize,
    /// One row for each of [`ScheduledBatch::sequences`], in their order.
    pub rows: Vec<RowResult>,
    /// Sampled tokens of all rows.
    pub tokens: Vec<TokenId>,
    /// Log-probabilities of all rows: of prompt tokens, and of sampled ones.
    pub logprobs: Vec<TokenLogprobs>,
    /// Embeddings of the prompts that end in this step, in the order of rows, from a model
    /// that makes them; each comes with a sampled token that means nothing.
    pub embeddings: Vec<(RequestId, Arc<[f32]>)>,
}

impl StepResult {
    /// Empties the result for a step and keeps its memory.
    pub fn clear(&mut self, step: u64) {
        self.step = step;
        self.device_time = None;
        self.staged = None;
        self.num_shared_tokens = 0;
        self.rows.clear();
        self.tokens.clear();
        self.logprobs.clear();
        self.embeddings.clear();
    }

    /// Appends a row that sampled nothing, and without log-probabilities.
    pub fn push(&mut self, outcome: SampleOutcome) {
        self.push_row(outcome, None, None, []);
    }

    /// Appends a row of one sampled token without log-probabilities.
    #[inline]
    pub fn push_token(&mut self, token: TokenId) {
        let (first, at) = (self.tokens.len(), self.logprobs.len());
        self.tokens.push(token);
        self.rows.push(RowResult {
            outcome: SampleOutcome::Sampled,
            tokens: first..first + 1,
            logprobs: at..at,
            prompt_logprobs: at..at,
        });
    }

    /// Appends a row, with its token, that token's log-probabilities and those of the prompt.
    pub fn push_row(
        &mut self,
        outcome: SampleOutcome,
        token: Option<TokenId>,
        logprobs: Option<TokenLogprobs>,
        prompt_logprobs: impl IntoIterator<Item = TokenLogprobs>,
    ) {
        let starts = (self.tokens.len(), self.logprobs.len());
        self.tokens.extend(token);
        self.logprobs.extend(prompt_logprobs);
        let middle = self.logprobs.len();
        self.logprobs.extend(logprobs);
        self.rows.push(RowResult {
            outcome,
            tokens: starts.0..self.tokens.len(),
            logprobs: middle..self.logprobs.len(),
            prompt_logprobs: starts.1..middle,
        });
    }
}

/// One sequence's result of a step; by default nothing was sampled, and there are no
/// log-probabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowResult {
    /// What came of sampling.
    pub outcome: SampleOutcome,
    /// What was sampled: a range of [`StepResult::tokens`].
    pub tokens: Range<usize>,
    /// A range of [`StepResult::logprobs`]: one for each of `tokens`, or none.
    pub logprobs: Range<usize>,
    /// Log-probabilities of the prompt tokens that this step's rows predict, for positions
    /// `num_computed_tokens + 1 ..`: a range of [`StepResult::logprobs`].
    pub prompt_logprobs: Range<usize>,
}

/// What came of sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SampleOutcome {
    /// Nothing was asked for.
    #[default]
    Nothing,
    /// [`RowResult::tokens`], at least one.
    Sampled,
    /// The row's mask was not ready ([`TokenMask::Skip`]).
    Skipped,
    /// The logits were not finite; ends this request alone.
    NonFiniteLogits,
    /// The logits were finite, but the row's mask and its bans leave no token; ends this
    /// request alone.
    NothingAllowed,
}

/// Log-probabilities at one position, of the model's own distribution: before
/// penalties, bias, temperature and truncation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands at the position.
    pub token: TokenId,
    /// Its natural-log probability.
    pub logprob: f32,
    /// Its place among all tokens, the likeliest being 1, ties by lower id; counted for prompts'
    /// tokens only.
    pub rank: Option<u32>,
    /// The likeliest tokens, most likely first; ties by lower id.
    pub top: Vec<(TokenId, f32)>,
}
