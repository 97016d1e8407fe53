//! Inputs that find wrong bits: edges, ties and their neighbours, and seeded random data. The unit tests and the
//! benchmarks use it too, each a part of it.
#![allow(dead_code, reason = "no user needs all of it")]

pub(crate) use crate::rng::Rng;

/// Near enough to a normal distribution.
pub(crate) fn gauss(rng: &mut Rng) -> f32 {
    let sum: f32 = (0..8).map(|_| rng.next_u32() as f32 / u32::MAX as f32).sum();
    (sum - 4.0) * 1.2
}

/// Bit patterns that the contract's policies speak of.
pub(crate) const EDGES: [u32; 22] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f00_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7f80_0001,
    0xffff_ffff,
    0x4b00_0001,
    0x3eaa_aaab,
    0x4300_0000,
];

/// Scales whose significands and exponents lie at the ends.
pub(crate) const SCALES: [u32; 20] = [
    0x0000_0001,
    0x0000_0003,
    0x0012_3456,
    0x007f_ffff,
    0x0080_0000,
    0x00ff_ffff,
    0x0100_0000,
    0x0100_0001,
    0x3c23_d70a,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x3d4c_cc00,
    0x3da0_a0a1,
    0x4049_0fdb,
    0x76ab_cdef,
    0x76ff_ffff,
    0x7700_0000,
    0x7dfc_cc44,
    0x7e7f_ffff,
];

/// Kinds of data, by name.
pub(crate) const KINDS: [&str; 16] = [
    "gauss",
    "bf16",
    "bits",
    "finite-bits",
    "mixed",
    "subnormal",
    "tiny",
    "huge",
    "constant",
    "negative-constant",
    "one-sided",
    "far-from-zero",
    "zeros",
    "all-nan",
    "all-inf",
    "ints",
];

/// `n` values of a kind.
pub(crate) fn data(kind: &str, n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    let value = |rng: &mut Rng, i: usize| match kind {
        "gauss" => gauss(rng),
        "bf16" => f32::from_bits(gauss(rng).to_bits() & 0xffff_0000),
        "bits" => f32::from_bits(rng.next_u32()),
        "finite-bits" => {
            let bits = rng.next_u32();
            f32::from_bits(if bits & 0x7f80_0000 == 0x7f80_0000 { bits ^ 0x0080_0000 } else { bits })
        }
        "mixed" => match rng.below(4) {
            0 => f32::from_bits(EDGES[rng.below(EDGES.len() as u32) as usize]),
            _ => gauss(rng),
        },
        "subnormal" => f32::from_bits(rng.next_u32() & 0x8000_ffff),
        "tiny" => f32::from_bits(rng.next_u32() & 0x81ff_ffff),
        "huge" => f32::from_bits(rng.next_u32() & 0x80ff_ffff | 0x7e00_0000),
        "constant" => 0.1,
        "negative-constant" => f32::from_bits(0x8000_0003),
        "one-sided" => gauss(rng).abs(),
        "far-from-zero" => 1000.0 + gauss(rng),
        "zeros" => f32::from_bits(rng.next_u32() & 0x8000_0000),
        "all-nan" => f32::from_bits(rng.next_u32() | 0x7f80_0001),
        "all-inf" => f32::from_bits(rng.next_u32() & 0x8000_0000 | 0x7f80_0000),
        "ints" => (i as i32 % 511 - 255) as f32,
        _ => unreachable!("no such kind of data"),
    };
    (0..n).map(|i| value(&mut rng, i)).collect()
}

/// The values within 3 ulp of every halfway point `(k + 1/2) s`, up to just beyond 8-bit codes, on both sides.
pub(crate) fn halfway_neighbours(scale: f32) -> Vec<f32> {
    let mut values = halfway_neighbours_at(scale, 0..=130, 3);
    values.extend(EDGES.map(f32::from_bits));
    values
}

/// The values within so many ulp of the halfway points `(k + 1/2) s` of these `k`, on both sides of 0.
pub(crate) fn halfway_neighbours_at(scale: f32, steps: impl IntoIterator<Item = i32>, ulps: i32) -> Vec<f32> {
    let mut values = Vec::new();
    for k in steps {
        // Rounded like the f64 it is; three neighbours either way cover that.
        let centre = ((f64::from(k) + 0.5) * f64::from(scale)) as f32;
        for ulp in -ulps..=ulps {
            let bits = centre.to_bits().saturating_add_signed(ulp).min(0x7f80_0000);
            values.extend([f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)]);
        }
    }
    values
}

/// Patterns at and next to the edges of binary32, of both signs.
pub(crate) fn edge_bits() -> Vec<u32> {
    let mut bits = vec![];
    for centre in
        [0u32, 0x0080_0000, 0x3f00_0000, 0x3f80_0000, 0x4b00_0000, 0x4b80_0000, 0x7f00_0000, 0x7f80_0000, 0x7fc0_0000]
    {
        for near in -3i32..=3 {
            let b = centre.wrapping_add_signed(near) & 0x7fff_ffff;
            bits.extend([b, b | 0x8000_0000]);
        }
    }
    bits.extend([0x007f_ffff, 0x0040_0000, 0x7fff_ffff, 0x0000_8000, 0x3eaa_aaab, 0x42fe_0000, 0x437f_0000]);
    bits
}
