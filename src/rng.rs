//! A small generator of random numbers; the same numbers on every machine.
#![allow(dead_code, reason = "no user needs all of it")]

/// `xorshift64*`, seeded.
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

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// Any pattern, or one with few significant bits, where ties and exact results are common.
    pub(crate) fn float_bits(&mut self) -> u32 {
        let bits = self.next_u32();
        if self.next_u32() & 1 == 0 { bits } else { bits & (u32::MAX << (self.next_u32() % 23)) }
    }
}
