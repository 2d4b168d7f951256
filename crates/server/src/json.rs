//! Request bodies.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts as _, Request},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    caller::TenantAuth,
    error::ApiError,
    intake::{Reservation, Turn, read_body},
    state::AppState,
};

/// Values in a body at most. Each takes many times its bytes in memory.
const MAX_VALUES: usize = 1 << 20;

/// How serde_json begins to say that a number does not fit any type.
const OUT_OF_RANGE: &str = "number out of range";

/// Fields whose values are the client's own affair or a template's: a float stays one.
const KEPT_AS_SENT: &[&str] = &[
    "chat_template_kwargs",
    "input",
    "messages",
    "metadata",
    "output_config",
    "output_format",
    "response_format",
    "structured_outputs",
    "text",
    "tools",
];

/// Whole numbers up to here are exact as floats.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// A body that can say which fields of the API it does not support.
pub(crate) trait Body: DeserializeOwned {
    /// Fields that are known and not supported, with a value that asks for
    /// nothing and so is accepted (null, empty and false always are).
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)];
    /// More of them, shared with other bodies.
    const SHARED: &'static [(&'static str, Option<&'static str>)] = &[];
    /// Bodies of at most so many bytes are worked on where they are received.
    const INLINE_BYTES: usize = 4096;
}

/// Extracts a JSON body as it was received, with the memory set aside for it. It is parsed
/// in [`JsonBody::work`].
pub(crate) struct JsonBody {
    caller: TenantAuth,
    bytes: Bytes,
    reserved: Reservation,
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let caller = TenantAuth::from_request_parts(&mut parts, state).await?;
        let request = Request::from_parts(parts, body);
        let (bytes, reserved) = read_body(request, state, &caller).await?;
        Ok(Self { caller, bytes, reserved })
    }
}

impl JsonBody {
    /// Parses the body and does all the work that it asks for before the engine, in one
    /// piece: what was parsed takes many times the body's memory, and so never waits. Every
    /// field is used or refused by name.
    ///
    /// # Errors
    /// What is wrong with the body, what `work` says, or that too much work waits.
    pub(crate) async fn work<B: Body, T: Send + 'static>(
        self,
        state: &AppState,
        work: impl FnOnce(&AppState, TenantAuth, B) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Self { caller, bytes, reserved } = self;
        if bytes.len() <= B::INLINE_BYTES {
            return work(state, caller, parse(&bytes)?);
        }
        let intake = Arc::clone(&state.intake);
        let turn = Turn::of(&caller, bytes.len());
        let state = state.clone();
        let work = move || {
            let body = parse(&bytes)?;
            drop(bytes);
            work(&state, caller, body)
        };
        intake.run(turn, reserved, work).await?
    }
}

pub(crate) fn parse<T: Body>(bytes: &[u8]) -> Result<T, ApiError> {
    if let Some(encoding) = foreign_encoding(bytes) {
        let message = format!("the body begins with {encoding}, but must be UTF-8 without a mark");
        return Err(ApiError::invalid(None, message));
    }
    if has_more_values(bytes, MAX_VALUES) {
        let message = format!("the body holds more than {MAX_VALUES} JSON values, the limit here");
        return Err(ApiError::invalid(None, message));
    }
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

/// What a byte order mark says, where there is one: JSON has none.
fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => Some("a UTF-8 byte order mark (BOM)"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("a UTF-16 byte order mark (BOM)"),
        _ => None,
    }
}

/// Whether JSON holds more than so many values: each but the first of an array or object
/// follows a comma, and the first an opening bracket.
fn has_more_values(json: &[u8], most: usize) -> bool {
    if json.len() <= most {
        return false;
    }
    let (mut in_string, mut is_escaped, mut values) = (false, false, 0);
    for &byte in json {
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
        } else {
            in_string = byte == b'"';
            values += usize::from(matches!(byte, b',' | b'[' | b'{'));
        }
    }
    values > most
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, thread};

    use sconce_engine::{
        Built, CacheGroups, Engine, FakeExecutor, SchedulerConfig, SchedulingPolicy,
    };
    use sconce_text::TextModel;
    use serde_json::json;

    use super::*;
    use crate::{
        ServerConfig,
        caller::Identity,
        openai::{chat::ChatBody, completions::CompletionBody},
        tokenize::{DetokenizeBody, TokenizeBody},
    };

    fn state() -> AppState {
        let config = SchedulerConfig {
            max_num_seqs: 1,
            max_num_batched_tokens: 64,
            max_model_len: 64,
            num_blocks: 8,
            max_queued: 1,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        };
        let build = move || -> Result<_, Infallible> {
            Ok(Built {
                executor: FakeExecutor::new(257, 8, 1),
                energy: None,
                config,
                vocab_size: 257,
                info: (),
            })
        };
        let (_, engine, ()) = Engine::start("fake", build).expect("the engine starts");
        AppState::new(engine, Arc::new(TextModel::bytes()), ServerConfig::default())
    }

    /// The name of the thread that works on a body.
    async fn worker<B: Body>(state: &AppState, body: &Value) -> Option<String> {
        let tenants = state.config.tenants.current();
        let identity = Identity { speaker: None, tenants, origins: None };
        let request = Request::post("/").extension(identity);
        let request = request.body(body.to_string().into()).expect("a request");
        let body = JsonBody::from_request(request, state).await.expect("it is received");
        let name =
            |_: &AppState, _: TenantAuth, _: B| Ok(thread::current().name().map(ToOwned::to_owned));
        body.work(state, name).await.expect("it is worked on")
    }

    #[tokio::test]
    async fn only_short_bodies_are_worked_on_by_the_async_threads() {
        let state = state();
        let here = thread::current().name().map(ToOwned::to_owned);
        let user = json!({ "role": "user", "content": "hi" });
        let chat = |messages: Value, kwargs: &str| json!({ "messages": messages, "chat_template_kwargs": { "a": kwargs } });
        assert_eq!(worker::<ChatBody>(&state, &chat(json!([user]), "")).await, here);
        // Whichever field it is that is long.
        let long = "x".repeat(5000);
        let (small, large) = (Some("intake".to_owned()), Some("intake-large".to_owned()));
        for message in [
            json!({ "role": "user", "name": long }),
            json!({ "role": "assistant", "content": "hi", "reasoning_content": long }),
        ] {
            assert_eq!(worker::<ChatBody>(&state, &chat(json!([message]), "")).await, small);
        }
        assert_eq!(worker::<ChatBody>(&state, &chat(json!([user]), &long)).await, small);
        let longer = long.repeat(20);
        assert_eq!(worker::<ChatBody>(&state, &chat(json!([user]), &longer)).await, large);
        let tokens = json!({ "prompt": vec![104; 3000], "echo": true });
        assert_eq!(worker::<CompletionBody>(&state, &tokens).await, small);
        // These wait for their turn in any case.
        assert_eq!(worker::<TokenizeBody>(&state, &json!({ "messages": [user] })).await, small);
        assert_eq!(worker::<DetokenizeBody>(&state, &json!({ "tokens": [104] })).await, small);
    }
}
