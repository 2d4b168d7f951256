//! What `map`, `select` and their like give in Jinja2: a generator. It is true
//! even when it is empty, has neither length nor places, and is walked once.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::{
    Error, State, Value, filters,
    value::{Enumerator, Object, ObjectRepr, Rest, ValueOrKwargs},
};

use super::budget;

#[derive(Debug)]
pub(super) struct Generator(Mutex<Vec<Value>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Enumerator::Iter(Box::new(std::mem::take(&mut *items).into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<generator object>")
    }
}

fn generator(items: Vec<Value>) -> Value {
    budget::spend_entries(items.len());
    Value::from_object(Generator(Mutex::new(items)))
}

/// A filter's optional first argument, by position.
fn split(args: Rest<ValueOrKwargs>) -> (Option<Value>, Rest<ValueOrKwargs>) {
    let mut args = args.into_values().into_iter();
    let first = args.next();
    (first, Rest(args.map(ValueOrKwargs::from).collect()))
}

pub(super) fn map(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    if !value.is_true() {
        return Ok(generator(Vec::new()));
    }
    filters::map(state, value, args).map(generator)
}

pub(super) fn select(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let (test, args) = split(args);
    let test = test.map(|test| test.to_string().into());
    filters::select(state, value, test, args).map(generator)
}

pub(super) fn reject(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let (test, args) = split(args);
    let test = test.map(|test| test.to_string().into());
    filters::reject(state, value, test, args).map(generator)
}

pub(super) fn selectattr(
    state: &mut State<'_, '_>,
    value: Value,
    attribute: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let (test, args) = split(args);
    let test = test.map(|test| test.to_string().into());
    filters::selectattr(state, value, attribute.to_string().into(), test, args).map(generator)
}

pub(super) fn rejectattr(
    state: &mut State<'_, '_>,
    value: Value,
    attribute: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let (test, args) = split(args);
    let test = test.map(|test| test.to_string().into());
    filters::rejectattr(state, value, attribute.to_string().into(), test, args).map(generator)
}
