//! What a response says of its tokens, and of what they took.

use sconce_types::Metering;
use serde::Serialize;
use utoipa::ToSchema;

use super::choice::{Delta, Used};

/// The tokens of a response, of all its choices.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Each prompt once, whatever the number of its choices.
    prompt_tokens: usize,
    total_tokens: usize,
    /// Generated tokens.
    completion_tokens: usize,
    #[schema(inline)]
    prompt_tokens_details: PromptTokensDetails,
    #[schema(inline)]
    completion_tokens_details: CompletionTokensDetails,
    /// Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    metering: Option<Metered>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct PromptTokensDetails {
    /// Prompt tokens found in the prefix cache.
    cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct CompletionTokensDetails {
    /// Tokens of thoughts.
    reasoning_tokens: usize,
}

/// What the response's choices used together.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct Metered {
    /// The longest that one of them waited.
    queue_seconds: f64,
    /// Their part of the steps that they took part in.
    device_seconds: f64,
    /// Blocks of the KV cache, by the seconds that they were held.
    kv_block_seconds: f64,
    /// Null where the device's energy cannot be measured.
    #[schema(required)]
    joules: Option<f64>,
    /// In the tenant's currency; null for a tenant without prices.
    #[schema(required)]
    price: Option<f64>,
}

/// A response's tokens in numbers, for wires with other names for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    pub(crate) input: usize,
    /// Of the input.
    pub(crate) cached: usize,
    pub(crate) output: usize,
    /// Of the output.
    pub(crate) reasoning: usize,
}

/// The tokens of a response's choices.
pub(crate) struct Counts {
    prompt_tokens: usize,
    /// Choices of each prompt, which is counted once.
    n: usize,
    /// By choice.
    used: Vec<Used>,
    include_metering: bool,
}

impl Counts {
    pub(crate) fn new(
        prompt_tokens: usize,
        n: usize,
        num_choices: usize,
        include_metering: bool,
    ) -> Self {
        Self { prompt_tokens, n, used: vec![Used::default(); num_choices], include_metering }
    }

    pub(crate) fn num_choices(&self) -> usize {
        self.used.len()
    }

    /// Takes the counts of a choice as they are now.
    pub(crate) fn note(&mut self, choice: usize, delta: &Delta) {
        self.used[choice] = delta.used;
    }

    /// The same with each choice's last counts.
    pub(crate) fn of_all(mut self, choices: &[Delta]) -> Self {
        choices.iter().enumerate().for_each(|(index, choice)| self.note(index, choice));
        self
    }

    pub(crate) fn usage(&self) -> Usage {
        // As metered: the ledger and the metrics say the same.
        let generated = self.used.iter().map(|used| used.metering.generated_tokens as usize);
        let completion_tokens = generated.sum();
        let firsts = self.used.iter().step_by(self.n);
        let cached_tokens = firsts.map(|used| used.metering.cached_tokens as usize).sum();
        let reasoning_tokens = self.used.iter().map(|used| used.reasoning_tokens as usize).sum();
        Usage {
            prompt_tokens: self.prompt_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens },
            metering: self.include_metering.then(|| self.metered()),
        }
    }

    /// Prompt tokens, those of them that were cached, generated tokens, and those of thoughts.
    pub(crate) fn tokens(&self) -> Tokens {
        let usage = self.usage();
        Tokens {
            input: usage.prompt_tokens,
            cached: usage.prompt_tokens_details.cached_tokens,
            output: usage.completion_tokens,
            reasoning: usage.completion_tokens_details.reasoning_tokens,
        }
    }

    fn metered(&self) -> Metered {
        let sum = |of: fn(&Metering) -> u64| -> f64 {
            self.used.iter().map(|used| of(&used.metering) as f64 * 1e-9).sum()
        };
        let queued = self.used.iter().map(|used| used.metering.queue_ns).max().unwrap_or(0);
        // A choice of which nothing is known yet has used nothing.
        let joules = self.used.iter().filter_map(|used| used.metering.energy_uj);
        let prices = self.used.iter().filter_map(|used| used.price_nano);
        Metered {
            queue_seconds: queued as f64 * 1e-9,
            device_seconds: sum(|metering| metering.device_ns),
            kv_block_seconds: sum(|metering| metering.block_ns),
            joules: joules.reduce(|a, b| a + b).map(|uj| uj as f64 * 1e-6),
            price: prices.reduce(|a, b| a + b).map(|nano| nano as f64 * 1e-9),
        }
    }
}
