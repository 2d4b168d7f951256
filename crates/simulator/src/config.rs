//! What is simulated: engines, tenants, and the policy they are under.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use sconce_scheduler::SchedulingPolicy;
use sconce_types::{Tenant, TenantId};
use serde::Serialize;

use crate::{Device, Router, Trace};

/// Engines that may be simulated.
const MAX_ENGINES: usize = 10_000;
/// KV-cache blocks of all engines together: each takes some 64 bytes of memory here.
const MAX_BLOCKS: usize = 200_000_000;
/// Accounts of all tenants on all engines: each takes some 400 bytes.
const MAX_ACCOUNTS: usize = 25_000_000;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimulationConfig {
    /// Engines behind the router.
    pub engines: usize,
    /// What each of them runs on.
    pub device: Device,
    /// Which engine a request goes to.
    pub router: Router,
    /// Weights, limits and targets of the trace's tenants, by name; their ids mean nothing
    /// here, and limits of tokens a minute are not applied.
    pub tenants: Vec<Tenant>,
    /// What every tenant of the trace is that is not named above.
    pub others: Tenant,
    /// When each request ends at the latest, from its arrival.
    pub timeout: Option<Duration>,
    /// The longest that a request may wait for its prefill under admission.
    pub max_queue_wait: Option<Duration>,
    /// The time between tokens that prefill leaves to decodes.
    pub target_itl: Option<Duration>,
    /// Of what the router draws.
    pub seed: u64,
}

impl Default for SimulationConfig {
    /// One engine on a CPU, all tenants alike and without targets.
    fn default() -> Self {
        Self {
            engines: 1,
            device: Device::cpu_smollm2(),
            router: Router::default(),
            tenants: Vec::new(),
            others: Tenant::sole(),
            timeout: None,
            max_queue_wait: None,
            target_itl: None,
            seed: 0,
        }
    }
}

/// Whose request is next, and whether it is taken at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whose request is admitted to a step next.
    pub scheduling: SchedulingPolicy,
    /// Whether requests are refused that would come too late, and ended where they do.
    /// Without it every request is served, however late.
    pub admission: bool,
}

/// A policy that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy is `{0}`, but must be fcfs, priority or fair, each also with `+admission` after it"
)]
pub struct UnknownPolicy(pub String);

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheduling = match self.scheduling {
            SchedulingPolicy::Fcfs => "fcfs",
            SchedulingPolicy::Priority => "priority",
            SchedulingPolicy::Fair => "fair",
        };
        let admission = if self.admission { "+admission" } else { "" };
        f.pad(&format!("{scheduling}{admission}"))
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let (scheduling, admission) = match text.strip_suffix("+admission") {
            Some(scheduling) => (scheduling, true),
            None => (text, false),
        };
        let scheduling = match scheduling {
            "fcfs" => SchedulingPolicy::Fcfs,
            "priority" => SchedulingPolicy::Priority,
            "fair" => SchedulingPolicy::Fair,
            _ => return Err(UnknownPolicy(text.to_owned())),
        };
        Ok(Self { scheduling, admission })
    }
}

impl Serialize for Policy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A simulation that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number is out of its range.
    #[error("{field} is {value}, but must be {accepted}")]
    Value {
        /// Which.
        field: String,
        /// What it is.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// The device's numbers contradict each other.
    #[error("the device's {0}")]
    Device(String),
}

impl SimulationConfig {
    /// Checks all of it.
    ///
    /// # Errors
    /// The first field that cannot be, with its value and what would be accepted.
    pub(crate) fn validate(&self, trace: &Trace) -> Result<(), ConfigError> {
        self.device.check().map_err(ConfigError::Device)?;
        let num_tenants = trace.tenant_names.len();
        for (field, value, most) in [
            ("engines", self.engines, MAX_ENGINES),
            (
                "engines x num_blocks",
                self.engines.saturating_mul(self.device.num_blocks),
                MAX_BLOCKS,
            ),
            ("engines x tenants", self.engines.saturating_mul(num_tenants), MAX_ACCOUNTS),
        ] {
            if !(1..=most).contains(&value) {
                return Err(wrong(field, value, format!("from 1 to {most}")));
            }
        }
        for tenant in self.tenants.iter().chain([&self.others]) {
            let name = &tenant.name;
            if tenant.weight == 0 {
                return Err(wrong(format!("{name}'s weight"), 0, "at least 1".to_owned()));
            }
            if !(0.0..=1.0).contains(&tenant.min_share) {
                let accepted = "from 0 to 1".to_owned();
                return Err(wrong(format!("{name}'s min_share"), tenant.min_share, accepted));
            }
            if tenant.max_running == Some(0) {
                return Err(wrong(format!("{name}'s max_running"), 0, "at least 1".to_owned()));
            }
        }
        Ok(())
    }

    /// What each of the trace's tenants is.
    pub(crate) fn tenants_of(&self, trace: &Trace) -> Result<Vec<Tenant>, ConfigError> {
        let mut by_name = HashMap::with_capacity(self.tenants.len());
        for tenant in &self.tenants {
            if by_name.insert(&*tenant.name, tenant).is_some() {
                return Err(wrong("a tenant's name", &tenant.name, "given once".to_owned()));
            }
        }
        let tenants = trace.tenant_names.iter().zip(0..).map(|(name, id)| Tenant {
            id: TenantId(id),
            name: name.as_str().into(),
            ..(*by_name.get(name.as_str()).unwrap_or(&&self.others)).clone()
        });
        let tenants: Vec<_> = tenants.collect();
        let minima: f64 = tenants.iter().map(|tenant| tenant.min_share).sum();
        if minima > 1.0 + 1e-9 {
            return Err(wrong("all tenants' min_share", minima, "at most 1 together".to_owned()));
        }
        Ok(tenants)
    }
}

fn wrong(field: impl Into<String>, value: impl fmt::Display, accepted: String) -> ConfigError {
    ConfigError::Value { field: field.into(), value: value.to_string(), accepted }
}
