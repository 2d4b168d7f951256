//! Traces that are made up.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::trace::{
    Arrival, MAX_REQUESTS, MAX_TENANTS, MAX_TOKENS, Trace, TraceError, numbered_tenants,
};

/// What a specification says.
struct Spec {
    rate: f64,
    seconds: f64,
    tenants: usize,
    prompt: f64,
    output: f64,
    spread: f64,
    flood: f64,
    on: f64,
    off: f64,
}

/// A key, its least and greatest value, and what it is if nothing is said.
type Key = (&'static str, f64, f64, Option<f64>);

const KEYS: [Key; 7] = [
    ("rate", 1e-6, 1e7, None),
    ("seconds", 1e-3, 1e9, None),
    ("tenants", 1.0, MAX_TENANTS as f64, Some(1.0)),
    ("prompt", 1.0, 1e6, Some(200.0)),
    ("output", 1.0, 1e6, Some(100.0)),
    ("spread", 0.0, 3.0, Some(0.5)),
    ("flood", 0.0, 1e6, Some(1.0)),
];
const BURST_KEYS: [Key; 2] = [("on", 1e-3, 1e6, Some(10.0)), ("off", 0.0, 1e6, Some(30.0))];

/// Makes up a trace of a kind, `poisson` or `burst`.
pub(crate) fn generate(spec: &str, kind: &str, seed: u64) -> Result<Trace, TraceError> {
    let Spec { rate, seconds, tenants, prompt, output, spread, flood, on, off } =
        parse(spec, kind == "burst")?;
    if rate * seconds > MAX_REQUESTS as f64 {
        return Err(TraceError::TooManyRequests(spec.to_owned()));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut arrivals = Vec::new();
    // Time that passes only while requests come.
    let rate_on = rate * (on + off) / on;
    let mut busy = 0.0;
    loop {
        busy += -(1.0 - rng.random::<f64>()).ln() / rate_on;
        let at = (busy / on).floor() * (on + off) + busy % on;
        if at >= seconds {
            break;
        }
        if arrivals.len() == MAX_REQUESTS {
            return Err(TraceError::TooManyRequests(spec.to_owned()));
        }
        let place = rng.random::<f64>() * (flood + (tenants - 1) as f64);
        let other = 1 + (place - flood).max(0.0) as usize;
        let tenant = if place < flood { 0 } else { other.min(tenants - 1) as u32 };
        let prompt_len = length(prompt, spread, &mut rng);
        let output_len = length(output, spread, &mut rng);
        arrivals.push(Arrival { at, tenant, prompt_len, output_len });
    }
    Trace { arrivals, tenant_names: numbered_tenants(tenants), left_out: 0 }.settle(spec)
}

/// A lognormal length of this mean.
fn length(mean: f64, spread: f64, rng: &mut StdRng) -> u32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    let length = mean * (spread * normal - spread * spread / 2.0).exp();
    length.round().clamp(1.0, f64::from(MAX_TOKENS)) as u32
}

fn parse(spec: &str, has_bursts: bool) -> Result<Spec, TraceError> {
    let error = |key: &str, value: &str, accepted: String| TraceError::Spec {
        spec: spec.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
        accepted,
    };
    let keys = KEYS.iter().chain(if has_bursts { &BURST_KEYS[..] } else { &[] });
    let mut values: Vec<(Key, Option<f64>)> = keys.map(|&key| (key, None)).collect();
    let (_, pairs) = spec.split_once(':').expect("a specification has a kind");
    for pair in pairs.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let names = values.iter().map(|((name, ..), _)| *name).collect::<Vec<_>>().join(", ");
        let Some(((_, least, most, _), slot)) =
            values.iter_mut().find(|((name, ..), _)| *name == key)
        else {
            return Err(error("a key", key, format!("one of {names}")));
        };
        let number = value.parse().ok().filter(|number| (*least..=*most).contains(number));
        let Some(number) = number else {
            return Err(error(key, value, format!("a number from {least} to {most}")));
        };
        if slot.replace(number).is_some() {
            return Err(error(key, value, "given once".to_owned()));
        }
    }
    let get = |wanted: &str| {
        let Some(((.., default), given)) = values.iter().find(|((name, ..), _)| *name == wanted)
        else {
            return Ok(0.0);
        };
        given.or(*default).ok_or_else(|| error(wanted, "", "given".to_owned()))
    };
    let tenants = get("tenants")?;
    if tenants.fract() != 0.0 {
        return Err(error("tenants", &tenants.to_string(), "a whole number".to_owned()));
    }
    let (flood, tenants) = (get("flood")?, tenants as usize);
    if flood == 0.0 && tenants == 1 {
        return Err(error("flood", "0", "above 0 where the first tenant is the only".to_owned()));
    }
    Ok(Spec {
        rate: get("rate")?,
        seconds: get("seconds")?,
        tenants,
        prompt: get("prompt")?,
        output: get("output")?,
        spread: get("spread")?,
        flood,
        on: if has_bursts { get("on")? } else { 1.0 },
        off: if has_bursts { get("off")? } else { 0.0 },
    })
}
