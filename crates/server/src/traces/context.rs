//! The trace that a request belongs to, by W3C's headers.

use axum::http::{HeaderMap, HeaderName};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Entries of a `tracestate` at most, as the standard has it.
const MAX_ENTRIES: usize = 32;

/// The context that a request's span is made in: that of its `traceparent`, or an empty one, in
/// which a new trace begins. OpenTelemetry's own propagator is not used, since it takes ids that
/// are too short.
pub(super) fn of_request(headers: &HeaderMap) -> Context {
    let mut parents = headers.get_all(&TRACEPARENT).iter();
    let parent = match (parents.next(), parents.next()) {
        (Some(only), None) => only.to_str().ok().and_then(parse),
        // Several are none.
        _ => None,
    };
    let Some((trace_id, span_id, flags)) = parent else { return Context::new() };
    let state = state(headers);
    Context::new().with_remote_span_context(SpanContext::new(trace_id, span_id, flags, true, state))
}

/// `VERSION-TRACE-PARENT-FLAGS`, all in lower-case hexadecimal digits.
fn parse(header: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let header = header.trim_matches([' ', '\t']);
    let mut parts = header.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (part.len() == digits && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // Later versions may have more parts; version 255 is none.
    let has_more = parts.next().is_some();
    if version == "ff" || version == "00" && has_more {
        return None;
    }
    let trace_id = TraceId::from_hex(trace_id).ok().filter(|&id| id != TraceId::INVALID)?;
    let span_id = SpanId::from_hex(span_id).ok().filter(|&id| id != SpanId::INVALID)?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    Some((trace_id, span_id, flags))
}

/// What other systems have noted of the trace. A list that is malformed anywhere is left out,
/// and changes nothing of the parent.
fn state(headers: &HeaderMap) -> TraceState {
    let mut entries = Vec::new();
    for header in headers.get_all(&TRACESTATE) {
        let Ok(header) = header.to_str() else { return TraceState::default() };
        for entry in header.split(',').map(|entry| entry.trim_matches([' ', '\t'])) {
            match entry.split_once('=') {
                Some((key, value)) if !key.is_empty() && entries.len() < MAX_ENTRIES => {
                    entries.push((key, value));
                }
                // The standard allows empty entries.
                None if entry.is_empty() => {}
                _ => return TraceState::default(),
            }
        }
    }
    TraceState::from_key_value(entries).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn context(headers: &[(&HeaderName, &str)]) -> Option<SpanContext> {
        let mut map = HeaderMap::new();
        for &(name, value) in headers {
            map.append(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        let context = of_request(&map);
        context.has_active_span().then(|| context.span().span_context().clone())
    }

    #[test]
    fn a_parent_is_read_and_a_malformed_one_is_none() {
        for (header, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-09"), Some(true)),
            (format!("  00-{TRACE}-{SPAN}-01 "), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes-later"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("00-{TRACE}-{SPAN}-01-"), None),
            (format!("cc-{TRACE}-{SPAN}-01more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-+{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{TRACE}-{SPAN}-1"), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("0-{TRACE}-{SPAN}-01"), None),
            (String::new(), None),
            ("00".to_owned(), None),
        ] {
            let found = context(&[(&TRACEPARENT, &header)]);
            assert_eq!(found.as_ref().map(SpanContext::is_sampled), is_sampled, "{header:?}");
            if let Some(found) = found {
                assert_eq!(found.trace_id().to_string(), TRACE);
                assert_eq!(found.span_id().to_string(), SPAN);
                assert!(found.is_remote());
            }
        }
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let twice = context(&[(&TRACEPARENT, &parent), (&TRACEPARENT, &parent)]);
        assert_eq!(twice, None, "several parents are none");
    }

    #[test]
    fn a_state_is_kept_with_its_parent_only_and_whole_or_not_at_all() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let state = |states: &[&str]| {
            let mut headers = vec![(&TRACEPARENT, &*parent)];
            headers.extend(states.iter().map(|&state| (&TRACESTATE, state)));
            context(&headers).map(|found| found.trace_state().header())
        };
        let many = vec!["a=1"; 33].join(",");
        for (given, kept) in [
            (&["a=1,b@c=2"][..], "a=1,b@c=2"),
            (&["a=1, b=2 ,,", "c=3"][..], "a=1,b=2,c=3"),
            (&["a=1,nonsense"][..], ""),
            (&["A=1"][..], ""),
            (&[&*many][..], ""),
        ] {
            assert_eq!(state(given).as_deref(), Some(kept), "{given:?}");
        }
        assert_eq!(context(&[(&TRACESTATE, "a=1")]), None, "without a parent it says nothing");
    }
}
