//! Values as Python prints them.

use std::fmt::Write as _;

use minijinja::{
    Value,
    value::{ObjectRepr, ValueKind},
};

use super::budget;

/// How deep lists and mappings are printed: a namespace may hold itself.
const MAX_DEPTH: usize = 128;

/// `str(value)`. What exceeds the budget is cut; it then fails the next check.
pub(super) fn str_of(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        budget::spend(text.len());
        return text.to_owned();
    }
    let mut out = String::new();
    write_value(value, 0, &mut out);
    budget::spend(out.len());
    out
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, 0, &mut out);
    budget::spend(out.len());
    out
}

fn write_repr(value: &Value, depth: usize, out: &mut String) {
    match value.as_str() {
        Some(text) if value.is_safe() => {
            out.push_str("Markup(");
            write_string(text, out);
            out.push(')');
        }
        Some(text) => write_string(text, out),
        None if value.is_undefined() => out.push_str("Undefined"),
        None => write_value(value, depth, out),
    }
}

/// What is no string.
fn write_value(value: &Value, depth: usize, out: &mut String) {
    // A list that holds another twice can print as far more than was made for it.
    if out.len() >= budget::left() {
        return;
    }
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    let object = value.as_object();
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float));
        }
        ValueKind::Map if object.is_some_and(|object| object.repr() == ObjectRepr::Map) => {
            out.push('{');
            let pairs = object.and_then(|object| object.try_iter_pairs()).into_iter().flatten();
            for (i, (key, item)) in pairs.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&key, depth + 1, out);
                out.push_str(": ");
                write_repr(&item, depth + 1, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&item, depth + 1, out);
            }
            out.push_str(if tuple && value.len() == Some(1) { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        _ => _ = write!(out, "{value}"),
    }
}

/// `repr` of a float: the shortest digits that read back as the same number.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    // Rust's thresholds for an exponent are Python's.
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let sign = if exponent.starts_with('-') { '-' } else { '+' };
            format!("{mantissa}e{sign}{:0>2}", exponent.trim_start_matches('-'))
        }
        None => text,
    }
}

fn write_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` of a character: neither a control, a format, a
/// private-use character nor a separator other than the space.
pub(super) fn is_printable(c: char) -> bool {
    let format = matches!(
        u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890 | 0x891 | 0x8e2 | 0x180e
            | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb
            | 0xe000..=0xf8ff | 0xe_0001 | 0xe_0020..=0xe_007f | 0xf_0000..=0x10_ffff
    );
    c == ' ' || !(c.is_control() || c.is_whitespace() || format)
}
