//! Tools and calls as chat completions have them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::ApiError,
    generation::tools::{Tool, ToolCall, ToolChoice, Tools, parse_arguments},
};

/// An entry of `tools`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolBody {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    function: FunctionBody,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum FunctionKind {
    Function,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionBody {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// `tool_choice`.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a string or an object {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(crate) enum ToolChoiceBody {
    Mode(String),
    Named(NamedChoice),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedChoice {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    function: ChosenFunction,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChosenFunction {
    name: String,
}

/// The tools of a request.
pub(crate) fn read(
    tools: Option<Vec<ToolBody>>,
    choice: Option<ToolChoiceBody>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let list: Vec<Tool> = tools.unwrap_or_default().into_iter().map(ToolBody::into_tool).collect();
    let choice = match choice {
        None => ToolChoice::Auto,
        Some(ToolChoiceBody::Named(named)) => ToolChoice::Named(named.function.name),
        Some(ToolChoiceBody::Mode(mode)) => ToolChoice::from_mode(&mode)?,
    };
    Tools::new(list, choice, parallel.unwrap_or(true), "tools", "tool_choice")
}

impl ToolBody {
    fn into_tool(self) -> Tool {
        let FunctionBody { name, description, parameters, strict } = self.function;
        Tool { name, description, parameters, strict: strict.unwrap_or(false) }
    }
}

/// An entry of an assistant's `tool_calls`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallBody {
    id: String,
    #[serde(rename = "type")]
    _kind: Option<FunctionKind>,
    function: CalledFunction,
    /// Streams count calls, and clients send back what they put together.
    #[serde(rename = "index")]
    _index: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    arguments: String,
}

impl CallBody {
    /// `field` is its place in the request.
    pub(super) fn into_call(self, field: &str) -> Result<ToolCall, ApiError> {
        let CalledFunction { name, arguments } = self.function;
        let arguments = parse_arguments(&arguments, &format!("{field}.function.arguments"))?;
        Ok(ToolCall { id: self.id, name, arguments })
    }
}

/// A call of an answer.
#[derive(Debug, Serialize)]
pub(super) struct CallAnswer<'a> {
    pub(super) id: &'a str,
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: CalledAnswer<'a>,
}

#[derive(Debug, Serialize)]
struct CalledAnswer<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> CallAnswer<'a> {
    pub(super) fn new(id: &'a str, name: &'a str, arguments: &'a str) -> Self {
        Self { id, kind: FunctionKind::Function, function: CalledAnswer { name, arguments } }
    }
}

/// A piece of a call in a stream: with id and name when it begins, then its arguments.
#[derive(Debug, Serialize)]
pub(super) struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<FunctionKind>,
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> CallDelta<'a> {
    pub(super) fn start(index: usize, id: &'a str, name: &'a str) -> Self {
        let function = FunctionDelta { name: Some(name), arguments: "" };
        Self { index, id: Some(id), kind: Some(FunctionKind::Function), function }
    }

    pub(super) fn arguments(index: usize, arguments: &'a str) -> Self {
        Self { index, id: None, kind: None, function: FunctionDelta { name: None, arguments } }
    }
}
