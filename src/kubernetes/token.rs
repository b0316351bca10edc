//! Tokens of agents, which are derived from a secret key.

use std::fmt;

use ring::hmac;

use crate::engine::{hex, sha256_hex};
use crate::error::{Error, Result};

/// Minimum length of a key, in bytes.
const MIN_KEY: usize = 16;

/// The secret that the tokens of all agents are derived from.
#[derive(Clone)]
pub(super) struct Key(hmac::Key);

impl Key {
    /// Checks a key, and removes space around it, such as the newline at the end of a file.
    pub(super) fn new(bytes: &[u8]) -> Result<Key> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < MIN_KEY {
            let length = bytes.len();
            return Err(Error::invalid(format!(
                "the key for tokens has {length} bytes, the minimum is {MIN_KEY}: use for example `openssl rand -hex 32`"
            )));
        }
        Ok(Key(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// Returns the token of the agent in a pod.
    pub(super) fn token(&self, namespace: &str, pod: &str, nonce: &str) -> Token {
        // NUL is in none of the parts.
        let text = format!("noxrunner agent\0{namespace}\0{pod}\0{nonce}");
        let tag = hmac::sign(&self.0, text.as_bytes());
        Token(hex(tag.as_ref()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// The secret that an agent expects.
pub(super) struct Token(String);

impl Token {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the SHA-256 of the token, in hexadecimal digits.
    pub(super) fn hash(&self) -> String {
        sha256_hex(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn tokens_depend_on_every_part() {
        let key = Key::new(b"0123456789abcdef\n").unwrap();
        let token = key.token("ns", "pod", "1");
        let same = Key::new(b"0123456789abcdef").unwrap();
        assert_eq!(token.as_str(), same.token("ns", "pod", "1").as_str());
        let other = Key::new(b"0123456789abcdeg").unwrap();
        for changed in [
            other.token("ns", "pod", "1"),
            key.token("n", "pod", "1"),
            key.token("ns", "po", "1"),
            key.token("ns", "pod", "2"),
        ] {
            assert_ne!(changed.as_str(), token.as_str());
        }
        assert_eq!((token.as_str().len(), token.hash().len()), (64, 64));
        assert_eq!(format!("{key:?}"), "Key(…)");
    }

    #[test]
    fn short_keys_are_refused() {
        let error = Key::new(b"short \n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("5 bytes"), "{error}");
    }
}
