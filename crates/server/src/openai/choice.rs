//! One choice of a response: from a request's events to text.

use std::{collections::VecDeque, mem, sync::Arc};

use sconce_engine::{FinishReason, RequestError, RequestEvent, RequestStream};
use sconce_text::{Detokenizer, StopStrings};
use sconce_types::{Metering, TokenId, TokenLogprobs};
use serde::Serialize;

use super::params::Settings;
use crate::{access_log::RequestStats, error::ApiError, state::AppState};

/// A choice that is being generated. Dropping it cancels its request.
pub(super) struct Choice {
    /// `None` once the choice has ended: a stop string cancels its request.
    stream: Option<RequestStream>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    num_tokens: usize,
    used: Used,
    stats: Option<Arc<RequestStats>>,
    /// Generated tokens are not shown, only the prompt's log-probabilities are.
    hide_output: bool,
    ready: VecDeque<RequestEvent>,
}

/// What a choice got since the last one.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    /// Tokens generated so far, in all.
    pub(super) num_tokens: usize,
    /// What they took.
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

impl Choice {
    pub(super) fn submit(
        state: &AppState,
        settings: &Settings,
        prompt: &[TokenId],
        index: usize,
        hide_output: bool,
    ) -> Result<Self, ApiError> {
        let request = settings.request_of(state, prompt, index);
        let stream = state.engine.submit(request)?;
        let stats = settings.stats().cloned();
        if let Some(stats) = stats.as_ref().filter(|_| index.is_multiple_of(settings.n)) {
            stats.note_prompt(prompt.len());
        }
        Ok(Self {
            stream: Some(stream),
            stats,
            detokenizer: state.text.detokenizer(prompt, settings.skip_special_tokens),
            stops: settings.stops.clone(),
            num_tokens: 0,
            used: Used::default(),
            hide_output,
            ready: VecDeque::new(),
        })
    }

    /// Waits for the next piece, and takes with it all that is there already;
    /// `None` once the choice has ended.
    pub(super) async fn next(&mut self) -> Option<Result<Delta, RequestError>> {
        let stream = self.stream.as_mut()?;
        self.ready.push_back(stream.next().await?);
        while let Some(event) = stream.try_next() {
            self.ready.push_back(event);
        }
        let (mut delta, before) = (Delta::default(), self.num_tokens);
        for event in mem::take(&mut self.ready) {
            if let Err(error) = self.take(event, &mut delta) {
                self.stream = None;
                return Some(Err(error));
            }
            if delta.finish.is_some() {
                self.stream = None;
                break;
            }
        }
        if let Some(stats) = &self.stats {
            stats.note_generated(self.num_tokens - before, self.used.metering.queue_ns);
        }
        delta.num_tokens = self.num_tokens;
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
        self.num_tokens += 1;
        delta.logprobs.extend(event.logprobs);
        let mut text = String::new();
        self.detokenizer.push(event.token, &mut text);
        if event.finish.is_some() {
            self.detokenizer.finish(&mut text);
        }
        if let Some(index) = self.stops.push(&text, &mut delta.text) {
            let stop = StopReason::Text(self.stops.text(index).to_owned());
            delta.finish = Some(Finish { reason: "stop", stop_reason: Some(stop) });
            return Ok(());
        }
        delta.finish = event.finish.map(|finish| match finish {
            FinishReason::Length => Finish { reason: "length", stop_reason: None },
            FinishReason::Stop { stop_token } => {
                Finish { reason: "stop", stop_reason: stop_token.map(StopReason::Token) }
            }
        });
        if delta.finish.is_some() {
            self.stops.finish(&mut delta.text);
        }
        Ok(())
    }

    /// Collects the whole choice.
    pub(super) async fn collect(mut self) -> Result<Delta, RequestError> {
        let mut whole = Delta::default();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            whole.text.push_str(&delta.text);
            whole.logprobs.extend(delta.logprobs);
            whole.prompt_logprobs.extend(delta.prompt_logprobs);
            whole.num_tokens = delta.num_tokens;
            whole.used = delta.used;
            whole.finish = delta.finish.or(whole.finish);
        }
        Ok(whole)
    }
}
