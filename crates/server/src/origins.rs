//! Web pages that may use the server (CORS), and requests of other sites' pages.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{HOST, ORIGIN, RETRY_AFTER},
    request::Parts,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::middleware::REQUEST_ID;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// How long a browser may remember the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE: u64 = 600;

/// The origins whose pages may read answers; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedOrigins {
    any: bool,
    /// As browsers write them.
    listed: Vec<String>,
}

/// A text that is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: write * or scheme://host[:port], without a path")]
pub struct InvalidOrigin(String);

impl AllowedOrigins {
    /// Takes origins such as `https://chat.example.com`, or `*` for all.
    ///
    /// # Errors
    /// The first text that is not an origin.
    pub fn new<T: AsRef<str>>(origins: impl IntoIterator<Item = T>) -> Result<Self, InvalidOrigin> {
        let mut allowed = Self::default();
        for origin in origins {
            match origin.as_ref().trim() {
                "*" => allowed.any = true,
                text => {
                    let origin = normalized(text).ok_or_else(|| InvalidOrigin(text.to_owned()))?;
                    allowed.listed.push(origin);
                }
            }
        }
        Ok(allowed)
    }

    /// What answers preflights and adds CORS headers; `None` where no page of another
    /// origin may read anything.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        let origins = if self.any {
            AllowOrigin::any()
        } else if self.listed.is_empty() {
            return None;
        } else {
            let values = self.listed.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
            AllowOrigin::list(values.collect::<Vec<_>>())
        };
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([REQUEST_ID.clone(), RETRY_AFTER])
            .max_age(std::time::Duration::from_secs(PREFLIGHT_MAX_AGE));
        Some(layer)
    }
}

/// An origin in lower case and without its scheme's own port, as browsers write it.
fn normalized(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let is_authority = !host_of(authority)?.is_empty()
        && authority.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@*\\,".contains(&byte));
    (is_scheme && is_authority).then(|| format!("{scheme}://{}", without_port(scheme, authority)))
}

/// An authority without the port that its scheme has anyway.
fn without_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return authority,
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

/// An authority's host, without brackets; `None` if its port is none.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        (host, if port.is_empty() { "" } else { port.strip_prefix(':')? })
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    (port.is_empty() || port.parse::<u16>().is_ok()).then_some(host)
}

/// Recognises requests that browsers send for other sites' pages.
#[derive(Clone, Debug)]
pub(crate) struct Origins {
    /// The name that the server was told to listen on, in lower case.
    own_host: String,
    /// Pages that were allowed by name; `*` allows nobody to administrate.
    listed: Vec<String>,
}

impl Origins {
    pub(crate) fn new(own_host: &str, allowed: &AllowedOrigins) -> Self {
        Self { own_host: own_host.to_ascii_lowercase(), listed: allowed.listed.clone() }
    }

    /// Whether a browser sends this on behalf of another site's page: by its `Origin`, by
    /// `Sec-Fetch-Site`, or because a name that is not ours was made to lead here (DNS
    /// rebinding). What brings none of these headers is no browser.
    pub(crate) fn is_cross_site(&self, request: &Parts) -> bool {
        let Some(authority) = authority(request) else { return true };
        if !authority.is_empty() && !host_of(&authority).is_some_and(|host| self.is_ours(host)) {
            return true;
        }
        let origins = request.headers.get_all(ORIGIN);
        if origins.iter().next().is_none() {
            let site = request.headers.get(&SEC_FETCH_SITE).map(HeaderValue::as_bytes);
            return matches!(site, Some(b"cross-site" | b"same-site"));
        }
        !origins.iter().all(|origin| {
            let origin = origin.to_str().ok().and_then(normalized);
            origin.is_some_and(|origin| self.listed.contains(&origin) || is_at(&origin, &authority))
        })
    }

    /// Whether a host name can only mean this server. IP addresses and names of one label
    /// can, since nobody can register one in the public DNS and point it here.
    fn is_ours(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_listed = || self.listed.iter().any(|origin| host_in(origin) == Some(host));
        host.parse::<IpAddr>().is_ok()
            || !host.contains('.')
            || host.ends_with(".localhost")
            || host == self.own_host
            || is_listed()
    }
}

/// Where a request was sent, in lower case; empty if it does not say.
fn authority(request: &Parts) -> Option<String> {
    let named = request.uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
    let mut hosts = hosts(&request.headers).collect::<Option<Vec<_>>>()?;
    hosts.extend(named);
    hosts.dedup();
    // Browsers never send two that differ.
    if hosts.len() > 1 { None } else { Some(hosts.pop().unwrap_or_default()) }
}

fn hosts(headers: &HeaderMap) -> impl Iterator<Item = Option<String>> {
    let hosts = headers.get_all(HOST).iter();
    hosts.map(|host| host.to_str().ok().map(str::to_ascii_lowercase))
}

/// Whether an origin is that of pages from `authority`.
fn is_at(origin: &str, authority: &str) -> bool {
    origin.split_once("://").is_some_and(|(scheme, from)| {
        ["http", "https"].contains(&scheme) && from == without_port(scheme, authority)
    })
}

fn host_in(origin: &str) -> Option<&str> {
    host_of(origin.split_once("://")?.1)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn is_cross_site(headers: &[(&str, &str)]) -> bool {
        let allowed = AllowedOrigins::new(["https://admin.example.com", "*"]).expect("origins");
        let mut request = Request::post("/admin/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        Origins::new("Model.Example.org", &allowed).is_cross_site(&parts)
    }

    #[test]
    fn pages_of_other_sites_are_told_from_our_own_and_from_programs() {
        let ours: &[&[(&str, &str)]] = &[
            &[],
            &[("host", "127.0.0.1:8000")],
            &[("host", "[::1]:8000")],
            &[("host", "192.168.1.7")],
            &[("host", "localhost:8000")],
            &[("host", "LOCALHOST.")],
            &[("host", "a.localhost:8000")],
            &[("host", "sconce:8000")],
            &[("host", "model.example.org")],
            &[("host", "admin.example.com")],
            &[("host", "localhost:8000"), ("origin", "http://localhost:8000")],
            &[("host", "localhost"), ("origin", "https://LOCALHOST:443")],
            &[("host", "[::1]:8000"), ("origin", "http://[::1]:8000")],
            &[("host", "localhost:8000"), ("origin", "https://admin.example.com")],
            &[("host", "localhost:8000"), ("sec-fetch-site", "same-origin")],
            &[("host", "localhost:8000"), ("sec-fetch-site", "none")],
        ];
        let others: &[&[(&str, &str)]] = &[
            &[("host", "evil.example")],
            &[("host", "127.0.0.1.evil.example:8000")],
            &[("host", "localhost.evil.example")],
            &[("host", "evil.example"), ("origin", "http://evil.example")],
            &[("host", "localhost:8000"), ("origin", "http://evil.example")],
            &[("host", "localhost:8000"), ("origin", "http://localhost:3000")],
            &[("host", "localhost:8000"), ("origin", "http://localhost")],
            &[("host", "localhost:8000"), ("origin", "ftp://localhost:8000")],
            &[("host", "localhost:8000"), ("origin", "null")],
            &[("host", "localhost:8000"), ("origin", "")],
            &[("host", "localhost:8000"), ("origin", "https://admin.example.com.evil.example")],
            &[("host", "localhost:8000"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost:8000"), ("sec-fetch-site", "same-site")],
            &[("host", "localhost"), ("host", "evil.example")],
            &[("host", "localhost:port")],
            &[
                ("host", "localhost"),
                ("origin", "http://localhost"),
                ("origin", "http://evil.example"),
            ],
        ];
        for headers in ours {
            assert!(!is_cross_site(headers), "{headers:?}");
        }
        for headers in others {
            assert!(is_cross_site(headers), "{headers:?}");
        }
    }

    #[test]
    fn origins_are_written_as_browsers_do() {
        let listed = |text: &str| AllowedOrigins::new([text]).map(|allowed| allowed.listed);
        for (text, origin) in [
            ("https://Chat.Example.com", "https://chat.example.com"),
            (" http://localhost:3000 ", "http://localhost:3000"),
            ("https://a:443", "https://a"),
            ("http://a:443", "http://a:443"),
            ("http://[::1]:80", "http://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
        ] {
            assert_eq!(listed(text), Ok(vec![origin.to_owned()]));
        }
        for text in [
            "",
            "a",
            "http://",
            "http://a/",
            "http://a/b",
            "http://*.a",
            "http://a:b",
            "://a",
            "null",
            "http://a, http://b",
            "http://u@a",
            "http://[::1",
        ] {
            assert_eq!(listed(text), Err(InvalidOrigin(text.to_owned())));
        }
    }
}
