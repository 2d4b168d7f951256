//! The fields that ask for a form: OpenAI's `response_format`, Anthropic's `output_config.format`
//! and vLLM's `structured_outputs`.

use sconce_grammar::Source;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::structure::Structure;
use crate::error::ApiError;

/// OpenAI's `response_format`, as documents tell of it: it is read by hand, so that errors name
/// its parts.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes what is read by hand")]
pub(crate) enum ResponseFormat {
    /// As the model likes.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that follows a schema, whether it is `strict` or not.
    JsonSchema { json_schema: SchemaDescription },
    /// Tags with what may stand between them, as in vLLM.
    StructuralTag {},
}

/// The Responses API's `text.format`.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes what is read by hand")]
pub(crate) enum TextFormat {
    /// As the model likes.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that follows a schema, whether it is `strict` or not.
    JsonSchema {
        /// The client's own name for the schema.
        name: Option<String>,
        /// The client's own note.
        description: Option<String>,
        /// A JSON schema; what of it cannot be enforced is refused by name.
        schema: Value,
        strict: Option<bool>,
    },
}

/// The Messages API's `output_config.format`.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes what is read by hand")]
pub(crate) enum OutputFormat {
    /// JSON that follows a schema.
    JsonSchema {
        /// A JSON schema; what of it cannot be enforced is refused by name.
        schema: Value,
    },
}

/// A JSON schema with its name.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what is read by hand")]
pub(crate) struct SchemaDescription {
    /// The client's own name for the schema.
    name: Option<String>,
    /// The client's own note.
    description: Option<String>,
    /// A JSON schema; what of it cannot be enforced is refused by name.
    schema: Value,
    strict: Option<bool>,
}

/// vLLM's `structured_outputs`: exactly one of its forms, and `disable_any_whitespace`, which is
/// so in any case.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what is read by hand")]
pub(crate) struct StructuredOutputs {
    /// A JSON schema, or its text.
    json: Option<Value>,
    /// A regular expression that the whole answer matches.
    regex: Option<String>,
    /// Texts of which the answer is one.
    choice: Option<Vec<String>>,
    /// A grammar in Lark's language.
    grammar: Option<String>,
    /// Tags with what may stand between them, or the text of that.
    structural_tag: Option<Value>,
    /// Any JSON object.
    json_object: Option<bool>,
    disable_any_whitespace: Option<bool>,
}

/// What may be asked for in `structured_outputs`, one of them.
const KINDS: &[&str] = &["json", "regex", "choice", "grammar", "structural_tag", "json_object"];

/// What the two fields ask for, if anything.
///
/// # Errors
/// A field that is not what it may be, or both ask for a form.
pub(crate) fn read(
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
) -> Result<Option<Structure>, ApiError> {
    let format = match response_format {
        Some(format) => of_response_format(format)?,
        None => None,
    };
    match (format, structured_outputs) {
        (Some(_), Some(_)) => {
            let message = "response_format and structured_outputs both ask for a form of the \
                           answer; give one of them";
            Err(ApiError::invalid(Some("structured_outputs"), message))
        }
        (format, None) => Ok(format),
        (None, Some(outputs)) => of_structured_outputs(outputs).map(Some),
    }
}

/// How a wire format names its parts.
struct Names {
    format: &'static str,
    kind: &'static str,
    /// Of `json_schema`.
    description: &'static str,
    schema: &'static str,
}

fn of_response_format(format: Value) -> Result<Option<Structure>, ApiError> {
    const NAMES: Names = Names {
        format: "response_format",
        kind: "response_format.type",
        description: "response_format.json_schema",
        schema: "response_format.json_schema.schema",
    };
    let mut fields = object(format, NAMES.format)?;
    match kind(&fields, &NAMES)?.as_str() {
        "structural_tag" => {
            let source = Source::StructuralTag(Value::Object(fields));
            Ok(Some(Structure::new(source, NAMES.format)))
        }
        "json_schema" => {
            known(&fields, NAMES.format, &["type", "json_schema"])?;
            let described = fields.shift_remove("json_schema").unwrap_or_default();
            of_description(object(described, NAMES.description)?, &NAMES).map(Some)
        }
        other => {
            let known = ["text", "json_object", "json_schema", "structural_tag"];
            of_plain(&fields, other, &NAMES, &known)
        }
    }
}

/// The Responses API's `text.format`, in which a schema's description lies open.
///
/// # Errors
/// It is not what it may be.
pub(crate) fn of_text_format(format: Value) -> Result<Option<Structure>, ApiError> {
    const NAMES: Names = Names {
        format: "text.format",
        kind: "text.format.type",
        description: "text.format",
        schema: "text.format.schema",
    };
    let mut fields = object(format, NAMES.format)?;
    match kind(&fields, &NAMES)?.as_str() {
        "json_schema" => {
            fields.shift_remove("type");
            of_description(fields, &NAMES).map(Some)
        }
        other => of_plain(&fields, other, &NAMES, &["text", "json_object", "json_schema"]),
    }
}

/// The Messages API's `output_config.format`, or its older name `output_format`.
///
/// # Errors
/// They are not what they may be, or both ask for a form.
pub(crate) fn of_output_format(
    format: Option<Value>,
    older: Option<Value>,
) -> Result<Option<Structure>, ApiError> {
    const FORMAT: Names = Names {
        format: "output_config.format",
        kind: "output_config.format.type",
        description: "output_config.format",
        schema: "output_config.format.schema",
    };
    const OLDER: Names = Names {
        format: "output_format",
        kind: "output_format.type",
        description: "output_format",
        schema: "output_format.schema",
    };
    let (format, names) = match (format, older) {
        (Some(_), Some(_)) => {
            let message = "output_format is the older name of output_config.format; give one of \
                           them";
            return Err(ApiError::invalid(Some(OLDER.format), message));
        }
        (Some(format), None) => (format, FORMAT),
        (None, Some(format)) => (format, OLDER),
        (None, None) => return Ok(None),
    };
    let mut fields = object(format, names.format)?;
    let kind = kind(&fields, &names)?;
    if kind != "json_schema" {
        let message = format!("{} is {kind:?}, but must be json_schema", names.kind);
        return Err(ApiError::invalid(Some(names.kind), message));
    }
    known(&fields, names.format, &["type", "schema"])?;
    fields.shift_remove("type");
    of_description(fields, &names).map(Some)
}

fn kind(fields: &Map<String, Value>, names: &Names) -> Result<String, ApiError> {
    let kind = fields.get("type").and_then(Value::as_str);
    let missing =
        || ApiError::invalid(Some(names.kind), format!("{} must be a string", names.kind));
    kind.map(str::to_owned).ok_or_else(missing)
}

fn of_plain(
    fields: &Map<String, Value>,
    kind: &str,
    names: &Names,
    accepted: &[&str],
) -> Result<Option<Structure>, ApiError> {
    let structure = match kind {
        "text" => None,
        "json_object" => Some(Structure::new(Source::JsonObject, names.format)),
        _ => {
            let name = names.kind;
            let message = format!("{name} is {kind:?}, but must be one of {}", accepted.join(", "));
            return Err(ApiError::invalid(Some(name), message));
        }
    };
    known(fields, names.format, &["type"])?;
    Ok(structure)
}

/// A schema with its name. Whether it is `strict` or not, it is kept to.
fn of_description(mut fields: Map<String, Value>, names: &Names) -> Result<Structure, ApiError> {
    let prefix = names.description;
    known(&fields, prefix, &["name", "description", "schema", "strict"])?;
    let is_text =
        |name: &str| fields.get(name).is_none_or(|value| value.is_string() || value.is_null());
    for name in ["name", "description"] {
        if !is_text(name) {
            return Err(wrong(&format!("{prefix}.{name}"), "a string"));
        }
    }
    if !fields.get("strict").is_none_or(|strict| strict.is_boolean() || strict.is_null()) {
        return Err(wrong(&format!("{prefix}.strict"), "true or false"));
    }
    match fields.shift_remove("schema") {
        Some(schema) if !schema.is_null() => {
            Ok(Structure::new(Source::JsonSchema(schema), names.schema))
        }
        _ => Err(ApiError::invalid(Some(names.schema), format!("{} is missing", names.schema))),
    }
}

fn of_structured_outputs(outputs: Value) -> Result<Structure, ApiError> {
    const NAME: &str = "structured_outputs";
    let mut fields = object(outputs, NAME)?;
    // Whitespace is bounded in any case.
    fields.shift_remove("disable_any_whitespace");
    fields.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
    known(&fields, NAME, KINDS)?;
    let mut fields = fields.into_iter();
    let (Some((kind, value)), None) = (fields.next(), fields.next()) else {
        let message = format!("{NAME} must have exactly one of {}", KINDS.join(", "));
        return Err(ApiError::invalid(Some(NAME), message));
    };
    let text = |value: Value, field: &'static str| match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong(field, "a string")),
    };
    let (source, field) = match kind.as_str() {
        "json" => {
            let field = "structured_outputs.json";
            (Source::JsonSchema(json_or_text(value, field)?), field)
        }
        "structural_tag" => {
            let field = "structured_outputs.structural_tag";
            (Source::StructuralTag(json_or_text(value, field)?), field)
        }
        "regex" => {
            let field = "structured_outputs.regex";
            (Source::Regex(text(value, field)?), field)
        }
        "grammar" => {
            let field = "structured_outputs.grammar";
            (Source::Lark(text(value, field)?), field)
        }
        "choice" => {
            let field = "structured_outputs.choice";
            let choices = serde_json::from_value(value);
            (Source::Choice(choices.map_err(|_| wrong(field, "a list of strings"))?), field)
        }
        _ => match value {
            Value::Bool(true) => (Source::JsonObject, NAME),
            _ => return Err(wrong("structured_outputs.json_object", "true or false")),
        },
    };
    Ok(Structure::new(source, field))
}

/// JSON, or a string that holds it.
fn json_or_text(value: Value, field: &'static str) -> Result<Value, ApiError> {
    let Value::String(text) = &value else { return Ok(value) };
    serde_json::from_str(text).map_err(|error| {
        ApiError::invalid(Some(field), format!("{field} is a string that is not JSON: {error}"))
    })
}

fn object(value: Value, field: &str) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong(field, "an object")),
    }
}

fn known(fields: &Map<String, Value>, prefix: &str, names: &[&str]) -> Result<(), ApiError> {
    match fields.keys().find(|name| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let param = format!("{prefix}.{name}");
            let message = format!("{param} is no field here; {} are", names.join(", "));
            Err(ApiError::unknown_field(&param, message))
        }
    }
}

fn wrong(field: &str, must_be: &str) -> ApiError {
    ApiError::invalid(Some(field), format!("{field} must be {must_be}"))
}
