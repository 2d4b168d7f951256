//! Traces from files and specifications, and what is refused.

use sconce_simulator::{Arrival, Tenancy, Trace};

const SPREAD: Tenancy = Tenancy::Spread(3);

fn read(text: &str, tenancy: Tenancy) -> Result<Trace, String> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("trace.csv");
    std::fs::write(&path, text).expect("it can be written");
    let trace = Trace::load(path.to_str().expect("its path is text"), tenancy, 1);
    trace.map_err(|error| error.to_string().replace(&*dir.path().to_string_lossy(), ""))
}

fn times(trace: &Trace) -> Vec<f64> {
    trace.arrivals().iter().map(|arrival| arrival.at).collect()
}

fn lengths(trace: &Trace) -> Vec<(u32, u32)> {
    trace.arrivals().iter().map(|arrival| (arrival.prompt_len, arrival.output_len)).collect()
}

#[test]
fn azures_traces_are_read() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                2023-11-16 18:15:46.6805900,374,44\n\
                2023-11-16 18:15:50.9951690,396,109\n\
                2023-11-16 18:15:51.2225670,879,55\n";
    let trace = read(text, SPREAD).expect("it is a trace");
    let expected = [0.0, 4.314579, 4.541977];
    let is_near = |(a, b): (f64, f64)| (a - b).abs() < 1e-9;
    assert!(times(&trace).into_iter().zip(expected).all(is_near), "{:?}", times(&trace));
    assert_eq!(lengths(&trace), [(374, 44), (396, 109), (879, 55)]);
    assert_eq!(trace.tenant_names(), ["tenant-1", "tenant-2", "tenant-3"]);

    // The newer ones have an offset, end lines with CRLF, and cross midnights.
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
                2024-02-29 23:59:59.500000+00:00,10,1\r\n\
                2024-03-01 00:00:00+00:00,20,0\r\n\
                2024-03-01 00:00:01.250000+00:00,30,3\r\n";
    let trace = read(text, SPREAD).expect("it is a trace");
    assert_eq!((times(&trace), trace.left_out()), (vec![0.0, 1.75], 1));
    // Years, leap years and offsets, against known days of Unix time.
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                1970-01-01 00:00:00,1,1\n\
                2000-03-01T00:00:00Z,1,1\n\
                2023-11-16 18:15:46-01:30,1,1\n";
    let trace = read(text, SPREAD).expect("it is a trace");
    assert_eq!(times(&trace), [0.0, 951_868_800.0, 1_700_163_946.0]);
}

#[test]
fn burstgpts_traces_are_read() {
    let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                5,ChatGPT,472,18,490,Conversation log\n\
                45,ChatGPT,1087,230,1317,Conversation log\n\
                60,ChatGPT,12,0,12,Conversation log\n\
                118,GPT-4,417,276,693,Conversation log\n";
    let trace = read(text, Tenancy::ByModel).expect("it is a trace");
    assert_eq!((times(&trace), trace.left_out()), (vec![0.0, 40.0, 113.0], 1));
    assert_eq!(lengths(&trace), [(472, 18), (1087, 230), (417, 276)]);
    assert_eq!(trace.tenant_names(), ["ChatGPT", "GPT-4"]);
    assert_eq!(trace.arrivals()[2].tenant, 1);

    // Newer ones have columns more; rows need not be in order.
    let text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total \
                tokens,Log Type\n\
                10.5,s-2,1.5,GPT-4,200,20,220,API log\n\
                0.5,s-1,0.7,ChatGPT,100,10,110,Conversation log\n";
    let trace = read(text, SPREAD).expect("it is a trace");
    assert_eq!((times(&trace), lengths(&trace)), (vec![0.0, 10.0], vec![(100, 10), (200, 20)]));
}

#[test]
fn our_own_traces_are_read_and_tenants_are_spread() {
    let text = "tenant,at,prompt_tokens,output_tokens\nacme,1,10,2\nzoo,1.5,20,3\nacme,2,30,4\n";
    let trace = read(text, SPREAD).expect("it is a trace");
    let arrival =
        |at, tenant, prompt_len, output_len| Arrival { at, tenant, prompt_len, output_len };
    let expected = [arrival(0.0, 0, 10, 2), arrival(0.5, 1, 20, 3), arrival(1.0, 0, 30, 4)];
    assert_eq!(
        (trace.arrivals(), trace.tenant_names()),
        (&expected[..], &["acme".into(), "zoo".into()][..])
    );

    let mut text = "Timestamp,Request tokens,Response tokens\n".to_owned();
    text.extend((0..6_000).map(|second| format!("{second},5,5\n")));
    let trace = read(&text, SPREAD).expect("it is a trace");
    let of = |tenant| trace.arrivals().iter().filter(|arrival| arrival.tenant == tenant).count();
    // 6 to 3 to 2, of 11.
    for (tenant, expected) in [(0, 3273), (1, 1636), (2, 1091)] {
        assert!(of(tenant).abs_diff(expected) < 150, "tenant {tenant}: {}", of(tenant));
    }
    assert_eq!(trace, read(&text, SPREAD).expect("again"), "the same seed");
}

#[test]
fn what_is_no_trace_is_refused_by_name() {
    let azure = |row: &str| format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{row}\n");
    let time = "a time such as 2023-11-16 18:15:46.6805900";
    for bad in [
        "yesterday",
        "2023-02-29 00:00:00",
        "2023-13-01 00:00:00",
        "2023-11-16 24:00:00",
        "2023-11-16 18:15",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46.1234567890",
        "2023-11-16 18:15:46+1",
        "9999-01-01 00:00:00",
        "2023-11-16 18:15:4６",
    ] {
        assert_eq!(
            read(&azure(&format!("{bad},1,1")), SPREAD).expect_err("no time"),
            format!("/trace.csv line 2: TIMESTAMP is `{bad}`, but must be {time}")
        );
    }
    let own = "at,tenant,prompt_tokens,output_tokens";
    for (text, tenancy, error) in [
        (
            azure("2023-11-16 18:15:46,x,1"),
            SPREAD,
            " line 2: ContextTokens is `x`, but must be a whole number from 0 to 10000000",
        ),
        (
            format!("{own}\n0,a,1,1\n1,a,1,10000001"),
            SPREAD,
            " line 3: output_tokens is `10000001`, but must be a whole number from 1 to 10000000",
        ),
        (
            format!("{own}\n0,a,0,1"),
            SPREAD,
            " line 2: prompt_tokens is `0`, but must be a whole number from 1 to 10000000",
        ),
        (
            format!("{own}\nNaN,a,1,1"),
            SPREAD,
            " line 2: at is `NaN`, but must be seconds from 0 to 10000000000",
        ),
        (
            format!("{own}\n-1,a,1,1"),
            SPREAD,
            " line 2: at is `-1`, but must be seconds from 0 to 10000000000",
        ),
        (
            format!("{own}\n1,,1,1"),
            SPREAD,
            " line 2: tenant is ``, but must be a name of 1 to 256 bytes",
        ),
        (
            own.to_owned(),
            SPREAD,
            "/trace.csv` holds no request that was answered; at least 1 is needed",
        ),
        (
            "a,b\n1,2".to_owned(),
            SPREAD,
            ": the header is `a,b`, but must hold TIMESTAMP, ContextTokens",
        ),
        (azure(""), Tenancy::ByModel, "but must hold Timestamp, Model, Request tokens"),
        (
            azure(""),
            Tenancy::Spread(0),
            "0 tenants share the trace, but it must be from 1 to 100000",
        ),
        (format!("{own}\n1,a,1"), SPREAD, "line: 2"),
        // A line that never ends, and a quote that is never closed.
        (
            format!("{own}\n1,{},1,1", "x".repeat(70_000)),
            SPREAD,
            "a line has more than 65536 bytes",
        ),
        (format!("{own}\n\"1,a,1,1\n2,a,1,1"), SPREAD, " line 2: at is `\"1`, but must be seconds"),
    ] {
        let found = read(&text, tenancy).expect_err("it is refused");
        assert!(found.contains(error), "`{found}` does not say `{error}`");
    }
    let long = format!("{own}\n{},a,1,1", "9".repeat(5_000));
    assert!(read(&long, SPREAD).expect_err("no time").len() < 300, "messages are short");
    let error = Trace::load("no/such.csv", SPREAD, 1).expect_err("there is no file");
    assert!(error.to_string().starts_with("no/such.csv: "), "{error}");
}

#[test]
fn a_specification_gives_what_it_says() {
    let load = |spec: &str| Trace::load(spec, SPREAD, 5).expect("the specification is right");
    let trace = load("poisson:rate=50,seconds=400,tenants=11,flood=10,prompt=300,output=80");
    let count = trace.arrivals().len() as f64;
    let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.05;
    let mean = |of: fn(&Arrival) -> f64| trace.arrivals().iter().map(of).sum::<f64>() / count;
    assert!(near(count, 20_000.0), "{count}");
    assert!(near(mean(|a| f64::from(a.prompt_len)), 300.0));
    assert!(near(mean(|a| f64::from(a.output_len)), 80.0));
    assert!(near(mean(|a| f64::from(u8::from(a.tenant == 0))), 0.5), "10 of 20 are the first's");
    assert!(near(mean(|a| f64::from(u8::from(a.tenant == 10))), 0.05) || count < 1e4);
    assert!(trace.arrivals().is_sorted_by(|a, b| a.at <= b.at));

    let bursts = load("burst:rate=50,seconds=400,on=5,off=15,spread=0");
    assert!(near(bursts.arrivals().len() as f64, 20_000.0));
    // Time counts from the first request, a moment after the first phase has begun.
    assert!(bursts.arrivals().iter().all(|a| (a.at + 0.1) % 20.0 < 5.2), "only in its phases");
    assert!(lengths(&bursts).iter().all(|&lengths| lengths == (200, 100)));
    assert!(load("burst:rate=5,seconds=9") != load("poisson:rate=5,seconds=9"));
}

#[test]
fn a_specification_that_cannot_be_is_refused() {
    for (spec, error) in [
        ("poisson:rate=1", "seconds is ``, but must be given"),
        ("poisson:", "rate is ``, but must be given"),
        (
            "poisson:rate=1,seconds=x",
            "seconds is `x`, but must be a number from 0.001 to 1000000000",
        ),
        (
            "poisson:rate=-1,seconds=1",
            "rate is `-1`, but must be a number from 0.000001 to 10000000",
        ),
        ("poisson:rate=NaN,seconds=1", "rate is `NaN`, but must be a number"),
        ("poisson:rate=1,rate=1,seconds=1", "rate is `1`, but must be given once"),
        ("poisson:rate=1,seconds=9,on=3", "a key is `on`, but must be one of rate, seconds"),
        ("poisson:rate=1,seconds=9,tenants=1.5", "tenants is `1.5`, but must be a whole number"),
        ("poisson:rate=1,seconds=9,flood=0", "flood is `0`, but must be above 0"),
        ("burst:rate=1000,seconds=1e6", "holds more than 50000000 requests"),
        ("poisson:rate=1e-6,seconds=0.001", "holds no request"),
    ] {
        let found = Trace::load(spec, SPREAD, 1).expect_err("it is refused").to_string();
        assert!(found.contains(error), "`{found}` does not say `{error}`");
    }
}
