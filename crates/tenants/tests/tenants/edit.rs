//! Edits of the file: what they write, what they keep, and what they refuse.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use sconce_tenants::{
    ApiKey, InvalidTenants, Limits, NewTenant, Principal, Tenants, TenantsError, TenantsFile, add,
    add_admin_key, key_digest, rotate,
};
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("sconce.toml");
    (folder, path)
}

fn with(text: &str) -> (TempDir, PathBuf) {
    let (folder, path) = folder();
    fs::write(&path, text).expect("it can be written");
    (folder, path)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("the file is there")
}

fn tenants(path: &Path) -> Tenants {
    Tenants::resolve(&TenantsFile::read(path).expect("an edit leaves a valid file"), None)
}

/// The name of whom a key speaks for.
fn caller(path: &Path, key: &ApiKey) -> Option<String> {
    let tenants = tenants(path);
    Some(match tenants.by_key(key.as_str())? {
        Principal::Admin => "(admin)".to_owned(),
        Principal::Tenant(id) => tenants.get(id).expect("it is there").tenant.name.to_string(),
    })
}

#[test]
fn the_first_tenant_makes_the_file() {
    let (_folder, path) = folder();
    let tenant = NewTenant {
        weight: Some(3),
        min_share: Some(0.5),
        models: Some(vec!["smollm2".to_owned()]),
        limits: Limits {
            max_queued: Some(9),
            tokens_per_minute: Some(u64::MAX),
            ..Limits::default()
        },
    };
    let key = add(&path, "acme", &tenant).expect("the file can be made");
    let digest = key_digest(key.as_str());
    let expected = format!(
        "[tenants.acme]\nweight = 3\nmin_share = 0.5\nkeys = [\"{digest}\"]\nmodels = \
         [\"smollm2\"]\n\n[tenants.acme.limits]\nmax_queued = 9\ntokens_per_minute = \
         9223372036854775807\n"
    );
    assert_eq!(text(&path), expected);
    assert_eq!(caller(&path, &key).as_deref(), Some("acme"));

    let key = add(&path, "a.b", &NewTenant::default()).expect("it can be added");
    let digest = key_digest(key.as_str());
    assert_eq!(text(&path), format!("{expected}\n[tenants.\"a.b\"]\nkeys = [\"{digest}\"]\n"));
    assert_eq!(caller(&path, &key).as_deref(), Some("a.b"));
}

#[test]
fn comments_and_order_stay() {
    let before = r#"# Ours.
admin_keys = [
  # Of the night shift.
  "DIGEST", # until May
  # More to come.
]

[tenants.zoo] # first come
weight = 2 # twice

# Of those who pay.
[tenants.acme.limits]
max_running = 1
# The end.
"#;
    let (_folder, path) = with(&before.replace("DIGEST", &key_digest("admin")));
    let admin = add_admin_key(&path).expect("a key can be added");
    let zoo = rotate(&path, "zoo", false).expect("zoo is there");
    let new = add(&path, "new", &NewTenant::default()).expect("it can be added");
    let [admin, zoo, new] = [admin, zoo, new].map(|key| key_digest(key.as_str()));
    let after = before
        .replace("  # More to come.\n", &format!("  # More to come.\n  \"{admin}\",\n"))
        .replace("# twice\n", &format!("# twice\nkeys = [\"{zoo}\"]\n"))
        .replace("# The end.", &format!("\n[tenants.new]\nkeys = [\"{new}\"]\n# The end."))
        .replace("DIGEST", &key_digest("admin"));
    assert_eq!(text(&path), after);
}

#[test]
fn a_key_is_rotated_at_once_or_beside_the_old_one() {
    let (_folder, path) = folder();
    let first = add(&path, "acme", &NewTenant::default()).expect("it can be added");
    let other = add(&path, "other", &NewTenant::default()).expect("it can be added");
    let acme = Some("acme".to_owned());
    let second = rotate(&path, "acme", true).expect("acme is there");
    assert_eq!((caller(&path, &first), caller(&path, &second)), (acme.clone(), acme.clone()));
    let third = rotate(&path, "acme", false).expect("acme is there");
    assert_eq!((caller(&path, &first), caller(&path, &second)), (None, None));
    assert_eq!(caller(&path, &third), acme);
    assert_eq!(caller(&path, &other).as_deref(), Some("other"));
}

#[test]
fn an_admin_key_makes_the_file() {
    let (_folder, path) = folder();
    let [one, other] = [(); 2].map(|()| add_admin_key(&path).expect("it can be added"));
    for key in [one, other] {
        assert_eq!(caller(&path, &key).as_deref(), Some("(admin)"));
    }
}

#[test]
fn every_way_to_write_a_tenant_is_edited() {
    for before in [
        "tenants = { acme = { weight = 2 } } # c\n",
        "tenants.acme.weight = 2 # c\n",
        "[tenants]\nacme = { weight = 2 } # c\n",
        "[tenants]\nacme.weight = 2 # c\n",
        "[tenants.acme.limits] # c\nmax_running = 1\n[tenants.acme]\nweight = 2",
        "[tenants.acme]\r\nweight = 2 # c\r\nkeys = [\r\n# none\r\n]\r\n",
    ] {
        let (_folder, path) = with(before);
        let new = add(&path, "new", &NewTenant::default()).expect("it can be added");
        let acme = rotate(&path, "acme", true).expect("acme is there");
        let admin = add_admin_key(&path).expect("it can be added");
        let after = text(&path);
        assert_eq!(caller(&path, &new).as_deref(), Some("new"), "{after}");
        assert_eq!(caller(&path, &acme).as_deref(), Some("acme"), "{after}");
        assert_eq!(caller(&path, &admin).as_deref(), Some("(admin)"), "{after}");
        let tenants = tenants(&path);
        let acme = tenants.iter().find(|entry| &*entry.tenant.name == "acme");
        assert_eq!(acme.map(|entry| entry.tenant.weight), Some(2), "{after}");
        assert!(after.contains("# c"), "{after}");
    }
}

#[test]
fn comments_behind_keys_stay_behind_them() {
    for comma in ["", ","] {
        let (old, other) = (key_digest("old"), key_digest("other"));
        let list =
            |rest: &str| format!("[tenants.acme]\nkeys = [\n\t\"{other}\",\n\t\"{old}\"{rest}]\n");
        let (_folder, path) = with(&list(&format!("{comma} # laptop\n")));
        let key = rotate(&path, "acme", true).expect("acme is there");
        let new = key_digest(key.as_str());
        assert_eq!(text(&path), list(&format!(", # laptop\n\t\"{new}\",\n")));
    }
}

#[test]
fn what_is_refused_leaves_the_file_as_it_was() {
    let before = "# c\n[tenants.acme]\nmin_share = 0.6\n";
    let (_folder, path) = with(before);
    let new = NewTenant::default();
    let refused = |result: Result<ApiKey, TenantsError>| match result {
        Err(TenantsError::Refused { reason, .. }) => reason.to_string(),
        other => panic!("it was not refused: {other:?}"),
    };

    let error = add(&path, "acme", &new).expect_err("acme is there");
    assert!(matches!(&error, TenantsError::Exists { name, .. } if name == "acme"), "{error}");
    let error = rotate(&path, "nobody", false).expect_err("nobody is not there");
    assert!(matches!(&error, TenantsError::Unknown { name, .. } if name == "nobody"), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");

    assert!(refused(add(&path, "A b", &new)).contains("\"A b\" is not a tenant's name"));
    let tenant = NewTenant { weight: Some(0), ..new.clone() };
    assert!(refused(add(&path, "b", &tenant)).contains("tenants.b.weight: 0 is not"));
    let tenant = NewTenant { min_share: Some(0.5), ..new.clone() };
    assert!(refused(add(&path, "b", &tenant)).contains("add up to 1.1"));
    let tenant = NewTenant { min_share: Some(f64::NAN), ..new.clone() };
    assert!(refused(add(&path, "b", &tenant)).contains("tenants.b.min_share: NaN is not"));
    let limits = Limits { max_running: Some(0), ..Limits::default() };
    let tenant = NewTenant { limits, ..new.clone() };
    assert!(refused(add(&path, "b", &tenant)).contains("tenants.b.limits.max_running: 0 is not"));
    assert_eq!(text(&path), before);

    let invalid = "tenants.acme.weight = 0";
    fs::write(&path, invalid).expect("it can be written");
    for result in [add(&path, "b", &new), rotate(&path, "acme", false), add_admin_key(&path)] {
        let error = result.expect_err("the file is not valid");
        let TenantsError::Invalid { reason: InvalidTenants::Field { field, .. }, .. } = error
        else {
            panic!("another error: {error}");
        };
        assert_eq!(field, "tenants.acme.weight");
    }
    assert_eq!(text(&path), invalid);
}

#[test]
fn nothing_is_left_where_there_is_no_file_to_rotate_in() {
    let (folder, path) = folder();
    let error = rotate(&path, "acme", false).expect_err("there is no file");
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is there").count(), 0);
}

#[test]
fn edits_at_once_are_all_kept() {
    let (_folder, path) = folder();
    let keys: Vec<_> = thread::scope(|scope| {
        let path = &path;
        let add = move |name: String| add(path, &name, &NewTenant::default());
        let threads: Vec<_> = (0..16).map(|i| scope.spawn(move || add(format!("t{i}")))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    for (i, key) in keys.into_iter().enumerate() {
        let key = key.expect("each is added");
        assert_eq!(caller(&path, &key), Some(format!("t{i}")));
    }
}

#[cfg(unix)]
#[test]
fn permissions_and_links_stay() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let mode =
        |path: &Path| fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777;
    let (folder, path) = folder();
    add(&path, "acme", &NewTenant::default()).expect("the file can be made");
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let link = folder.path().join("link.toml");
    symlink("sconce.toml", &link).expect("a link can be made");
    let key = rotate(&link, "acme", false).expect("acme is there");
    assert_eq!(mode(&path), 0o640);
    assert!(link.is_symlink());
    assert_eq!(caller(&path, &key).as_deref(), Some("acme"));
}
