//! Every kind of data, shape and granularity, on both paths.

use crate::corpus::{KINDS, SCALES, data, halfway_neighbours};
use crate::{Test, assert_same, assert_same_values, bits, check};
use wgpu_quant::{Gpu, Granularity, LossDetail, Quantized, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("the_worked_example_has_the_contracts_bits", worked_example),
    ("every_kind_of_data_agrees_per_tensor_and_per_channel", kinds),
    ("a_3d_tensor_agrees_on_each_axis", axes),
    ("every_length_around_tiles_agrees", lengths),
    ("neighbours_of_every_halfway_point_agree_for_extreme_scales", halfway),
    ("random_given_scales_agree_on_random_bits", random_scales),
    ("the_loss_of_codes_from_elsewhere_agrees", foreign_codes),
    ("dequantizing_every_code_agrees_for_extreme_scales", dequantize_all_codes),
    ("empty_tensors_agree", empty),
    ("a_tensor_larger_than_128_mib_agrees", large),
    ("many_channels_agree_on_the_first_and_last_axis", many_channels),
];

const DETAILS: [LossDetail; 3] = [LossDetail::None, LossDetail::Summary, LossDetail::PerElement];

fn worked_example(gpu: &Gpu) {
    let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
    let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::PerElement);
    let out = gpu.quantize(Tensor::new(&x, &[5]).unwrap(), &spec).unwrap();
    assert_eq!(bits(out.tensor.scales()), [0x3da0_a0a1]);
    assert_eq!(out.tensor.codes_i8(), [-127, -64, 0, 64, 127]);
    let values = gpu.dequantize(&out.tensor).unwrap();
    assert_eq!(*values, [-9.960785, -5.019608, 0.0, 5.019608, 9.960785]);
    let loss = out.value.loss.unwrap();
    let expected = x.map(|x| if x == 0.0 { 0.0 } else { x }).into_iter().zip(values.iter()).map(|(x, v)| (v - x).abs());
    assert_eq!(loss.abs_errors.unwrap(), expected.collect::<Vec<_>>());
    assert_eq!(loss.sums.summary().max_abs_error, Some(0.039215088));
}

fn kinds(gpu: &Gpu) {
    let mut cases = 0;
    for (i, kind) in KINDS.iter().enumerate() {
        for &scheme in Scheme::ALL {
            for detail in DETAILS {
                let seed = (i * 10) as u64;
                for (shape, granularity) in [
                    (vec![10_007], Granularity::Tensor),
                    (vec![37, 271], Granularity::Channel(0)),
                    (vec![271, 37], Granularity::Channel(1)),
                ] {
                    let x = data(kind, shape.iter().product(), seed);
                    let spec = Spec::new(scheme).per(granularity).loss(detail);
                    check(gpu, &format!("{kind} {shape:?} {spec:?}"), &x, &shape, &spec);
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} cases");
}

fn axes(gpu: &Gpu) {
    for shape in [vec![5, 7, 11], vec![3, 200, 70], vec![2, 3, 4096], vec![64, 64, 3], vec![1, 1, 1], vec![4, 1, 65]] {
        for axis in -3..3 {
            for &scheme in Scheme::ALL {
                for detail in DETAILS {
                    let x = data("mixed", shape.iter().product(), 77);
                    let spec = Spec::new(scheme).per(Granularity::Channel(axis)).loss(detail);
                    check(gpu, &format!("{shape:?} {spec:?}"), &x, &shape, &spec);
                }
            }
        }
    }
}

fn lengths(gpu: &Gpu) {
    // A workgroup's tile holds 4096 elements for codes and 16384 for ranges.
    let around = [4096usize, 8192, 16_384, 32_768, 65_536].into_iter().flat_map(|n| n - 2..=n + 2);
    for n in (1..=40).chain([63, 64, 65, 255, 256, 257, 1023, 1024, 1025]).chain(around) {
        let x = data("mixed", n, n as u64);
        for &scheme in Scheme::ALL {
            let spec = Spec::new(scheme).loss(LossDetail::PerElement);
            check(gpu, &format!("length {n} {scheme}"), &x, &[n], &spec);
        }
        // Two rows of that length: the second begins inside a vector where n is odd.
        let x = data("gauss", 2 * n, n as u64);
        let spec = Spec::new(Scheme::INT8_MINMAX).per(Granularity::Channel(0)).loss(LossDetail::Summary);
        check(gpu, &format!("two rows of {n}"), &x, &[2, n], &spec);
    }
}

fn halfway(gpu: &Gpu) {
    for s in SCALES.map(f32::from_bits) {
        let x = halfway_neighbours(s);
        for &scheme in Scheme::ALL {
            let spec = Spec::new(scheme).loss(LossDetail::PerElement);
            let shape = [x.len()];
            let x = Tensor::new(&x, &shape).unwrap();
            let ours = gpu.quantize_with_scales(x, &spec, &[s]).unwrap();
            assert_same(&format!("scale {s:e} {scheme}"), &ours, &cpu::quantize_with_scales(x, &spec, &[s]).unwrap());
        }
    }
}

fn random_scales(gpu: &Gpu) {
    let rows = 300;
    let scales: Vec<f32> =
        data("finite-bits", rows, 5).into_iter().map(|s| f32::from_bits((s.to_bits() & 0x7fff_ffff).max(1))).collect();
    for kind in ["bits", "finite-bits", "mixed"] {
        // Each row's values lie around its own scale, where codes are neither all 0 nor all clipped.
        let mut x = data(kind, rows * 331, 6);
        for (row, s) in x.chunks_mut(331).zip(&scales) {
            for v in row.iter_mut().step_by(2) {
                *v = f32::from_bits(v.to_bits() & 0x83ff_ffff | (s.to_bits() & 0x7c00_0000)) * 4.0;
            }
        }
        let x = Tensor::new(&x, &[300, 331]).unwrap();
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0)).loss(LossDetail::PerElement);
        let ours = gpu.quantize_with_scales(x, &spec, &scales).unwrap();
        assert_same(kind, &ours, &cpu::quantize_with_scales(x, &spec, &scales).unwrap());
    }
}

fn foreign_codes(gpu: &Gpu) {
    for (shape, granularity) in [
        (vec![9001], Granularity::Tensor),
        (vec![30, 300], Granularity::Channel(0)),
        (vec![300, 30], Granularity::Channel(1)),
    ] {
        for kind in KINDS {
            let n: usize = shape.iter().product();
            let x = data(kind, n, 8);
            let codes = data("bits", n, 9).iter().map(|v| v.to_bits() as u8).collect();
            let units = if granularity == Granularity::Tensor { 1 } else { 30 };
            let scales =
                data("finite-bits", units, 10).into_iter().map(|s| f32::from_bits(s.to_bits() & 0x7fff_ffff | 1));
            let q = Quantized::from_parts(Scheme::INT8_ABSMAX, granularity, shape.clone(), codes, scales.collect())
                .unwrap();
            let x = Tensor::new(&x, &shape).unwrap();
            for per_element in [false, true] {
                let (ours, reference) = (gpu.loss(x, &q, per_element).unwrap(), cpu::loss(x, &q, per_element).unwrap());
                assert_eq!(ours.summary(), reference.summary(), "{kind} {granularity}");
                assert_eq!(ours.value, reference, "{kind} {granularity}");
            }
        }
    }
}

fn dequantize_all_codes(gpu: &Gpu) {
    let codes: Vec<u8> = (0..SCALES.len() * 256).map(|i| i as u8).collect();
    let scales = SCALES.map(f32::from_bits).to_vec();
    let shape = vec![SCALES.len(), 256];
    let q = Quantized::from_parts(Scheme::INT8_ABSMAX, Granularity::Channel(0), shape, codes, scales).unwrap();
    let values = gpu.dequantize(&q).unwrap();
    assert_same_values("all codes", &values, &cpu::dequantize(&q).unwrap());
    assert!(values.iter().any(|v| v.is_infinite()) && values.iter().any(|v| v.is_subnormal()));
}

fn empty(gpu: &Gpu) {
    for (shape, granularity) in [
        (vec![0], Granularity::Tensor),
        (vec![0, 5], Granularity::Channel(0)),
        (vec![0, 5], Granularity::Channel(1)),
        (vec![3, 0, 2], Granularity::Channel(-1)),
    ] {
        for detail in DETAILS {
            let spec = Spec::new(Scheme::INT8_MINMAX).per(granularity).loss(detail);
            let q = check(gpu, &format!("{shape:?} {spec:?}"), &[], &shape, &spec);
            assert!(q.scales().iter().all(|&s| s == 1.0));
        }
    }
    let scalar = Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::PerElement);
    check(gpu, "scalar", &[3.5], &[], &scalar);
}

fn large(gpu: &Gpu) {
    let n = (128 << 20) / 4 + 12_345;
    let mut x = data("gauss", n, 11);
    // The extremes and the odd values stand in the last chunk.
    x[n - 3] = -9.5;
    x[n - 2] = f32::NAN;
    x[n - 1] = f32::INFINITY;
    let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::Summary);
    let q = check(gpu, "134 million bytes", &x, &[n], &spec);
    assert_eq!(q.codes_i8()[n - 2..], [0, 127]);
}

fn many_channels(gpu: &Gpu) {
    for (shape, axis) in [(vec![100_000, 3], 0), (vec![3, 100_000], 1), (vec![2, 5000, 65], 1), (vec![1, 100_001], -1)]
    {
        let x = data("mixed", shape.iter().product(), 12);
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(axis)).loss(LossDetail::Summary);
        check(gpu, &format!("{shape:?} axis {axis}"), &x, &shape, &spec);
    }
}
