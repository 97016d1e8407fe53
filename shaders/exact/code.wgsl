// From a value to its code and back, on bit patterns: clamp(rne(x / s)) with two roundings, that of the
// binary32 quotient and that to a whole number, both exact. Twin: src/exact/code.rs, the same functions.

// Patterns are extended below: a magnitude's has 32 exponents more, so that subnormal ones are normal too, and order and
// distances are those of significands and exponents alone.
const MORE = 0x10000000u;

// What a scale becomes before it meets elements.
struct Recipe {
    s: u32,
    factor: u32,    // guesses quotients, see factor_of
    clip_p: u32,    // the least magnitudes that are clipped, by sign, extended
    clip_n: u32,
    cap_p: u32,     // the steps from the zero point to the last code, by sign
    cap_n: u32,
    z: i32,         // the zero point
}

fn extended(a: u32) -> u32 {
    let up = countLeadingZeros(a | 1u) - 8u;            // of a subnormal, 1 to 23
    let subnormal = select(((32u - up) << 23u) + (a << (up & 31u)), 0u, a == 0u);
    return select(a + MORE, subnormal, a < HIDDEN);
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

// The significand of a normal s, or of an extended one.
fn significand(s: u32) -> u32 { return (s & 0x007fffffu) | HIDDEN; }

// What `narrow` and `wide` guess quotients by: more than 2^37 / ms, by less than 2; floor((2^47 - 1) / ms) - 2.
fn factor_of(ms: u32, is_wide: bool) -> u32 {
    if (is_wide) { return (reciprocal(ms) >> 8u) - 2u; }
    return 0xffffffffu / max(ms >> 5u, 1u) + 1u;
}

// The least extended pattern whose code is k or more. With n = 2k - 1 and j = floor(log2 n), x / s rounds to k or more
// iff x lies above tau = s / 2 * (n + 2^(j-24)) for odd k, s / 2 * (n - 2^(j-24)) for even k: rne sends the
// tie n / 2 to the even one of k - 1 and k, and half a last place of n / 2 is 2^(j-25). The real x / s is
// never exactly between two floats, so that tau is no value of 24 bits: with q of 24 bits, x / s = (2q + 1) * 2^-i would
// mean mx * 2^i = ms * (2q + 1) or, for i < 0, mx = ms * (2q + 1) * 2^-i; 2q + 1 is odd, so that 2^i divides ms, and mx would
// be 2q + 1 or more, which has 25 bits.
// The answer is the next such value above tau: truncate the exact product, add one to the pattern.
fn threshold(k: u32, s: u32) -> u32 {
    let ms = significand(s);
    let n = 2u * k - 1u;
    let j = 31u - countLeadingZeros(n | 1u);
    let scaled = n << ((24u - j) & 31u);
    let factor = select(scaled - 1u, scaled + 1u, (k & 1u) == 1u);
    let hi = mul_hi(ms, factor);                    // ms * factor >= 2^23 * (2^24 - 1), so hi is not 0
    let lo = ms * factor;
    let drop = 32u - countLeadingZeros(hi | 1u);
    let m = (hi << ((32u - drop) & 31u)) | (lo >> (drop & 31u));
    // ms stands for s: 2^23 for the power of two at or below it. m has 8 bits to drop, and its leading one adds to the
    // exponent.
    return (((s >> 23u) + j + drop - 18u) << 23u) + (m >> 8u) + 1u;
}

// The recipe of scale s and zero point z, one of the codes qmin ..= qmax, which are at most 2^16, and wide if more than 2^8.
fn recipe(s: u32, z: i32, qmin: i32, qmax: i32, is_wide: bool) -> Recipe {
    let y = extended(s);
    let cap_p = min(bitcast<u32>(qmax) - bitcast<u32>(z), 0xffffu);
    let cap_n = min(bitcast<u32>(z) - bitcast<u32>(qmin), 0xffffu);
    let factor = factor_of(significand(y), is_wide);
    return Recipe(s, factor, threshold(cap_p + 1u, y), threshold(cap_n + 1u, y), cap_p, cap_n, z);
}

// min(rne(rne32(|b| / s)), cap of b's sign), 0 of NaN, for codes of at most 255 steps: the code is guessed from above and
// tested against its threshold. With Z = |b| / u, u = 2^(es-1), so that |b| / s = Z / (2 ms), c = |b| - base(s) as extended
// patterns, sh = c >> 23 and m the significand:
// 1. NaN counts as 0; all that is clipped, and infinity, counts as the largest magnitude that is not clipped, whose code is
//    the cap; and all below base(s) as base(s), whose code is 0. In between Z = m << sh is exact but for its 33rd bit, |b| /
//    s being less than 256 and base(s) more than s / 4, so that sh is 0 to 9; and m >> (16 - sh) is floor(Z / 2^16) exactly.
// 2. f = 2^37 / ms + e with 0 < e < 2 by the truncations of factor_of. So (floor(Z / 2^16) + 1) * f / 2^22 >= Z / (2 ms),
//    too large by less than 2^15 / ms + 2^17 * 2 / 2^22 < 2^-3, and with 1/2 + 2^-15 added the guess is the code or the
//    code + 1: an even code's threshold lies at most 2^-16 of a step below the half. Nothing overflows: floor(Z / 2^16)
//    is below 2^17 and f at most 2^14 + 2.
// 3. Code g is reached iff d = Z - ms * (2g - 1) exceeds +theta (odd g) or -theta (even g), theta = ms *
//    2^(j-24) as in `threshold`. |d| is below 2^26, so that arithmetic modulo 2^32 has it. Where theta matters |d| <=
//    2^sh, and there j = sh if the significand of b is at least ms, else sh - 1: the shift by (ct - c) >> 23 is 24 - j.
//    Equality of reals is impossible, so floor(theta) does, and theta ^ odd is theta or -theta - 1. Elsewhere theta is
//    too small to change the sign of d.
fn narrow(b: u32, r: Recipe) -> u32 {
    let y = extended(r.s);
    let ms = significand(y);
    let c = above_base(b, r, y);
    let m = significand(c);
    let sh = (c >> 23u) & 31u;
    let guess = ((m >> ((16u - sh) & 31u)) * r.factor + (0x00200000u + r.factor + 128u)) >> 22u;
    let odd = 0u - (guess & 1u);
    let d = (m << sh) + ms - guess * (ms << 1u) + (theta_of(c, ms) ^ odd);
    return guess - (d >> 31u);
}

// How far the magnitude of b lies above base(s).
fn above_base(b: u32, r: Recipe, y: u32) -> u32 {
    let a = b & MAGNITUDE;
    let x = select(select(extended(a), 0xffffffffu, a == INF), 0u, a > INF);
    let low = base(y);
    return min(max(x, low) - low, select(r.clip_p, r.clip_n, (b >> 31u) == 1u) - 1u - low);
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
fn wide(b: u32, r: Recipe) -> u32 {
    let y = extended(r.s);
    let ms = significand(y);
    let c = above_base(b, r, y);
    let m = significand(c);
    let sh = (c >> 23u) & 31u;
    let product = m * (r.factor >> 16u) + (((m >> 8u) * (r.factor & 0xffffu)) >> 8u);
    let guess = ((product >> ((31u - sh) & 31u)) + 1u) >> 1u;
    let t = theta_of(c, ms) ^ (0u - (guess & 1u));
    return guess + ((t + ms - (m << sh) + guess * (ms << 1u)) >> 31u);
}

// The code of b, less the zero point: NaN is 0, infinities saturate.
fn encode(b: u32, r: Recipe, is_wide: bool) -> i32 {
    var k: u32;
    if (is_wide) { k = wide(b, r); } else { k = narrow(b, r); }
    return bitcast<i32>(select(k, 0u - k, (b >> 31u) == 1u));
}

// What `narrow` and `wide` need of a recipe, for four values at once.
struct Quick { low: u32, factor: u32, window_p: u32, window_n: u32, middle: u32, step: u32 }

// Whether there is one: where base(s) is normal without being extended.
fn is_quick(s: u32) -> bool { return s >= (2u << 23u); }

fn quick(r: Recipe) -> Quick {
    let low = base(r.s);
    let ms = significand(r.s);
    let end = INF - 1u - low;
    let before = low + MORE + 1u;
    return Quick(low, r.factor, min(r.clip_p - before, end), min(r.clip_n - before, end), ms + 512u, ms << 1u);
}

// `narrow` of four values whose codes are not in doubt. In doubt, and perhaps wrong, is what is clipped or not finite, of which
// there is less than nothing left to the window's end, and what lies so near a threshold that theta matters: theta is below 512,
// and d + 512 then below 1024. For the loss magnitudes below base(s) have a Z of their own, rounded to a whole number: at most
// that of base(s), so that d says of a guess of 1 what it is, too much, unless it is in doubt, and of 0 that it is right.
fn four_steps(b: vec4<u32>, q: Quick, on_grid: bool) -> FourSteps {
    let neg = b >= vec4<u32>(SIGN);
    let a = b & vec4<u32>(MAGNITUDE);
    let c = max(a, vec4<u32>(q.low)) - q.low;
    let left = select(vec4<u32>(q.window_p), vec4<u32>(q.window_n), neg) - c;
    let m = (c & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let sh = (c >> vec4<u32>(23u)) & vec4<u32>(31u);
    let guess = ((m >> ((16u - sh) & vec4<u32>(31u))) * q.factor + (0x00200000u + q.factor + 128u)) >> vec4<u32>(22u);
    var z = m << sh;
    if (on_grid) { z = four_to_grid(a, q.low); }
    let d = z + q.middle - guess * q.step;
    let within = (left.x | left.y | left.z | left.w) < SIGN;
    return FourSteps(guess - (d >> vec4<u32>(31u)), neg, within && min(min(d.x, d.y), min(d.z, d.w)) >= 1024u, z);
}

// What four_inner_steps needs of a scale.
fn inner_quick(s: u32) -> Quick {
    let ms = significand(s);
    return Quick(base(s), factor_of(ms, false), 0u, 0u, ms + 512u, ms << 1u);
}

// `four_steps` of values that are finite and have codes of at most 127 steps that are not clipped. Z is below 255 ms then, and so
// below 2^32.
fn four_inner_steps(b: vec4<u32>, q: Quick, on_grid: bool) -> FourSteps {
    let neg = b >= vec4<u32>(SIGN);
    let a = b & vec4<u32>(MAGNITUDE);
    let c = max(a, vec4<u32>(q.low)) - q.low;
    let m = (c & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    var z = m << ((c >> vec4<u32>(23u)) & vec4<u32>(31u));
    if (on_grid) { z = four_to_grid(a, q.low); }
    let guess = ((z >> vec4<u32>(16u)) * q.factor + (0x00200000u + q.factor + 128u)) >> vec4<u32>(22u);
    let d = z + q.middle - guess * q.step;
    return FourSteps(guess - (d >> vec4<u32>(31u)), neg, min(min(d.x, d.y), min(d.z, d.w)) >= 1024u, z);
}

// `to_grid` of four magnitudes on the grid of the scale whose base is `low`, where is_fine holds: from there on significands are
// shifted up, modulo 2^32, and below it down, rounded as in shift_right_rne. What is subnormal rounds to 0 whatever its digits.
fn four_to_grid(a: vec4<u32>, low: u32) -> vec4<u32> {
    let up = (a >> vec4<u32>(23u)) - (low >> 23u);
    let m = (a & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let right = min(vec4<u32>() - up, vec4<u32>(25u));
    let odd = (m >> right) & vec4<u32>(1u);
    let small = (m + (vec4<u32>(0x00ffffffu) >> (25u - right)) + odd) >> right;
    return select(m << (up & vec4<u32>(31u)), small, up >= vec4<u32>(SIGN));
}

// `wide` of four values; in doubt is what is clipped or not finite.
fn four_wide_steps(b: vec4<u32>, q: Quick) -> FourSteps {
    let neg = b >= vec4<u32>(SIGN);
    let ms = q.step >> 1u;
    let c = max(b & vec4<u32>(MAGNITUDE), vec4<u32>(q.low)) - q.low;
    let left = select(vec4<u32>(q.window_p), vec4<u32>(q.window_n), neg) - c;
    let m = (c & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let sh = (c >> vec4<u32>(23u)) & vec4<u32>(31u);
    let product = m * (q.factor >> 16u) + (((m >> vec4<u32>(8u)) * (q.factor & 0xffffu)) >> vec4<u32>(8u));
    let guess = ((product >> ((31u - sh) & vec4<u32>(31u))) + 1u) >> vec4<u32>(1u);
    let ct = (25u << 23u) - 1u + (ms & 0x007fffffu);
    let theta = vec4<u32>(ms) >> (((ct - c) >> vec4<u32>(23u)) & vec4<u32>(31u));
    let t = theta ^ (vec4<u32>() - (guess & vec4<u32>(1u)));
    let within = (left.x | left.y | left.z | left.w) < SIGN;
    let z = m << sh;
    return FourSteps(guess + ((t + ms - z + guess * q.step) >> vec4<u32>(31u)), neg, within, z);
}

// How many steps from the zero point, whether below it, and whether that is beyond doubt; and Z, the magnitudes in halves of
// the scale's last place modulo 2^32; of those below base(s) that of base(s), or rounded for the loss.
struct FourSteps { steps: vec4<u32>, neg: vec4<bool>, certain: bool, z: vec4<u32> }

// Whether b is finite and its rounded quotient lies outside the codes.
fn is_clipped(b: u32, r: Recipe) -> bool {
    let a = b & MAGNITUDE;
    return extended(a) >= select(r.clip_p, r.clip_n, (b >> 31u) == 1u) && a < INF;
}

// x' = q * s, rounded once; q is the code less the zero point.
fn decode(q: i32, s: u32) -> u32 {
    return mul_int(select(0u, SIGN, q < 0), unsigned_abs(q), s);
}

// Whether four_values is proven for s: normal, and so far from the largest values that 256 s is finite.
fn is_direct(s: u32) -> bool { return s >= HIDDEN && s < (246u << 23u); }

// `decode` of four codes, of at most 255 steps and their signs, for such a scale. p = k * ms is below 2^32, and 2^23 or more
// unless k is 0; of r = 8 - countLeadingZeros(p) bits to drop `rest` are all set; one less than half of them, plus the lowest
// kept bit where any is dropped, carries as in shift_right_rne. A carry to 2^24 goes into the exponent field.
fn four_values(k: vec4<u32>, neg: vec4<bool>, s: u32) -> vec4<u32> {
    let p = k * significand(s);
    let zeros = countLeadingZeros(p | vec4<u32>(HIDDEN));
    let r = 8u - zeros;
    let rest = vec4<u32>(0xffu) >> zeros;
    let odd = (p >> r) & rest & vec4<u32>(1u);
    let m = (p + (rest >> vec4<u32>(1u)) + odd) >> r;
    let value = (m + base(s) + (r << vec4<u32>(23u))) | select(vec4<u32>(), vec4<u32>(SIGN), neg);
    return select(value, vec4<u32>(), k == vec4<u32>());
}

// |x' - x|, one rounded subtraction, of any two patterns; every NaN is 0x7fc00000.
fn abs_error_of(x: u32, out: u32) -> u32 {
    let ax = x & MAGNITUDE;
    let ao = out & MAGNITUDE;
    if (ax > INF || ao > INF || (ax == INF && x == out)) { return 0x7fc00000u; }
    if (ax == INF || ao == INF) { return INF; }
    return sub(out, x) & MAGNITUDE;
}
