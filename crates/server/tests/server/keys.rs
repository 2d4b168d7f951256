//! API keys as clients send them, and pages of other sites where there are none.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use sconce_server::{AllowedOrigins, ServerConfig};
use sconce_tenants::ApiKeys;

use super::app::App;

#[test]
fn a_key_is_known_whatever_its_characters_and_its_scheme_s_case() {
    let keys = ["plain", "with,comma", "spa\u{df}", "\u{9375}", "two words"];
    let api_keys = ApiKeys::new(keys).expect("a request can bring each of them");
    let app = App::new(ServerConfig { api_keys, ..ServerConfig::default() });
    let get = |value: &[u8]| app.status("GET", "/v1/models", &[("authorization", value)]);
    for key in keys {
        for scheme in ["Bearer ", "bearer ", "BEARER ", "Bearer   ", "bEaReR\t"] {
            assert_eq!(get(format!("{scheme}{key}").as_bytes()), 200, "{scheme}{key}");
        }
        assert_eq!(get(format!("  Bearer {key}  ").as_bytes()), 200, "{key}");
    }
    // As Python's requests sends it.
    assert_eq!(get(b"Bearer spa\xdf"), 200);
    for stranger in [
        &b""[..],
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer with",
        b"Bearer comma",
        b"Bearer plai",
        b"Bearer plainn",
        b"Bearer plain,with",
        b"Bearerplain",
        b"plain",
        b"Basic plain",
        b"Bearer Bearer plain",
        b"Bearer spa\xc3",
        b"Bearer two  words",
    ] {
        assert_eq!(get(stranger), 401, "{:?}", stranger.escape_ascii().to_string());
    }
    assert_eq!(app.status("GET", "/v1/models", &[]), 401);
}

#[test]
fn without_keys_pages_of_other_sites_administrate_nothing() {
    let app = App::new(ServerConfig::default());
    let routes = [
        ("POST", "/admin/reload", 400),
        ("GET", "/admin/tenants", 200),
        ("GET", "/admin/steps", 200),
        ("POST", "/reset_prefix_cache", 200),
    ];
    let local = ("host", &b"127.0.0.1:8000"[..]);
    for (method, path, own) in routes {
        for ours in [&[][..], &[local], &[local, ("origin", b"http://127.0.0.1:8000")]] {
            assert_eq!(app.status(method, path, ours), own, "{path} {ours:?}");
        }
        for other in [
            &[("host", &b"evil.example"[..])][..],
            &[local, ("origin", b"http://evil.example")],
            &[local, ("origin", b"null")],
            &[local, ("origin", b"\xff")],
            &[local, ("sec-fetch-site", b"cross-site")],
            &[("host", b"evil.example"), ("origin", b"http://evil.example")],
        ] {
            assert_eq!(app.status(method, path, other), 403, "{path} {other:?}");
        }
    }
    let api_keys = ApiKeys::new(["k"]).expect("a key");
    let app = App::new(ServerConfig { api_keys, ..ServerConfig::default() });
    let key = ("authorization", &b"Bearer k"[..]);
    let proxied = [key, ("host", b"model.example.com")];
    assert_eq!(app.status("POST", "/reset_prefix_cache", &proxied), 200, "a key is enough");
}

#[test]
fn only_allowed_origins_may_read_and_preflights_need_no_key() {
    let app = |origins: &[&str]| {
        let allowed_origins = AllowedOrigins::new(origins).expect("they are origins");
        let api_keys = ApiKeys::new(["k"]).expect("a key");
        App::new(ServerConfig { allowed_origins, api_keys, ..ServerConfig::default() })
    };
    let ask = |app: &App, method: &str, origin: &str| {
        let request = Request::builder().method(method).uri("/v1/completions");
        let request = request.header("origin", origin).header("authorization", "Bearer k");
        let request = request
            .header("content-type", "application/json")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-stainless-os");
        let body = r#"{"prompt": "x", "max_tokens": 1}"#;
        app.send(request.body(Body::from(body)).expect("a request"))
    };
    let listed = app(&["http://localhost:3000", "https://chat.example.com"]);
    for (app, origin, allowed) in [
        (&listed, "http://localhost:3000", Some("http://localhost:3000")),
        (&listed, "https://chat.example.com", Some("https://chat.example.com")),
        (&listed, "https://evil.example", None),
        (&app(&["*"]), "https://any.example", Some("*")),
        (&app(&[]), "http://localhost:3000", None),
    ] {
        for method in ["OPTIONS", "POST"] {
            let (status, headers, text) = ask(app, method, origin);
            let given = headers.get("access-control-allow-origin");
            let given = given.map(|value| value.to_str().expect("ASCII"));
            assert_eq!(given, allowed, "{method} {origin}");
            assert!(!headers.contains_key("access-control-allow-credentials"));
            if method == "POST" {
                assert_eq!(status, StatusCode::OK, "{text}");
            } else if allowed.is_some() {
                assert!(status.is_success(), "{origin}: {status}");
                let fields = &headers["access-control-allow-headers"];
                assert_eq!(fields, "authorization,content-type,x-stainless-os");
                assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
            }
        }
    }
}
