//! f32 to the narrower float types, on bit patterns: IEEE conversions, to nearest, ties to even.

use super::le_bytes;
use ::safetensors::Dtype;
use rayon::prelude::*;
use std::borrow::Cow;

/// The values as a file holds them in F32, F16 or BF16, little-endian.
///
/// Beyond the type's range lies infinity, -0 stays, and a NaN keeps its sign and top payload bits, with the
/// quiet bit set. Any other type is taken as F32.
pub fn narrowed(values: &[f32], dtype: Dtype) -> Cow<'_, [u8]> {
    let pack = |narrow: fn(u32) -> u16| {
        Cow::Owned(values.par_iter().flat_map_iter(|v| narrow(v.to_bits()).to_le_bytes()).collect())
    };
    match dtype {
        Dtype::F16 => pack(to_f16),
        Dtype::BF16 => pack(to_bf16),
        _ => le_bytes(values),
    }
}

fn to_bf16(b: u32) -> u16 {
    if b & 0x7fff_ffff > 0x7f80_0000 {
        return (b >> 16) as u16 | 0x40;
    }
    // A carry out of the fraction goes to the exponent, and from the largest one to infinity.
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

fn to_f16(b: u32) -> u16 {
    let sign = (b >> 16) as u16 & 0x8000;
    let magnitude = b & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | (magnitude >> 13) as u16 & 0x3ff;
    }
    // The biased exponent that an f16 would have; 0 and less is a subnormal, of quantum 2^-24.
    let exponent = (magnitude >> 23).cast_signed() - 112;
    let rounded = if exponent >= 31 {
        0x7c00
    } else if exponent > 0 {
        shift_right_rne(magnitude - (112 << 23), 13)
    } else if exponent < -10 {
        // Below half of the least subnormal.
        0
    } else {
        let significand = magnitude & 0x007f_ffff | 0x0080_0000;
        shift_right_rne(significand, (14 - exponent).cast_unsigned())
    };
    sign | rounded as u16
}

fn shift_right_rne(m: u32, n: u32) -> u32 {
    (m + ((1 << (n - 1)) - 1) + (m >> n & 1)) >> n
}

#[cfg(test)]
mod tests {
    use super::super::widen::to_f32;
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    fn widened(dtype: Dtype, half: u16) -> f32 {
        to_f32(dtype, &half.to_le_bytes()).unwrap()[0]
    }

    fn narrow(dtype: Dtype, v: f32) -> u16 {
        let bytes = narrowed(&[v], dtype).into_owned();
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    #[test]
    fn every_narrow_value_survives_the_way_there_and_back() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            for half in 0..=u16::MAX {
                let v = widened(dtype, half);
                let quiet = if dtype == Dtype::F16 { 0x200 } else { 0x40 };
                assert_eq!(narrow(dtype, v), if v.is_nan() { half | quiet } else { half }, "{dtype} {half:#06x}");
            }
        }
    }

    #[test]
    fn no_narrow_value_is_nearer_and_ties_go_to_the_even_one() {
        let mut rng = Rng::new(9);
        let mut patterns = edge_bits();
        // The span of f16 and its surroundings, and everything.
        patterns.extend(
            (0..300_000).map(|_| (0x3200_0000 + rng.next_u32() % 0x1600_0000) | (rng.next_u32() & 0x8000_0000)),
        );
        patterns.extend((0..100_000).map(|_| rng.float_bits()));
        for dtype in [Dtype::F16, Dtype::BF16] {
            let max = if dtype == Dtype::F16 { 0x7bff } else { 0x7f7f };
            // One step beyond the largest value, where infinity stands, as a number.
            let value = |half: u16| {
                let (magnitude, last) = (half & 0x7fff, f64::from(widened(dtype, max)));
                let step = last - f64::from(widened(dtype, max - 1));
                if magnitude > max { last + step } else { f64::from(widened(dtype, magnitude)) }
            };
            for &b in &patterns {
                let v = f32::from_bits(b);
                if !v.is_finite() {
                    continue;
                }
                let half = narrow(dtype, v);
                let magnitude = half & 0x7fff;
                assert_eq!(half >> 15, (b >> 31) as u16, "{b:#010x}");
                let distance = |magnitude: u16| (f64::from(v.abs()) - value(magnitude)).abs();
                for other in [magnitude.saturating_sub(1), (magnitude + 1).min(max + 1)] {
                    let beyond = magnitude > max && f64::from(v.abs()) > value(max + 1);
                    let (ours, theirs) = (distance(magnitude), distance(other));
                    let good = other == magnitude
                        || ours < theirs
                        || (ours == theirs && magnitude.is_multiple_of(2))
                        || beyond;
                    assert!(good, "{dtype} {b:#010x}: {magnitude:#06x} and not {other:#06x}");
                }
            }
        }
    }
}
