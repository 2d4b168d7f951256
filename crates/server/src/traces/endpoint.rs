//! The collector's URL.

use std::fmt;

use axum::http::{HeaderValue, Uri, uri::Scheme};

/// Where a collector takes spans: an `http` URL, for OTLP with protobuf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesEndpoint {
    uri: Uri,
    host: String,
    port: u16,
    /// The header `Host`.
    authority: HeaderValue,
}

/// A URL that spans cannot be sent to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} is {value:?}, {reason}; what is accepted is a URL of OTLP over HTTP (protobuf), such as \
     http://localhost:4318/v1/traces"
)]
pub struct InvalidTracesEndpoint {
    /// The flag or variable.
    pub name: String,
    /// What it holds.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl TracesEndpoint {
    /// Reads the URL that the flag or variable `name` holds. It is used as it is, as
    /// OpenTelemetry has it for URLs of one signal.
    ///
    /// # Errors
    /// It is no URL, or not one of plain HTTP.
    pub fn parse(name: &str, value: &str) -> Result<Self, InvalidTracesEndpoint> {
        let invalid = |value: &str, reason| {
            Err(InvalidTracesEndpoint { name: name.to_owned(), value: value.to_owned(), reason })
        };
        let Ok(uri) = value.parse::<Uri>() else { return invalid(value, "which is no URL") };
        let scheme = uri.scheme();
        if scheme == Some(&Scheme::HTTPS) {
            let reason = "but https is not supported: send to a collector near by, which can";
            return invalid(value, reason);
        }
        if scheme != Some(&Scheme::HTTP) {
            return invalid(value, "whose scheme is not http");
        }
        let Some(authority) = uri.authority() else { return invalid(value, "which has no host") };
        if let Some((_, place)) = authority.as_str().rsplit_once('@') {
            // A log is no place for a password.
            let shown = format!("http://…@{place}{}", uri.path());
            let reason = "which has a user: credentials belong into OTEL_EXPORTER_OTLP_HEADERS";
            return invalid(&shown, reason);
        }
        // An IPv6 address stands in brackets, which are not part of it.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return invalid(value, "which has no host");
        }
        let port = match (authority.port_u16(), authority.as_str().ends_with(authority.host())) {
            (Some(port @ 1..), _) => port,
            (None, true) => 80,
            _ => return invalid(value, "whose port is not from 1 to 65535"),
        };
        let Ok(authority) = HeaderValue::from_str(authority.as_str()) else {
            return invalid(value, "which is no URL");
        };
        Ok(Self { uri, host, port, authority })
    }

    /// The same of a URL for all signals, below which traces are taken at `v1/traces`.
    ///
    /// # Errors
    /// As [`TracesEndpoint::parse`].
    pub fn below(name: &str, base: &str) -> Result<Self, InvalidTracesEndpoint> {
        // The error names what was given.
        Self::parse(name, base)?;
        let slash = if base.ends_with('/') { "" } else { "/" };
        Self::parse(name, &format!("{base}{slash}v1/traces"))
    }

    /// What speaks against it being meant, if something does.
    #[must_use]
    pub fn doubt(&self) -> Option<&'static str> {
        if self.port == 4317 {
            return Some("port 4317 is commonly that of OTLP over gRPC; over HTTP it is 4318");
        }
        (self.uri.path() == "/").then_some("it has no path; collectors take traces at /v1/traces")
    }

    /// The host's name or address, and the port.
    pub(super) fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// What a request's first line says.
    pub(super) fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    pub(super) fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

impl fmt::Display for TracesEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_plain_http_are_taken_as_they_are() {
        for (url, address, target, authority) in [
            (
                "http://localhost:4318/v1/traces",
                ("localhost", 4318),
                "/v1/traces",
                "localhost:4318",
            ),
            ("http://collector", ("collector", 80), "/", "collector"),
            ("HTTP://10.0.0.1:9/a?b=c", ("10.0.0.1", 9), "/a?b=c", "10.0.0.1:9"),
            ("http://[::1]:4318/v1/traces", ("::1", 4318), "/v1/traces", "[::1]:4318"),
        ] {
            let endpoint = TracesEndpoint::parse("--flag", url).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((endpoint.address(), endpoint.target()), (address, target), "{url}");
            assert_eq!(endpoint.authority(), authority, "{url}");
        }
        for (base, target) in [
            ("http://c:4318", "/v1/traces"),
            ("http://c:4318/", "/v1/traces"),
            ("http://c:4318/otlp", "/otlp/v1/traces"),
        ] {
            let endpoint = TracesEndpoint::below("VAR", base).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(endpoint.target(), target, "{base}");
        }
    }

    #[test]
    fn what_is_refused_is_named_with_what_is_accepted() {
        for (url, reason) in [
            ("", "no URL"),
            ("not a url", "no URL"),
            ("localhost", "not http"),
            ("localhost:4318", "not http"),
            ("/v1/traces", "not http"),
            ("grpc://localhost:4317", "not http"),
            ("https://collector/v1/traces", "https is not supported"),
            ("http://collector:0/", "port"),
            ("http://collector:99999/", "port"),
            ("http://collector:/", "port"),
        ] {
            let error = TracesEndpoint::parse("--otlp-traces-endpoint", url).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&format!("--otlp-traces-endpoint is {url:?}")), "{text}");
            assert!(text.contains(reason) && text.contains("http://localhost:4318"), "{text}");
        }
        let error = TracesEndpoint::parse("VAR", "http://me:secret@collector/x").unwrap_err();
        let text = error.to_string();
        assert!(!text.contains("secret") && text.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{text}");
    }

    #[test]
    fn doubtful_urls_are_told_of() {
        for (url, doubt) in [
            ("http://c:4318/v1/traces", None),
            ("http://c:4317/v1/traces", Some("gRPC")),
            ("http://c:4318", Some("/v1/traces")),
        ] {
            let endpoint = TracesEndpoint::parse("--flag", url).unwrap_or_else(|e| panic!("{e}"));
            let told = endpoint.doubt();
            assert_eq!(told.is_some(), doubt.is_some(), "{url}: {told:?}");
            assert!(doubt.is_none_or(|doubt| told.is_some_and(|told| told.contains(doubt))));
        }
    }
}
