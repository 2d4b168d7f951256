//! The pages at `/` and `/docs`: their files, and what a browser is told of them.

use std::{collections::BTreeSet, path::Path};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use sconce_server::ServerConfig;
use sconce_tenants::ApiKeys;

use crate::app::App;

/// Bytes of the page's files together, at most.
const MAX_BYTES: usize = 100_000;
/// Of those that only the reference has.
const MAX_DOCS_BYTES: usize = 20_000;

fn app() -> App {
    App::new(ServerConfig::default())
}

fn get(app: &App, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::get(path);
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    app.send(request.body(Body::empty()).expect("a request"))
}

/// Where each file of the folder is served.
fn paths() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let names = std::fs::read_dir(folder).expect("the page's folder").map(|entry| {
        let name = entry.expect("an entry").file_name();
        match name.to_str().expect("UTF-8") {
            "index.html" => "/".to_owned(),
            "docs.html" => "/docs".to_owned(),
            name => format!("/page/{name}"),
        }
    });
    names.collect()
}

#[test]
fn every_file_is_served_with_its_type_and_a_strict_policy() {
    let app = app();
    let (mut bytes, mut docs_bytes) = (0, 0);
    for path in paths() {
        let (status, headers, text) = get(&app, &path, &[]);
        assert_eq!(status, StatusCode::OK, "{path}");
        let kind = match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
            "" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{path}: no type for .{other}"),
        };
        assert_eq!(headers["content-type"], kind, "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(headers["cache-control"], "no-cache", "{path}");
        let policy = headers["content-security-policy"].to_str().expect("text");
        let directives: BTreeSet<_> = policy.split(';').map(str::trim).collect();
        let expected = [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ];
        assert_eq!(directives, expected.into(), "{path}");
        *(if path.contains("docs") { &mut docs_bytes } else { &mut bytes }) += text.len();
    }
    assert!(bytes < MAX_BYTES, "the page has {bytes} bytes, but may have {MAX_BYTES}");
    assert!(
        docs_bytes < MAX_DOCS_BYTES,
        "the reference has {docs_bytes} of {MAX_DOCS_BYTES} bytes"
    );
    assert_eq!(get(&app, "/page/other.js", &[]).0, StatusCode::NOT_FOUND);
    assert_eq!(app.status("POST", "/", &[]), 405);
}

#[test]
fn a_browser_that_has_a_file_is_told_so() {
    let app = app();
    let (_, headers, text) = get(&app, "/page/app.js", &[]);
    let tag = headers["etag"].to_str().expect("text");
    assert!(!text.is_empty());
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let (status, again, text) = get(&app, "/page/app.js", &[("if-none-match", &known)]);
        assert_eq!((status, text.as_str()), (StatusCode::NOT_MODIFIED, ""), "{known}");
        assert_eq!(again["etag"], tag);
    }
    let (status, other, _) = get(&app, "/page/api.js", &[("if-none-match", tag)]);
    assert_eq!(status, StatusCode::OK, "another file's tag");
    assert_ne!(other["etag"], tag);
}

#[test]
fn the_page_needs_no_key_and_what_it_shows_does() {
    let api_keys = ApiKeys::new(["secret"]).expect("a key");
    let app = App::new(ServerConfig { api_keys, ..ServerConfig::default() });
    for path in paths() {
        assert_eq!(app.status("GET", &path, &[]), 200, "{path}");
    }
    assert_eq!(app.status("GET", "/v1/models", &[]), 401);
    assert_eq!(app.status("GET", "/v1/live", &[]), 401);
}

/// What follows each occurrence of `before`.
fn tails<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(before).map(move |(at, _)| &text[at + before.len()..])
}

#[test]
fn nothing_is_fetched_from_elsewhere_and_nothing_is_inline() {
    let app = app();
    let paths = paths();
    for path in &paths {
        let (_, _, text) = get(&app, path, &[]);
        for (at, _) in text.match_indices("://") {
            let is_namespace = text[at..].starts_with("://www.w3.org/");
            assert!(is_namespace, "{path} names an address: {}", &text[at - 8..at + 20]);
        }
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(word), "{path} has {word}");
        }
        for word in ["@import", "url("] {
            assert!(!path.ends_with(".css") || !text.contains(word), "{path} has {word}");
        }
        for import in tails(&text, " from \"") {
            let name = import.split('"').next().unwrap_or_default();
            let name = name.strip_prefix("./").expect("a neighbour");
            assert!(paths.contains(&format!("/page/{name}")), "{path} imports {name}");
        }
    }
    for page in ["/", "/docs"] {
        let (_, _, html) = get(&app, page, &[]);
        for tag in tails(&html, "<script") {
            let src = tag.strip_prefix(" type=\"module\" src=\"").unwrap_or_default();
            let src = src.trim_start_matches('/');
            assert!(src.starts_with("page/"), "{page} has an inline script: {tag:.60}");
        }
        for word in ["<style", " style=", " onclick", " onload", "javascript:"] {
            assert!(!html.contains(word), "{page} has an inline {word}");
        }
        let referred = tails(&html, " src=\"")
            .chain(tails(&html, "<link ").flat_map(|link| tails(link, "href=\"").take(1)));
        for name in referred.map(|tail| tail.split('"').next().unwrap_or_default()) {
            let path = format!("/{}", name.trim_start_matches('/'));
            assert!(paths.contains(&path), "{page} refers to {name}");
        }
    }
}
