//! Tools as the Messages API has them.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::content::CacheControl;
use crate::{
    error::ApiError,
    generation::tools::{Tool, ToolChoice, Tools},
};

/// A tool that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = MessageTool)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolBody {
    #[serde(rename = "type")]
    #[schema(value_type = Option<ToolKind>, inline)]
    kind: Option<String>,
    /// Letters, digits, underscores, dashes and dots.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.-]+$")]
    name: String,
    description: Option<String>,
    /// The JSON schema of its arguments.
    #[schema(required, value_type = Value)]
    input_schema: Option<Value>,
    /// Whether calls must follow the schema, which a grammar then sees to.
    #[schema(default = false)]
    strict: Option<bool>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
}

/// This server runs no tools itself.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "types are read by hand")]
enum ToolKind {
    Custom,
}

/// Whether the model may or must call tools.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = MessageToolChoice)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolChoiceBody {
    /// `auto`: as the model likes; `any`: one call at least; `tool`: a call of the named one.
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ChoiceKind,
    /// Of `tool`.
    name: Option<String>,
    /// Whether an answer may have one call only.
    #[schema(default = false)]
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ChoiceKind {
    Auto,
    Any,
    Tool,
    None,
}

/// The tools of a request.
pub(super) fn read(
    tools: Option<Vec<ToolBody>>,
    choice: Option<ToolChoiceBody>,
) -> Result<Tools, ApiError> {
    let tool = |(index, tool): (usize, ToolBody)| tool.into_tool(&format!("tools[{index}]"));
    let list = tools.unwrap_or_default().into_iter().enumerate().map(tool);
    let list = list.collect::<Result<Vec<_>, _>>()?;
    let is_parallel =
        !choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use).unwrap_or(false);
    let choice = match choice {
        None => ToolChoice::Auto,
        Some(choice) => choice.into_choice()?,
    };
    Tools::new(list, choice, is_parallel, "tools", "tool_choice")
}

impl ToolBody {
    fn into_tool(self, field: &str) -> Result<Tool, ApiError> {
        if let Some(kind) = self.kind.filter(|kind| kind != "custom") {
            let name = format!("{field}.type");
            let message =
                format!("{name} is {kind:?}, but must be custom: this server runs no tools itself");
            return Err(ApiError::invalid(Some(&name), message));
        }
        if self.input_schema.is_none() {
            return Err(ApiError::missing(field, "input_schema"));
        }
        let (name, description, parameters) = (self.name, self.description, self.input_schema);
        Ok(Tool { name, description, parameters, strict: self.strict.unwrap_or(false) })
    }
}

impl ToolChoiceBody {
    fn into_choice(self) -> Result<ToolChoice, ApiError> {
        let invalid = |message: &str| ApiError::invalid(Some("tool_choice.name"), message);
        match (self.kind, self.name) {
            (ChoiceKind::Tool, Some(name)) => Ok(ToolChoice::Named(name)),
            (ChoiceKind::Tool, None) => Err(invalid("tool_choice.name is missing")),
            (_, Some(_)) => Err(invalid("tool_choice.name has a meaning only with type tool")),
            (ChoiceKind::Auto, None) => Ok(ToolChoice::Auto),
            (ChoiceKind::Any, None) => Ok(ToolChoice::Required),
            (ChoiceKind::None, None) => Ok(ToolChoice::None),
        }
    }
}
