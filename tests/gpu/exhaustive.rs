//! All 2^32 values of x, and a minute of ten threads. Ignored by default: `cargo test --release --test gpu -- --ignored`
//! (minutes a scale).

use crate::threads::ten_threads;
use crate::{Test, assert_all_equal};
use wgpu_quant::gpu::Scales;
use wgpu_quant::{Gpu, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("all_2_to_the_32_values_agree_for_six_scales", all_values),
    ("all_2_to_the_32_values_agree_under_casts", casts),
    ("ten_threads_agree_for_a_minute", |gpu| ten_threads(gpu, 60)),
];

/// A common scale, the ends of the significand, the least scale, one of the worked example, and a huge one.
const SCALES: [u32; 6] = [0x3c23_d70a, 0x3f7f_ffff, 0x3f80_0001, 0x0000_0003, 0x3da0_a0a1, 0x7dfc_cc44];

/// Compares codes and counts of all values of x.
fn check_all(gpu: &Gpu, case: &str, spec: &Spec, scales: &[f32], zero_points: &[i32]) {
    const CHUNK: u32 = 1 << 25;
    let mut x = vec![0f32; CHUNK as usize];
    let started = std::time::Instant::now();
    for chunk in 0..=u32::MAX / CHUNK {
        for (v, bits) in x.iter_mut().zip(chunk * CHUNK..) {
            *v = f32::from_bits(bits);
        }
        let x = Tensor::new(&x, &[CHUNK as usize]).unwrap();
        let ours = gpu.quantize_with_scales(x, spec, Scales::Host(scales, zero_points)).unwrap();
        let reference = cpu::quantize_with_scales(x, spec, scales, zero_points).unwrap();
        let case = format!("{case}, values from {:#010x}", chunk * CHUNK);
        assert_all_equal("codes", &case, ours.tensor.codes(), reference.tensor.codes());
        assert_eq!(ours.counts, reference.counts, "{case}");
    }
    println!("{case}: 2^32 values in {:.0} s", started.elapsed().as_secs_f64());
}

fn all_values(gpu: &Gpu) {
    // The first scale with each width of codes, and a zero point.
    for (scheme, zero_points) in [(Scheme::UINT4_AFFINE, &[7][..]), (Scheme::UINT16_AFFINE, &[40_000])] {
        check_all(gpu, scheme.name(), &Spec::new(scheme), &[f32::from_bits(SCALES[0])], zero_points);
    }
    for scale in SCALES {
        check_all(gpu, &format!("scale {scale:#010x}"), &Spec::new(Scheme::INT8_ABSMAX), &[f32::from_bits(scale)], &[]);
    }
}

fn casts(gpu: &Gpu) {
    for (scheme, saturate) in [(Scheme::F16, false), (Scheme::F16, true), (Scheme::BF16, false)] {
        let case = format!("{scheme}, saturating: {saturate}");
        check_all(gpu, &case, &Spec::new(scheme).saturate(saturate), &[], &[]);
    }
}
