//! Receiving a request's body.

use std::time::Duration;

use axum::{
    body::{Bytes, HttpBody as _},
    extract::Request,
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN},
    },
};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::{BodyConfig, Reservation};
use crate::{caller::TenantAuth, connection::Lifetime, error::ApiError, state::AppState};

/// Bytes that are taken from the budget at a time.
const STEP: usize = 64 << 10;
/// Bodies up to this size may use the part of the budget that is kept for small ones.
const SMALL_BYTES: usize = 64 << 10;

/// Receives a body whole, within the limits of size, time and memory. The reservation must
/// be kept for as long as anything made of the body is.
pub(crate) async fn read_body(
    request: Request,
    state: &AppState,
    caller: &TenantAuth,
) -> Result<(Bytes, Reservation), ApiError> {
    let config = &state.config.bodies;
    let limit = state.config.max_body_bytes;
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::encoded_body(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    check_content_type(request.headers())?;
    // A length that is over the limit is refused before the client is told to go on.
    let declared = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    if declared > limit {
        return Err(ApiError::body_too_large(limit));
    }
    let (mut parts, body) = request.into_parts();
    let mut lifetime = parts.extensions.remove::<Lifetime>();
    let mut frames = body.into_data_stream();
    let mut reserved = state.intake.reservation(caller.id);
    if declared > SMALL_BYTES {
        reserved.set_large();
    }
    let tenants = caller.num_tenants();
    let mut bytes: Vec<u8> = Vec::new();
    let mut pace = Pace::new(config, Instant::now());
    loop {
        let deadline = pace.deadline.min(Instant::now() + config.pause_timeout);
        let ending = async {
            match &mut lifetime {
                Some(lifetime) => lifetime.ending().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            biased;
            frame = timeout_at(deadline, frames.next()) => frame,
            () = ending => return Err(ApiError::unavailable("the server is shutting down")),
        };
        let frame = match frame.map_err(|_| ApiError::slow("the request's body"))? {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let message = format!("the body could not be read: {error}");
                return Err(ApiError::invalid(None, message));
            }
            None => return Ok((bytes.into(), reserved)),
        };
        pace.note(config, frame.len(), Instant::now());
        let len = bytes.len() + frame.len();
        if len > limit {
            return Err(ApiError::body_too_large(limit));
        }
        if len > SMALL_BYTES {
            reserved.set_large();
        }
        if len > reserved.bytes() {
            let more = (len - reserved.bytes()).max(declared.saturating_sub(bytes.len()).min(STEP));
            reserved.grow(tenants, more, config.patience).await?;
        }
        if len > bytes.capacity() {
            // As the vector would grow of itself, but never beyond what was declared.
            let grown = (2 * bytes.capacity()).max(len);
            let most = if declared >= len { declared } else { usize::MAX };
            bytes.reserve_exact(grown.min(most) - bytes.len());
        }
        bytes.extend_from_slice(&frame);
    }
}

/// A body must be JSON and say so: a browser sends what it calls plain text, or a form, or
/// nothing, to another site without asking that site first. What is no browser may say nothing.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(given) = headers.get(CONTENT_TYPE) else {
        let is_browser = headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site");
        return if is_browser { Err(ApiError::content_type("none")) } else { Ok(()) };
    };
    let given = String::from_utf8_lossy(given.as_bytes());
    let kind = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json =
        kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json");
    if is_json { Ok(()) } else { Err(ApiError::content_type(&given)) }
}

/// When a body is too slow: each byte moves the deadline by its time at the minimum rate, but
/// never further ahead than a new body's. So after each window of that length, bytes must
/// have come at that rate, however fast the first ones did.
struct Pace {
    deadline: Instant,
}

impl Pace {
    fn new(config: &BodyConfig, now: Instant) -> Self {
        Self { deadline: now + config.timeout }
    }

    /// Takes note of bytes that came.
    fn note(&mut self, config: &BodyConfig, bytes: usize, now: Instant) {
        let earned = bytes as f64 / f64::from(config.min_bytes_per_second.max(1));
        let deadline = self.deadline + Duration::from_secs_f64(earned);
        self.deadline = deadline.min(now + config.timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_early_buy_no_time() {
        let config = BodyConfig::default();
        let start = Instant::now();
        let mut pace = Pace::new(&config, start);
        // Minutes at the minimum rate.
        pace.note(&config, 4 << 20, start);
        assert_eq!(pace.deadline, start + config.timeout);
        // Half the rate uses the window up; the rate itself keeps its length.
        let second = Duration::from_secs(1);
        let rate = config.min_bytes_per_second as usize;
        pace.note(&config, 5 * rate, start + 10 * second);
        assert_eq!(pace.deadline, start + 35 * second);
        pace.note(&config, 10 * rate, start + 20 * second);
        assert_eq!(pace.deadline, start + 45 * second);
        pace.note(&config, 20 * rate, start + 40 * second);
        assert_eq!(pace.deadline, start + 65 * second);
    }
}
