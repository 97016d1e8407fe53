// binary32 to the narrower float types, on bit patterns: IEEE conversions, to nearest, ties to even. Infinity and -0
// stay; a NaN keeps its sign and highest payload bits, with the quiet bit set. Twin: src/exact/narrow.rs, the same
// functions.

// A carry out of the fraction goes to the exponent, and from the largest one to infinity.
fn to_bf16(b: u32) -> u32 {
    if ((b & MAGNITUDE) > INF) { return (b >> 16u) | 0x40u; }
    return (b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u;
}

// `to_bf16` of four finite values.
fn four_bf16(b: vec4<u32>) -> vec4<u32> {
    return (b + 0x7fffu + ((b >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
}

// `to_f16` of four values of less than 65520, which no cast takes to infinity.
fn four_f16(b: vec4<u32>) -> vec4<u32> {
    let a = b & vec4<u32>(MAGNITUDE);
    let exponent = a >> vec4<u32>(23u);
    let least = vec4<u32>(126u) - min(exponent, vec4<u32>(112u));     // 14 to 126: how far below the normal ones
    let n = min(least, vec4<u32>(26u));
    let small = (a & vec4<u32>(0x007fffffu)) | vec4<u32>(HIDDEN);
    let is_small = exponent < vec4<u32>(113u);
    let m = select(a - (112u << 23u), small, is_small);
    let shift = select(vec4<u32>(13u), n, is_small);
    let odd = (m >> shift) & vec4<u32>(1u);
    let h = (m + ((vec4<u32>(1u) << (shift - 1u)) - 1u) + odd) >> shift;
    return ((b >> vec4<u32>(16u)) & vec4<u32>(0x8000u)) | h;
}

// With `saturate` the largest finite value stands in for infinity.
fn to_f16(b: u32, saturate: bool) -> u32 {
    let sign = (b >> 16u) & 0x8000u;
    let magnitude = b & MAGNITUDE;
    if (magnitude > INF) { return sign | 0x7e00u | ((magnitude >> 13u) & 0x3ffu); }
    // The biased exponent that an f16 would have; 0 and less is a subnormal, of quantum 2^-24. Below half of the
    // least subnormal a shift by 26 leaves nothing, as a longer one would.
    let exponent = bitcast<i32>(magnitude >> 23u) - 112;
    var h = 0x7c00u;
    if (exponent <= 0) {
        let significand = (magnitude & 0x007fffffu) | HIDDEN;
        h = shift_right_rne(significand, bitcast<u32>(clamp(14 - exponent, 14, 26)));
    } else if (exponent < 31) {
        h = shift_right_rne(magnitude - (112u << 23u), 13u);
    }
    return sign | select(h, min(h, 0x7bffu), saturate);
}
