//! A key and its token: the text that a client shows. Only a hash of the token's secret is stored.
//!
//! The secret is 32 random bytes, so that one round of SHA-256 is enough: there is nothing to guess that a slow hash
//! would have to protect, and each request pays for it.

use super::Grants;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use shared_model::time::Millis;
use std::fmt;
use subtle::ConstantTimeEq as _;

/// A stored key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// 16 hexadecimal digits, which its token begins with and by which it is named.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// SHA-256 of the token's secret.
    pub hash: [u8; 32],
    /// What it may read.
    pub grants: Grants,
    /// The most requests a second; `None`: any number.
    pub rate: Option<f64>,
    /// When it was made, ms since 1970.
    pub created: Millis,
    /// From when on it is of no use.
    pub expires: Option<Millis>,
    /// When it was revoked.
    pub revoked: Option<Millis>,
}

impl Key {
    /// Whether it may be used at a time.
    pub fn is_valid(&self, now: Millis) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }
}

/// What a client shows: `tm_<id>_<secret>`. It can't be printed but by [`Token::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The key's id.
    pub id: String,
    secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl Token {
    /// A new one.
    pub fn random() -> Token {
        let mut random = rand::rng();
        let (id, secret): ([u8; 8], [u8; 32]) = (random.random(), random.random());
        Token { id: hex(&id), secret: hex(&secret) }
    }

    /// Reads what a client shows.
    pub fn parse(text: &str) -> Option<Token> {
        let (id, secret) = text.strip_prefix("tm_")?.split_once('_')?;
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let whole = is_hex(id, 16) && is_hex(secret, 64);
        whole.then(|| Token { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// The text to show, once, to whom it is made for.
    pub fn reveal(&self) -> String {
        format!("tm_{}_{}", self.id, self.secret)
    }

    /// What is stored of the secret.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.secret)
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A hash that takes as long as a token's, and is none's.
pub(super) fn hash_of_none() -> [u8; 32] {
    hash(&"-".repeat(64))
}

/// Compares two hashes in a time that doesn't depend on where they differ.
pub(super) fn equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_not_printed() {
        let token = Token::random();
        let shown = token.reveal();
        assert_eq!(shown.len(), 3 + 16 + 1 + 64);
        assert_eq!(Token::parse(&shown), Some(token.clone()));
        assert_ne!(Token::random().hash(), token.hash());
        let printed = format!("{token:?}");
        assert!(printed.contains(&token.id) && !printed.contains(&token.secret), "{printed}");
        for wrong in [
            "",
            "tm_",
            &shown[1..],
            &shown[..83],
            &format!("{shown}0"),
            &shown.to_uppercase(),
            &shown.replace('_', "-"),
        ] {
            assert_eq!(Token::parse(wrong), None, "{wrong}");
        }
    }
}
