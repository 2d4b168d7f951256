//! The engine as it is at one time, for people to look at.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sconce_types::{Executor, TenantId};

use crate::engine_loop::EngineLoop;

/// How the engine is between two steps.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// The time that the engine's thread took for it.
    pub took: Duration,
    /// Sequences that run.
    pub running: usize,
    /// Requests that wait, those that are not ready included.
    pub waiting: usize,
    /// Blocks that sequences hold.
    pub used_blocks: usize,
    /// Of each block of the pool, what it is: see
    /// [`BlockCode`](sconce_scheduler::BlockCode).
    pub blocks: Vec<u8>,
    /// Whether the device's energy can be measured.
    pub has_energy: bool,
    /// The tenants, by id; one that the file names no more is among them.
    pub tenants: Vec<TenantSnapshot>,
}

/// How a tenant fares.
#[derive(Clone, Debug)]
pub struct TenantSnapshot {
    /// Its index.
    pub id: TenantId,
    /// Its name.
    pub name: Arc<str>,
    /// Its weight beside the others'.
    pub weight: u32,
    /// Its part of the engine now, beside the other active tenants, from 0 to 1.
    pub share: f64,
    /// Its sequences that run.
    pub running: usize,
    /// Its requests that wait, those that are not ready included.
    pub waiting: usize,
    /// Blocks that its sequences hold; one that several share counts for each.
    pub blocks: usize,
}

impl<E: Executor> EngineLoop<E> {
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        let at = Instant::now();
        let stats = self.scheduler.stats();
        let mut blocks = Vec::with_capacity(stats.num_blocks);
        self.scheduler.map_blocks(&mut blocks);
        let tenants = self.tenants.iter().map(|known| {
            let tenant = &known.tenant;
            let stats = self.scheduler.tenant_stats(tenant.id);
            TenantSnapshot {
                id: tenant.id,
                name: Arc::clone(&tenant.name),
                weight: tenant.weight,
                share: stats.share,
                running: stats.running,
                waiting: stats.waiting + stats.blocked,
                blocks: stats.blocks,
            }
        });
        Snapshot {
            at,
            running: stats.running,
            waiting: stats.waiting + stats.blocked,
            used_blocks: stats.used_blocks,
            blocks,
            has_energy: self.meter.has_energy(),
            tenants: tenants.collect(),
            took: at.elapsed(),
        }
    }
}
