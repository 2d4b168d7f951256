//! Routes, and the server's life.

use std::{
    any::Any, future::Future, io, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use futures::FutureExt as _;
use sconce_engine::{EngineHandle, Health};
use sconce_text::TextModel;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

use crate::{
    ServerConfig, access_log, admin, capacity,
    error::ApiError,
    middleware,
    openai::{chat, completions, models},
    state::AppState,
    tokenize,
};

/// All routes over one engine.
pub fn router(engine: EngineHandle, text: Arc<TextModel>, config: ServerConfig) -> Router {
    let state = AppState::new(engine, text, config);
    let keyed = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/capacity", get(capacity::capacity))
        .route("/reset_prefix_cache", post(admin::reset_prefix_cache))
        .route("/admin/reload", post(admin::reload))
        .route("/admin/tenants", get(admin::tenants))
        .route_layer(from_fn_with_state(state.clone(), middleware::authorize));
    let mut router = Router::new()
        .route("/health", get(admin::health))
        .route("/ping", get(admin::health))
        .route("/ready", get(admin::ready))
        .route("/version", get(admin::version))
        .route("/metrics", get(admin::metrics))
        .merge(keyed)
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(state.config.max_body_bytes))
        .layer(from_fn_with_state(state.config.max_body_bytes, middleware::explain_body_limit))
        .layer(from_fn(catch_panic));
    if let Some(cors) = state.config.allowed_origins.layer() {
        router = router.layer(cors);
    }
    router = router.layer(from_fn_with_state(state.clone(), middleware::count));
    if state.config.access_log {
        router = router.layer(from_fn(access_log::log));
    }
    router.layer(from_fn_with_state(state.clone(), middleware::request_id)).with_state(state)
}

async fn not_found(request: Request) -> ApiError {
    ApiError::not_found(request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}

/// A bug in one handler is that request's error, not its connection's end.
async fn catch_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(cause) => {
            tracing::error!("a handler panicked: {}", panic_message(cause.as_ref()));
            ApiError::internal("a bug in the server; its log says more").into_response()
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

/// Connections that may wait to be taken up: a burst beyond it is dropped by
/// the system, and each of its clients tries again only after a second.
const BACKLOG: u32 = 4096;

/// Listens on a host's first address that can be had; port 0 picks a free one.
///
/// # Errors
/// The host has no address, or none that this process may have.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut refused = None;
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        #[cfg(not(windows))]
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host")))
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The device answers no more; a new process may find it well.
    #[error("the device is lost; its last error is in the log")]
    DeviceLost,
}

/// Serves until `shutdown` is ready, or the device is lost; then takes no more
/// requests, lets those that run finish for at most `drain_timeout`, and returns.
///
/// # Errors
/// The listener failed, or the device is lost.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    engine: EngineHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain_timeout: Duration,
) -> Result<(), ServeError> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let watched = engine.clone();
    let graceful = async move {
        tokio::select! {
            () = shutdown => {}
            () = device_lost(&engine) => {}
        }
        let running = engine.unfinished();
        tracing::info!("shutting down: {running} requests may finish");
        let _ = stop.send(());
        engine.drain().await;
    };
    // A token goes out when it is there, not when the last one was acknowledged.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!("a connection without TCP_NODELAY: {error}");
        }
    });
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, router).with_graceful_shutdown(graceful);
    let give_up = async move {
        match stopped.await {
            Ok(()) => tokio::time::sleep(drain_timeout).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = server.into_future() => served?,
        () = give_up => {
            tracing::warn!("some requests did not finish in {drain_timeout:?}; they are cut off");
        }
    }
    if watched.health(Duration::MAX) == Health::DeviceLost {
        return Err(ServeError::DeviceLost);
    }
    Ok(())
}

/// Waits until nothing in this process can use the device any more.
async fn device_lost(engine: &EngineHandle) {
    engine.ended().await;
    if engine.health(Duration::MAX) != Health::DeviceLost {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::listen;

    #[test]
    fn a_burst_of_connections_waits_to_be_taken_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(listen("localhost", 0)).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        // Nobody takes them up. More than 128, which is what listeners have by default.
        let connections: Vec<_> = (0..300)
            .map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(900)))
            .collect();
        assert!(connections.iter().all(Result::is_ok), "{:?}", connections.last());
    }
}
