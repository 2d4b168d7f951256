//! Request bodies.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

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
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid(None, format!("the body is not JSON: {error}")))?;
    let Value::Object(mut fields) = value else {
        return Err(ApiError::invalid(None, "the body must be a JSON object"));
    };
    refuse_unsupported::<T>(&mut fields)?;
    deserialize(fields, &[])
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
            serde_json::from_str::<Value>(neutral).is_ok_and(|neutral| neutral == value)
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

/// serde's message, with the field's path and, for a misspelt one, the nearest.
fn describe(path: &str, message: &str, also_known: &[&str]) -> ApiError {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        if path != "." {
            return ApiError::invalid(Some(path), format!("{path}: {message}"));
        }
        let missing = message.strip_prefix("missing field `");
        return ApiError::invalid(missing.and_then(|rest| rest.strip_suffix('`')), message);
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
    let field = if path == "." || path.is_empty() { unknown } else { path };
    ApiError::unknown_field(field, format!("there is no field {unknown}{hint}"))
}
