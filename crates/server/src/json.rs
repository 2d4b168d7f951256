//! Request bodies.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// How serde_json begins to say that a number does not fit any type.
const OUT_OF_RANGE: &str = "number out of range";

/// Fields whose values are the client's own affair or a template's: a float stays one.
const KEPT_AS_SENT: &[&str] = &["chat_template_kwargs", "messages", "metadata"];

/// Whole numbers up to here are exact as floats.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// A body that can say which fields of the API it does not support.
pub(crate) trait Body: DeserializeOwned {
    /// Fields that are known and not supported, with a value that asks for
    /// nothing and so is accepted (null, empty and false always are).
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)];
    /// More of them, shared with other bodies.
    const SHARED: &'static [(&'static str, Option<&'static str>)] = &[];
}

/// Extracts a JSON body. Every field is used or refused by name.
pub(crate) struct ApiJson<T>(pub(crate) T);

impl<S, T> FromRequest<S> for ApiJson<T>
where
    S: Send + Sync,
    T: Body,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            // A layer fills in the limit, which this extractor does not know.
            if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::body_too_large(0)
            } else {
                ApiError::invalid(None, format!("the body could not be read: {rejection}"))
            }
        })?;
        parse(&bytes).map(Self)
    }
}

pub(crate) fn parse<T: Body>(bytes: &[u8]) -> Result<T, ApiError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        let message = match error.to_string() {
            // It is JSON, but what it says is beyond every field.
            text if text.starts_with(OUT_OF_RANGE) => {
                format!("the body has a number that is too large{}", &text[OUT_OF_RANGE.len()..])
            }
            text => format!("the body is not JSON: {text}"),
        };
        ApiError::invalid(None, message)
    })?;
    let Value::Object(mut fields) = value else {
        return Err(ApiError::invalid(None, "the body must be a JSON object"));
    };
    refuse_unsupported::<T>(&mut fields)?;
    for (name, value) in &mut fields {
        if !KEPT_AS_SENT.contains(&name.as_str()) {
            make_whole(value);
        }
    }
    deserialize(fields, &[])
}

/// Makes integers of floats such as `16.0`, which some languages write for them. Fields
/// that are floats take integers as well.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= MAX_EXACT);
            if let Some(whole) = whole {
                *value = (whole as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        _ => {}
    }
}

/// Deserializes an object's fields; `also_known` are names that a misspelt one
/// may have meant beside those of `T`.
pub(crate) fn deserialize<T: DeserializeOwned>(
    fields: Map<String, Value>,
    also_known: &[&str],
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        describe(&path, &error.into_inner().to_string(), also_known)
    })
}

fn refuse_unsupported<T: Body>(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
    for (name, neutral) in T::UNSUPPORTED.iter().chain(T::SHARED) {
        let Some(value) = fields.shift_remove(*name) else { continue };
        let is_neutral = neutral.is_some_and(|neutral| {
            serde_json::from_str::<Value>(neutral).is_ok_and(|neutral| {
                // 1 and 1.0 are one number.
                neutral == value || neutral.is_number() && neutral.as_f64() == value.as_f64()
            })
        });
        if !asks_nothing(&value) && !is_neutral {
            return Err(ApiError::unsupported(name));
        }
    }
    Ok(())
}

/// Whether a field with this value might as well be absent.
pub(crate) fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

/// serde's message in the API's words, with the field's path and, for a misspelt one, the
/// nearest.
fn describe(path: &str, message: &str, also_known: &[&str]) -> ApiError {
    let path = if path == "." { "" } else { path };
    let Some(rest) = message.strip_prefix("unknown field `") else {
        if let Some(missing) = quoted_after("missing field `", message) {
            let dot = if path.is_empty() { "" } else { "." };
            let field = format!("{path}{dot}{missing}");
            return ApiError::invalid(Some(&field), format!("{field} is missing"));
        }
        let field = (!path.is_empty()).then_some(path);
        return ApiError::invalid(field, reason(field.unwrap_or("the body"), message));
    };
    let mut quoted = rest.split('`').step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let nearest = quoted
        .chain(also_known.iter().copied())
        // Comparing costs time in proportion to the name, and a client chooses that.
        .filter(|known| unknown.len() <= 2 * known.len())
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    let hint = match nearest {
        Some((_, known)) => format!("; did you mean {known}?"),
        None => String::new(),
    };
    // The path of a nested field ends in the unknown field itself.
    let field = if path.is_empty() { unknown } else { path };
    ApiError::unknown_field(field, format!("there is no field {unknown}{hint}"))
}

/// What is wrong with a field's value.
fn reason(field: &str, message: &str) -> String {
    let mismatch = ["invalid type: ", "invalid value: "].into_iter();
    let mismatch = mismatch.filter_map(|prefix| message.strip_prefix(prefix)).next();
    if let Some((given, wanted)) = mismatch.and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("{field} is {}, but must be {}", given_words(given), wanted_words(wanted));
    }
    if let Some(variant) = quoted_after("unknown variant `", message) {
        let known = message.split_once(", expected ").map_or("", |(_, known)| known);
        return format!("{field} is {variant:?}, but must be {}", known.replace('`', ""));
    }
    // What an untagged enum accepts.
    if message.starts_with("a ") {
        return format!("{field} must be {message}");
    }
    format!("{field}: {message}")
}

/// What stands after a beginning and before the next backtick.
fn quoted_after<'a>(beginning: &str, message: &'a str) -> Option<&'a str> {
    message.strip_prefix(beginning)?.split('`').next()
}

/// A value as serde names it, in the API's words.
fn given_words(given: &str) -> String {
    match given {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        _ if given.starts_with("string ") => format!("the {given}"),
        // integer `-1`, floating point `16.5`, boolean `true`
        _ => given.split('`').nth(1).unwrap_or(given).to_owned(),
    }
}

/// A type as serde names it, in the API's words.
fn wanted_words(wanted: &str) -> String {
    let whole = |from: i64, to: i64| format!("a whole number from {from} to {to}");
    match wanted {
        "f32" | "f64" => "a number".to_owned(),
        "u32" => whole(0, u32::MAX.into()),
        "i32" => whole(i32::MIN.into(), i32::MAX.into()),
        "i64" => whole(i64::MIN, i64::MAX),
        "u64" | "usize" => "a whole number of at least 0".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        _ if wanted.starts_with("struct ") || wanted.starts_with("internally tagged") => {
            "an object".to_owned()
        }
        _ => wanted.to_owned(),
    }
}
