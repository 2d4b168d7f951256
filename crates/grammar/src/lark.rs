//! Grammars in Lark's syntax: what is accepted of a client's, and parts of our own.

use llguidance::regex_to_lark;
use serde_json::{Deserializer, Value};

use crate::{GrammarError, formats, schema};

/// Brackets in brackets; the compiler works on them recursively.
const MAX_DEPTH: usize = 250;

/// A text as a terminal.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression as a terminal.
///
/// # Errors
/// It is empty.
pub(crate) fn regex(regex: &str) -> Result<String, GrammarError> {
    // What is matched is the whole answer, so anchors around it say nothing more.
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let is_anchor = regex.ends_with('$') && !regex.ends_with("\\$");
    let regex = if is_anchor { &regex[..regex.len() - 1] } else { regex };
    if regex.is_empty() {
        return Err(GrammarError::at("", "a regular expression must not be empty"));
    }
    check_depth(regex)?;
    Ok(format!("/{}/", regex_to_lark(regex, "")))
}

/// A grammar for what a regular expression matches.
///
/// # Errors
/// As [`regex`].
pub(crate) fn of_regex(source: &str) -> Result<String, GrammarError> {
    Ok(format!("start: {}\n", regex(source)?))
}

/// Checks what the compiler would take amiss, or not look at, and gives the grammar as it takes it.
///
/// # Errors
/// Another syntax, nesting without end, a schema that is not enforced.
pub(crate) fn check(text: &str) -> Result<String, GrammarError> {
    if text.contains("::=") {
        let what = "grammars are taken in Lark's syntax (`start: \"a\" | \"b\"`), not in BNF's";
        return Err(GrammarError::at("", what));
    }
    check_depth(text)?;
    with_schemas(text)
}

/// Checks the schemas in a grammar, and gives it with them as the compiler takes them.
///
/// # Errors
/// One that is not enforced.
pub(crate) fn with_schemas(text: &str) -> Result<String, GrammarError> {
    const NAME: &str = "%json";
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(NAME) {
        let (before, after) = rest.split_at(at + NAME.len());
        done.push_str(before);
        rest = after;
        // In a string or a comment it is followed by anything.
        let mut schemas = Deserializer::from_str(rest).into_iter::<Value>();
        let Some(Ok(Value::Object(mut fields))) = schemas.next() else { continue };
        let end = schemas.byte_offset();
        let line = done.lines().count().max(1);
        let style = fields.get("x-guidance").cloned().filter(is_style);
        if style.is_some() {
            fields.shift_remove("x-guidance");
        }
        let mut schema = Value::Object(fields);
        schema::check(&schema).map_err(|error| match error {
            GrammarError::At { pointer, what } => {
                let what = format!("in the schema of line {line}, at {pointer:?}: {what}");
                GrammarError::at("", what)
            }
            other => other,
        })?;
        formats::tighten(&mut schema);
        if let Some(style) = style {
            schema["x-guidance"] = style;
        }
        done.push(' ');
        done.push_str(&schema.to_string());
        rest = &rest[end..];
    }
    done.push_str(rest);
    Ok(done)
}

/// Whether a schema's `x-guidance` says only how its JSON is written, not what is enforced.
fn is_style(guidance: &Value) -> bool {
    const STYLE: &[&str] =
        &["whitespace_flexible", "whitespace_pattern", "item_separator", "key_separator"];
    let fields = guidance.as_object();
    fields.is_some_and(|fields| fields.keys().all(|name| STYLE.contains(&name.as_str())))
}

/// Counts brackets wherever they stand, in strings too.
fn check_depth(text: &str) -> Result<(), GrammarError> {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_DEPTH {
        let what = format!("brackets are nested {deepest} deep, more than {MAX_DEPTH}");
        return Err(GrammarError::at("", what));
    }
    Ok(())
}
