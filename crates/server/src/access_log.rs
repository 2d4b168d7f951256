//! One line for each request, when it has ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};

use crate::{
    caller::ClientRequestId,
    state::AppState,
    watched_body::{BodyWatcher, watched},
};

/// Characters of a path or method that a line shows.
const MAX_SHOWN: usize = 200;

/// The status of a request whose client left before there was an answer, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// What handlers find out about a request for its line.
#[derive(Debug)]
pub(crate) struct RequestStats {
    started: Instant,
    tenant: OnceLock<Arc<str>>,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    queue_ns: AtomicU64,
    /// 0 before the first token.
    ttft_ns: AtomicU64,
}

impl RequestStats {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            tenant: OnceLock::new(),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            queue_ns: AtomicU64::new(0),
            ttft_ns: AtomicU64::new(0),
        }
    }

    /// Whom the request's key speaks for.
    pub(crate) fn note_tenant(&self, name: Arc<str>) {
        // Who it is does not change.
        let _ = self.tenant.set(name);
    }

    /// Counts a prompt that was submitted.
    pub(crate) fn note_prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Counts more generated tokens of a choice that waited so long.
    pub(crate) fn note_generated(&self, tokens: usize, queue_ns: u64) {
        if tokens == 0 {
            return;
        }
        self.queue_ns.fetch_max(queue_ns, Ordering::Relaxed);
        if self.generated_tokens.fetch_add(tokens as u64, Ordering::Relaxed) == 0 {
            let ttft = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.ttft_ns.store(ttft.max(1), Ordering::Relaxed);
        }
    }
}

/// A request's line, written when this is dropped: once its response was sent whole, or
/// its client has gone.
struct Line {
    stats: Arc<RequestStats>,
    request_id: Arc<str>,
    client: Option<SocketAddr>,
    method: String,
    path: String,
    status: u16,
    bytes: u64,
    is_whole: bool,
}

/// Writes a line for every request but those for paths that are left out; its id must be
/// known already.
pub(crate) async fn log(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    // Routes may end in a slash or not.
    let path = request.uri().path();
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    if state.config.unlogged_paths.iter().any(|unlogged| unlogged == path) {
        return next.run(request).await;
    }
    let stats = Arc::new(RequestStats::new());
    let request_id = request.extensions().get::<ClientRequestId>();
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let mut line = Line {
        stats: Arc::clone(&stats),
        request_id: request_id.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0)),
        client: client.map(|&ConnectInfo(address)| address),
        method: request.method().as_str().chars().take(MAX_SHOWN).collect(),
        // The query is left out: some clients put keys there.
        path: request.uri().path().chars().take(MAX_SHOWN).collect(),
        status: CLIENT_CLOSED,
        bytes: 0,
        is_whole: false,
    };
    request.extensions_mut().insert(stats);
    let response = next.run(request).await;
    line.status = response.status().as_u16();
    // What answers HEAD has no body, whatever a handler made.
    line.is_whole = line.method == "HEAD";
    response.map(|body| watched(body, line))
}

/// Milliseconds to three decimals, which the division leaves without rounding noise.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What is known of a connection that was answered before it had a request.
pub(crate) struct Refused {
    pub(crate) client: Option<SocketAddr>,
    pub(crate) status: u16,
    /// Bytes of the answer's body.
    pub(crate) bytes: usize,
    /// Since the head's first byte, if one came.
    pub(crate) took: Duration,
}

/// Writes the line of a refusal outside the router; fields that are not known are left out.
pub(crate) fn refused(refused: Refused) {
    tracing::info!(
        target: "sconce::access",
        client = refused.client.map(tracing::field::display),
        status = refused.status,
        complete = true,
        bytes = refused.bytes,
        total_ms = ms(refused.took),
    );
}

impl Drop for Line {
    fn drop(&mut self) {
        let stats = &self.stats;
        let count = |of: &AtomicU64| Some(of.load(Ordering::Relaxed)).filter(|&count| count > 0);
        let wait = |of: &AtomicU64| count(of).map(|ns| ms(Duration::from_nanos(ns)));
        let prompt_tokens = count(&stats.prompt_tokens);
        // Strings are quoted and escaped by every format, so none can begin a line.
        tracing::info!(
            target: "sconce::access",
            request_id = &*self.request_id,
            client = self.client.map(tracing::field::display),
            tenant = stats.tenant.get().map(|name| &**name),
            method = self.method.as_str(),
            path = self.path.as_str(),
            status = self.status,
            complete = self.is_whole,
            prompt_tokens,
            generated_tokens = prompt_tokens.map(|_| stats.generated_tokens.load(Ordering::Relaxed)),
            bytes = self.bytes,
            queue_ms = wait(&stats.queue_ns),
            ttft_ms = wait(&stats.ttft_ns),
            total_ms = ms(stats.started.elapsed()),
        );
    }
}

impl BodyWatcher for Line {
    fn note_bytes(&mut self, len: usize) {
        self.bytes += len as u64;
    }

    fn note_whole(&mut self) {
        self.is_whole = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_decimals_at_most() {
        for (nanos, shown) in [
            (2_813_305_000, "2813.305"),
            (1_001_000, "1.001"),
            (1_499, "0.001"),
            (1_500, "0.002"),
            (30_000_000_000, "30000"),
            (86_400_123_456_789, "86400123.457"),
        ] {
            assert_eq!(ms(Duration::from_nanos(nanos)).to_string(), shown);
        }
    }
}
