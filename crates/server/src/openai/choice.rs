//! One choice of a response: from a request's events to text.

use std::{collections::VecDeque, mem, sync::Arc};

use sconce_engine::{End, RequestError, RequestEvent, RequestStream, StopCheck};
use sconce_text::Detokenizer;
use sconce_types::{Metering, TokenId, TokenLogprobs};
use serde::Serialize;

use super::{
    decoder::{Decoder, StopFinder},
    params::Settings,
};
use crate::{access_log::RequestStats, error::ApiError, state::AppState};

/// A choice that is being generated. Dropping it cancels its request.
pub(super) struct Choice {
    /// `None` once the choice has ended: a stop string cancels its request.
    stream: Option<RequestStream>,
    decoder: Decoder,
    /// Characters of text so far, where log-probabilities are wanted.
    num_chars: usize,
    used: Used,
    stats: Option<Arc<RequestStats>>,
    /// Generated tokens are not shown, only the prompt's log-probabilities are.
    hide_output: bool,
    ready: VecDeque<RequestEvent>,
    /// How it failed, after what is given out first.
    failure: Option<RequestError>,
}

/// What a choice got since the last one.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// For each of `logprobs`, the characters of the choice's text before its token.
    pub(super) offsets: Vec<usize>,
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    /// What the choice has used so far, in all.
    pub(super) used: Used,
    pub(super) finish: Option<Finish>,
}

/// What a choice has used, and the price of that in billionths of the currency.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) metering: Metering,
    pub(super) price_nano: Option<u64>,
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finish {
    pub(super) reason: &'static str,
    pub(super) stop_reason: Option<StopReason>,
}

/// vLLM's `stop_reason`: the stop string, or the stop token.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Text(String),
    Token(TokenId),
}

/// What the choices of a prompt start from.
pub(super) struct Start {
    pub(super) prompt: Vec<TokenId>,
    /// Tokens that each may generate.
    pub(super) max_tokens: u32,
    /// Has seen the prompt.
    pub(super) detokenizer: Detokenizer,
}

impl Choice {
    pub(super) fn submit(
        state: &AppState,
        settings: &Settings,
        start: &Start,
        index: usize,
        hide_output: bool,
    ) -> Result<Self, ApiError> {
        let Start { prompt, max_tokens, detokenizer } = start;
        let mut request = settings.request_of(state, prompt, *max_tokens, index);
        request.scores_prompt = hide_output;
        let min_tokens = settings.params.min_tokens as usize;
        let decoder = || Decoder::new(detokenizer.clone(), settings.stops.clone(), min_tokens);
        let finds_stops = settings.has_stops && !hide_output;
        let finder = || -> Box<dyn StopCheck> {
            Box::new(StopFinder { decoder: decoder(), text: String::new() })
        };
        let stop = finds_stops.then(finder);
        let stream = state.engine.submit_until(request, stop)?;
        let stats = settings.stats().cloned();
        if let Some(stats) = stats.as_ref().filter(|_| index.is_multiple_of(settings.n)) {
            stats.note_prompt(prompt.len());
        }
        Ok(Self {
            stream: Some(stream),
            stats,
            decoder: decoder(),
            num_chars: 0,
            used: Used::default(),
            hide_output,
            ready: VecDeque::new(),
            failure: None,
        })
    }

    /// Waits for the next piece, and takes with it all that is there already;
    /// `None` once the choice has ended.
    pub(super) async fn next(&mut self) -> Option<Result<Delta, RequestError>> {
        if let Some(error) = self.failure.take() {
            self.stream = None;
            return Some(Err(error));
        }
        let stream = self.stream.as_mut()?;
        self.ready.push_back(stream.next().await?);
        while let Some(event) = stream.try_next() {
            self.ready.push_back(event);
        }
        let (mut delta, before) = (Delta::default(), self.used.metering.generated_tokens);
        for (index, event) in mem::take(&mut self.ready).into_iter().enumerate() {
            match self.take(event, &mut delta) {
                Ok(()) => {}
                Err(error) if index == 0 => {
                    self.stream = None;
                    return Some(Err(error));
                }
                // What came before it was generated and is billed.
                Err(error) => self.failure = Some(error),
            }
            if delta.finish.is_some() {
                self.stream = None;
                break;
            }
        }
        if let Some(stats) = &self.stats {
            let Metering { generated_tokens, queue_ns, .. } = self.used.metering;
            stats.note_generated((generated_tokens - before) as usize, queue_ns);
        }
        delta.used = self.used;
        Some(Ok(delta))
    }

    fn take(&mut self, event: RequestEvent, delta: &mut Delta) -> Result<(), RequestError> {
        let event = match event {
            RequestEvent::Failed(error) => return Err(error),
            RequestEvent::PromptLogprobs { logprobs, .. } => {
                delta.prompt_logprobs.extend(logprobs);
                return Ok(());
            }
            RequestEvent::Token(event) => event,
        };
        self.used = Used { metering: event.usage, price_nano: event.price_nano };
        if self.hide_output {
            delta.finish = event.finish.map(|_| Finish { reason: "length", stop_reason: None });
            return Ok(());
        }
        let wants_logprobs = event.logprobs.is_some();
        if wants_logprobs {
            delta.offsets.push(self.num_chars);
        }
        delta.logprobs.extend(event.logprobs);
        let found = self.decoder.push(event.token, event.finish, &mut delta.text);
        if wants_logprobs {
            self.num_chars += self.decoder.piece().chars().count();
        }
        if let Some(index) = found {
            let stop = StopReason::Text(self.decoder.stop(index).to_owned());
            delta.finish = Some(Finish { reason: "stop", stop_reason: Some(stop) });
            return Ok(());
        }
        delta.finish = event.finish.map(|end| match end {
            End::Stop { token } => {
                Finish { reason: end.name(), stop_reason: token.map(StopReason::Token) }
            }
            end => Finish { reason: end.name(), stop_reason: None },
        });
        Ok(())
    }

    /// Collects the whole choice.
    pub(super) async fn collect(mut self) -> Result<Delta, RequestError> {
        let mut whole = Delta::default();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            whole.text.push_str(&delta.text);
            whole.logprobs.extend(delta.logprobs);
            whole.offsets.extend(delta.offsets);
            whole.prompt_logprobs.extend(delta.prompt_logprobs);
            whole.used = delta.used;
            whole.finish = delta.finish.or(whole.finish);
        }
        Ok(whole)
    }
}
