//! Other float types to binary32, on bit patterns: f16 and bf16 exactly, f64 rounded once, to nearest, ties to
//! even. Twin of `shaders/exact/widen.wgsl`.

use super::float::round_pack;
use crate::tensor::ElemType;

pub(crate) fn from_bf16(h: u32) -> u32 {
    h << 16
}

pub(crate) fn from_f16(h: u32) -> u32 {
    let sign = (h & 0x8000) << 16;
    let exponent = (h >> 10) & 0x1f;
    let fraction = h & 0x3ff;
    if exponent == 0 {
        let zeros = (fraction | 1).leading_zeros();
        return sign | if fraction == 0 { 0 } else { ((133 - zeros) << 23) + (fraction << (zeros - 8)) };
    }
    let biased = if exponent == 0x1f { 0xff } else { exponent + 112 };
    sign | (biased << 23) | (fraction << 13)
}

pub(crate) fn from_f64(lo: u32, hi: u32) -> u32 {
    let sign = hi & 0x8000_0000;
    let exponent = (hi >> 20) & 0x7ff;
    // The fraction's highest 23 bits, and the 29 below them.
    let top = ((hi & 0x000f_ffff) << 3) | (lo >> 29);
    let rest = lo & 0x1fff_ffff;
    if exponent == 0x7ff {
        let quiet = if (top | rest) == 0 { 0 } else { 0x0040_0000 };
        return sign | 0x7f80_0000 | top | quiet;
    }
    // A subnormal f64 is far below half of the least binary32.
    if exponent == 0 {
        return sign;
    }
    let sticky = u32::from((rest & 0x003f_ffff) != 0);
    round_pack(sign, ((top | 0x0080_0000) << 7) | (rest >> 22) | sticky, exponent.cast_signed() - 1053)
}

/// The values that these bytes hold, in this machine's byte order.
pub(crate) fn read(elem_type: ElemType, bytes: &[u8], out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], bits: impl Fn([u8; N]) -> u32) {
        let (values, _) = bytes.as_chunks::<N>();
        for (to, &value) in out.iter_mut().zip(values) {
            *to = f32::from_bits(bits(value));
        }
    }
    match elem_type {
        ElemType::F32 => each(bytes, out, u32::from_ne_bytes),
        ElemType::F16 => each(bytes, out, |b| from_f16(u16::from_ne_bytes(b).into())),
        ElemType::Bf16 => each(bytes, out, |b| from_bf16(u16::from_ne_bytes(b).into())),
        ElemType::F64 => each(bytes, out, |b| {
            let d = u64::from_ne_bytes(b);
            from_f64(d as u32, (d >> 32) as u32)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    #[test]
    fn every_f16_widens_to_the_value_that_its_fields_spell() {
        for h in 0..=0xffffu32 {
            let widened = f32::from_bits(from_f16(h));
            let (exponent, fraction) = ((h >> 10 & 0x1f).cast_signed(), f64::from(h & 0x3ff));
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
            let rounded = f32::from_bits(from_f64(bits as u32, (bits >> 32) as u32));
            let expected = f64::from_bits(bits) as f32;
            let same = if expected.is_nan() { rounded.is_nan() } else { rounded.to_bits() == expected.to_bits() };
            assert!(same, "{bits:#x}: {rounded:e}, expected {expected:e}");
        }
    }
}
