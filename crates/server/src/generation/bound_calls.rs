//! Calls that a grammar bounds: those that must be made, and those of strict tools.

use sconce_grammar::{Source, check_schema};
use sconce_text::AnswerTool;

use super::{
    settings::Settings,
    structure::Structure,
    tools::{Tool, ToolChoice, Tools},
};
use crate::{error::ApiError, state::AppState};

/// Bounds a request's answers by its tools, where `tool_choice` or a strict tool asks for it.
///
/// # Errors
/// A strict tool whose schema cannot be enforced, a form of calls that no grammar has, or a
/// form of the answer that is asked for beside.
pub(crate) fn bound(
    state: &AppState,
    settings: &mut Settings,
    tools: &Tools,
) -> Result<(), ApiError> {
    if !tools.are_offered() {
        return Ok(());
    }
    if let Some(structure) = &settings.structure {
        let message = format!(
            "tools cannot be used with {}: an answer of that form calls none; leave them out, or \
             give tool_choice none",
            structure.field()
        );
        return Err(ApiError::invalid(Some("tools"), message));
    }
    let (must_call, is_parallel) = match tools.choice {
        ToolChoice::Required => (true, tools.parallel),
        ToolChoice::Named(_) => (true, false),
        ToolChoice::Auto | ToolChoice::None => (false, tools.parallel),
    };
    if !must_call && !tools.list.iter().any(|tool| tool.strict) {
        return Ok(());
    }
    let tools = tools.callable().map(answer_tool).collect::<Result<Vec<_>, _>>()?;
    let grammar = state.answers.grammar(&state.text, &tools, must_call, is_parallel);
    let grammar = grammar.ok_or_else(|| {
        let message = "calls in the form that this model writes cannot be bounded by a grammar: \
                       give tool_choice auto, and no strict tools";
        ApiError::invalid(Some("tool_choice"), message)
    })?;
    settings.set_structure(state, Structure::new(Source::Lark(grammar), "tools"))
}

/// A tool with the schema that its arguments are held to: its own, or where that cannot be
/// enforced and need not be, any object.
fn answer_tool(tool: &Tool) -> Result<AnswerTool, ApiError> {
    let name = tool.name.clone();
    let checked = tool.parameters.as_ref().map(check_schema).transpose();
    match checked {
        Ok(_) => Ok(AnswerTool { name, parameters: tool.parameters.clone() }),
        Err(_) if !tool.strict => Ok(AnswerTool { name, parameters: None }),
        Err(error) => {
            let message = format!("the schema of the strict tool {name}: {error}");
            Err(ApiError::invalid(Some("tools"), message))
        }
    }
}
