//! Typed access to a GGUF file's metadata.

use candle_core::quantized::gguf_file::{Content, Value};

use super::{GgufError, architecture::Architecture};

/// No size in a file may be larger; real ones are far below.
const MAX_SIZE: u64 = 1 << 24;

/// A file's metadata by key.
pub(super) struct Metadata<'a> {
    content: &'a Content,
    pub(super) architecture: &'static Architecture,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(content: &'a Content, architecture: &'static Architecture) -> Self {
        Self { content, architecture }
    }

    /// The key of what the architecture's name precedes.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn get(&self, key: &str) -> Result<&'a Value, GgufError> {
        self.content.metadata.get(key).ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    pub(super) fn string(&self, key: &str) -> Result<&'a str, GgufError> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            other => Err(refuse(key, &kind(other), "a string")),
        }
    }

    pub(super) fn optional_string(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        if self.has(key) { self.string(key).map(Some) } else { Ok(None) }
    }

    /// A whole number from 0 on.
    pub(super) fn number(&self, key: &str) -> Result<u64, GgufError> {
        let number = match self.get(key)? {
            Value::U8(n) => u64::from(*n),
            Value::U16(n) => u64::from(*n),
            Value::U32(n) => u64::from(*n),
            Value::U64(n) => *n,
            Value::I32(n) if *n >= 0 => u64::from(n.cast_unsigned()),
            Value::I64(n) if *n >= 0 => n.cast_unsigned(),
            other => return Err(refuse(key, &kind(other), "a whole number")),
        };
        if number > MAX_SIZE {
            return Err(refuse(key, &number, format!("at most {MAX_SIZE}")));
        }
        Ok(number)
    }

    /// A whole number from 1 on.
    pub(super) fn size(&self, key: &str) -> Result<usize, GgufError> {
        match self.number(key)? {
            0 => Err(refuse(key, &0, "at least 1")),
            number => Ok(usize::try_from(number).expect("bounded by MAX_SIZE")),
        }
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, GgufError> {
        if self.has(key) { self.size(key) } else { Ok(default) }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        if self.has(key) { self.number(key).map(Some) } else { Ok(None) }
    }

    pub(super) fn float(&self, key: &str) -> Result<f64, GgufError> {
        match self.get(key)? {
            // Through text: 1e-5 as f32 becomes 1e-5 as f64, not 9.99999974e-6.
            Value::F32(x) if x.is_finite() => {
                Ok(x.to_string().parse().expect("a printed float parses"))
            }
            Value::F64(x) if x.is_finite() => Ok(*x),
            other => Err(refuse(key, &kind(other), "a finite float")),
        }
    }

    pub(super) fn float_or(&self, key: &str, default: f64) -> Result<f64, GgufError> {
        if self.has(key) { self.float(key) } else { Ok(default) }
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, GgufError> {
        match self.content.metadata.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(refuse(key, &kind(other), "a boolean")),
        }
    }

    fn list(&self, key: &str) -> Result<&'a [Value], GgufError> {
        match self.get(key)? {
            Value::Array(values) => Ok(values),
            other => Err(refuse(key, &kind(other), "a list")),
        }
    }

    pub(super) fn strings(&self, key: &str) -> Result<Vec<&'a str>, GgufError> {
        let string = |value: &'a Value| match value {
            Value::String(text) => Ok(text.as_str()),
            other => {
                Err(refuse(key, &format_args!("a list with {}", kind(other)), "a list of strings"))
            }
        };
        self.list(key)?.iter().map(string).collect()
    }

    pub(super) fn floats(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        let float = |value: &Value| match value {
            Value::F32(x) if !x.is_nan() => Ok(*x),
            other => {
                Err(refuse(key, &format_args!("a list with {}", kind(other)), "a list of f32"))
            }
        };
        self.list(key)?.iter().map(float).collect()
    }

    pub(super) fn integers(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        let integer = |value: &Value| match value {
            Value::I32(n) => Ok(*n),
            Value::U32(n) => Ok(n.cast_signed()),
            other => {
                Err(refuse(key, &format_args!("a list with {}", kind(other)), "a list of integers"))
            }
        };
        self.list(key)?.iter().map(integer).collect()
    }
}

pub(super) fn refuse(
    key: &str,
    value: &dyn std::fmt::Display,
    accepted: impl Into<String>,
) -> GgufError {
    GgufError::Key { key: key.to_owned(), value: value.to_string(), accepted: accepted.into() }
}

/// A value in a few words; arrays would fill the screen.
fn kind(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        other => format!("{other:?}"),
    }
}
