//! From a value to its code and back, on bit patterns; twin of `shaders/exact/code.wgsl`, which holds the
//! proof.

use super::float::{INF, MAGNITUDE, mul_hi, mul_int, parts, shift_right_rne, sub, unsigned_abs};

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
    /// The least magnitudes that are clipped.
    pub(crate) clip_p: u32,
    pub(crate) clip_n: u32,
    /// The steps from the zero point to the last code, on either side.
    pub(crate) cap_p: u32,
    pub(crate) cap_n: u32,
    /// The zero point.
    pub(crate) z: i32,
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

/// The recipe of scale `s` and zero point `z`, one of the codes `qmin ..= qmax`.
pub(crate) fn recipe(s: u32, z: i32, qmin: i32, qmax: i32) -> Recipe {
    let y = parts(s);
    let cap_p = (qmax.cast_unsigned().wrapping_sub(z.cast_unsigned())).min(0xffff);
    let cap_n = (z.cast_unsigned().wrapping_sub(qmin.cast_unsigned())).min(0xffff);
    let narrow = cap_p.wrapping_sub(1) < 128 && cap_n.wrapping_sub(1) < 128;
    let proven = narrow && ((2 << 23)..(238 << 23)).contains(&s);
    Recipe {
        s,
        ms: y.m,
        es: y.e,
        reciprocal: reciprocal(y.m),
        window_p: if proven { window(cap_p, y.m, y.e, s) } else { 0 },
        window_n: if proven { window(cap_n, y.m, y.e, s) } else { 0 },
        clip_p: threshold(cap_p + 1, y.m, y.e),
        clip_n: threshold(cap_n + 1, y.m, y.e),
        cap_p,
        cap_n,
        z,
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

/// The code of `b`, less the zero point.
pub(crate) fn encode(b: u32, r: &Recipe) -> i32 {
    let neg = (b >> 31) == 1;
    let k = if r.window_p != 0 {
        search(b, r, neg)
    } else {
        let a = b & MAGNITUDE;
        let cap = if neg { r.cap_n } else { r.cap_p };
        let full = quotient(a, r).min(cap);
        if a > INF {
            0
        } else if a == INF {
            cap
        } else {
            full
        }
    };
    (if neg { 0u32.wrapping_sub(k) } else { k }).cast_signed()
}

pub(crate) fn is_clipped(b: u32, r: &Recipe) -> bool {
    let a = b & MAGNITUDE;
    a >= (if (b >> 31) == 1 { r.clip_n } else { r.clip_p }) && a < INF
}

pub(crate) fn decode(q: i32, s: u32) -> u32 {
    let sign = if q < 0 { 0x8000_0000 } else { 0 };
    mul_int(sign, unsigned_abs(q), s)
}

/// `|x' - x|`, one rounded subtraction, of any two patterns.
pub(crate) fn abs_error_of(x: u32, out: u32) -> u32 {
    let (ax, ao) = (x & MAGNITUDE, out & MAGNITUDE);
    if ax > INF || ao > INF || (ax == INF && x == out) {
        return 0x7fc0_0000;
    }
    if ax == INF || ao == INF {
        return INF;
    }
    sub(out, x) & MAGNITUDE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    const SCALES: [u32; 16] = [
        1,
        2,
        3,
        0x0012_3456,
        0x007f_ffff,
        0x0080_0000,
        0x0100_0000,
        0x0100_0001,
        0x3c23_d70a,
        0x3f7f_ffff,
        0x3f80_0000,
        0x3f80_0001,
        0x76ff_ffff,
        0x7700_0000,
        0x7dfc_cc44,
        0x7f7f_ffff,
    ];

    /// Codes and zero points: symmetric, affine with the zero point at an end, in the middle and beside it, of
    /// every width.
    const CODES: [(i32, i32, i32); 14] = [
        (-128, 127, 0),
        (-8, 7, 0),
        (-32768, 32767, 0),
        (0, 255, 0),
        (0, 255, 255),
        (0, 255, 127),
        (0, 255, 3),
        (-128, 127, -128),
        (-128, 127, 1),
        (0, 15, 15),
        (-8, 7, -3),
        (0, 65535, 0),
        (0, 65535, 40000),
        (-32768, 32767, 32767),
    ];

    /// The contract's words in plain floats; the code less the zero point.
    fn expected(b: u32, s: u32, (qmin, qmax, z): (i32, i32, i32)) -> (i32, bool) {
        let (x, s) = (f32::from_bits(b), f32::from_bits(s));
        let code = f64::from((x / s).round_ties_even()) + f64::from(z);
        let (least, most) = (f64::from(qmin), f64::from(qmax));
        let clipped = x.is_finite() && !(least..=most).contains(&code);
        (if x.is_nan() { 0 } else { code.clamp(least, most) as i32 - z }, clipped)
    }

    fn recipe_of(s: u32, (qmin, qmax, z): (i32, i32, i32)) -> Recipe {
        recipe(s, z, qmin, qmax)
    }

    fn check(b: u32, r: &Recipe, codes: (i32, i32, i32)) {
        let found = (encode(b, r), is_clipped(b, r));
        assert_eq!(found, expected(b, r.s, codes), "x {b:#010x}, s {:#010x}, codes and zero point {codes:?}", r.s);
        // The general form, where the search is taken too.
        let general = encode(b, &Recipe { window_p: 0, ..*r });
        assert_eq!(general, found.0, "x {b:#010x}, s {:#010x}, {codes:?}", r.s);
    }

    #[test]
    fn codes_and_clipping_are_those_of_plain_floats_near_every_threshold() {
        let mut rng = Rng::new(6);
        let random = (0..3000).map(|_| (rng.next_u32() & 0x7fff_ffff).clamp(1, 0x7f7f_ffff)).collect::<Vec<_>>();
        for (i, s) in SCALES.into_iter().chain(random).enumerate() {
            let codes = CODES[i % CODES.len()];
            let r = recipe_of(s, codes);
            // The innermost and outermost codes, and some between.
            let (p, n, all) = (r.cap_p, r.cap_n, r.cap_p + r.cap_n);
            let between = (0..if all > 300 { 60 } else { 0 }).map(|_| rng.below(all));
            let near_zero = 0..all.min(150);
            for k in near_zero
                .chain(p.saturating_sub(3)..p + 3)
                .chain(n.saturating_sub(3)..n + 3)
                .chain(between.collect::<Vec<_>>())
            {
                let half = ((f64::from(k) + 0.5) * f64::from(f32::from_bits(s))) as f32;
                for near in -3i32..=3 {
                    let b = half.to_bits().saturating_add_signed(near).min(INF);
                    check(b, &r, codes);
                    check(b | 0x8000_0000, &r, codes);
                }
            }
            for b in edge_bits() {
                check(b, &r, codes);
            }
        }
    }

    #[test]
    fn codes_and_clipping_are_those_of_plain_floats_on_random_bits() {
        let mut rng = Rng::new(7);
        for i in 0..20_000 {
            let codes = CODES[i % CODES.len()];
            let r = recipe_of((rng.float_bits() & 0x7fff_ffff).clamp(1, 0x7f7f_ffff), codes);
            for _ in 0..50 {
                check(rng.float_bits(), &r, codes);
                // Near the scale's own magnitude, where codes differ.
                check((rng.next_u32() & 0x83ff_ffff) ^ r.s, &r, codes);
                check((rng.next_u32() & 0x8fff_ffff) ^ r.s, &r, codes);
            }
        }
    }

    #[test]
    #[ignore = "2^32 values for each of 16 scales: cargo test --release --lib -- --ignored (a few minutes)"]
    fn codes_and_clipping_are_those_of_plain_floats_on_all_values() {
        use rayon::prelude::*;
        // A scale with each kind of codes, int8's with all.
        for (i, s) in SCALES.into_iter().enumerate() {
            for codes in [CODES[0], CODES[1 + i % (CODES.len() - 1)]] {
                let r = recipe_of(s, codes);
                (0..=u32::MAX >> 16).into_par_iter().for_each(|high| {
                    for low in 0..=0xffff {
                        check(high << 16 | low, &r, codes);
                    }
                });
            }
        }
    }

    #[test]
    fn dequantizing_and_the_loss_are_those_of_plain_floats() {
        let mut rng = Rng::new(8);
        let edges = edge_bits();
        for i in 0..400_000 {
            let s = if i < 100 { SCALES[i % 16] } else { (rng.float_bits() & 0x7fff_ffff).clamp(1, 0x7f7f_ffff) };
            let q = i32::try_from(rng.next_u32() % if i % 2 == 0 { 256 } else { 131_071 }).unwrap();
            let q = q - if i % 2 == 0 { 128 } else { 65_535 };
            let out = q as f32 * f32::from_bits(s);
            assert_eq!(decode(q, s), out.to_bits(), "{q} * {s:#010x}");
            let x = if i % 4 == 0 { edges[i / 4 % edges.len()] } else { rng.float_bits() };
            let error = (out - f32::from_bits(x)).abs();
            let bits = if error.is_nan() { 0x7fc0_0000 } else { error.to_bits() };
            assert_eq!(abs_error_of(x, out.to_bits()), bits, "|{out:e} - {x:#010x}|");
        }
    }
}
