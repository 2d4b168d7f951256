//! Tools and calls as chat completions have them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    error::ApiError,
    generation::tools::{Tool, ToolCall, ToolChoice, Tools, parse_arguments},
};

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatTool)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolBody {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: FunctionKind,
    function: FunctionBody,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FunctionKind {
    Function,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatFunction)]
#[serde(deny_unknown_fields)]
struct FunctionBody {
    /// Letters, digits, underscores, dashes and dots.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.-]+$")]
    name: String,
    description: Option<String>,
    /// The JSON schema of its arguments.
    parameters: Option<Value>,
    /// Whether calls must follow the schema, which a grammar then sees to.
    #[schema(default = false)]
    strict: Option<bool>,
}

/// Whether the model may or must call tools.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatToolChoice)]
#[serde(
    untagged,
    expecting = "a mode, which is none, auto or required, or an object {\"type\": \"function\", \
                 \"function\": {\"name\": …}}"
)]
pub(crate) enum ToolChoiceBody {
    Mode(#[schema(inline)] ToolMode),
    Named(NamedChoice),
}

/// `none`: no calls; `auto`: as the model likes; `required`: one call at least.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolMode {
    None,
    Auto,
    Required,
}

impl From<ToolMode> for ToolChoice {
    fn from(mode: ToolMode) -> Self {
        match mode {
            ToolMode::None => Self::None,
            ToolMode::Auto => Self::Auto,
            ToolMode::Required => Self::Required,
        }
    }
}

/// A call of this function.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatNamedTool)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedChoice {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: FunctionKind,
    #[schema(inline)]
    function: ChosenFunction,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
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
        Some(ToolChoiceBody::Mode(mode)) => mode.into(),
    };
    Tools::new(list, choice, parallel.unwrap_or(true), "tools", "tool_choice")
}

impl ToolBody {
    fn into_tool(self) -> Tool {
        let FunctionBody { name, description, parameters, strict } = self.function;
        Tool { name, description, parameters, strict: strict.unwrap_or(false) }
    }
}

/// A call that an assistant's message has made.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatCall)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallBody {
    id: String,
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: Option<FunctionKind>,
    #[schema(inline)]
    function: CalledFunction,
    /// Streams count calls, and clients send back what they put together.
    #[serde(rename = "index")]
    _index: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// A JSON object as text.
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
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallAnswer {
    id: String,
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: FunctionKind,
    #[schema(inline)]
    function: CalledAnswer,
}

#[derive(Debug, Serialize, ToSchema)]
struct CalledAnswer {
    name: String,
    /// JSON as text, as the model wrote it: cut where the answer was.
    arguments: String,
}

impl CallAnswer {
    pub(super) fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, kind: FunctionKind::Function, function: CalledAnswer { name, arguments } }
    }
}

/// A piece of a call in a stream: with id and name when it begins, then its arguments.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallDelta<'a> {
    /// The call's place in the answer.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    kind: Option<FunctionKind>,
    #[schema(inline)]
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
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
