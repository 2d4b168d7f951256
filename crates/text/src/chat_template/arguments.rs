//! Arguments as Python binds them: by position, then by name.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind, from_args},
};

/// A filter, method or operator was given what it does not take.
pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// Binds arguments to the names of a function's parameters.
pub(super) fn bind<const N: usize>(
    function: &str,
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    if positional.len() > N {
        let detail = format!("{function} takes {N} arguments, but was given {}", positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, detail));
    }
    let mut bound = [const { None }; N];
    for (place, value) in bound.iter_mut().zip(positional) {
        *place = Some(value.clone());
    }
    for name in named.args() {
        let value = named.peek::<Value>(name)?;
        match names.iter().position(|known| *known == name) {
            Some(i) if bound[i].is_none() => bound[i] = Some(value),
            Some(_) => {
                let detail = format!("{function} was given {name} twice");
                return Err(Error::new(ErrorKind::TooManyArguments, detail));
            }
            None => {
                let detail = format!("{function} has no argument {name}");
                return Err(Error::new(ErrorKind::TooManyArguments, detail));
            }
        }
    }
    Ok(bound)
}

/// An argument that must be there and be text.
pub(super) fn text<'a>(function: &str, value: &'a Option<Value>) -> Result<&'a str, Error> {
    value.as_ref().and_then(Value::as_str).ok_or_else(|| wrong(function, "text", value))
}

/// An argument that must be there and be a whole number.
pub(super) fn int(function: &str, value: &Option<Value>) -> Result<i64, Error> {
    optional_int(function, value)?.ok_or_else(|| wrong(function, "a whole number", value))
}

/// A whole number, or none.
pub(super) fn optional_int(function: &str, value: &Option<Value>) -> Result<Option<i64>, Error> {
    match value {
        None => Ok(None),
        Some(number) => match number.kind() {
            ValueKind::None => Ok(None),
            ValueKind::Bool => Ok(Some(i64::from(number.is_true()))),
            _ if number.is_integer() => {
                // What is beyond 64 bits is beyond every text.
                let negative = *number < Value::from(0);
                Ok(Some(number.as_i64().unwrap_or(if negative { i64::MIN } else { i64::MAX })))
            }
            _ => Err(wrong(function, "a whole number", value)),
        },
    }
}

fn wrong(function: &str, wanted: &str, value: &Option<Value>) -> Error {
    let detail = match value {
        Some(value) => format!("{function} takes {wanted}, not a {}", value.kind()),
        None => format!("{function} lacks an argument: {wanted}"),
    };
    invalid(detail)
}
