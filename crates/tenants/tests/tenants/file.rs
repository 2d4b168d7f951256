//! What a file of tenants may say, and how what it may not say is refused.

use std::{fs, time::Duration};

use proptest::prelude::*;
use sconce_tenants::{
    InvalidTenants, MAX_FILE_BYTES, MAX_KEYS, MAX_TENANTS, Tenants, TenantsError, TenantsFile,
    key_digest,
};
use sconce_types::{Prices, Tenant, TenantId};

/// A file with every field; `DIGEST` stands for digests.
const EVERYTHING: &str = r#"
admin_keys = ["DIGEST-of-admin"]

[tenants.acme]
weight = 2
min_share = 0.25
keys = ["DIGEST-of-acme"]
models = ["smollm2"]

[tenants.acme.limits]
max_running = 8
max_queued = 100
max_kv_blocks = 1000
tokens_per_minute = 100000

[tenants.acme.priorities]
interactive = 0
batch = 10

[tenants.acme.slo]
ttft_ms = 500
tpot_ms = 12.5

[tenants.acme.prices]
prompt = 0.15
cached = 0.075
generated = 0.60
device_seconds = 0.0008

[tenants.plain]
"#;

fn everything() -> String {
    EVERYTHING
        .replace("DIGEST-of-admin", &key_digest("admin"))
        .replace("DIGEST-of-acme", &key_digest("acme"))
}

fn refusal(text: &str) -> String {
    TenantsFile::parse(text).expect_err("what is not accepted is refused").to_string()
}

#[test]
fn every_field_reaches_the_engine() {
    let file = TenantsFile::parse(&everything()).expect("the example is valid");
    let tenants = Tenants::resolve(&file, None);
    let [acme, plain] = tenants.iter().collect::<Vec<_>>()[..] else {
        panic!("the example has two tenants");
    };
    let expected = Tenant {
        id: TenantId(0),
        name: "acme".into(),
        weight: 2,
        min_share: 0.25,
        max_running: Some(8),
        max_queued: Some(100),
        max_kv_blocks: Some(1000),
        tokens_per_minute: Some(100_000),
        ttft_target: Some(Duration::from_millis(500)),
        tpot_target: Some(Duration::from_micros(12_500)),
        prices: Some(Prices {
            prompt: 150_000_000,
            cached: 75_000_000,
            generated: 600_000_000,
            device_seconds: 800_000_000_000,
        }),
    };
    assert_eq!(acme.tenant, expected);
    assert_eq!(acme.models, Some(vec!["smollm2".to_owned()]));
    assert_eq!(acme.priorities["interactive"], 0);
    assert_eq!(acme.priorities["batch"], 10);
    let expected = Tenant { id: TenantId(1), name: "plain".into(), ..Tenant::sole() };
    assert_eq!(plain.tenant, expected);
    assert_eq!((&plain.models, plain.priorities.len()), (&None, 0));
}

#[test]
fn prices_are_exact() {
    let prices = |text: &str| {
        let file = TenantsFile::parse(&format!("[tenants.a.prices]\n{text}"));
        let tenants = Tenants::resolve(&file.expect("they are accepted"), None);
        tenants.iter().next().and_then(|entry| entry.tenant.prices).expect("there are prices")
    };
    let expected = |prompt, device_seconds| Prices { prompt, device_seconds, ..Prices::default() };
    let largest = expected(10_u64.pow(18), 10_u64.pow(19));
    assert_eq!(prices("prompt = 1e9\ndevice_seconds = 1e4"), largest);
    // Floating-point products of these are a little less.
    let rounded = expected(2_010_000_000, 2_100_000_000_000);
    assert_eq!(prices("prompt = 2.01\ndevice_seconds = 0.0021"), rounded);
}

#[test]
fn what_is_not_accepted_is_refused_by_its_path_and_place() {
    let long = "a".repeat(64);
    let long = format!("[tenants.{long}]");
    let cases = [
        ("colour = 1", "line 1, column 1: colour: unknown field"),
        ("[tenants.a]\nwieght = 2", "line 2, column 1: tenants.a.wieght: unknown field"),
        ("[tenants.a.limits]\nrpm = 1", "line 2, column 1: tenants.a.limits.rpm: unknown field"),
        ("[tenants.a.slo]\nttft = 1", "line 2, column 1: tenants.a.slo.ttft: unknown field"),
        ("[tenants.a.prices]\nbytes = 1", "tenants.a.prices.bytes: unknown field"),
        ("[tenants.Acme]", "tenants.Acme: \"Acme\" is not a tenant's name"),
        ("[tenants.-a]", "\"-a\" is not a tenant's name"),
        ("[tenants.\"\"]", "\"\" is not a tenant's name"),
        (&long, "is not a tenant's name"),
        ("tenants.a = 3", "line 1, column 13: tenants.a: invalid type: integer `3`, expected a t"),
        ("tenants = 3", "line 1, column 11: tenants: invalid type: integer `3`, expected a table"),
        ("tenants.a = 1979-05-27", "line 1, column 13: tenants.a"),
        ("[[tenants]]", "tenants: invalid type: sequence, expected a table"),
        ("[[tenants.a]]", "tenants.a: invalid type: sequence, expected a table"),
        ("tenants.a = [1, 0.5, [], [], {}, {}, {}, {}]", "tenants.a: invalid type: sequence"),
        ("tenants.a.limits = [1, 2, 3, 4]", "tenants.a.limits: invalid type: sequence"),
        ("tenants.a.slo = [1, 2]", "tenants.a.slo: invalid type: sequence, expected a table"),
        ("tenants.a.prices = [1, 2, 3, 4]", "tenants.a.prices: invalid type: sequence"),
        (
            "tenants.a.priorities = 1",
            "tenants.a.priorities: invalid type: integer `1`, expected a t",
        ),
        ("tenants.a.weight = 0", "line 1, column 20: tenants.a.weight: 0 is not from 1 to 1000000"),
        ("tenants.a.weight = 1000001", "tenants.a.weight: 1000001 is not from 1"),
        ("tenants.a.weight = 4294967297", "tenants.a.weight: 4294967297 is not from 1"),
        ("tenants.a.weight = 1.5", "tenants.a.weight: invalid type: floating point `1.5`"),
        ("tenants.a.min_share = -0.1", "tenants.a.min_share: -0.1 is not a number from 0 to 1"),
        ("tenants.a.min_share = 1.1", "tenants.a.min_share: 1.1 is not a number from 0 to 1"),
        ("tenants.a.min_share = nan", "tenants.a.min_share: NaN is not a number from 0 to 1"),
        ("tenants.a.models = [1]", "tenants.a.models[0]: invalid type: integer `1`"),
        ("tenants.a.limits.max_running = 0", "limits.max_running: 0 is not at least 1"),
        ("tenants.a.limits.max_queued = -1", "limits.max_queued: -1 is not at least 1"),
        ("tenants.a.limits.max_kv_blocks = 0", "limits.max_kv_blocks: 0 is not at least 1"),
        ("tenants.a.limits.tokens_per_minute = 0", "tokens_per_minute: 0 is not at least 1"),
        ("tenants.a.priorities.x = 3000000000", "tenants.a.priorities.x: invalid value: integer"),
        ("tenants.a.slo.ttft_ms = 0", "slo.ttft_ms: 0 is not above 0"),
        ("tenants.a.slo.ttft_ms = inf", "slo.ttft_ms: inf is not a number from 0 to 86400000"),
        ("tenants.a.slo.tpot_ms = -5", "slo.tpot_ms: -5 is not a number from 0"),
        ("tenants.a.prices.prompt = -1", "prices.prompt: -1 is not a number from 0 to 1000000000"),
        ("tenants.a.prices.cached = 2e9", "prices.cached: 2000000000 is not a number from 0"),
        ("tenants.a.prices.generated = nan", "prices.generated: NaN is not a number"),
        ("tenants.a.prices.device_seconds = 2e4", "device_seconds: 20000 is not a number from 0"),
        ("[tenants.a]\n[tenants.a]", "line 2, column 10: duplicate key"),
        ("# ä\nx = ä", "line 2, column 5: "),
    ];
    for (text, expected) in cases {
        let message = refusal(text);
        assert!(message.contains(expected), "{text}\nis refused with\n{message}");
    }
}

#[test]
fn a_key_that_was_listed_itself_is_not_repeated() {
    for text in [r#"admin_keys = ["sk-secret"]"#, r#"admin_keys = "sk-secret""#] {
        let message = refusal(text);
        assert!(message.contains("admin_keys") && message.contains("sha256:"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn the_digest_of_an_empty_key_is_refused_and_white_space_around_a_digest_is_not() {
    for blank in ["", "\n", "\r\n"] {
        for list in ["admin_keys", "tenants.a.keys"] {
            let message = refusal(&format!("{list} = [{:?}]", key_digest(blank)));
            assert!(message.contains(list) && message.contains("an empty key"), "{message}");
        }
    }
    let text = format!("tenants.a.keys = [\"  {}\\n\"]", key_digest("one"));
    let tenants = Tenants::resolve(&TenantsFile::parse(&text).expect("it is a digest"), None);
    assert!(tenants.by_key("one").is_some() && tenants.by_key("").is_none());
}

#[test]
fn a_file_that_would_lock_everybody_out_is_valid_but_not_usable() {
    let digest = key_digest("one");
    let usable = |text: String| {
        TenantsFile::parse(&text).expect("the test's files are valid").check_usable()
    };
    for nobody in [
        String::new(),
        "# a comment".to_owned(),
        "[tenants]".to_owned(),
        "[tenants.a]\n[tenants.b]\nkeys = []".to_owned(),
        format!("admin_keys = [{digest:?}]"),
        format!("admin_keys = [{digest:?}]\n[tenants.a]"),
        format!("tenants.a = {{ keys = [{digest:?}], models = [] }}\n[tenants.b]"),
    ] {
        let refused = usable(nobody.clone());
        assert_eq!(refused, Err(InvalidTenants::NoUsableTenant), "{nobody}");
    }
    for somebody in [
        format!("tenants.a.keys = [{digest:?}]\n[tenants.b]"),
        format!("tenants.a = {{ keys = [{digest:?}], models = [\"m\"] }}"),
    ] {
        assert_eq!(usable(somebody.clone()), Ok(()), "{somebody}");
    }
}

#[test]
fn a_key_is_listed_once() {
    let digest = key_digest("one");
    let upper = digest.to_uppercase().replace("SHA", "sha");
    let paths = |text: String| match TenantsFile::parse(&text) {
        Err(InvalidTenants::SharedKey { digest: of, first, second }) if of == digest => {
            (first, second)
        }
        other => panic!("a shared key was taken: {other:?}"),
    };
    let own = |path: &str| path.to_owned();
    assert_eq!(
        paths(format!("tenants.a.keys = [{digest:?}]\ntenants.b.keys = [{upper:?}]")),
        (own("tenants.a.keys"), own("tenants.b.keys"))
    );
    assert_eq!(
        paths(format!("admin_keys = [{digest:?}]\ntenants.a.keys = [{digest:?}]")),
        (own("admin_keys"), own("tenants.a.keys"))
    );
    assert_eq!(
        paths(format!("admin_keys = [{digest:?}, {digest:?}]")),
        (own("admin_keys"), own("admin_keys"))
    );
}

#[test]
fn shares_add_up_to_one_at_most() {
    let shares = |share: &str, n: usize| -> String {
        (0..n).map(|i| format!("tenants.t{i}.min_share = {share}\n")).collect()
    };
    TenantsFile::parse(&shares("0.1", 10)).expect("ten tenths are one");
    // 1.0000000000000002 in floating point.
    TenantsFile::parse("tenants = {a.min_share = 0.33, b.min_share = 0.56, c.min_share = 0.11}")
        .expect("three fractions are one");
    assert!(refusal(&shares("0.6", 2)).contains("min_share of all tenants add up to 1.2"));
}

#[test]
fn sizes_are_bounded() {
    let keys = |n: usize| -> Vec<String> { (0..n).map(|i| key_digest(&i.to_string())).collect() };
    TenantsFile::parse(&format!("tenants.a.keys = {:?}", keys(MAX_KEYS))).expect("as many may be");
    let message = refusal(&format!("tenants.a.keys = {:?}", keys(MAX_KEYS + 1)));
    assert!(message.contains("tenants.a.keys: 1001 keys are too many, at most 1000"), "{message}");

    let tenants = |n: usize| -> String { (0..n).map(|i| format!("[tenants.t{i}]\n")).collect() };
    TenantsFile::parse(&tenants(MAX_TENANTS)).expect("as many may be");
    let message = refusal(&tenants(MAX_TENANTS + 1));
    assert!(message.contains("tenants: 100001 tenants are too many"), "{message}");

    let mut text = "#".repeat(MAX_FILE_BYTES);
    TenantsFile::parse(&text).expect("it may be as long");
    text.push('#');
    assert_eq!(TenantsFile::parse(&text), Err(InvalidTenants::TooLarge));
}

#[test]
fn deep_nesting_is_refused() {
    for (first, nested, last) in
        [("a = ", "[", ""), ("a = ", "{a = ", ""), ("", "a.", "a = 1"), ("[", "a.", "a]")]
    {
        refusal(&format!("{first}{}{last}", nested.repeat(100_000)));
    }
}

#[test]
fn errors_of_a_file_name_it() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("sconce.toml");
    let read = || TenantsFile::read(&path).expect_err("it cannot be used");
    let name = path.display().to_string();
    assert!(matches!(read(), TenantsError::Io { .. }) && read().to_string().starts_with(&name));
    fs::write(&path, b"\xff").expect("it can be written");
    assert!(read().to_string().contains("utf-8"), "{}", read());
    fs::write(&path, "tenants.a.weight = 0").expect("it can be written");
    assert_eq!(
        read().to_string(),
        format!("{name}: line 1, column 20: tenants.a.weight: 0 is not from 1 to 1000000")
    );
    fs::write(&path, "ä".repeat(MAX_FILE_BYTES)).expect("it can be written");
    assert!(matches!(read(), TenantsError::Invalid { reason: InvalidTenants::TooLarge, .. }));
}

fn line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "admin_keys",
        "[tenants.a]",
        "[tenants.b.limits]",
        "[tenants.a.prices]",
        "weight",
        "keys",
        "min_share",
        "models",
        "max_running",
        "prompt",
        "tenants.c.slo.ttft_ms",
        "[[tenants]]",
        "tenants.b.priorities.x",
        "device_seconds",
    ]);
    let value = prop_oneof![
        any::<f64>().prop_map(|value| format!("{value:?}")),
        any::<i64>().prop_map(|value| value.to_string()),
        (0.0..1.0).prop_map(|value: f64| value.to_string()),
        (0_u8..20).prop_map(|value| value.to_string()),
        "[a-c]".prop_map(|key| format!("[{:?}]", key_digest(&key))),
        "\\PC{0,8}",
    ];
    (key, value).prop_map(|(key, value)| match key {
        header if header.starts_with('[') => header.to_owned(),
        field => format!("{field} = {value}"),
    })
}

proptest! {
    #[test]
    fn arbitrary_text_is_read_without_panic(text in any::<String>()) {
        let _ = TenantsFile::parse(&text);
    }

    #[test]
    fn whatever_is_accepted_can_be_used(lines in prop::collection::vec(line(), 0..8)) {
        let Ok(file) = TenantsFile::parse(&lines.join("\n")) else { return Ok(()) };
        let tenants = Tenants::resolve(&file, None);
        let mut shares = 0.0;
        for (index, entry) in tenants.iter().enumerate() {
            let tenant = &entry.tenant;
            prop_assert_eq!(tenant.id.index(), index);
            prop_assert!((1..=1_000_000).contains(&tenant.weight));
            prop_assert!((0.0..=1.0).contains(&tenant.min_share));
            prop_assert!(tenant.max_running != Some(0));
            prop_assert!(tenant.ttft_target.is_none_or(|target| !target.is_zero()));
            shares += tenant.min_share;
        }
        prop_assert!(shares <= 1.0 + 1e-6);
    }

    #[test]
    fn a_spoilt_file_is_read_without_panic(
        at in any::<prop::sample::Index>(),
        len in 0_usize..20,
        with in "\\PC{0,4}",
    ) {
        let mut text = everything();
        let start = at.index(text.len());
        text.replace_range(start..(start + len).min(text.len()), &with);
        if let Ok(file) = TenantsFile::parse(&text) {
            let _ = Tenants::resolve(&file, None);
        }
    }
}
