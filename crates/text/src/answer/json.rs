//! One JSON value, checked character by character.

use std::fmt::Write as _;

use super::sink::{Broken, MAX_DEPTH, Sink};

/// How far a value has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on.
    More,
    /// The character was its last.
    Done,
    /// It had ended before the character (a number), which is not taken.
    DoneBefore,
}

/// Checks a value by the grammar of RFC 8259 and copies it. White space before it is
/// left out. One thing is repaired: a control character in a string, which models
/// write (line breaks in code), is copied as its escape.
#[derive(Default)]
pub(super) struct JsonScanner {
    state: State,
    /// The open containers, the innermost in the lowest bit: whether it is an object.
    objects: u128,
    depth: u32,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    AfterValue,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    Hex {
        is_key: bool,
        left: u8,
    },
    Word(&'static str),
    Number(Number),
}

/// What a number has so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl JsonScanner {
    /// Takes a character and appends what it adds to `out`.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Result<Progress, Broken> {
        if let State::Number(number) = self.state {
            if let Some(next) = number.next(c) {
                self.state = State::Number(next);
                out.push(c);
                return Ok(Progress::More);
            }
            if !number.may_end() {
                return Err(Broken::Syntax);
            }
            if self.depth == 0 {
                return Ok(Progress::DoneBefore);
            }
            self.state = State::AfterValue;
        }
        if is_space(c) && !matches!(self.state, State::String { .. }) {
            if matches!(self.state, State::Escape { .. } | State::Hex { .. } | State::Word(_)) {
                return Err(Broken::Syntax);
            }
            if self.depth > 0 {
                out.push(c);
            }
            return Ok(Progress::More);
        }
        let ended = self.step(c)?;
        match (self.state, c) {
            (State::String { .. }, '\0'..='\x1f') => escape(c, out),
            _ => out.push(c),
        }
        if !ended {
            return Ok(Progress::More);
        }
        self.state = State::AfterValue;
        Ok(if self.depth == 0 { Progress::Done } else { Progress::More })
    }

    /// Says whether the character ends a value.
    fn step(&mut self, c: char) -> Result<bool, Broken> {
        match (self.state, c) {
            (State::ValueOrEnd, ']') => return self.close(false),
            (State::Value | State::ValueOrEnd, _) => return self.begin(c),
            (State::KeyOrEnd, '}') => return self.close(true),
            (State::Key | State::KeyOrEnd, '"') => self.state = State::String { is_key: true },
            (State::Colon, ':') => self.state = State::Value,
            (State::AfterValue, ',') => {
                self.state = if self.objects & 1 == 1 { State::Key } else { State::Value };
            }
            (State::AfterValue, '}') => return self.close(true),
            (State::AfterValue, ']') => return self.close(false),
            (State::String { is_key: true }, '"') => self.state = State::Colon,
            (State::String { is_key: false }, '"') => return Ok(true),
            (State::String { is_key }, '\\') => self.state = State::Escape { is_key },
            (State::String { .. }, _) => {}
            (State::Escape { is_key }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                self.state = State::String { is_key };
            }
            (State::Escape { is_key }, 'u') => self.state = State::Hex { is_key, left: 4 },
            (State::Hex { is_key, left }, '0'..='9' | 'a'..='f' | 'A'..='F') => {
                self.state = match left {
                    1 => State::String { is_key },
                    _ => State::Hex { is_key, left: left - 1 },
                };
            }
            (State::Word(rest), _) => match rest.strip_prefix(c) {
                Some("") => return Ok(true),
                Some(rest) => self.state = State::Word(rest),
                None => return Err(Broken::Syntax),
            },
            _ => return Err(Broken::Syntax),
        }
        Ok(false)
    }

    fn begin(&mut self, c: char) -> Result<bool, Broken> {
        self.state = match c {
            '{' | '[' if self.depth == MAX_DEPTH => return Err(Broken::Cap),
            '{' | '[' => {
                self.depth += 1;
                self.objects = self.objects << 1 | u128::from(c == '{');
                if c == '{' { State::KeyOrEnd } else { State::ValueOrEnd }
            }
            '"' => State::String { is_key: false },
            't' => State::Word("rue"),
            'f' => State::Word("alse"),
            'n' => State::Word("ull"),
            '-' => State::Number(Number::Minus),
            '0' => State::Number(Number::Zero),
            '1'..='9' => State::Number(Number::Digits),
            _ => return Err(Broken::Syntax),
        };
        Ok(false)
    }

    fn close(&mut self, object: bool) -> Result<bool, Broken> {
        if self.depth == 0 || (self.objects & 1 == 1) != object {
            return Err(Broken::Syntax);
        }
        self.depth -= 1;
        self.objects >>= 1;
        Ok(true)
    }

    /// Whether a text is one JSON number.
    pub(super) fn is_number(text: &str) -> bool {
        let (mut scanner, mut copy) = (Self::default(), String::new());
        text.chars().all(|c| scanner.push(c, &mut copy) == Ok(Progress::More))
            && matches!(scanner.state, State::Number(number) if number.may_end())
    }
}

impl Number {
    fn next(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus, '1'..='9') | (Self::Digits, '0'..='9') => Self::Digits,
            (Self::Zero | Self::Digits, '.') => Self::Point,
            (Self::Point | Self::Fraction, '0'..='9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, 'e' | 'E') => Self::Exponent,
            (Self::Exponent, '+' | '-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, '0'..='9') => {
                Self::ExponentDigits
            }
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::ExponentDigits)
    }
}

/// A call's arguments, sent as they come. `null` stands for none and is not sent.
#[derive(Default)]
pub(super) struct Arguments {
    json: JsonScanner,
    text: String,
    is_null: bool,
}

impl Arguments {
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Progress, Broken> {
        let is_first = self.is_empty();
        let progress = self.json.push(c, &mut self.text)?;
        self.is_null |= is_first && c == 'n';
        if !self.is_null {
            sink.arguments(&self.text)?;
            self.text.clear();
        }
        Ok(progress)
    }

    /// Whether nothing but white space has come.
    pub(super) fn is_empty(&self) -> bool {
        self.json.depth == 0 && matches!(self.json.state, State::Value)
    }
}

pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Appends a character as it is written in a JSON string.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..='\x1f' => write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes it"),
        _ => out.push(c),
    }
}

/// A text as a JSON string.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    text.chars().for_each(|c| escape(c, &mut quoted));
    quoted.push('"');
    quoted
}
