//! From the schemas of Rust's types to those of what is sent.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Refused;

const PLACE: &str = "#/components/schemas/";

/// Merges flattened types into those that flatten them, takes out what a body refuses, and what
/// nothing refers to then.
pub(super) fn complete(document: &mut Value, bodies: &[Refused]) {
    let schemas = document["components"]["schemas"].take();
    let Value::Object(mut schemas) = schemas else { panic!("there are schemas") };
    let whole = schemas.clone();
    for schema in schemas.values_mut() {
        flatten(schema, &whole);
    }
    for (name, refused) in bodies {
        let body = &mut schemas[*name];
        let fields = body["properties"].as_object_mut().expect("a body has fields");
        fields.retain(|field, _| !refused.contains(&field.as_str()));
        body["additionalProperties"] = false.into();
    }
    document["components"]["schemas"] = Value::Object(Map::new());
    rewrite(document);
    schemas.values_mut().for_each(rewrite);
    let used = reachable(document, &schemas);
    schemas.retain(|name, _| used.contains(name));
    document["components"]["schemas"] = Value::Object(schemas);
}

/// `allOf` is how a flattened type is described, which no object with other fields fits.
fn flatten(schema: &mut Value, whole: &Map<String, Value>) {
    let Some(parts) = schema.get("allOf").and_then(Value::as_array).cloned() else { return };
    let (mut fields, mut required) = (Map::new(), Vec::new());
    // The type's own fields come last in the list, and first for readers.
    for part in parts.iter().rev() {
        let part = part["$ref"].as_str().and_then(|at| whole.get(at.strip_prefix(PLACE)?));
        let part = part.unwrap_or_else(|| parts.last().expect("a part of its own"));
        for (name, field) in part["properties"].as_object().into_iter().flatten() {
            fields.entry(name).or_insert_with(|| field.clone());
        }
        required.extend(part["required"].as_array().into_iter().flatten().cloned());
    }
    let object = schema.as_object_mut().expect("it has a field");
    object.shift_remove("allOf");
    object.insert("type".to_owned(), "object".into());
    object.insert("properties".to_owned(), fields.into());
    if !required.is_empty() {
        object.insert("required".to_owned(), required.into());
    }
}

/// Lists of alternatives may overlap, and lines of comments end where a line is full.
fn rewrite(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        Value::Object(fields) => {
            if let Some(alternatives) = fields.shift_remove("oneOf") {
                fields.insert("anyOf".to_owned(), alternatives);
                describe_whole(fields);
            }
            if let Some(Value::String(format)) = fields.get_mut("format") {
                *format = format.replace("u-int", "uint");
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                let paragraphs = text.split("\n\n").map(|lines| lines.replace('\n', " "));
                *text = paragraphs.collect::<Vec<_>>().join("\n\n");
            }
            fields.values_mut().for_each(rewrite);
        }
        _ => {}
    }
}

/// A description that stands at the one alternative to null belongs to the field.
fn describe_whole(fields: &mut Map<String, Value>) {
    let Some([one, null]) = fields["anyOf"].as_array_mut().map(Vec::as_mut_slice) else { return };
    let one = if one["type"] == "null" { null } else { one };
    let words = one.get("$ref").is_some().then(|| one.as_object_mut()).flatten();
    if let Some(text) = words.and_then(|words| words.shift_remove("description")) {
        fields.insert("description".to_owned(), text);
    }
}

/// The schemas that the document refers to, also by way of others.
fn reachable(document: &Value, schemas: &Map<String, Value>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut waiting = vec![document];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(fields) => waiting.extend(fields.values()),
            Value::String(text) => {
                let name = text.strip_prefix(PLACE).filter(|name| schemas.contains_key(*name));
                if let Some(name) = name.filter(|name| used.insert((*name).to_owned())) {
                    waiting.push(&schemas[name]);
                }
            }
            _ => {}
        }
    }
    used
}
