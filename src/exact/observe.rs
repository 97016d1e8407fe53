//! What a batch's range does to the range that was observed so far; twin of `shaders/exact/observe.wgsl`, which explains
//! it.

use super::float::{HIDDEN, add, from_hi_key, from_lo_key, hi_key, is_finite, lo_key, mul, sub};

pub(crate) fn average(v: u32, batch: u32, c: u32) -> u32 {
    let d = sub(batch, v);
    if is_finite(d) {
        let moved = add(v, mul(c, d));
        if is_finite(moved) {
            return moved;
        }
    }
    add(sub(v, mul(c, v)), mul(c, batch))
}

pub(crate) fn merged(seen: [u32; 2], batch: [u32; 2], c: u32) -> [u32; 2] {
    if batch[0] < 2 * HIDDEN {
        return seen;
    }
    let hi = from_hi_key(batch[0]);
    let lo = from_lo_key(batch[1]);
    if seen[0] == 0 {
        return [hi_key(hi), lo_key(lo)];
    }
    if c == 0 {
        return [seen[0].max(hi_key(hi)), seen[1].max(lo_key(lo))];
    }
    let next_hi = average(from_hi_key(seen[0]), hi, c);
    let next_lo = average(from_lo_key(seen[1]), lo, c);
    [hi_key(next_hi).max(hi_key(next_lo)), lo_key(next_lo)]
}
