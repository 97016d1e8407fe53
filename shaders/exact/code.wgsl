// From a value to its code and back, on bit patterns: clamp(rne(x / s)) with two roundings, that of the
// binary32 quotient and that to a whole number, both exact. Twin: src/exact/code.rs, the same functions.

// What a scale becomes before it meets elements.
struct Recipe {
    s: u32,
    factor: u32,    // guesses quotients, see factor_of; 0 where `narrow` and `wide` are not proven
    clip_p: u32,    // the least magnitudes that are clipped, by sign
    clip_n: u32,
    cap_p: u32,     // the steps from the zero point to the last code, by sign
    cap_n: u32,
    z: i32,         // the zero point
}

// floor((2^55 - 1) / m) for 2^23 <= m < 2^24, digit by digit; at most 2^32 - 1.
fn reciprocal(m: u32) -> u32 {
    let d = max(m, 1u);         // never 0; `max` shows it
    var q = 0xffffffffu / d;
    var r = 0xffffffffu - q * d;
    for (var i = 0u; i < 3u; i++) {
        let bits = select(8u, 7u, i == 2u);
        let n = (r << bits) | ((1u << bits) - 1u);
        let digit = n / d;
        q = (q << bits) | digit;
        r = n - digit * d;
    }
    return q;
}

// The pattern of the power of two at or just below s / 2. Everything up to it has code 0.
fn base(s: u32) -> u32 { return ((s >> 23u) - 1u) << 23u; }

// The significand of a normal s.
fn significand(s: u32) -> u32 { return (s & 0x007fffffu) | HIDDEN; }

// Whether codes are of more than 8 bits.
fn is_wide(cap_p: u32, cap_n: u32) -> bool { return cap_p + cap_n > 255u; }

// What `narrow` and `wide` guess quotients by: more than 2^37 / ms, by less than 2; floor((2^47 - 1) / ms) - 2.
fn factor_of(ms: u32, is_wide: bool) -> u32 {
    if (is_wide) { return (reciprocal(ms) >> 8u) - 2u; }
    return 0xffffffffu / max(ms >> 5u, 1u) + 1u;
}

// The least pattern whose code is k or more. With n = 2k - 1 and j = floor(log2 n), x / s rounds to k or more
// iff x lies above tau = s / 2 * (n + 2^(j-24)) for odd k, s / 2 * (n - 2^(j-24)) for even k: rne sends the
// tie n / 2 to the even one of k - 1 and k, and half a last place of n / 2 is 2^(j-25). The real x / s is
// never exactly between two floats (see `quotient`, 4), so tau is not a float, and the answer is the next
// float above it: truncate the exact product, add one to the pattern.
fn threshold(k: u32, ms: u32, es: i32) -> u32 {
    let n = 2u * k - 1u;
    let j = 31u - countLeadingZeros(n);
    let scaled = n << ((24u - j) & 31u);
    let factor = select(scaled - 1u, scaled + 1u, (k & 1u) == 1u);
    let hi = mul_hi(ms, factor);                    // ms * factor >= 2^23 * (2^24 - 1), so hi is not 0
    let lo = ms * factor;
    let drop = 32u - countLeadingZeros(hi | 1u);
    let m = (hi << ((32u - drop) & 31u)) | (lo >> (drop & 31u));
    let e = es - 25 + bitcast<i32>(j) + bitcast<i32>(drop);
    let quantum = max(e + 8, -149);
    let shift = min(quantum - e, 32);
    let q = select(m >> (bitcast<u32>(shift) & 31u), 0u, shift >= 32);
    let biased = quantum + 149;
    if (biased >= 254) { return INF; }
    return min((bitcast<u32>(biased) << 23u) + q + 1u, INF);
}

// The recipe of scale s and zero point z, one of the codes qmin ..= qmax, which are at most 2^16. `narrow` and `wide` are
// proven for 2^-125 <= s < 2^111, whose codes have finite thresholds.
fn recipe(s: u32, z: i32, qmin: i32, qmax: i32) -> Recipe {
    let y = parts(s);
    let cap_p = min(bitcast<u32>(qmax) - bitcast<u32>(z), 0xffffu);
    let cap_n = min(bitcast<u32>(z) - bitcast<u32>(qmin), 0xffffu);
    let proven = s >= (2u << 23u) && s < (238u << 23u);
    let factor = factor_of(y.m, is_wide(cap_p, cap_n));
    let clip_p = threshold(cap_p + 1u, y.m, y.e);
    let clip_n = threshold(cap_n + 1u, y.m, y.e);
    return Recipe(s, select(0u, factor, proven), clip_p, clip_n, cap_p, cap_n, z);
}

// rne(rne32(a / s)) of a finite magnitude a, saturated at 2^23. For any scale.
//
// With a = mx * 2^ex let v = mx * 2^k / ms, k = 23 if mx >= ms, else 24.
// 1. v lies in [2^23, 2^24): mx / ms is in [1, 2), or in (1/2, 1).
// 2. reciprocal = 2^55 / ms - d with 0 < d <= 1. With t = mx * 2^31 / ms the product mx * 2^8 * reciprocal /
//    2^32 = t - d * mx * 2^-24 lies in (t - 1, t), so h lies in (t - 2, t), and h >> (31 - k), with 31 - k >= 7,
//    is floor(v) or one less.
// 3. The rest is in [0, 2 ms), below 2^25, so arithmetic modulo 2^32 has it exactly although mx << k overflows.
//    One correction makes q = floor(v).
// 4. No tie: rest / ms = 1/2 would mean mx * 2^(k+1) = ms * (2q + 1), and since 2q + 1 is odd, 2^(k+1) would
//    divide ms < 2^24. So 2 * rest > ms rounds to nearest.
// 5. That cannot carry to 2^24, which needs mx * 2^k > ms * (2^24 - 1/2). With k = 23 the right side over 2^23
//    is ms * (2 - 2^-24) > mx; with k = 24, mx <= ms - 1, and ms - 1 > ms - ms * 2^-25 needs ms > 2^25.
// 6. So q * 2^(ex - es - k) is the binary32 quotient if that is normal. If it is below the normal range, both
//    are far below 1/2 and the result is 0; if it is 2^23 or more, e >= 0 and the result saturates.
// 7. The second rounding shifts by n = -e, 1 to 24. A larger n gives 0, as the shift by 25 does, q being below
//    2^24.
fn quotient(a: u32, s: u32) -> u32 {
    let x = parts(a);
    let y = parts(s);
    let ge = x.m >= y.m;
    let k = select(24u, 23u, ge);
    let h = mul_hi(x.m << 8u, reciprocal(y.m));
    var q = h >> select(7u, 8u, ge);
    var rest = (x.m << k) - q * y.m;
    let low = rest >= y.m;
    rest -= select(0u, y.m, low);
    q += select(0u, 1u, low);
    q += select(0u, 1u, (rest << 1u) > y.m);
    let e = x.e - y.e - bitcast<i32>(k);
    let whole = shift_right_rne(q, bitcast<u32>(clamp(-e, 1, 25)));
    return select(select(whole, 0x00800000u, e >= 0), 0u, a == 0u);
}

// min(rne(rne32(|b| / s)), cap of b's sign), 0 of NaN, for codes of at most 255 steps and scales that are proven.
// Cheaper than `quotient`: the code is guessed from above and tested against its threshold. With Z = |b| / u,
// u = 2^(es-1), so that |b| / s = Z / (2 ms), c = |b| - base(s) as patterns, sh = c >> 23 and m the significand:
// 1. NaN wraps to a negative i32 and so counts as base(s), whose code is 0; all that is clipped counts as the largest
//    magnitude that is not, whose code is the cap. In between Z = m << sh is exact but for its 33rd bit, |b| / s being
//    less than 256 and base(s) more than s / 4, so that sh is 0 to 9; and m >> (16 - sh) is floor(Z / 2^16) exactly.
// 2. f = 2^37 / ms + e with 0 < e < 2 by the truncations of factor_of. So (floor(Z / 2^16) + 1) * f / 2^22 >= Z / (2 ms),
//    too large by less than 2^15 / ms + 2^17 * 2 / 2^22 < 2^-3, and with 1/2 + 2^-15 added the guess is the code or the
//    code + 1: an even code's threshold lies at most 2^-16 of a step below the half. Nothing overflows: floor(Z / 2^16)
//    is below 2^17 and f at most 2^14 + 2.
// 3. Code g is reached iff d = Z - ms * (2g - 1) exceeds +theta (odd g) or -theta (even g), theta = ms *
//    2^(j-24) as in `threshold`. |d| is below 2^26, so that arithmetic modulo 2^32 has it. Where theta matters |d| <=
//    2^sh, and there j = sh if the significand of b is at least ms, else sh - 1: the shift by (ct - c) >> 23 is 24 - j.
//    Equality of reals is impossible, so floor(theta) does, and theta ^ odd is theta or -theta - 1. Elsewhere theta is
//    too small to change the sign of d.
fn narrow(b: u32, r: Recipe, neg: bool) -> u32 {
    let ms = significand(r.s);
    let c = above_base(b, r, neg);
    let m = (c & 0x007fffffu) | HIDDEN;
    let sh = (c >> 23u) & 31u;
    let guess = ((m >> ((16u - sh) & 31u)) * r.factor + (0x00200000u + r.factor + 128u)) >> 22u;
    let odd = 0u - (guess & 1u);
    let d = (m << sh) + ms - guess * (ms << 1u) + (theta_of(c, ms) ^ odd);
    return guess - (d >> 31u);
}

// How far the magnitude of b lies above base(s), as patterns; 0 of NaN, the farthest of what is clipped.
fn above_base(b: u32, r: Recipe, neg: bool) -> u32 {
    let start = base(r.s) + 0x007fffffu;
    let t = bitcast<i32>((b & MAGNITUDE) + 0x007fffffu);
    return min(bitcast<u32>(max(t, bitcast<i32>(start))) - start, select(r.clip_p, r.clip_n, neg) - 1u - base(r.s));
}

fn theta_of(c: u32, ms: u32) -> u32 {
    let ct = (25u << 23u) - 1u + (ms & 0x007fffffu);
    return ms >> (((ct - c) >> 23u) & 31u);
}

// The same for codes of at most 65535 steps. The guess is from below:
// 1. As above; sh is 0 to 17, and Z wraps, while d' = Z - ms * (2g + 1) does not matter but in its low 32 bits.
// 2. With R = floor((2^47 - 1) / ms) - 2 and its halves, m * R / 2^16 without the lowest product's fraction is below
//    2^32; it is low by 2 to 3 units of at least 2^23, so the quotient is low by at least 2^-23 of itself, which is
//    below odd thresholds (2^-24), and by less than 2^-20 of itself and the dropped products: 0.2 of a step at 65535.
//    floor(2 y) + 1 halved is floor(y + 1/2). So the guess is the code or the code - 1.
// 3. The next code is reached iff d' exceeds theta (if it is odd), or -theta.
fn wide(b: u32, r: Recipe, neg: bool) -> u32 {
    let ms = significand(r.s);
    let c = above_base(b, r, neg);
    let m = (c & 0x007fffffu) | HIDDEN;
    let sh = (c >> 23u) & 31u;
    let product = m * (r.factor >> 16u) + (((m >> 8u) * (r.factor & 0xffffu)) >> 8u);
    let guess = ((product >> ((31u - sh) & 31u)) + 1u) >> 1u;
    let t = theta_of(c, ms) ^ (0u - (guess & 1u));
    return guess + ((t + ms - (m << sh) + guess * (ms << 1u)) >> 31u);
}

// The code of b, less the zero point: NaN is 0, infinities saturate.
fn encode(b: u32, r: Recipe) -> i32 {
    let neg = (b >> 31u) == 1u;
    var k: u32;
    if (r.factor == 0u) {
        let a = b & MAGNITUDE;
        let cap = select(r.cap_p, r.cap_n, neg);
        let full = min(quotient(a, r.s), cap);
        k = select(select(full, cap, a == INF), 0u, a > INF);
    } else if (is_wide(r.cap_p, r.cap_n)) {
        k = wide(b, r, neg);
    } else {
        k = narrow(b, r, neg);
    }
    return bitcast<i32>(select(k, 0u - k, neg));
}

// What `narrow` and `wide` need of a recipe, for four values at once.
struct Quick { low: u32, factor: u32, window_p: u32, window_n: u32, middle: u32, step: u32 }

fn quick(r: Recipe) -> Quick {
    let low = base(r.s);
    let ms = significand(r.s);
    return Quick(low, r.factor, r.clip_p - 1u - low, r.clip_n - 1u - low, ms + 512u, ms << 1u);
}

// `narrow` of four values whose codes are not in doubt. In doubt, and perhaps wrong, is what is clipped or not finite, and
// what lies so near a threshold that theta matters: theta is below 512, and d + 512 then below 1024.
fn four_steps(b: vec4<u32>, q: Quick) -> FourSteps {
    let neg = b >= vec4<u32>(SIGN);
    let above = max(b & vec4<u32>(MAGNITUDE), vec4<u32>(q.low)) - q.low;
    let c = min(above, select(vec4<u32>(q.window_p), vec4<u32>(q.window_n), neg));
    let m = (c & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let sh = (c >> vec4<u32>(23u)) & vec4<u32>(31u);
    let guess = ((m >> ((16u - sh) & vec4<u32>(31u))) * q.factor + (0x00200000u + q.factor + 128u)) >> vec4<u32>(22u);
    let d = (m << sh) + q.middle - guess * q.step;
    let beyond = above ^ c;
    let far = (beyond.x | beyond.y | beyond.z | beyond.w) == 0u;
    return FourSteps(guess - (d >> vec4<u32>(31u)), neg, far && min(min(d.x, d.y), min(d.z, d.w)) >= 1024u);
}

// `wide` of four values; in doubt is what is clipped or not finite.
fn four_wide_steps(b: vec4<u32>, q: Quick) -> FourSteps {
    let neg = b >= vec4<u32>(SIGN);
    let ms = q.step >> 1u;
    let above = max(b & vec4<u32>(MAGNITUDE), vec4<u32>(q.low)) - q.low;
    let c = min(above, select(vec4<u32>(q.window_p), vec4<u32>(q.window_n), neg));
    let m = (c & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let sh = (c >> vec4<u32>(23u)) & vec4<u32>(31u);
    let product = m * (q.factor >> 16u) + (((m >> vec4<u32>(8u)) * (q.factor & 0xffffu)) >> vec4<u32>(8u));
    let guess = ((product >> ((31u - sh) & vec4<u32>(31u))) + 1u) >> vec4<u32>(1u);
    let ct = (25u << 23u) - 1u + (ms & 0x007fffffu);
    let theta = vec4<u32>(ms) >> (((ct - c) >> vec4<u32>(23u)) & vec4<u32>(31u));
    let t = theta ^ (vec4<u32>() - (guess & vec4<u32>(1u)));
    let beyond = above ^ c;
    let far = (beyond.x | beyond.y | beyond.z | beyond.w) == 0u;
    return FourSteps(guess + ((t + ms - (m << sh) + guess * q.step) >> vec4<u32>(31u)), neg, far);
}

// How many steps from the zero point, whether below it, and whether that is beyond doubt.
struct FourSteps { steps: vec4<u32>, neg: vec4<bool>, certain: bool }

// Whether b is finite and its rounded quotient lies outside the codes.
fn is_clipped(b: u32, r: Recipe) -> bool {
    let a = b & MAGNITUDE;
    return a >= select(r.clip_p, r.clip_n, (b >> 31u) == 1u) && a < INF;
}

// x' = q * s, rounded once; q is the code less the zero point.
fn decode(q: i32, s: u32) -> u32 {
    return mul_int(select(0u, SIGN, q < 0), unsigned_abs(q), s);
}

// Whether four_values is proven for s: normal, and so far from the largest values that 256 s is finite.
fn is_direct(s: u32) -> bool { return s >= HIDDEN && s < (246u << 23u); }

// `decode` of four codes of at most 255 steps, in two's complement, for such a scale. p = k * ms is below 2^32, and 2^23 or
// more unless k is 0; with r = 8 - countLeadingZeros(p) bits to drop, one less than half of them, plus the lowest kept bit
// where any is dropped, carries as in shift_right_rne. A carry to 2^24 goes into the exponent field.
fn four_values(q: vec4<u32>, s: u32) -> vec4<u32> {
    let neg = q >= vec4<u32>(SIGN);
    let k = select(q, vec4<u32>() - q, neg);
    let p = k * significand(s);
    let zeros = countLeadingZeros(p | vec4<u32>(HIDDEN));
    let r = 8u - zeros;
    let odd = min((p >> r) & vec4<u32>(1u), r);
    let m = (p + (vec4<u32>(0x7fu) >> zeros) + odd) >> r;
    return select(m + base(s) + (r << vec4<u32>(23u)), vec4<u32>(), k == vec4<u32>()) | select(vec4<u32>(), vec4<u32>(SIGN), neg);
}

// |x' - x|, one rounded subtraction, of any two patterns; every NaN is 0x7fc00000.
fn abs_error_of(x: u32, out: u32) -> u32 {
    let ax = x & MAGNITUDE;
    let ao = out & MAGNITUDE;
    if (ax > INF || ao > INF || (ax == INF && x == out)) { return 0x7fc00000u; }
    if (ax == INF || ao == INF) { return INF; }
    return sub(out, x) & MAGNITUDE;
}
