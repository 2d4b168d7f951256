//! Filters, tests and functions where Jinja2's are other than minijinja's.

use minijinja::{
    Environment, Error, ErrorKind, Value, filters,
    value::{ObjectRepr, Rest, ValueKind, ValueOrKwargs},
};

use super::{
    Raised,
    arguments::{bind, int, optional_int},
    characters::is_space,
    json, percent, python,
    source::{ITERABLE, PERCENT},
    strftime,
};

/// Characters that `center` may add.
const MAX_PADDING: usize = 1 << 20;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    minijinja_contrib::add_to_environment(environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        strftime::strftime(format, &jiff::ZonedDateTime::now())
    });
    environment.add_filter(PERCENT, percent::percent);
    environment.add_filter(ITERABLE, iterable);
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
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", is_callable);
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
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
    Ok(value)
}

fn printf(format: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (positional, named): (&[Value], minijinja::value::Kwargs) =
        minijinja::value::from_args(&args)?;
    let mapping: Value =
        named.args().filter_map(|name| Some((name, named.peek::<Value>(name).ok()?))).collect();
    if positional.is_empty() && named.args().next().is_some() {
        return percent::printf(&python::str_of(format), &[], &mapping);
    }
    let tuple = Value::from(minijinja::value::Tuple::from(positional));
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
    Ok(match count {
        Some(count) => text.replacen(&old, &new, count),
        None => text.replace(&old, &new),
    })
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

/// MarkupSafe's escapes, which are other than minijinja's.
fn escape(value: &Value) -> Value {
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
        ValueKind::Map => {
            value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Map)
        }
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
