//! Tools that a model may call, and its calls.

use std::sync::Arc;

use sconce_text::AnswerTool;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Tools of a request at most.
pub(crate) const MAX_TOOLS: usize = 128;
/// Characters of a tool's name at most, as in OpenAI's API.
const MAX_NAME_CHARS: usize = 64;

/// A function that the client can run for the model.
#[derive(Clone, Debug)]
pub struct Tool {
    /// By which it is called: letters, digits, underscores, dashes and dots.
    pub name: String,
    /// What the model is told that it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Its arguments must follow the schema, whatever the model would write.
    pub strict: bool,
}

impl Tool {
    /// A tool whose arguments have this JSON schema.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
        let (name, description) = (name.into(), Some(description.into()));
        Self { name, description, parameters: Some(parameters), strict: false }
    }

    /// The same, whose arguments follow the schema whatever the model would write: a grammar
    /// bounds the answer.
    #[must_use]
    pub fn strict(self) -> Self {
        Self { strict: true, ..self }
    }
}

/// What the model may or must do with its tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// No calls: the model is not told of the tools.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// One call at least.
    Required,
    /// A call of this tool.
    Named(String),
}

/// A call in a conversation.
#[derive(Clone, Debug)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: Map<String, Value>,
}

/// A request's tools, checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    pub(crate) list: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub(crate) parallel: bool,
}

impl Tools {
    /// Checks names, numbers and the choice; `field` and `choice_field` are the request's own.
    pub(crate) fn new(
        list: Vec<Tool>,
        choice: ToolChoice,
        parallel: bool,
        field: &str,
        choice_field: &str,
    ) -> Result<Self, ApiError> {
        if list.len() > MAX_TOOLS {
            let message =
                format!("{field} has {} entries, but may have at most {MAX_TOOLS}", list.len());
            return Err(ApiError::invalid(Some(field), message));
        }
        for (index, tool) in list.iter().enumerate() {
            check_name(&tool.name, &format!("{field}[{index}]"))?;
            if list[..index].iter().any(|other| other.name == tool.name) {
                let message = format!("{field} has two tools of the name {:?}", tool.name);
                return Err(ApiError::invalid(Some(&format!("{field}[{index}]")), message));
            }
        }
        match &choice {
            ToolChoice::Named(name) if !list.iter().any(|tool| tool.name == *name) => {
                let names: Vec<_> = list.iter().map(|tool| &*tool.name).collect();
                let message = format!(
                    "{choice_field} names {name:?}, but must name one of {field}: {}",
                    names.join(", ")
                );
                return Err(ApiError::invalid(Some(choice_field), message));
            }
            ToolChoice::Required if list.is_empty() => {
                let message = format!("{choice_field} asks for a call, but {field} is empty");
                return Err(ApiError::invalid(Some(choice_field), message));
            }
            _ => {}
        }
        Ok(Self { list, choice, parallel })
    }

    /// Whether the model is told of tools and its calls are looked for.
    pub(crate) fn are_offered(&self) -> bool {
        !self.list.is_empty() && self.choice != ToolChoice::None
    }

    /// Those that a call may name: the one that was asked for, or all.
    pub(crate) fn callable(&self) -> impl Iterator<Item = &Tool> {
        let named = match &self.choice {
            ToolChoice::Named(name) => Some(name),
            _ => None,
        };
        self.list.iter().filter(move |tool| named.is_none_or(|name| tool.name == *name))
    }

    /// As the parser of calls knows them.
    pub(crate) fn answer_tools(&self) -> Arc<[AnswerTool]> {
        let tool = |tool: &Tool| AnswerTool {
            name: tool.name.clone(),
            parameters: tool.parameters.clone(),
        };
        self.list.iter().map(tool).collect()
    }

    /// As chat templates know them: OpenAI's shape.
    pub(crate) fn to_json(&self) -> Value {
        self.list.iter().map(Tool::to_json).collect()
    }
}

impl Tool {
    fn to_json(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), self.name.clone().into());
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), description.clone().into());
        }
        let parameters = self.parameters.clone();
        // Templates look into them.
        let parameters =
            parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
        function.insert("parameters".to_owned(), parameters);
        json!({ "type": "function", "function": function })
    }
}

fn check_name(name: &str, field: &str) -> Result<(), ApiError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(is_plain) {
        return Ok(());
    }
    let message = format!(
        "{field} has the name {name:?}, but a name must have 1 to {MAX_NAME_CHARS} letters, \
         digits, underscores, dashes and dots"
    );
    Err(ApiError::invalid(Some(field), message))
}

/// A call's arguments, which conversations hold as JSON text.
pub(crate) fn parse_arguments(text: &str, field: &str) -> Result<Map<String, Value>, ApiError> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    let wrong = |what: &str| {
        let message = format!("{field} is {what}, but must be a JSON object as text");
        ApiError::invalid(Some(field), message)
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err(wrong("JSON, and no object")),
        Err(error) => Err(wrong(&format!("no JSON ({error})"))),
    }
}
