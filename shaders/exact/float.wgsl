// binary32 arithmetic on bit patterns. No shader of this crate contains a floating-point type, literal or
// operation: WGSL lets `/` be 2.5 ULP off, lets `+ - *` round either way, and lets subnormals be flushed and
// NaN be assumed away, while u32 arithmetic is exact and wraps. Twin: src/exact/float.rs, the same functions.
//
// Relied on: wrapping u32 `+ - *`, i32 that never overflows, shifts by 0 to 31, countLeadingZeros of non-zero
// values; each must show at its place, and tests/shaders/lint.rs finds where it does not. `select` computes both
// its operands, so that shifts are in range on the side not taken too.

const INF = 0x7f800000u;          // larger magnitudes are NaN
const MAGNITUDE = 0x7fffffffu;    // everything but the sign
const SIGN = 0x80000000u;
const HIDDEN = 0x00800000u;       // the leading significand bit that a normal number does not store

struct Parts { m: u32, e: i32 }   // m * 2^e, 2^23 <= m < 2^24

fn is_finite(b: u32) -> bool { return (b & MAGNITUDE) < INF; }

// Keys for max reductions. Flipping the sign bit of non-negative patterns and all bits of negative ones makes
// u32 order the order of the reals (-0 just below +0). In that order the finite values are 0x00800000 to
// 0xff7fffff; adding 0x00800000 wraps all that is not finite to below 0x01000000, and every finite value
// stays above. So a plain max skips NaN and infinities, and 0 stands for no finite value.
fn hi_key(b: u32) -> u32 {
    let ordered = b ^ (bitcast<u32>(bitcast<i32>(b) >> 31u) | SIGN);
    return ordered + HIDDEN;
}

// The same with the order reversed: the largest lo_key belongs to the least value.
fn lo_key(b: u32) -> u32 {
    let ordered = b ^ (bitcast<u32>(bitcast<i32>(b) >> 31u) | SIGN);
    return ~ordered + HIDDEN;
}

// The value of a key; +0 for -0 and where there was no finite value.
fn from_hi_key(key: u32) -> u32 {
    if (key < 2u * HIDDEN) { return 0u; }
    let ordered = key - HIDDEN;
    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);
    return select(b, 0u, b == SIGN);
}

fn from_lo_key(key: u32) -> u32 {
    if (key < 2u * HIDDEN) { return 0u; }
    let ordered = ~(key - HIDDEN);
    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);
    return select(b, 0u, b == SIGN);
}

// Keys of magnitudes: the same for both signs, in the order of magnitudes; of what is not finite below 0x01000000.
fn magnitude_keys(b: vec4<u32>) -> vec4<u32> { return (b << vec4<u32>(1u)) + 2u * HIDDEN; }

fn from_magnitude_key(key: u32) -> u32 { return (max(key, 2u * HIDDEN) - 2u * HIDDEN) >> 1u; }

// Significand and exponent of a finite magnitude; m = 0 of zero. A subnormal is shifted up until its leading
// one stands at bit 23; `| 1` keeps countLeadingZeros defined for zero.
fn parts(a: u32) -> Parts {
    let exponent = a >> 23u;
    let fraction = a & 0x007fffffu;
    let up = countLeadingZeros(fraction | 1u) - 8u;
    let subnormal = exponent == 0u;
    return Parts(
        select(fraction | HIDDEN, fraction << (up & 31u), subnormal),
        select(bitcast<i32>(exponent) - 150, -149 - bitcast<i32>(up), subnormal),
    );
}

// m / 2^n to the nearest whole number, ties to even, for 1 <= n <= 31 and m + 2^(n-1) < 2^32. Adding one less
// than half, plus the lowest kept bit, carries exactly when the rest is above half, or is half and the kept
// part odd.
fn shift_right_rne(m: u32, n: u32) -> u32 {
    let odd = (m >> n) & 1u;
    return (m + ((1u << (n - 1u)) - 1u) + odd) >> n;
}

// m * 2^e rounded once to binary32, to nearest, ties to even. If the lowest bit of m is sticky (stands for
// "something non-zero below"), m must be at least 2^26, so that the bit lies below the half.
// `quantum` is the exponent of the result's last place, for subnormal results too. The hidden bit adds one
// to the exponent field, and so does a carry out of the significand, so that neither needs a case.
fn round_pack(sign: u32, m: u32, e: i32) -> u32 {
    if (m == 0u) { return sign; }
    let top = 31 - bitcast<i32>(countLeadingZeros(m));
    let quantum = max(top + e - 23, -149);
    let shift = quantum - e;
    var q: u32;
    if (shift <= 0) {
        q = m << (bitcast<u32>(-shift) & 31u);      // exact; at most 23, since top <= 23
    } else if (shift >= 32) {
        q = select(0u, 1u, shift == 32 && m > 0x80000000u);
    } else {
        let n = bitcast<u32>(shift) & 31u;
        let rest = m & ((1u << n) - 1u);
        let middle = 1u << ((n - 1u) & 31u);
        let kept = m >> n;
        q = kept + select(0u, 1u, rest > middle || (rest == middle && (kept & 1u) == 1u));
    }
    let biased = quantum + 149;
    if (biased >= 254) { return sign | INF; }
    return sign | min((bitcast<u32>(biased) << 23u) + q, INF);
}

// a + b of finite values. Three guard bits below the larger operand's last place; what the smaller one loses
// to alignment collapses into the lowest of them. A distance above 26 leaves nothing but that sticky bit.
fn add(a: u32, b: u32) -> u32 {
    let swap = (b & MAGNITUDE) > (a & MAGNITUDE);
    let x = select(a, b, swap);
    let y = select(b, a, swap);
    let ax = x & MAGNITUDE;
    let ay = y & MAGNITUDE;
    let ex = max(ax >> 23u, 1u);
    let ey = max(ay >> 23u, 1u);
    let mx = ((ax & 0x007fffffu) | select(0u, HIDDEN, ax >= HIDDEN)) << 3u;
    let my = ((ay & 0x007fffffu) | select(0u, HIDDEN, ay >= HIDDEN)) << 3u;
    let d = min(ex - ey, 27u);
    let lost = my & ((1u << d) - 1u);
    let aligned = (my >> d) | select(0u, 1u, lost != 0u);
    let same = ((x ^ y) & SIGN) == 0u;
    let m = select(mx - aligned, mx + aligned, same);
    if (m == 0u) { return select(0u, x & SIGN, same); }
    return round_pack(x & SIGN, m, bitcast<i32>(ex) - 153);
}

fn sub(a: u32, b: u32) -> u32 { return add(a, b ^ SIGN); }

// |q|, of the least i32 too, where `abs` overflows.
fn unsigned_abs(q: i32) -> u32 {
    let k = bitcast<u32>(q);
    return select(k, 0u - k, q < 0);
}

// The high word of a * b; the low word is the wrapping product.
fn mul_hi(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let mid = ah * bl + ((al * bl) >> 16u);
    let mid2 = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (mid2 >> 16u);
}

// k * m * 2^e for m < 2^24: the exact product, its low bits made sticky, rounded once.
fn product(sign: u32, k: u32, m: u32, e: i32) -> u32 {
    let lo = k * m;
    let hi = mul_hi(k, m);
    if (hi == 0u) { return round_pack(sign, lo, e); }
    let n = 32u - countLeadingZeros(hi);            // 1 to 24, since m < 2^24
    let lost = lo & ((1u << (n & 31u)) - 1u);
    let top = (hi << ((32u - n) & 31u)) | (lo >> (n & 31u));
    return round_pack(sign, top | select(0u, 1u, lost != 0u), e + bitcast<i32>(n));
}

// k * s for a whole number k and a finite s > 0.
fn mul_int(sign: u32, k: u32, s: u32) -> u32 {
    if (k == 0u) { return 0u; }
    let y = parts(s);
    return product(sign, k, y.m, y.e);
}

// a * b of finite values.
fn mul(a: u32, b: u32) -> u32 {
    let x = parts(a & MAGNITUDE);
    let y = parts(b & MAGNITUDE);
    return product((a ^ b) & SIGN, x.m, y.m, x.e + y.e);
}

// a / b of finite values, b not zero: 27 steps of restoring division give floor(ma / mb * 2^26), between 2^25
// and 2^27, and what is left of the dividend is sticky.
fn div(a: u32, b: u32) -> u32 {
    let sign = (a ^ b) & SIGN;
    let magnitude = a & MAGNITUDE;
    if (magnitude == 0u) { return sign; }
    let x = parts(magnitude);
    let y = parts(b & MAGNITUDE);
    var q = 0u;
    var r = x.m;
    for (var i = 0u; i < 27u; i++) {
        let fits = r >= y.m;
        r = (r - select(0u, y.m, fits)) << 1u;
        q = (q << 1u) | select(0u, 1u, fits);
    }
    return round_pack(sign, (q << 1u) | select(0u, 1u, r != 0u), x.e - y.e - 27);
}

// a / d of finite values, d > 0 and normal, factor = floor((2^55 - 1) / md). With N = 2^8 ma the quotient N * 2^23 / md is
// below 2^32, and 2^30 or more unless a is 0. N * factor / 2^32 is low by less than one, and so what is below the point
// by less than two: one correction makes it whole, and what is left of the dividend, below 2^25, is sticky.
fn div_by(a: u32, d: u32, factor: u32) -> u32 {
    let x = parts(a & MAGNITUDE);
    let y = parts(d);
    let low = mul_hi(x.m << 8u, factor);
    let r = (x.m << 31u) - low * y.m;
    let more = r >= y.m;
    let q = low + select(0u, 1u, more);
    let sticky = select(0u, 1u, r != select(0u, y.m, more));
    return round_pack((a ^ d) & SIGN, q | sticky, x.e - y.e - 31);
}

fn from_int(q: i32) -> u32 { return round_pack(select(0u, SIGN, q < 0), unsigned_abs(q), 0); }

// A finite value to the nearest whole number, ties to even; saturated at 2^23 on either side.
fn to_int(b: u32) -> i32 {
    let x = parts(b & MAGNITUDE);
    let whole = shift_right_rne(x.m, bitcast<u32>(clamp(-x.e, 1, 25)));
    let k = select(whole, HIDDEN, x.e >= 0);
    return bitcast<i32>(select(k, 0u - k, (b >> 31u) == 1u));
}
