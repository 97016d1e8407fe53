//! All 2^32 values of x. Ignored by default: `cargo test --release --test gpu -- --ignored` (minutes a scale).

use crate::{Test, assert_all_equal};
use wgpu_quant::{Gpu, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[("all_2_to_the_32_values_agree_for_six_scales", all_values)];

/// A common scale, the ends of the significand, the least scale, one of the worked example, and a huge one.
const SCALES: [u32; 6] = [0x3c23_d70a, 0x3f7f_ffff, 0x3f80_0001, 0x0000_0003, 0x3da0_a0a1, 0x7dfc_cc44];

fn all_values(gpu: &Gpu) {
    const CHUNK: u32 = 1 << 25;
    let spec = Spec::new(Scheme::INT8_ABSMAX);
    let mut x = vec![0f32; CHUNK as usize];
    for scale in SCALES.map(f32::from_bits) {
        let started = std::time::Instant::now();
        for chunk in 0..=u32::MAX / CHUNK {
            for (v, bits) in x.iter_mut().zip(chunk * CHUNK..) {
                *v = f32::from_bits(bits);
            }
            let x = Tensor::new(&x, &[CHUNK as usize]).unwrap();
            let ours = gpu.quantize_with_scales(x, &spec, &[scale], &[]).unwrap();
            let reference = cpu::quantize_with_scales(x, &spec, &[scale], &[]).unwrap();
            let case = format!("scale {:#010x}, values from {:#010x}", scale.to_bits(), chunk * CHUNK);
            assert_all_equal("codes", &case, ours.tensor.codes(), reference.tensor.codes());
            assert_eq!(ours.counts, reference.counts, "{case}");
        }
        println!("scale {:#010x}: 2^32 values in {:.0} s", scale.to_bits(), started.elapsed().as_secs_f64());
    }
}
