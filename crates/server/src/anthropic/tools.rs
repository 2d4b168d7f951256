//! Tools as the Messages API has them.

use serde::Deserialize;
use serde_json::Value;

use super::content::CacheControl;
use crate::{
    error::ApiError,
    generation::tools::{Tool, ToolChoice, Tools},
};

/// An entry of `tools`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
}

/// `tool_choice`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolChoiceBody {
    #[serde(rename = "type")]
    kind: ChoiceKind,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
