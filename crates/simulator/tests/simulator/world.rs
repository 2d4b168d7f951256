//! The virtual clock, routers, and reports.

use std::time::Duration;

use sconce_scheduler::SchedulingPolicy;
use sconce_simulator::{
    Device, Policy, Report, Router, SimulationConfig, Table, Tenancy, Trace, plot, simulate,
};
use sconce_types::Tenant;

fn trace(source: &str, seed: u64) -> Trace {
    Trace::load(source, Tenancy::Spread(1), seed).expect("it gives a trace")
}

const FAIR: Policy = Policy { scheduling: SchedulingPolicy::Fair, admission: true };

fn play(trace: &Trace, config: &SimulationConfig) -> Report {
    simulate(trace, config, FAIR, &mut |_| {}).expect("the configuration is right")
}

#[test]
fn time_passes_as_the_device_says() {
    // One request: 600 prompt tokens in two chunks, then two decodes.
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("trace.csv");
    let text = "at,tenant,prompt_tokens,output_tokens\n0,a,600,3\n";
    std::fs::write(&path, text).expect("it can be written");
    let trace = trace(path.to_str().expect("its path is text"), 1);
    let config = SimulationConfig::default();
    let Device { step, prefill, decode, prefill_attended, decode_attended, .. } = config.device;
    let report = play(&trace, &config);
    let pairs = 600.0 * 601.0 / 2.0;
    let ttft = 2.0 * step + 600.0 * prefill + pairs * prefill_attended;
    let tpot = step + decode + 601.5 * decode_attended;
    let (seen_ttft, seen_tpot) = (report.ttft.expect("a token came"), report.tpot.expect("more"));
    assert!((seen_ttft.p50 / ttft - 1.0).abs() < 1e-5, "{seen_ttft:?}, should be {ttft}");
    assert!((seen_tpot.p99 / tpot - 1.0).abs() < 1e-4, "{seen_tpot:?}, should be {tpot}");
    assert_eq!((report.steps, report.counts.met), (4, 1));
    let all = ttft + 2.0 * tpot;
    assert!((report.throughput.tokens * all / 3.0 - 1.0).abs() < 1e-4, "{report:?}");
    assert!((report.tenants[0].served - 604.0).abs() < 1e-9, "600 and twice 2");
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let of_seed = |seed| {
        let trace = trace("burst:rate=40,seconds=60,tenants=30,flood=5,on=5,off=10", seed);
        let mut config =
            SimulationConfig { engines: 4, router: Router::PowerOfTwo, seed, ..Default::default() };
        config.others.ttft_target = Some(Duration::from_secs(1));
        config.timeout = Some(Duration::from_secs(5));
        play(&trace, &config)
    };
    let report = of_seed(1);
    let counts = report.counts;
    assert!(counts.too_late > 0 && counts.late > 0, "{counts:?}");
    assert!(report == of_seed(1), "the same seed");
    assert!(report != of_seed(2), "another seed");
}

#[test]
fn a_thousand_engines_share_what_comes() {
    let trace = trace("poisson:rate=6500,seconds=4,tenants=200,prompt=200,output=20", 1);
    let p99 = [Router::LeastLoaded, Router::PowerOfTwo, Router::RoundRobin].map(|router| {
        let device = Device { num_blocks: 256, ..Device::cpu_smollm2() };
        let config = SimulationConfig { engines: 1000, device, router, ..Default::default() };
        let report = play(&trace, &config);
        assert_eq!(report.counts.met, trace.arrivals().len());
        report.ttft.expect("all are served").p99
    });
    assert!(p99.is_sorted(), "the more a router knows the better: {p99:?}");
    assert!(p99[2] > 1.1 * p99[0], "{p99:?}");
}

#[test]
fn reports_are_shown() {
    let trace = trace("poisson:rate=20,seconds=30,tenants=20", 1);
    let report = play(&trace, &SimulationConfig::default());
    let text = Table(&[("a", &report), ("b", &report)]).to_string();
    let widths: Vec<_> = text.lines().map(str::len).collect();
    assert!(widths[1..].iter().all(|&width| width == widths[0]), "columns end together:\n{text}");
    assert!(report.to_string().contains("and 8 tenants more"), "{report}");
    let json: serde_json::Value = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!(json["counts"]["arrived"], trace.arrivals().len());
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("plot.svg");
    plot(&[("fair & <square>", &report), ("b", &report)], &path).expect("it can be written");
    let svg = std::fs::read_to_string(&path).expect("it was written");
    assert!(svg.starts_with("<svg") && svg.contains("fair &amp; &lt;square&gt;"), "{svg}");
    assert!(svg.matches("<polyline").count() >= 4, "two lines in two charts");
    let error = plot(&[("a", &report)], &dir.path().join("no/plot.svg"));
    assert!(error.expect_err("there is no such folder").to_string().contains("plot.svg"));
}

#[test]
fn what_cannot_be_is_refused() {
    let trace = trace("poisson:rate=1,seconds=10,tenants=3", 1);
    let refusal = |change: fn(&mut SimulationConfig)| {
        let mut config = SimulationConfig::default();
        change(&mut config);
        let error = simulate(&trace, &config, FAIR, &mut |_| {}).expect_err("it is refused");
        error.to_string()
    };
    assert_eq!(refusal(|c| c.engines = 0), "engines is 0, but must be from 1 to 10000");
    assert_eq!(
        refusal(|c| c.device.num_blocks = 1 << 30),
        "engines x num_blocks is 1073741824, but must be from 1 to 200000000"
    );
    assert_eq!(refusal(|c| c.others.weight = 0), "default's weight is 0, but must be at least 1");
    assert_eq!(
        refusal(|c| c.others.min_share = 0.5),
        "all tenants' min_share is 1.5, but must be at most 1 together"
    );
    assert_eq!(
        refusal(|c| c.tenants = vec![Tenant::sole(), Tenant::sole()]),
        "a tenant's name is default, but must be given once"
    );
    assert_eq!(
        refusal(|c| c.device.step = f64::NAN),
        "the device's step is NaN seconds, but must be from 0.000000001 to 1000"
    );
    assert_eq!(
        refusal(|c| c.device.max_num_seqs = 0),
        "the device's max_num_seqs is 0, but must be from 1 to 4294967295"
    );
    assert!("fair+admission".parse() == Ok(FAIR) && FAIR.to_string() == "fair+admission");
    assert!("fairest".parse::<Policy>().is_err() && "random".parse::<Router>().is_err());
}

#[test]
fn a_device_comes_by_name_or_from_a_file() {
    let device = Device::load("h200-8b").expect("a preset");
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("device.json");
    let name = path.to_str().expect("its path is text");
    let mut json = serde_json::to_value(&device).expect("a device is JSON");
    std::fs::write(&path, json.to_string()).expect("it can be written");
    let read = Device::load(name).expect("it is what was written");
    assert!((read.step / device.step - 1.0).abs() < 1e-12 && read.num_blocks == 52_000, "{read:?}");
    json["prefill"] = (-1.0).into();
    std::fs::write(&path, json.to_string()).expect("it can be written");
    let error = Device::load(name).expect_err("time does not go back").to_string();
    assert!(error.ends_with("prefill is -1 seconds, but must be from 0 to 1000"), "{error}");
    json["prefil"] = 1.0.into();
    std::fs::write(&path, json.to_string()).expect("it can be written");
    let error = Device::load(name).expect_err("a field is misspelt").to_string();
    assert!(error.contains("prefil"), "{error}");
    let error = Device::load("h100").expect_err("there is none").to_string();
    assert!(error.contains("`h100`, but must be cpu-smollm2, h200-8b or a JSON file"), "{error}");
}
