//! SHA-256 digests of what a file holds quantized, so that two files, or two devices, are compared by one line.

use crate::error::{Error, Result};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

const BYTES: usize = 32;

/// A SHA-256 digest; its text is 64 hex digits in lower case.
///
/// - Of a quantized tensor: over its stored bytes, the codes, then the scales and then the zero points, as far as
///   there are any. Whoever cuts these out of a file gets it from `sha256sum`.
/// - Of a file: over the SHA-256 of the name (UTF-8) and the tensor's digest, 32 bytes each, for each quantized
///   tensor in the byte order of the names. Other tensors, and the metadata, have no part in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; BYTES]);

impl Digest {
    /// What stands in a header until the digest is known.
    pub const PLACEHOLDER: Self = Self([0; BYTES]);

    /// A quantized tensor's, from the bytes of its parts in the order of [`parts`](super::parts).
    pub fn of_tensor(parts: &[impl AsRef<[u8]>]) -> Self {
        let mut digester = Digester::default();
        for part in parts {
            digester.update(part.as_ref());
        }
        digester.finish()
    }

    /// A file's, from its quantized tensors' names and digests, in any order.
    pub fn of_file<'a>(tensors: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let mut hash = Sha256::new();
        // Names are hashed too, so that all entries are of one width and no two lists give the same bytes.
        for (name, digest) in tensors.into_iter().collect::<BTreeMap<_, _>>() {
            hash.update(Sha256::digest(name));
            hash.update(digest.0);
        }
        Self(hash.finalize().into())
    }
}

/// A quantized tensor's digest in the making, from its bytes as they come: those of [`Digest::of_tensor`], in order.
#[derive(Clone, Debug, Default)]
pub struct Digester(Sha256);

impl Digester {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidDigest`] of anything but 64 hex digits in lower case: a digest has one text.
    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::InvalidDigest { found: text.to_owned() };
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(refused()),
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(refused()) };
        let bytes = pairs.iter().map(|&[high, low]| Ok(digit(high)? << 4 | digit(low)?)).collect::<Result<Vec<_>>>()?;
        bytes.try_into().map(Self).map_err(|_| refused())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The constants are from Python's hashlib.
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const TENSOR: &str = "40f5c07a6db65023ca9c521a6d37e4bec9f259ac30acb54ced172e858367f8cd";

    #[test]
    fn a_tensors_digest_is_that_of_its_parts_in_one() {
        let (codes, scale) = ([129u8, 192, 0, 64, 127], 0x3da0_a0a1u32.to_le_bytes());
        assert_eq!(Digest::of_tensor(&[&codes[..], &scale]).to_string(), TENSOR);
        assert_eq!(Digest::of_tensor(&[[&codes[..], &scale].concat()]).to_string(), TENSOR);
        assert_eq!(Digest::of_tensor(&[[]; 2]).to_string(), EMPTY);
    }

    #[test]
    fn a_files_digest_goes_by_the_byte_order_of_the_names() {
        let (tensor, empty) = (TENSOR.parse().unwrap(), EMPTY.parse().unwrap());
        let of = |tensors: &[(&str, Digest)]| Digest::of_file(tensors.iter().copied()).to_string();
        assert_eq!(of(&[]), EMPTY);
        assert_eq!(of(&[("x", tensor)]), "15e12cd556bc4839f1e1a46cabc68734807705153b584c71a735ec37ff87667a");
        let three = "60046d155e548c57dc1fcafeb1d9610c3c248719b9656aec155f49c684b8f4d9";
        assert_eq!(of(&[("a", empty), ("b", tensor), ("\u{e9}", tensor)]), three);
        assert_eq!(of(&[("\u{e9}", tensor), ("b", tensor), ("a", empty)]), three);
        let capital_first = "c1daf5a339fde983dd8b093b8c9b01d46db5b3b3dc2e85caaf4771b493e83d00";
        assert_eq!(of(&[("a", tensor), ("B", empty)]), capital_first);
    }

    #[test]
    fn a_digest_has_one_text() {
        assert_eq!(TENSOR.parse::<Digest>().unwrap().to_string(), TENSOR);
        assert_eq!(Digest::PLACEHOLDER.to_string(), "0".repeat(64));
        let (upper, signed) = (TENSOR.to_uppercase(), format!("+{}", &TENSOR[1..]));
        for text in ["", "40f5", &TENSOR[1..], &format!("{TENSOR}0"), &format!("{TENSOR}00"), &upper, &signed] {
            let error = text.parse::<Digest>().unwrap_err().to_string();
            assert_eq!(error, format!("digest {text:?}; 64 hex digits in lower case are allowed"));
        }
        let json = format!("\"{TENSOR}\"");
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Digest>(&json).unwrap()).unwrap(), json);
        assert!(serde_json::from_str::<Digest>("\"40F5\"").unwrap_err().to_string().contains("\"40F5\""));
    }
}
