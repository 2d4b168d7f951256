//! What a running sequence's sampling needs from step to step.

use std::sync::Arc;

use sconce_kernels::ops::sampling::{SampleRequest, SeenToken};
use sconce_types::{AdmittedSequence, SamplingParams, Slot, TableEdit, TokenId};

/// The state of one slot. It is set anew at each admission, so a slot never
/// carries anything from one sequence to the next.
#[derive(Debug)]
pub(crate) struct SlotState {
    params: Arc<SamplingParams>,
    /// Prompt and earlier output, as known at admission.
    token_ids: Vec<TokenId>,
    prompt_len: usize,
    /// Each token of prompt and output that is known once, by id; empty without penalties.
    seen: Vec<SeenToken>,
    /// End and stop tokens, banned until `min_tokens` exist.
    end_tokens: Vec<TokenId>,
    last_sampled: Option<TokenId>,
    /// Tokens that steps in flight sample for it, or may have sampled.
    num_unread: u32,
    /// Its block tables, by cache group: indices into the pool.
    tables: Vec<Vec<u32>>,
}

impl SlotState {
    pub(crate) fn new(admitted: &AdmittedSequence, num_groups: usize) -> Self {
        let AdmittedSequence { params, token_ids, prompt_len, .. } = admitted;
        let end_tokens = if params.min_tokens > 0 {
            params.eos_token_ids.iter().chain(&params.stop_token_ids).copied().collect()
        } else {
            Vec::new()
        };
        let mut slot = Self {
            params: Arc::clone(params),
            token_ids: token_ids.clone(),
            prompt_len: *prompt_len,
            seen: Vec::new(),
            end_tokens,
            last_sampled: None,
            num_unread: 0,
            tables: vec![Vec::new(); num_groups],
        };
        if params.has_penalties() {
            let (prompt, output) = token_ids.split_at(*prompt_len);
            for &token in prompt {
                slot.see(token, 0);
            }
            for &token in output {
                slot.see(token, 1);
            }
        }
        slot
    }

    /// Takes a new entry of its block table; whether there was another.
    pub(crate) fn edit_table(&mut self, edit: &TableEdit) -> bool {
        let (table, index) = (&mut self.tables[edit.group as usize], edit.index as usize);
        let replaces = index < table.len();
        if !replaces {
            table.resize(index + 1, 0);
        }
        table[index] = edit.block.0;
        replaces
    }

    /// Its block tables, by cache group.
    pub(crate) fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// The token read last; none before the first since admission.
    pub(crate) fn last_sampled(&self) -> Option<TokenId> {
        self.last_sampled
    }

    /// A step was asked to sample a token.
    pub(crate) fn note_asked(&mut self) {
        self.num_unread += 1;
    }

    /// That step was waited for, and this is what came of it.
    #[inline]
    pub(crate) fn note_sampled(&mut self, token: Option<TokenId>) {
        self.num_unread -= 1;
        let Some(token) = token else { return };
        self.last_sampled = Some(token);
        if self.params.has_penalties() {
            self.see(token, 1);
        }
    }

    fn see(&mut self, token: TokenId, output_count: u32) {
        match self.seen.binary_search_by_key(&token, |seen| seen.token) {
            Ok(at) => self.seen[at].output_count += output_count,
            Err(at) => self.seen.insert(at, SeenToken { token, output_count }),
        }
    }

    /// What the sampler is asked for the output token of this index, of those that a mask
    /// allows, if there is one. `own` is the slot, where the device keeps its token.
    pub(crate) fn sample_request<'a>(
        &'a self,
        output_index: u32,
        allowed: Option<&'a [u32]>,
        own: Option<Slot>,
    ) -> SampleRequest<'a> {
        let params = &*self.params;
        SampleRequest {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            seen: &self.seen,
            last_is_uncounted: self.num_unread > 0 && params.has_penalties(),
            slot: own.map(|Slot(slot)| slot),
            logit_bias: &params.logit_bias,
            banned: if output_index < params.min_tokens { &self.end_tokens } else { &[] },
            allowed,
            seed: params.seed,
            index: output_index,
            num_logprobs: params.logprobs,
        }
    }

    /// The prompt token at a position, with the number of alternatives wanted,
    /// if the request wants prompt log-probabilities and the prompt reaches so far.
    pub(crate) fn prompt_logprob(&self, position: usize) -> Option<(TokenId, u32)> {
        if position >= self.prompt_len {
            return None;
        }
        self.params.prompt_logprobs.map(|num_top| (self.token_ids[position], num_top))
    }
}
