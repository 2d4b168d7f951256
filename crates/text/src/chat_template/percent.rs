//! `text % values`: Python's printf-style formatting.

use minijinja::{
    Error, Value,
    formatting::{FormatStyle, format},
    value::ValueKind,
};

use super::{arguments::invalid, budget, python};

/// Characters that a width or a precision may ask for.
const MAX_WIDTH: usize = 100_000;

/// `%` of two values: formatting where the left one is text, else the rest of a
/// division, with the divisor's sign.
pub(super) fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let values = match right.try_iter() {
            Ok(items) if right.is_tuple() => items.collect(),
            _ => vec![right.clone()],
        };
        return printf(text, &values, right).map(Value::from);
    }
    let (Some(a), Some(b)) = (number(left), number(right)) else {
        let detail = format!("% takes no {} and {}", left.kind(), right.kind());
        return Err(invalid(detail));
    };
    let zero = || invalid("% by zero".to_owned());
    if a.is_integer() && b.is_integer() {
        let (a, b) = (i128::try_from(a)?, i128::try_from(b)?);
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    let (a, b) = (f64::try_from(a)?, f64::try_from(b)?);
    if b == 0.0 {
        return Err(zero());
    }
    let rest = a % b;
    Ok(Value::from(if rest == 0.0 {
        0.0_f64.copysign(b)
    } else if (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }))
}

/// A number as it is, and True and False as 1 and 0.
pub(super) fn number(value: &Value) -> Option<Value> {
    match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number => Some(value.clone()),
        _ => None,
    }
}

/// Formats `values`, or by name what `mapping` holds.
pub(super) fn printf(text: &str, values: &[Value], mapping: &Value) -> Result<String, Error> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut by_name = false;
    let mut rest = text;
    let missing = || invalid("not enough arguments for format string".to_owned());
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let mut named = None;
        if let Some(key) = rest.strip_prefix('(') {
            let end = key.find(')').ok_or_else(|| invalid("incomplete format key".to_owned()))?;
            let value = mapping.get_item(&Value::from(&key[..end]))?;
            if value.is_undefined() {
                return Err(invalid(format!("the format has no value {:?}", &key[..end])));
            }
            named = Some(value);
            by_name = true;
            rest = &key[end + 1..];
        }
        let after_flags = rest.trim_start_matches(['#', '0', '-', ' ', '+']);
        let flags = &rest[..rest.len() - after_flags.len()];
        rest = after_flags;
        let mut flags = flags.to_owned();
        let mut number = |rest: &mut &str| -> Result<Option<i64>, Error> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                let value = values.next().ok_or_else(missing)?;
                return value.as_i64().map(Some).ok_or_else(|| invalid("* wants int".to_owned()));
            }
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let digits = &rest[..rest.len() - after.len()];
            *rest = after;
            Ok(if digits.is_empty() { None } else { Some(digits.parse().unwrap_or(i64::MAX)) })
        };
        let mut width = number(&mut rest)?;
        if let Some(negative) = width.filter(|&width| width < 0) {
            flags.push('-');
            width = Some(negative.saturating_neg());
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            precision = Some(number(&mut rest)?.unwrap_or(0).max(0));
        }
        let bounded = |number: Option<i64>| match number.map(usize::try_from).transpose() {
            Ok(number) if number.is_none_or(|number| number <= MAX_WIDTH) => Ok(number),
            _ => Err(invalid(format!("a width is beyond {MAX_WIDTH}"))),
        };
        let (width, precision) = (bounded(width)?, bounded(precision)?);
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let conversion =
            rest.chars().next().ok_or_else(|| invalid("incomplete format".to_owned()))?;
        rest = &rest[conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => values.next().cloned().ok_or_else(missing)?,
        };
        let text = convert(&value, conversion, &flags, width, precision)?;
        budget::reserve(text.len())?;
        out.push_str(&text);
    }
    out.push_str(rest);
    if values.next().is_some() && !by_name && mapping.kind() != ValueKind::Map {
        return Err(invalid("not all arguments converted during string formatting".to_owned()));
    }
    Ok(out)
}

fn convert(
    value: &Value,
    conversion: char,
    flags: &str,
    width: Option<usize>,
    precision: Option<usize>,
) -> Result<String, Error> {
    let text = match conversion {
        's' => Some(python::str_of(value)),
        'r' => Some(python::repr(value)),
        'a' => Some(ascii(&python::repr(value))),
        _ => None,
    };
    if let Some(text) = text {
        let text: String = text.chars().take(precision.unwrap_or(usize::MAX)).collect();
        let pad = " ".repeat(width.unwrap_or(0).saturating_sub(text.chars().count()));
        return Ok(if flags.contains('-') { text + &pad } else { pad + &text });
    }
    let mut spec = format!("%{flags}");
    if let Some(width) = width {
        spec.push_str(&width.to_string());
    }
    let whole = matches!(conversion, 'd' | 'i' | 'u');
    if let Some(precision) = precision.filter(|_| !whole) {
        spec.push_str(&format!(".{precision}"));
    }
    spec.push(if conversion == 'u' { 'd' } else { conversion });
    let mut value = value.clone();
    if whole && value.kind() == ValueKind::Number && !value.is_integer() {
        #[expect(clippy::cast_possible_truncation, reason = "as Python's int() does")]
        let truncated = f64::try_from(value)?.trunc() as i128;
        value = Value::from(truncated);
    }
    if whole && !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(invalid(format!("%{conversion} takes a number, not a {}", value.kind())));
    }
    // A precision of whole numbers is a number of digits, which minijinja lacks.
    if let Some(precision) = precision.filter(|_| whole) {
        let plain = flags.replace(['0', '-'], "");
        let number = format(FormatStyle::Printf, &format!("%{plain}d"), &[value])?;
        let digits = number.trim_start_matches(['+', '-', ' ']);
        let sign = &number[..number.len() - digits.len()];
        let padded = Value::from(format!("{sign}{digits:0>precision$}"));
        return convert(&padded, 's', flags, width, None);
    }
    format(FormatStyle::Printf, &spec, &[value])
}

fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let code = u32::from(c);
        match code {
            0..=0x7f => out.push(c),
            0x80..=0xff => out.push_str(&format!("\\x{code:02x}")),
            0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}
