//! The types that a tool's schema allows for a parameter.

use serde_json::{Map, Value};

use super::{AnswerTool, json::quote, literal::Literal};

/// Kinds of JSON values, as bits. None of them stands for "not said".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds(u8);

const STRING: u8 = 1;
const INTEGER: u8 = 2;
const NUMBER: u8 = 4;
const BOOLEAN: u8 = 8;
const NULL: u8 = 16;
const OBJECT: u8 = 32;
const ARRAY: u8 = 64;

/// How far references and alternatives are followed.
const MAX_DEPTH: usize = 8;
/// Schemas that are looked at for one value.
const MAX_SCHEMAS: usize = 256;

impl Kinds {
    /// What a tool's schema says of a parameter.
    pub(super) fn of(tools: &[AnswerTool], tool: &str, parameter: &str) -> Self {
        let schema = tools.iter().find(|one| one.name == tool);
        let schema = schema.and_then(|tool| tool.parameters.as_ref());
        let property = schema.and_then(|schema| schema.get("properties")?.get(parameter));
        match (schema, property) {
            (Some(root), Some(property)) => Self(kinds(root, property)),
            _ => Self::default(),
        }
    }

    /// Whether a text is a string, whatever it looks like.
    pub(super) fn is_string(self) -> bool {
        self.0 == STRING
    }

    /// The JSON of a value that was written as text. What cannot be read as one of the
    /// kinds is a string.
    pub(super) fn json(self, text: &str) -> String {
        let value = text.trim();
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
        let python = match value {
            "True" => Some("true".to_owned()),
            "False" => Some("false".to_owned()),
            "None" => Some("null".to_owned()),
            _ if value.starts_with(['{', '[', '(']) => Literal::python(value),
            _ => None,
        };
        let found = if is_json { Some(value.to_owned()) } else { python };
        match found {
            Some(json) if !self.is_string() && self.allows(kind(&json)) => json,
            _ => quote(text),
        }
    }

    /// Whether a value may be of a kind. Where no string is allowed, a value of the
    /// wrong kind is still no string.
    fn allows(self, kind: u8) -> bool {
        self.0 & STRING == 0 || self.0 & kind != 0
    }
}

/// Whether a schema may allow a string.
pub(super) fn allows_string(root: &Value, schema: &Value) -> bool {
    let kinds = kinds(root, schema);
    kinds == 0 || kinds & STRING != 0
}

/// Lets objects that list their properties have no others, as whoever writes a tool means it: what
/// a function has no parameter for it cannot be called with. An object of which the schema says
/// anything else stays as it is, as do all where several schemas apply to one object: what one
/// lists is another to the others.
pub(super) fn closed(schema: &Map<String, Value>) -> Map<String, Value> {
    let mut schema = schema.clone();
    if !schema.values().any(composes) && !is_composed(&schema) {
        close(&mut schema);
    }
    schema
}

fn close(schema: &mut Map<String, Value>) {
    for (key, within) in schema.iter_mut() {
        match (key.as_str(), within) {
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().filter_map(Value::as_object_mut).for_each(close);
            }
            ("prefixItems" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.iter_mut().filter_map(Value::as_object_mut).for_each(close);
            }
            ("items" | "additionalProperties", Value::Object(within)) => close(within),
            _ => {}
        }
    }
    let others = ["additionalProperties", "patternProperties", "propertyNames", "minProperties"];
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let mut required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let is_listed = |key: &Value| key.as_str().is_some_and(|key| properties.contains_key(key));
    if required.all(is_listed) && !others.iter().any(|key| schema.contains_key(*key)) {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// Whether several schemas may apply to one object anywhere within. A property of such a name is
/// taken for the keyword.
fn composes(value: &Value) -> bool {
    match value {
        Value::Object(fields) => is_composed(fields) || fields.values().any(composes),
        Value::Array(values) => values.iter().any(composes),
        _ => false,
    }
}

fn is_composed(schema: &Map<String, Value>) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| schema.contains_key(*key));
    has(&["allOf", "not", "if", "$dynamicRef", "unevaluatedProperties"])
        || has(&["dependentSchemas", "dependentRequired", "dependencies"])
        || has(&["$ref", "anyOf", "oneOf"])
            && has(&["properties", "patternProperties", "additionalProperties", "required"])
}

/// Whether JSON of a schema may begin as `{"name": …, "parameters": {` does, as far as can be told
/// within a few steps. Keys that are named come in their order, and before any others.
pub(super) fn may_begin_as_call(root: &Value, schema: &Value) -> bool {
    begins_within(root, schema, MAX_DEPTH, &mut { MAX_SCHEMAS })
}

fn begins_within(root: &Value, schema: &Value, depth: usize, left: &mut usize) -> bool {
    let Some(fields) = schema.as_object() else { return schema != &Value::Bool(false) };
    if depth == 0 || *left == 0 {
        return true;
    }
    *left -= 1;
    let kinds = kinds_within(root, schema, depth, left);
    if kinds != 0 && kinds & OBJECT == 0 {
        return false;
    }
    let has_both = |value: &Value| value.get("name").is_some() && value.get("parameters").is_some();
    if let Some(value) = fields.get("const") {
        return has_both(value);
    }
    if let Some(Value::Array(values)) = fields.get("enum") {
        return values.iter().any(has_both);
    }
    let mut parts = ["$ref", "allOf", "anyOf", "oneOf"].iter().filter_map(|key| fields.get(*key));
    let mut begins = |schema: &Value| begins_within(root, schema, depth - 1, left);
    match (parts.next(), parts.next(), fields.get("properties")) {
        (None, ..) => {}
        (Some(Value::String(reference)), None, None) => {
            let target = reference.strip_prefix('#').and_then(|path| root.pointer(path));
            return target.is_none_or(begins);
        }
        (Some(Value::Array(schemas)), None, None) => {
            // In which order the keys of several come that apply at once is not known here.
            let apply_at_once = fields.contains_key("allOf") && schemas.len() > 1;
            return apply_at_once || schemas.iter().any(&mut begins);
        }
        _ => return true,
    }
    let properties = fields.get("properties").and_then(Value::as_object);
    let names: Vec<&str> = properties.into_iter().flatten().map(|(name, _)| &**name).collect();
    let place = |wanted: &str| names.iter().position(|&name| name == wanted);
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    // The first that must be there and is in no call.
    let others =
        required.filter_map(Value::as_str).filter(|&key| key != "name" && key != "parameters");
    let first = others.filter_map(place).min();
    match (place("name"), place("parameters")) {
        (Some(name), Some(parameters)) => {
            name < parameters && first.is_none_or(|first| parameters < first)
        }
        // A name that is not listed comes after what is.
        (None, Some(_)) => false,
        (_, None) => {
            let is_closed = fields.get("additionalProperties") == Some(&Value::Bool(false))
                && !fields.contains_key("patternProperties");
            !is_closed && first.is_none()
        }
    }
}

/// The kind of a JSON text.
fn kind(json: &str) -> u8 {
    match json.as_bytes().first() {
        Some(b'{') => OBJECT,
        Some(b'[') => ARRAY,
        Some(b'"') => STRING,
        Some(b't' | b'f') => BOOLEAN,
        Some(b'n') => NULL,
        _ if json.contains(['.', 'e', 'E']) => NUMBER,
        _ => INTEGER | NUMBER,
    }
}

/// The kinds of values that a schema allows, as far as it says so within a few steps.
fn kinds(root: &Value, schema: &Value) -> u8 {
    kinds_within(root, schema, MAX_DEPTH, &mut { MAX_SCHEMAS })
}

/// References may lead back, and many of them at once: so the schemas that are looked at are
/// counted.
fn kinds_within(root: &Value, schema: &Value, depth: usize, left: &mut usize) -> u8 {
    if depth == 0 || *left == 0 {
        return 0;
    }
    *left -= 1;
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference.strip_prefix('#').and_then(|path| root.pointer(path));
        return target.map_or(0, |target| kinds_within(root, target, depth - 1, left));
    }
    match schema.get("type") {
        Some(Value::String(name)) => return named(name),
        Some(Value::Array(names)) => {
            return names.iter().filter_map(Value::as_str).map(named).fold(0, |a, b| a | b);
        }
        _ => {}
    }
    if let Some(value) = schema.get("const") {
        return kind(&value.to_string());
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return values.iter().map(|value| kind(&value.to_string())).fold(0, |a, b| a | b);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(Value::Array(schemas)) = schema.get(key) {
            let each = schemas.iter().map(|schema| kinds_within(root, schema, depth - 1, left));
            let each: Vec<u8> = each.collect();
            // One of which nothing is said allows everything.
            return if key == "allOf" {
                let said = each.into_iter().filter(|&kinds| kinds != 0);
                said.reduce(|a, b| a & b).unwrap_or(0)
            } else if each.contains(&0) {
                0
            } else {
                each.into_iter().fold(0, |a, b| a | b)
            };
        }
    }
    0
}

fn named(name: &str) -> u8 {
    match name {
        "string" => STRING,
        "integer" => INTEGER,
        "number" => INTEGER | NUMBER,
        "boolean" => BOOLEAN,
        "null" => NULL,
        "object" => OBJECT,
        "array" => ARRAY,
        _ => 0,
    }
}
