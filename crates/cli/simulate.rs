//! `sconce simulate`: policies compared before they run.

use std::{fs::File, io::Write as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use sconce::{
    Tenant,
    simulator::{
        Device, Policy, Report, Router, SimulationConfig, Table, Tenancy, Trace, compare, plot,
    },
    tenants::{Tenants, TenantsFile},
};

/// Flags of `sconce simulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A CSV file (Azure's, BurstGPT's, or at,tenant,prompt_tokens,output_tokens), or a made-up
    /// trace: poisson:rate=20,seconds=600,tenants=100,prompt=200,output=100,flood=50 or burst:…
    trace: String,
    /// Policies to compare: fcfs, priority, fair, each also with +admission
    #[arg(long, value_delimiter = ',', default_value = "fcfs,fair,fair+admission")]
    policy: Vec<Policy>,
    /// Engines behind the router
    #[arg(long, default_value_t = 1)]
    engines: usize,
    /// What an engine runs on: cpu-smollm2, h200-8b, or a JSON file
    #[arg(long, default_value = "cpu-smollm2")]
    device: String,
    /// Which engine a request goes to: round-robin, least-loaded, power-of-two
    #[arg(long, default_value_t)]
    router: Router,
    /// Weights, limits and targets of the trace's tenants, by name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The target for the first token of tenants that no file names, in milliseconds
    #[arg(long)]
    ttft_ms: Option<u64>,
    /// The same from token to token
    #[arg(long)]
    tpot_ms: Option<u64>,
    /// Seconds that each request may take in all
    #[arg(long)]
    timeout: Option<f64>,
    /// Seconds that a request may wait for its prefill under admission
    #[arg(long)]
    max_queue_wait: Option<u64>,
    /// Milliseconds between tokens that prefill leaves to decodes
    #[arg(long)]
    target_itl_ms: Option<u64>,
    /// Tenants that a trace without any is spread over, by a Zipf law
    #[arg(long, default_value_t = 1)]
    tenants: usize,
    /// BurstGPT's models are the tenants
    #[arg(long, conflicts_with = "tenants")]
    tenants_by_model: bool,
    /// Of all that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw a picture (SVG)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write the reports, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Plays the trace under each policy and prints what came of it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let tenancy =
        if args.tenants_by_model { Tenancy::ByModel } else { Tenancy::Spread(args.tenants) };
    let trace = Trace::load(&args.trace, tenancy, args.seed)?;
    let tenants = args.config.as_deref().map(TenantsFile::read).transpose()?;
    let tenants = tenants.map(|file| Tenants::resolve(&file, None));
    let tenants = tenants.iter().flat_map(Tenants::iter).map(|entry| entry.tenant.clone());
    let timeout = args.timeout.map(Duration::try_from_secs_f64).transpose();
    let config = SimulationConfig {
        engines: args.engines,
        device: Device::load(&args.device)?,
        router: args.router,
        tenants: tenants.collect(),
        others: Tenant {
            ttft_target: args.ttft_ms.map(Duration::from_millis),
            tpot_target: args.tpot_ms.map(Duration::from_millis),
            ..Tenant::sole()
        },
        timeout: timeout.context("--timeout")?,
        max_queue_wait: args.max_queue_wait.map(Duration::from_secs),
        target_itl: args.target_itl_ms.map(Duration::from_millis),
        seed: args.seed,
    };
    let bar = indicatif::ProgressBar::new(1_000)
        .with_style(indicatif::ProgressStyle::with_template("{msg} [{bar:30}] {percent} % {eta}")?);
    bar.set_message("simulating");
    let reports = compare(&trace, &config, &args.policy, &mut |fraction| {
        bar.set_position((fraction * 1e3) as u64);
    })?;
    bar.finish_and_clear();
    let labels: Vec<_> = reports.iter().map(|(policy, _)| policy.to_string()).collect();
    let labelled: Vec<(&str, &Report)> =
        labels.iter().zip(&reports).map(|(label, (_, report))| (label.as_str(), report)).collect();
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().write_all(Table(&labelled).to_string().as_bytes());
    if let Some(path) = &args.plot {
        plot(&labelled, path)?;
    }
    if let Some(path) = &args.json {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(file, &reports)?;
    }
    Ok(())
}
