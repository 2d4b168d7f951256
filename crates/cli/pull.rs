//! `sconce pull`: fetches a model.

use std::path::PathBuf;

use sconce::hub::{self, HubOptions};

use crate::progress::Bars;

/// Flags of `sconce pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A hub id (org/name), a known name such as qwen3-0.6b, or a GGUF file. For gated models
    /// give a token in HF_TOKEN
    model: String,
    /// Fetch it again even if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Where models are kept.
#[derive(Debug, clap::Args)]
pub(crate) struct CacheArgs {
    /// Keep models here [default: sconce in the user's cache directory]
    #[arg(long, env = "SCONCE_CACHE")]
    cache_dir: Option<PathBuf>,
    /// Do not ask the Hugging Face hub
    #[arg(long, env = "SCONCE_NO_HUB", value_parser = clap::builder::FalseyValueParser::new())]
    no_hub: bool,
    /// A token of an account on the hub, for gated models
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    hf_token: Option<String>,
}

impl CacheArgs {
    pub(crate) fn hub_options(&self) -> HubOptions {
        let defaults = HubOptions::default();
        let xdg = || {
            let dir = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty())?;
            Some(PathBuf::from(dir).join("sconce"))
        };
        HubOptions {
            cache_dir: self.cache_dir.clone().or_else(xdg).unwrap_or(defaults.cache_dir),
            use_hub: !self.no_hub,
            token: self.hf_token.clone().filter(|token| !token.is_empty()),
            ..HubOptions::default()
        }
    }
}

/// Fetches and says where the model lies.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let options = HubOptions { force: args.force, ..args.cache.hub_options() };
    let bars = Bars::new();
    let found = hub::resolve(&args.model, &options, &bars)?;
    bars.clear();
    if let Some(license) = found.license {
        eprintln!("{}, licence: {license}", found.name);
    }
    println!("{}", found.path.display());
    Ok(())
}
