//! Strings that end a completion.

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
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                let len = stop.text.len();
                if stop.advance(byte) && found.is_none_or(|(_, other)| len > other) {
                    found = Some((index, len));
                }
            }
            if let Some((index, len)) = found {
                let end = before + at + 1;
                let start = end - len;
                out.push_str(&self.held[..if self.include_in_output { end } else { start }]);
                self.held.clear();
                return Some(index);
            }
        }
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let decided = self.held.len() - hold;
        out.push_str(&self.held[..decided]);
        self.held.drain(..decided);
        None
    }

    /// Releases what was held back: the text has ended without a match.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
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
        Self { text, borders, matched: 0 }
    }

    /// Takes a byte; says whether the whole string was found.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}
