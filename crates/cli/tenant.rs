//! `sconce tenant`: who the tenants of a server are.

use std::path::PathBuf;

use sconce::tenants::{self, ApiKey, Limits, NewTenant, Tenants, TenantsFile};

use crate::serve::TENANTS_FILE;

/// Flags of `sconce tenant`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// The tenants' file
    #[arg(long, value_name = "FILE", env = "SCONCE_CONFIG", default_value = TENANTS_FILE, global = true)]
    config: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a tenant, and print its key
    Add {
        /// Its name: lowercase letters, digits, dots, dashes and underscores
        name: String,
        /// Twice the weight, twice the tokens
        #[arg(long)]
        weight: Option<u32>,
        /// The share of the engine that it gets whatever the others' weights, from 0 to 1
        #[arg(long)]
        min_share: Option<f64>,
        /// A model that it may use; all if none is named
        #[arg(long)]
        model: Vec<String>,
        /// Sequences of it that run at once
        #[arg(long)]
        max_running: Option<usize>,
        /// Requests of it that wait
        #[arg(long)]
        max_queued: Option<usize>,
        /// KV-cache blocks that it holds
        #[arg(long)]
        max_kv_blocks: Option<usize>,
        /// Tokens a minute: each request reserves its prompt and max_tokens
        #[arg(long)]
        tokens_per_minute: Option<u64>,
    },
    /// List the tenants
    List,
    /// Give a tenant another key, and print it
    Rotate {
        /// Its name
        name: String,
        /// Its present keys stay valid until the next rotation
        #[arg(long)]
        keep_old: bool,
    },
    /// Add a key for those who run the server, and print it
    AdminKey,
}

/// Changes or lists the tenants.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let path = &args.config;
    match &args.command {
        Command::Add {
            name,
            weight,
            min_share,
            model,
            max_running,
            max_queued,
            max_kv_blocks,
            tokens_per_minute,
        } => {
            let tenant = NewTenant {
                weight: *weight,
                min_share: *min_share,
                models: (!model.is_empty()).then(|| model.clone()),
                limits: Limits {
                    max_running: *max_running,
                    max_queued: *max_queued,
                    max_kv_blocks: *max_kv_blocks,
                    tokens_per_minute: *tokens_per_minute,
                },
            };
            show(&tenants::add(path, name, &tenant)?);
        }
        Command::Rotate { name, keep_old } => show(&tenants::rotate(path, name, *keep_old)?),
        Command::AdminKey => show(&tenants::add_admin_key(path)?),
        Command::List => {
            let tenants = Tenants::resolve(&TenantsFile::read(path)?, None);
            println!("{:<24} {:>7} {:>9}  limits", "tenant", "weight", "min share");
            for entry in tenants.iter() {
                let tenant = &entry.tenant;
                let limits = [
                    ("running", tenant.max_running.map(|n| n as u64)),
                    ("queued", tenant.max_queued.map(|n| n as u64)),
                    ("KV blocks", tenant.max_kv_blocks.map(|n| n as u64)),
                    ("tokens a minute", tenant.tokens_per_minute),
                ];
                let limits =
                    limits.iter().filter_map(|(name, n)| Some(format!("{} {name}", (*n)?)));
                let limits = limits.collect::<Vec<_>>().join(", ");
                println!(
                    "{:<24} {:>7} {:>9.3}  {limits}",
                    tenant.name, tenant.weight, tenant.min_share
                );
            }
        }
    }
    Ok(())
}

/// The key alone, so that a script can take it; the advice is for people.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the command is for")]
fn show(key: &ApiKey) {
    println!("{}", key.as_str());
    eprintln!("This is the only time the key is shown; a running server takes it up on SIGHUP.");
}
