//! API keys and their digests.

use std::fmt;

use rand::Rng as _;
use serde::{Deserialize, Deserializer, de::Error as _};
use sha2::{Digest as _, Sha256};

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

/// The SHA-256 of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub(crate) fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
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
        Self::parse(&String::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("not a key's digest: `sha256:` and 64 hex digits"))
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
    fn keys_differ_and_do_not_show_in_debug_output() {
        let [one, other] = [ApiKey::generate(), ApiKey::generate()];
        assert_ne!(one, other);
        let digits = one.as_str().strip_prefix(KEY_PREFIX).expect("keys begin with the prefix");
        assert_eq!(digits.len(), 64);
        assert!(!format!("{one:?}").contains(digits));
    }
}
