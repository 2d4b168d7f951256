//! How tenants share simulated engines: a flood, weights, load past what engines can do.

use std::{io::Write as _, time::Duration};

use sconce_scheduler::SchedulingPolicy::{self, Fair, Fcfs};
use sconce_simulator::{
    Arrival, Device, Policy, Report, SimulationConfig, Tenancy, Trace, compare, simulate,
};
use sconce_types::Tenant;

/// A device whose full step takes 1.25 s.
fn slow() -> Device {
    Device {
        step: 0.25,
        prefill: 1.0 / 64.0,
        decode: 1.0 / 64.0,
        prefill_attended: 0.0,
        decode_attended: 0.0,
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
        max_model_len: 1024,
        num_blocks: 256,
        max_queued: 1024,
    }
}

fn trace(spec: &str) -> Trace {
    Trace::load(spec, Tenancy::Spread(1), 7).expect("the specification is right")
}

fn play(trace: &Trace, config: &SimulationConfig, scheduling: SchedulingPolicy) -> Report {
    let policy = Policy { scheduling, admission: false };
    simulate(trace, config, policy, &mut |_| {}).expect("the configuration is right")
}

/// A trace of some of another's requests.
fn only(trace: &Trace, keep: impl Fn(&Arrival) -> bool) -> Trace {
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    writeln!(file, "at,tenant,prompt_tokens,output_tokens").expect("it can be written");
    for arrival in trace.arrivals().iter().filter(|arrival| keep(arrival)) {
        let Arrival { at, tenant, prompt_len, output_len } = arrival;
        let name = &trace.tenant_names()[*tenant as usize];
        writeln!(file, "{at},{name},{prompt_len},{output_len}").expect("it can be written");
    }
    let path = file.path().to_str().expect("its path is text");
    Trace::load(path, Tenancy::Spread(1), 0).expect("it holds a trace")
}

#[test]
fn a_flood_does_not_reach_who_stays_within_its_share() {
    // A request takes some 6.5 s of the engine, so 0.0192 a second are an eighth of what it
    // can do; the flood is 50 times the half that is the first tenant's own.
    let flood = trace(
        "poisson:rate=3.86,seconds=20000,tenants=2,flood=200,prompt=320,output=8,spread=0.15",
    );
    let polite = only(&flood, |arrival| arrival.tenant == 1);
    let config = SimulationConfig { device: slow(), ..SimulationConfig::default() };
    let p99 = |trace, policy| {
        let report = play(trace, &config, policy);
        let tenant = report.tenants.iter().find(|tenant| tenant.name == "tenant-2");
        let tenant = tenant.expect("it takes part");
        assert!(tenant.counts.arrived > 300, "{} requests", tenant.counts.arrived);
        if policy == Fair {
            assert_eq!(tenant.counts.finished, tenant.counts.arrived, "it has its places");
        }
        tenant.ttft.expect("it is served").p99
    };
    let alone = p99(&polite, Fair);
    let flooded = p99(&flood, Fair);
    let starved = p99(&flood, Fcfs);
    assert!(flooded <= 1.5 * alone, "p99 TTFT {flooded}, alone {alone}");
    assert!(starved > 10.0 * alone, "first come, first served: {starved}, alone {alone}");
}

#[test]
fn past_saturation_admission_keeps_the_goodput() {
    // 10 requests a second are about what the device can do, and an unloaded TTFT is 0.08 s.
    let trace = trace("poisson:rate=20,seconds=600,tenants=20,prompt=200,output=50");
    let mut config = SimulationConfig::default();
    config.others.ttft_target = Some(Duration::from_millis(400));
    let policies = ["fcfs", "fair+admission"].map(|policy| policy.parse().expect("a policy"));
    let mut told = Vec::new();
    let reports = compare(&trace, &config, &policies, &mut |part| told.push(part));
    let reports = reports.expect("the configuration is right");
    let [(_, fcfs), (_, fair)] = &reports[..] else { panic!("two policies have two reports") };
    assert!(
        fair.goodput.requests >= 1.5 * fcfs.goodput.requests,
        "goodput {} requests/s, first come, first served {}",
        fair.goodput.requests,
        fcfs.goodput.requests
    );
    assert_eq!(fcfs.counts.accepted, fcfs.counts.finished, "without admission all are served");
    // Requests do meet their deadlines within a step, so this is not empty.
    assert!(fair.worst_overrun > 0.0 && fair.worst_overrun <= fair.longest_step, "{fair:?}");
    assert!(fair.counts.too_late > 0);
    let late = fair.counts.late as f64 / fair.counts.accepted as f64;
    assert!(late < 0.05, "{late} of those accepted were late after all");
    assert!(told.is_sorted() && told.len() > 100 && told.last() == Some(&1.0), "{told:?}");
}

/// Ten times what the device can do, and what it does where all are served at some time.
fn overload(config: &SimulationConfig) -> (Report, f64) {
    let trace = trace("poisson:rate=140,seconds=180,tenants=1,prompt=128,output=64,spread=0");
    let policy = Policy { scheduling: Fair, admission: true };
    let report = simulate(&trace, config, policy, &mut |_| {}).expect("it can be");
    let endless = SimulationConfig::default();
    let capacity = play(&trace, &endless, Fair).throughput.tokens;
    (report, capacity)
}

#[test]
fn ten_times_the_load_without_timeouts_keeps_the_engine_busy() {
    let max_queue_wait = Some(Duration::from_secs(10));
    let config = SimulationConfig { max_queue_wait, ..SimulationConfig::default() };
    let (report, capacity) = overload(&config);
    let served = report.throughput.tokens / capacity;
    assert!(served > 0.95, "{served} of the capacity");
    let counts = report.counts;
    assert_eq!(counts.finished, counts.accepted, "all that were taken finish");
    assert!(counts.accepted * 5 < counts.arrived, "most are refused");
    let worst = report.ttft.expect("many are served").p99;
    assert!(worst < 15.0, "p99 TTFT {worst} s where 10 s are the longest wait");
}

#[test]
fn ten_times_the_load_with_timeouts_ends_in_time() {
    for seconds in [5, 10, 30] {
        let timeout = Some(Duration::from_secs(seconds));
        let config = SimulationConfig { timeout, ..SimulationConfig::default() };
        let (report, capacity) = overload(&config);
        let counts = report.counts;
        let finished = counts.finished as f64 / counts.accepted as f64;
        assert!(finished > 0.98, "{finished} of those taken finished within {seconds} s");
        let served = report.throughput.tokens / capacity;
        assert!(served > if seconds == 5 { 0.8 } else { 0.9 }, "{seconds} s: {served}");
    }
}

#[test]
fn a_tenant_in_a_flood_with_deadlines_is_still_taken() {
    let trace =
        trace("poisson:rate=40,seconds=600,tenants=2,flood=20,prompt=128,output=64,spread=0");
    let config =
        SimulationConfig { timeout: Some(Duration::from_secs(6)), ..SimulationConfig::default() };
    let policy = Policy { scheduling: Fair, admission: true };
    let report = simulate(&trace, &config, policy, &mut |_| {}).expect("it can be");
    let small = report.tenants.iter().min_by_key(|tenant| tenant.counts.arrived);
    let counts = small.expect("there are two").counts;
    let finished = counts.finished as f64 / counts.arrived as f64;
    assert!(finished > 0.9, "{counts:?}");
}

#[test]
fn prefill_leaves_decodes_their_pace() {
    // 16 streams, then a prompt of 900 tokens: 14 s of prefill, 7 of them in one step.
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    writeln!(file, "at,tenant,prompt_tokens,output_tokens").expect("it can be written");
    (0..15).for_each(|_| writeln!(file, "0,a,8,100").expect("it can be written"));
    writeln!(file, "20,a,900,2").expect("it can be written");
    let path = file.path().to_str().expect("its path is text");
    let trace = Trace::load(path, Tenancy::Spread(1), 0).expect("it holds a trace");
    let longest_step = |target_itl: Option<Duration>| {
        let device = Device { max_num_batched_tokens: 512, ..slow() };
        let config = SimulationConfig { device, target_itl, ..SimulationConfig::default() };
        let report = play(&trace, &config, Fair);
        assert_eq!(report.counts.finished, 16);
        report.longest_step
    };
    let unbound = longest_step(None);
    assert!(unbound > 7.0, "{unbound} s");
    // The 15 prompts at the start take 2.1 s together, with no decode beside them.
    let bound = longest_step(Some(Duration::from_secs(1)));
    assert!(bound < 2.5, "{bound} s");
}

#[test]
fn weights_give_shares_within_three_percent() {
    let trace = trace("poisson:rate=3,seconds=20000,tenants=3,prompt=60,output=30");
    let tenant = |name: &str, weight| Tenant { name: name.into(), weight, ..Tenant::sole() };
    let config = SimulationConfig {
        device: slow(),
        tenants: vec![tenant("tenant-2", 2), tenant("tenant-3", 4)],
        ..SimulationConfig::default()
    };
    let report = play(&trace, &config, Fair);
    for (tenant, weight) in report.tenants.iter().zip([1.0, 2.0, 4.0]) {
        let fair = weight / 7.0;
        let share = tenant.share;
        assert!((share / fair - 1.0).abs() < 0.03, "weight {weight}: {share}, fair is {fair}");
    }
    assert!(report.jain > 0.999, "{}", report.jain);
    assert!(report.jain_backlogged.expect("all want more") > 0.999);
    let fcfs = play(&trace, &config, Fcfs);
    assert!(fcfs.jain < 0.9, "first come, first served knows no weights: {}", fcfs.jain);
}
