// What a batch's range does to the range that was observed so far. Twin: src/exact/observe.rs, the same functions.

// One step of the moving average: v + c * (batch - v), for 0 < c <= 1. The difference of values of opposite signs may
// overflow; v - c * v + c * batch does not, for it adds those signs. The last addition overflows only if c is 1, when the
// other form is batch: a smaller c is at most 1 - 2^-24, so that c * d is below batch - v, however d was rounded, and
// rounding it adds at most half of a last place, which does not take the sum beyond the largest value.
fn average(v: u32, batch: u32, c: u32) -> u32 {
    let d = sub(batch, v);
    if (is_finite(d)) {
        let moved = add(v, mul(c, d));
        if (is_finite(moved)) { return moved; }
    }
    return add(sub(v, mul(c, v)), mul(c, batch));
}

// Ranges are pairs of keys, (hi, lo); what was observed is that of values, never of -0, and (0, 0) before there was one.
// c is 0 for the least and the largest of all batches, else the averaging constant. A batch without a finite value
// changes nothing, and the first one with one is taken as it is. Where rounding makes the ends of an average cross, the
// lower one is both.
fn merged(seen: vec2<u32>, batch: vec2<u32>, c: u32) -> vec2<u32> {
    if (batch.x < 2u * HIDDEN) { return seen; }
    let hi = from_hi_key(batch.x);
    let lo = from_lo_key(batch.y);
    if (seen.x == 0u) { return vec2(hi_key(hi), lo_key(lo)); }
    if (c == 0u) { return vec2(max(seen.x, hi_key(hi)), max(seen.y, lo_key(lo))); }
    let next_hi = average(from_hi_key(seen.x), hi, c);
    let next_lo = average(from_lo_key(seen.y), lo, c);
    return vec2(max(hi_key(next_hi), hi_key(next_lo)), lo_key(next_lo));
}
