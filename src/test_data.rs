//! Inputs for the unit tests: a small generator and patterns at the edges of binary32.

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Any pattern, or one with few significant bits, where ties and exact results are common.
    pub(crate) fn float_bits(&mut self) -> u32 {
        let bits = self.next_u32();
        if self.next_u32() & 1 == 0 { bits } else { bits & (u32::MAX << (self.next_u32() % 23)) }
    }
}

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
