//! Values that are not written as JSON, turned into it as they come: Python's literals
//! and Gemma 4's, where `<|"|>` stands around strings and keys are bare.

use super::{
    json::{JsonScanner, Progress, escape, is_space},
    markers::Markers,
    sink::{Broken, MAX_DEPTH, MAX_NAME},
};

/// Whose values they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Python,
    Gemma,
}

/// What stands around Gemma 4's strings.
pub(super) const GEMMA_QUOTE: &str = "<|\"|>";

/// Turns a value, or a call's keyword arguments, into JSON.
pub(super) struct Literal {
    dialect: Dialect,
    state: State,
    open: Vec<Container>,
    /// A comma is due before the next element.
    comma: bool,
    /// Whether the string is a key.
    is_key: bool,
    /// A bare key, a number or a word; the digits of an escape.
    token: String,
    gemma_quote: Markers,
}

/// What is open, by how it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    /// Keyword arguments; whether their brace is written.
    Call {
        written: bool,
    },
    Object,
    List,
    Tuple,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    KeyOrEnd,
    BareKey,
    Separator,
    Value,
    ValueOrEnd,
    After,
    Word,
    /// The beginning of Gemma's quotation mark.
    GemmaOpen(usize),
    GemmaString,
    /// After one quotation mark, and after two.
    Quote(char),
    TwoQuotes(char),
    String(char),
    /// A string in three quotation marks, of which so many have come.
    Long(char, u8),
    Escape(Quotes),
    Digits(Quotes, u8),
}

/// The string that an escape is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    One(char),
    Three(char),
}

impl Quotes {
    fn string(self) -> State {
        match self {
            Self::One(quote) => State::String(quote),
            Self::Three(quote) => State::Long(quote, 0),
        }
    }
}

impl Literal {
    /// A call's arguments, whose opening bracket was read. They are written as an object,
    /// of which nothing is written before the first key is known or the end.
    pub(super) fn arguments(dialect: Dialect) -> Self {
        Self {
            dialect,
            state: State::KeyOrEnd,
            open: vec![Container::Call { written: false }],
            comma: false,
            is_key: false,
            token: String::new(),
            gemma_quote: Markers::new([GEMMA_QUOTE]),
        }
    }

    /// The JSON of a whole Python value.
    pub(super) fn python(text: &str) -> Option<String> {
        let mut literal = Self::arguments(Dialect::Python);
        (literal.state, literal.open) = (State::Value, Vec::new());
        let (mut out, mut progress) = (String::new(), Progress::More);
        for c in text.trim().chars() {
            if progress == Progress::Done {
                return None;
            }
            progress = literal.push(c, &mut out).ok()?;
        }
        (progress == Progress::Done).then_some(out)
    }

    /// Takes a character and appends to `out` what is decided.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Result<Progress, Broken> {
        match self.state {
            State::Word if is_word(c) => {
                self.token.push(c);
                let fits = self.token.len() <= MAX_NAME;
                return if fits { Ok(Progress::More) } else { Err(Broken::Cap) };
            }
            State::Word => {
                out.push_str(&self.word()?);
                self.state = State::After;
                if self.open.is_empty() {
                    return Ok(Progress::DoneBefore);
                }
            }
            State::TwoQuotes(quote) if c == quote => {
                self.state = State::Long(quote, 0);
                return Ok(Progress::More);
            }
            State::TwoQuotes(_) => self.end_string(out),
            _ => {}
        }
        match self.state {
            State::GemmaOpen(_)
            | State::GemmaString
            | State::Quote(_)
            | State::String(_)
            | State::Long(..)
            | State::Escape(_)
            | State::Digits(..) => self.string(c, out)?,
            _ if is_space(c) && self.state != State::BareKey => {}
            State::KeyOrEnd | State::BareKey | State::Separator => self.key(c, out)?,
            State::Value => self.value(c, out)?,
            State::ValueOrEnd if c == ']' || c == ')' => self.close(c, out)?,
            State::ValueOrEnd => self.value(c, out)?,
            State::After if c == ',' => {
                self.comma = true;
                self.state = match self.open.last() {
                    Some(Container::Call { .. } | Container::Object) => State::KeyOrEnd,
                    _ => State::ValueOrEnd,
                };
            }
            State::After => self.close(c, out)?,
            State::Word | State::TwoQuotes(_) => unreachable!("these were left above"),
        }
        let done = self.open.is_empty() && self.state == State::After;
        Ok(if done { Progress::Done } else { Progress::More })
    }

    /// Appends what is held of a string or a number: the text has ended.
    pub(super) fn finish(&mut self, out: &mut String) {
        match self.state {
            State::GemmaString => {
                let mut held = String::new();
                self.gemma_quote.finish(&mut held);
                held.chars().for_each(|c| escape(c, out));
            }
            State::Word if JsonScanner::is_number(&self.token) => out.push_str(&self.token),
            _ => {}
        }
    }

    fn key(&mut self, c: char, out: &mut String) -> Result<(), Broken> {
        let in_call = matches!(self.open.last(), Some(Container::Call { .. }));
        let bare = in_call || self.dialect == Dialect::Gemma;
        let separator = if in_call && self.dialect == Dialect::Python { '=' } else { ':' };
        match self.state {
            State::KeyOrEnd if c == '}' || c == ')' => return self.close(c, out),
            State::KeyOrEnd if bare && is_key(c) => {
                self.token = c.into();
                self.state = State::BareKey;
            }
            State::KeyOrEnd if !in_call || self.dialect == Dialect::Gemma => {
                self.is_key = true;
                return self.begin_string(c, out);
            }
            State::BareKey if is_key(c) => {
                self.token.push(c);
                if self.token.len() > MAX_NAME {
                    return Err(Broken::Cap);
                }
            }
            State::BareKey | State::Separator if c == separator => {
                let key = std::mem::take(&mut self.token);
                if !key.is_empty() {
                    self.begin_element(out);
                    out.push('"');
                    key.chars().for_each(|c| escape(c, out));
                    out.push('"');
                }
                out.push(':');
                self.state = State::Value;
            }
            State::BareKey if is_space(c) => self.state = State::Separator,
            _ => return Err(Broken::Syntax),
        }
        Ok(())
    }

    fn value(&mut self, c: char, out: &mut String) -> Result<(), Broken> {
        let container = match c {
            '[' => Container::List,
            '{' => Container::Object,
            '(' if self.dialect == Dialect::Python => Container::Tuple,
            _ if is_word(c) => {
                self.begin_element(out);
                self.token = c.into();
                self.state = State::Word;
                return Ok(());
            }
            _ => {
                self.is_key = false;
                return self.begin_string(c, out);
            }
        };
        // The arguments' own object counts.
        if self.open.len() >= MAX_DEPTH as usize {
            return Err(Broken::Cap);
        }
        self.begin_element(out);
        self.open.push(container);
        out.push(if c == '{' { '{' } else { '[' });
        self.state = if c == '{' { State::KeyOrEnd } else { State::ValueOrEnd };
        Ok(())
    }

    /// Writes what is due before a key or a value.
    fn begin_element(&mut self, out: &mut String) {
        if let Some(Container::Call { written }) = self.open.last_mut()
            && !*written
        {
            *written = true;
            out.push('{');
        }
        if std::mem::take(&mut self.comma) {
            out.push(',');
        }
    }

    fn close(&mut self, c: char, out: &mut String) -> Result<(), Broken> {
        let container = self.open.last().copied().ok_or(Broken::Syntax)?;
        let end = match container {
            Container::Call { .. } if self.dialect == Dialect::Python => ')',
            Container::Call { .. } | Container::Object => '}',
            Container::List => ']',
            Container::Tuple => ')',
        };
        if c != end {
            return Err(Broken::Syntax);
        }
        self.comma = false;
        if matches!(container, Container::Call { .. }) {
            self.begin_element(out);
        }
        let is_object = matches!(container, Container::Call { .. } | Container::Object);
        out.push(if is_object { '}' } else { ']' });
        self.open.pop();
        self.state = State::After;
        Ok(())
    }

    /// A word or a number, as JSON.
    fn word(&self) -> Result<String, Broken> {
        let word = self.token.as_str();
        match word {
            "True" | "true" => return Ok("true".to_owned()),
            "False" | "false" => return Ok("false".to_owned()),
            "None" | "null" | "none" => return Ok("null".to_owned()),
            _ => {}
        }
        let number = json_number(word);
        if JsonScanner::is_number(&number) {
            return Ok(number);
        }
        match self.dialect {
            Dialect::Python => Err(Broken::Syntax),
            Dialect::Gemma => Ok(super::json::quote(word)),
        }
    }

    fn begin_string(&mut self, c: char, out: &mut String) -> Result<(), Broken> {
        self.state = match (self.dialect, c) {
            (Dialect::Python, '"' | '\'') | (Dialect::Gemma, '"') => State::Quote(c),
            (Dialect::Gemma, '<') => State::GemmaOpen(1),
            _ => return Err(Broken::Syntax),
        };
        self.token.clear();
        self.begin_element(out);
        out.push('"');
        Ok(())
    }

    fn end_string(&mut self, out: &mut String) {
        out.push('"');
        self.state = if self.is_key { State::Separator } else { State::After };
    }

    fn string(&mut self, c: char, out: &mut String) -> Result<(), Broken> {
        match self.state {
            State::GemmaOpen(read) => {
                if !GEMMA_QUOTE[read..].starts_with(c) {
                    return Err(Broken::Syntax);
                }
                self.state = if read + 1 == GEMMA_QUOTE.len() {
                    State::GemmaString
                } else {
                    State::GemmaOpen(read + 1)
                };
            }
            State::GemmaString => {
                let mut decided = String::new();
                let ended = self.gemma_quote.push(c, &mut decided).is_some();
                decided.chars().for_each(|c| escape(c, out));
                if ended {
                    self.end_string(out);
                }
            }
            State::Quote(quote) if c == quote => match self.dialect {
                Dialect::Python => self.state = State::TwoQuotes(quote),
                Dialect::Gemma => self.end_string(out),
            },
            State::Quote(quote) | State::String(quote) => {
                self.state = match c {
                    '\\' => State::Escape(Quotes::One(quote)),
                    _ if c == quote => {
                        self.end_string(out);
                        return Ok(());
                    }
                    '\n' if self.dialect == Dialect::Python => return Err(Broken::Syntax),
                    _ => {
                        escape(c, out);
                        State::String(quote)
                    }
                };
            }
            State::Long(quote, 2) if c == quote => self.end_string(out),
            State::Long(quote, quotes) if c == quote => self.state = State::Long(quote, quotes + 1),
            State::Long(quote, quotes) => {
                (0..quotes).for_each(|_| escape(quote, out));
                self.state = State::Long(quote, 0);
                match c {
                    '\\' => self.state = State::Escape(Quotes::Three(quote)),
                    _ => escape(c, out),
                }
            }
            State::Escape(quotes) => self.escaped(quotes, c, out),
            State::Digits(quotes, left) => return self.digit(quotes, left, c, out),
            _ => unreachable!("only strings come here"),
        }
        Ok(())
    }

    /// The character after a backslash.
    fn escaped(&mut self, quotes: Quotes, c: char, out: &mut String) {
        self.token.clear();
        self.state = match c {
            'x' => State::Digits(quotes, 2),
            'u' => State::Digits(quotes, 4),
            'U' => State::Digits(quotes, 8),
            _ => quotes.string(),
        };
        match c {
            'x' | 'u' | 'U' | '\n' => {}
            'n' => escape('\n', out),
            'r' => escape('\r', out),
            't' => escape('\t', out),
            'a' => escape('\x07', out),
            'b' => escape('\x08', out),
            'f' => escape('\x0c', out),
            'v' => escape('\x0b', out),
            '0' => escape('\0', out),
            '\\' | '\'' | '"' => escape(c, out),
            // What is no escape stands for itself.
            _ => {
                escape('\\', out);
                escape(c, out);
            }
        }
    }

    fn digit(&mut self, quotes: Quotes, left: u8, c: char, out: &mut String) -> Result<(), Broken> {
        if !c.is_ascii_hexdigit() {
            return Err(Broken::Syntax);
        }
        self.token.push(c);
        self.state = State::Digits(quotes, left - 1);
        if left == 1 {
            let code = u32::from_str_radix(&self.token, 16).map_err(|_| Broken::Syntax)?;
            match char::from_u32(code) {
                Some(c) => escape(c, out),
                // Half of a pair: JSON writes those too.
                None if code < 0x1_0000 => {
                    out.push_str("\\u");
                    out.push_str(&self.token);
                }
                None => return Err(Broken::Syntax),
            }
            self.token.clear();
            self.state = quotes.string();
        }
        Ok(())
    }
}

/// Python's other ways to write a number, as JSON's.
fn json_number(word: &str) -> String {
    let word = word.strip_prefix('+').unwrap_or(word);
    let (sign, digits) = word.strip_prefix('-').map_or(("", word), |digits| ("-", digits));
    let digits = match digits.strip_prefix('.') {
        Some(fraction) => format!("0.{fraction}"),
        None => digits.to_owned(),
    };
    let digits = match digits.find('.') {
        Some(point) if !digits[point + 1..].starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{}.0{}", &digits[..point], &digits[point + 1..])
        }
        _ => digits,
    };
    let between_digits = |text: &str| !text.starts_with('_') && !text.ends_with('_');
    if between_digits(&digits) {
        format!("{sign}{}", digits.replace('_', ""))
    } else {
        format!("{sign}{digits}")
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '+' | '-' | '.')
}

fn is_key(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$')
}
