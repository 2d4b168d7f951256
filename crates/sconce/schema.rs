//! From a Rust type to the JSON schema that an answer of that type is held to.
//!
//! What `schemars` says of a type is widened nowhere, and narrowed where a grammar would let a
//! model write what the type does not read: integers have their type's bounds, objects have no
//! fields beside their own, and variants that are flattened into an object are objects of their
//! own. Keywords that bound nothing are left out, so that a model is not shown them either.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// Alternatives of one object at most, where several enums are flattened into it.
const MAX_ALTERNATIVES: usize = 64;
/// References and compositions within each other that are put together.
const MAX_DEPTH: usize = 16;
/// The largest integer that is a float too and, like its negative, an i64.
const LARGEST: i64 = 9_223_372_036_854_774_784;

/// What composes a schema of others.
const COMPOSERS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];
/// What bounds nothing.
const ANNOTATIONS: [&str; 9] = [
    "$schema",
    "title",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
];

/// The JSON schema of a type's JSON, as [`Sconce::chat_as`](crate::Sconce::chat_as) holds
/// answers to it; [`Tool`](crate::Tool)s take it too.
///
/// ```
/// #[derive(schemars::JsonSchema)]
/// struct City {
///     name: String,
///     population: u8,
/// }
///
/// let schema = sconce::schema_of::<City>();
/// assert_eq!(schema["required"], serde_json::json!(["name", "population"]));
/// assert_eq!(schema["properties"]["population"]["maximum"], 255);
/// ```
#[must_use]
pub fn schema_of<T: JsonSchema + ?Sized>() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    held(&generator.into_root_schema_for::<T>().to_value())
}

/// The schema that is held to, of the one that says what a type reads.
fn held(root: &Value) -> Value {
    Held { root }.schema(root)
}

struct Held<'a> {
    root: &'a Value,
}

impl Held<'_> {
    fn schema(&self, schema: &Value) -> Value {
        let Value::Object(fields) = schema else { return schema.clone() };
        let definitions = fields.get("$defs").cloned();
        let mut fields: Fields = fields
            .iter()
            .filter(|(key, _)| !bounds_nothing(key) && *key != "$defs")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let description = fields.shift_remove("description");
        let mut held = match self.alternatives(&fields, 0).filter(|_| is_composed_object(&fields)) {
            Some(mut alternatives) if alternatives.len() == 1 => self.flat(alternatives.remove(0)),
            Some(alternatives) => {
                json!({ "anyOf": alternatives.into_iter().map(|one| self.flat(one)).collect::<Vec<_>>() })
            }
            None => self.flat(fields),
        };
        if let Value::Object(held) = &mut held {
            // Where a reader of the schema looks for it.
            if let Some(description) = description {
                held.shift_insert(0, "description".to_owned(), description);
            }
            if let Some(Value::Object(definitions)) = definitions {
                let definitions =
                    definitions.iter().map(|(name, one)| (name.clone(), self.schema(one)));
                held.insert("$defs".to_owned(), Value::Object(definitions.collect()));
            }
        }
        held
    }

    /// A schema whose own keywords are all that there is to an object, or that is none.
    fn flat(&self, mut fields: Fields) -> Value {
        // A set takes what it has already, and `anyOf` is as good to a reader: the type decides.
        fields.shift_remove("uniqueItems");
        if let Some(alternatives) = fields.shift_remove("oneOf") {
            fields.insert("anyOf".to_owned(), alternatives);
        }
        if let Some(unevaluated) = fields.shift_remove("unevaluatedProperties") {
            fields.entry("additionalProperties").or_insert(unevaluated);
        }
        for (keyword, value) in &mut fields {
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(schemas)) => {
                    schemas.values_mut().for_each(|schema| *schema = self.schema(schema));
                }
                ("allOf" | "anyOf" | "prefixItems", Value::Array(schemas)) => {
                    schemas.iter_mut().for_each(|schema| *schema = self.schema(schema));
                }
                ("items" | "additionalProperties", schema) => *schema = self.schema(schema),
                _ => {}
            }
        }
        if let Some(Value::Object(properties)) = fields.get_mut("properties") {
            // As serde writes them: the tag says which of the others there are.
            let tags = properties.keys().filter(|name| properties[*name].get("const").is_some());
            for tag in tags.cloned().collect::<Vec<_>>().into_iter().rev() {
                if let Some(schema) = properties.shift_remove(&tag) {
                    properties.shift_insert(0, tag, schema);
                }
            }
        }
        if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
            // The digits of other scripts are no number to `parse`.
            let of_ascii = |(pattern, schema)| {
                let pattern = match pattern {
                    r"^\d+$" => "^(0|[1-9][0-9]{0,17})$".to_owned(),
                    r"^-?\d+$" => "^(0|-?[1-9][0-9]{0,17})$".to_owned(),
                    other => other.to_owned(),
                };
                (pattern, schema)
            };
            let patterns_before = std::mem::take(patterns);
            let entries = patterns_before.iter().map(|(name, one)| (name.as_str(), one.clone()));
            *patterns = entries.map(of_ascii).collect();
        }
        let is_open = ["additionalProperties", "patternProperties"];
        let is_composed = COMPOSERS.iter().any(|keyword| fields.contains_key(*keyword));
        if has_type(&fields, "object")
            && !is_composed
            && !is_open.iter().any(|keyword| fields.contains_key(*keyword))
        {
            fields.insert("additionalProperties".to_owned(), false.into());
        }
        formatted(fields)
    }

    /// The schemas without composition that one with it stands for: each has all keywords of
    /// one way through its references and alternatives. `None` where they do not go together.
    fn alternatives(&self, fields: &Fields, depth: usize) -> Option<Vec<Fields>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let own: Fields = fields
            .iter()
            .filter(|(key, _)| {
                !bounds_nothing(key) && !COMPOSERS.contains(&key.as_str()) && *key != "$defs"
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut all = vec![own];
        for (keyword, value) in fields {
            let schemas = match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    vec![vec![self.root.pointer(reference.strip_prefix('#')?)?]]
                }
                ("allOf", Value::Array(schemas)) => schemas.iter().map(|one| vec![one]).collect(),
                ("anyOf" | "oneOf", Value::Array(schemas)) => vec![schemas.iter().collect()],
                _ => continue,
            };
            for choice in schemas {
                let mut ways = Vec::new();
                for schema in choice {
                    ways.extend(self.alternatives(schema.as_object()?, depth + 1)?);
                }
                let together = all.iter().flat_map(|one| ways.iter().map(move |way| (one, way)));
                all = together.map(|(one, way)| merged(one, way)).collect::<Option<_>>()?;
                if all.len() > MAX_ALTERNATIVES {
                    return None;
                }
            }
        }
        Some(all)
    }
}

fn bounds_nothing(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword) || keyword.starts_with("x-")
}

/// Whether a schema has properties of its own beside others that it is composed of.
fn is_composed_object(fields: &Fields) -> bool {
    let composers = COMPOSERS.iter().filter(|keyword| fields.contains_key(**keyword)).count();
    let has_own = ["properties", "additionalProperties", "unevaluatedProperties"]
        .iter()
        .any(|keyword| fields.contains_key(*keyword));
    composers > 1 || composers == 1 && has_own || fields.contains_key("allOf")
}

/// The keywords of two schemas of one object.
fn merged(one: &Fields, other: &Fields) -> Option<Fields> {
    let mut all = one.clone();
    for (keyword, value) in other {
        let Some(before) = all.get_mut(keyword) else {
            all.insert(keyword.clone(), value.clone());
            continue;
        };
        match (keyword.as_str(), before, value) {
            (_, before, value) if before == value => {}
            ("description", _, _) => {}
            ("properties" | "patternProperties", Value::Object(before), Value::Object(more)) => {
                for (name, schema) in more {
                    let both = match before.get(name) {
                        Some(before) if before != schema => json!({ "allOf": [before, schema] }),
                        _ => schema.clone(),
                    };
                    before.insert(name.clone(), both);
                }
            }
            ("required", Value::Array(before), Value::Array(more)) => {
                let fresh: Vec<_> =
                    more.iter().filter(|name| !before.contains(name)).cloned().collect();
                before.extend(fresh);
            }
            // What one denies the other may have.
            ("additionalProperties" | "unevaluatedProperties", before, value) => {
                if *before == Value::Bool(false) {
                    *before = value.clone();
                } else if *value != Value::Bool(false) {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(all)
}

fn has_type(fields: &Fields, name: &str) -> bool {
    match fields.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}

/// The same with what a format of `schemars` means of numbers and addresses.
fn formatted(mut fields: Fields) -> Value {
    let Some(format) = fields.get("format").and_then(Value::as_str) else {
        return Value::Object(fields);
    };
    let is_number = has_type(&fields, "integer") || has_type(&fields, "number");
    match format {
        "ip" => {
            let of = |format: &str| json!({ "type": "string", "format": format });
            json!({ "anyOf": ([vec![of("ipv4"), of("ipv6")], beside(&fields, "string")].concat()) })
        }
        "float" | "double" if is_number => {
            fields.shift_remove("format");
            Value::Object(fields)
        }
        _ => match integers(format).filter(|_| is_number) {
            Some(bounds) => bounded(fields, bounds),
            None => Value::Object(fields),
        },
    }
}

/// The integers of a type that are floats too.
fn integers(format: &str) -> Option<(i64, i64)> {
    Some(match format {
        "int8" => (i8::MIN.into(), i8::MAX.into()),
        "int16" => (i16::MIN.into(), i16::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        "int64" | "int128" | "int" => (-LARGEST, LARGEST),
        "uint8" => (0, u8::MAX.into()),
        "uint16" => (0, u16::MAX.into()),
        "uint32" => (0, u32::MAX.into()),
        "uint64" | "uint128" | "uint" => (0, LARGEST),
        _ => return None,
    })
}

/// An integer of a type, within its own bounds.
fn bounded(mut fields: Fields, (least, most): (i64, i64)) -> Value {
    fields.shift_remove("format");
    if fields.contains_key("enum") || fields.contains_key("const") {
        return Value::Object(fields);
    }
    let own = |keyword: &str| fields.get(keyword).and_then(Value::as_f64).map(|x| x as i64);
    let least = own("minimum").map_or(least, |own| own.max(least));
    let most = own("maximum").map_or(most, |own| own.min(most));
    let range = |fields: &Fields, least: i64, most: i64| {
        let mut fields = fields.clone();
        fields.insert("minimum".to_owned(), least.into());
        fields.insert("maximum".to_owned(), most.into());
        Value::Object(fields)
    };
    if least >= 0 || most < 0 {
        return range(&fields, least, most);
    }
    // In two parts: -0 is no integer to serde_json.
    let others = beside(&fields, "integer");
    fields.insert("type".to_owned(), "integer".into());
    let parts = vec![range(&fields, 0, most), range(&fields, least, -1)];
    json!({ "anyOf": ([parts, others].concat()) })
}

/// Schemas of the types that a schema names beside one, such as null.
fn beside(fields: &Fields, name: &str) -> Vec<Value> {
    match fields.get("type") {
        Some(Value::Array(types)) => {
            types.iter().filter(|one| *one != name).map(|one| json!({ "type": one })).collect()
        }
        _ => Vec::new(),
    }
}
