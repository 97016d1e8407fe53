//! Other float types to f32, on bit patterns: a host whose float unit flushes subnormals changes nothing.

use ::safetensors::Dtype;
use rayon::prelude::*;
use std::borrow::Cow;

/// The f32 values of little-endian `bytes`: F32 as they are, F16 and BF16 widened exactly, F64 rounded once to
/// nearest, ties to even. `None` of any other type.
pub(super) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Cow<'_, [f32]>> {
    Some(match dtype {
        Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
            Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
            _ => convert(bytes, u32::from_le_bytes),
        },
        Dtype::F16 => convert(bytes, |b| from_f16(u16::from_le_bytes(b))),
        Dtype::BF16 => convert(bytes, |b| u32::from(u16::from_le_bytes(b)) << 16),
        Dtype::F64 => convert(bytes, |b| from_f64(u64::from_le_bytes(b))),
        _ => return None,
    })
}

fn convert<const N: usize>(bytes: &[u8], bits: impl Fn([u8; N]) -> u32 + Sync) -> Cow<'static, [f32]> {
    let (values, _) = bytes.as_chunks::<N>();
    Cow::Owned(values.par_iter().map(|&value| f32::from_bits(bits(value))).collect())
}

fn from_f16(h: u16) -> u32 {
    let h = u32::from(h);
    let (sign, exponent, fraction) = ((h & 0x8000) << 16, (h >> 10) & 0x1f, h & 0x3ff);
    let magnitude = match (exponent, fraction) {
        (0, 0) => 0,
        (0, _) => {
            // fraction * 2^-24: its top bit becomes the hidden one.
            let up = fraction.leading_zeros() - 21;
            ((113 - up) << 23) | ((fraction << up) & 0x3ff) << 13
        }
        (0x1f, _) => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    sign | magnitude
}

fn from_f64(d: u64) -> u32 {
    const INF: u64 = 0x7ff0_0000_0000_0000;
    let sign = (d >> 32) as u32 & 0x8000_0000;
    let magnitude = d & !(1 << 63);
    if magnitude > INF {
        return sign | 0x7fc0_0000 | ((magnitude >> 29) as u32 & 0x003f_ffff);
    }
    // The biased exponent that an f32 would have; 0 and less is a subnormal.
    let exponent = (magnitude >> 52) as i64 - 896;
    let rounded = if exponent >= 255 {
        0x7f80_0000
    } else if exponent > 0 {
        // A carry out of the fraction goes to the exponent, and from the largest one to infinity.
        shift_right_rne(magnitude - (896 << 52), 29)
    } else {
        let significand = magnitude & 0x000f_ffff_ffff_ffff | 1 << 52;
        // 2^-150 is half of the least subnormal; what lies below vanishes, as every f64 subnormal does.
        if exponent < -24 { 0 } else { shift_right_rne(significand, (30 - exponent) as u32) }
    };
    sign | rounded as u32
}

fn shift_right_rne(m: u64, n: u32) -> u64 {
    let odd = (m >> n) & 1;
    (m + ((1 << (n - 1)) - 1) + odd) >> n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    #[test]
    fn every_f16_widens_to_the_value_that_its_fields_spell() {
        for h in 0..=u16::MAX {
            let widened = f32::from_bits(from_f16(h));
            let (exponent, fraction) = (i32::from(h >> 10 & 0x1f), f64::from(h & 0x3ff));
            assert_eq!(widened.is_sign_negative(), h >> 15 == 1, "{h:#x}");
            match exponent {
                31 if fraction == 0.0 => assert!(widened.is_infinite(), "{h:#x}"),
                31 => assert!(widened.is_nan(), "{h:#x}"),
                0 => assert_eq!(f64::from(widened.abs()), fraction * 2f64.powi(-24), "{h:#x}"),
                _ => assert_eq!(f64::from(widened.abs()), (1024.0 + fraction) * 2f64.powi(exponent - 25), "{h:#x}"),
            }
        }
    }

    #[test]
    fn f64_rounds_once_as_the_hardware_does() {
        let mut rng = Rng::new(11);
        let mut values = vec![];
        for bits in edge_bits() {
            let centre = f64::from(f32::from_bits(bits)).to_bits();
            // Around the value and around the halfway points on both of its sides.
            for offset in [0u64, 1 << 28, 1 << 29, 1 << 27] {
                for near in -2i64..=2 {
                    values.push(centre.wrapping_add(offset).wrapping_add_signed(near));
                    values.push(centre.wrapping_sub(offset).wrapping_add_signed(near));
                }
            }
        }
        for exponent in 0..2048u64 {
            for _ in 0..200 {
                let random = u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32());
                let few_bits = random & u64::MAX << (rng.next_u32() % 52);
                values.push(few_bits & !(0x7ff << 52) | exponent << 52);
            }
        }
        for bits in values {
            let (rounded, expected) = (f32::from_bits(from_f64(bits)), f64::from_bits(bits) as f32);
            let same = if expected.is_nan() { rounded.is_nan() } else { rounded.to_bits() == expected.to_bits() };
            assert!(same, "{bits:#x}: {rounded:e}, expected {expected:e}");
        }
    }

    #[test]
    fn bytes_at_any_address_give_the_same_values() {
        let mut bytes = [0u8; 9];
        for start in 0..5 {
            bytes[start..start + 4].copy_from_slice(&(-1.5f32).to_le_bytes());
            assert_eq!(*to_f32(Dtype::F32, &bytes[start..start + 4]).unwrap(), [-1.5]);
        }
        assert_eq!(*to_f32(Dtype::BF16, &[0xc0, 0xbf]).unwrap(), [-1.5]);
        assert_eq!(*to_f32(Dtype::F16, &[0x00, 0xbe]).unwrap(), [-1.5]);
        assert!(to_f32(Dtype::I32, &[0; 4]).is_none());
    }
}
