use sconce_ledger::*;
use sconce_types::*;
use std::time::Instant;
fn e(id: u64, l: bool, t: u32) -> MeterEntry {
    MeterEntry {
        request: RequestId(id),
        label: l.then(|| MeterLabel {
            tenant: format!("tenant-{}", id % 50).into(),
            request_id: format!("chatcmpl-{id:032x}").into(),
            arrived_unix_ms: 1_790_000_000_000 + id * 20,
        }),
        usage: Metering {
            prompt_tokens: 500,
            cached_tokens: 100,
            generated_tokens: t,
            queue_ns: 1_234_567,
            device_ns: u64::from(t) * 1_234_567,
            block_ns: u64::from(t) * 99_234_567,
            energy_uj: Some(u64::from(t) * 5_000),
        },
        price_nano: Some(u64::from(t) * 777),
        end: None,
    }
}
fn main() {
    let dir = std::env::args().nth(1).unwrap_or("/tmp/led".into());
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("d");
    let p = std::path::Path::new(&dir).join("l.db");
    let mut s = Ledger::open(&p, "m").expect("o").sink().expect("s");
    let mut b: Vec<_> = (0..256).map(|i| e(i, true, 0)).collect();
    s.record(&mut b);
    s.record(&mut b);
    let mut times = vec![];
    for t in 1..5000u32 {
        b.extend((0..256).map(|i| e(i, false, t)));
        let i = Instant::now();
        s.record(&mut b);
        s.record(&mut b);
        times.push(i.elapsed().as_nanos() as u64 / 1000);
    }
    times.sort();
    println!(
        "256 updates, same rows: p50 {} p99 {} max {} us",
        times[2500],
        times[4950],
        times[times.len() - 1]
    );
    let mut times = vec![];
    let mut call = vec![];
    for n in 0..5000u64 {
        // a new request each step ends one: 256 running
        b.extend((n..n + 256).map(|i| e(i, false, 5000 + n as u32)));
        b.push(e(n + 256, true, 0));
        b[0].end = Some(EndReason::Stop);
        let i = Instant::now();
        s.record(&mut b);
        call.push(i.elapsed().as_nanos() as u64 / 1000);
        s.record(&mut b);
        times.push(i.elapsed().as_nanos() as u64 / 1000);
    }
    times.sort();
    call.sort();
    println!(
        "256 updates + 1 new + 1 end: p50 {} p99 {} max {} us; the call that hands over alone p50 {} p99 {}",
        times[2500], times[4950], times[4999], call[2500], call[4950]
    );
    // fill 1M
    let i = Instant::now();
    let mut id = 100_000u64;
    for _ in 0..1000 {
        b.extend((id..id + 1000).map(|i| {
            let mut x = e(i, true, 100);
            x.end = Some(EndReason::Stop);
            x
        }));
        id += 1000;
        s.record(&mut b);
    }
    s.record(&mut b);
    println!("1M inserts {:?}", i.elapsed());
    println!("size {} MB", std::fs::metadata(&p).expect("m").len() >> 20);
    let r = Ledger::read(&p).expect("r");
    for (by, since) in [
        (vec![], None),
        (vec![By::Tenant], None),
        (vec![By::Model], None),
        (vec![By::Tenant, By::Day], None),
        (vec![By::Day], None),
        (vec![By::Request], None),
        (vec![By::Tenant], Some(1_790_000_000_000i64 + 1_050_000 * 20)),
    ] {
        let i = Instant::now();
        let u = r
            .usage(&Query { by: by.clone(), since_unix_ms: since, ..Default::default() })
            .expect("u");
        println!("{by:?} {since:?}: {} rows {:?}", u.rows.len(), i.elapsed());
    }
    drop(r);
    let i = Instant::now();
    drop(s);
    println!("drop {:?}", i.elapsed());
    let i = Instant::now();
    drop(Ledger::open(&p, "m"));
    println!("open {:?}", i.elapsed());
}
