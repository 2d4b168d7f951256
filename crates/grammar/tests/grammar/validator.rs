//! The part of JSON schema that the tests use, checked independently of the compiler.

use regex::Regex;
use serde_json::Value;

/// Whether a value is valid under a schema of a document.
///
/// # Panics
/// If the schema has a keyword that this does not know.
pub(crate) fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
    let Some(fields) = schema.as_object() else {
        return schema == &Value::Bool(true);
    };
    let valid = |schema: &Value, value: &Value| is_valid(value, schema, root);
    fields.iter().all(|(keyword, bound)| {
        let list = || bound.as_array().expect("a list");
        let count = || bound.as_u64().expect("a count") as usize;
        let number = || bound.as_f64().expect("a number");
        match keyword.as_str() {
            "title" | "description" | "default" | "$defs" | "$schema" => true,
            "type" => match bound {
                Value::Array(types) => types.iter().any(|name| has_type(value, name)),
                name => has_type(value, name),
            },
            "const" => value == bound,
            "enum" => list().contains(value),
            "$ref" => {
                let at = bound.as_str().expect("text").trim_start_matches('#');
                valid(root.pointer(at).expect("the place is there"), value)
            }
            "anyOf" => list().iter().any(|schema| valid(schema, value)),
            "allOf" => list().iter().all(|schema| valid(schema, value)),
            "oneOf" => list().iter().filter(|schema| valid(schema, value)).count() == 1,
            "minimum" => value.as_f64().is_none_or(|value| value >= number()),
            "maximum" => value.as_f64().is_none_or(|value| value <= number()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number()),
            "exclusiveMaximum" => value.as_f64().is_none_or(|value| value < number()),
            "multipleOf" => value.as_f64().is_none_or(|value| (value / number()).fract() == 0.0),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= count()),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() <= count()),
            "pattern" => {
                let pattern = Regex::new(bound.as_str().expect("text")).expect("a pattern");
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "format" => value.as_str().is_none_or(|text| has_format(text, bound)),
            "minItems" => value.as_array().is_none_or(|items| items.len() >= count()),
            "maxItems" => value.as_array().is_none_or(|items| items.len() <= count()),
            "prefixItems" => value.as_array().is_none_or(|items| {
                items.iter().zip(list()).all(|(item, schema)| valid(schema, item))
            }),
            "items" => value.as_array().is_none_or(|items| {
                let before = fields.get("prefixItems").and_then(Value::as_array);
                let before = before.map_or(0, Vec::len);
                items.iter().skip(before).all(|item| valid(bound, item))
            }),
            "required" => value.as_object().is_none_or(|object| {
                list().iter().all(|name| object.contains_key(name.as_str().expect("a name")))
            }),
            "minProperties" => value.as_object().is_none_or(|object| object.len() >= count()),
            "maxProperties" => value.as_object().is_none_or(|object| object.len() <= count()),
            "properties" => value.as_object().is_none_or(|object| {
                object
                    .iter()
                    .all(|(name, value)| bound.get(name).is_none_or(|schema| valid(schema, value)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                object.iter().all(|(name, value)| {
                    let is_named = fields.get("properties").is_some_and(|p| p.get(name).is_some());
                    is_named || valid(bound, value)
                })
            }),
            other => panic!("{other} is not known"),
        }
    })
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str().expect("a name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

fn has_format(text: &str, format: &Value) -> bool {
    let pattern = match format.as_str().expect("a name") {
        "date" => r"^\d{4}-\d\d-\d\d$",
        "date-time" => r"^\d{4}-\d\d-\d\d[tT]\d\d:\d\d:\d\d(\.\d+)?([zZ]|[+-]\d\d:\d\d)$",
        "uuid" => r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        "ipv4" => r"^\d{1,3}(\.\d{1,3}){3}$",
        "email" => r"^\S+@\S+$",
        other => panic!("{other} is not known"),
    };
    Regex::new(pattern).expect("a pattern").is_match(text)
}
