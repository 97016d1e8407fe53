//! From a range to a scale and a zero point, on bit patterns; twin of `shaders/exact/scale.wgsl`, which explains it.

use super::float::{MAGNITUDE, add, div, from_int, is_finite, parts, round_pack, sub, to_int};
use crate::scheme::Rule;

pub(crate) fn width_scale(lo: u32, hi: u32, divisor: u32) -> u32 {
    let width = sub(hi, lo);
    if is_finite(width) {
        return div(width, divisor);
    }
    add(div(hi, divisor), div(lo ^ 0x8000_0000, divisor))
}

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
    let s;
    if r.kind == Rule::CAST {
        s = if amax == 0 { 0 } else { cast_scale(amax) };
    } else if r.kind == Rule::AFFINE {
        s = width_scale(up_to_zero(lo), down_to_zero(hi), r.divisor);
    } else if r.kind == Rule::MINMAX && lo != hi {
        s = width_scale(lo, hi, r.divisor);
    } else {
        s = div(amax, if r.kind == Rule::MINMAX { from_int(r.qmax) } else { r.divisor });
    }
    if s == 0 { r.zero_scale } else { s }
}

pub(crate) fn zero_point_of(lo: u32, s: u32, r: Rule) -> i32 {
    if r.kind != Rule::AFFINE {
        return 0;
    }
    to_int(sub(from_int(r.qmin), div(up_to_zero(lo), s))).clamp(r.qmin, r.qmax)
}
