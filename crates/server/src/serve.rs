//! Routes.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{Method, StatusCode, Uri, uri::PathAndQuery},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post},
};
use futures::FutureExt as _;
use sconce_engine::EngineHandle;
use sconce_text::TextModel;
use tower::{Layer as _, util::MapRequestLayer};

use crate::{
    ServerConfig, access_log, admin,
    anthropic::{self, messages},
    capacity,
    error::ApiError,
    live, middleware,
    openai::{batches, chat, completions, embeddings, files, models, responses, scores},
    openapi, page,
    state::AppState,
    tokenize, traces,
};

/// All routes over one engine.
pub fn router(engine: EngineHandle, text: Arc<TextModel>, config: ServerConfig) -> Router {
    let state = AppState::new(engine, text, config);
    let embeds = state.config.embedding.is_some();
    // One place that refuses them, before their bodies are read.
    let generating = |methods| if embeds { post(embeddings::generates_nothing) } else { methods };
    // A file is written to the disk as it comes.
    let upload = post(files::create).layer(DefaultBodyLimit::disable());
    let keyed = routes([
        ("/v1/chat/completions", generating(post(chat::create))),
        ("/v1/completions", generating(post(completions::create))),
        ("/v1/responses", generating(post(responses::create))),
        ("/v1/messages", generating(post(messages::create))),
        ("/v1/messages/count_tokens", post(messages::count_tokens)),
        ("/v1/embeddings", post(embeddings::create)),
        ("/v1/score", post(scores::score)),
        ("/score", post(scores::score)),
        ("/v1/rerank", post(scores::rerank)),
        ("/v2/rerank", post(scores::rerank)),
        ("/rerank", post(scores::rerank)),
        ("/v1/models", get(models::list)),
        ("/v1/files", get(files::list).merge(upload)),
        ("/v1/files/{id}", get(files::retrieve).delete(files::delete)),
        ("/v1/files/{id}/content", get(files::content)),
        ("/v1/batches", get(batches::list).post(batches::create)),
        ("/v1/batches/{id}", get(batches::retrieve)),
        ("/v1/batches/{id}/cancel", post(batches::cancel)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/v1/capacity", get(capacity::capacity)),
        ("/v1/live", get(live::live)),
        ("/reset_prefix_cache", post(admin::reset_prefix_cache)),
        ("/admin/reload", post(admin::reload)),
        ("/admin/tenants", get(admin::tenants)),
        ("/admin/steps", get(admin::steps)),
    ])
    .route("/v1/responses/{*id}", get(responses::retrieve).delete(responses::delete))
    .route("/v1/models/{*id}", get(models::retrieve))
    .route_layer(from_fn_with_state(state.clone(), middleware::authorize));
    let open = routes([
        ("/health", get(admin::health)),
        ("/ping", get(admin::ping)),
        ("/ready", get(admin::ready)),
        ("/version", get(admin::version)),
        ("/metrics", get(admin::metrics)),
        ("/load", get(admin::load)),
        ("/openapi.json", get(openapi::openapi)),
    ]);
    let mut router = open
        .merge(keyed)
        .merge(page::routes())
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(from_fn(catch_panic))
        .layer(from_fn(anthropic::error::shape));
    if let Some(cors) = state.config.allowed_origins.layer() {
        router = router.layer(cors);
    }
    router = router.layer(from_fn_with_state(state.clone(), middleware::count));
    if state.config.access_log {
        router = router.layer(from_fn_with_state(state.clone(), access_log::log));
    }
    if state.config.traces.is_some() {
        router = router.layer(from_fn_with_state(state.clone(), traces::trace));
    }
    let prefix = state.config.root_path.trim_end_matches('/').to_owned();
    let router =
        router.layer(from_fn_with_state(state.clone(), middleware::request_id)).with_state(state);
    if prefix.is_empty() {
        return router;
    }
    // Before a route is looked for.
    let strip = MapRequestLayer::new(move |request| without_prefix(request, &prefix));
    Router::new().fallback_service(strip.layer(router))
}

/// What stands below `/v1`, for those who leave that out or say it twice.
const VERSIONED: [&str; 11] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/messages",
    "/models",
    "/responses",
    "/capacity",
    "/files",
    "/batches",
    "/score",
    "/rerank",
];

/// Where a path should have led.
fn meant(path: &str) -> Option<String> {
    let mut rest = path.trim_end_matches('/');
    while let Some(shorter) = rest.strip_prefix("/v1") {
        rest = shorter;
    }
    let is_known = VERSIONED.iter().any(|known| {
        rest.strip_prefix(known).is_some_and(|more| more.is_empty() || more.starts_with('/'))
    });
    let meant = format!("/v1{rest}");
    (is_known && meant != path).then_some(meant)
}

/// Takes a proxy's prefix off paths that have it.
fn without_prefix(mut request: Request, prefix: &str) -> Request {
    let uri = request.uri();
    let rest = uri.path_and_query().and_then(|path| path.as_str().strip_prefix(prefix));
    let rest = match rest {
        Some("") => Some("/".to_owned()),
        Some(rest) if rest.starts_with('/') => Some(rest.to_owned()),
        Some(rest) if rest.starts_with('?') => Some(format!("/{rest}")),
        _ => None,
    };
    if let Some(path) = rest.and_then(|rest| rest.parse::<PathAndQuery>().ok()) {
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(path);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Routes that may end in a slash or not.
fn routes<const N: usize>(routes: [(&str, MethodRouter<AppState>); N]) -> Router<AppState> {
    routes.into_iter().fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods.clone()).route(&format!("{path}/"), methods)
    })
}

async fn not_found(request: Request) -> ApiError {
    let path = request.uri().path();
    ApiError::not_found(path, meant(path).as_deref())
}

/// The router adds the methods that there are, in `Allow`.
async fn wrong_method(request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).into_response()
}

/// A bug in one handler is that request's error, not its connection's end.
async fn catch_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(cause) => {
            tracing::error!("a handler panicked: {}", panic_message(cause.as_ref()));
            ApiError::bug().into_response()
        }
    }
}

fn panic_message(cause: &(dyn Any + Send)) -> &str {
    cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}
