//! Strings that end a completion.

use std::ops::Range;

/// Stop strings of a request at most.
pub const MAX_STOPS: usize = 16;
/// Bytes of a stop string at most.
pub const MAX_STOP_BYTES: usize = 1024;

/// A stop string that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// It would match everywhere.
    #[error("stop has an empty string, but each must have at least one character")]
    Empty,
    /// There are too many.
    #[error("stop has {0} strings, but may have at most {MAX_STOPS}")]
    TooMany(usize),
    /// One is too long.
    #[error("stop has a string of {0} bytes, but each may have at most {MAX_STOP_BYTES}")]
    TooLong(usize),
}

/// Finds stop strings in text that comes in pieces.
///
/// Text that could be the beginning of a stop string is held back until that is
/// decided, so nothing of a stop string is ever passed on. The match that ends
/// first counts; of several that end together, the one that began first.
/// Matching is by Knuth, Morris and Pratt: each byte costs the same however
/// the strings repeat themselves.
///
/// A special token that is not shown is no part of the text, except to a stop
/// string that has the token's name in it.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<Stop>,
    include_in_output: bool,
    /// Text seen and not passed on.
    held: String,
}

#[derive(Clone, Debug)]
struct Stop {
    text: Vec<u8>,
    /// For each prefix, the length of its longest proper border.
    borders: Vec<usize>,
    /// How much of it the text seen so far ends with.
    matched: usize,
    /// Bytes that it was compared with.
    fed: usize,
    /// Which of those, in the part that matches, are not shown.
    hidden: Vec<Range<usize>>,
}

impl StopStrings {
    /// A matcher; `include_in_output` passes the stop string itself on too.
    ///
    /// # Errors
    /// Strings that are empty, too long or too many.
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Result<Self, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError::TooMany(stops.len()));
        }
        let stops = stops.into_iter().map(|stop| match stop.len() {
            0 => Err(StopError::Empty),
            len if len > MAX_STOP_BYTES => Err(StopError::TooLong(len)),
            _ => Ok(Stop::new(stop.into_bytes())),
        });
        let stops = stops.collect::<Result<_, _>>()?;
        Ok(Self { stops, include_in_output, held: String::new() })
    }

    /// Takes a piece of text and appends to `out` what is decided. Returns the
    /// index of the stop string that was found; nothing may be pushed after that.
    /// With `may_end` false a stop string that ends within this piece does not count.
    pub fn push(&mut self, text: &str, may_end: bool, out: &mut String) -> Option<usize> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                if stop.advance(byte) && may_end {
                    let len = stop.shown();
                    if found.is_none_or(|(_, other)| len > other) {
                        found = Some((index, len));
                    }
                }
            }
            if let Some((index, len)) = found {
                self.end(before + at + 1, len, out);
                return Some(index);
            }
        }
        self.release(out);
        None
    }

    /// Takes the text of a token that is not shown. Only stop strings that
    /// contain all of it see it; otherwise as [`StopStrings::push`].
    pub fn push_hidden(&mut self, text: &str, may_end: bool, out: &mut String) -> Option<usize> {
        let mut found: Option<(usize, usize)> = None;
        for (index, stop) in self.stops.iter_mut().enumerate() {
            if text.is_empty() || !stop.text.windows(text.len()).any(|part| part == text.as_bytes())
            {
                continue;
            }
            stop.hidden.push(stop.fed..stop.fed + text.len());
            let (last, rest) = text.as_bytes().split_last().expect("it is not empty");
            for &byte in rest {
                stop.advance(byte);
            }
            if stop.advance(*last) && may_end {
                let len = stop.shown();
                if found.is_none_or(|(_, other)| len > other) {
                    found = Some((index, len));
                }
            }
        }
        if let Some((index, len)) = found {
            self.end(self.held.len(), len, out);
            return Some(index);
        }
        self.release(out);
        None
    }

    /// A stop string was found; `len` bytes of it are shown and end at `end`.
    fn end(&mut self, end: usize, len: usize, out: &mut String) {
        out.push_str(&self.held[..if self.include_in_output { end } else { end - len }]);
        self.held.clear();
    }

    /// Passes on what cannot be the beginning of a stop string.
    fn release(&mut self, out: &mut String) {
        let hold = self.stops.iter_mut().map(Stop::held).max().unwrap_or(0);
        let decided = self.held.len() - hold;
        out.push_str(&self.held[..decided]);
        self.held.drain(..decided);
    }

    /// Releases what was held back: the text has ended without a match.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Whether what ends a completion is shown.
    #[must_use]
    pub fn include_in_output(&self) -> bool {
        self.include_in_output
    }

    /// The stop string of an index.
    #[must_use]
    pub fn text(&self, index: usize) -> &str {
        std::str::from_utf8(&self.stops[index].text).expect("stop strings are UTF-8")
    }
}

impl Stop {
    fn new(text: Vec<u8>) -> Self {
        let mut borders = vec![0; text.len()];
        let mut border = 0;
        for at in 1..text.len() {
            while border > 0 && text[at] != text[border] {
                border = borders[border - 1];
            }
            border += usize::from(text[at] == text[border]);
            borders[at] = border;
        }
        Self { text, borders, matched: 0, fed: 0, hidden: Vec::new() }
    }

    /// Takes a byte; says whether the whole string was found.
    fn advance(&mut self, byte: u8) -> bool {
        self.fed += 1;
        self.let_pass();
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }

    /// Goes on after a match that did not count.
    fn let_pass(&mut self) {
        if self.matched == self.text.len() {
            self.matched = self.borders[self.matched - 1];
        }
    }

    /// How many bytes of the text shown may be the beginning of a match.
    fn held(&mut self) -> usize {
        self.let_pass();
        self.shown()
    }

    /// How many bytes are shown of what the text seen so far ends with.
    fn shown(&mut self) -> usize {
        if self.hidden.is_empty() {
            return self.matched;
        }
        let start = self.fed - self.matched;
        self.hidden.retain(|hidden| hidden.end > start);
        let hidden = self.hidden.iter().map(|hidden| hidden.end - hidden.start.max(start));
        self.matched - hidden.sum::<usize>()
    }
}
