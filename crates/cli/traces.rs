//! Where traces go: `--otlp-traces-endpoint`, and OpenTelemetry's own environment variables.

use std::{str::FromStr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use sconce::{TracesConfig, TracesEndpoint};

const FLAG: &str = "--otlp-traces-endpoint";
/// How OpenTelemetry's variables for traces and for all signals begin.
const OF_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_";
const OF_ALL: &str = "OTEL_EXPORTER_OTLP_";

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Where traces go, if anywhere. The flag comes before the environment, which is read as
/// OpenTelemetry's specification says; what it asks for and is not done here is an error.
///
/// # Errors
/// A URL that spans cannot be sent to, or a variable that cannot be followed.
pub(crate) fn config(
    flag: Option<&str>,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Option<TracesConfig>> {
    let env = Environment(env);
    if env.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        if flag.is_some() {
            tracing::warn!("{FLAG} has no effect: OTEL_SDK_DISABLED is true");
        }
        return Ok(None);
    }
    let endpoint = match flag {
        Some(url) => Some(TracesEndpoint::parse(FLAG, url)?),
        None => endpoint_of(&env)?,
    };
    let Some(endpoint) = endpoint else { return Ok(None) };
    env.check_for_otlp("PROTOCOL", "http/protobuf")?;
    env.check_for_otlp("COMPRESSION", "none")?;
    env.check_sampler()?;
    let mut config = TracesConfig::new(endpoint);
    if let Some((name, value)) = env.of_otlp("TIMEOUT") {
        config.timeout = Duration::from_millis(number(&name, &value)?);
    }
    if let Some((name, value)) = env.of_otlp("HEADERS") {
        for (header, value) in headers(&name, &value)? {
            config.add_header(&header, &value).context(name.clone())?;
        }
    }
    let (delay, queue) = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE");
    if let Some(value) = env.get(delay) {
        config.delay = Duration::from_millis(number(delay, &value)?);
    }
    if let Some(value) = env.get(queue) {
        config.max_queued = usize::try_from(number(queue, &value)?)?;
    }
    if let Some(doubt) = config.endpoint.doubt() {
        tracing::warn!("traces are sent to {}: {doubt}", config.endpoint);
    }
    Ok(Some(config))
}

/// The endpoint that the environment names.
fn endpoint_of<F: Fn(&str) -> Option<String>>(
    env: &Environment<F>,
) -> anyhow::Result<Option<TracesEndpoint>> {
    if env.get("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp") {
        return Ok(None);
    }
    let (own, common) = (format!("{OF_TRACES}ENDPOINT"), format!("{OF_ALL}ENDPOINT"));
    if let Some(url) = env.get(&own) {
        return Ok(Some(TracesEndpoint::parse(&own, &url)?));
    }
    Ok(env.get(&common).map(|url| TracesEndpoint::below(&common, &url)).transpose()?)
}

struct Environment<F>(F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// A variable; one that is empty is not set.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// What an exporter's variable is called and holds: that of traces, else that of all signals.
    fn of_otlp(&self, rest: &str) -> Option<(String, String)> {
        let names = [OF_TRACES, OF_ALL].map(|prefix| format!("{prefix}{rest}"));
        names.into_iter().find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn check_for_otlp(&self, rest: &str, accepted: &str) -> anyhow::Result<()> {
        match self.of_otlp(rest) {
            Some((name, value)) if value != accepted => {
                bail!("{name} is {value:?}, but only {accepted} is supported")
            }
            _ => Ok(()),
        }
    }

    fn check_sampler(&self) -> anyhow::Result<()> {
        let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let Some(sampler) = self.get(name) else { return Ok(()) };
        ensure!(
            SAMPLERS.contains(&&*sampler),
            "{name} is {sampler:?}, but must be one of {}",
            SAMPLERS.join(", ")
        );
        if sampler.ends_with("traceidratio") {
            let ratio = self.get(argument).unwrap_or_default();
            let is_ratio = f64::from_str(&ratio).is_ok_and(|ratio| (0.0..=1.0).contains(&ratio));
            ensure!(is_ratio, "{argument} is {ratio:?}, but must be from 0 to 1 for {sampler}");
        }
        Ok(())
    }
}

/// `name=value` several times, with commas between; values as in URLs. An error shows none: one
/// may be a secret.
fn headers(name: &str, list: &str) -> anyhow::Result<Vec<(String, String)>> {
    let header = |entry: &str| {
        let (header, value) = entry.split_once('=')?;
        Some((header.trim().to_owned(), unescaped(value.trim())?))
    };
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let headers = entries.enumerate().map(|(index, entry)| {
        header(entry).with_context(|| {
            format!("entry {} of {name} is no header, but must be name=value", index + 1)
        })
    });
    headers.collect()
}

/// Text with `%2C` for a comma, and so on.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// A whole number of spans, or of milliseconds, up to those of a day.
fn number(name: &str, value: &str) -> anyhow::Result<u64> {
    const MOST: u64 = 86_400_000;
    let number = value.parse().ok().filter(|number| (1..=MOST).contains(number));
    number.with_context(|| {
        format!("{name} is {value:?}, but must be a whole number from 1 to {MOST}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flag: Option<&str>, env: &[(&str, &str)]) -> Result<Option<TracesConfig>, String> {
        let find = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_owned())
        };
        config(flag, find).map_err(|error| format!("{error:#}"))
    }

    fn endpoint(flag: Option<&str>, env: &[(&str, &str)]) -> Option<String> {
        let config = read(flag, env).unwrap_or_else(|error| panic!("{error}"));
        config.map(|config| config.endpoint.to_string())
    }

    #[test]
    fn the_flag_comes_before_the_environment_and_traces_before_all_signals() {
        let (own, common) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let (flag, own, common) =
            (Some("http://flag/v1/traces"), (own, "http://own/x"), (common, "http://common:4318"));
        for (flag, env, expected) in [
            (None, &[][..], None),
            (None, &[(own.0, ""), (common.0, " ")], None),
            (flag, &[own, common], Some("http://flag/v1/traces")),
            (None, &[own, common], Some("http://own/x")),
            (None, &[common], Some("http://common:4318/v1/traces")),
            (None, &[(own.0, ""), common], Some("http://common:4318/v1/traces")),
            (None, &[own, ("OTEL_TRACES_EXPORTER", "none")], None),
            (flag, &[("OTEL_TRACES_EXPORTER", "none")], flag),
            (flag, &[own, ("OTEL_SDK_DISABLED", "TRUE")], None),
        ] {
            assert_eq!(endpoint(flag, env).as_deref(), expected, "{flag:?}, {env:?}");
        }
    }

    #[test]
    fn the_environment_says_how_spans_are_sent() {
        let env = [
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "9"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_BSP_SCHEDULE_DELAY", "200"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let config =
            read(Some("http://c/v1/traces"), &env).expect("it is right").expect("it is on");
        assert_eq!(config.timeout, Duration::from_millis(1500));
        assert_eq!((config.delay, config.max_queued), (Duration::from_millis(200), 64));
    }

    #[test]
    fn headers_are_unescaped_and_never_shown() {
        let list = "api-key=a%2Cb%20c, x = 1 ,,authorization=Basic%20dXNlcg==";
        let expected = [("api-key", "a,b c"), ("x", "1"), ("authorization", "Basic dXNlcg==")];
        let found = headers("VAR", list).expect("they are headers");
        assert!(found.iter().map(|(a, b)| (&**a, &**b)).eq(expected), "{found:?}");
        for list in ["a=1,secret", "a=1,b=secret%", "a=1,b=secret%+1", "a=1,b=secret%ff"] {
            let error = headers("VAR", list).expect_err("it is none").to_string();
            assert!(error.contains("entry 2 of VAR") && !error.contains("secret"), "{error}");
        }
        let env = [("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret")];
        let error = read(Some("http://c/v1/traces"), &env).expect_err("it has a space");
        let (named, shown) =
            (error.contains("OTEL_EXPORTER_OTLP_HEADERS"), error.contains("secret"));
        assert!(named && !shown, "{error}");
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let url = Some("http://c/v1/traces");
        for (flag, env, name) in [
            (Some("grpc://c:4317"), ("", ""), "--otlp-traces-endpoint is \"grpc://c:4317\""),
            (Some(""), ("", ""), "--otlp-traces-endpoint is \"\""),
            (
                None,
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c"),
                "OTEL_EXPORTER_OTLP_ENDPOINT is \"https://c\"",
            ),
            (
                url,
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                "OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\"",
            ),
            (
                url,
                ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION is \"gzip\"",
            ),
            (url, ("OTEL_TRACES_SAMPLER", "xray"), "OTEL_TRACES_SAMPLER is \"xray\""),
            (url, ("OTEL_TRACES_SAMPLER", "traceidratio"), "OTEL_TRACES_SAMPLER_ARG is \"\""),
            (url, ("OTEL_BSP_SCHEDULE_DELAY", "soon"), "OTEL_BSP_SCHEDULE_DELAY is \"soon\""),
            (url, ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"), "OTEL_EXPORTER_OTLP_TIMEOUT is \"0\""),
        ] {
            let error = read(flag, &[env]).expect_err("it is refused");
            assert!(error.starts_with(name), "{error}");
        }
    }
}
