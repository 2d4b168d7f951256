use sconce_simulator::*;
use std::time::Duration;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    // spec device engines router target policies...
    let t = Instant::now();
    let trace = Trace::load(&a[1], Tenancy::Spread(100), 1).expect("trace");
    println!("trace {} in {:?}", trace.arrivals().len(), t.elapsed());
    let mut config = SimulationConfig {
        device: Device::load(&a[2]).expect("device"),
        engines: a[3].parse().expect("n"),
        router: a[4].parse().expect("router"),
        ..Default::default()
    };
    let target: f64 = a[5].parse().expect("target");
    if target > 0.0 {
        config.others.ttft_target = Some(Duration::from_secs_f64(target));
    }
    let policies: Vec<Policy> = a[6..].iter().map(|p| p.parse().expect("policy")).collect();
    let mut all = vec![];
    for p in policies {
        let t = Instant::now();
        let r = simulate(&trace, &config, p, &mut |_| {}).expect("config");
        let s = t.elapsed().as_secs_f64();
        println!(
            "{p}: {s:.2} s, {} steps, {:.0} steps/s, {:.0} tokens/s; pred {:?} overrun {} longest {}",
            r.steps,
            r.steps as f64 / s,
            r.throughput.tokens * r.seconds / s,
            r.prediction,
            r.worst_overrun,
            r.longest_step
        );
        all.push((p.to_string(), r));
    }
    let v: Vec<_> = all.iter().map(|(l, r)| (l.as_str(), r)).collect();
    println!("{}", Table(&v));
    plot(&v, std::path::Path::new("/tmp/sim-probe.svg")).expect("plot");
}
