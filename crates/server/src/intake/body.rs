//! Receiving a request's body.

use axum::{
    body::{Bytes, HttpBody as _},
    extract::Request,
    http::header::CONTENT_ENCODING,
};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::Reservation;
use crate::{caller::AsTenant, connection::Lifetime, error::ApiError, state::AppState};

/// Bytes that are taken from the budget at a time.
const STEP: usize = 64 << 10;

/// Receives a body whole, within the limits of size, time and memory. The reservation is to
/// be held as long as what the body said is.
pub(crate) async fn read_body(
    request: Request,
    state: &AppState,
    caller: &AsTenant,
) -> Result<(Bytes, Reservation), ApiError> {
    let config = &state.config.bodies;
    let limit = state.config.max_body_bytes;
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::encoded_body(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    // A length that is over the limit is refused before the client is told to go on.
    let declared = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    if declared > limit {
        return Err(ApiError::body_too_large(limit));
    }
    let (mut parts, body) = request.into_parts();
    let mut lifetime = parts.extensions.remove::<Lifetime>();
    let mut frames = body.into_data_stream();
    let mut reserved = state.intake.reservation(caller.id);
    let tenants = caller.num_tenants();
    let mut bytes: Vec<u8> = Vec::new();
    let started = Instant::now();
    loop {
        let earned = bytes.len() as f64 / f64::from(config.min_bytes_per_second.max(1));
        let in_all = started + config.timeout + std::time::Duration::from_secs_f64(earned);
        let deadline = in_all.min(Instant::now() + config.pause_timeout);
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
        let len = bytes.len() + frame.len();
        if len > limit {
            return Err(ApiError::body_too_large(limit));
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
