//! Connections: taking them up, their time limits, and their end.

mod activity;
mod driver;
mod exchange;
mod slots;
mod streams;
mod transport;

use std::{io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use futures::{Stream, StreamExt as _};
use sconce_engine::{EngineHandle, Health};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::slots::{Slot, Slots};
use crate::{error::ApiError, listener::Listener};

/// Clients that are told at once that there are too many connections; more are cut off.
const MAX_REFUSALS: usize = 64;
/// The pause after a connection could not be taken up, as when file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to notice that the server has stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once of one client: an IPv4 address or an IPv6 network.
    pub max_connections_per_client: usize,
    /// The time that a request's head may take, and that a new connection may wait for one.
    pub head_timeout: Duration,
    /// How long a connection is kept open for another request.
    pub keep_alive_timeout: Duration,
    /// How long a client may read nothing of what is written to it.
    pub write_timeout: Duration,
    /// How long running requests get to finish once the server is to end.
    pub drain_timeout: Duration,
    /// Whether connections that are refused before they have a request get a line in the log.
    pub access_log: bool,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_connections_per_client: 12_288,
            head_timeout: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            access_log: false,
        }
    }
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
    /// The server ended before its requests did.
    #[error("{0} requests were cut off")]
    RequestsCut(usize),
}

/// How far the server is towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// New requests are refused.
    Draining,
    /// Nothing runs any more; connections close once their answers are out.
    Closing,
    /// Connections are cut off.
    Stopped,
}

/// The server's life as its connections and requests see it.
#[derive(Clone)]
pub(crate) struct Lifetime(watch::Receiver<Phase>);

impl Lifetime {
    fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether new requests are refused.
    pub(crate) fn is_ending(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Waits until new requests are refused.
    pub(crate) async fn ending(&mut self) {
        // Without a server there is no end to wait for.
        if self.0.wait_for(|phase| *phase >= Phase::Draining).await.is_err() {
            std::future::pending().await
        }
    }

    async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Serves until `signals` has one, or the device is lost; then refuses new requests, lets
/// those that run finish for at most the configured time, and returns. A second signal cuts
/// them off at once.
///
/// # Errors
/// The device is lost, or requests were cut off.
pub async fn serve(
    listener: impl Into<Listener>,
    router: Router,
    engine: EngineHandle,
    signals: impl Stream<Item = ()> + Send,
    config: ConnectionConfig,
) -> Result<(), ServeError> {
    let listener = listener.into();
    let (phase, lifetime) = watch::channel(Phase::Serving);
    let mut clients = Clients::new(router, config.clone(), Lifetime(lifetime));
    // One that has ended has no more signals.
    let mut signals = pin!(signals.chain(futures::stream::pending()));
    let mut lost = pin!(device_lost(&engine));
    let mut drained = pin!(engine.drain());
    let mut deadline = pin!(sleep(Duration::MAX));
    loop {
        let now = *phase.borrow();
        tokio::select! {
            biased;
            _ = signals.next() => {
                if now >= Phase::Draining {
                    tracing::warn!("a second signal: running requests are cut off");
                    break;
                }
                deadline.set(sleep_until(Instant::now() + config.drain_timeout));
                tracing::info!("shutting down: {} requests may finish", engine.unfinished());
                phase.send_replace(Phase::Draining);
            }
            () = &mut lost, if now == Phase::Serving => {
                deadline.set(sleep_until(Instant::now() + config.drain_timeout));
                phase.send_replace(Phase::Draining);
            }
            () = &mut drained, if now == Phase::Draining => {
                phase.send_replace(Phase::Closing);
            }
            () = &mut deadline, if now >= Phase::Draining => {
                let limit = config.drain_timeout;
                tracing::warn!("some requests did not finish in {limit:?}; they are cut off");
                break;
            }
            Some(_) = clients.connections.join_next() => {}
            accepted = listener.accept(), if now <= Phase::Draining => match accepted {
                Ok((socket, client)) => clients.take_up(socket, client),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!("a connection could not be taken up: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        if *phase.borrow() == Phase::Closing && clients.connections.is_empty() {
            break;
        }
    }
    drop(listener);
    phase.send_replace(Phase::Stopped);
    let cut = clients.cut_off().await;
    if engine.health(Duration::MAX) == Health::DeviceLost {
        return Err(ServeError::DeviceLost);
    }
    if cut > 0 { Err(ServeError::RequestsCut(cut)) } else { Ok(()) }
}

/// The connections that are open, and what new ones get.
struct Clients {
    router: Router,
    config: Arc<ConnectionConfig>,
    lifetime: Lifetime,
    builder: Arc<driver::Builder>,
    slots: Arc<Slots>,
    refusals: Arc<Semaphore>,
    /// Each ends with the number of its requests that were cut off.
    connections: JoinSet<usize>,
}

impl Clients {
    fn new(router: Router, config: ConnectionConfig, lifetime: Lifetime) -> Self {
        let slots = Slots::new(config.max_connections, config.max_connections_per_client);
        Self {
            router,
            lifetime,
            builder: Arc::new(driver::builder(&config)),
            slots: Arc::new(slots),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            connections: JoinSet::new(),
            config: Arc::new(config),
        }
    }

    fn take_up(&mut self, socket: TcpStream, client: Option<IpAddr>) {
        match self.slots.take(client) {
            Ok(slot) => self.serve(socket, slot),
            Err(limit) => self.refuse(socket, limit),
        }
    }

    fn serve(&mut self, socket: TcpStream, slot: Slot) {
        let (router, builder) = (self.router.clone(), Arc::clone(&self.builder));
        let (config, lifetime) = (Arc::clone(&self.config), self.lifetime.clone());
        self.connections.spawn(driver::serve(socket, router, builder, config, lifetime, slot));
    }

    fn refuse(&self, socket: TcpStream, limit: usize) {
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        tracing::debug!("a connection over the limit of {limit} is refused");
        let refusal = driver::Refusal {
            error: ApiError::too_many_connections(limit),
            took: Duration::ZERO,
            is_logged: self.config.access_log,
        };
        driver::refuse(Arc::new(socket), refusal, permit);
    }

    /// Ends what is left of them; counts the requests that were cut off.
    async fn cut_off(mut self) -> usize {
        let mut cut = 0;
        while let Ok(Some(ended)) = timeout(STOP_TIMEOUT, self.connections.join_next()).await {
            cut += ended.unwrap_or(0);
        }
        cut
    }
}

/// Waits until nothing in this process can use the device any more.
async fn device_lost(engine: &EngineHandle) {
    engine.ended().await;
    if engine.health(Duration::MAX) != Health::DeviceLost {
        std::future::pending().await
    }
}

/// Whether a connection ended before it was taken up, which says nothing about others.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
