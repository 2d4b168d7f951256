//! A load client for OpenAI-style servers: `sconce bench`.
//!
//! It sends requests in a closed loop (so many at once) or an open one (Poisson
//! arrivals), reads the streams as they come, and reports what `vllm bench
//! serve` reports, under the same names: TTFT, TPOT, ITL and end-to-end
//! latency, throughput, goodput under objectives, and errors. It knows servers
//! only by HTTP, so that every engine is measured by the same clock.
//!
//! Definitions, for a request sent at `t0` whose chunks with content arrive at
//! `t1 … tn` and whose answer has `k` tokens by the server's own count:
//! TTFT is `t1 - t0`; ITL are the gaps `t2 - t1 …`; end-to-end latency is
//! `tn - t0`; TPOT is `(tn - t1) / (k - 1)`.

mod arrivals;
mod client;
mod load;
mod plot;
mod profile;
mod report;
mod sse;
mod workload;

pub use client::{ClientError, EventStream, Server, ServerArgs};
pub use load::{BenchArgs, BenchError, bench, profile, prompts};
pub use plot::{PlotError, plot};
pub use profile::{Profile, plot_profile};
pub use report::{Report, Summary, percentile};
