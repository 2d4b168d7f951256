//! `docs/reference.md`, made of the document.

use std::fmt::Write as _;

use serde_json::Value;

const HEAD: &str = "\
# Reference

Every endpoint and every field of a request, of `/openapi.json` (a server has it, and a page to
read it at `/docs`; [openapi.json](openapi.json) is a copy). Written by `just openapi`.
";

/// All of it, as Markdown.
pub(crate) fn reference(document: &Value) -> String {
    let mut out = HEAD.to_owned();
    let mut group = None;
    let mut bodies = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let tag = operation["tags"][0].as_str().expect("a tag");
            if group.replace(tag.to_owned()).is_none_or(|before| before != tag) {
                write!(out, "\n## {tag}\n").expect("a string takes it");
            }
            write!(out, "\n### `{} {path}`\n", method.to_uppercase()).expect("a string takes it");
            for text in ["summary", "description"] {
                if let Some(text) = operation[text].as_str() {
                    write!(out, "\n{}.\n", text.trim_end_matches('.')).expect("a string takes it");
                }
            }
            let parameters: Vec<_> =
                operation["parameters"].as_array().into_iter().flatten().collect();
            if !parameters.is_empty() {
                out += "\n| parameter | | |\n|---|---|---|\n";
                for parameter in parameters {
                    let is_required = parameter["required"] == true;
                    row(
                        &mut out,
                        &parameter["name"],
                        &parameter["schema"],
                        &parameter["description"],
                        is_required,
                    );
                }
            }
            let body = operation.pointer("/requestBody/content/application~1json/schema/$ref");
            if let Some(name) = body.and_then(Value::as_str).map(name_of) {
                fields(&mut out, &document["components"]["schemas"][name]);
                bodies.push(name.to_owned());
            }
        }
    }
    out += "\n## Parts of requests\n";
    for name in parts(document, &bodies) {
        let schema = &document["components"]["schemas"][&*name];
        write!(out, "\n### {name}\n").expect("a string takes it");
        if let Some(text) = schema["description"].as_str() {
            write!(out, "\n{text}\n").expect("a string takes it");
        }
        if schema["properties"].is_object() {
            fields(&mut out, schema);
        } else {
            write!(out, "\n`{}`\n", type_of(schema)).expect("a string takes it");
            for one in schema["anyOf"].as_array().into_iter().flatten() {
                if one["properties"].is_object() {
                    fields(&mut out, one);
                }
            }
        }
    }
    out
}

fn name_of(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or_default()
}

/// The schemas that bodies have within, by name.
fn parts(document: &Value, bodies: &[String]) -> Vec<String> {
    let mut found: Vec<String> = bodies.to_vec();
    let mut at = 0;
    while at < found.len() {
        let text = document["components"]["schemas"][&*found[at]].to_string();
        for name in text.split("#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap_or_default().to_owned();
            if !found.contains(&name) {
                found.push(name);
            }
        }
        at += 1;
    }
    found.retain(|name| !bodies.contains(name));
    found.sort();
    found
}

fn fields(out: &mut String, schema: &Value) {
    *out += "\n| field | | |\n|---|---|---|\n";
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, schema) in schema["properties"].as_object().expect("fields") {
        let name = Value::from(name.as_str());
        row(out, &name, schema, &schema["description"], required.contains(&name));
    }
}

fn row(out: &mut String, name: &Value, schema: &Value, description: &Value, is_required: bool) {
    let name = name.as_str().expect("a name");
    let mut kind = type_of(schema);
    if is_required {
        kind += ", required";
    }
    let text = description.as_str().unwrap_or_default().replace("\n\n", " ").replace('|', "\\|");
    let limits = limits(schema);
    let gap = if text.is_empty() || limits.is_empty() { "" } else { " " };
    writeln!(out, "| `{name}` | {} | {text}{gap}{limits} |", kind.replace('|', "\\|"))
        .expect("a string takes it");
}

fn limits(schema: &Value) -> String {
    let words = [
        ("minimum", "at least "),
        ("exclusiveMinimum", "above "),
        ("maximum", "at most "),
        ("minItems", "entries at least "),
        ("maxItems", "entries at most "),
        ("minLength", "characters at least "),
        ("maxLength", "characters at most "),
        ("default", "default "),
    ];
    let said: Vec<_> = words
        .iter()
        .filter(|(name, _)| !schema[*name].is_null())
        .map(|(name, word)| format!("{word}{}", schema[*name]))
        .collect();
    if said.is_empty() { String::new() } else { format!("({})", said.join(", ")) }
}

/// A type in words; null, which every field that is not required may be, is left out.
fn type_of(schema: &Value) -> String {
    if let Some(place) = schema["$ref"].as_str() {
        return name_of(place).to_owned();
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let any = any.iter().filter(|one| one["type"] != "null").map(|one| {
            let kind = &one["properties"]["type"];
            if kind.is_null() { type_of(one) } else { type_of(kind) }
        });
        return any.collect::<Vec<_>>().join(" | ");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter(|word| !word.is_null()).map(ToString::to_string);
        return words.collect::<Vec<_>>().join(" | ");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").and_then(Value::as_str),
        kind => kind.as_str(),
    };
    match kind {
        None => "any".to_owned(),
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"]["type"].is_string() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        Some(kind) => kind.to_owned(),
    }
}
