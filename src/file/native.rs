//! The native layout: what a quantized tensor becomes in a safetensors file, and back.
//!
//! A tensor `T` is stored as `T`, its codes in its own shape, and `T.scale`, one f32 per range unit. The
//! metadata's key `wgpu_quant` says what every quantized tensor was, so that a file describes itself:
//! `{"version":1,"digest":"<64 hex digits>","tensors":{"T":{"scheme","granularity","shape","dtype","digest"}}}`.
//! [`Digest`] defines the digests; files of before they were written lack them.

use super::{Digest, Dtype, Input, invalid, json, le_bytes};
use crate::error::Result;
use crate::layout::{Granularity, RangeUnits};
use crate::quantized::Quantized;
use crate::scheme::Scheme;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// The metadata's key.
pub const METADATA_KEY: &str = "wgpu_quant";
const VERSION: u32 = 1;

/// What a quantized tensor was, and how it was quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The scheme.
    pub scheme: Scheme,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The type before.
    pub dtype: Dtype,
    /// The digest of what it became, if the file says it.
    pub digest: Option<Digest>,
}

/// What a file says about its quantized tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The tensors, by name.
    pub tensors: BTreeMap<String, Source>,
    /// The digest of all of them, if the file says it.
    pub digest: Option<Digest>,
}

/// The metadata's JSON; the order of the fields is the order in the file.
#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    tensors: BTreeMap<String, Described>,
}

#[derive(Serialize, Deserialize)]
struct Described {
    scheme: String,
    granularity: String,
    shape: Vec<usize>,
    dtype: Dtype,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

fn scale_name(name: &str) -> String {
    format!("{name}.scale")
}

/// The tensors (name, type, shape) that a quantized tensor is stored as: codes, then scales.
///
/// # Errors
/// Those of [`RangeUnits::new`].
pub fn parts(name: &str, source: &Source) -> Result<[(String, Dtype, Vec<usize>); 2]> {
    let scale_shape = match source.granularity {
        Granularity::Tensor => vec![],
        _ => vec![RangeUnits::new(&source.shape, source.granularity)?.units],
    };
    Ok([(name.to_owned(), Dtype::I8, source.shape.clone()), (scale_name(name), Dtype::F32, scale_shape)])
}

/// The bytes that [`parts`] are stored as.
pub fn part_bytes(q: &Quantized) -> [Cow<'_, [u8]>; 2] {
    [Cow::Borrowed(q.codes()), le_bytes(q.scales())]
}

impl Sources {
    /// The metadata's value.
    ///
    /// # Errors
    /// What JSON cannot hold; there is no such name at present.
    pub fn to_json(&self) -> Result<String, String> {
        let described = |source: &Source| Described {
            scheme: source.scheme.to_string(),
            granularity: source.granularity.to_string(),
            shape: source.shape.clone(),
            dtype: source.dtype,
            digest: source.digest,
        };
        let tensors = self.tensors.iter().map(|(name, source)| (name.clone(), described(source))).collect();
        let description = Description { version: VERSION, digest: self.digest, tensors };
        serde_json::to_string(&description).map_err(|e| e.to_string())
    }

    /// What a file says about its quantized tensors, checked against the tensors that it holds; `None` when it
    /// says nothing.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when it says what this version cannot read, or what is not so.
    pub fn read(input: &Input) -> Result<Option<Self>> {
        let Some(text) = input.metadata().get(METADATA_KEY) else { return Ok(None) };
        let refuse = |message: String| invalid(input.path(), format!("metadata {METADATA_KEY:?}: {message}"));
        json::check(text).map_err(|e| refuse(e.to_string()))?;
        let description: Description = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        if description.version != VERSION {
            return Err(refuse(format!("version {}; this program reads version {VERSION}", description.version)));
        }
        let mut sources = Self { tensors: BTreeMap::new(), digest: description.digest };
        for (name, described) in description.tensors {
            let refuse = |message: String| refuse(format!("tensor {name:?}: {message}"));
            let source = Source {
                scheme: described.scheme.parse().map_err(|e: crate::Error| refuse(e.to_string()))?,
                granularity: described.granularity.parse().map_err(|e: crate::Error| refuse(e.to_string()))?,
                shape: described.shape,
                dtype: described.dtype,
                digest: described.digest,
            };
            for (part, dtype, shape) in parts(&name, &source).map_err(|e| refuse(e.to_string()))? {
                match input.tensor(&part) {
                    Some(view) if view.dtype == dtype && view.shape == shape => {}
                    Some(view) => {
                        let (found_dtype, found_shape) = (view.dtype, view.shape);
                        return Err(refuse(format!(
                            "{part:?} is {found_dtype} {found_shape:?}, expected {dtype} {shape:?}"
                        )));
                    }
                    None => return Err(refuse(format!("the file holds no {part:?}"))),
                }
            }
            sources.tensors.insert(name, source);
        }
        match sources.tensors.keys().find(|name| sources.tensors.contains_key(&scale_name(name))) {
            Some(name) => Err(refuse(format!("{:?} is a tensor and the scale of another", scale_name(name)))),
            None => Ok(Some(sources)),
        }
    }

    /// The same of a file that must hold quantized tensors.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`Error::File`](crate::Error::File) when the file says nothing.
    pub fn expect(input: &Input) -> Result<Self> {
        let missing = || invalid(input.path(), format!("is not quantized: it has no metadata {METADATA_KEY:?}"));
        Self::read(input)?.ok_or_else(missing)
    }

    /// The bytes that a quantized tensor takes beside its codes.
    pub fn companion_bytes(&self, input: &Input, name: &str) -> u64 {
        self.stored(input, name).map_or(0, |[_, scales]| scales.len() as u64)
    }

    /// The names of the tensors that hold scales and not data of their own.
    pub fn companions(&self) -> HashSet<String> {
        self.tensors.keys().map(|name| scale_name(name)).collect()
    }

    /// The bytes of a quantized tensor's [`parts`], whatever they are; `None` when the file has none of this name.
    pub fn stored<'a>(&self, input: &'a Input, name: &str) -> Option<[&'a [u8]; 2]> {
        self.tensors.get(name)?;
        Some([input.tensor(name)?.bytes, input.tensor(&scale_name(name))?.bytes])
    }

    /// Reads a quantized tensor; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when its scales are not positive and finite.
    pub fn load(&self, input: &Input, name: &str) -> Result<Option<Quantized>> {
        let Some(source) = self.tensors.get(name) else { return Ok(None) };
        let (Some(codes), Some(scales)) = (input.tensor(name), input.tensor(&scale_name(name))) else {
            return Ok(None);
        };
        let codes = codes.bytes.to_vec();
        let scales = scales.to_f32().unwrap_or_default().into_owned();
        Quantized::from_parts(source.scheme, source.granularity, source.shape.clone(), codes, scales)
            .map(Some)
            .map_err(|e| invalid(input.path(), format!("tensor {name:?}: {e}")))
    }
}
