//! A tenants' file that cannot be taken up: everything stays as it was.

use std::{fs, process::Command, sync::Arc};

use axum::{body::Body, http::Request};
use sconce_server::{ReloadError, ServerConfig, TenantDirectory};
use sconce_tenants::{NewTenant, add, add_admin_key, key_digest};

use super::app::App;

#[test]
fn a_file_that_would_lock_everybody_out_is_refused_at_start_and_on_reload() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let admin = key_digest("admin");
    let nobody = [
        String::new(),
        "[tenants.acme]\n".to_owned(),
        format!("admin_keys = [{admin:?}]\n"),
        format!("admin_keys = [{admin:?}]\n[tenants.acme]\nkeys = []\n"),
    ];
    for text in &nobody {
        fs::write(&file, text).expect("it can be written");
        let error = TenantDirectory::open(&file).expect_err("nobody could use it").to_string();
        assert!(error.contains("sconce.toml") && error.contains("sconce tenant add"), "{error}");
    }
    fs::remove_file(&file).expect("it is there");
    let acme = add(&file, "acme", &NewTenant::default()).expect("it is new");
    let admin = add_admin_key(&file).expect("the file is valid");
    let tenants = Arc::new(TenantDirectory::open(&file).expect("somebody can use it"));
    let app = App::new(ServerConfig { tenants, ..ServerConfig::default() });
    let bearer = |key: &str| format!("Bearer {key}").into_bytes();
    let (acme, admin) = (bearer(acme.as_str()), bearer(admin.as_str()));
    for text in &nobody {
        fs::write(&file, text).expect("it can be written");
        let reload = Request::post("/admin/reload").header("authorization", &admin[..]);
        let (status, _, answer) = app.send(reload.body(Body::empty()).expect("a request"));
        assert_eq!(status.as_u16(), 400, "{answer}");
        assert!(answer.contains("not_reloaded"), "{answer}");
        assert_eq!(app.status("GET", "/v1/models", &[("authorization", &acme)]), 200, "{text}");
        assert_eq!(app.status("GET", "/admin/tenants", &[("authorization", &admin)]), 200);
    }
}

#[cfg(unix)]
#[test]
fn a_file_whose_read_blocks_holds_nothing_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let acme = add(&file, "acme", &NewTenant::default()).expect("it is new");
    let whole = fs::read_to_string(&file).expect("it is there");
    let tenants = Arc::new(TenantDirectory::open(&file).expect("the file is usable"));
    let app = App::new(ServerConfig { tenants: Arc::clone(&tenants), ..ServerConfig::default() });
    fs::remove_file(&file).expect("it is there");
    assert!(Command::new("mkfifo").arg(&file).status().expect("mkfifo runs").success());
    app.runtime.block_on(async {
        let key = format!("Bearer {}", acme.as_str());
        let ask = async {
            let request = Request::get("/v1/models").header("authorization", key);
            let request = request.body(Body::empty()).expect("a request");
            tower::ServiceExt::oneshot(app.router.clone(), request).await.expect("infallible")
        };
        // All on one thread: a read that blocked it would never be given up.
        let (reloaded, answer) = tokio::join!(tenants.reload(&app.engine), ask);
        assert!(matches!(reloaded, Err(ReloadError::Blocked { .. })), "{reloaded:?}");
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(tenants.tenants().len(), 1);
    });
    // A file again, while the reader of the pipe still blocks.
    let pipe = folder.path().join("pipe");
    fs::rename(&file, &pipe).expect("it can be renamed");
    let both = whole.replace("[tenants.acme]", "[tenants.beta]\n[tenants.acme]");
    fs::write(&file, both).expect("it can be written");
    let reloaded = app.runtime.block_on(tenants.reload(&app.engine));
    assert_eq!(reloaded.expect("it is a file"), 2);
    // The reader goes.
    drop(fs::File::options().read(true).write(true).open(&pipe).expect("it wakes up"));
}
