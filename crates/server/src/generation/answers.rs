//! How a model's answers are read: which formats it writes calls and thoughts in.

use std::sync::Arc;

use sconce_text::{
    AnswerEvent, AnswerParser, AnswerTool, Beside, ReasoningFormat, TextModel, ToolFormat,
};
use sconce_types::{TokenId, TokenLogprobs};

use super::{thought_budget::ThoughtBudget, tools::Tools};
use crate::{error::ApiError, state::IdSource};

/// The formats of the served model.
#[derive(Clone, Debug)]
pub(crate) struct AnswerFormats {
    tools: Option<ToolFormat>,
    reasoning: Option<ReasoningFormat>,
    /// What begins a thought, and what ends one, where one thing does.
    opening: Option<Arc<[TokenId]>>,
    closing: Option<Arc<[TokenId]>>,
    /// What models write behind a thought.
    line_break: Arc<[TokenId]>,
    /// Special tokens that mark thoughts, and those with the ones that mark calls.
    thought_markers: Arc<[TokenId]>,
    all_markers: Arc<[TokenId]>,
}

impl AnswerFormats {
    /// What an operator chose, or what the chat template writes.
    pub(crate) fn new(
        text: &TextModel,
        tools: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
    ) -> Self {
        let template = text.chat_template_source();
        // Without a template that knows tools, prompts ask for calls in Hermes' form.
        let fallback = || (!text.takes_tools()).then_some(ToolFormat::Hermes);
        let tools = tools.or_else(|| ToolFormat::detect(&template)).or_else(fallback);
        let reasoning = reasoning.or_else(|| ReasoningFormat::detect(&template));
        let markers = |tools| -> Arc<[TokenId]> {
            let parser = AnswerParser::new(tools, reasoning, Arc::default(), "");
            text.special_tokens(|token| parser.wants(token)).into()
        };
        // A tokenizer that refuses a few characters has no such token.
        let tokens = |text_of: &str| text.encode(text_of, false).ok().map(Arc::<[TokenId]>::from);
        Self {
            tools,
            reasoning,
            opening: reasoning.and_then(ReasoningFormat::opening).and_then(tokens),
            closing: reasoning.and_then(ReasoningFormat::closing).and_then(tokens),
            line_break: tokens("\n\n").unwrap_or_default(),
            thought_markers: markers(None),
            all_markers: markers(tools),
        }
    }

    /// Holds thoughts to so many tokens; `None` for a model that marks none.
    ///
    /// # Errors
    /// The model's thoughts have no one end that could be written for it.
    pub(crate) fn thought_budget(
        &self,
        tokens: u32,
        field: &str,
    ) -> Result<Option<ThoughtBudget>, ApiError> {
        match (&self.reasoning, &self.closing) {
            (None, _) => Ok(None),
            (Some(_), Some(closing)) => Ok(Some(ThoughtBudget::new(tokens, Arc::clone(closing)))),
            (Some(_), None) => {
                let message = format!("{field}: this model's thoughts cannot be held to a budget");
                Err(ApiError::invalid(Some(field), message))
            }
        }
    }

    /// A grammar of these tools' calls, or of what may be beside; `None` where there can be none.
    pub(crate) fn grammar(
        &self,
        text: &TextModel,
        tools: &[AnswerTool],
        beside: Beside<'_>,
        is_parallel: bool,
    ) -> Option<String> {
        let special = |token: &str| text.special_tokens(|other| other == token).first().copied();
        self.tools?.grammar(tools, beside, is_parallel, &special)
    }

    /// Whether an analysis of Harmony's is read as a thought.
    pub(crate) fn reads_analysis(&self) -> bool {
        self.reasoning == Some(ReasoningFormat::OpenAiGptOss)
    }

    /// Whether JSON of a schema cannot be told from the model's calls.
    pub(crate) fn may_begin_as_call(&self, schema: &serde_json::Value) -> bool {
        self.tools.is_some_and(|format| format.may_begin_as_call(schema))
    }

    /// How the answers to a prompt with this end are read.
    pub(crate) fn reading(
        &self,
        tools: &Tools,
        prompt_end: String,
        is_form: bool,
        ids: &Arc<IdSource>,
    ) -> Result<AnswerReading, ApiError> {
        let format = if tools.are_offered() { self.tools } else { None };
        if tools.are_offered() && format.is_none() {
            let message = "the form in which this model writes calls is not known; the server's \
                           --tool-call-parser, or the builder's tool_call_parser, names it";
            return Err(ApiError::invalid(Some("tools"), message));
        }
        let may_think = self.reasoning.is_some_and(|format| format.may_begin_after(&prompt_end));
        let opening = self.opening.as_ref().filter(|_| may_think);
        Ok(AnswerReading {
            opening: opening.map(Arc::clone).unwrap_or_default(),
            line_break: Arc::clone(&self.line_break),
            tools: format,
            reasoning: self.reasoning,
            known: tools.answer_tools(),
            prompt_end,
            markers: Arc::clone(if format.is_some() {
                &self.all_markers
            } else {
                &self.thought_markers
            }),
            is_parallel: tools.parallel,
            is_form,
            ids: Arc::clone(ids),
        })
    }
}

/// How the choices of one request are read.
#[derive(Clone)]
pub(crate) struct AnswerReading {
    tools: Option<ToolFormat>,
    reasoning: Option<ReasoningFormat>,
    known: Arc<[AnswerTool]>,
    prompt_end: String,
    /// What an answer may open a thought with; empty if it may not, or the prompt has.
    pub(crate) opening: Arc<[TokenId]>,
    /// What may stand behind one.
    pub(crate) line_break: Arc<[TokenId]>,
    /// Special tokens that a detokenizer is to show.
    pub(crate) markers: Arc<[TokenId]>,
    is_parallel: bool,
    /// Whether the text has a form, in which markers are text.
    is_form: bool,
    ids: Arc<IdSource>,
}

impl AnswerReading {
    /// Whether all of an answer is its text.
    pub(crate) fn is_plain(&self) -> bool {
        self.tools.is_none() && self.reasoning.is_none()
    }

    /// Whether an answer is over with its first call.
    pub(crate) fn ends_with_a_call(&self) -> bool {
        self.tools.is_some() && !self.is_parallel
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Reasoning(String),
    /// A call begins; its arguments follow, JSON text.
    CallStart {
        index: usize,
        id: String,
        name: String,
    },
    CallArguments {
        index: usize,
        json: String,
    },
    CallEnd {
        index: usize,
    },
}

/// What a token's text became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is held back: it may be a part of a marker.
    Nothing,
    Text,
    /// A thought, or a call.
    Other,
}

/// Reads one choice.
pub(crate) struct AnswerReader {
    parser: AnswerParser,
    events: Vec<AnswerEvent>,
    is_parallel: bool,
    has_short_ids: bool,
    ids: Arc<IdSource>,
    has_calls: bool,
    /// It was told to end after one call, and had one.
    pub(crate) is_over: bool,
    /// Tokens of thoughts.
    pub(crate) reasoning_tokens: u32,
    /// Log-probabilities of tokens whose text is held back.
    pub(crate) held_logprobs: Vec<TokenLogprobs>,
}

impl AnswerReader {
    pub(crate) fn new(reading: &AnswerReading) -> Self {
        let AnswerReading {
            tools, reasoning, known, prompt_end, is_parallel, is_form, ids, ..
        } = reading;
        let parser = if *is_form { AnswerParser::of_form } else { AnswerParser::new };
        Self {
            parser: parser(*tools, *reasoning, Arc::clone(known), prompt_end),
            events: Vec::new(),
            is_parallel: *is_parallel,
            has_short_ids: *tools == Some(ToolFormat::Mistral),
            ids: Arc::clone(ids),
            has_calls: false,
            is_over: false,
            reasoning_tokens: 0,
            held_logprobs: Vec::new(),
        }
    }

    /// Takes the text that a token completed, and says what became of it.
    pub(crate) fn push(&mut self, text: &str, is_last: bool, out: &mut Vec<Part>) -> Told {
        self.reasoning_tokens += u32::from(self.parser.is_reasoning());
        self.parser.push(text, &mut self.events);
        if is_last {
            self.parser.finish(&mut self.events);
        }
        let mut told = Told::Nothing;
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            if self.is_over {
                break;
            }
            let part = self.part(event);
            told = match part {
                Part::Text(_) => Told::Text,
                _ if told == Told::Text => told,
                _ => Told::Other,
            };
            match (out.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(text))
                | (Some(Part::Reasoning(before)), Part::Reasoning(text)) => *before += &text,
                (
                    Some(Part::CallArguments { index: at, json: before }),
                    Part::CallArguments { index, json },
                ) if *at == index => *before += &json,
                (_, part) => out.push(part),
            }
        }
        self.events = events;
        told
    }

    /// Whether what comes next is a thought.
    pub(crate) fn is_reasoning(&self) -> bool {
        self.parser.is_reasoning()
    }

    /// Whether it has called a tool.
    pub(crate) fn has_calls(&self) -> bool {
        self.has_calls
    }

    fn part(&mut self, event: AnswerEvent) -> Part {
        match event {
            AnswerEvent::Text(text) => Part::Text(text),
            AnswerEvent::Reasoning(text) => Part::Reasoning(text),
            AnswerEvent::CallStart { index, name, id } => {
                self.has_calls = true;
                Part::CallStart { index, id: id.unwrap_or_else(|| self.new_id()), name }
            }
            AnswerEvent::CallArguments { index, json } => Part::CallArguments { index, json },
            AnswerEvent::CallEnd { index, .. } => {
                self.is_over = !self.is_parallel;
                Part::CallEnd { index }
            }
        }
    }

    fn new_id(&self) -> String {
        if self.has_short_ids {
            // Mistral's templates refuse others.
            return format!("{:09x}", self.ids.next::<u64>() & 0xf_ffff_ffff);
        }
        format!("call_{:032x}", self.ids.next::<u128>())
    }
}

/// A whole answer, in its order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    Text(String),
    Reasoning(String),
    Call(Call),
}

/// A call of a whole answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON text, as far as it was written.
    pub(crate) arguments: String,
}

/// Puts parts together.
pub(crate) fn blocks(parts: Vec<Part>) -> Vec<Block> {
    let mut out: Vec<Block> = Vec::new();
    for part in parts {
        match (part, out.last_mut()) {
            (Part::Text(text), Some(Block::Text(before)))
            | (Part::Reasoning(text), Some(Block::Reasoning(before))) => *before += &text,
            (Part::Text(text), _) => out.push(Block::Text(text)),
            (Part::Reasoning(text), _) => out.push(Block::Reasoning(text)),
            (Part::CallStart { id, name, .. }, _) => {
                out.push(Block::Call(Call { id, name, arguments: String::new() }));
            }
            (Part::CallArguments { json, .. }, Some(Block::Call(call))) => call.arguments += &json,
            (Part::CallArguments { .. } | Part::CallEnd { .. }, _) => {}
        }
    }
    out
}
