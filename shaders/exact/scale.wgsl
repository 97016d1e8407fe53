// From a range to a scale and a zero point, on bit patterns. Twin: src/exact/scale.rs, the same functions.

const KIND_MINMAX = 0u;
const KIND_ABSMAX = 1u;
const KIND_AFFINE = 2u;
const KIND_CAST = 3u;

// A scheme's numbers; all but kind, codes and factors are bit patterns.
struct Rule {
    kind: u32,
    qmin: i32,
    qmax: i32,
    divisor: u32,               // what the range is divided by
    divisor_factor: u32,        // and its factor, see div_by
    magnitude_divisor: u32,     // what the largest magnitude is divided by
    magnitude_factor: u32,
    zero_scale: u32,            // what stands in for a scale of 0
}

// min(lo, 0)
fn up_to_zero(lo: u32) -> u32 { return select(0u, lo, (lo >> 31u) == 1u); }

// max(hi, 0)
fn down_to_zero(hi: u32) -> u32 { return select(hi, 0u, (hi >> 31u) == 1u); }

// A cast has no scale. The grid of its loss takes 2^-12 of the power of two at or below amax for one, or the least
// subnormal where that is less.
fn cast_scale(amax: u32) -> u32 {
    let s = round_pack(0u, 1u, parts(amax).e + 11);
    return select(s, 1u, s == 0u);
}

// The scale of a range, never 0: amax / divisor, or (hi - lo) / divisor, and where hi - lo overflows hi / divisor - lo /
// divisor.
fn scale_of(lo: u32, hi: u32, r: Rule) -> u32 {
    let amax = max(lo & MAGNITUDE, hi & MAGNITUDE);
    if (r.kind == KIND_CAST) { return select(cast_scale(amax), r.zero_scale, amax == 0u); }
    let affine = r.kind == KIND_AFFINE;
    if (!affine && (r.kind != KIND_MINMAX || lo == hi)) { return scale_of_magnitude(amax, r); }
    let left = select(lo, up_to_zero(lo), affine);
    let right = select(hi, down_to_zero(hi), affine);
    let width = sub(right, left);
    if (is_finite(width)) { return scale_or(div_by(width, r.divisor, r.divisor_factor), r); }
    let above = div_by(right, r.divisor, r.divisor_factor);
    return scale_or(sub(above, div_by(left, r.divisor, r.divisor_factor)), r);
}

fn scale_of_magnitude(amax: u32, r: Rule) -> u32 {
    return scale_or(div_by(amax, r.magnitude_divisor, r.magnitude_factor), r);
}

fn scale_or(s: u32, r: Rule) -> u32 { return select(s, r.zero_scale, s == 0u); }

// The zero point of a range with this scale: clamp(rne(qmin - min(lo, 0) / s)). The quotient is at most some 2^17, so
// that nothing overflows.
fn zero_point_of(lo: u32, s: u32, r: Rule) -> i32 {
    if (r.kind != KIND_AFFINE) { return 0; }
    let z = to_int(sub(from_int(r.qmin), div(up_to_zero(lo), s)));
    return min(max(z, r.qmin), r.qmax);
}
