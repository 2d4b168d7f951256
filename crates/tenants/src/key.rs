//! API keys and their digests.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use rand::Rng as _;
use serde::{Deserialize, Deserializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use thiserror::Error;

const KEY_PREFIX: &str = "sk-sconce-";
const DIGEST_PREFIX: &str = "sha256:";

/// A new API key. It is shown once, to whom it is for; only its digest is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key of 32 random bytes from the thread's cryptographic generator.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(format!("{KEY_PREFIX}{}", Hex(&bytes)))
    }

    /// The key itself, as a client sends it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", KeyDigest::of(&self.0))
    }
}

/// The digest of a key as `sconce.toml` lists it: `sha256:` and 64 hex digits.
///
/// A key of 256 random bits cannot be guessed, so it needs no slow hash.
#[must_use]
pub fn key_digest(key: &str) -> String {
    KeyDigest::of(key).to_string()
}

/// Why a key that was configured in plain text is not accepted. The key is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidApiKey {
    /// A key that anybody has.
    #[error("it is empty; leave it out for a server without keys")]
    Empty,
    /// A list of keys that has an empty one, or looks like it.
    #[error(
        "it has an empty element between its commas; a comma is part of a key: give several \
         keys one by one"
    )]
    EmptyElement,
    /// It cannot stand in a header.
    #[error("it has a control character, which no HTTP header can hold")]
    Control,
}

/// API keys that were configured in plain text, of which only digests are kept.
#[derive(Clone, Debug, Default)]
pub struct ApiKeys(Vec<KeyDigest>);

impl ApiKeys {
    /// Takes keys as they were configured: white space around one is left out, as it is in
    /// HTTP headers, and a key that is given twice is one key.
    ///
    /// # Errors
    /// The first key that is empty, has an empty element between commas, or that an HTTP
    /// header cannot carry.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Result<Self, InvalidApiKey> {
        let mut digests = Vec::new();
        for key in keys {
            let key = key.as_ref().trim();
            if key.is_empty() {
                return Err(InvalidApiKey::Empty);
            }
            if key.contains(',') && key.split(',').any(|element| element.trim().is_empty()) {
                return Err(InvalidApiKey::EmptyElement);
            }
            if key.chars().any(char::is_control) {
                return Err(InvalidApiKey::Control);
            }
            let digest = KeyDigest::of(key.as_bytes());
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        Ok(Self(digests))
    }

    /// Whether there is none, so that no request needs one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key is one of these, in a time that does not depend on how near it is.
    #[must_use]
    pub fn contains(&self, key: impl AsRef<[u8]>) -> bool {
        let given = KeyDigest::of(key.as_ref());
        let known = self.0.iter().map(|digest| digest.0.ct_eq(&given.0));
        known.fold(Choice::from(0), |any, same| any | same).into()
    }
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct KeyDigest([u8; 32]);

impl PartialEq for KeyDigest {
    /// In constant time, also where a map compares.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hash for KeyDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl KeyDigest {
    pub(crate) fn of(key: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(key.as_ref()).into())
    }

    /// Whether it is the digest of an empty key or of a line break alone, as from a variable
    /// that was not set: what `printf "$UNSET" | sha256sum` and `echo "$UNSET" | sha256sum` print.
    fn is_of_nothing(&self) -> bool {
        ["", "\n", "\r\n"].into_iter().any(|blank| Self::of(blank) == *self)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.strip_prefix(DIGEST_PREFIX)?.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            *byte = u8::try_from(high? << 4 | low?).expect("two hex digits are a byte");
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DIGEST_PREFIX}{}", Hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for KeyDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The value is not repeated: somebody may have written the key itself.
        let digest = Self::parse(String::deserialize(deserializer)?.trim())
            .ok_or_else(|| D::Error::custom("not a key's digest: `sha256:` and 64 hex digits"))?;
        if digest.is_of_nothing() {
            return Err(D::Error::custom("the digest of an empty key"));
        }
        Ok(digest)
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_sha256_that_others_compute() {
        // printf abc | sha256sum
        let digest =
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        assert_eq!(key_digest("abc"), digest);
        assert_eq!(KeyDigest::parse(&digest), Some(KeyDigest::of("abc")));
        assert_eq!(KeyDigest::parse(&digest[..70]), None);
        assert_eq!(KeyDigest::parse(&digest.replace("ba78", "ga78")), None);
        assert_eq!(KeyDigest::parse(&digest["sha256:".len()..]), None);
    }

    #[test]
    fn keys_in_plain_text_are_compared_whole_and_byte_by_byte() {
        let keys = ApiKeys::new([" with,comma\n", "spa\u{df}", "two words", "with,comma"]);
        let keys = keys.expect("a request can bring each of them");
        for known in ["with,comma", "spa\u{df}", "two words"] {
            assert!(keys.contains(known), "{known:?}");
        }
        for stranger in ["", "with", "comma", "with,comma\n", "spass", "spa\u{1e9e}", "two"] {
            assert!(!keys.contains(stranger), "{stranger:?}");
        }
        assert_eq!(keys.0.len(), 3, "a key that is given twice is one");
        assert!(!keys.contains(b"spa\xdf"), "Latin-1 is another spelling");
        assert!(ApiKeys::default().is_empty() && !ApiKeys::default().contains(""));
    }

    #[test]
    fn keys_that_nobody_or_everybody_has_are_refused() {
        let refused = |key: &str| ApiKeys::new(["good", key]).expect_err("it is refused");
        for empty in ["", " ", "\t\n"] {
            assert_eq!(refused(empty), InvalidApiKey::Empty);
        }
        for list in [",", "a,", ",a", "a,,b", "a, ,b"] {
            assert_eq!(refused(list), InvalidApiKey::EmptyElement, "{list:?}");
        }
        for control in ["a\nb", "a\0", "a\u{7f}b", "a\rb"] {
            assert_eq!(refused(control), InvalidApiKey::Control, "{control:?}");
        }
        assert!(!refused("se\ncret").to_string().contains("cret"), "a key is not repeated");
    }

    #[test]
    fn keys_differ_and_do_not_show_in_debug_output() {
        let [one, other] = [ApiKey::generate(), ApiKey::generate()];
        assert_ne!(one, other);
        let digits = one.as_str().strip_prefix(KEY_PREFIX).expect("keys begin with the prefix");
        assert_eq!(digits.len(), 64);
        assert!(!format!("{one:?}").contains(digits));
    }
}
