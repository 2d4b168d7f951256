//! Who a key speaks for, and which id a tenant has.

use sconce_tenants::{ApiKey, Principal, Tenants, TenantsFile, key_digest};
use sconce_types::{Tenant, TenantId};

fn resolve(text: &str, previous: Option<&Tenants>) -> Tenants {
    Tenants::resolve(&TenantsFile::parse(text).expect("the test's file is valid"), previous)
}

fn ids(tenants: &Tenants) -> Vec<(u32, &str)> {
    tenants.iter().map(|entry| (entry.tenant.id.0, &*entry.tenant.name)).collect()
}

#[test]
fn a_name_keeps_its_id_and_no_id_is_given_twice() {
    let first = resolve("[tenants.b]\n[tenants.d]", None);
    assert_eq!(ids(&first), [(0, "b"), (1, "d")]);
    let second = resolve("[tenants.a]\n[tenants.d]", Some(&first));
    assert_eq!(ids(&second), [(1, "d"), (2, "a")]);
    assert!(second.get(TenantId(0)).is_none());
    let third = resolve("[tenants.a]\n[tenants.c]", Some(&second));
    assert_eq!(ids(&third), [(2, "a"), (3, "c")]);
    // Who was away for two files is known.
    let fourth = resolve("[tenants.b]\nweight = 7\n[tenants.d]\n[tenants.e]", Some(&third));
    assert_eq!(ids(&fourth), [(0, "b"), (1, "d"), (4, "e")]);
    assert_eq!(fourth.get(TenantId(0)).map(|entry| entry.tenant.weight), Some(7));
    // The table before is as it was.
    assert_eq!(ids(&first), [(0, "b"), (1, "d")]);
}

#[test]
fn a_key_speaks_for_whom_it_is_listed_with() {
    let [admin, one, two, none] = [(); 4].map(|()| ApiKey::generate());
    let digest = |key: &ApiKey| key_digest(key.as_str());
    let text = format!(
        "admin_keys = [{:?}]\ntenants.a.keys = []\ntenants.b.keys = [{:?}, {:?}]",
        digest(&admin),
        digest(&one),
        digest(&two).to_uppercase().replace("SHA", "sha"),
    );
    let tenants = resolve(&text, None);
    assert!(tenants.needs_key());
    assert_eq!(tenants.by_key(admin.as_str()), Some(Principal::Admin));
    assert_eq!(tenants.by_key(one.as_str()), Some(Principal::Tenant(TenantId(1))));
    assert_eq!(tenants.by_key(two.as_str()), Some(Principal::Tenant(TenantId(1))));
    for stranger in [none.as_str(), "", &digest(&one)] {
        assert_eq!(tenants.by_key(stranger), None);
    }
    // A key that is listed no more speaks for nobody.
    let later = resolve("[tenants.b]", Some(&tenants));
    assert_eq!(later.by_key(one.as_str()), None);
    assert!(later.needs_key());
}

#[test]
fn a_key_may_be_any_bytes() {
    let keys = ["with,comma", "spa\u{df}", "two words"];
    let digests = keys.map(key_digest);
    let tenants = resolve(&format!("tenants.a.keys = {digests:?}"), None);
    for key in keys {
        assert_eq!(tenants.by_key(key.as_bytes()), Some(Principal::Tenant(TenantId(0))), "{key}");
    }
    for stranger in [&b"with"[..], b"spa\xdf", b"two", b""] {
        assert_eq!(tenants.by_key(stranger), None, "{stranger:?}");
    }
}

#[test]
fn without_a_file_everything_is_one_tenants() {
    let sole = Tenants::sole();
    assert!(!sole.needs_key());
    assert_eq!(sole.get(TenantId(0)).map(|entry| &entry.tenant), Some(&Tenant::sole()));
    assert_eq!(sole.by_key(""), None);
    // The first file's tenants are others.
    let tenants = resolve("[tenants.acme]", Some(&sole));
    assert_eq!(ids(&tenants), [(1, "acme")]);
}
