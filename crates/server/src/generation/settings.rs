//! The fields that both completion endpoints share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sconce_engine::{EngineLimits, EngineRequest, SchedulingPolicy, SubmitError};
use sconce_text::StopStrings;
use sconce_types::{BLOCK_SIZE, MAX_LOGPROBS, SamplingParams, TokenId};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    generator::Generator, structure::Structure, structure_fields, thought_budget::ThoughtBudget,
    token_limits::TokenLimits,
};
use crate::{access_log::RequestStats, caller::TenantAuth, error::ApiError};

/// Fields that neither endpoint supports, with a value that asks for nothing.
pub(crate) const UNSUPPORTED: &[(&str, Option<&str>)] = &[
    ("cache_salt", None),
    ("guided_choice", None),
    ("guided_grammar", None),
    ("guided_json", None),
    ("guided_regex", None),
    ("kv_transfer_params", None),
    ("length_penalty", Some("1.0")),
    ("mm_processor_kwargs", None),
    ("service_tier", Some("\"auto\"")),
    ("spaces_between_special_tokens", Some("true")),
    ("use_beam_search", None),
    ("vllm_xargs", None),
];

/// Choices that one request may ask for in all.
pub(crate) const MAX_CHOICES: usize = 128;

/// A millisecond, sooner than which nothing is answered, to a day.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<f64> = 0.001..=86_400.0;

/// Fields that generating endpoints share. `user`, `safety_identifier` and `metadata` are the
/// client's own notes, and `prompt_cache_key` is a hint for fleets of servers that one
/// server's prefix cache does without: they go into the log and nowhere else.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerationFields {
    /// Sampling temperature; 0 is greedy. Default: the model's own, else 1.
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) temperature: Option<f32>,
    /// Nucleus sampling: keep the likeliest tokens whose probabilities sum to this. Default: the
    /// model's own, else 1, which keeps all.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 or -1 keeps all. Default: the model's own, else 0.
    #[schema(minimum = -1)]
    pub(crate) top_k: Option<i64>,
    /// Keep tokens at least this many times as likely as the likeliest. Default: the model's
    /// own, else 0, which keeps all.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) min_p: Option<f32>,
    /// Divides the positive and multiplies the negative logits of tokens that the prompt or the
    /// answer has. Default: the model's own, else 1, which changes nothing.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time that the answer has it.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub(crate) frequency_penalty: Option<f32>,
    /// The same request with the same seed gives the same answer; random if not given. Choice
    /// `i` is sampled with the seed plus `i`.
    pub(crate) seed: Option<i64>,
    /// Choices for each prompt.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub(crate) n: Option<usize>,
    /// Texts that end the answer, and are left out of it: at most 16, of 1 to 1,024 bytes each.
    pub(crate) stop: Option<OneOrMany>,
    /// Tokens that end the answer, beside the model's own.
    #[schema(value_type = Option<Vec<u32>>, max_items = 128)]
    pub(crate) stop_token_ids: Option<Vec<TokenId>>,
    /// Whether the text that ended the answer is part of it.
    #[schema(default = false)]
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// Whether the answer goes on after the model's own end tokens.
    #[schema(default = false)]
    pub(crate) ignore_eos: Option<bool>,
    /// Until there are this many tokens, no token or text ends the answer.
    #[schema(default = 0)]
    pub(crate) min_tokens: Option<u32>,
    /// By token id, what is added to its logit: at most 1,024 tokens, from -100 to 100.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Whether special tokens are left out of the answer's text.
    #[schema(default = true)]
    pub(crate) skip_special_tokens: Option<bool>,
    /// Whether the tokenizer's special tokens, such as the one that begins a text, are put
    /// around the prompt. True for completions and false for chats, whose template has them.
    pub(crate) add_special_tokens: Option<bool>,
    /// Whether the answer comes as server-sent events, as it is generated.
    #[schema(default = false)]
    pub(crate) stream: Option<bool>,
    /// Only with `stream`.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Its place among waiting requests.
    pub(crate) priority: Option<Priority>,
    /// Seconds that the request may take in all, after which it ends with a 504.
    #[schema(minimum = 0.001, maximum = 86400)]
    pub(crate) timeout: Option<f64>,
    /// Whether `usage` says what the request used beside tokens.
    #[schema(default = false)]
    pub(crate) include_metering: Option<bool>,
    /// The client's own note of who asks; only logged.
    pub(crate) user: Option<String>,
    /// The newer name of `user`.
    pub(crate) safety_identifier: Option<String>,
    /// The client's own notes; only logged.
    pub(crate) metadata: Option<Map<String, Value>>,
    /// Taken and not needed: prefixes are found in the cache without it.
    pub(crate) prompt_cache_key: Option<String>,
    /// The form that the answer must have.
    #[schema(value_type = Option<structure_fields::ResponseFormat>)]
    pub(crate) response_format: Option<Value>,
    /// The same as vLLM has it.
    #[schema(value_type = Option<structure_fields::StructuredOutputs>)]
    pub(crate) structured_outputs: Option<Value>,
    #[schema(value_type = Option<Vec<u32>>)]
    pub(crate) allowed_token_ids: Option<Vec<TokenId>>,
    pub(crate) bad_words: Option<Vec<String>>,
    /// Give the ids of the prompt's tokens and of those generated.
    pub(crate) return_token_ids: Option<bool>,
    /// Name tokens in log-probabilities `token_id:N`.
    pub(crate) return_tokens_as_token_ids: Option<bool>,
    /// Keep only so many of the prompt's last tokens; -1: as many as the context has room for.
    pub(crate) truncate_prompt_tokens: Option<i64>,
    /// Log-probabilities of the prompt's tokens, and of so many likeliest ones in their places;
    /// not with `stream`. Such a prompt is computed whole: no part of it is taken from the prefix
    /// cache.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) prompt_logprobs: Option<i64>,
}

/// A number, lower being sooner, or a name that the tenant's file has for one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a whole number or the name of a priority")]
pub(crate) enum Priority {
    Number(i32),
    Name(String),
}

/// A string, or a list of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What a stream says beside its deltas.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk without choices has `usage`.
    #[schema(default = false)]
    pub(crate) include_usage: Option<bool>,
    /// With `include_usage`: whether every chunk has the usage so far.
    #[schema(default = false)]
    pub(crate) continuous_usage_stats: Option<bool>,
    /// What the request used beside tokens, in `usage`.
    #[schema(default = false)]
    pub(crate) include_metering: Option<bool>,
    /// OpenAI pads events with random text, lest their lengths tell what they say; `true` is
    /// refused here.
    #[schema(default = false)]
    include_obfuscation: Option<bool>,
}

/// The shared fields, checked.
pub(crate) struct Settings {
    pub(crate) params: SamplingParams,
    pub(crate) n: usize,
    pub(crate) stops: StopStrings,
    pub(crate) has_stops: bool,
    pub(crate) skip_special_tokens: bool,
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) include_metering: bool,
    /// The form of answers.
    pub(crate) structure: Option<Structure>,
    /// How long thoughts may be.
    pub(crate) thought_budget: Option<ThoughtBudget>,
    pub(crate) token_limits: Option<TokenLimits>,
    pub(crate) returns_token_ids: bool,
    pub(crate) names_tokens_by_id: bool,
    /// Of the prompt, where they are asked for by this name.
    pub(crate) prompt_logprobs: Option<u32>,
    truncation: Option<Truncation>,
    has_seed: bool,
    pub(crate) caller: TenantAuth,
    priority: i32,
    timeout: Option<Duration>,
}

/// How many of a prompt's last tokens are kept.
#[derive(Clone, Copy, Debug)]
enum Truncation {
    Fit,
    Last(usize),
}

/// Contexts that a prompt may have which is cut to fit one: it is tokenized whole.
const TRUNCATED_CONTEXTS: usize = 4;

impl GenerationFields {
    /// Everything but `max_tokens` and log-probabilities, which the endpoints
    /// name differently.
    pub(crate) fn settings(
        self,
        generator: &Generator,
        caller: TenantAuth,
    ) -> Result<Settings, ApiError> {
        let defaults = SamplingParams::default();
        // The model's makers come before the API's own defaults.
        let model = generator.text.sampling_defaults();
        let user = self.user.as_ref().or(self.safety_identifier.as_ref());
        let cache_key = self.prompt_cache_key.as_ref();
        if user.is_some() || self.metadata.is_some() || cache_key.is_some() {
            tracing::debug!(user, metadata = ?self.metadata, prompt_cache_key = cache_key, "request");
        }
        let top_k = match self.top_k.or(model.top_k).unwrap_or(0) {
            -1 => 0,
            // More than any vocabulary has is all of it.
            top_k @ 0.. => u32::try_from(top_k).unwrap_or(u32::MAX),
            top_k => {
                let message = format!(
                    "top_k is {top_k}, but must be a positive whole number, or 0 or -1 for all \
                     tokens"
                );
                return Err(ApiError::invalid(Some("top_k"), message));
            }
        };
        let n = self.n.unwrap_or(1);
        if n == 0 || n > MAX_CHOICES {
            let message = format!("n is {n}, but must be from 1 to {MAX_CHOICES}");
            return Err(ApiError::invalid(Some("n"), message));
        }
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let message = "stream_options has a meaning only with stream: true";
            return Err(ApiError::invalid(Some("stream_options"), message));
        }
        if self.stream_options.and_then(|options| options.include_obfuscation) == Some(true) {
            return Err(ApiError::unsupported("stream_options.include_obfuscation"));
        }
        let stops = match self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        let metered = self.stream_options.and_then(|options| options.include_metering);
        let include_metering = self.include_metering.or(metered).unwrap_or(false);
        let ignore_eos = self.ignore_eos.unwrap_or(false);
        let mut structure = structure_fields::read(self.response_format, self.structured_outputs)?;
        if let Some(structure) = &mut structure {
            structure.check(generator, caller.id, ignore_eos, self.min_tokens.unwrap_or(0))?;
        }
        let limits = generator.engine.limits();
        let truncation = truncation(self.truncate_prompt_tokens, limits.scheduler.max_model_len)?;
        let prompt_logprobs = prompt_logprobs(self.prompt_logprobs, stream)?;
        let token_limits = TokenLimits::new(
            &generator.text,
            limits.vocab_size,
            self.allowed_token_ids,
            self.bad_words,
        )?;
        let params = SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(defaults.temperature),
            top_p: self.top_p.or(model.top_p).unwrap_or(defaults.top_p),
            top_k,
            min_p: self.min_p.or(model.min_p).unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(model.repetition_penalty)
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed.map(i64::cast_unsigned).unwrap_or_default(),
            min_tokens: self.min_tokens.unwrap_or(0),
            logit_bias: logit_bias(self.logit_bias)?,
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            prompt_logprobs,
            eos_token_ids: if ignore_eos { [].into() } else { generator.text.eos_token_ids() },
            ..defaults
        };
        if let Some(trace) = &caller.trace {
            trace.note_sampling(n, params.temperature, params.top_p);
        }
        Ok(Settings {
            params,
            n,
            has_stops: !stops.is_empty(),
            stops: StopStrings::new(stops, self.include_stop_str_in_output.unwrap_or(false))?,
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            stream: stream.then(|| self.stream_options.unwrap_or_default()),
            include_metering,
            structure,
            thought_budget: None,
            token_limits,
            returns_token_ids: self.return_token_ids.unwrap_or(false),
            names_tokens_by_id: self.return_tokens_as_token_ids.unwrap_or(false),
            prompt_logprobs,
            truncation,
            has_seed: self.seed.is_some(),
            priority: priority(self.priority, &caller, limits.scheduler.policy)?,
            timeout: timeout(self.timeout)?,
            caller,
        })
    }
}

impl Settings {
    /// Of a request that the program itself makes, which says all of them.
    pub(crate) fn in_process(
        generator: &Generator,
        mut params: SamplingParams,
        stops: Vec<String>,
        caller: TenantAuth,
    ) -> Result<Self, ApiError> {
        if params.eos_token_ids.is_empty() {
            params.eos_token_ids = generator.text.eos_token_ids();
        }
        Ok(Self {
            params,
            n: 1,
            has_stops: !stops.is_empty(),
            stops: StopStrings::new(stops, false)?,
            skip_special_tokens: true,
            stream: None,
            include_metering: false,
            structure: None,
            thought_budget: None,
            token_limits: None,
            returns_token_ids: false,
            names_tokens_by_id: false,
            prompt_logprobs: None,
            truncation: None,
            has_seed: true,
            priority: 0,
            timeout: None,
            caller,
        })
    }

    /// The form of answers, where an endpoint has a field of its own for it.
    pub(crate) fn set_structure(
        &mut self,
        generator: &Generator,
        mut structure: Structure,
    ) -> Result<(), ApiError> {
        let ignores_ends = self.params.eos_token_ids.is_empty();
        structure.check(generator, self.caller.id, ignores_ends, self.params.min_tokens)?;
        self.structure = Some(structure);
        Ok(())
    }

    /// Tokens that a prompt may have before it is cut, if it is to be.
    pub(crate) fn longest_prompt(&self, limits: &EngineLimits) -> usize {
        let contexts = if self.truncation.is_some() { TRUNCATED_CONTEXTS } else { 1 };
        limits.scheduler.max_model_len.saturating_mul(contexts)
    }

    /// Keeps a prompt's last tokens, if that was asked for; says whether it was longer.
    pub(crate) fn cut(
        &self,
        prompt: &mut Vec<TokenId>,
        limits: &EngineLimits,
        max_tokens: Option<u32>,
    ) -> bool {
        let kept = match self.truncation {
            None => return false,
            Some(Truncation::Last(tokens)) => tokens,
            Some(Truncation::Fit) => {
                let answer = max_tokens.map_or(1, |tokens| tokens as usize);
                limits.scheduler.max_model_len.saturating_sub(answer).max(1)
            }
        };
        let cut = prompt.len().saturating_sub(kept);
        prompt.drain(..cut);
        cut > 0
    }

    /// What the request's line in the log will say.
    pub(crate) fn stats(&self) -> Option<&Arc<RequestStats>> {
        self.caller.stats.as_ref()
    }

    /// The engine's request of one choice of at most `max_tokens`.
    pub(crate) fn request_of(
        &self,
        generator: &Generator,
        prompt: &[TokenId],
        max_tokens: u32,
        choice: usize,
    ) -> EngineRequest {
        EngineRequest {
            prompt: prompt.to_vec(),
            params: SamplingParams { max_tokens, ..self.params_of(generator, choice) },
            tenant: self.caller.id,
            priority: self.priority,
            request_id: self.caller.request_id.clone(),
            timeout: self.timeout,
            scores_prompt: false,
            clock: None,
        }
    }

    /// How many tokens each choice of each prompt may have: what was asked for, or `default`,
    /// or else as many as the context, the KV cache and the tenant's limits have room for.
    ///
    /// # Errors
    /// A prompt leaves no room, or all choices together may use more than their tenant has
    /// in any minute. No error is about a maximum that was not given.
    pub(crate) fn max_tokens(
        &self,
        limits: &EngineLimits,
        prompt_lens: &[usize],
        asked: Option<u32>,
        default: Option<u32>,
    ) -> Result<Vec<u32>, ApiError> {
        let tenant = self.caller.entry().map(|entry| &entry.tenant);
        let tokens_per_minute = tenant.and_then(|tenant| tenant.tokens_per_minute);
        let blocks = tenant.and_then(|tenant| tenant.max_kv_blocks).unwrap_or(usize::MAX);
        let choices = prompt_lens.len() * self.n;
        let prompt_tokens = prompt_lens.iter().sum::<usize>() * self.n;
        let minute = usize::try_from(tokens_per_minute.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let minute = minute.saturating_sub(prompt_tokens) / choices.max(1);
        let max_tokens = prompt_lens.iter().map(|&prompt_len| {
            if let Some(asked) = asked {
                return Ok(asked);
            }
            let most = limits
                .scheduler
                .max_model_len
                .min(limits.scheduler.num_blocks.saturating_mul(BLOCK_SIZE));
            let room = most.checked_sub(prompt_len).filter(|&room| room > 0);
            let room = room.ok_or_else(|| ApiError::prompt_too_long(prompt_len, most))?;
            // A prompt over its tenant's limits is refused by them, in their words.
            let blocks = blocks.saturating_mul(BLOCK_SIZE).saturating_sub(prompt_len);
            let room = u32::try_from(room.min(blocks.min(minute).max(1))).unwrap_or(u32::MAX);
            Ok(default.map_or(room, |default| default.min(room)))
        });
        let max_tokens: Vec<u32> = max_tokens.collect::<Result<_, ApiError>>()?;
        let least = max_tokens.iter().copied().min().unwrap_or(0);
        if asked.is_none() && self.params.min_tokens > least {
            let message = format!(
                "min_tokens is {}, but at most {least} tokens are generated here where no \
                 maximum is given",
                self.params.min_tokens
            );
            return Err(ApiError::invalid(Some("min_tokens"), message));
        }
        let in_all = prompt_tokens + max_tokens.iter().map(|&n| n as usize).sum::<usize>() * self.n;
        match tokens_per_minute.filter(|&limit| in_all as u64 > limit) {
            None => Ok(max_tokens),
            Some(tokens_per_minute) => {
                let max_tokens = asked.unwrap_or(least) as usize;
                let refusal = SubmitError::ExceedsMinute {
                    choices,
                    prompt_tokens,
                    max_tokens,
                    tokens_per_minute,
                };
                Err(refusal.into())
            }
        }
    }

    /// The parameters of one choice. Choices of one request differ by their
    /// seeds: the request's own plus the choice's index, or random ones.
    fn params_of(&self, generator: &Generator, choice: usize) -> SamplingParams {
        let seed = if self.has_seed {
            self.params.seed.wrapping_add(choice as u64)
        } else {
            generator.next_seed()
        };
        SamplingParams { seed, ..self.params.clone() }
    }
}

/// The number of a request's priority. On a server with tenants a request has one of those
/// that its tenant's file names, under whatever policy: otherwise any tenant could put
/// itself before all others. Without one it has 0, or the first that its tenant may use if
/// that is later.
fn priority(
    given: Option<Priority>,
    caller: &TenantAuth,
    policy: SchedulingPolicy,
) -> Result<i32, ApiError> {
    let named = caller.entry().map(|entry| &entry.priorities).filter(|named| !named.is_empty());
    let first = named.and_then(|named| named.values().copied().min());
    let default = first.unwrap_or(0).max(0);
    let number = match &given {
        None => return Ok(default),
        Some(Priority::Number(number)) if *number == default => return Ok(default),
        Some(_) if policy == SchedulingPolicy::Fcfs => {
            let message =
                "priority has no meaning on this server: it serves first come, first served";
            return Err(ApiError::invalid(Some("priority"), message));
        }
        Some(Priority::Name(name)) => named.and_then(|named| named.get(name)).copied(),
        Some(Priority::Number(number)) => {
            let may_use = |named: &BTreeMap<_, _>| named.values().any(|value| value == number);
            let is_allowed = named.map_or(!caller.is_configured(), may_use);
            is_allowed.then_some(*number)
        }
    };
    number.ok_or_else(|| {
        let given = match given {
            Some(Priority::Name(name)) => format!("{name:?}"),
            Some(Priority::Number(number)) => number.to_string(),
            None => String::new(),
        };
        let accepted = match named {
            Some(named) => {
                let names = named.iter().map(|(name, number)| format!("{name:?} ({number})"));
                format!("one of this tenant's: {}", names.collect::<Vec<_>>().join(", "))
            }
            None if caller.is_configured() => {
                "left out or 0: no priorities are configured for this tenant".to_owned()
            }
            None => "a whole number: no names are configured".to_owned(),
        };
        let message = format!("priority is {given}, but must be {accepted}");
        ApiError::invalid(Some("priority"), message)
    })
}

fn prompt_logprobs(asked: Option<i64>, stream: bool) -> Result<Option<u32>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    let refuse = |message: String| Err(ApiError::invalid(Some("prompt_logprobs"), message));
    match u32::try_from(asked).ok().filter(|&asked| asked <= MAX_LOGPROBS) {
        None => refuse(format!("prompt_logprobs is {asked}, but must be from 0 to {MAX_LOGPROBS}")),
        Some(_) if stream => refuse(
            "prompt_logprobs cannot be used with stream: true: they come with a whole answer"
                .to_owned(),
        ),
        asked => Ok(asked),
    }
}

fn truncation(asked: Option<i64>, max_model_len: usize) -> Result<Option<Truncation>, ApiError> {
    match asked {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::Fit)),
        Some(asked) => {
            let tokens = usize::try_from(asked).ok().filter(|n| (1..=max_model_len).contains(n));
            let tokens = tokens.ok_or_else(|| {
                let message = format!(
                    "truncate_prompt_tokens is {asked}, but must be from 1 to {max_model_len}, or \
                     -1 for as many tokens as the context has room for"
                );
                ApiError::invalid(Some("truncate_prompt_tokens"), message)
            })?;
            Ok(Some(Truncation::Last(tokens)))
        }
    }
}

fn timeout(seconds: Option<f64>) -> Result<Option<Duration>, ApiError> {
    let Some(seconds) = seconds else { return Ok(None) };
    if !TIMEOUT_SECONDS.contains(&seconds) {
        let message = format!("timeout is {seconds}, but must be from 0.001 to 86400 seconds");
        return Err(ApiError::invalid(Some("timeout"), message));
    }
    Ok(Some(Duration::from_secs_f64(seconds)))
}

fn logit_bias(bias: Option<BTreeMap<String, f32>>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let token_id = |text: &str| {
        let whole = || text.parse().ok().filter(|id: &f64| id.fract() == 0.0 && *id >= 0.0);
        let from_float = || whole().filter(|&id| id <= f64::from(TokenId::MAX));
        text.parse().ok().or_else(|| from_float().map(|id| id as TokenId))
    };
    let entry = |(token, bias): (String, f32)| match token_id(&token) {
        Some(token) => Ok((token, bias)),
        None => {
            let message = format!("logit_bias has the key {token:?}, but keys must be token ids");
            Err(ApiError::invalid(Some("logit_bias"), message))
        }
    };
    bias.unwrap_or_default().into_iter().map(entry).collect()
}
