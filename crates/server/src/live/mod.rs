//! `/v1/live`: the engine as it is, a few times a second, as server-sent events.

mod block_map;
mod window;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use sconce_engine::{BucketCounts, EngineHandle, Snapshot, SubmitError, TenantSnapshot};
use sconce_tenants::Tenants;
use sconce_types::{BLOCK_SIZE, TenantId};
use serde::Serialize;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::sleep_until,
};
use utoipa::ToSchema;

use self::{
    block_map::MapDeltas,
    window::{Counts, Window},
};
use crate::{caller::AsWatcher, error::ApiError, state::AppState, word::word};

word!(LiveObject = "live");

/// The engine as it is, or a tenant's part of it; null is what is not known.
#[derive(Serialize, ToSchema)]
pub(crate) struct LiveEvent {
    #[schema(inline)]
    object: LiveObject,
    /// Since the stream began.
    seconds: f64,
    /// Whether it is the whole engine.
    sees_all: bool,
    running: usize,
    waiting: usize,
    kv_blocks: LiveBlocks,
    generated_tokens_per_second: f64,
    prompt_tokens_per_second: f64,
    /// Until the first token, over the last minute.
    ttft_seconds: Quantiles,
    /// Between tokens, over the last minute.
    itl_seconds: Quantiles,
    tenants: Vec<LiveTenant>,
}

/// The blocks of the KV cache.
#[derive(Serialize, ToSchema)]
struct LiveBlocks {
    total: usize,
    used: usize,
    /// Tokens of a block.
    tokens: usize,
    /// What to change in the map that the client has, which is all free at first: in base64,
    /// runs of (blocks to skip, blocks to set, their code), counts in LEB128.
    changes: String,
}

#[derive(Serialize, ToSchema)]
struct Quantiles {
    #[schema(required)]
    p50: Option<f64>,
    #[schema(required)]
    p99: Option<f64>,
}

#[derive(Serialize, ToSchema)]
struct LiveTenant {
    name: String,
    /// Of its blocks in the map.
    code: u8,
    weight: u32,
    share: f64,
    running: usize,
    waiting: usize,
    kv_blocks: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    device_seconds: f64,
    #[schema(required)]
    joules: Option<f64>,
}

/// Clients that may watch at once.
const MAX_WATCHERS: usize = 16;
/// Least time between two snapshots of the engine, however many watch.
const EVERY: Duration = Duration::from_millis(250);
/// A snapshot may take this part of the engine's time: one of a very large pool comes less
/// often.
const PART: u32 = 100;

/// What all watchers share.
pub(crate) struct Live {
    watchers: Arc<Semaphore>,
    latest: Mutex<Option<Arc<Snapshot>>>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { watchers: Arc::new(Semaphore::new(MAX_WATCHERS)), latest: Mutex::new(None) }
    }

    /// The first snapshot after `seen`, as soon as one is due. The engine is asked once for all
    /// who wait.
    async fn next(
        &self,
        engine: &EngineHandle,
        seen: Option<Instant>,
    ) -> Result<Arc<Snapshot>, SubmitError> {
        let mut latest = self.latest.lock().await;
        if let Some(snapshot) = &*latest {
            let due = snapshot.at + EVERY.max(snapshot.took * PART);
            if Some(snapshot.at) > seen && Instant::now() < due {
                return Ok(Arc::clone(snapshot));
            }
            sleep_until(due.into()).await;
        }
        let snapshot = Arc::new(engine.snapshot().await?);
        *latest = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }
}

/// Watch the engine
///
/// As server-sent events, at most four times a second. An administrator, and everybody where no tenants are configured, sees the whole engine; a
/// tenant its own numbers, and of others which blocks they hold. Ends with the connection,
/// once the server drains, and when the tenants change, since the key may mean another then.
#[utoipa::path(
    get, path = "/v1/live", tag = "Operation", operation_id = "live",
    responses((status = 200, description = "The engine as it is, again and again",
        content((String = "text/event-stream", item_schema = LiveEvent)))),
)]
pub(crate) async fn live(
    State(state): State<AppState>,
    caller: AsWatcher,
) -> Result<Response, ApiError> {
    let permit = Arc::clone(&state.live.watchers).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::too_many_watchers(MAX_WATCHERS))?;
    let watch = Watch {
        view: match &caller {
            AsWatcher::All(_) => None,
            AsWatcher::Tenant(caller) => Some(caller.id),
        },
        tenants: Arc::clone(caller.tenants()),
        state,
        began: None,
        seen: None,
        map: MapDeltas::default(),
        window: Window::default(),
        _permit: permit,
    };
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), watch))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// One client's stream.
struct Watch {
    state: AppState,
    /// The tenant that it is shown; everything if `None`.
    view: Option<TenantId>,
    tenants: Arc<Tenants>,
    began: Option<Instant>,
    seen: Option<Instant>,
    map: MapDeltas,
    window: Window,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// The next event in wire form; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        let Self { state, .. } = self;
        let snapshot = loop {
            match state.live.next(&state.engine, self.seen).await {
                Ok(snapshot) => break snapshot,
                Err(SubmitError::EngineLost) => return None,
                // Too busy to answer now.
                Err(_) => tokio::time::sleep(EVERY).await,
            }
        };
        let is_over = state.engine.is_draining()
            || !Arc::ptr_eq(&self.tenants, &state.config.tenants.current());
        if is_over {
            return None;
        }
        self.seen = Some(snapshot.at);
        let event = serde_json::to_string(&self.event(&snapshot)).expect("its keys are strings");
        Some(format!("data: {event}\n\n"))
    }

    fn event(&mut self, snapshot: &Snapshot) -> LiveEvent {
        let metrics = self.state.engine.metrics();
        let mut counts = Counts::new(snapshot.at);
        let mut tenants = Vec::new();
        let mut own = None;
        for tenant in &snapshot.tenants {
            if self.view.is_some_and(|id| id != tenant.id) {
                continue;
            }
            let used = metrics.tenant_usage(&tenant.name);
            if self.view.is_some() {
                counts.prompt_tokens = used.prompt_tokens;
                counts.generated_tokens = used.generated_tokens;
                counts.first_token = used.time_to_first_token;
                own = Some(tenant);
            }
            tenants.push(LiveTenant {
                name: tenant.name.to_string(),
                code: block_map::code(tenant.id, self.view),
                weight: tenant.weight,
                share: tenant.share,
                running: tenant.running,
                waiting: tenant.waiting,
                kv_blocks: tenant.blocks,
                prompt_tokens: used.prompt_tokens,
                cached_tokens: used.cached_tokens,
                generated_tokens: used.generated_tokens,
                device_seconds: used.device_seconds,
                joules: snapshot.has_energy.then_some(used.joules),
            });
        }
        if self.view.is_none() {
            counts.prompt_tokens = metrics.prompt_tokens.get();
            counts.generated_tokens = metrics.generation_tokens.get();
            counts.first_token = BucketCounts::of(&metrics.time_to_first_token);
            counts.between_tokens = BucketCounts::of(&metrics.inter_token_latency);
        }
        let rates = self.window.note(counts);
        let quantiles = |[p50, p99]: [Option<f64>; 2]| Quantiles { p50, p99 };
        let sees_all = self.view.is_none();
        let (running, waiting, used_blocks) = match own {
            Some(&TenantSnapshot { running, waiting, blocks, .. }) => (running, waiting, blocks),
            None if sees_all => (snapshot.running, snapshot.waiting, snapshot.used_blocks),
            None => (0, 0, 0),
        };
        let began = *self.began.get_or_insert(snapshot.at);
        LiveEvent {
            object: LiveObject::Word,
            seconds: (snapshot.at - began).as_secs_f64(),
            sees_all,
            running,
            waiting,
            kv_blocks: LiveBlocks {
                total: snapshot.blocks.len(),
                used: used_blocks,
                tokens: BLOCK_SIZE,
                changes: self.map.next(&snapshot.blocks, self.view),
            },
            generated_tokens_per_second: rates.generated,
            prompt_tokens_per_second: rates.prompt,
            ttft_seconds: quantiles(rates.first_token),
            itl_seconds: quantiles(rates.between_tokens),
            tenants,
        }
    }
}
