//! The values that fields of the file accept. What is refused here is reported with its
//! path, line and column.

use std::{collections::BTreeMap, fmt, marker::PhantomData, ops::RangeInclusive, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    file::{MAX_KEYS, MAX_TENANTS, TenantFields},
    key::KeyDigest,
};

/// Targets in milliseconds: up to a day.
const MAX_TARGET_MS: f64 = 86_400_000.0;
/// Prices per million tokens, in the currency.
const MAX_PRICE: f64 = 1e9;
/// Prices per device-second, in the currency: a million seconds' fits 64 bits in billionths.
const MAX_DEVICE_PRICE: f64 = 1e4;

/// A tenant's name: what can stand in a metric's label, a path and a header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TenantName(pub(crate) String);

impl<'de> Deserialize<'de> for TenantName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = name.len() <= 63
            && name.bytes().next().is_some_and(first)
            && name.bytes().all(|byte| first(byte) || b"._-".contains(&byte));
        if valid {
            return Ok(Self(name));
        }
        Err(D::Error::custom(format!(
            "{name:?} is not a tenant's name: 1 to 63 of `a`-`z`, `0`-`9`, `.`, `_` and `-`, of \
             which the first is a letter or a digit"
        )))
    }
}

/// Fields by name. As serde derives them, structs are also read from lists.
struct Named<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamedFields(PhantomData)).map(Self)
    }
}

struct NamedFields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedFields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

pub(crate) fn table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Named::deserialize(deserializer).map(|Named(fields)| fields)
}

pub(crate) fn optional_table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    table(deserializer).map(Some)
}

pub(crate) fn tenants<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<TenantName, TenantFields>, D::Error> {
    let tenants: BTreeMap<TenantName, Named<TenantFields>> = table(deserializer)?;
    at_most(tenants.len(), MAX_TENANTS, "tenants")?;
    Ok(tenants.into_iter().map(|(name, Named(fields))| (name, fields)).collect())
}

pub(crate) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<KeyDigest>, D::Error> {
    let keys = deserializer.deserialize_seq(KeyList)?;
    at_most(keys.len(), MAX_KEYS, "keys")?;
    Ok(keys)
}

/// As for a `Vec`, but what is no list is not repeated: it may be the key itself.
struct KeyList;

impl<'de> Visitor<'de> for KeyList {
    type Value = Vec<KeyDigest>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of keys' digests")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("not a list of keys' digests, as in [\"sha256:…\"]"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut keys = Vec::new();
        while let Some(key) = list.next_element()? {
            keys.push(key);
        }
        Ok(keys)
    }
}

fn at_most<E: Error>(len: usize, max: usize, what: &str) -> Result<(), E> {
    if len <= max {
        return Ok(());
    }
    Err(E::custom(format!("{len} {what} are too many, at most {max} are accepted")))
}

pub(crate) fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let valid = u32::try_from(value).ok().filter(|value| (1..=1_000_000).contains(value));
    valid.ok_or_else(|| D::Error::custom(format!("{value} is not from 1 to 1000000")))
}

/// A limit of at least 1.
pub(crate) fn limit<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: TryFrom<i64>,
    D: Deserializer<'de>,
{
    let value = i64::deserialize(deserializer)?;
    let valid = (value >= 1).then(|| T::try_from(value).ok()).flatten();
    valid.map(Some).ok_or_else(|| {
        D::Error::custom(format!("{value} is not at least 1; leave it out for no limit"))
    })
}

pub(crate) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(deserializer, 0.0..=1.0)
}

/// A target in milliseconds.
pub(crate) fn target<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let ms = number(deserializer, 0.0..=MAX_TARGET_MS)?;
    let target = Duration::from_secs_f64(ms / 1_000.0);
    if target.is_zero() {
        return Err(D::Error::custom(format!("{ms} is not above 0; leave it out for no target")));
    }
    Ok(Some(target))
}

/// A price of a million tokens; gives billionths of the currency.
pub(crate) fn price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(rounded(number(deserializer, 0.0..=MAX_PRICE)? * 1e9))
}

/// A price of a second; gives billionths of the currency for a million of them.
pub(crate) fn device_price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(rounded(number(deserializer, 0.0..=MAX_DEVICE_PRICE)? * 1e15))
}

fn rounded(value: f64) -> u64 {
    value.round() as u64
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<f64>,
) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    // A NaN is in no range.
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = range.into_inner();
    Err(D::Error::custom(format!("{value} is not a number from {min} to {max}")))
}
