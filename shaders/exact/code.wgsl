// From a value to its code and back, on bit patterns: clamp(rne(x / s)) with two roundings, that of the
// binary32 quotient and that to a whole number, both exact. Twin: src/exact/code.rs, the same functions.

// What a scale becomes before it meets elements; s = ms * 2^es, 2^23 <= ms < 2^24.
struct Recipe {
    s: u32,
    ms: u32,
    es: i32,
    reciprocal: u32,    // floor((2^55 - 1) / ms)
    window_p: u32,      // the search window above base(s), by sign; 0 where the search is not proven
    window_n: u32,
    clip_p: u32,        // the least magnitudes that are clipped, by sign
    clip_n: u32,
    cap_p: u32,         // the steps from the zero point to the last code, by sign
    cap_n: u32,
    z: i32,             // the zero point
}

// floor((2^55 - 1) / m) for 2^23 <= m < 2^24, by restoring division; at most 2^32 - 1.
fn reciprocal(m: u32) -> u32 {
    var q = 0u;
    var r = 0u;
    for (var i = 0u; i < 55u; i++) {
        r = (r << 1u) | 1u;
        let fits = r >= m;
        r -= select(0u, m, fits);
        q = (q << 1u) | select(0u, 1u, fits);
    }
    return q;
}

// The pattern of the power of two at or just below s / 2. Everything up to it has code 0.
fn base(s: u32) -> u32 { return ((s >> 23u) - 1u) << 23u; }

// The pattern of k * s truncated, above base(s): it has code k, and so has all that clamps to it.
fn window(k: u32, ms: u32, es: i32, s: u32) -> u32 {
    let p = k * ms;
    let down = 8u - countLeadingZeros(p | HIDDEN);      // p is 2^23 or more, so the count is that of p
    let pattern = (bitcast<u32>(es + bitcast<i32>(down) + 149) << 23u) + (p >> down);
    return pattern - base(s);
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

// The recipe of scale s and zero point z, one of the codes qmin ..= qmax, which are at most 2^16. The search is
// proven for codes of 1 to 128 steps on either side.
fn recipe(s: u32, z: i32, qmin: i32, qmax: i32) -> Recipe {
    let y = parts(s);
    let cap_p = min(bitcast<u32>(qmax) - bitcast<u32>(z), 0xffffu);
    let cap_n = min(bitcast<u32>(z) - bitcast<u32>(qmin), 0xffffu);
    let narrow = cap_p - 1u < 128u && cap_n - 1u < 128u;
    let proven = narrow && s >= (2u << 23u) && s < (238u << 23u);
    return Recipe(
        s,
        y.m,
        y.e,
        reciprocal(y.m),
        select(0u, window(cap_p, y.m, y.e, s), proven),
        select(0u, window(cap_n, y.m, y.e, s), proven),
        threshold(cap_p + 1u, y.m, y.e),
        threshold(cap_n + 1u, y.m, y.e),
        cap_p,
        cap_n,
        z,
    );
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
fn quotient(a: u32, r: Recipe) -> u32 {
    let x = parts(a);
    let ge = x.m >= r.ms;
    let k = select(24u, 23u, ge);
    let h = mul_hi(x.m << 8u, r.reciprocal);
    var q = h >> select(7u, 8u, ge);
    var rest = (x.m << k) - q * r.ms;
    let low = rest >= r.ms;
    rest -= select(0u, r.ms, low);
    q += select(0u, 1u, low);
    q += select(0u, 1u, (rest << 1u) > r.ms);
    let e = x.e - r.es - bitcast<i32>(k);
    let whole = shift_right_rne(q, bitcast<u32>(clamp(-e, 1, 25)));
    return select(select(whole, 0x00800000u, e >= 0), 0u, a == 0u);
}

// min(rne(rne32(|b| / s)), cap of b's sign), 0 of NaN, for codes up to 128 and scales whose window is proven
// (2^-125 <= s < 2^111). Cheaper than `quotient`: the code is guessed from above and tested against its
// threshold. With z = |b| / u, u = 2^(es-1), so that |b| / s = z / (2 ms):
// 1. NaN wraps to a negative i32 and so counts as base(s), whose code is 0; infinity and all above the window
//    count as its end, whose code is the cap. In between c >> 23 is 0 to 8 and z <= 256 ms < 2^32 is exact.
// 2. rt = floor(2^38 / ms) + 1 (or 2^38 / ms itself when ms = 2^23): reciprocal >> 17 is floor(2^38 / ms), less
//    one only when ms = 2^23. So (floor(z / 2^16) + 1) * rt / 2^23 >= z / (2 ms), too large by less than
//    2^-7, and with 1/2 + 2^-15 added the guess is the code or the code + 1: an even code's threshold lies at
//    most 2^-16 of a step below the half. Nothing overflows: 2^16 * (2^15 + 1) + bias < 2^32.
// 3. Code g is reached iff d = z - ms * (2g - 1) exceeds +theta (odd g) or -theta (even g), theta = ms *
//    2^(j-24) as in `threshold`. Where that matters |d| <= 2^sh, sh = c >> 23, and there j = sh if the
//    significand of b is at least ms, else sh - 1: the shift by (ct - c) >> 23 is 24 - j. Equality of reals is
//    impossible, so floor(theta) does, and theta ^ odd is theta or -theta - 1. Elsewhere theta is too small
//    to change the sign of d.
fn search(b: u32, r: Recipe, neg: bool) -> u32 {
    let start = base(r.s) + 0x007fffffu;
    let t = bitcast<i32>((b & MAGNITUDE) + 0x007fffffu);
    let c = min(bitcast<u32>(max(t, bitcast<i32>(start))) - start, select(r.window_p, r.window_n, neg));
    let z = ((c & 0x007fffffu) | HIDDEN) << ((c >> 23u) & 31u);
    let rt = (r.reciprocal >> 17u) + 1u;
    let guess = ((z >> 16u) * rt + (0x00400000u + rt + 256u)) >> 23u;
    let ct = (25u << 23u) - 1u + (r.ms & 0x007fffffu);
    let theta = r.ms >> (((ct - c) >> 23u) & 31u);
    let odd = 0u - (guess & 1u);
    let d = z + r.ms - guess * (r.ms << 1u) + (theta ^ odd);
    return guess - (d >> 31u);
}

// The code of b, less the zero point: NaN is 0, infinities saturate.
fn encode(b: u32, r: Recipe) -> i32 {
    let neg = (b >> 31u) == 1u;
    var k: u32;
    if (r.window_p != 0u) {
        k = search(b, r, neg);
    } else {
        let a = b & MAGNITUDE;
        let cap = select(r.cap_p, r.cap_n, neg);
        let full = min(quotient(a, r), cap);
        k = select(select(full, cap, a == INF), 0u, a > INF);
    }
    return bitcast<i32>(select(k, 0u - k, neg));
}

// Whether b is finite and its rounded quotient lies outside the codes.
fn is_clipped(b: u32, r: Recipe) -> bool {
    let a = b & MAGNITUDE;
    return a >= select(r.clip_p, r.clip_n, (b >> 31u) == 1u) && a < INF;
}

// x' = q * s, rounded once; q is the code less the zero point.
fn decode(q: i32, s: u32) -> u32 {
    return mul_int(select(0u, SIGN, q < 0), unsigned_abs(q), s);
}

// |x' - x|, one rounded subtraction, of any two patterns; every NaN is 0x7fc00000.
fn abs_error_of(x: u32, out: u32) -> u32 {
    let ax = x & MAGNITUDE;
    let ao = out & MAGNITUDE;
    if (ax > INF || ao > INF || (ax == INF && x == out)) { return 0x7fc00000u; }
    if (ax == INF || ao == INF) { return INF; }
    return sub(out, x) & MAGNITUDE;
}
