//! Schemes as rows of data: a code type and the named arithmetic that maps values to it.
//!
//! A new scheme of a known mapping is a new row here and nothing else: both paths, the command line, the
//! tests and the benchmarks loop over [`Scheme::ALL`].

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// How a range unit's range becomes its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mapping {
    /// `s = (hi - lo) / (qmax - qmin)`, no zero point.
    MinMax,
    /// `s = amax / qmax`, no zero point.
    AbsMax,
}

/// A quantization scheme: a code type and a named arithmetic, a row of [`Scheme::ALL`].
///
/// Over all finite values of a range unit let `lo` be the minimum, `hi` the maximum and `amax` the maximum
/// of |x|. Every operation is one IEEE binary32 operation, rounded once (to nearest, ties to even: `rne`),
/// in the order written:
///
/// | scheme | codes | scale `s` | code |
/// |---|---|---|---|
/// | `int8-minmax` | -128..=127 | `(hi - lo) / 255` | `clamp(rne(x / s), -128, 127)` |
/// | `int8-absmax` | -128..=127 | `amax / 127` | `clamp(rne(x / s), -128, 127)` |
///
/// De-quantized: `x' = q * s`, one rounded product.
///
/// Both schemes treat special values alike:
/// - NaN is ignored for the range, its code is 0, and it is counted;
/// - +-Inf is ignored for the range, saturates to 127 / -128, and is counted;
/// - -0 is as +0, subnormals are kept exactly;
/// - a unit without a finite value is as a unit of zeros, and a scale that comes out 0 becomes 1;
/// - `int8-minmax` of a constant unit other than 0 takes `amax / 127`, so that the constant survives;
/// - when `hi - lo` overflows, `s = rne(hi / 255) + rne(-lo / 255)`.
///
/// When to choose which: `int8-absmax` is the default; it clips no finite value, unless values are so small
/// that the scale is subnormal and `amax / 127` loses digits. `int8-minmax` is the
/// textbook rule of "simple scaling"; its step is finer the less symmetric the range is, but it has no zero
/// point, so that all beyond half the range clips. Look at the clipped count.
///
/// ```
/// use wgpu_quant::Scheme;
/// let scheme: Scheme = "int8-minmax".parse()?;
/// assert_eq!(scheme, Scheme::INT8_MINMAX);
/// assert_eq!((scheme.qmin(), scheme.qmax()), (-128, 127));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    name: &'static str,
    code_bits: u32,
    mapping: Mapping,
}

impl Scheme {
    /// `int8-minmax`: codes -128..=127, `s = (hi - lo) / 255`, no zero point.
    pub const INT8_MINMAX: Self = Self::row("int8-minmax", 8, Mapping::MinMax);
    /// `int8-absmax`: codes -128..=127, `s = amax / 127`, no zero point.
    pub const INT8_ABSMAX: Self = Self::row("int8-absmax", 8, Mapping::AbsMax);

    /// Every scheme there is.
    pub const ALL: &'static [Self] = &[Self::INT8_MINMAX, Self::INT8_ABSMAX];

    const fn row(name: &'static str, code_bits: u32, mapping: Mapping) -> Self {
        // The kernels store a code in a byte, and the code search is proven for codes up to 128.
        assert!(code_bits >= 2 && code_bits <= 8, "codes of more than 8 bits have no kernel");
        Self { name, code_bits, mapping }
    }

    /// The scheme's name, as parsed and printed.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Bits per code.
    pub const fn code_bits(self) -> u32 {
        self.code_bits
    }

    /// How a range becomes a scale.
    pub const fn mapping(self) -> Mapping {
        self.mapping
    }

    /// The smallest code.
    pub const fn qmin(self) -> i32 {
        -(1 << (self.code_bits - 1))
    }

    /// The largest code.
    pub const fn qmax(self) -> i32 {
        (1 << (self.code_bits - 1)) - 1
    }

    /// The whole number that the range is divided by.
    pub const fn divisor(self) -> i32 {
        match self.mapping {
            Mapping::MinMax => self.qmax() - self.qmin(),
            Mapping::AbsMax => self.qmax(),
        }
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
        assert!(error.contains("int8-minmax, int8-absmax"), "{error}");
    }
}
