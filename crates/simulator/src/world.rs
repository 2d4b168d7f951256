//! Engines behind a router, in virtual time.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    ConfigError, Policy, Report, SimulationConfig, Trace,
    engine::{Engine, Run},
    report,
    router::Routing,
};

/// Plays a trace under one policy. `progress` is told the fraction of requests that have
/// ended, about a hundred times.
///
/// # Errors
/// A configuration that cannot be.
pub fn simulate(
    trace: &Trace,
    config: &SimulationConfig,
    policy: Policy,
    progress: &mut dyn FnMut(f64),
) -> Result<Report, ConfigError> {
    config.validate(trace)?;
    let tenants = config.tenants_of(trace)?;
    let arrivals = trace.arrivals();
    let mut shared = Run::new(arrivals, config, &tenants, policy);
    let engines = (0..config.engines).map(|_| Engine::new(config, &tenants, policy));
    let mut engines = engines.collect::<Result<Vec<_>, _>>()?;
    let mut routing = Routing::new(config.router, engines.len(), config.seed);
    // When engines go on: times are not negative, so their bits are in their order.
    let mut events: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
    let mut coming = (0_u32..).zip(arrivals).peekable();
    let every = arrivals.len().div_ceil(100);
    let mut told = 0;
    loop {
        let event = events.peek().map(|&Reverse((at, engine))| (f64::from_bits(at), engine));
        let next = coming.next_if(|(_, arrival)| event.is_none_or(|(at, _)| arrival.at <= at));
        if let Some((request, arrival)) = next {
            let chosen = routing.choose();
            let engine = &mut engines[chosen];
            if !engine.send(request, &mut shared) {
                continue;
            }
            routing.loads[chosen] += u64::from(arrival.prompt_len);
            if !std::mem::replace(&mut engine.is_busy, true) {
                events.push(Reverse((arrival.at.to_bits(), chosen as u32)));
            }
            continue;
        }
        let Some((now, index)) = event else { break };
        let engine = &mut engines[index as usize];
        engine.take_arrivals(now, &mut shared);
        routing.loads[index as usize] = engine.load;
        events.pop();
        match engine.step(now, &mut shared) {
            Some(end) => events.push(Reverse((end.to_bits(), index))),
            None => engine.is_busy = false,
        }
        if shared.tally.ended >= told + every {
            told = shared.tally.ended;
            progress(told as f64 / arrivals.len() as f64);
        }
    }
    assert_eq!(shared.tally.ended, arrivals.len(), "every request ends");
    progress(1.0);
    let preemptions = engines.iter().map(|engine| engine.scheduler.stats().preemptions).sum();
    Ok(report::of(trace, &tenants, shared, preemptions))
}

/// Plays a trace under each policy; `progress` is told the fraction of all of it.
///
/// # Errors
/// A configuration that cannot be.
pub fn compare(
    trace: &Trace,
    config: &SimulationConfig,
    policies: &[Policy],
    progress: &mut dyn FnMut(f64),
) -> Result<Vec<(Policy, Report)>, ConfigError> {
    let all = policies.len() as f64;
    let reports = policies.iter().enumerate().map(|(index, &policy)| {
        let mut part = |fraction: f64| progress((index as f64 + fraction) / all);
        Ok((policy, simulate(trace, config, policy, &mut part)?))
    });
    reports.collect()
}
