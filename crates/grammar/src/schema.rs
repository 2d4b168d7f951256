//! What of JSON schemas is enforced. Whatever else a schema says is refused, with its place:
//! the compiler would ignore a keyword that it does not know, and the answer would not be
//! what was asked for.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::GrammarError;

/// Schemas in schemas; the compiler works on them recursively.
const MAX_DEPTH: usize = 64;

/// The values of `format` that are enforced.
const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// The automaton that divides has as many states.
const MAX_DIVISOR: u64 = 9_999;
const TYPES: &[&str] = &["null", "boolean", "number", "integer", "string", "array", "object"];

/// What stands behind a keyword.
#[derive(Clone, Copy)]
enum Shape {
    /// Nothing that bounds an answer.
    Annotation,
    Schema,
    /// An array of schemas, at least one.
    Schemas,
    /// A schema, or in older drafts an array of them.
    Items,
    /// An object of schemas.
    Named,
    Value,
    /// An array of values, at least one.
    Values,
    Names,
    Count,
    Number,
    Divisor,
    /// A number, or in draft 4 whether the bound beside it is exclusive.
    Exclusive,
    Pattern,
    Format,
    Type,
    Reference,
}

/// The shape of a keyword that is enforced, or harmless.
fn shape(keyword: &str) -> Option<Shape> {
    Some(match keyword {
        "title" | "description" | "default" | "example" | "examples" | "$comment" | "$id"
        | "id" | "$schema" | "$anchor" | "deprecated" | "readOnly" | "writeOnly" => {
            Shape::Annotation
        }
        "additionalProperties" | "additionalItems" => Shape::Schema,
        "items" => Shape::Items,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Shape::Schemas,
        "properties" | "patternProperties" | "$defs" | "definitions" => Shape::Named,
        "const" => Shape::Value,
        "enum" => Shape::Values,
        "required" => Shape::Names,
        "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties" | "maxProperties" => {
            Shape::Count
        }
        "minimum" | "maximum" => Shape::Number,
        "multipleOf" => Shape::Divisor,
        "exclusiveMinimum" | "exclusiveMaximum" => Shape::Exclusive,
        "pattern" => Shape::Pattern,
        "format" => Shape::Format,
        "type" => Shape::Type,
        "$ref" => Shape::Reference,
        _ => return None,
    })
}

/// Where the schemas are in what stands behind a keyword.
pub(crate) enum Place {
    /// It has none.
    None,
    /// It is one.
    Schema,
    /// A list of them, or one.
    Schemas,
    /// An object of them.
    Named,
}

/// Where a keyword has schemas.
pub(crate) fn place(keyword: &str) -> Place {
    match shape(keyword) {
        Some(Shape::Schema) => Place::Schema,
        Some(Shape::Schemas | Shape::Items) => Place::Schemas,
        Some(Shape::Named) => Place::Named,
        _ => Place::None,
    }
}

/// Checks that all of a schema is enforced.
///
/// # Errors
/// The first place where it is not, or where the schema is none.
pub fn check(schema: &Value) -> Result<(), GrammarError> {
    let mut walk = Walk { root: schema, seen: HashSet::new(), pending: Vec::new() };
    walk.schema(schema, &mut String::new(), 0)?;
    while let Some((target, mut at)) = walk.pending.pop() {
        walk.schema(target, &mut at, 0)?;
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Value,
    /// References that were met, so that recursive schemas end.
    seen: HashSet<&'a str>,
    /// What they name, and where that is: a schema too, wherever it stands.
    pending: Vec<(&'a Value, String)>,
}

impl<'a> Walk<'a> {
    fn schema(
        &mut self,
        schema: &'a Value,
        at: &mut String,
        depth: usize,
    ) -> Result<(), GrammarError> {
        if depth > MAX_DEPTH {
            let what = format!("schemas are nested more than {MAX_DEPTH} deep");
            return Err(GrammarError::at(at.as_str(), what));
        }
        if schema.is_boolean() {
            return Ok(());
        }
        let fields = schema
            .as_object()
            .ok_or_else(|| GrammarError::at(at.as_str(), "a schema is an object, true or false"))?;
        check_together(fields, at)?;
        for (keyword, value) in fields {
            self.below(at, keyword, |walk, at| walk.keyword(keyword, value, at, depth))?;
        }
        Ok(())
    }

    /// Goes one step down in the JSON pointer.
    fn below(
        &mut self,
        at: &mut String,
        step: &str,
        go: impl FnOnce(&mut Self, &mut String) -> Result<(), GrammarError>,
    ) -> Result<(), GrammarError> {
        let len = at.len();
        at.push('/');
        at.push_str(&step.replace('~', "~0").replace('/', "~1"));
        go(self, at)?;
        at.truncate(len);
        Ok(())
    }

    fn keyword(
        &mut self,
        keyword: &str,
        value: &'a Value,
        at: &mut String,
        depth: usize,
    ) -> Result<(), GrammarError> {
        let refuse = |at: &str, what: String| Err(GrammarError::at(at, what));
        let Some(shape) = shape(keyword) else {
            return refuse(at, format!("the keyword {keyword:?} is not supported"));
        };
        let is_right = match shape {
            Shape::Annotation | Shape::Value => true,
            Shape::Schema => return self.schema(value, at, depth + 1),
            Shape::Items if !value.is_array() => return self.schema(value, at, depth + 1),
            Shape::Items | Shape::Schemas => match value.as_array() {
                Some(schemas) if !schemas.is_empty() => {
                    for (i, schema) in schemas.iter().enumerate() {
                        let go =
                            |walk: &mut Self, at: &mut String| walk.schema(schema, at, depth + 1);
                        self.below(at, &i.to_string(), go)?;
                    }
                    true
                }
                _ => false,
            },
            Shape::Named => match value.as_object() {
                Some(schemas) => {
                    for (name, schema) in schemas {
                        self.below(at, name, |walk, at| walk.schema(schema, at, depth + 1))?;
                    }
                    true
                }
                None => false,
            },
            Shape::Values => value.as_array().is_some_and(|values| !values.is_empty()),
            Shape::Names => {
                value.as_array().is_some_and(|names| names.iter().all(Value::is_string))
            }
            Shape::Count => value.is_u64(),
            Shape::Number => value.is_number(),
            Shape::Divisor => value.as_f64().is_some_and(is_small_divisor),
            Shape::Exclusive => value.is_number() || value.is_boolean(),
            Shape::Pattern => value.is_string(),
            Shape::Format => match value.as_str() {
                Some(format) if FORMATS.contains(&format) => true,
                Some(format) => {
                    let known = FORMATS.join(", ");
                    return refuse(
                        at,
                        format!("the format {format:?} is not supported, but {known}"),
                    );
                }
                None => false,
            },
            Shape::Type => {
                let is_type =
                    |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
                match value {
                    Value::Array(types) => !types.is_empty() && types.iter().all(is_type),
                    one => is_type(one),
                }
            }
            Shape::Reference => match value.as_str() {
                Some(reference) => return self.follow(reference, at),
                None => false,
            },
        };
        if is_right { Ok(()) } else { refuse(at, format!("{keyword} must be {}", expected(shape))) }
    }

    fn follow(&mut self, reference: &'a str, at: &str) -> Result<(), GrammarError> {
        let root = self.root;
        let target = match reference {
            "#" | "#/" => Some(root),
            _ => reference.strip_prefix('#').and_then(|pointer| {
                // The compiler takes names as they are.
                let is_plain = pointer.starts_with('/') && !pointer.contains(['~', '%']);
                is_plain.then(|| root.pointer(pointer)).flatten()
            }),
        };
        let Some(target) = target else {
            let what = format!(
                "the reference {reference:?} names no place in this schema, as \"#/$defs/name\" does"
            );
            return Err(GrammarError::at(at, what));
        };
        if self.seen.insert(reference) {
            self.pending.push((target, reference[1..].trim_end_matches('/').to_owned()));
        }
        Ok(())
    }
}

/// Keywords that the compiler does not take into account beside others.
fn check_together(fields: &Map<String, Value>, at: &str) -> Result<(), GrammarError> {
    let has_old_items = fields.get("items").is_some_and(Value::is_array);
    let refuse = |keyword: &str, what: &str| Err(GrammarError::at(format!("{at}/{keyword}"), what));
    if fields.contains_key("additionalItems") && !has_old_items {
        return refuse("additionalItems", "it bounds nothing unless items is an array; use items");
    }
    if fields.contains_key("prefixItems") && has_old_items {
        return refuse("items", "beside prefixItems it must be a schema");
    }
    for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        if fields.get(exclusive).is_some_and(Value::is_boolean) && !fields.contains_key(bound) {
            return refuse(exclusive, "it must be a number where there is no such bound beside it");
        }
    }
    Ok(())
}

/// Whether the significant digits of a number make a small one: 2500 and 0.25 make 25.
fn is_small_divisor(number: f64) -> bool {
    let digits = format!("{number:e}");
    let digits = digits.split('e').next().unwrap_or_default().replace('.', "");
    number > 0.0 && digits.parse().is_ok_and(|digits: u64| digits <= MAX_DIVISOR)
}

fn expected(shape: Shape) -> String {
    match shape {
        Shape::Annotation | Shape::Value => "a value".to_owned(),
        Shape::Schema => "a schema".to_owned(),
        Shape::Schemas | Shape::Items => "an array of schemas with at least one".to_owned(),
        Shape::Named => "an object of schemas".to_owned(),
        Shape::Values => "an array with at least one value".to_owned(),
        Shape::Names => "an array of strings".to_owned(),
        Shape::Count => "a whole number that is not negative".to_owned(),
        Shape::Number => "a number".to_owned(),
        Shape::Divisor => {
            format!(
                "a positive number whose digits without zeros around make at most {MAX_DIVISOR}"
            )
        }
        Shape::Exclusive => "a number or a boolean".to_owned(),
        Shape::Pattern | Shape::Format | Shape::Reference => "a string".to_owned(),
        Shape::Type => format!("one of {}, or an array of them", TYPES.join(", ")),
    }
}
