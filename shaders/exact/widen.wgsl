// Other float types to binary32, on bit patterns: f16 and bf16 exactly, f64 rounded once, to nearest, ties to even.
// Twin: src/exact/widen.rs, the same functions.

fn from_bf16(h: u32) -> u32 { return h << 16u; }

fn from_f16(h: u32) -> u32 {
    let sign = (h & 0x8000u) << 16u;
    let exponent = (h >> 10u) & 0x1fu;
    let fraction = h & 0x3ffu;
    let biased = select(exponent + 112u, 0xffu, exponent == 0x1fu);
    let normal = (biased << 23u) | (fraction << 13u);
    // fraction * 2^-24, its leading one shifted to bit 23, where it adds one to the exponent field.
    let zeros = countLeadingZeros(fraction | 1u);
    let subnormal = select(((133u - zeros) << 23u) + (fraction << (zeros - 8u)), 0u, fraction == 0u);
    return sign | select(normal, subnormal, exponent == 0u);
}

// The low and the high word of a binary64. Its 53 significant bits become 30 and a sticky one, which is more than
// round_pack needs. A subnormal is far below half of the least binary32. A NaN keeps its sign and highest payload
// bits, with the quiet bit set.
fn from_f64(lo: u32, hi: u32) -> u32 {
    let sign = hi & SIGN;
    let exponent = (hi >> 20u) & 0x7ffu;
    let top = ((hi & 0x000fffffu) << 3u) | (lo >> 29u);     // the fraction's highest 23 bits
    let rest = lo & 0x1fffffffu;                            // and the 29 below them
    if (exponent == 0x7ffu) {
        return sign | INF | top | select(0x00400000u, 0u, (top | rest) == 0u);
    }
    if (exponent == 0u) { return sign; }
    let sticky = select(0u, 1u, (rest & 0x003fffffu) != 0u);
    return round_pack(sign, ((top | HIDDEN) << 7u) | (rest >> 22u) | sticky, bitcast<i32>(exponent) - 1053);
}
