//! Typed access to the fields of a JSON object, absent, null or given.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::ModelError;

/// An object of config.json and its name there, as errors say it.
pub(crate) struct Fields<'a> {
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(prefix: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { prefix, map }
    }

    /// A field's full name.
    pub(crate) fn path(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    /// All of them.
    pub(crate) fn entries(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// A field that is there, null included.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field)
    }

    /// A field that is there and not null.
    pub(crate) fn given(&self, field: &str) -> Option<&'a Value> {
        self.get(field).filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str, value: &Value, accepted: &str) -> ModelError {
        refuse(self.path(field), &clip(&value.to_string()), accepted.to_owned())
    }

    /// A whole number from 1 to `limit`; null is refused.
    pub(crate) fn size(
        &self,
        field: &str,
        default: usize,
        limit: usize,
    ) -> Result<usize, ModelError> {
        self.whole(field, default, 1..=limit)
    }

    /// A whole number from 0 to `limit`; null is refused.
    pub(crate) fn count(
        &self,
        field: &str,
        default: usize,
        limit: usize,
    ) -> Result<usize, ModelError> {
        self.whole(field, default, 0..=limit)
    }

    fn whole(
        &self,
        field: &str,
        default: usize,
        accepted: RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| accepted.contains(number)).ok_or_else(|| {
            let (least, most) = (accepted.start(), accepted.end());
            self.wrong(field, value, &format!("a whole number from {least} to {most}"))
        })
    }

    /// A whole number from 1 to `limit`; null is as absent.
    pub(crate) fn nullable_size(
        &self,
        field: &str,
        limit: usize,
    ) -> Result<Option<usize>, ModelError> {
        match self.given(field) {
            None => Ok(None),
            Some(_) => self.size(field, 1, limit).map(Some),
        }
    }

    /// A number; null is refused.
    pub(crate) fn number(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(field, value, "a number"))
    }

    /// A number; null is as absent.
    pub(crate) fn nullable_number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        match self.given(field) {
            None => Ok(None),
            Some(_) => self.number(field, 0.0).map(Some),
        }
    }

    /// true or false; null is refused.
    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    /// A string; null is refused.
    pub(crate) fn string<'b>(&self, field: &str, default: &'b str) -> Result<&'b str, ModelError>
    where
        'a: 'b,
    {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.wrong(field, value, "a string"))
    }

    /// A string; null is as absent.
    pub(crate) fn nullable_string(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        match self.given(field) {
            None => Ok(None),
            Some(_) => self.string(field, "").map(Some),
        }
    }

    /// A list of strings; none where it is absent or null.
    pub(crate) fn strings(&self, field: &str) -> Result<Vec<&'a str>, ModelError> {
        let Some(value) = self.given(field) else { return Ok(Vec::new()) };
        let strings = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        strings.ok_or_else(|| self.wrong(field, value, "a list of strings"))
    }

    /// A list of whole numbers below `limit`; none where it is absent or null.
    pub(crate) fn counts(&self, field: &str, limit: usize) -> Result<Vec<usize>, ModelError> {
        let Some(value) = self.given(field) else { return Ok(Vec::new()) };
        let count = |value: &Value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n < limit)
        };
        let counts = value.as_array().and_then(|list| list.iter().map(count).collect());
        let accepted = format!("a list of whole numbers below {limit}");
        counts.ok_or_else(|| self.wrong(field, value, &accepted))
    }

    /// An object with something in it; null and `{}` are as absent.
    pub(crate) fn object(
        &self,
        field: &str,
        prefix: &'static str,
    ) -> Result<Option<Self>, ModelError> {
        let Some(value) = self.given(field) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(field, value, "an object"))?;
        Ok(Some(Self::new(prefix, map)).filter(|_| !map.is_empty()))
    }
}

/// At most so much of a value that a message shows.
pub(crate) fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(80).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

pub(crate) fn positive(field: impl Into<String>, value: f64) -> Result<f64, ModelError> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(refuse(field, &value, "a number above 0".to_owned()))
}

pub(crate) fn refuse(
    field: impl Into<String>,
    value: &dyn std::fmt::Display,
    accepted: String,
) -> ModelError {
    ModelError::Config { field: field.into(), value: value.to_string(), accepted }
}
