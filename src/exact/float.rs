//! binary32 arithmetic on bit patterns; twin of `shaders/exact/float.wgsl`, which explains it.

/// Infinity's pattern; larger magnitudes are NaN.
pub(crate) const INF: u32 = 0x7f80_0000;
/// Everything but the sign.
pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;
const SIGN: u32 = 0x8000_0000;
pub(crate) const HIDDEN: u32 = 0x0080_0000;

/// `m * 2^e`, with `2^23 <= m < 2^24`.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) m: u32,
    pub(crate) e: i32,
}

pub(crate) fn is_finite(b: u32) -> bool {
    (b & MAGNITUDE) < INF
}

pub(crate) fn hi_key(b: u32) -> u32 {
    let ordered = b ^ (((b.cast_signed() >> 31).cast_unsigned()) | SIGN);
    ordered.wrapping_add(HIDDEN)
}

pub(crate) fn lo_key(b: u32) -> u32 {
    let ordered = b ^ (((b.cast_signed() >> 31).cast_unsigned()) | SIGN);
    (!ordered).wrapping_add(HIDDEN)
}

pub(crate) fn from_hi_key(key: u32) -> u32 {
    if key < 2 * HIDDEN {
        return 0;
    }
    let ordered = key - HIDDEN;
    let b = if ordered & SIGN != 0 { ordered ^ SIGN } else { !ordered };
    if b == SIGN { 0 } else { b }
}

pub(crate) fn from_lo_key(key: u32) -> u32 {
    if key < 2 * HIDDEN {
        return 0;
    }
    let ordered = !(key - HIDDEN);
    let b = if ordered & SIGN != 0 { ordered ^ SIGN } else { !ordered };
    if b == SIGN { 0 } else { b }
}

/// The keys of four magnitudes.
#[cfg(test)]
pub(crate) fn magnitude_keys(b: [u32; 4]) -> [u32; 4] {
    b.map(|b| (b << 1).wrapping_add(2 * HIDDEN))
}

#[cfg(test)]
pub(crate) fn from_magnitude_key(key: u32) -> u32 {
    (key.max(2 * HIDDEN) - 2 * HIDDEN) >> 1
}

pub(crate) fn parts(a: u32) -> Parts {
    let exponent = a >> 23;
    let fraction = a & 0x007f_ffff;
    let up = (fraction | 1).leading_zeros() - 8;
    if exponent == 0 {
        Parts { m: fraction << (up & 31), e: -149 - up.cast_signed() }
    } else {
        Parts { m: fraction | HIDDEN, e: exponent.cast_signed() - 150 }
    }
}

pub(crate) fn shift_right_rne(m: u32, n: u32) -> u32 {
    let odd = (m >> n) & 1;
    (m + ((1 << (n - 1)) - 1) + odd) >> n
}

pub(crate) fn round_pack(sign: u32, m: u32, e: i32) -> u32 {
    if m == 0 {
        return sign;
    }
    let top = 31 - m.leading_zeros().cast_signed();
    let quantum = (top + e - 23).max(-149);
    let shift = quantum - e;
    let q;
    if shift <= 0 {
        q = m << ((-shift) & 31).cast_unsigned();
    } else if shift >= 32 {
        q = u32::from(shift == 32 && m > 0x8000_0000);
    } else {
        let n = shift.cast_unsigned();
        let rest = m & ((1 << n) - 1);
        let middle = 1 << (n - 1);
        let kept = m >> n;
        q = kept + u32::from(rest > middle || (rest == middle && (kept & 1) == 1));
    }
    let biased = quantum + 149;
    if biased >= 254 {
        return sign | INF;
    }
    sign | ((biased.cast_unsigned() << 23) + q).min(INF)
}

pub(crate) fn add(a: u32, b: u32) -> u32 {
    let swap = (b & MAGNITUDE) > (a & MAGNITUDE);
    let x = if swap { b } else { a };
    let y = if swap { a } else { b };
    let ax = x & MAGNITUDE;
    let ay = y & MAGNITUDE;
    let ex = (ax >> 23).max(1);
    let ey = (ay >> 23).max(1);
    let mx = ((ax & 0x007f_ffff) | if ax >= HIDDEN { HIDDEN } else { 0 }) << 3;
    let my = ((ay & 0x007f_ffff) | if ay >= HIDDEN { HIDDEN } else { 0 }) << 3;
    let d = (ex - ey).min(27);
    let lost = my & ((1 << d) - 1);
    let my = (my >> d) | u32::from(lost != 0);
    let same = ((x ^ y) & SIGN) == 0;
    let m = if same { mx + my } else { mx - my };
    if m == 0 {
        return if same { x & SIGN } else { 0 };
    }
    round_pack(x & SIGN, m, ex.cast_signed() - 153)
}

pub(crate) fn sub(a: u32, b: u32) -> u32 {
    add(a, b ^ SIGN)
}

pub(crate) fn unsigned_abs(q: i32) -> u32 {
    q.unsigned_abs()
}

pub(crate) fn mul_hi(a: u32, b: u32) -> u32 {
    let (al, ah, bl, bh) = (a & 0xffff, a >> 16, b & 0xffff, b >> 16);
    let mid = ah * bl + ((al * bl) >> 16);
    let mid2 = al * bh + (mid & 0xffff);
    ah * bh + (mid >> 16) + (mid2 >> 16)
}

pub(crate) fn product(sign: u32, k: u32, m: u32, e: i32) -> u32 {
    let lo = k.wrapping_mul(m);
    let hi = mul_hi(k, m);
    if hi == 0 {
        return round_pack(sign, lo, e);
    }
    let n = 32 - hi.leading_zeros();
    let lost = lo & ((1 << n) - 1);
    let top = (hi << (32 - n)) | (lo >> n);
    round_pack(sign, top | u32::from(lost != 0), e + n.cast_signed())
}

pub(crate) fn mul_int(sign: u32, k: u32, s: u32) -> u32 {
    if k == 0 {
        return 0;
    }
    let y = parts(s);
    product(sign, k, y.m, y.e)
}

pub(crate) fn mul(a: u32, b: u32) -> u32 {
    let x = parts(a & MAGNITUDE);
    let y = parts(b & MAGNITUDE);
    product((a ^ b) & SIGN, x.m, y.m, x.e + y.e)
}

pub(crate) fn div(a: u32, b: u32) -> u32 {
    let sign = (a ^ b) & SIGN;
    let magnitude = a & MAGNITUDE;
    if magnitude == 0 {
        return sign;
    }
    let x = parts(magnitude);
    let y = parts(b & MAGNITUDE);
    let mut q = 0u32;
    let mut r = x.m;
    for _ in 0..27 {
        let fits = r >= y.m;
        r = (r - if fits { y.m } else { 0 }) << 1;
        q = (q << 1) | u32::from(fits);
    }
    round_pack(sign, (q << 1) | u32::from(r != 0), x.e - y.e - 27)
}

/// `a / d` for a normal `d > 0` whose factor is `floor((2^55 - 1) / md)`.
pub(crate) fn div_by(a: u32, d: u32, factor: u32) -> u32 {
    let x = parts(a & MAGNITUDE);
    let y = parts(d);
    let low = mul_hi(x.m << 8, factor);
    let r = (x.m << 31).wrapping_sub(low.wrapping_mul(y.m));
    let more = r >= y.m;
    let q = low + u32::from(more);
    let sticky = u32::from(r != if more { y.m } else { 0 });
    round_pack((a ^ d) & SIGN, q | sticky, x.e - y.e - 31)
}

pub(crate) fn from_int(q: i32) -> u32 {
    round_pack(if q < 0 { SIGN } else { 0 }, unsigned_abs(q), 0)
}

pub(crate) fn to_int(b: u32) -> i32 {
    let x = parts(b & MAGNITUDE);
    let whole = shift_right_rne(x.m, (-x.e).clamp(1, 25).cast_unsigned());
    let k = if x.e >= 0 { HIDDEN } else { whole };
    (if b >> 31 == 1 { 0u32.wrapping_sub(k) } else { k }).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Rng, edge_bits};

    fn check(name: &str, a: u32, b: u32, found: u32, expected: f32) {
        assert_eq!(
            found,
            expected.to_bits(),
            "{name}({a:#010x}, {b:#010x}) = {found:#010x}, not {:#010x}",
            expected.to_bits()
        );
    }

    #[test]
    fn addition_division_and_multiplication_round_as_ieee_binary32() {
        let mut rng = Rng::new(1);
        let edges = edge_bits();
        let mut pair = |i: usize| {
            let n = edges.len();
            if i < n * n { (edges[i / n], edges[i % n]) } else { (rng.float_bits(), rng.float_bits()) }
        };
        for i in 0..2_000_000 {
            let (a, b) = pair(i);
            if !is_finite(a) || !is_finite(b) {
                continue;
            }
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            check("add", a, b, add(a, b), x + y);
            check("sub", a, b, sub(a, b), x - y);
            check("mul", a, b, mul(a, b), x * y);
            if b & MAGNITUDE != 0 {
                check("div", a, b, div(a, b), x / y);
            }
            if (HIDDEN..INF).contains(&b) {
                let factor = u32::try_from(((1u64 << 55) - 1) / u64::from(parts(b).m)).unwrap();
                check("div_by", a, b, div_by(a, b, factor), x / y);
            }
            let k = a >> 15;
            if k != 0 && b & MAGNITUDE != 0 {
                check("mul_int", k, b, mul_int(b & SIGN, k, b & MAGNITUDE), k as f32 * y);
                check("from_int", a, 0, from_int(a.cast_signed()), a.cast_signed() as f32);
            }
            let whole = x.round_ties_even().clamp(-8_388_608.0, 8_388_608.0) as i32;
            assert_eq!(to_int(a), whole, "to_int({a:#010x})");
        }
    }

    #[test]
    fn nearby_exponents_with_opposite_signs_cancel_exactly() {
        let mut rng = Rng::new(2);
        for _ in 0..2_000_000 {
            let a = rng.next_u32() & MAGNITUDE;
            let distance = rng.next_u32() % 30;
            let b = (rng.next_u32() & 0x007f_ffff) | ((a >> 23).saturating_sub(distance) << 23) | SIGN;
            if is_finite(a) && is_finite(b) {
                check("add", a, b, add(a, b), f32::from_bits(a) + f32::from_bits(b));
            }
        }
    }

    #[test]
    fn keys_of_magnitudes_are_in_their_order_and_below_all_of_them_what_is_not_finite() {
        let mut rng = Rng::new(3);
        let all = edge_bits().into_iter().chain((0..100_000).map(|_| rng.float_bits()));
        let mut last = (0, magnitude_keys([0; 4])[0]);
        for b in all {
            let [key, ..] = magnitude_keys([b; 4]);
            assert_eq!(key >= 2 * HIDDEN, is_finite(b), "{b:#010x}");
            if is_finite(b) {
                let a = b & MAGNITUDE;
                assert_eq!(from_magnitude_key(key), a, "{b:#010x}");
                assert_eq!(key.cmp(&last.1), a.cmp(&last.0), "{b:#010x} and {:#010x}", last.0);
                last = (a, key);
            }
        }
        assert_eq!(from_magnitude_key(0), 0);
    }

    #[test]
    fn keys_order_finite_values_and_ignore_the_rest() {
        let mut rng = Rng::new(3);
        let mut bits = edge_bits();
        bits.extend((0..2000).map(|_| rng.float_bits()));
        for &a in &bits {
            if !is_finite(a) {
                assert!(hi_key(a) < 2 * HIDDEN && lo_key(a) < 2 * HIDDEN, "{a:#010x} counts");
                continue;
            }
            let canonical = if a == SIGN { 0 } else { a };
            assert_eq!((from_hi_key(hi_key(a)), from_lo_key(lo_key(a))), (canonical, canonical));
            for &b in bits.iter().filter(|&&b| is_finite(b)) {
                if f32::from_bits(a) < f32::from_bits(b) {
                    assert!(hi_key(a) < hi_key(b) && lo_key(a) > lo_key(b), "{a:#010x} {b:#010x}");
                }
            }
        }
        assert_eq!((from_hi_key(0), from_lo_key(0)), (0, 0), "no finite value at all");
    }

    #[test]
    fn mul_hi_is_the_high_word() {
        let mut rng = Rng::new(4);
        for i in 0..200_000u32 {
            let (a, b) = if i == 0 { (u32::MAX, u32::MAX) } else { (rng.next_u32(), rng.next_u32()) };
            assert_eq!(mul_hi(a, b), ((u64::from(a) * u64::from(b)) >> 32) as u32);
        }
    }
}
