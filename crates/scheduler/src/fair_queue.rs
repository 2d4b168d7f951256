//! What each tenant waits for, holds, and has been served.
//!
//! Fair shares are virtual token counters (Sheng et al., "Fairness in serving large
//! language models", OSDI 2024): a tenant's counter grows by the cost of each token that
//! is computed for it, divided by its weight, and the waiting tenant with the lowest
//! counter is admitted next. The counter of a tenant that becomes active again is raised to
//! virtual time, the lowest counter of the active, less a bounded credit, so that idle time
//! cannot be saved up.

use std::collections::{BTreeMap, BTreeSet};

use sconce_types::{NotReady, RequestId, Tenant, TenantId};

use crate::{SchedulerConfig, SchedulingPolicy, output_lengths::OutputLengths};

/// Steps of the whole budget that a tenant may have saved up: what it needs at once when it
/// was served less than its share until now.
const BURST_STEPS: f64 = 16.0;

/// A request's place in its tenant's queue: by priority, then by arrival.
pub(crate) type Place = (i32, u64);

/// A tenant's place among tenants; lower is sooner.
type Key = (u64, u64);

/// One tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantQueue {
    weight: f64,
    min_share: f64,
    max_running: usize,
    pub(crate) max_blocks: usize,
    pub(crate) max_queued: usize,
    /// Its weight, or more where its minimum asks for more.
    effective: f64,
    /// Cost served, by effective weight.
    counter: f64,
    queue: BTreeMap<Place, RequestId>,
    /// Tokens of those that wait.
    waiting_tokens: usize,
    /// Requests that are not ready to be scheduled.
    pub(crate) blocked: usize,
    /// Sequences with a slot.
    pub(crate) running: usize,
    /// Blocks in its sequences' tables.
    pub(crate) blocks: usize,
    /// How long its answers are.
    pub(crate) lengths: OutputLengths,
    /// The key under which it stands among the contenders.
    key: Option<Key>,
}

impl TenantQueue {
    /// That of a tenant of which nothing is known: weight 1, no limits.
    fn new() -> Self {
        Self {
            weight: 1.0,
            min_share: 0.0,
            max_running: usize::MAX,
            max_blocks: usize::MAX,
            max_queued: usize::MAX,
            effective: 1.0,
            counter: 0.0,
            queue: BTreeMap::new(),
            waiting_tokens: 0,
            blocked: 0,
            running: 0,
            blocks: 0,
            lengths: OutputLengths::default(),
            key: None,
        }
    }

    fn configure(&mut self, tenant: &Tenant, virtual_time: f64) {
        self.weight = f64::from(tenant.weight);
        self.set_effective_weight(self.weight, virtual_time);
        self.min_share = tenant.min_share;
        self.max_running = tenant.max_running.unwrap_or(usize::MAX);
        self.max_blocks = tenant.max_kv_blocks.unwrap_or(usize::MAX);
        self.max_queued = tenant.max_queued.unwrap_or(usize::MAX);
    }

    /// Takes another effective weight. What it is ahead or behind is cost, and stays the
    /// same cost.
    fn set_effective_weight(&mut self, effective: f64, virtual_time: f64) {
        if effective != self.effective {
            let lead = (self.counter - virtual_time) * self.effective / effective;
            self.counter = (virtual_time + lead).max(0.0);
            self.effective = effective;
        }
    }

    pub(crate) fn counter(&self) -> f64 {
        self.counter
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn waiting_tokens(&self) -> usize {
        self.waiting_tokens
    }

    /// Sequences of it that may run at once.
    pub(crate) fn max_running(&self) -> usize {
        self.max_running
    }

    /// Slots that its own limit leaves it.
    pub(crate) fn free_slots(&self) -> usize {
        self.max_running.saturating_sub(self.running)
    }

    /// Whether it may hold so many blocks more. Its only sequence may hold what it needs:
    /// the limit may have been lowered since it was taken.
    pub(crate) fn may_hold(&self, more: usize, running: usize) -> bool {
        running <= 1 || self.blocks.saturating_add(more) <= self.max_blocks
    }

    fn is_active(&self) -> bool {
        self.running > 0 || !self.queue.is_empty()
    }

    fn key(&self, id: TenantId, policy: SchedulingPolicy) -> Option<Key> {
        let (&(priority, arrival), _) = self.queue.first_key_value()?;
        if self.running >= self.max_running {
            return None;
        }
        Some(match policy {
            SchedulingPolicy::Fcfs => (arrival, 0),
            SchedulingPolicy::Priority => {
                (u64::from(priority.cast_unsigned() ^ (1 << 31)), arrival)
            }
            // A counter is not negative, so its bits are in its order.
            SchedulingPolicy::Fair => (self.counter.to_bits(), u64::from(id.0)),
        })
    }
}

/// All tenants.
#[derive(Clone, Debug)]
pub(crate) struct FairQueue {
    policy: SchedulingPolicy,
    /// Cost that a tenant may have saved up.
    burst: f64,
    tenants: Vec<TenantQueue>,
    /// Tenants whose next request may be admitted. A key may be lower than the tenant's
    /// counter is by now, never higher.
    contenders: BTreeSet<(Key, TenantId)>,
    /// Tenants with a minimum share, those whose minima bind first in front.
    with_minimum: Vec<TenantId>,
    active: usize,
    /// Sum of the weights of the active.
    active_weight: f64,
    /// Sum of their effective weights.
    total: f64,
    is_balanced: bool,
    virtual_time: f64,
    waiting: usize,
    waiting_tokens: usize,
    /// By [`NotReady`].
    blocked: [usize; NotReady::ALL.len()],
}

/// What a tenant's sequences hold, as counted from the sequences themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) blocked: usize,
    pub(crate) blocks: usize,
}

impl FairQueue {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        Self {
            policy: config.policy,
            burst: BURST_STEPS * config.max_num_batched_tokens as f64,
            tenants: vec![TenantQueue::new()],
            contenders: BTreeSet::new(),
            with_minimum: Vec::new(),
            active: 0,
            active_weight: 0.0,
            total: 0.0,
            is_balanced: true,
            virtual_time: 0.0,
            waiting: 0,
            waiting_tokens: 0,
            blocked: [0; NotReady::ALL.len()],
        }
    }

    pub(crate) fn tenant(&self, id: TenantId) -> &TenantQueue {
        &self.tenants[id.index()]
    }

    pub(crate) fn knows(&self, id: TenantId) -> bool {
        id.index() < self.tenants.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.tenants.len()
    }

    /// An answer of a tenant's ended.
    pub(crate) fn note_length(&mut self, id: TenantId, tokens: usize, was_cut: bool) {
        self.tenants[id.index()].lengths.observe(tokens, was_cut);
    }

    /// Makes room for a tenant that was never heard of.
    pub(crate) fn ensure(&mut self, id: TenantId) {
        if self.tenants.len() <= id.index() {
            self.tenants.resize_with(id.index() + 1, TenantQueue::new);
        }
    }

    /// Takes new weights and limits; what waits and runs stays.
    pub(crate) fn configure(&mut self, tenants: &[Tenant]) {
        for tenant in tenants {
            self.ensure(tenant.id);
            let virtual_time = self.virtual_time;
            self.tenants[tenant.id.index()].configure(tenant, virtual_time);
        }
        let minimum = |&id: &TenantId| self.tenants[id.index()].min_share > 0.0;
        let ids = (0..self.tenants.len()).map(|i| TenantId(i as u32));
        self.with_minimum = ids.filter(minimum).collect();
        let Self { with_minimum, tenants, .. } = self;
        let ratio = |id: &TenantId| tenants[id.index()].weight / tenants[id.index()].min_share;
        with_minimum.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let active = self.tenants.iter().filter(|tenant| tenant.is_active());
        self.active_weight = active.map(|tenant| tenant.weight).sum();
        self.is_balanced = false;
        for index in 0..self.tenants.len() {
            self.requeue(TenantId(index as u32));
        }
    }

    /// Requests that wait.
    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that are not ready to be scheduled.
    pub(crate) fn num_blocked(&self) -> usize {
        self.blocked.iter().sum()
    }

    /// Of those, the ones that wait for this.
    pub(crate) fn num_blocked_by(&self, reason: NotReady) -> usize {
        self.blocked[reason as usize]
    }

    /// A request of a tenant is not ready to be scheduled: it is counted, but does not compete.
    pub(crate) fn block(&mut self, id: TenantId, reason: NotReady) {
        self.tenants[id.index()].blocked += 1;
        self.blocked[reason as usize] += 1;
    }

    /// It is ready, or gone.
    pub(crate) fn unblock(&mut self, id: TenantId, reason: NotReady) {
        self.tenants[id.index()].blocked -= 1;
        self.blocked[reason as usize] -= 1;
    }

    /// Whether tenants compete, so that shares mean something.
    pub(crate) fn is_contended(&self) -> bool {
        self.policy == SchedulingPolicy::Fair && self.active > 1
    }

    /// Puts a request of so many tokens into its tenant's queue.
    pub(crate) fn enqueue(
        &mut self,
        id: TenantId,
        place: Place,
        request: RequestId,
        tokens: usize,
    ) {
        self.change(id, |tenant| {
            tenant.queue.insert(place, request);
            tenant.waiting_tokens += tokens;
        });
        self.waiting += 1;
        self.waiting_tokens += tokens;
    }

    /// Takes it out again: it gets a slot, or is gone.
    pub(crate) fn dequeue(&mut self, id: TenantId, place: Place, tokens: usize) {
        self.change(id, |tenant| {
            let removed = tenant.queue.remove(&place);
            assert!(removed.is_some(), "what leaves a queue was in it");
            tenant.waiting_tokens -= tokens;
        });
        self.waiting -= 1;
        self.waiting_tokens -= tokens;
    }

    /// A sequence took a slot.
    pub(crate) fn take_slot(&mut self, id: TenantId) {
        self.change(id, |tenant| tenant.running += 1);
    }

    /// A sequence left its slot.
    pub(crate) fn free_slot(&mut self, id: TenantId) {
        self.change(id, |tenant| tenant.running -= 1);
    }

    pub(crate) fn hold(&mut self, id: TenantId, blocks: usize) {
        self.tenants[id.index()].blocks += blocks;
    }

    pub(crate) fn release(&mut self, id: TenantId, blocks: usize) {
        self.tenants[id.index()].blocks -= blocks;
    }

    /// Adds what was computed for a tenant to its counter.
    pub(crate) fn charge(&mut self, id: TenantId, cost: f64) {
        if self.policy == SchedulingPolicy::Fair {
            let tenant = &mut self.tenants[id.index()];
            tenant.counter += cost / tenant.effective;
        }
    }

    /// Changes an tenant, and what follows from whether it is active.
    fn change(&mut self, id: TenantId, change: impl FnOnce(&mut TenantQueue)) {
        let tenant = &mut self.tenants[id.index()];
        let was_active = tenant.is_active();
        change(tenant);
        let (is_active, weight) = (tenant.is_active(), tenant.weight);
        if is_active != was_active {
            if is_active {
                self.active += 1;
                self.active_weight += weight;
            } else {
                self.active -= 1;
                self.active_weight -= weight;
            }
            self.is_balanced = false;
            if is_active {
                self.clamp_to_virtual_time(id);
            }
        }
        self.requeue(id);
    }

    /// Raises the counter of a tenant that becomes active to virtual time, less a burst.
    fn clamp_to_virtual_time(&mut self, id: TenantId) {
        self.balance();
        let tenant = &mut self.tenants[id.index()];
        let least = self.virtual_time - self.burst / tenant.effective;
        tenant.counter = tenant.counter.max(least);
    }

    /// Enters a tenant among the contenders, under its present key, or takes it out.
    fn requeue(&mut self, id: TenantId) {
        let tenant = &mut self.tenants[id.index()];
        let key = tenant.key(id, self.policy);
        // A counter that has only grown is looked at when its turn comes.
        let may_stay = self.policy == SchedulingPolicy::Fair && tenant.key <= key;
        if tenant.key == key || (tenant.key.is_some() && key.is_some() && may_stay) {
            return;
        }
        if let Some(old) = std::mem::replace(&mut tenant.key, key) {
            self.contenders.remove(&(old, id));
        }
        if let Some(key) = key {
            self.contenders.insert((key, id));
        }
    }

    /// The tenant whose turn it is, and its next request.
    pub(crate) fn next(&mut self) -> Option<(TenantId, RequestId)> {
        while let Some(&(key, id)) = self.contenders.first() {
            let tenant = &mut self.tenants[id.index()];
            let actual = tenant.key(id, self.policy).expect("a contender has a request");
            if actual == key {
                let (_, &request) = tenant.queue.first_key_value().expect("it has a request");
                return Some((id, request));
            }
            tenant.key = Some(actual);
            self.contenders.remove(&(key, id));
            self.contenders.insert((actual, id));
        }
        None
    }

    /// Takes a tenant that may hold no more out of the contenders, until something of its own
    /// ends.
    pub(crate) fn park(&mut self, id: TenantId) {
        if let Some(key) = self.tenants[id.index()].key.take() {
            self.contenders.remove(&(key, id));
        }
    }

    /// Advances virtual time to the lowest counter of the active tenants.
    pub(crate) fn advance_virtual_time(&mut self, running: impl Iterator<Item = TenantId>) {
        let waiting = self.next().map(|(id, _)| id);
        let counters = running.chain(waiting).map(|id| self.tenant(id).counter);
        if let Some(lowest) = counters.min_by(f64::total_cmp) {
            self.virtual_time = self.virtual_time.max(lowest);
        }
        self.balance();
    }

    /// Gives each active tenant with a minimum the weight that this takes.
    fn balance(&mut self) {
        if std::mem::replace(&mut self.is_balanced, true) {
            return;
        }
        let (mut free, mut reserved, mut binding) = (self.active_weight, 0.0, 0);
        let Self { tenants, with_minimum, .. } = &*self;
        let minima = with_minimum.iter().copied().filter(|id| tenants[id.index()].is_active());
        for (index, id) in minima.enumerate() {
            let TenantQueue { weight, min_share, .. } = tenants[id.index()];
            // What a smaller minimum binds at, this one binds at too.
            if (1.0 - reserved) * weight * (1.0 + 1e-9) >= min_share * free {
                break;
            }
            reserved += min_share;
            free -= weight;
            binding = index + 1;
        }
        // Weights are whole numbers, so a rest below that is a rounding error of zero.
        let (free, others) = if free < 0.5 { (0.0, reserved) } else { (free, 1.0 - reserved) };
        // Minima that take everything leave a thousandth to the rest.
        let scale = if free == 0.0 { 1.0 } else { free / others.max(1e-3) };
        self.total = free + reserved * scale;
        let mut index = 0;
        for position in 0..self.with_minimum.len() {
            let id = self.with_minimum[position];
            let tenant = &mut self.tenants[id.index()];
            if tenant.is_active() {
                let binds = index < binding;
                let effective = if binds { tenant.min_share * scale } else { tenant.weight };
                tenant.set_effective_weight(effective, self.virtual_time);
                index += 1;
                self.requeue(id);
            }
        }
    }

    /// A tenant's part of the engine, beside the other active ones: from 0 to 1.
    pub(crate) fn share(&self, id: TenantId) -> f64 {
        let tenant = self.tenant(id);
        if tenant.is_active() { tenant.effective / self.total } else { 0.0 }
    }

    /// The part that it would have if it came now.
    pub(crate) fn share_if_active(&self, id: TenantId) -> f64 {
        if !self.knows(id) {
            return 1.0 / (self.total + 1.0);
        }
        let tenant = self.tenant(id);
        if tenant.is_active() {
            return self.share(id);
        }
        (tenant.weight / (self.total + tenant.weight)).max(tenant.min_share)
    }

    /// Cost that it would be served before tenants that have saved up nothing.
    pub(crate) fn credit(&self, id: TenantId) -> f64 {
        if !self.knows(id) {
            return self.burst;
        }
        let tenant = self.tenant(id);
        let saved = (self.virtual_time - tenant.counter) * tenant.effective;
        saved.clamp(0.0, self.burst)
    }

    /// Cost that all the active together are served before it is its turn again.
    pub(crate) fn debt(&self, id: TenantId) -> f64 {
        if !self.knows(id) {
            return 0.0;
        }
        (self.tenant(id).counter - self.virtual_time).max(0.0) * self.total
    }

    /// Tokens of all that wait.
    pub(crate) fn waiting_tokens(&self) -> usize {
        self.waiting_tokens
    }

    /// Work as the time in which all the active together are served it.
    pub(crate) fn time_of(&self, cost: f64) -> f64 {
        cost / self.total
    }

    /// How many times its part of `whole` a tenant has, where that is more than once. A
    /// tenant's only sequence never counts as too much.
    pub(crate) fn overuse(&self, id: TenantId, used: usize, whole: usize) -> f64 {
        let part = (self.share(id) * whole as f64).ceil().max(1.0);
        let times = used as f64 / part;
        if times > 1.0 { times } else { 0.0 }
    }

    /// Checks what is kept twice against what each tenant's sequences hold.
    pub(crate) fn check_invariants(&self, held: &BTreeMap<TenantId, Held>) {
        let (mut waiting, mut blocked, mut active, mut weight) = (0, 0, 0, 0.0);
        for (index, tenant) in self.tenants.iter().enumerate() {
            let id = TenantId(index as u32);
            let found = Held {
                running: tenant.running,
                waiting: tenant.queue.len(),
                blocked: tenant.blocked,
                blocks: tenant.blocks,
            };
            let expected = held.get(&id).copied().unwrap_or_default();
            assert_eq!(found, expected, "tenant {index}");
            waiting += tenant.queue.len();
            blocked += tenant.blocked;
            if tenant.is_active() {
                active += 1;
                weight += tenant.weight;
            }
            if let Some(key) = tenant.key {
                assert!(self.contenders.contains(&(key, id)), "a contender stands by its key");
                let actual = tenant.key(id, self.policy).expect("a contender has a request");
                assert!(key <= actual, "a contender's key is at most its present one");
            }
        }
        let standing = self.tenants.iter().filter(|tenant| tenant.key.is_some()).count();
        assert_eq!(standing, self.contenders.len(), "each contender stands once");
        assert_eq!(
            (waiting, blocked, active),
            (self.waiting, self.num_blocked(), self.active),
            "tenants are counted"
        );
        assert!((weight - self.active_weight).abs() < 1e-6, "active weights are summed");
    }
}
