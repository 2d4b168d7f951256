//! Which experts each row goes to, and the rows in the order of their experts.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the choices")]

use std::ops::Range;

use super::{Routing, ensure};
use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, SharedMut},
};

const OP: &str = "route";

/// The experts of each row of a step, on a CPU.
pub struct CpuRoutes {
    routing: Routing,
    /// Rows that fit.
    capacity: usize,
    /// Rows that were routed last.
    rows: usize,
    /// `[rows, top_k]`, the likeliest first.
    experts: Vec<u32>,
    /// What each of them counts for, `[rows, top_k]`.
    weights: Vec<f32>,
    /// Where each of them has its place in the order of experts, `[rows, top_k]`.
    places: Vec<u32>,
    /// The row that has each place, `[rows * top_k]`.
    sources: Vec<u32>,
    /// The first place of each expert, and the end, `[num_experts + 1]`.
    starts: Vec<u32>,
}

impl CpuRoutes {
    pub(crate) fn new(capacity: usize, routing: Routing) -> Result<Self, KernelError> {
        let Routing { num_experts, top_k, .. } = routing;
        routing.check()?;
        let places = capacity * top_k;
        Ok(Self {
            routing,
            capacity,
            rows: 0,
            experts: vec![0; places],
            weights: vec![0.0; places],
            places: vec![0; places],
            sources: vec![0; places],
            starts: vec![0; num_experts + 1],
        })
    }

    /// How rows choose.
    #[must_use]
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// A row's experts, the likeliest first, and what each counts for.
    pub fn of_row(&self, row: usize) -> impl Iterator<Item = (u32, f32)> + Clone {
        let of_row = row * self.routing.top_k..(row + 1) * self.routing.top_k;
        let weights = &self.weights[of_row.clone()];
        self.experts[of_row].iter().copied().zip(weights.iter().copied())
    }

    /// The places of a row's choices, in their order.
    pub(crate) fn places(&self, row: usize) -> &[u32] {
        &self.places[row * self.routing.top_k..][..self.routing.top_k]
    }

    /// The row at a place.
    pub(crate) fn source(&self, place: usize) -> usize {
        self.sources[place] as usize
    }

    /// The experts that rows go to, with their places.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let of_expert = self.starts.windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
        of_expert.enumerate().filter(|(_, places)| !places.is_empty())
    }

    /// Checks that so many rows were routed.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<(), KernelError> {
        let (got, expected) = (|| self.rows.to_string(), || rows.to_string());
        ensure(self.rows == rows, op, "rows that were routed", got, expected)
    }
}

pub(crate) fn route(
    cpu: &Cpu,
    rows: usize,
    scores: &CpuBuffer,
    routes: &mut CpuRoutes,
) -> Result<(), KernelError> {
    let Routing { num_experts, top_k, normalise } = routes.routing;
    scores.check(OP, "scores", rows, num_experts)?;
    let fits = rows <= routes.capacity;
    ensure(fits, OP, "rows", || rows.to_string(), || format!("at most {}", routes.capacity))?;
    routes.rows = rows;
    let experts = SharedMut::new(&mut routes.experts);
    let weights = SharedMut::new(&mut routes.weights);
    cpu.pool.run(rows, &|thread, row| {
        let mut scratch = cpu.scratch(thread);
        let probabilities = &mut scratch.probabilities;
        probabilities.clear();
        probabilities.extend_from_slice(scores.row(row));
        let max = cpu::max(cpu.isa, probabilities);
        let sum = cpu::exp_and_sum(cpu.isa, probabilities, max);
        probabilities.iter_mut().for_each(|probability| *probability /= sum);
        // SAFETY: each task has its own row.
        let experts = unsafe { experts.slice(row * top_k, top_k) };
        // SAFETY: as above.
        let weights = unsafe { weights.slice(row * top_k, top_k) };
        for (expert, weight) in experts.iter_mut().zip(&mut *weights) {
            let chosen = likeliest(probabilities);
            *expert = chosen as u32;
            // None is below 0, so that it is not chosen again.
            *weight = std::mem::replace(&mut probabilities[chosen], -1.0);
        }
        if normalise {
            let total: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
    });
    sort(routes);
    Ok(())
}

/// The first of the largest. Of NaN, which are all or none of a row, the first.
fn likeliest(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (expert, &probability) in probabilities.iter().enumerate() {
        if probability > probabilities[best] {
            best = expert;
        }
    }
    best
}

/// A counting sort of all choices by expert, those of one in the order of rows.
fn sort(routes: &mut CpuRoutes) {
    let CpuRoutes { routing, rows, experts, places, sources, starts, .. } = routes;
    let choices = *rows * routing.top_k;
    starts.fill(0);
    experts[..choices].iter().for_each(|&expert| starts[expert as usize + 1] += 1);
    for expert in 0..routing.num_experts {
        starts[expert + 1] += starts[expert];
    }
    for (choice, place) in places[..choices].iter_mut().enumerate() {
        let next = &mut starts[experts[choice] as usize];
        *place = *next;
        sources[*next as usize] = (choice / routing.top_k) as u32;
        *next += 1;
    }
    // Each start has moved to its end, which is the next one's start.
    starts.copy_within(..routing.num_experts, 1);
    starts[0] = 0;
}
