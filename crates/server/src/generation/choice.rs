//! One choice of a response: from a request's events to text.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::Stream as _;
use sconce_engine::{End, RequestError, RequestEvent, RequestStream, StopCheck, TokenConstraint};
use sconce_text::Detokenizer;
use sconce_types::{Metering, NotReady, TokenId, TokenLogprobs};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answers::{AnswerReader, AnswerReading, Part, Told},
    conversation::Prompt,
    decoder::{Decoder, StopFinder},
    generator::Generator,
    settings::Settings,
    structure::{PATIENCE, Structure, Waiting},
    thought_budget::BoundedThoughts,
    tools::Tools,
};
use crate::{access_log::RequestStats, error::ApiError, traces::SequenceTrace};

/// A choice that is being generated. Dropping it cancels its request.
pub(crate) struct Choice {
    /// `None` once the choice has ended: a stop string cancels its request.
    stream: Option<RequestStream>,
    /// What makes its request ready, where it waits for that.
    pub(crate) waiting: Option<Box<Waiting>>,
    decoder: Decoder,
    /// Where the text is an answer's, which may hold thoughts and calls.
    reader: Option<Box<AnswerReader>>,
    /// Characters of text so far, where log-probabilities are wanted.
    num_chars: usize,
    used: Used,
    stats: Option<Arc<RequestStats>>,
    /// Where the request is traced.
    trace: Option<Box<SequenceTrace>>,
    /// Whether deltas tell the tokens' ids.
    returns_token_ids: bool,
    /// Generated tokens are not shown, only the prompt's log-probabilities are.
    hide_output: bool,
    ready: VecDeque<RequestEvent>,
    /// How it failed, after what is given out first.
    failure: Option<RequestError>,
}

/// What a choice got since the last one.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// All of the choice is text.
    pub(crate) is_plain: bool,
    /// Of such a choice.
    pub(crate) text: String,
    /// Of another.
    pub(crate) parts: Vec<Part>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Where they were asked for.
    pub(crate) token_ids: Vec<TokenId>,
    /// Of an answer's tokens those that say its text, thoughts and calls left out.
    text_logprobs: Vec<TokenLogprobs>,
    /// For each of `logprobs`, the characters of the choice's text before its token.
    pub(crate) offsets: Vec<usize>,
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    /// What the choice has used so far, in all.
    pub(crate) used: Used,
    pub(crate) finish: Option<Finish>,
}

impl Delta {
    /// What it brings of an answer.
    pub(crate) fn take_parts(&mut self) -> Vec<Part> {
        if self.is_plain && !self.text.is_empty() {
            return vec![Part::Text(mem::take(&mut self.text))];
        }
        mem::take(&mut self.parts)
    }

    /// The log-probabilities of tokens that are no thoughts and no calls.
    pub(crate) fn text_logprobs(&self) -> &[TokenLogprobs] {
        if self.is_plain { &self.logprobs } else { &self.text_logprobs }
    }
}

/// What a choice has used, and the price of that in billionths of the currency.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) metering: Metering,
    pub(crate) price_nano: Option<u64>,
    pub(crate) reasoning_tokens: u32,
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finish {
    pub(crate) reason: FinishReason,
    pub(crate) stop_reason: Option<StopReason>,
}

impl Finish {
    /// Whether the model itself ended, or was at its end.
    fn is_natural(&self) -> bool {
        self.reason == FinishReason::Stop && !matches!(self.stop_reason, Some(StopReason::Text(_)))
    }
}

/// Why a choice ended: the model's own end, a stop text or a stop token; its most tokens; or
/// calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

impl FinishReason {
    fn of(end: End) -> Self {
        if end == End::Length { Self::Length } else { Self::Stop }
    }
}

/// vLLM's `stop_reason`: the stop string, or the stop token.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum StopReason {
    Text(String),
    Token(#[schema(inline)] TokenId),
}

/// What the choices of a prompt start from.
pub(crate) struct Start {
    pub(crate) prompt: Vec<TokenId>,
    /// Tokens that each may generate.
    pub(crate) max_tokens: u32,
    /// Has seen the prompt.
    pub(crate) detokenizer: Detokenizer,
    /// Where choices are answers that may hold more than text.
    pub(crate) reading: Option<AnswerReading>,
}

impl Start {
    /// Of answers to a conversation.
    pub(crate) fn of_answer(
        generator: &Generator,
        settings: &Settings,
        tools: &Tools,
        prompt: Prompt,
        max_tokens: u32,
    ) -> Result<Self, ApiError> {
        let Prompt { tokens, end } = prompt;
        let is_form = settings.structure.as_ref().is_some_and(Structure::is_form);
        let reading = generator.answers.reading(tools, end, is_form, &generator.ids)?;
        let mut detokenizer = generator.text.detokenizer(&tokens, settings.skip_special_tokens);
        detokenizer.show(Arc::clone(&reading.markers));
        let reading = (!reading.is_plain()).then_some(reading);
        Ok(Self { prompt: tokens, max_tokens, detokenizer, reading })
    }
}

impl Choice {
    pub(crate) fn submit(
        generator: &Generator,
        settings: &Settings,
        start: &Start,
        index: usize,
        hide_output: bool,
    ) -> Result<Self, ApiError> {
        let Start { prompt, max_tokens, detokenizer, reading } = start;
        let mut request = settings.request_of(generator, prompt, *max_tokens, index);
        request.scores_prompt = hide_output;
        let traced = settings.caller.trace.as_ref();
        let trace = traced.map(|trace| trace.sequence(Some(*max_tokens)));
        request.clock = trace.as_ref().map(|trace| trace.clock.clone());
        let min_tokens = settings.params.min_tokens as usize;
        let decoder = || Decoder::new(detokenizer.clone(), settings.stops.clone(), min_tokens);
        let single = reading.as_ref().filter(|reading| reading.ends_with_a_call());
        let finds_stops = (settings.has_stops || single.is_some()) && !hide_output;
        let finder = || -> Box<dyn StopCheck> {
            let reader = single.map(AnswerReader::new);
            Box::new(StopFinder { decoder: decoder(), text: String::new(), reader })
        };
        let stop = finds_stops.then(finder);
        // Without an answer there is nothing to give a form.
        let (stream, waiting) = if settings.structure.is_some() && !hide_output {
            let reason = NotReady::Grammar;
            let taken = generator.engine.submit_not_ready(request, stop, reason, PATIENCE);
            let (stream, signal) = taken?;
            (stream, Some(Box::new(Waiting::new(signal, start, settings))))
        } else {
            let constraint = constraint(settings, start).filter(|_| !hide_output);
            let stream = match constraint {
                Some(constraint) => {
                    generator.engine.submit_constrained(request, stop, constraint)?
                }
                None => generator.engine.submit_until(request, stop)?,
            };
            (stream, None)
        };
        let stats = settings.stats().cloned();
        if index.is_multiple_of(settings.n) {
            generator.engine.metrics().request_params_n.observe(settings.n as f64);
            if let Some(stats) = &stats {
                stats.note_prompt(prompt.len());
            }
            if let Some(trace) = traced {
                trace.note_prompt(prompt.len());
            }
        }
        Ok(Self {
            stream: Some(stream),
            waiting,
            stats,
            trace,
            decoder: decoder(),
            reader: reading.as_ref().map(AnswerReader::new).map(Box::new),
            num_chars: 0,
            used: Used::default(),
            returns_token_ids: settings.returns_token_ids,
            hide_output,
            ready: VecDeque::new(),
            failure: None,
        })
    }

    /// Waits for the next piece, and takes with it all that is there already;
    /// `None` once the choice has ended.
    pub(crate) async fn next(&mut self) -> Option<Result<Delta, RequestError>> {
        poll_fn(|cx| self.poll_delta(cx)).await
    }

    /// The same for streams.
    pub(crate) fn poll_delta(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Delta, RequestError>>> {
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Some(Err(self.failed(error))));
        }
        let Some(stream) = self.stream.as_mut() else { return Poll::Ready(None) };
        match ready!(Pin::new(stream).poll_next(cx)) {
            None => Poll::Ready(None),
            Some(event) => Poll::Ready(Some(self.take_ready(event))),
        }
    }

    /// Takes an event and all that are there already.
    fn take_ready(&mut self, event: RequestEvent) -> Result<Delta, RequestError> {
        self.ready.push_back(event);
        while let Some(stream) = &mut self.stream
            && let Some(event) = stream.try_next()
        {
            self.ready.push_back(event);
        }
        let (mut delta, before) = (Delta::default(), self.used.metering.generated_tokens);
        for (index, event) in mem::take(&mut self.ready).into_iter().enumerate() {
            match self.take(event, &mut delta) {
                Ok(()) => {}
                Err(error) if index == 0 => return Err(self.failed(error)),
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
        if let Some(trace) = &mut self.trace {
            trace.usage = self.used.metering;
        }
        delta.used = self.used;
        delta.is_plain = self.reader.is_none();
        Ok(delta)
    }

    /// It ends with this.
    fn failed(&mut self, error: RequestError) -> RequestError {
        self.stream = None;
        if let Some(trace) = &self.trace {
            trace.note_error(&error);
        }
        error
    }

    fn take(&mut self, event: RequestEvent, delta: &mut Delta) -> Result<(), RequestError> {
        let event = match event {
            RequestEvent::Failed(error) => return Err(error),
            RequestEvent::Embedding(_) => return Ok(()),
            RequestEvent::PromptLogprobs { logprobs, .. } => {
                delta.prompt_logprobs.extend(logprobs);
                return Ok(());
            }
            RequestEvent::Token(event) => event,
        };
        self.used.metering = event.usage;
        self.used.price_nano = event.price_nano;
        if self.hide_output {
            delta.finish =
                event.finish.map(|_| Finish { reason: FinishReason::Length, stop_reason: None });
            return Ok(());
        }
        if self.returns_token_ids {
            delta.token_ids.push(event.token);
        }
        let wants_logprobs = event.logprobs.is_some();
        if wants_logprobs {
            delta.offsets.push(self.num_chars);
        }
        let logprobs_before = delta.logprobs.len();
        delta.logprobs.extend(event.logprobs);
        let before = delta.text.len();
        let found = self.decoder.push(event.token, event.finish, &mut delta.text);
        if wants_logprobs {
            self.num_chars += self.decoder.piece().chars().count();
        }
        if self.reader.is_none() && found.is_none() && event.finish.is_none() {
            // Most tokens.
            return Ok(());
        }
        let mut finish = match (found, event.finish) {
            (Some(index), _) => {
                let stop = StopReason::Text(self.decoder.stop(index).to_owned());
                Some(Finish { reason: FinishReason::Stop, stop_reason: Some(stop) })
            }
            (None, Some(end)) => {
                let token = if let End::Stop { token } = end { token } else { None };
                let stop_reason = token.map(StopReason::Token);
                Some(Finish { reason: FinishReason::of(end), stop_reason })
            }
            (None, None) => None,
        };
        if let Some(reader) = &mut self.reader {
            let was_thinking = reader.is_reasoning();
            let told = reader.push(&delta.text[before..], finish.is_some(), &mut delta.parts);
            if was_thinking && !reader.is_reasoning() {
                // What was held back was the thought's end.
                reader.held_logprobs.clear();
            }
            let fresh = delta.logprobs.get(logprobs_before..).unwrap_or_default();
            if told != Told::Nothing || !was_thinking {
                reader.held_logprobs.extend_from_slice(fresh);
            }
            match told {
                Told::Text => delta.text_logprobs.append(&mut reader.held_logprobs),
                Told::Other => reader.held_logprobs.clear(),
                // An end token's are those of the text that it ends.
                Told::Nothing if finish.is_some() && !reader.has_calls() => {
                    delta.text_logprobs.append(&mut reader.held_logprobs);
                }
                Told::Nothing => {}
            }
            delta.text.truncate(before);
            self.used.reasoning_tokens = reader.reasoning_tokens;
            if reader.is_over && finish.is_none() {
                finish = Some(Finish { reason: FinishReason::Stop, stop_reason: None });
            }
            if let Some(finish) = finish.as_mut().filter(|finish| finish.is_natural())
                && reader.has_calls()
            {
                finish.reason = FinishReason::ToolCalls;
            }
        }
        delta.finish = finish;
        Ok(())
    }

    /// Collects the whole choice.
    pub(crate) async fn collect(mut self) -> Result<Delta, RequestError> {
        let mut whole = Delta::default();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            whole.is_plain = delta.is_plain;
            whole.text.push_str(&delta.text);
            whole.parts.extend(delta.parts);
            whole.logprobs.extend(delta.logprobs);
            whole.token_ids.extend(delta.token_ids);
            whole.offsets.extend(delta.offsets);
            whole.prompt_logprobs.extend(delta.prompt_logprobs);
            whole.used = delta.used;
            whole.finish = delta.finish.or(whole.finish);
        }
        Ok(whole)
    }
}

/// What bounds a choice's tokens where no grammar does.
fn constraint(settings: &Settings, start: &Start) -> Option<Box<dyn TokenConstraint>> {
    let thoughts = BoundedThoughts::of(settings, start);
    let thoughts = thoughts.map(|thoughts| -> Box<dyn TokenConstraint> { Box::new(thoughts) });
    match &settings.token_limits {
        Some(limits) => Some(limits.around(thoughts)),
        None => thoughts,
    }
}

/// A choice's stream ends with a finish or an error, and this is no error.
pub(crate) fn ended(finish: Option<Finish>) -> Finish {
    finish.expect("a choice that did not fail has finished")
}
