//! What the compiler lets through under a `format` and a validator does not, made patterns
//! beside it.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::schema::{self, Place};

/// No leap second: only the last second of some days has one, of which a pattern knows nothing.
const TIME: &str = "^..:..:[0-5]";
/// The same behind a date.
const DATE_TIME_SECOND: &str = "^.{10}...:..:[0-5]";
/// 29 February in leap years only.
const DATE: &str = "^(?:....-(?:0[13-9]|1[0-2])|....-02-[01]|....-02-2[0-8]|\
    (?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)";
/// RFC 5321, 4.5.3.1; 253 is what a domain of 255 octets on the wire has as text.
const EMAIL: &str = "^[^@]{1,64}@[^@]{1,253}$";
/// RFC 1123.
const HOSTNAME: &str = "^.{1,253}$";

/// The patterns that a format lacks.
fn patterns(format: &str) -> &'static [&'static str] {
    match format {
        "time" => &[TIME],
        "date" => &[DATE],
        "date-time" => &[DATE, DATE_TIME_SECOND],
        "email" => &[EMAIL],
        "hostname" => &[HOSTNAME],
        _ => &[],
    }
}

/// Adds the patterns to a schema that was checked, wherever it is one.
pub(crate) fn tighten(root: &mut Value) {
    let mut references = Vec::new();
    walk(root, &mut references);
    // What a reference names is a schema, wherever it stands; each is walked once.
    let mut seen = HashSet::new();
    while let Some(pointer) = references.pop() {
        if !seen.contains(&pointer)
            && let Some(target) = root.pointer_mut(&pointer)
        {
            walk(target, &mut references);
            seen.insert(pointer);
        }
    }
}

fn walk(schema: &mut Value, references: &mut Vec<String>) {
    let Some(fields) = schema.as_object_mut() else { return };
    if let Some(pointer) = fields.get("$ref").and_then(Value::as_str) {
        references.push(pointer.trim_start_matches('#').trim_end_matches('/').to_owned());
    }
    let format = fields.get("format").and_then(Value::as_str);
    for pattern in format.map_or(&[][..], patterns) {
        add(fields, pattern);
    }
    for (keyword, value) in fields {
        match (schema::place(keyword), value) {
            (Place::Schemas, Value::Array(list)) => {
                list.iter_mut().for_each(|schema| walk(schema, references));
            }
            (Place::Named, Value::Object(named)) => {
                named.values_mut().for_each(|schema| walk(schema, references));
            }
            (Place::Schema | Place::Schemas, value) => walk(value, references),
            _ => {}
        }
    }
}

/// Adds a pattern, once.
fn add(fields: &mut Map<String, Value>, pattern: &str) {
    let known = fields.get("pattern").cloned();
    match (known, fields.get_mut("allOf").and_then(Value::as_array_mut)) {
        (None, _) => drop(fields.insert("pattern".to_owned(), pattern.into())),
        (Some(known), _) if known == pattern => {}
        (_, Some(list)) if list.contains(&json!({ "pattern": pattern })) => {}
        (_, Some(list)) => list.push(json!({ "pattern": pattern })),
        (_, None) => {
            let list = json!([{ "pattern": pattern }]);
            drop(fields.insert("allOf".to_owned(), list));
        }
    }
}
