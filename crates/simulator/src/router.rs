//! Which engine a request goes to.

use std::{fmt, str::FromStr};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;

/// How a router chooses. An engine's load is the prompt tokens that wait there and the
/// sequences that decode, as they were when its step began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Router {
    /// One engine after the other.
    RoundRobin,
    /// The least loaded, the first of several.
    #[default]
    LeastLoaded,
    /// The less loaded of two drawn.
    PowerOfTwo,
}

/// A router that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the router is `{0}`, but must be round-robin, least-loaded or power-of-two")]
pub struct UnknownRouter(pub String);

impl FromStr for Router {
    type Err = UnknownRouter;

    fn from_str(text: &str) -> Result<Self, UnknownRouter> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-loaded" => Ok(Self::LeastLoaded),
            "power-of-two" => Ok(Self::PowerOfTwo),
            _ => Err(UnknownRouter(text.to_owned())),
        }
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::PowerOfTwo => "power-of-two",
        })
    }
}

/// A router at work.
pub(crate) struct Routing {
    router: Router,
    next: usize,
    rng: StdRng,
    /// Each engine's load.
    pub(crate) loads: Vec<u64>,
}

impl Routing {
    pub(crate) fn new(router: Router, engines: usize, seed: u64) -> Self {
        Self { router, next: 0, rng: StdRng::seed_from_u64(seed), loads: vec![0; engines] }
    }

    pub(crate) fn choose(&mut self) -> usize {
        let engines = self.loads.len();
        match self.router {
            Router::RoundRobin => {
                self.next = (self.next + 1) % engines;
                self.next
            }
            Router::LeastLoaded => {
                let least = self.loads.iter().enumerate().min_by_key(|(_, load)| **load);
                least.map_or(0, |(engine, _)| engine)
            }
            Router::PowerOfTwo => {
                let a = self.rng.random_range(0..engines);
                let b = self.rng.random_range(0..engines);
                if self.loads[b] < self.loads[a] { b } else { a }
            }
        }
    }
}
