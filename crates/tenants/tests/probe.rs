use sconce_tenants::*;
#[test]
fn probe() {
    let d = key_digest("a");
    for t in [
        "colour = 1".to_owned(), "[tenants.a]\nwieght = 2".into(), "[tenants.a]\nweight = 0".into(), "[tenants.a]\nweight = \"x\"".into(),
        "[tenants.Foo]".into(), "[tenants.\"\"]".into(), "[tenants.a.limits]\nmax_runing = 1".into(), "[tenants.a.limits]\nmax_running = -1".into(),
        "[tenants.a.limits]\nmax_running = 99999999999999999999999999".into(),
        "[tenants.a.slo]\nttft_ms = nan".into(), "[tenants.a.slo]\nttft_ms = 0".into(),"[tenants.a.slo]\nttft_ms = inf".into(),
        "[tenants.a.prices]\nprompt = -0.1".into(), "[tenants.a.prices]\ndevice_seconds = 20000".into(),
        "[tenants.a.priorities]\nx = 3000000000".into(), "[tenants.a]\nkeys = [\"sk-sconce-abc\"]".into(), "[tenants.a]\nkeys = \"sk-sconce-abc\"".into(),
        "[tenants.a]\nmodels = [1]".into(), "[tenants.a]\n[tenants.a]".into(), "[tenants.a]\nweight = ".into(), "[tenants.a]\nä = 1".into(), "ä".into(),
        "[[tenants]]".into(), "tenants = 3".into(), "[tenants]\na = 3".into(), "[tenants.a]\nlimits = 3".into(),
        "[tenants.a]\nweight = 1979-05-27".into(), "[tenants.a]\nlimits = { max_running = 1, weight = 2 }".into(), "tenants.a.weight = 0".into(),
        format!("admin_keys = [\"{d}\"]\n[tenants.a]\nkeys = [\"{d}\"]"),
        "[tenants.a]\nmin_share=0.6\n[tenants.b]\nmin_share=0.5".into(),
        format!("[tenants.a]\nkeys = {:?}", (0..1001).map(|n| key_digest(&n.to_string())).collect::<Vec<_>>()),
        (0..100_001).map(|n| format!("[tenants.t{n}]\n")).collect(),
        format!("a = {}", "[".repeat(1_000_000)), format!("a = {}", "{a=".repeat(1_000_000)), format!("{}a = 1", "a.".repeat(1_000_000)), format!("[{}a]", "a.".repeat(1_000_000)),
    ] {
        let n = t.len();
        let s = std::time::Instant::now();
        println!("{:?}\n   => {} ({} bytes, {:?})", &t.chars().take(70).collect::<String>(), TenantsFile::parse(&t).expect_err("x"), n, s.elapsed());
    }
    let big: String = (0..100_000).map(|n| format!("[tenants.t{n}]\nkeys = [\"{}\"]\n", key_digest(&n.to_string()))).collect();
    let s = std::time::Instant::now();
    let f = TenantsFile::parse(&big).expect("ok");
    println!("{} {:?}", big.len(), s.elapsed());
    Tenants::resolve(&f, None);
    println!("{:?}", s.elapsed());
    let p = std::path::Path::new("/tmp/probe-tenants"); std::fs::create_dir_all(p).expect("x");
    let p = p.join("s.toml");
    std::fs::write(&p, &big).expect("x");
    let s = std::time::Instant::now();
    add(&p, "new", &NewTenant::default()).expect("x");
    println!("add {:?}", s.elapsed());
    for t in ["", "# c\n[tenants.acme] # x\nweight = 1\n\n# limits\n[tenants.acme.limits]\nmax_running = 1\n# end\n", "tenants.acme.weight = 1 # a\n", "tenants = { acme = { weight = 1 } } # a\n", "[tenants]\nacme = { weight = 2 } # x\n", "[tenants]\nacme.weight = 2\n",
     "# l\n[tenants.acme.limits]\nmax_running = 1 # x\n", "\u{feff}[tenants.acme]\n", "[tenants.acme]\r\nweight = 1 # x\r\n", &format!("admin_keys = [\n  # one\n  \"{d}\", # two\n  # three\n]\n[tenants.acme]\nkeys = [\n\n]\n"), &format!("admin_keys = [\n  \"{d}\" # two\n  # three\n]\n[tenants.acme]\nkeys = [ # 1\n]\n"),&format!("admin_keys = [\n  \"{d}\"\n]\n[tenants.acme]\nkeys = [ ]\n"), &format!("admin_keys = [ \"{d}\" ]\n[tenants.acme]\nkeys = [ ]\n")] {
        std::fs::write(&p, t).expect("x");
        println!("---------------\n{t}");
        println!("{:?}", add(&p, "new", &NewTenant{weight: Some(3), limits: Limits{max_queued: Some(3), ..Default::default()}, models: Some(vec!["a".into()]), min_share: Some(0.5)}).map(|_|()));
        println!("{:?}", add(&p, "n.w", &NewTenant::default()).map(|_|()));
        println!("{:?}", rotate(&p, "acme", false).map(|_|()));
        println!("{:?}", rotate(&p, "acme", true).map(|_|()));
        println!("{:?}", add_admin_key(&p).map(|_|()));
        println!("{}", std::fs::read_to_string(&p).expect("x"));
    }
}
