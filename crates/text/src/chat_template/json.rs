//! transformers' `tojson`: Python's `json.dumps`, which escapes nothing for HTML.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, Value,
    value::{ObjectRepr, Rest, ValueKind, ValueOrKwargs},
};

use super::{arguments::bind, budget, generator::Generator, python};

/// How deep a value may be nested: a namespace may hold itself.
const MAX_DEPTH: usize = 200;

/// Characters of an indent at most, which every line repeats.
const MAX_INDENT: usize = 64;

struct Style {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

pub(super) fn tojson(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = bind("tojson", names, &args)?;
    let truth = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| spaces(&indent));
    let indent = indent.transpose()?;
    let (item_separator, key_separator) = match separators.filter(|value| !value.is_none()) {
        Some(given) => {
            let parts: Vec<Value> = given.try_iter()?.collect();
            match &parts[..] {
                [item, key] => (python::str_of(item), python::str_of(key)),
                _ => return Err(invalid("separators must be two strings".to_owned())),
            }
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let (sort_keys, ensure_ascii) = (truth(&sort_keys), truth(&ensure_ascii));
    let style = Style { indent, item_separator, key_separator, sort_keys, ensure_ascii };
    let mut out = String::new();
    dump(value, &style, 0, &mut out)?;
    budget::reserve(out.len())?;
    Ok(Value::from(out))
}

fn spaces(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.chars().take(MAX_INDENT).collect());
    }
    let width = match indent.kind() {
        ValueKind::Bool => i64::from(indent.is_true()),
        _ => {
            indent.as_i64().ok_or_else(|| invalid("indent must be a number or text".to_owned()))?
        }
    };
    Ok(" ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT)))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if out.len() >= budget::left() {
        return budget::reserve(out.len());
    }
    if depth > MAX_DEPTH {
        return Err(invalid(format!("a value is nested deeper than {MAX_DEPTH} levels")));
    }
    if let Some(text) = value.as_str() {
        push_string(text, style.ensure_ascii, out);
        return Ok(());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Iterable if value.downcast_object_ref::<Generator>().is_some() => {
            return Err(invalid("a generator is not JSON serializable".to_owned()));
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            list(items, ('[', ']'), style, depth, out, |item, out| {
                dump(&item, style, depth + 1, out)
            })?;
        }
        ValueKind::Map
            if value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Map) =>
        {
            let object = value.as_object().expect("just looked at");
            let mut pairs: Vec<_> = object.try_iter_pairs().into_iter().flatten().collect();
            if style.sort_keys {
                pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            list(pairs.into_iter(), ('{', '}'), style, depth, out, |(key, item), out| {
                push_string(&name(&key)?, style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                dump(&item, style, depth + 1, out)
            })?;
        }
        kind => return Err(invalid(format!("{kind} is not JSON serializable"))),
    }
    Ok(())
}

fn list<T>(
    items: impl Iterator<Item = T>,
    (open, close): (char, char),
    style: &Style,
    depth: usize,
    out: &mut String,
    mut push: impl FnMut(T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    let mut empty = true;
    for item in items {
        out.push_str(if empty { "" } else { &style.item_separator });
        line(depth + 1, out);
        push(item, out)?;
        empty = false;
    }
    if !empty {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match number {
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            number if number.is_nan() => "NaN".to_owned(),
            number => python::float(number),
        },
        _ => value.to_string(),
    }
}

/// A key as text: JSON has no others.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(python::str_of(key)),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(invalid(format!("a key cannot be a {kind}"))),
    }
}

fn push_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !matches!(c, ' '..='~')) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
