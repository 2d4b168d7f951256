//! Starting an engine.

use std::{any::Any, fmt::Display, sync::mpsc::channel, thread::JoinHandle};

use sconce_scheduler::{Scheduler, SchedulerConfig};
use sconce_types::{EnergyMeter, Executor};

use crate::{EngineHandle, EngineOptions, engine_loop::EngineLoop};

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError<B> {
    /// The executor could not be built.
    #[error(transparent)]
    Build(B),
    /// The limits contradict each other.
    #[error(transparent)]
    Config(#[from] sconce_scheduler::ConfigError),
    /// The operating system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(#[source] std::io::Error),
    /// Building the executor panicked.
    #[error("building the executor panicked: {0}")]
    Panicked(String),
}

/// What an engine is built from.
pub struct Built<E, T> {
    /// Computes the steps.
    pub executor: E,
    /// Measures the energy of the device that it computes on, where that can be measured.
    pub energy: Option<Box<dyn EnergyMeter>>,
    /// The limits that the executor was sized for.
    pub config: SchedulerConfig,
    /// The model's vocabulary.
    pub vocab_size: usize,
    /// Whatever the caller wants to know of what was built.
    pub info: T,
}

/// A running engine's thread; [`EngineHandle`] is the way into it.
#[derive(Debug)]
pub struct Engine {
    thread: JoinHandle<()>,
}

impl Engine {
    /// Starts an engine. `build` runs on the engine's own thread, which then
    /// owns the executor: it loads the model, sizes the cache, and says what
    /// limits follow. Returns once it has.
    ///
    /// An executor that is lost ([`Fatal`](sconce_types::ExecutorError::Fatal)) is built anew, once,
    /// under the same limits: what ran has failed, what waited goes on waiting.
    ///
    /// # Errors
    /// `build`'s error, or limits that contradict each other.
    pub fn start<E, T, B>(
        options: impl Into<EngineOptions>,
        mut build: impl FnMut() -> Result<Built<E, T>, B> + Send + 'static,
    ) -> Result<(Self, EngineHandle, T), StartError<B>>
    where
        E: Executor,
        T: Send + 'static,
        B: Display + Send + 'static,
    {
        let options = options.into();
        let (report, started) = channel();
        let thread = std::thread::Builder::new()
            .name("sconce-engine".to_owned())
            .spawn(move || {
                let built = build().map_err(StartError::Build).and_then(|built| {
                    // The handle bounds all unfinished requests together, and any
                    // share of them may be waiting.
                    let config = built.config;
                    let max_queued = config.max_queued + config.max_num_seqs;
                    let scheduler = Scheduler::new(SchedulerConfig { max_queued, ..config })?;
                    Ok((built, scheduler))
                });
                match built {
                    Ok((Built { executor, energy, config, vocab_size, info }, scheduler)) => {
                        let (handle, engine) = EngineLoop::new(
                            options, vocab_size, executor, energy, scheduler, config,
                        );
                        // Whoever asked may have gone; the loop then ends by itself.
                        let _ = report.send(Ok((handle, info)));
                        engine.run(config, || match build() {
                            Ok(built) => Ok((built.executor, built.config)),
                            Err(error) => Err(error.to_string()),
                        });
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                    }
                }
            })
            .map_err(StartError::Thread)?;
        match started.recv() {
            Ok(Ok((handle, info))) => Ok((Self { thread }, handle, info)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let cause = thread.join().err().map(|cause| panic_message(cause.as_ref()));
                Err(StartError::Panicked(cause.unwrap_or_default()))
            }
        }
    }

    /// Waits for the thread's end, which comes once every handle is dropped.
    pub fn join(self) {
        // A panic inside the loop was caught and reported there.
        let _ = self.thread.join();
    }
}

/// What a panic says.
pub(crate) fn panic_message(cause: &(dyn Any + Send)) -> String {
    cause
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
