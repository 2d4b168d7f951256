//! `+`, `~` and `*` as Python and Jinja2 have them, within the budget.

use minijinja::{
    Error, Value,
    value::{Tuple, ValueKind},
};

use super::{arguments::invalid, budget, filters::escape, percent, python};

fn integer(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| number.into(), Value::from)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// A list or a tuple, as the value that it is made of.
fn list_like(value: &Value, items: Vec<Value>) -> Value {
    match value.is_tuple() {
        true => Value::from(Tuple::from(items)),
        false => Value::from(items),
    }
}

/// `+`, where text that is added to markup is escaped.
pub(super) fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        if !(left.is_safe() || right.is_safe()) {
            budget::reserve(a.len().saturating_add(b.len()))?;
            return Ok(Value::from([a, b].concat()));
        }
        let (a, b) = (python::str_of(&escape(left)), python::str_of(&escape(right)));
        budget::check()?;
        return Ok(Value::from_safe_string([a, b].concat()));
    }
    if let (Some(a), Some(b)) = (percent::number(left), percent::number(right)) {
        if a.is_integer() && b.is_integer() {
            let sum = i128::try_from(a)?.checked_add(i128::try_from(b)?);
            let sum = sum.ok_or_else(|| invalid("a sum is beyond 128 bits"))?;
            return Ok(integer(sum));
        }
        return Ok(Value::from(f64::try_from(a)? + f64::try_from(b)?));
    }
    if is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple() {
        budget::reserve_value(left)?;
        budget::reserve_value(right)?;
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return Ok(list_like(left, items));
    }
    Err(invalid(format!("{} and {} cannot be added", left.kind(), right.kind())))
}

/// `~`, which takes values of any kind for text, and markup too.
pub(super) fn concat(left: &Value, right: &Value) -> Result<Value, Error> {
    let (a, b) = (python::str_of(left), python::str_of(right));
    budget::check()?;
    Ok(Value::from([a, b].concat()))
}

/// `*`, which repeats text and lists.
pub(super) fn multiply(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (percent::number(left), percent::number(right)) {
        if a.is_integer() && b.is_integer() {
            let product = i128::try_from(a)?.checked_mul(i128::try_from(b)?);
            return product.map(integer).ok_or_else(|| invalid("a product is beyond 128 bits"));
        }
        return Ok(Value::from(f64::try_from(a)? * f64::try_from(b)?));
    }
    let (value, times) =
        if percent::number(left).is_some() { (right, left) } else { (left, right) };
    let refused = || invalid(format!("{} and {} cannot be multiplied", left.kind(), right.kind()));
    let times = percent::number(times).filter(Value::is_integer).ok_or_else(refused)?;
    // As in Python, what is repeated a negative number of times is empty.
    let times = times.as_i64().unwrap_or(i64::MAX).max(0);
    let times = usize::try_from(times).unwrap_or(usize::MAX);
    if let Some(text) = value.as_str() {
        budget::reserve(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if !is_list(value) {
        return Err(refused());
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let len = items.len().saturating_mul(times);
    budget::spend_entries(len);
    budget::check()?;
    Ok(list_like(value, items.into_iter().cycle().take(len).collect()))
}
