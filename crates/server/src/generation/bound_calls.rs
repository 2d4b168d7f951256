//! Calls that a grammar bounds: those that must be made, and those of strict tools.

use sconce_grammar::check_schema;
use sconce_text::{AnswerTool, Beside};
use serde_json::{Map, Value, json};

use super::{
    generator::Generator,
    settings::Settings,
    structure::Structure,
    tools::{Tool, ToolChoice, Tools},
};
use crate::error::ApiError;

/// Bounds a request's answers by its tools, where `tool_choice`, a strict tool or a form of the
/// answer asks for it. An answer that may call has the form or calls; one that must call has no
/// text, and so none of the form.
///
/// # Errors
/// A strict tool whose schema cannot be enforced, a form of calls that no grammar has, or a
/// form of the answer that cannot be told from calls.
pub(crate) fn bound(
    generator: &Generator,
    settings: &mut Settings,
    tools: &Tools,
) -> Result<(), ApiError> {
    if !tools.are_offered() {
        return Ok(());
    }
    let (must_call, is_parallel) = match tools.choice {
        ToolChoice::Required => (true, tools.parallel),
        ToolChoice::Named(_) => (true, false),
        ToolChoice::Auto | ToolChoice::None => (false, tools.parallel),
    };
    let asked = settings.structure.take();
    // What is wrong with a form is told even where it applies to nothing.
    let rule = asked.as_ref().map(Structure::json_rule).transpose()?.flatten();
    let form = asked.as_ref().filter(|_| !must_call);
    let beside = match (form, &rule) {
        (None, _) if must_call => Beside::Nothing,
        (None, _) => Beside::Text,
        (Some(form), None) => {
            return Err(beside_form(form, "only JSON can be told from calls"));
        }
        (Some(form), Some((_, schema))) if generator.answers.may_begin_as_call(schema) => {
            let why = "this model writes a call as JSON that begins with \"name\" and \
                       \"parameters\", and so may an answer of that form begin, unless its \
                       schema has additionalProperties false and no parameters";
            return Err(beside_form(form, why));
        }
        (Some(_), Some((json, _))) => {
            Beside::Form { json, analysis: generator.answers.reads_analysis() }
        }
    };
    if matches!(beside, Beside::Text) && !tools.list.iter().any(|tool| tool.strict) {
        return Ok(());
    }
    let grammar = |held: bool| {
        let tools = tools.callable().map(|tool| answer_tool(tool, held));
        let tools = tools.collect::<Result<Vec<_>, _>>()?;
        Ok::<_, ApiError>(generator.answers.grammar(&generator.text, &tools, beside, is_parallel))
    };
    let grammar = match grammar(true)? {
        None => grammar(false)?,
        some => some,
    };
    let Some(grammar) = grammar else {
        const WHY: &str = "calls in the form that this model writes cannot be bounded by a grammar";
        return Err(match form {
            Some(form) => beside_form(form, WHY),
            None => {
                let message = format!("{WHY}: give tool_choice auto, and no strict tools");
                ApiError::invalid(Some("tool_choice"), message)
            }
        });
    };
    let structure = match form {
        Some(form) => form.or_calls(grammar),
        None => Structure::of_calls(grammar),
    };
    settings.set_structure(generator, structure)
}

/// Refuses tools beside a form.
fn beside_form(form: &Structure, why: &str) -> ApiError {
    let message = format!(
        "tools cannot be used with {}: {why}; leave one of them out, or give tool_choice none",
        form.field()
    );
    ApiError::invalid(Some("tools"), message)
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

/// A schema of the same properties, with any values, and of any others.
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
    json!({
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": true,
    })
}
