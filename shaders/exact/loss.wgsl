// Distances on the loss grid, whose definition and reasons stand in src/loss.rs. Twin: src/exact/loss.rs.

// The grid's exponent for a unit with this scale and this largest loss: half of the scale's last place, or
// where the unit is clipped, 2^-28 of the largest loss's power of two.
fn grid_exp(s: u32, largest: u32) -> i32 {
    let fine = parts(s).e - 1;
    return select(max(fine, parts(largest).e - 5), fine, largest <= s);
}

// rne(a / 2^g) of a magnitude, modulo 2^32.
fn to_grid(a: u32, g: i32) -> u32 {
    let x = parts(a);
    let up = x.e - g;
    let left = select(x.m << (bitcast<u32>(up) & 31u), 0u, up > 31);
    let right = shift_right_rne(x.m, bitcast<u32>(clamp(-up, 1, 25)));
    return select(right, left, up >= 0);
}

// A cast's value in steps of 2^(e + 12), m * 2^e being its nominal scale s; saturated at 2^26, which only codes that
// have little to do with x reach.
fn cast_steps(out: u32, s: u32) -> i32 {
    let x = parts(out & MAGNITUDE);
    let up = x.e - (parts(s).e + 12);
    let fine = shift_right_rne(x.m, bitcast<u32>(clamp(-up, 1, 25)));
    let coarse = select(x.m << (bitcast<u32>(up) & 31u), 1u << 26u, up > 2);
    let k = select(fine, coarse, up >= 0);
    return bitcast<i32>(select(k, 0u - k, (out >> 31u) == 1u));
}

// rne(x' / 2^g) - rne(x / 2^g). The two may exceed 32 bits; their difference is known to fit, so that
// arithmetic modulo 2^32 has it.
fn distance_on_grid(x: u32, out: u32, g: i32) -> i32 {
    let nx = to_grid(x & MAGNITUDE, g);
    let no = to_grid(out & MAGNITUDE, g);
    let sx = select(nx, 0u - nx, (x >> 31u) == 1u);
    let so = select(no, 0u - no, (out >> 31u) == 1u);
    return bitcast<i32>(so - sx);
}

// Whether losses are found by four on the grid of s itself: where is_direct holds, and where what is subnormal rounds to 0
// whatever its significand.
fn is_fine(s: u32) -> bool { return s >= (28u << 23u) && is_direct(s); }

// `to_grid` of the magnitudes of `four_values` of at most 255 steps: their significands, rounded as there, in steps of half a
// last place of s.
fn four_values_to_grid(k: vec4<u32>, s: u32) -> vec4<u32> {
    let p = k * significand(s);
    let zeros = countLeadingZeros(p | vec4<u32>(HIDDEN));
    let rest = vec4<u32>(0xffu) >> zeros;       // the bits to drop
    let odd = (p >> (8u - zeros)) & rest & vec4<u32>(1u);
    return ((p + (rest >> vec4<u32>(1u)) + odd) & ~rest) << vec4<u32>(1u);
}
