//! The native layout: what a quantized tensor becomes in a safetensors file, and back.
//!
//! A tensor `T` is stored as
//!
//! - `T`, its codes in its own shape: I8, U8, I16, U16, of a cast F16 or BF16. 4-bit codes are U8, two to a byte, the
//!   even element in the low half; each row of the last axis begins with a byte of its own, so that the last
//!   dimension is halved, rounded up (a scalar becomes `[1]`);
//! - `T.scale`, F32, in the shape of [`RangeUnits::scale_shape`]; none of a cast;
//! - `T.zero_point`, where the scheme has one: in the scale's shape, of the codes' sign and width, 4-bit ones in a
//!   byte each.
//!
//! The metadata's key `wgpu_quant` says what every quantized tensor was, so that a file describes itself:
//! `{"version":1,"digest":"<64 hex digits>","tensors":{"T":{"scheme","granularity","shape","dtype","digest"}}}`, and
//! `"saturate":true` beside the scheme where the cast saturated. [`Digest`] defines the digests; files of before they
//! were written lack them.

use super::{Digest, Dtype, Input, invalid, json, le_bytes};
use crate::error::Result;
use crate::layout::{Granularity, RangeUnits};
use crate::quantized::{Quantized, Spec};
use crate::scheme::{CodeType, Scheme};
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
    /// Whether the cast saturated.
    pub saturate: bool,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The type before.
    pub dtype: Dtype,
    /// The digest of what it became, if the file says it.
    pub digest: Option<Digest>,
}

impl Source {
    /// What to do to quantize it again.
    pub fn spec(&self) -> Spec {
        Spec::new(self.scheme).per(self.granularity).saturate(self.saturate)
    }
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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    saturate: bool,
    granularity: String,
    shape: Vec<usize>,
    dtype: Dtype,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

/// What a tensor that stands for a quantized one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartKind {
    /// The codes, under the tensor's own name.
    Codes,
    /// One scale per range unit.
    Scale,
    /// One zero point per range unit.
    ZeroPoint,
}

impl PartKind {
    /// What is added to the tensor's name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Codes => "",
            Self::Scale => ".scale",
            Self::ZeroPoint => ".zero_point",
        }
    }

    /// The kinds that a scheme has, in the order of the digest.
    fn of(scheme: Scheme) -> impl Iterator<Item = Self> {
        let there = [(true, Self::Codes), (!scheme.is_cast(), Self::Scale), (scheme.has_zero_point(), Self::ZeroPoint)];
        there.into_iter().filter_map(|(there, kind)| there.then_some(kind))
    }
}

/// A tensor that stands for a quantized one, or for a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it holds.
    pub kind: PartKind,
    /// Its name.
    pub name: String,
    /// Its elements' type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// The tensors that a quantized tensor is stored as: codes, then scales, then zero points.
///
/// # Errors
/// Those of [`Spec::units`].
pub fn parts(name: &str, source: &Source) -> Result<Vec<Part>> {
    let Source { scheme, granularity, shape, .. } = source;
    source.spec().units(shape)?;
    let scale_shape = RangeUnits::scale_shape(shape, *granularity)?;
    let part = |kind: PartKind| {
        let (dtype, shape) = match kind {
            PartKind::Codes => (code_dtype(scheme.code()), code_shape(shape, scheme.code())),
            PartKind::Scale => (Dtype::F32, scale_shape.clone()),
            PartKind::ZeroPoint => (zero_point_dtype(scheme.code()), scale_shape.clone()),
        };
        Part { kind, name: format!("{name}{}", kind.suffix()), dtype, shape }
    };
    Ok(PartKind::of(*scheme).map(part).collect())
}

fn code_dtype(code: CodeType) -> Dtype {
    match code {
        CodeType::Int8 => Dtype::I8,
        // Packed bytes of 4-bit codes have no sign of their own.
        CodeType::Uint8 | CodeType::Int4 | CodeType::Uint4 => Dtype::U8,
        CodeType::Int16 => Dtype::I16,
        CodeType::Uint16 => Dtype::U16,
        CodeType::F16 => Dtype::F16,
        CodeType::Bf16 => Dtype::BF16,
    }
}

fn code_shape(shape: &[usize], code: CodeType) -> Vec<usize> {
    match (code.bits(), shape.split_last()) {
        (4, Some((row, outer))) => [outer, &[row.div_ceil(2)]].concat(),
        (4, None) => vec![1],
        _ => shape.to_vec(),
    }
}

fn zero_point_dtype(code: CodeType) -> Dtype {
    match code {
        CodeType::Int4 => Dtype::I8,
        code => code_dtype(code),
    }
}

/// The zero points that stored bytes hold, for codes of this type.
pub fn zero_points(code: CodeType, bytes: &[u8]) -> Vec<i32> {
    let (pairs, _) = bytes.as_chunks::<2>();
    match zero_point_dtype(code) {
        Dtype::I8 => bytes.iter().map(|z| z.cast_signed().into()).collect(),
        Dtype::I16 => pairs.iter().map(|&z| i16::from_le_bytes(z).into()).collect(),
        Dtype::U16 => pairs.iter().map(|&z| u16::from_le_bytes(z).into()).collect(),
        _ => bytes.iter().map(|&z| z.into()).collect(),
    }
}

/// The bytes of a quantized tensor's [`parts`]; none of a part that its scheme does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartBytes<'a> {
    /// The codes.
    pub codes: Cow<'a, [u8]>,
    /// The scales.
    pub scales: Cow<'a, [u8]>,
    /// The zero points.
    pub zero_points: Cow<'a, [u8]>,
}

impl<'a> PartBytes<'a> {
    /// The bytes that a quantized tensor is to be stored as.
    pub fn of(q: &'a Quantized) -> Self {
        Self { codes: Cow::Borrowed(q.codes()), ..Self::of_scales(q.scheme().code(), q.scales(), q.zero_points()) }
    }

    /// The same without codes, for codes of this type.
    pub fn of_scales(code: CodeType, scales: &'a [f32], zero_points: &[i32]) -> Self {
        // Two's complement: the low bytes of a zero point are the zero point of that width.
        let width = if code.bits() == 16 { 2 } else { 1 };
        let zero_points = zero_points.iter().flat_map(|z| z.to_le_bytes().into_iter().take(width)).collect();
        Self { codes: Cow::default(), scales: le_bytes(scales), zero_points }
    }

    /// The scales that the bytes hold.
    pub fn scale_values(&self) -> Vec<f32> {
        let (scales, _) = self.scales.as_chunks();
        scales.iter().map(|&scale| f32::from_bits(u32::from_le_bytes(scale))).collect()
    }

    /// The bytes of one part.
    pub fn part(&self, kind: PartKind) -> &[u8] {
        match kind {
            PartKind::Codes => &self.codes,
            PartKind::Scale => &self.scales,
            PartKind::ZeroPoint => &self.zero_points,
        }
    }

    /// The digest of the tensor.
    pub fn digest(&self) -> Digest {
        Digest::of_tensor(&[&self.codes, &self.scales, &self.zero_points])
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        (self.codes.len() + self.scales.len() + self.zero_points.len()) as u64
    }
}

impl Sources {
    /// The metadata's value.
    ///
    /// # Errors
    /// What JSON cannot hold; there is no such name at present.
    pub fn to_json(&self) -> Result<String, String> {
        let described = |source: &Source| Described {
            scheme: source.scheme.to_string(),
            saturate: source.saturate,
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
                saturate: described.saturate,
                shape: described.shape,
                dtype: described.dtype,
                digest: described.digest,
            };
            for Part { name: part, dtype, shape, .. } in parts(&name, &source).map_err(|e| refuse(e.to_string()))? {
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
        match sources.companions().iter().find(|name| sources.tensors.contains_key(*name)) {
            Some(name) => Err(refuse(format!("{name:?} is a tensor and a part of another"))),
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

    /// The names of the tensors that hold scales and zero points, and not data of their own.
    pub fn companions(&self) -> HashSet<String> {
        let companions = |(name, source): (&String, &Source)| {
            PartKind::of(source.scheme).skip(1).map(|kind| format!("{name}{}", kind.suffix())).collect::<Vec<_>>()
        };
        self.tensors.iter().flat_map(companions).collect()
    }

    /// The bytes of a quantized tensor, whatever they are; `None` when the file has none of this name.
    pub fn stored<'a>(&self, input: &'a Input, name: &str) -> Option<PartBytes<'a>> {
        let source = self.tensors.get(name)?;
        let mut stored = PartBytes::default();
        for kind in PartKind::of(source.scheme) {
            let bytes = Cow::Borrowed(input.tensor(&format!("{name}{}", kind.suffix()))?.bytes);
            match kind {
                PartKind::Codes => stored.codes = bytes,
                PartKind::Scale => stored.scales = bytes,
                PartKind::ZeroPoint => stored.zero_points = bytes,
            }
        }
        Some(stored)
    }

    /// Reads a quantized tensor; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when a scale is not positive and finite, or a zero point is no code.
    pub fn load(&self, input: &Input, name: &str) -> Result<Option<Quantized>> {
        let (Some(source), Some(stored)) = (self.tensors.get(name), self.stored(input, name)) else {
            return Ok(None);
        };
        let Source { scheme, granularity, shape, .. } = source;
        let scales = stored.scale_values();
        let zero_points = zero_points(scheme.code(), &stored.zero_points);
        Quantized::from_parts(*scheme, *granularity, shape.clone(), stored.codes.into_owned(), scales, zero_points)
            .map(Some)
            .map_err(|e| invalid(input.path(), format!("tensor {name:?}: {e}")))
    }
}
