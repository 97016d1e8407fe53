//! Schemes as rows of data: a code type and the named arithmetic that maps values to it.
//!
//! A new scheme of a known mapping is a new row here and nothing else: both paths, the command line, the
//! tests and the benchmarks loop over [`Scheme::ALL`].

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What a code is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodeType {
    /// -8..=7 in two's complement, two to a byte.
    Int4,
    /// 0..=15, two to a byte.
    Uint4,
    /// -128..=127.
    Int8,
    /// 0..=255.
    Uint8,
    /// -32768..=32767.
    Int16,
    /// 0..=65535.
    Uint16,
    /// IEEE binary16, its bit pattern.
    F16,
    /// bfloat16, its bit pattern.
    Bf16,
}

impl CodeType {
    /// Bits per code: 4, 8 or 16.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Int4 | Self::Uint4 => 4,
            Self::Int8 | Self::Uint8 => 8,
            Self::Int16 | Self::Uint16 | Self::F16 | Self::Bf16 => 16,
        }
    }

    /// Whether codes are whole numbers below zero too.
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::Int4 | Self::Int8 | Self::Int16)
    }

    /// Whether codes are floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }
}

/// How a range unit's range becomes its scale and its zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mapping {
    /// `s = (hi - lo) / (qmax - qmin)`, no zero point.
    MinMax,
    /// `s = amax / qmax`, no zero point.
    AbsMax,
    /// `s = (max(hi, 0) - min(lo, 0)) / (qmax - qmin)`, `z = clamp(rne(qmin - min(lo, 0) / s))`.
    Affine,
    /// `s = amax / ((qmax - qmin) / 2)`, no zero point; compressed-tensors' symmetric rule.
    HalfRange,
    /// No scale: each value is rounded to the nearest float of the code type.
    Cast,
}

impl Mapping {
    /// Whether the scale goes by the largest magnitude alone.
    pub(crate) fn is_by_magnitude(self) -> bool {
        matches!(self, Self::AbsMax | Self::HalfRange)
    }
}

/// A quantization scheme: a code type and a named arithmetic, a row of [`Scheme::ALL`].
///
/// Over all finite values of a range unit let `lo` be the minimum, `hi` the maximum and `amax` the maximum of |x|,
/// `lo0 = min(lo, 0)` and `hi0 = max(hi, 0)`. Every operation is one IEEE binary32 operation, rounded once (to nearest,
/// ties to even: `rne`), in the order written; `steps` is `qmax - qmin`:
///
/// | schemes | scale `s` | zero point `z` | code |
/// |---|---|---|---|
/// | `int*-absmax` | `amax / qmax` | none | `clamp(rne(x / s))` |
/// | `int*-minmax` | `(hi - lo) / steps` | none | `clamp(rne(x / s))` |
/// | `int*-affine`, `uint*-affine` | `(hi0 - lo0) / steps` | `clamp(rne(qmin - lo0 / s))` | `clamp(rne(x / s) + z)` |
/// | `onnx-dynamic-uint8` | `(hi0 - lo0) / 255` | `rne(clamp(0 - lo0 / s))` | `saturate(rne(x / s) + z)` |
/// | `ct-int8`, `ct-int4` | `amax / (steps / 2)` | none | `rne(clamp(x / s))` |
/// | `f16`, `bf16` | none | none | the nearest float of the type |
///
/// De-quantized: `x' = (q - z) * s`, the difference exact, the product rounded once.
///
/// All but the casts treat special values alike:
/// - NaN is ignored for the range, its code is `z`, or 0 where there is none, and it is counted;
/// - +-Inf is ignored for the range, saturates to qmax / qmin, and is counted;
/// - -0 is as +0, subnormals are kept exactly;
/// - a unit without a finite value is as a unit of zeros, and a scale that comes out 0 becomes 1 (`ct-*`: 2^-23);
/// - `-minmax` of a constant unit other than 0 takes `amax / qmax`, so that the constant survives;
/// - when the difference of the ends overflows, each is divided by `steps`, and the quotients are added.
///
/// The casts follow IEEE: infinities and -0 stay, a NaN keeps its sign and highest payload bits with the quiet bit set,
/// beyond the largest value lies infinity, or with [`Spec::saturate`](crate::Spec::saturate) the largest value (f16).
///
/// When to choose which: `-absmax` clips no finite value, unless values are so small that the scale is subnormal and
/// loses digits. `-minmax` is the textbook rule of "simple scaling"; its step is finer the less symmetric the range is,
/// but it has no zero point, so that all beyond half the range clips: look at the clipped count. `-affine` is ONNX's and
/// everybody's asymmetric rule: best for one-sided data; what clips lies less than a step outside, where the zero point
/// was rounded. `onnx-dynamic-uint8` is ONNX's DynamicQuantizeLinear: the bits of `uint8-affine`, because the codes' ends
/// are whole numbers, so that it does not matter whether the zero point is clamped or rounded first; its reference leaves
/// a range of zeros undefined. `ct-*` is compressed-tensors' symmetric rule: half a step finer than `-absmax`, for which
/// the largest positive value clips.
///
/// The worked example x = [-10, -5, 0, 5, 10]:
///
/// | scheme | s | z | codes |
/// |---|---|---|---|
/// | `int8-minmax` | 0.078431375 | | -127, -64, 0, 64, 127 |
/// | `int8-absmax` | 0.07874016 | | -127, -64, 0, 64, 127 |
/// | `uint8-affine` | 0.078431375 | 127 | 0, 63, 127, 191, 254 |
/// | `ct-int8` | 0.078431375 | | -127, -64, 0, 64, 127 |
/// | `int4-absmax` | 1.4285715 | | -7, -4, 0, 4, 7 |
///
/// ```
/// use wgpu_quant::{Scheme, Spec, Tensor, cpu};
/// let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
/// let codes = |scheme| cpu::quantize(Tensor::new(&x, &[5])?, &Spec::new(scheme)).map(|out| out.tensor.code_values());
/// assert_eq!(codes(Scheme::INT8_MINMAX)?, [-127, -64, 0, 64, 127]); // x / s is -127.49999
/// assert_eq!(codes(Scheme::INT8_ABSMAX)?, [-127, -64, 0, 64, 127]);
/// assert_eq!(codes(Scheme::UINT8_AFFINE)?, [0, 63, 127, 191, 254]);
/// assert_eq!(codes(Scheme::CT_INT8)?, [-127, -64, 0, 64, 127]);
/// assert_eq!(codes("int4-absmax".parse()?)?, [-7, -4, 0, 4, 7]); // 5 / s rounds to 3.5
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    name: &'static str,
    code: CodeType,
    mapping: Mapping,
}

impl Scheme {
    /// `int4-minmax`
    pub const INT4_MINMAX: Self = Self::row("int4-minmax", CodeType::Int4, Mapping::MinMax);
    /// `int8-minmax`
    pub const INT8_MINMAX: Self = Self::row("int8-minmax", CodeType::Int8, Mapping::MinMax);
    /// `int16-minmax`
    pub const INT16_MINMAX: Self = Self::row("int16-minmax", CodeType::Int16, Mapping::MinMax);
    /// `int4-absmax`
    pub const INT4_ABSMAX: Self = Self::row("int4-absmax", CodeType::Int4, Mapping::AbsMax);
    /// `int8-absmax`
    pub const INT8_ABSMAX: Self = Self::row("int8-absmax", CodeType::Int8, Mapping::AbsMax);
    /// `int16-absmax`
    pub const INT16_ABSMAX: Self = Self::row("int16-absmax", CodeType::Int16, Mapping::AbsMax);
    /// `int4-affine`
    pub const INT4_AFFINE: Self = Self::row("int4-affine", CodeType::Int4, Mapping::Affine);
    /// `uint4-affine`
    pub const UINT4_AFFINE: Self = Self::row("uint4-affine", CodeType::Uint4, Mapping::Affine);
    /// `int8-affine`
    pub const INT8_AFFINE: Self = Self::row("int8-affine", CodeType::Int8, Mapping::Affine);
    /// `uint8-affine`
    pub const UINT8_AFFINE: Self = Self::row("uint8-affine", CodeType::Uint8, Mapping::Affine);
    /// `int16-affine`
    pub const INT16_AFFINE: Self = Self::row("int16-affine", CodeType::Int16, Mapping::Affine);
    /// `uint16-affine`
    pub const UINT16_AFFINE: Self = Self::row("uint16-affine", CodeType::Uint16, Mapping::Affine);
    /// `onnx-dynamic-uint8`: ONNX's DynamicQuantizeLinear.
    pub const ONNX_DYNAMIC_UINT8: Self = Self::row("onnx-dynamic-uint8", CodeType::Uint8, Mapping::Affine);
    /// `ct-int8`: compressed-tensors, symmetric.
    pub const CT_INT8: Self = Self::row("ct-int8", CodeType::Int8, Mapping::HalfRange);
    /// `ct-int4`: compressed-tensors, symmetric.
    pub const CT_INT4: Self = Self::row("ct-int4", CodeType::Int4, Mapping::HalfRange);
    /// `f16`: a cast to IEEE binary16.
    pub const F16: Self = Self::row("f16", CodeType::F16, Mapping::Cast);
    /// `bf16`: a cast to bfloat16.
    pub const BF16: Self = Self::row("bf16", CodeType::Bf16, Mapping::Cast);

    /// Every scheme there is.
    pub const ALL: &'static [Self] = &[
        Self::INT8_ABSMAX,
        Self::INT8_MINMAX,
        Self::INT8_AFFINE,
        Self::UINT8_AFFINE,
        Self::INT4_ABSMAX,
        Self::INT4_MINMAX,
        Self::INT4_AFFINE,
        Self::UINT4_AFFINE,
        Self::INT16_ABSMAX,
        Self::INT16_MINMAX,
        Self::INT16_AFFINE,
        Self::UINT16_AFFINE,
        Self::ONNX_DYNAMIC_UINT8,
        Self::CT_INT8,
        Self::CT_INT4,
        Self::F16,
        Self::BF16,
    ];

    /// A row; one that makes no sense does not compile.
    const fn row(name: &'static str, code: CodeType, mapping: Mapping) -> Self {
        match mapping {
            Mapping::Cast => assert!(code.is_float(), "a cast's codes are floats"),
            Mapping::Affine => assert!(!code.is_float(), "a scale's codes are whole numbers"),
            // Without a zero point an unsigned code could not hold a negative value.
            _ => assert!(code.is_signed(), "without a zero point codes are signed"),
        }
        Self { name, code, mapping }
    }

    /// The scheme with this code type and mapping; the first one, where a system has its own name for it.
    ///
    /// # Errors
    /// [`Error::NoScheme`] when there is none, with those that have the code type.
    pub fn of(code: CodeType, mapping: Mapping) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|scheme| (scheme.code, scheme.mapping) == (code, mapping))
            .ok_or(Error::NoScheme { code, mapping })
    }

    /// The scheme's name, as parsed and printed.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// What a code is stored as.
    pub const fn code(self) -> CodeType {
        self.code
    }

    /// How a range becomes a scale.
    pub const fn mapping(self) -> Mapping {
        self.mapping
    }

    /// Whether there is no scale, and each value is rounded on its own.
    pub const fn is_cast(self) -> bool {
        matches!(self.mapping, Mapping::Cast)
    }

    /// Whether a range unit has a zero point beside its scale.
    pub const fn has_zero_point(self) -> bool {
        matches!(self.mapping, Mapping::Affine)
    }

    /// The smallest code; of a cast the smallest bit pattern, 0.
    pub const fn qmin(self) -> i32 {
        if self.code.is_signed() { -(1 << (self.code.bits() - 1)) } else { 0 }
    }

    /// The largest code; of a cast the largest bit pattern.
    pub const fn qmax(self) -> i32 {
        (1 << self.code.bits()) - 1 + self.qmin()
    }

    /// What the range is divided by; 1 of a cast. Exact in binary32.
    pub const fn divisor(self) -> f32 {
        let steps = (self.qmax() - self.qmin()) as f32;
        match self.mapping {
            Mapping::MinMax | Mapping::Affine => steps,
            Mapping::AbsMax => self.qmax() as f32,
            Mapping::HalfRange => steps / 2.0,
            Mapping::Cast => 1.0,
        }
    }

    /// The scale that stands in where the formula gives 0: 1, or what the system whose scheme it is takes.
    pub const fn zero_scale(self) -> f32 {
        match self.mapping {
            Mapping::HalfRange => f32::EPSILON,
            _ => 1.0,
        }
    }
}

/// A scheme's numbers as integer arithmetic takes them: divisors and `zero_scale` are bit patterns, factors what
/// `exact::float::div_by` divides by them with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) kind: u32,
    pub(crate) qmin: i32,
    pub(crate) qmax: i32,
    pub(crate) divisor: u32,
    pub(crate) divisor_factor: u32,
    /// What the largest magnitude is divided by where the range has no width that counts.
    pub(crate) magnitude_divisor: u32,
    pub(crate) magnitude_factor: u32,
    pub(crate) zero_scale: u32,
}

impl Rule {
    /// The kinds, as `shaders/exact/scale.wgsl` has them.
    pub(crate) const MINMAX: u32 = 0;
    pub(crate) const ABSMAX: u32 = 1;
    pub(crate) const AFFINE: u32 = 2;
    pub(crate) const CAST: u32 = 3;

    pub(crate) fn new(scheme: Scheme) -> Self {
        let kind = match scheme.mapping {
            Mapping::MinMax => Self::MINMAX,
            Mapping::AbsMax | Mapping::HalfRange => Self::ABSMAX,
            Mapping::Affine => Self::AFFINE,
            Mapping::Cast => Self::CAST,
        };
        let (qmin, qmax, divisor) = (scheme.qmin(), scheme.qmax(), scheme.divisor());
        let magnitude_divisor = if kind == Self::MINMAX { qmax as f32 } else { divisor };
        Self {
            kind,
            qmin,
            qmax,
            divisor: divisor.to_bits(),
            divisor_factor: Self::factor(divisor),
            magnitude_divisor: magnitude_divisor.to_bits(),
            magnitude_factor: Self::factor(magnitude_divisor),
            zero_scale: scheme.zero_scale().to_bits(),
        }
    }

    /// `floor((2^55 - 1) / m)` of a divisor's significand, below 2^32.
    fn factor(divisor: f32) -> u32 {
        let m = (divisor.to_bits() & 0x007f_ffff) | 0x0080_0000;
        (((1u64 << 55) - 1) / u64::from(m)) as u32
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|scheme| scheme.name == text)
            .ok_or_else(|| Error::UnknownScheme { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_its_own_row_and_no_name_is_taken_twice() {
        for (i, scheme) in Scheme::ALL.iter().enumerate() {
            assert_eq!(scheme.name().parse::<Scheme>().unwrap(), *scheme);
            assert!(Scheme::ALL[..i].iter().all(|s| s.name() != scheme.name()), "{scheme} twice");
        }
        let error = "int8".parse::<Scheme>().unwrap_err().to_string();
        assert!(error.contains("int8-absmax, int8-minmax"), "{error}");
    }

    #[test]
    fn the_numbers_are_those_of_the_code_types() {
        let numbers = |scheme: Scheme| (scheme.qmin(), scheme.qmax(), scheme.divisor(), scheme.zero_scale());
        assert_eq!(numbers(Scheme::INT4_MINMAX), (-8, 7, 15.0, 1.0));
        assert_eq!(numbers(Scheme::INT8_ABSMAX), (-128, 127, 127.0, 1.0));
        assert_eq!(numbers(Scheme::UINT4_AFFINE), (0, 15, 15.0, 1.0));
        assert_eq!(numbers(Scheme::UINT16_AFFINE), (0, 65535, 65535.0, 1.0));
        assert_eq!(numbers(Scheme::CT_INT8), (-128, 127, 127.5, 2f32.powi(-23)));
        assert_eq!(numbers(Scheme::CT_INT4), (-8, 7, 7.5, 2f32.powi(-23)));
        assert_eq!(numbers(Scheme::F16), (0, 65535, 1.0, 1.0));
    }

    #[test]
    fn a_combination_that_is_no_scheme_is_an_error_that_names_those_there_are() {
        assert_eq!(Scheme::of(CodeType::Uint8, Mapping::Affine).unwrap(), Scheme::UINT8_AFFINE);
        let error = Scheme::of(CodeType::Uint8, Mapping::AbsMax).unwrap_err().to_string();
        assert!(error.contains("Uint8") && error.contains("uint8-affine, onnx-dynamic-uint8"), "{error}");
    }
}
