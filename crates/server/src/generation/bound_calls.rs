//! Calls that a grammar bounds: those that must be made, and those of strict tools.

use sconce_grammar::{Source, check_schema};
use sconce_text::AnswerTool;
use serde_json::{Map, Value, json};

use super::{
    generator::Generator,
    settings::Settings,
    structure::Structure,
    tools::{Tool, ToolChoice, Tools},
};
use crate::error::ApiError;

/// Bounds a request's answers by its tools, where `tool_choice` or a strict tool asks for it.
///
/// # Errors
/// A strict tool whose schema cannot be enforced, a form of calls that no grammar has, or a
/// form of the answer that is asked for beside.
pub(crate) fn bound(
    generator: &Generator,
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
    let grammar = |held: bool| {
        let tools = tools.callable().map(|tool| answer_tool(tool, held));
        let tools = tools.collect::<Result<Vec<_>, _>>()?;
        Ok::<_, ApiError>(generator.answers.grammar(
            &generator.text,
            &tools,
            must_call,
            is_parallel,
        ))
    };
    let grammar = match grammar(true)? {
        None => grammar(false)?,
        some => some,
    };
    let grammar = grammar.ok_or_else(|| {
        let message = "calls in the form that this model writes cannot be bounded by a grammar: \
                       give tool_choice auto, and no strict tools";
        ApiError::invalid(Some("tool_choice"), message)
    })?;
    settings.set_structure(generator, Structure::new(Source::Own(grammar), "tools"))
}

/// A tool with the schema that its arguments are held to: its own, or where that cannot be
/// enforced (or is not to be: `held`) and need not be, an object of its properties.
fn answer_tool(tool: &Tool, held: bool) -> Result<AnswerTool, ApiError> {
    let name = tool.name.clone();
    let checked = tool.parameters.as_ref().map(check_schema).transpose();
    match checked {
        Ok(_) if held || tool.strict => {
            Ok(AnswerTool { name, parameters: tool.parameters.clone() })
        }
        _ if !tool.strict => Ok(AnswerTool { name, parameters: Some(loosened(tool)) }),
        Ok(_) => unreachable!("a strict tool is held to its schema"),
        Err(error) => {
            let message = format!("the schema of the strict tool {name}: {error}");
            Err(ApiError::invalid(Some("tools"), message))
        }
    }
}

/// A schema of the same properties, with any values.
fn loosened(tool: &Tool) -> Value {
    let field = |name: &str| tool.parameters.as_ref().and_then(|schema| schema.get(name));
    let properties: Map<String, Value> = field("properties")
        .and_then(Value::as_object)
        .map(|properties| properties.keys().map(|key| (key.clone(), json!({}))).collect())
        .unwrap_or_default();
    let required = field("required").and_then(Value::as_array).into_iter().flatten();
    let is_known = |name: &&Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let required: Vec<Value> = required.filter(is_known).cloned().collect();
    if properties.is_empty() {
        return json!({ "type": "object" });
    }
    json!({ "type": "object", "properties": properties, "required": required })
}
