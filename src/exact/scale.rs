//! From a range to a scale and a zero point, on bit patterns; twin of `shaders/exact/scale.wgsl`, which explains it.

use super::float::{MAGNITUDE, div, div_by, from_int, is_finite, parts, round_pack, sub, to_int};
use crate::scheme::Rule;

pub(crate) fn up_to_zero(lo: u32) -> u32 {
    if lo >> 31 == 1 { lo } else { 0 }
}

pub(crate) fn down_to_zero(hi: u32) -> u32 {
    if hi >> 31 == 1 { 0 } else { hi }
}

pub(crate) fn cast_scale(amax: u32) -> u32 {
    let s = round_pack(0, 1, parts(amax).e + 11);
    if s == 0 { 1 } else { s }
}

pub(crate) fn scale_of(lo: u32, hi: u32, r: Rule) -> u32 {
    let amax = (lo & MAGNITUDE).max(hi & MAGNITUDE);
    if r.kind == Rule::CAST {
        return if amax == 0 { r.zero_scale } else { cast_scale(amax) };
    }
    let affine = r.kind == Rule::AFFINE;
    if !affine && (r.kind != Rule::MINMAX || lo == hi) {
        return scale_of_magnitude(amax, r);
    }
    let (left, right) = if affine { (up_to_zero(lo), down_to_zero(hi)) } else { (lo, hi) };
    let width = sub(right, left);
    if is_finite(width) {
        return scale_or(div_by(width, r.divisor, r.divisor_factor), r);
    }
    let above = div_by(right, r.divisor, r.divisor_factor);
    scale_or(sub(above, div_by(left, r.divisor, r.divisor_factor)), r)
}

pub(crate) fn scale_of_magnitude(amax: u32, r: Rule) -> u32 {
    scale_or(div_by(amax, r.magnitude_divisor, r.magnitude_factor), r)
}

pub(crate) fn scale_or(s: u32, r: Rule) -> u32 {
    if s == 0 { r.zero_scale } else { s }
}

pub(crate) fn zero_point_of(lo: u32, s: u32, r: Rule) -> i32 {
    if r.kind != Rule::AFFINE {
        return 0;
    }
    to_int(sub(from_int(r.qmin), div(up_to_zero(lo), s))).clamp(r.qmin, r.qmax)
}
