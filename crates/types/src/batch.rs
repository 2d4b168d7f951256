//! What a scheduler asks of an executor in one step, and what it gets back.

use std::{ops::Range, sync::Arc};

use crate::{BlockId, RequestId, SamplingParams, Slot, TokenId};

/// One step's work: a ragged batch that mixes prefill chunks and decodes.
///
/// The arrays are flat and reused from step to step, so that a step in steady
/// state allocates nothing; each sequence names its ranges in them.
#[derive(Clone, Debug, Default)]
pub struct ScheduledBatch {
    /// Counts from 1 over the engine's life.
    pub step: u64,
    /// Sequences seated in this step; the executor (re)initialises their slots
    /// before it computes anything. A preempted sequence is admitted anew.
    pub admitted: Vec<AdmittedSequence>,
    /// The sequences to compute, in the order of the batch's rows.
    pub sequences: Vec<ScheduledSequence>,
    /// Input tokens of all sequences whose input is [`Input::Tokens`].
    pub token_ids: Vec<TokenId>,
    /// Block tables of all sequences.
    pub block_tables: Vec<BlockId>,
    /// Input tokens in all, [`Input::LastSampled`] counting one each.
    pub num_tokens: usize,
}

impl ScheduledBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.admitted.clear();
        self.sequences.clear();
        self.token_ids.clear();
        self.block_tables.clear();
        self.num_tokens = 0;
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// A sequence that takes a seat.
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

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct ScheduledSequence {
    /// Whose.
    pub request: RequestId,
    /// Its seat.
    pub slot: Slot,
    /// The tokens to compute.
    pub input: Input,
    /// Tokens whose keys and values are in the cache already: the position of
    /// the first input token.
    pub num_computed_tokens: usize,
    /// Its block table, a range of [`ScheduledBatch::block_tables`]. It covers
    /// the input tokens too.
    pub block_table: Range<usize>,
    /// What to sample after the last input token.
    pub sample: Sample,
}

/// Where a sequence's input tokens are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A range of [`ScheduledBatch::token_ids`].
    Tokens(Range<usize>),
    /// The one token that the executor sampled last for this seat. The
    /// scheduler need not know it, so a step can be launched before the one
    /// before it has been read back.
    LastSampled,
}

impl Input {
    /// The number of input tokens.
    #[must_use]
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
    },
}

/// What a step sampled.
#[derive(Clone, Debug, Default)]
pub struct SampledTokens {
    /// The step it answers.
    pub step: u64,
    /// One row for each of [`ScheduledBatch::sequences`], in their order.
    pub rows: Vec<SampledRow>,
}

/// One sequence's result of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The token, if one was asked for.
    pub outcome: SampleOutcome,
    /// Its log-probabilities, if the request wants them.
    pub logprobs: Option<TokenLogprobs>,
    /// Log-probabilities of prompt tokens that this step's rows predict, for
    /// positions `num_computed_tokens + 1 ..`, if the request wants them.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// What came of sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleOutcome {
    /// Nothing was asked for.
    Nothing,
    /// The token.
    Token(TokenId),
    /// The logits were not finite; ends this request alone.
    NonFiniteLogits,
}

/// Log-probabilities at one position, of the model's own distribution: before
/// penalties, bias, temperature and truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands at the position.
    pub token: TokenId,
    /// Its natural-log probability.
    pub logprob: f32,
    /// The likeliest tokens, most likely first; ties by lower id.
    pub top: Vec<(TokenId, f32)>,
}
