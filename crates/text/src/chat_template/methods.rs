//! Python's methods of strings, mappings and lists. What they would change in
//! place is refused, as in the sandbox that transformers renders in.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Tuple, ValueKind},
};
use minijinja_contrib::pycompat;

use super::{
    arguments::{bind, int, invalid, optional_int, text},
    budget,
    characters::{self, is_space},
    python,
    source::SLICE,
};

/// Characters that padding may add.
const MAX_PADDING: usize = 1 << 20;

pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    budget::reserve_value(value)?;
    let result = match (value.kind(), value.as_str()) {
        _ if method == SLICE => Some(slice(value, args)?),
        (_, Some(string)) => string_method(string, method, args)?,
        (ValueKind::Seq, _) => sequence_method(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let [] = bind(method, [], args)?;
            Some(value.clone())
        }
        (ValueKind::Number, _) if method == "is_integer" => {
            let [] = bind(method, [], args)?;
            let fraction = f64::try_from(value.clone()).map_or(0.0, f64::fract);
            Some(Value::from(value.is_integer() || fraction == 0.0))
        }
        _ => None,
    };
    let result = match result {
        Some(result) => result,
        None => pycompat::unknown_method_callback(state, value, method, args)?,
    };
    budget::reserve_value(&result)?;
    Ok(result)
}

fn sequence_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let [] = bind(method, [], args)?;
            value.clone()
        }
        "index" => {
            let [wanted, start, end] = bind(method, ["value", "start", "stop"], args)?;
            let items: Vec<Value> = value.try_iter()?.collect();
            let end = optional_int(method, &end)?;
            let (start, end) = clamp(optional_int(method, &start)?, end, items.len());
            let found = (start..end).find(|&i| Some(&items[i]) == wanted.as_ref());
            Value::from(found.ok_or_else(|| invalid("the value is not in the list"))?)
        }
        _ => return Ok(None),
    }))
}

/// `value[start:stop:step]`.
fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [start, stop, step] = bind("a slice", ["start", "stop", "step"], args)?;
    let bound = |bound: &Option<Value>| optional_int("a slice", bound);
    let step = bound(&step)?.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let items: Vec<Value> = match (value.kind(), value.as_str()) {
        (_, Some(text)) => text.chars().map(Value::from).collect(),
        (ValueKind::Seq, _) => value.try_iter()?.collect(),
        (ValueKind::Iterable, _) if value.len().is_some() => value.try_iter()?.collect(),
        (ValueKind::Undefined, _) => return Err(Error::from(ErrorKind::UndefinedError)),
        // Jinja2 takes an item that cannot be had for undefined.
        _ => return Ok(Value::UNDEFINED),
    };
    let len = i64::try_from(items.len()).unwrap_or(i64::MAX);
    // As CPython's PySlice_AdjustIndices.
    let (low, high) = if step < 0 { (-1, len - 1) } else { (0, len) };
    let place = |at: i64| if at < 0 { at.saturating_add(len).max(low) } else { at.min(high) };
    let start = bound(&start)?.map_or(if step < 0 { high } else { low }, place);
    let stop = bound(&stop)?.map_or(if step < 0 { low } else { high }, place);
    let mut taken = Vec::new();
    let mut at = start;
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        let Some(item) = usize::try_from(at).ok().and_then(|at| items.get(at)) else { break };
        taken.push(item.clone());
        at = at.saturating_add(step);
    }
    Ok(if value.as_str().is_some() {
        Value::from(taken.iter().map(python::str_of).collect::<String>())
    } else if value.is_tuple() {
        Value::from(Tuple::from(taken))
    } else {
        Value::from(taken)
    })
}

/// Python's slice bounds: negative ones count from the end.
fn clamp(start: Option<i64>, end: Option<i64>, len: usize) -> (usize, usize) {
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at,
        Err(_) => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    (start.map_or(0, place), end.map_or(len, place).min(len))
}

/// The part of a text between two bounds, and the characters before it. None
/// where the bounds hold no place at all, so that not even "" is found there.
fn window(string: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    if start.is_none() && end.is_none() {
        return Some((string, 0));
    }
    let len = string.chars().count();
    let (start, end) = clamp(start, end, len);
    if start > end {
        return None;
    }
    let byte = |at: usize| string.char_indices().nth(at).map_or(string.len(), |(i, _)| i);
    Some((&string[byte(start)..byte(end)], start))
}

fn string_method(string: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let plain = || bind::<0>(method, [], args).map(|_| ());
    let is = |test: bool| -> Result<Option<Value>, Error> {
        plain()?;
        Ok(Some(Value::from(test)))
    };
    let becomes = |text: String| -> Result<Option<Value>, Error> {
        plain()?;
        Ok(Some(Value::from(text)))
    };
    let all = |test: fn(char) -> bool| !string.is_empty() && string.chars().all(test);
    match method {
        "upper" => becomes(string.to_uppercase()),
        "lower" => becomes(string.to_lowercase()),
        "casefold" => becomes(string.to_lowercase().replace('ß', "ss").replace('ς', "σ")),
        "capitalize" => becomes(characters::capitalize(string)),
        "title" => becomes(characters::title(string)),
        "swapcase" => becomes(characters::swapcase(string)),
        "isspace" => is(all(is_space)),
        "isdigit" => is(all(characters::is_digit)),
        "isdecimal" => is(all(characters::is_decimal)),
        "isnumeric" => is(all(char::is_numeric)),
        "isalpha" => is(all(characters::is_alpha)),
        "isalnum" => is(all(|c| characters::is_alpha(c) || c.is_numeric())),
        "isprintable" => is(string.chars().all(python::is_printable)),
        "isidentifier" => is(characters::is_identifier(string)),
        "istitle" => is(characters::is_title(string)),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(method, ["chars"], args)?;
            let chars = chars.filter(|chars| !chars.is_none());
            let set: Option<Vec<char>> = match &chars {
                Some(_) => Some(text(method, &chars)?.chars().collect()),
                None => None,
            };
            Ok(Some(Value::from(strip(string, method, set.as_deref()))))
        }
        "split" | "rsplit" => {
            let [separator, limit] = bind(method, ["sep", "maxsplit"], args)?;
            let limit = optional_int(method, &limit)?.and_then(|limit| usize::try_from(limit).ok());
            let separator = separator.filter(|separator| !separator.is_none());
            let parts = match &separator {
                None => split_space(string, limit, method == "rsplit"),
                Some(_) => {
                    let separator = text(method, &separator)?;
                    if separator.is_empty() {
                        return Err(invalid("empty separator"));
                    }
                    let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
                    if method == "split" {
                        string.splitn(limit, separator).collect()
                    } else {
                        let mut parts: Vec<_> = string.rsplitn(limit, separator).collect();
                        parts.reverse();
                        parts
                    }
                }
            };
            Ok(Some(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>())))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(method, ["sep"], args)?;
            let separator = text(method, &separator)?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let parts = if method == "partition" {
                string.split_once(separator).map(|(a, b)| [a, separator, b])
            } else {
                string.rsplit_once(separator).map(|(a, b)| [a, separator, b])
            };
            let whole = if method == "partition" { [string, "", ""] } else { ["", "", string] };
            let parts = parts.unwrap_or(whole).map(Value::from);
            Ok(Some(Value::from(Tuple::from(parts))))
        }
        "splitlines" => {
            let [keep] = bind(method, ["keepends"], args)?;
            let keep = keep.is_some_and(|keep| keep.is_true());
            Ok(Some(characters::lines(string, keep).into_iter().map(Value::from).collect()))
        }
        "replace" => {
            let [old, new, count] = bind(method, ["old", "new", "count"], args)?;
            let (old, new) = (text(method, &old)?, text(method, &new)?);
            let count = optional_int(method, &count)?.and_then(|n| usize::try_from(n).ok());
            characters::replace(string, old, new, count).map(|text| Some(Value::from(text)))
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(method, ["part"], args)?;
            let part = text(method, &part)?;
            let without = match method {
                "removeprefix" => string.strip_prefix(part),
                _ => string.strip_suffix(part),
            };
            Ok(Some(Value::from(without.unwrap_or(string))))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, end] = bind(method, ["sub", "start", "end"], args)?;
            let wanted = text(method, &wanted)?;
            let bounds = (optional_int(method, &start)?, optional_int(method, &end)?);
            let place = window(string, bounds.0, bounds.1);
            if method == "count" {
                return Ok(Some(Value::from(place.map_or(0, |(s, _)| s.matches(wanted).count()))));
            }
            let found = place.and_then(|(part, before)| {
                let at =
                    if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
                at.map(|at| before + part[..at].chars().count())
            });
            match found {
                Some(at) => Ok(Some(Value::from(at))),
                None if method.ends_with("index") => Err(invalid("substring not found")),
                None => Ok(Some(Value::from(-1))),
            }
        }
        "startswith" | "endswith" => {
            let [wanted, start, end] = bind(method, ["prefix", "start", "end"], args)?;
            let place = window(string, optional_int(method, &start)?, optional_int(method, &end)?);
            let wanted: Vec<Option<Value>> = match wanted {
                Some(wanted) if wanted.is_tuple() => wanted.try_iter()?.map(Some).collect(),
                wanted => vec![wanted],
            };
            for part in wanted {
                let part = text(method, &part)?;
                let fits = place.is_some_and(|(string, _)| match method {
                    "startswith" => string.starts_with(part),
                    _ => string.ends_with(part),
                });
                if fits {
                    return Ok(Some(Value::from(true)));
                }
            }
            Ok(Some(Value::from(false)))
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = bind(method, ["width", "fillchar"], args)?;
            let fill = if fill.is_some() { text(method, &fill)? } else { " " };
            if fill.chars().count() != 1 {
                return Err(invalid("the fill character must be exactly one character long"));
            }
            let width = int(method, &width)?;
            let missing = missing(string, width)?;
            let odd = missing % 2 == 1 && width % 2 == 1;
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                // As CPython halves an odd number.
                _ => missing / 2 + usize::from(odd),
            };
            let text = [&fill.repeat(left), string, &fill.repeat(missing - left)].concat();
            Ok(Some(Value::from(text)))
        }
        "zfill" => {
            let [width] = bind(method, ["width"], args)?;
            let zeros = "0".repeat(missing(string, int(method, &width)?)?);
            let digits = string.strip_prefix(['+', '-']).unwrap_or(string);
            let sign = &string[..string.len() - digits.len()];
            Ok(Some(Value::from([sign, &zeros, digits].concat())))
        }
        "expandtabs" => {
            let [size] = bind(method, ["tabsize"], args)?;
            let size = optional_int(method, &size)?.unwrap_or(8).clamp(0, 256);
            let size = usize::try_from(size).unwrap_or(0);
            budget::reserve(string.matches('\t').count().saturating_mul(size))?;
            Ok(Some(Value::from(characters::expand_tabs(string, size))))
        }
        "join" => {
            let [items] = bind(method, ["iterable"], args)?;
            let items = items.ok_or_else(|| invalid("join lacks an argument"))?;
            if items.is_none() {
                return Err(invalid("can only join an iterable"));
            }
            let mut parts = Vec::new();
            for item in items.try_iter()? {
                let part = item.as_str().ok_or_else(|| {
                    invalid(format!("join takes strings, but found a {}", item.kind()))
                })?;
                budget::reserve(part.len().saturating_add(string.len()))?;
                parts.push(part.to_owned());
            }
            Ok(Some(Value::from(parts.join(string))))
        }
        _ => Ok(None),
    }
}

fn strip<'a>(string: &'a str, method: &str, set: Option<&[char]>) -> &'a str {
    let takes = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(&c));
    match method {
        "lstrip" => string.trim_start_matches(takes),
        "rstrip" => string.trim_end_matches(takes),
        _ => string.trim_matches(takes),
    }
}

/// Splits at runs of whitespace, at most `limit` times, from either end.
fn split_space(string: &str, limit: Option<usize>, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let shorten = |text: &mut &str| {
        *text = match from_end {
            true => text.trim_end_matches(is_space),
            false => text.trim_start_matches(is_space),
        };
    };
    let mut rest = string;
    shorten(&mut rest);
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| limit.is_none_or(|limit| parts.len() < limit)) else {
            parts.push(rest);
            break;
        };
        let behind = cut + rest[cut..].chars().next().map_or(0, char::len_utf8);
        let (before, after) = (&rest[..cut], &rest[behind..]);
        parts.push(if from_end { after } else { before });
        rest = if from_end { before } else { after };
        shorten(&mut rest);
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// Characters that a text lacks to a width.
fn missing(string: &str, width: i64) -> Result<usize, Error> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(string.chars().count());
    if missing > MAX_PADDING {
        return Err(invalid(format!("a width adds more than {MAX_PADDING} characters")));
    }
    Ok(missing)
}
