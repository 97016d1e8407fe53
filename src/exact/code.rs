//! From a value to its code and back, on bit patterns; twin of `shaders/exact/code.wgsl`, which holds the
//! proof.

use super::float::{INF, MAGNITUDE, div, mul_hi, mul_int, parts, round_pack, shift_right_rne, sub};

/// What a scale becomes before it meets elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) s: u32,
    pub(crate) ms: u32,
    pub(crate) es: i32,
    /// `floor((2^55 - 1) / ms)`
    pub(crate) reciprocal: u32,
    /// The search window above `base(s)` for positive and negative values; 0 where the search is not proven.
    pub(crate) window_p: u32,
    pub(crate) window_n: u32,
    /// The least magnitudes that are clipped; infinity where none is.
    pub(crate) clip_p: u32,
    pub(crate) clip_n: u32,
}

pub(crate) fn reciprocal(m: u32) -> u32 {
    let mut q = 0u32;
    let mut r = 0u32;
    for _ in 0..55 {
        r = (r << 1) | 1;
        let fits = r >= m;
        r -= if fits { m } else { 0 };
        q = (q << 1) | u32::from(fits);
    }
    q
}

pub(crate) fn base(s: u32) -> u32 {
    ((s >> 23) - 1) << 23
}

pub(crate) fn window(k: u32, ms: u32, es: i32, s: u32) -> u32 {
    let p = k * ms;
    let down = 8 - p.leading_zeros();
    let pattern = ((es + down.cast_signed() + 149).cast_unsigned() << 23) + (p >> down);
    pattern - base(s)
}

pub(crate) fn threshold(k: u32, ms: u32, es: i32) -> u32 {
    let n = 2 * k - 1;
    let j = 31 - n.leading_zeros();
    let factor = if k % 2 == 1 { (n << (24 - j)) + 1 } else { (n << (24 - j)) - 1 };
    // tau = ms * factor * 2^e, truncated to 32 bits by dropping n bits below them: never exact.
    let hi = mul_hi(ms, factor);
    let lo = ms.wrapping_mul(factor);
    let drop = 32 - hi.leading_zeros();
    let m = (hi << (32 - drop)) | (lo >> drop);
    let e = es - 25 + j.cast_signed() + drop.cast_signed();
    // m has its top bit set: truncate to 24 bits, or to the subnormals' grid.
    let quantum = (e + 8).max(-149);
    let shift = (quantum - e).min(32);
    let q = if shift >= 32 { 0 } else { m >> shift.cast_unsigned() };
    let biased = quantum + 149;
    if biased >= 254 {
        return INF;
    }
    ((biased.cast_unsigned() << 23) + q + 1).min(INF)
}

/// The recipe of scale `s`; `hi` and `lo` bound the values that it will meet.
pub(crate) fn recipe(s: u32, lo: u32, hi: u32, qmin: i32, qmax: i32) -> Recipe {
    let y = parts(s);
    let proven = s >= (2 << 23) && s < (238 << 23);
    let (cap_p, cap_n) = (qmax.cast_unsigned(), qmin.unsigned_abs());
    let clip_p = threshold(cap_p + 1, y.m, y.e);
    let clip_n = threshold(cap_n + 1, y.m, y.e);
    Recipe {
        s,
        ms: y.m,
        es: y.e,
        reciprocal: reciprocal(y.m),
        window_p: if proven { window(cap_p, y.m, y.e, s) } else { 0 },
        window_n: if proven { window(cap_n, y.m, y.e, s) } else { 0 },
        clip_p: if hi.cast_signed() >= clip_p.cast_signed() { clip_p } else { INF },
        clip_n: if lo >> 31 == 1 && (lo & MAGNITUDE) >= clip_n { clip_n } else { INF },
    }
}

pub(crate) fn quotient(a: u32, r: &Recipe) -> u32 {
    let x = parts(a);
    let ge = x.m >= r.ms;
    let k = if ge { 23 } else { 24 };
    let h = mul_hi(x.m << 8, r.reciprocal);
    let mut q = h >> if ge { 8 } else { 7 };
    let mut rest = (x.m << k).wrapping_sub(q.wrapping_mul(r.ms));
    let low = rest >= r.ms;
    rest -= if low { r.ms } else { 0 };
    q += u32::from(low);
    q += u32::from((rest << 1) > r.ms);
    let e = x.e - r.es - k;
    if a == 0 {
        return 0;
    }
    if e >= 0 {
        return 0x0080_0000;
    }
    shift_right_rne(q, (-e).min(25).cast_unsigned())
}

pub(crate) fn search(b: u32, r: &Recipe, neg: bool) -> u32 {
    let start = base(r.s) + 0x007f_ffff;
    let t = ((b & MAGNITUDE).wrapping_add(0x007f_ffff)).cast_signed();
    let c = (t.max(start.cast_signed()).cast_unsigned() - start).min(if neg { r.window_n } else { r.window_p });
    let z = ((c & 0x007f_ffff) | 0x0080_0000) << (c >> 23);
    let rt = (r.reciprocal >> 17) + 1;
    let guess = ((z >> 16) * rt + (0x0040_0000 + rt + 256)) >> 23;
    let ct = (25 << 23) - 1 + (r.ms & 0x007f_ffff);
    let theta = r.ms >> ((ct - c) >> 23);
    let odd = 0u32.wrapping_sub(guess & 1);
    let d = z.wrapping_add(r.ms).wrapping_sub(guess.wrapping_mul(r.ms << 1)).wrapping_add(theta ^ odd);
    guess - (d >> 31)
}

/// The code of `b`, without a zero point.
pub(crate) fn encode(b: u32, r: &Recipe, qmin: i32, qmax: i32) -> i32 {
    let neg = (b >> 31) == 1;
    let k;
    if r.window_p != 0 {
        k = search(b, r, neg);
    } else {
        let a = b & MAGNITUDE;
        let cap = if neg { qmin.unsigned_abs() } else { qmax.cast_unsigned() };
        let full = quotient(a, r).min(cap);
        k = if a > INF {
            0
        } else if a == INF {
            cap
        } else {
            full
        };
    }
    if neg { -k.cast_signed() } else { k.cast_signed() }
}

pub(crate) fn is_clipped(b: u32, r: &Recipe) -> bool {
    let a = b & MAGNITUDE;
    a >= (if (b >> 31) == 1 { r.clip_n } else { r.clip_p }) && a < INF
}

pub(crate) fn decode(q: i32, s: u32) -> u32 {
    let sign = if q < 0 { 0x8000_0000 } else { 0 };
    mul_int(sign, q.unsigned_abs(), s)
}

/// `|x' - x|`, one rounded subtraction, of any two patterns.
pub(crate) fn abs_error(x: u32, out: u32) -> u32 {
    let (ax, ao) = (x & MAGNITUDE, out & MAGNITUDE);
    if ax > INF || ao > INF || (ax == INF && x == out) {
        return 0x7fc0_0000;
    }
    if ax == INF || ao == INF {
        return INF;
    }
    sub(out, x) & MAGNITUDE
}

/// The scale of a range; `minmax` or else absmax.
pub(crate) fn scale(lo: u32, hi: u32, minmax: bool, qmax: u32, divisor: u32) -> u32 {
    let amax = (lo & MAGNITUDE).max(hi & MAGNITUDE);
    let by = |k: u32| round_pack(0, k, 0);
    let s;
    if minmax && lo != hi {
        let width = sub(hi, lo);
        if (width & MAGNITUDE) < INF {
            s = div(width, by(divisor));
        } else {
            s = super::float::add(div(hi, by(divisor)), div(lo ^ 0x8000_0000, by(divisor)));
        }
    } else {
        s = div(amax, by(qmax));
    }
    if s == 0 { 0x3f80_0000 } else { s }
}
