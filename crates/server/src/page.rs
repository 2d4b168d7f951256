//! The page at `/`, a chat and the live engine, and the reference at `/docs`. Their files are
//! part of the binary, and nothing of them is fetched from anywhere else.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse as _, Response},
    routing::get,
};

use crate::state::AppState;

/// Scripts, styles and connections of this server only; nothing inline, no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Paths, types and contents.
const FILES: &[(&str, &str, &[u8])] = &[
    ("/", HTML, include_bytes!("../page/index.html")),
    ("/page/style.css", CSS, include_bytes!("../page/style.css")),
    ("/page/icon.svg", SVG, include_bytes!("../page/icon.svg")),
    ("/page/app.js", SCRIPT, include_bytes!("../page/app.js")),
    ("/page/api.js", SCRIPT, include_bytes!("../page/api.js")),
    ("/page/chat.js", SCRIPT, include_bytes!("../page/chat.js")),
    ("/page/message.js", SCRIPT, include_bytes!("../page/message.js")),
    ("/page/markdown.js", SCRIPT, include_bytes!("../page/markdown.js")),
    ("/page/engine.js", SCRIPT, include_bytes!("../page/engine.js")),
    ("/page/kv_map.js", SCRIPT, include_bytes!("../page/kv_map.js")),
    ("/docs", HTML, include_bytes!("../page/docs.html")),
    ("/page/docs.css", CSS, include_bytes!("../page/docs.css")),
    ("/page/docs.js", SCRIPT, include_bytes!("../page/docs.js")),
];

/// A route for each file; none needs a key, as they hold nothing that depends on one.
pub(crate) fn routes() -> Router<AppState> {
    FILES.iter().fold(Router::new(), |router, &(path, kind, content)| {
        let tag = entity_tag(content);
        let answer = move |headers: HeaderMap| {
            let tag = tag.clone();
            async move { answer(&headers, kind, content, tag) }
        };
        router.route(path, get(answer))
    })
}

/// A browser asks each time whether its copy is still right: another version of the binary has
/// other files at the same paths.
fn answer(
    headers: &HeaderMap,
    kind: &'static str,
    content: &'static [u8],
    tag: HeaderValue,
) -> Response {
    let mut known = headers.get_all(IF_NONE_MATCH).iter();
    let is_known = known.any(|given| lists(given.as_bytes(), tag.as_bytes()));
    let status = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let content: &[u8] = if is_known { b"" } else { content };
    let fixed = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (status, fixed, [(ETAG, tag)], content).into_response()
}

/// Whether `If-None-Match` names a tag, also weakly: proxies that compress make it weak.
fn lists(given: &[u8], tag: &[u8]) -> bool {
    given
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|one| one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == tag)
}

fn entity_tag(content: &[u8]) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    HeaderValue::from_str(&tag).expect("hexadecimal digits in quotes are a header's value")
}
