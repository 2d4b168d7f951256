//! Conversations and texts of the program itself, for the library: no wire, and no status codes.
//! A [`ChatRequest`] is read into [`generation`](crate::generation) as requests over a wire are,
//! and its answer comes as typed parts.

mod answer;
mod blocking;
mod embeddings;
mod messages;
mod refusal;

pub use answer::{Answer, AnswerPart, Answered, Finish};
pub use blocking::block_on;
pub use embeddings::EmbeddingOptions;
pub use messages::{InvalidArguments, Message, ToolCall};
pub use refusal::Refusal;

use sconce_grammar::Source;
use sconce_types::{SamplingParams, TenantId};
use serde_json::{Map, Value};

use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        bound_calls,
        choice::{Choice, Start},
        conversation::Conversation,
        generator::Generator,
        settings::Settings,
        structure::{self, Structure},
        tools::{Tool, ToolChoice, Tools},
    },
};

/// A conversation that the model is to go on from, and how.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// How tokens are chosen, and how many there may be. The model's end tokens end an answer
    /// unless others are named.
    pub params: SamplingParams,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// What it may or must do with them.
    pub tool_choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel_tool_calls: bool,
    /// The JSON schema that the answer's text must follow, if it must. Excludes tools.
    pub json_schema: Option<Value>,
    /// Texts that end the answer, and are left out of it.
    pub stop: Vec<String>,
    /// Variables of the chat template, such as `enable_thinking`.
    pub chat_template_kwargs: Map<String, Value>,
    /// Whose request it is.
    pub tenant: TenantId,
}

impl ChatRequest {
    /// A conversation without tools, of the engine's only tenant.
    #[must_use]
    pub fn new(messages: impl IntoIterator<Item = Message>, params: SamplingParams) -> Self {
        Self {
            messages: messages.into_iter().collect(),
            params,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            json_schema: None,
            stop: Vec::new(),
            chat_template_kwargs: Map::new(),
            tenant: TenantId(0),
        }
    }

    /// The same with tools that the model may call.
    #[must_use]
    pub fn tools(self, tools: impl IntoIterator<Item = Tool>) -> Self {
        Self { tools: tools.into_iter().collect(), ..self }
    }

    /// The same with what the model may or must do with its tools.
    #[must_use]
    pub fn tool_choice(self, tool_choice: ToolChoice) -> Self {
        Self { tool_choice, ..self }
    }

    /// The same with a schema that the answer's text must follow.
    #[must_use]
    pub fn json_schema(self, schema: Value) -> Self {
        Self { json_schema: Some(schema), ..self }
    }
}

impl Generator {
    /// Submits a conversation; its answer comes as it is generated. Templating, tokenizing and
    /// the compilation of a schema that was not seen before happen on this thread: some
    /// milliseconds, and a second at most.
    ///
    /// # Errors
    /// A request that cannot run, or not now. Nothing of it remains in the engine.
    pub fn answer(&self, request: &ChatRequest) -> Result<Answer, Refusal> {
        Ok(Answer::new(self.submit(request)?))
    }

    fn submit(&self, request: &ChatRequest) -> Result<Choice, ApiError> {
        let caller = TenantAuth::in_process(request.tenant, self.sole.clone());
        let ChatRequest { params, stop, tool_choice, .. } = request;
        let mut settings = Settings::in_process(self, params.clone(), stop.clone(), caller)?;
        if let Some(schema) = &request.json_schema {
            let structure = Structure::new(Source::JsonSchema(schema.clone()), "json_schema");
            settings.set_structure(self, structure)?;
        }
        let tools = Tools::new(
            request.tools.clone(),
            tool_choice.clone(),
            request.parallel_tool_calls,
            "tools",
            "tool_choice",
        )?;
        bound_calls::bound(self, &mut settings, &tools)?;
        let conversation = Conversation {
            messages: messages::read(&request.messages)?,
            tools: &tools,
            field: "messages",
            add_generation_prompt: None,
            continues: false,
            template_kwargs: request.chat_template_kwargs.clone(),
        };
        let longest = self.engine.limits().scheduler.max_model_len;
        let prompt = conversation.encode(&self.text, false, longest)?;
        let start = Start::of_answer(self, &settings, &tools, prompt, params.max_tokens)?;
        // Before anything is submitted: what is refused takes no place in the queue.
        let grammar = structure::compiled(self, &settings)?;
        let mut choice = Choice::submit(self, &settings, &start, 0, false)?;
        if let (Some(grammar), Some(waiting)) = (grammar, choice.waiting.take()) {
            waiting.make_ready(&grammar);
        }
        Ok(choice)
    }
}
