//! From a value to its code and back, on bit patterns; twin of `shaders/exact/code.wgsl`, which holds the
//! proof.

use super::float::{INF, MAGNITUDE, mul_hi, mul_int, sub, unsigned_abs};

/// What a scale becomes before it meets elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) s: u32,
    /// Guesses quotients.
    pub(crate) factor: u32,
    /// The least magnitudes that are clipped, extended.
    pub(crate) clip_p: u32,
    pub(crate) clip_n: u32,
    /// The steps from the zero point to the last code, on either side.
    pub(crate) cap_p: u32,
    pub(crate) cap_n: u32,
    /// The zero point.
    pub(crate) z: i32,
}

pub(crate) fn reciprocal(m: u32) -> u32 {
    let mut q = u32::MAX / m;
    let mut r = u32::MAX - q * m;
    for bits in [8, 8, 7] {
        let n = (r << bits) | ((1 << bits) - 1);
        let digit = n / m;
        q = (q << bits) | digit;
        r = n - digit * m;
    }
    q
}

pub(crate) fn base(s: u32) -> u32 {
    ((s >> 23) - 1) << 23
}

pub(crate) fn significand(s: u32) -> u32 {
    (s & 0x007f_ffff) | 0x0080_0000
}

pub(crate) fn factor_of(ms: u32, is_wide: bool) -> u32 {
    if is_wide { (reciprocal(ms) >> 8) - 2 } else { u32::MAX / (ms >> 5) + 1 }
}

pub(crate) fn extended(a: u32) -> u32 {
    if a >= 0x0080_0000 {
        return a + 0x1000_0000;
    }
    let up = (a | 1).leading_zeros() - 8;
    if a == 0 { 0 } else { ((32 - up) << 23) + (a << up) }
}

pub(crate) fn threshold(k: u32, s: u32) -> u32 {
    let ms = significand(s);
    let n = 2 * k - 1;
    let j = 31 - n.leading_zeros();
    let factor = if k % 2 == 1 { (n << (24 - j)) + 1 } else { (n << (24 - j)) - 1 };
    let hi = mul_hi(ms, factor);
    let lo = ms.wrapping_mul(factor);
    let drop = 32 - hi.leading_zeros();
    let m = (hi << (32 - drop)) | (lo >> drop);
    (((s >> 23) + j + drop - 18) << 23) + (m >> 8) + 1
}

/// The recipe of scale `s` and zero point `z`, one of the codes `qmin ..= qmax`, which are wide if more than 2^8.
pub(crate) fn recipe(s: u32, z: i32, qmin: i32, qmax: i32, is_wide: bool) -> Recipe {
    let y = extended(s);
    let cap_p = (qmax.cast_unsigned().wrapping_sub(z.cast_unsigned())).min(0xffff);
    let cap_n = (z.cast_unsigned().wrapping_sub(qmin.cast_unsigned())).min(0xffff);
    let factor = factor_of(significand(y), is_wide);
    let (clip_p, clip_n) = (threshold(cap_p + 1, y), threshold(cap_n + 1, y));
    Recipe { s, factor, clip_p, clip_n, cap_p, cap_n, z }
}

pub(crate) fn narrow(b: u32, r: &Recipe) -> u32 {
    let y = extended(r.s);
    let ms = significand(y);
    let c = above_base(b, r, y);
    let m = significand(c);
    let sh = c >> 23;
    let guess = ((m >> (16 - sh)) * r.factor + (0x0020_0000 + r.factor + 128)) >> 22;
    let odd = 0u32.wrapping_sub(guess & 1);
    let d = (m << sh).wrapping_add(ms).wrapping_sub(guess.wrapping_mul(ms << 1)).wrapping_add(theta_of(c, ms) ^ odd);
    guess - (d >> 31)
}

pub(crate) fn above_base(b: u32, r: &Recipe, y: u32) -> u32 {
    let a = b & MAGNITUDE;
    let x = if a > INF {
        0
    } else if a == INF {
        u32::MAX
    } else {
        extended(a)
    };
    let low = base(y);
    (x.max(low) - low).min(if (b >> 31) == 1 { r.clip_n } else { r.clip_p } - 1 - low)
}

pub(crate) fn theta_of(c: u32, ms: u32) -> u32 {
    let ct = (25 << 23) - 1 + (ms & 0x007f_ffff);
    ms >> ((ct - c) >> 23)
}

pub(crate) fn wide(b: u32, r: &Recipe) -> u32 {
    let y = extended(r.s);
    let ms = significand(y);
    let c = above_base(b, r, y);
    let m = significand(c);
    let sh = c >> 23;
    let product = m * (r.factor >> 16) + (((m >> 8) * (r.factor & 0xffff)) >> 8);
    let guess = ((product >> (31 - sh)) + 1) >> 1;
    let t = theta_of(c, ms) ^ 0u32.wrapping_sub(guess & 1);
    guess + (t.wrapping_add(ms).wrapping_sub(m << sh).wrapping_add(guess.wrapping_mul(ms << 1)) >> 31)
}

/// The code of `b`, less the zero point.
pub(crate) fn encode(b: u32, r: &Recipe, is_wide: bool) -> i32 {
    let k = if is_wide { wide(b, r) } else { narrow(b, r) };
    (if (b >> 31) == 1 { 0u32.wrapping_sub(k) } else { k }).cast_signed()
}

/// What `narrow` and `wide` need of a recipe.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) struct Quick {
    low: u32,
    factor: u32,
    window_p: u32,
    window_n: u32,
    middle: u32,
    step: u32,
}

#[cfg(test)]
pub(crate) fn is_quick(s: u32) -> bool {
    s >= 2 << 23
}

#[cfg(test)]
pub(crate) fn quick(r: &Recipe) -> Quick {
    let (low, ms) = (base(r.s), significand(r.s));
    let end = INF - 1 - low;
    let [window_p, window_n] = [r.clip_p, r.clip_n].map(|clip| (clip - (low + 0x1000_0000 + 1)).min(end));
    Quick { low, factor: r.factor, window_p, window_n, middle: ms + 512, step: ms << 1 }
}

/// The steps of four values from the zero point, those of negative ones negated, and their `Z`; `None` where one is in doubt.
#[cfg(test)]
pub(crate) fn four_steps(b: [u32; 4], q: &Quick, on_grid: bool) -> Option<([i32; 4], [u32; 4])> {
    let (mut steps, mut grid) = ([0; 4], [0; 4]);
    for (i, b) in b.into_iter().enumerate() {
        let neg = b >= 0x8000_0000;
        let a = b & MAGNITUDE;
        let c = a.max(q.low) - q.low;
        let left = if neg { q.window_n } else { q.window_p }.wrapping_sub(c);
        if left >> 31 == 1 {
            return None;
        }
        let m = (c & 0x007f_ffff) | 0x0080_0000;
        let sh = c >> 23;
        let z = if on_grid { four_to_grid([a; 4], q.low)[0] } else { m << sh };
        let guess = ((m >> (16 - sh)) * q.factor + (0x0020_0000 + q.factor + 128)) >> 22;
        let d = z.wrapping_add(q.middle).wrapping_sub(guess.wrapping_mul(q.step));
        if d < 1024 {
            return None;
        }
        let k = (guess - (d >> 31)).cast_signed();
        (steps[i], grid[i]) = (if neg { -k } else { k }, z);
    }
    Some((steps, grid))
}

/// What `four_inner_steps` needs of a scale.
#[cfg(test)]
pub(crate) fn inner_quick(s: u32) -> Quick {
    let ms = significand(s);
    Quick { low: base(s), factor: factor_of(ms, false), window_p: 0, window_n: 0, middle: ms + 512, step: ms << 1 }
}

/// `four_steps` of finite values that are not clipped.
#[cfg(test)]
pub(crate) fn four_inner_steps(b: [u32; 4], q: &Quick, on_grid: bool) -> Option<([i32; 4], [u32; 4])> {
    let (mut steps, mut grid) = ([0; 4], [0; 4]);
    for (i, b) in b.into_iter().enumerate() {
        let a = b & MAGNITUDE;
        let c = a.max(q.low) - q.low;
        let m = (c & 0x007f_ffff) | 0x0080_0000;
        let z = if on_grid { four_to_grid([a; 4], q.low)[0] } else { m << ((c >> 23) & 31) };
        let guess = ((z >> 16) * q.factor + (0x0020_0000 + q.factor + 128)) >> 22;
        let d = z.wrapping_add(q.middle).wrapping_sub(guess.wrapping_mul(q.step));
        if d < 1024 {
            return None;
        }
        let k = (guess - (d >> 31)).cast_signed();
        (steps[i], grid[i]) = (if b >= 0x8000_0000 { -k } else { k }, z);
    }
    Some((steps, grid))
}

/// `to_grid` of four magnitudes on the grid of the scale that has this base.
#[cfg(test)]
pub(crate) fn four_to_grid(a: [u32; 4], low: u32) -> [u32; 4] {
    a.map(|a| {
        let up = (a >> 23).wrapping_sub(low >> 23);
        let m = significand(a);
        let right = 0u32.wrapping_sub(up).min(25);
        let odd = (m >> right) & 1;
        let small = (m + (0x00ff_ffff >> (25 - right)) + odd) >> right;
        if up >> 31 == 1 { small } else { m << (up & 31) }
    })
}

/// `four_steps` of codes of more than 255 steps.
#[cfg(test)]
pub(crate) fn four_wide_steps(b: [u32; 4], q: &Quick) -> Option<([i32; 4], [u32; 4])> {
    let (mut steps, mut grid) = ([0; 4], [0; 4]);
    let ms = q.step >> 1;
    for (i, b) in b.into_iter().enumerate() {
        let neg = b >= 0x8000_0000;
        let c = (b & MAGNITUDE).max(q.low) - q.low;
        let left = if neg { q.window_n } else { q.window_p }.wrapping_sub(c);
        if left >> 31 == 1 {
            return None;
        }
        let m = (c & 0x007f_ffff) | 0x0080_0000;
        let sh = c >> 23;
        let z = m << sh;
        let product = m * (q.factor >> 16) + (((m >> 8) * (q.factor & 0xffff)) >> 8);
        let guess = ((product >> (31 - sh)) + 1) >> 1;
        let t = theta_of(c, ms) ^ 0u32.wrapping_sub(guess & 1);
        let below = t.wrapping_add(ms).wrapping_sub(z).wrapping_add(guess.wrapping_mul(q.step));
        let k = (guess + (below >> 31)).cast_signed();
        (steps[i], grid[i]) = (if neg { -k } else { k }, z);
    }
    Some((steps, grid))
}

pub(crate) fn is_clipped(b: u32, r: &Recipe) -> bool {
    let a = b & MAGNITUDE;
    extended(a) >= (if (b >> 31) == 1 { r.clip_n } else { r.clip_p }) && a < INF
}

pub(crate) fn decode(q: i32, s: u32) -> u32 {
    let sign = if q < 0 { 0x8000_0000 } else { 0 };
    mul_int(sign, unsigned_abs(q), s)
}

#[cfg(test)]
pub(crate) fn is_direct(s: u32) -> bool {
    (0x0080_0000..246 << 23).contains(&s)
}

/// `decode` of four codes of at most 255 steps.
#[cfg(test)]
pub(crate) fn four_values(k: [u32; 4], neg: [bool; 4], s: u32) -> [u32; 4] {
    std::array::from_fn(|i| {
        let k = k[i];
        let p = k * significand(s);
        let zeros = (p | 0x0080_0000).leading_zeros();
        let r = 8 - zeros;
        let rest = 0xff >> zeros;
        let odd = (p >> r) & rest & 1;
        let m = (p + (rest >> 1) + odd) >> r;
        let value = (m + base(s) + (r << 23)) | if neg[i] { 0x8000_0000 } else { 0 };
        if k == 0 { 0 } else { value }
    })
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
        recipe(s, z, qmin, qmax, qmax - qmin > 255)
    }

    fn check(b: u32, r: &Recipe, codes: (i32, i32, i32)) {
        let is_wide = codes.1 - codes.0 > 255;
        let found = (encode(b, r, is_wide), is_clipped(b, r));
        assert_eq!(found, expected(b, r.s, codes), "x {b:#010x}, s {:#010x}, codes and zero point {codes:?}", r.s);
        if is_quick(r.s) {
            let ordinary = !found.1 && (b & MAGNITUDE) < INF;
            let is_inner = codes.1.min(-codes.0) <= 127 && codes.2 == 0 && found.0.abs() <= 127 && ordinary;
            for on_grid in [false, true] {
                let four = match is_wide {
                    true => four_wide_steps([b; 4], &quick(r)),
                    false => four_steps([b; 4], &quick(r), on_grid),
                };
                assert!(four.is_none_or(|(four, _)| four == [found.0; 4]), "x {b:#010x}, s {:#010x}, {codes:?}", r.s);
                assert!(four.is_none() || ordinary, "x {b:#010x} is to be counted");
                let inner = is_inner.then(|| four_inner_steps([b; 4], &inner_quick(r.s), on_grid)).flatten();
                assert!(inner.is_none_or(|(four, _)| four == [found.0; 4]), "x {b:#010x}, s {:#010x}, inner", r.s);
            }
        }
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
            if is_direct(s) && unsigned_abs(q) < 256 {
                assert_eq!(four_values([unsigned_abs(q); 4], [q < 0; 4], s), [out.to_bits(); 4], "{q} * {s:#010x}");
            }
            let x = if i % 4 == 0 { edges[i / 4 % edges.len()] } else { rng.float_bits() };
            let error = (out - f32::from_bits(x)).abs();
            let bits = if error.is_nan() { 0x7fc0_0000 } else { error.to_bits() };
            assert_eq!(abs_error_of(x, out.to_bits()), bits, "|{out:e} - {x:#010x}|");
        }
    }
}
