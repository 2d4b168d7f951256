//! Server-sent events out of bytes that come in any pieces.

use std::collections::VecDeque;

use memchr::memchr2;

/// The longest line that is read; a server that never ends one is given up.
const MAX_LINE: usize = 16 << 20;

/// An event of so many bytes has not ended.
#[derive(Debug)]
pub(crate) struct TooLong(pub(crate) usize);

/// Cuts server-sent events out of bytes that come in any pieces. Lines end with
/// CR, LF or both, as the standard has it; fields other than `data` are skipped.
#[derive(Default)]
pub(crate) struct SseParser {
    /// The line that has begun.
    line: Vec<u8>,
    /// The data of the event that has begun.
    data: Option<String>,
    /// The last byte was a CR, so an LF now belongs to it.
    after_cr: bool,
    whole: VecDeque<String>,
}

impl SseParser {
    /// Takes more bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr2(b'\r', b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line();
        }
        let pending = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if pending > MAX_LINE { Err(TooLong(pending)) } else { Ok(()) }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            self.whole.extend(self.data.take());
            return;
        }
        let line = String::from_utf8_lossy(&self.line);
        if let Some(value) = line.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            }
        }
        self.line.clear();
    }

    /// The data of the next whole event.
    pub(crate) fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_LINE, SseParser};

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece).expect("it is short");
            events.extend(std::iter::from_fn(|| parser.next()));
        }
        events
    }

    proptest! {
        #[test]
        fn events_are_the_same_however_they_are_cut_and_lines_end(
            events in prop::collection::vec("[ a:é]{1,5}(\n[ a:é]{0,5}){0,2}", 0..6),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r", "\r\n"]), 1..9),
            comments in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut ends = ends.iter().cycle();
            let mut wire = String::new();
            let mut line = |text: &str| {
                wire.push_str(text);
                // A CR and the LF of an empty line after it would be one end.
                let end = ends.next().expect("a cycle");
                wire.push_str(if wire.ends_with('\r') && *end == "\n" { "\r" } else { end });
            };
            for event in &events {
                if comments {
                    line(": a comment");
                    line("event: x");
                }
                event.split('\n').for_each(|text| line(&format!("data: {text}")));
                line("");
            }
            let wire = wire.as_bytes();
            let mut borders: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            borders.extend([0, wire.len()]);
            borders.sort_unstable();
            let pieces: Vec<_> = borders.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), events);
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; MAX_LINE / 2];
        assert!(parser.push(&piece).is_ok() && parser.push(&piece).is_ok());
        assert!(parser.push(&piece).is_err());
    }

    #[test]
    fn what_is_cut_off_is_no_event() {
        assert_eq!(parse(&[b"data: whole\n\ndata: half\n"]), ["whole"]);
    }
}
