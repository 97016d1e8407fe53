//! From a range to a scale and a zero point; twin of `shaders/scale.wgsl`.

use super::code::WHOLE;
use super::min_max::Range;
use crate::exact::scale::{scale_of, zero_point_of};
use crate::float_env;
use crate::scheme::{Mapping, Rule, Scheme};

/// The scale of a range unit with this range.
///
/// ```text
/// minmax      s = (hi - lo) / (qmax - qmin)
/// absmax      s = amax / qmax
/// affine      s = (max(hi, 0) - min(lo, 0)) / (qmax - qmin)
/// half-range  s = amax / ((qmax - qmin) / 2)
/// cast        s = 2^(floor(log2(amax)) - 12), at least 2^-149
/// ```
///
/// Each operation is one binary32 operation, rounded to nearest, ties to even; the powers of two are exact. A cast
/// has no scale: its is nominal, what the grid of [its loss](crate::loss) is made of.
///
/// One range gives one scale, that of its range unit.
///
/// A constant unit other than 0 takes `amax / qmax` under minmax too, so that the constant survives. Where the width
/// `w = b - a` overflows, `s = b / (qmax - qmin) + -a / (qmax - qmin)`. A scale that comes out 0 (a range of zeros,
/// or one of a few subnormals) is 1, of half-range 2^-23. Scales may be subnormal. They are never 0, infinite or NaN.
///
/// # Errors
/// None.
///
/// Affine is ONNX's `DynamicQuantizeLinear`, half-range compressed-tensors' symmetric rule; minmax and absmax are the
/// plain textbook rules.
///
/// ```
/// use wgpu_quant::{Scheme, cpu};
/// let range = cpu::Range { lo: -10.0, hi: 10.0 };
/// assert_eq!(cpu::scale(range, Scheme::INT8_MINMAX).to_bits(), 0x3da0a0a1);
/// assert_eq!(cpu::scale(range, Scheme::INT8_ABSMAX), 10.0 / 127.0);
/// assert_eq!(cpu::scale(range, Scheme::CT_INT4), 10.0 / 7.5);
/// assert_eq!(cpu::scale(cpu::Range { lo: 3.0, hi: 8.0 }, Scheme::UINT4_AFFINE), 8.0 / 15.0);
/// ```
pub fn scale(range: Range, scheme: Scheme) -> f32 {
    if float_env::is_ieee_default() { plain_scale(range, scheme) } else { exact_scale(range, scheme) }
}

/// The zero point of a range unit with this range and scale; 0 where the scheme has none.
///
/// ```text
/// z = clamp(rne(qmin - min(lo, 0) / s), qmin, qmax)
/// ```
///
/// One binary32 division and one subtraction, each rounded to nearest, ties to even, as is the result to a whole
/// number.
///
/// One range and one scale give one zero point, that of their range unit.
///
/// A range without a value below zero has `z = qmin`, a range of zeros among them.
///
/// # Errors
/// None.
///
/// The rule of ONNX's `DynamicQuantizeLinear`.
///
/// ```
/// use wgpu_quant::{Scheme, cpu};
/// let range = cpu::Range { lo: -1.0, hi: 2.0 };
/// let s = cpu::scale(range, Scheme::UINT8_AFFINE);
/// assert_eq!((s, cpu::zero_point(range, s, Scheme::UINT8_AFFINE)), (3.0 / 255.0, 85));
/// assert_eq!(cpu::zero_point(range, s, Scheme::INT8_AFFINE), -43);
/// ```
pub fn zero_point(range: Range, scale: f32, scheme: Scheme) -> i32 {
    if float_env::is_ieee_default() {
        plain_zero_point(range, scale, scheme)
    } else {
        exact_zero_point(range, scale, scheme)
    }
}

/// The scale and the zero point of a range, by float arithmetic where it may be used.
pub(super) fn scale_and_zero_point(range: Range, scheme: Scheme, ieee: bool) -> (f32, i32) {
    if ieee {
        let s = plain_scale(range, scheme);
        (s, plain_zero_point(range, s, scheme))
    } else {
        let s = exact_scale(range, scheme);
        (s, exact_zero_point(range, s, scheme))
    }
}

/// The scales of many ranges, by float arithmetic: [`plain_scale`] without branches, so that loops become ones of vectors.
#[inline(always)]
pub(super) fn plain_scales(ends: [&[f32]; 2], scheme: Scheme, scales: &mut [f32]) {
    #[inline(always)]
    fn each([lo, hi]: [&[f32]; 2], scales: &mut [f32], zero: f32, scale: impl Fn(f32, f32) -> f32) {
        for ((to, &lo), &hi) in scales.iter_mut().zip(lo).zip(hi) {
            let s = scale(lo, hi);
            *to = if s == 0.0 { zero } else { s };
        }
    }
    let (zero, divisor, qmax) = (scheme.zero_scale(), scheme.divisor(), scheme.qmax() as f32);
    let amax = |lo: f32, hi: f32| if -lo > hi { -lo } else { hi };
    let over_width = |lo: f32, hi: f32| {
        let (width, parts) = ((hi - lo) / divisor, hi / divisor + -lo / divisor);
        if width < f32::INFINITY { width } else { parts }
    };
    match scheme.mapping() {
        Mapping::AbsMax | Mapping::HalfRange => each(ends, scales, zero, |lo, hi| amax(lo, hi) / divisor),
        Mapping::MinMax => each(ends, scales, zero, |lo, hi| {
            let (constant, width) = (amax(lo, hi) / qmax, over_width(lo, hi));
            if lo == hi { constant } else { width }
        }),
        Mapping::Affine => each(ends, scales, zero, |lo, hi| {
            over_width(if lo < 0.0 { lo } else { 0.0 }, if hi > 0.0 { hi } else { 0.0 })
        }),
        Mapping::Cast => {}
    }
}

/// The zero points of many ranges and scales: [`plain_zero_point`] without branches.
#[inline(always)]
pub(super) fn plain_zero_points(lo: &[f32], scales: &[f32], scheme: Scheme, zero_points: &mut [i32]) {
    let (qmin, qmax) = (scheme.qmin() as f32, scheme.qmax() as f32);
    for ((to, &lo), &s) in zero_points.iter_mut().zip(lo).zip(scales) {
        let z = qmin - (if lo < 0.0 { lo } else { 0.0 }) / s;
        // The ends are whole numbers, so that it does not matter what comes first, rounding or clamping.
        let z = if z > qmin { z } else { qmin };
        let z = if z < qmax { z } else { qmax };
        *to = (z + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()).cast_signed();
    }
}

fn plain_scale(range: Range, scheme: Scheme) -> f32 {
    let divisor = scheme.divisor();
    let over_width = |lo: f32, hi: f32| {
        let width = hi - lo;
        if width.is_finite() { width / divisor } else { hi / divisor + -lo / divisor }
    };
    let Range { lo, hi } = range;
    let s = match scheme.mapping() {
        Mapping::MinMax if lo != hi => over_width(lo, hi),
        Mapping::MinMax => range.amax() / scheme.qmax() as f32,
        Mapping::AbsMax | Mapping::HalfRange => range.amax() / divisor,
        Mapping::Affine => over_width(lo.min(0.0), hi.max(0.0)),
        Mapping::Cast if range.amax() == 0.0 => 0.0,
        Mapping::Cast => {
            // No f32 is a subnormal f64, so that its exponent stands in its bits.
            let exponent = ((f64::from(range.amax()).to_bits() >> 52).cast_signed() - 1023 - 12).max(-149);
            f64::from_bits((exponent + 1023).cast_unsigned() << 52) as f32
        }
    };
    if s == 0.0 { scheme.zero_scale() } else { s }
}

fn exact_scale(range: Range, scheme: Scheme) -> f32 {
    f32::from_bits(scale_of(range.lo.to_bits(), range.hi.to_bits(), Rule::new(scheme)))
}

fn plain_zero_point(range: Range, scale: f32, scheme: Scheme) -> i32 {
    if !scheme.has_zero_point() {
        return 0;
    }
    // Codes have at most 16 bits, so that the floats are the numbers.
    let (qmin, qmax) = (scheme.qmin() as f32, scheme.qmax() as f32);
    (qmin - range.lo.min(0.0) / scale).round_ties_even().clamp(qmin, qmax) as i32
}

fn exact_zero_point(range: Range, scale: f32, scheme: Scheme) -> i32 {
    zero_point_of(range.lo.to_bits(), scale.to_bits(), Rule::new(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    #[test]
    fn plain_and_exact_scales_and_zero_points_agree_on_every_kind_of_range() {
        let mut rng = Rng::new(5);
        let edges = edge_bits();
        for i in 0..300_000 {
            let n = edges.len();
            let pair = if i < n * n { [edges[i / n], edges[i % n]] } else { [rng.float_bits(), rng.float_bits()] };
            let mut pair = pair.map(f32::from_bits);
            // Ends of about the same size, where zero points are not the last codes.
            if i % 4 == 3 {
                pair[1] = pair[0] * (0.01 * rng.below(200) as f32 - 2.0);
            }
            if !pair.iter().all(|v| v.is_finite()) {
                continue;
            }
            pair.sort_by(f32::total_cmp);
            let range = Range { lo: pair[0] + 0.0, hi: pair[1] + 0.0 };
            for &scheme in Scheme::ALL {
                let (a, b) = (plain_scale(range, scheme), exact_scale(range, scheme));
                assert_eq!(a.to_bits(), b.to_bits(), "{scheme} {range:?}: {a:e} {b:e}");
                assert!(a > 0.0 && a.is_finite(), "{scheme} {range:?}: {a:e}");
                let (y, z) = (plain_zero_point(range, a, scheme), exact_zero_point(range, a, scheme));
                assert_eq!(y, z, "{scheme} {range:?}, s {a:e}");
                assert!((scheme.qmin()..=scheme.qmax()).contains(&z), "{scheme} {range:?}: {z}");
                if !scheme.is_cast() {
                    let (mut s, mut many_z) = ([f32::NAN], [i32::MAX]);
                    plain_scales([&[range.lo], &[range.hi]], scheme, &mut s);
                    assert_eq!(s[0].to_bits(), a.to_bits(), "{scheme} {range:?}: {:e} {a:e}", s[0]);
                    plain_zero_points(&[range.lo], &s, scheme, &mut many_z);
                    assert!(!scheme.has_zero_point() || many_z[0] == z, "{scheme} {range:?}: {many_z:?} {z}");
                }
            }
        }
    }

    #[test]
    fn each_mapping_gives_the_scale_of_its_formula() {
        let of = |lo, hi, scheme: Scheme| {
            let range = Range { lo, hi };
            let s = scale(range, scheme);
            (s, zero_point(range, s, scheme))
        };
        assert_eq!(of(-8.0, 7.0, Scheme::INT4_MINMAX), (1.0, 0));
        assert_eq!(of(-8.0, 7.0, Scheme::INT4_ABSMAX), (8.0 / 7.0, 0));
        assert_eq!(of(-8.0, 7.0, Scheme::INT4_AFFINE), (1.0, 0));
        assert_eq!(of(-8.0, 7.0, Scheme::UINT4_AFFINE), (1.0, 8));
        assert_eq!(of(3.0, 15.0, Scheme::INT4_AFFINE), (1.0, -8));
        assert_eq!(of(-30.0, -3.0, Scheme::UINT4_AFFINE), (2.0, 15));
        assert_eq!(of(-8.0, 7.5, Scheme::CT_INT4), (8.0 / 7.5, 0));
        assert_eq!(of(0.0, 65535.0, Scheme::INT16_AFFINE), (1.0, -32768));
        assert_eq!(of(-1.0, 65534.0, Scheme::UINT16_AFFINE), (1.0, 1));
        // Halfway between two codes: the even one.
        assert_eq!(of(-2.5, 252.5, Scheme::ONNX_DYNAMIC_UINT8), (1.0, 2));
        assert_eq!(of(-3.5, 251.5, Scheme::ONNX_DYNAMIC_UINT8), (1.0, 4));
        // Ranges of zeros, and a constant.
        assert_eq!(of(0.0, 0.0, Scheme::UINT8_AFFINE), (1.0, 0));
        assert_eq!(of(0.0, 0.0, Scheme::INT8_AFFINE), (1.0, -128));
        assert_eq!(of(0.0, 0.0, Scheme::CT_INT8), (2f32.powi(-23), 0));
        assert_eq!(of(14.0, 14.0, Scheme::INT4_MINMAX), (2.0, 0));
        // The width overflows.
        assert_eq!(of(f32::MIN, f32::MAX, Scheme::UINT8_AFFINE).0, f32::MAX / 255.0 * 2.0);
        // A cast's nominal scale.
        assert_eq!(of(-5.0, 1.0, Scheme::F16), (2f32.powi(-10), 0));
        assert_eq!(of(0.0, f32::from_bits(7), Scheme::BF16), (f32::from_bits(1), 0));
        assert_eq!(of(0.0, 0.0, Scheme::BF16), (1.0, 0));
    }
}
