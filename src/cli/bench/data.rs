//! The data: near enough to normal(0, 1), a few outliers, the same on every machine.

use rayon::prelude::*;

/// `xorshift64*`, seeded.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    /// The sum of eight numbers below 2^16, shifted and scaled to mean 0 and variance 1.
    fn normal(&mut self) -> f32 {
        let (a, b) = (self.next(), self.next());
        let sum: u64 = (0..4).map(|i| (a >> (16 * i) & 0xffff) + (b >> (16 * i) & 0xffff)).sum();
        (sum as f32 - 262_140.0) * 1.868_4e-5
    }
}

/// Elements of a block, which begins with an outlier.
const BLOCK: usize = 1 << 20;

pub(super) fn normal(n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| {
        let mut rng = Rng::new(i as u64 + 1);
        block.fill_with(|| rng.normal());
        block[0] *= 8.0;
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_normal_enough() {
        let values = normal(BLOCK);
        let mean = |of: &dyn Fn(f64) -> f64| values.iter().map(|&v| of(v.into())).sum::<f64>() / BLOCK as f64;
        assert!(mean(&|v| v).abs() < 0.01);
        assert!((mean(&|v| v * v) - 1.0).abs() < 0.01);
        assert_eq!(values, normal(BLOCK));
    }
}
