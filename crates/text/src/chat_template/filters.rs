//! Filters, tests and functions where Jinja2's are other than minijinja's.

use std::{collections::BTreeMap, sync::LazyLock};

use minijinja::{
    Environment, Error, Value, filters,
    value::{Kwargs, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs, from_args},
};

use super::{
    Raised,
    arguments::{bind, int, invalid, optional_int},
    budget,
    characters::{self, is_space, lines},
    generator, json, operators, percent, python,
    source::{ADD, CONCAT, ITERABLE, MULTIPLY, PERCENT},
    strftime,
};

/// Characters that `center` may add.
const MAX_PADDING: usize = 1 << 20;

/// Characters of an indent at most, which every line repeats.
const MAX_INDENT: usize = 256;

/// Filters of minijinja that copy what they are given.
const BUILT_IN: &[&str] = &[
    "batch",
    "capitalize",
    "chain",
    "groupby",
    "lines",
    "lower",
    "pprint",
    "reverse",
    "slice",
    "sort",
    "split",
    "striptags",
    "sum",
    "title",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "zip",
];

pub(super) fn add_to(environment: &mut Environment<'static>) {
    minijinja_contrib::add_to_environment(environment);
    for &name in BUILT_IN {
        environment.add_filter(name, move |args: Rest<ValueOrKwargs>| built_in(name, args));
    }
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        strftime::strftime(format, &jiff::ZonedDateTime::now())
    });
    environment.add_filter(PERCENT, percent::percent);
    environment.add_filter(ITERABLE, iterable);
    environment.add_filter(ADD, operators::add);
    environment.add_filter(CONCAT, operators::concat);
    environment.add_filter(MULTIPLY, operators::multiply);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &Value| python::str_of(value));
    environment.add_filter("format", printf);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("replace", replace);
    environment.add_filter("trim", trim);
    environment.add_filter("join", join);
    environment.add_filter("center", center);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", truncate);
    environment.add_filter("list", |value: Value| {
        let value = iterable(value)?;
        budget::reserve_value(&value)?;
        value.try_iter().map(|items| items.collect::<Vec<_>>())
    });
    environment.add_filter("map", generator::map);
    environment.add_filter("select", generator::select);
    environment.add_filter("reject", generator::reject);
    environment.add_filter("selectattr", generator::selectattr);
    environment.add_filter("rejectattr", generator::rejectattr);
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", is_callable);
}

/// Runs a filter as minijinja has it, and counts what it takes and makes.
fn built_in(name: &str, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    static ORIGINALS: LazyLock<Environment<'static>> = LazyLock::new(|| {
        let mut originals = Environment::new();
        minijinja_contrib::add_to_environment(&mut originals);
        originals
    });
    let args = args.into_values();
    let (value, others) = args.split_first().ok_or_else(|| invalid("a value is missing"))?;
    budget::reserve_value(value)?;
    if matches!(name, "batch" | "slice") {
        // They make so many entries, whatever they are given.
        let count = others.first().and_then(Value::as_usize).unwrap_or(0);
        budget::spend_entries(count);
        budget::check()?;
    }
    let prints = matches!(name, "pprint" | "upper" | "lower" | "title" | "capitalize");
    if prints && value.as_str().is_none() {
        // A list is printed; that is counted first, because it may be long.
        let _ = python::str_of(value);
        budget::check()?;
    }
    let result = ORIGINALS.empty_state().apply_filter(name, &args)?;
    budget::reserve_value(&result)?;
    Ok(result)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::str_of(message);
    Err(invalid(format!("raise_exception: {message}")).with_source(Raised(message)))
}

/// What a loop walks over: minijinja takes None for an empty list.
fn iterable(value: Value) -> Result<Value, Error> {
    if value.is_none() {
        return Err(invalid("None is not iterable"));
    }
    budget::check()?;
    Ok(value)
}

fn printf(format: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (positional, named): (&[Value], Kwargs) = from_args(&args)?;
    let mapping: BTreeMap<&str, Value> =
        named.args().filter_map(|name| Some((name, named.peek(name).ok()?))).collect();
    if !mapping.is_empty() {
        return percent::printf(&python::str_of(format), &[], &Value::from(mapping));
    }
    let tuple = Value::from(Tuple::from(positional));
    percent::printf(&python::str_of(format), positional, &tuple)
}

fn length(value: &Value) -> Result<usize, Error> {
    // Jinja2's undefined is an empty thing.
    if value.is_undefined() {
        return Ok(0);
    }
    filters::length(value)
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    filters::items(value)
}

fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [other, boolean] = bind("default", ["default_value", "boolean"], &args.into_values())?;
    let lax = boolean.is_some_and(|boolean| boolean.is_true());
    if value.is_undefined() || (lax && !value.is_true()) {
        return Ok(other.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

fn replace(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [old, new, count] = bind("replace", ["old", "new", "count"], &args.into_values())?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(invalid("replace takes the old and the new text"));
    };
    let (text, old, new) = (python::str_of(value), python::str_of(&old), python::str_of(&new));
    let count = optional_int("replace", &count)?.and_then(|count| usize::try_from(count).ok());
    characters::replace(&text, &old, &new, count)
}

fn trim(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [chars] = bind("trim", ["chars"], &args.into_values())?;
    let text = python::str_of(value);
    let chars = chars.filter(|chars| !chars.is_none()).map(|chars| python::str_of(&chars));
    let takes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(text.trim_matches(takes).to_owned())
}

fn join(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [separator, attribute] = bind("join", ["d", "attribute"], &args.into_values())?;
    let separator = separator.map(|separator| python::str_of(&separator)).unwrap_or_default();
    let mut out = String::new();
    for (i, item) in iterable(value.clone())?.try_iter()?.enumerate() {
        budget::reserve(separator.len())?;
        out.push_str(if i > 0 { &separator } else { "" });
        let item = match attribute.as_ref().filter(|attribute| !attribute.is_none()) {
            Some(attribute) => path(item, attribute)?,
            None => item,
        };
        out.push_str(&python::str_of(&item));
    }
    Ok(out)
}

/// An attribute of an attribute, `a.b`.
fn path(mut value: Value, attribute: &Value) -> Result<Value, Error> {
    let Some(path) = attribute.as_str() else { return value.get_item(attribute) };
    for part in path.split('.') {
        value = match part.parse::<usize>() {
            Ok(index) => value.get_item(&Value::from(index))?,
            Err(_) => value.get_attr(part)?,
        };
    }
    Ok(value)
}

fn center(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [width] = bind("center", ["width"], &args.into_values())?;
    let width = width.or_else(|| Some(Value::from(80)));
    let width = usize::try_from(int("center", &width)?).unwrap_or(0);
    let text = python::str_of(value);
    let missing = width.saturating_sub(text.chars().count());
    if missing > MAX_PADDING {
        return Err(invalid(format!("center adds more than {MAX_PADDING} characters")));
    }
    let left = missing / 2 + (missing & width & 1);
    Ok([&" ".repeat(left), text.as_str(), &" ".repeat(missing - left)].concat())
}

fn dictsort(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = bind("dictsort", names, &args.into_values())?;
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let named = [
        ("case_sensitive", Value::from(truth(case_sensitive))),
        ("by", by.unwrap_or_else(|| Value::from("key"))),
        ("reverse", Value::from(truth(reverse))),
    ];
    filters::dictsort(value, Kwargs::from_iter(named))
}

fn to_int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], &args.into_values())?;
    let default = default.unwrap_or_else(|| Value::from(0));
    let base = optional_int("int", &base)?.unwrap_or(10);
    let whole = |number: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "as Python's int() does")]
        let whole = number.trunc() as i128;
        number.is_finite().then(|| i64::try_from(whole).map_or_else(|_| whole.into(), Value::from))
    };
    let Some(text) = value.as_str() else {
        return Ok(match value.kind() {
            ValueKind::Bool => Value::from(i64::from(value.is_true())),
            ValueKind::Number if value.is_integer() => value.clone(),
            ValueKind::Number => {
                f64::try_from(value.clone()).ok().and_then(whole).unwrap_or(default)
            }
            _ => default,
        });
    };
    let text = text.trim_matches(is_space).replace('_', "").to_lowercase();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(digits);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let number = base.filter(|_| !digits.starts_with(['+', '-']));
    let number = number.and_then(|base| i128::from_str_radix(digits, base).ok());
    let number = number.map(|number| if negative { -number } else { number });
    Ok(match number {
        Some(number) => i64::try_from(number).map_or_else(|_| number.into(), Value::from),
        None => text.parse().ok().and_then(whole).unwrap_or(default),
    })
}

fn to_float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], &args.into_values())?;
    let number: Option<f64> = match (value.as_str(), value.kind()) {
        (Some(text), _) => text.trim_matches(is_space).replace('_', "").parse().ok(),
        (None, ValueKind::Bool) => Some(f64::from(u8::from(value.is_true()))),
        (None, ValueKind::Number) => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn indent(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], &args.into_values())?;
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (truth(first), truth(blank));
    let indention = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = optional_int("indent", &width)?.unwrap_or(4);
            " ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT))
        }
    };
    let text = python::str_of(value) + "\n";
    let mut out = String::new();
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            budget::reserve(indention.len())?;
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncate(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = bind("truncate", names, &args.into_values())?;
    let number = |value: &Option<Value>, default: usize| -> Result<usize, Error> {
        let number = optional_int("truncate", value)?;
        Ok(number.map_or(default, |number| usize::try_from(number).unwrap_or(0)))
    };
    let (length, leeway) = (number(&length, 255)?, number(&leeway, 5)?);
    let end = end.map_or_else(|| "...".to_owned(), |end| python::str_of(&end));
    let text = python::str_of(value);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words);
    let kill_words = kill_words.is_some_and(|kill| kill.is_true());
    Ok([if kill_words { &kept } else { words }, end.as_str()].concat())
}

/// MarkupSafe's escapes, which are other than minijinja's.
pub(super) fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for c in python::str_of(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// Whatever has a length and items, a text and a mapping too.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Bytes | ValueKind::Seq => true,
        ValueKind::Map => value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Map),
        _ => false,
    }
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Macros and functions are plain objects here; Jinja2's undefined has a call
/// operator too.
fn is_callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
}
