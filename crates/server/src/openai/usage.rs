//! What a response says of its tokens.

use serde::Serialize;

use super::choice::Delta;

/// OpenAI's `usage`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptTokensDetails {
    /// Prompt tokens found in the prefix cache.
    cached_tokens: usize,
}

/// The tokens of a response's choices.
pub(super) struct Counts {
    prompt_tokens: usize,
    /// Choices of each prompt, which is counted once.
    n: usize,
    /// By choice.
    completion_tokens: Vec<usize>,
    /// By choice.
    cached_tokens: Vec<usize>,
}

impl Counts {
    pub(super) fn new(prompt_tokens: usize, n: usize, num_choices: usize) -> Self {
        let none = vec![0; num_choices];
        Self { prompt_tokens, n, completion_tokens: none.clone(), cached_tokens: none }
    }

    pub(super) fn num_choices(&self) -> usize {
        self.completion_tokens.len()
    }

    /// Takes the counts of a choice as they are now.
    pub(super) fn note(&mut self, choice: usize, delta: &Delta) {
        self.completion_tokens[choice] = delta.num_tokens;
        self.cached_tokens[choice] = delta.num_cached_tokens;
    }

    /// The same with each choice's last counts.
    pub(super) fn of_all(mut self, choices: &[Delta]) -> Self {
        choices.iter().enumerate().for_each(|(index, choice)| self.note(index, choice));
        self
    }

    pub(super) fn usage(&self) -> Usage {
        let Self { prompt_tokens, n, completion_tokens, cached_tokens } = self;
        let completion_tokens = completion_tokens.iter().sum();
        let cached_tokens = cached_tokens.iter().step_by(*n).sum();
        Usage {
            prompt_tokens: *prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}
