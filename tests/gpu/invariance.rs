//! The bits do not depend on how the work is cut.

use crate::corpus::data;
use crate::{Test, assert_same, assert_same_values};
use wgpu_quant::gpu::{Select, Tuning};
use wgpu_quant::{Gpu, Granularity, LossDetail, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("the_bits_are_the_same_for_every_workgroup_size", workgroups),
    ("the_bits_are_the_same_for_every_chunk_size", chunks),
    ("the_bits_are_the_same_however_many_range_units_share_a_buffer", slabs),
    ("the_bits_are_the_same_when_a_dispatch_has_two_dimensions", dimensions),
];

/// Both paths over some shapes, with the device cut as `tuning` says.
fn all_shapes(tuning: Tuning) {
    let gpu = Gpu::open(&Select::from_env()).unwrap().with_tuning(tuning).unwrap();
    for (shape, granularity) in [
        (vec![20_011], Granularity::Tensor),
        (vec![61, 331], Granularity::Channel(0)),
        (vec![3, 67, 101], Granularity::Channel(1)),
        (vec![700, 29], Granularity::Channel(1)),
        (vec![29, 700], Granularity::Channel(1)),
        (vec![29, 7, 3], Granularity::Channel(1)),
    ] {
        for kind in ["mixed", "far-from-zero"] {
            let x = data(kind, shape.iter().product(), 21);
            let x = Tensor::new(&x, &shape).unwrap();
            let spec = Spec::new(Scheme::INT8_MINMAX).per(granularity).loss(LossDetail::PerElement);
            let case = format!("{kind} {shape:?} {granularity} {tuning:?}");
            let reference = cpu::quantize(x, &spec).unwrap();
            assert_same(&case, &gpu.quantize(x, &spec).unwrap(), &reference);
            let values = gpu.dequantize(&reference.tensor).unwrap();
            assert_same_values(&case, &values, &cpu::dequantize(&reference.tensor).unwrap());
            let loss = gpu.loss(x, &reference.tensor, true).unwrap();
            assert_eq!(Some(loss.value), reference.loss, "{case}: loss of the codes");
        }
    }
}

fn workgroups(gpu: &Gpu) {
    let most = gpu.device().limits().max_compute_invocations_per_workgroup;
    for workgroup in [32, 64, 128, 256, 512, 1024].into_iter().filter(|&w| w <= most) {
        all_shapes(Tuning::default().workgroup(workgroup));
    }
}

fn chunks(_: &Gpu) {
    for chunk_elems in [68, 1000, 4096, 4100, 16_384, 16_388] {
        all_shapes(Tuning::default().chunk_elems(chunk_elems));
    }
}

fn slabs(_: &Gpu) {
    for slab_units in [1, 7, 16, 60] {
        all_shapes(Tuning::default().slab_units(slab_units));
    }
    all_shapes(Tuning::default().slab_units(9).chunk_elems(100));
}

fn dimensions(_: &Gpu) {
    for workgroups in [3, 5] {
        all_shapes(Tuning::default().workgroup(64).workgroups_per_dimension(workgroups * workgroups));
    }
    // 20011 elements are 20 tiles of 1024: several rows of three workgroups.
    let gpu = Gpu::open(&Select::from_env()).unwrap();
    let gpu = gpu.with_tuning(Tuning::default().workgroups_per_dimension(3)).unwrap();
    let x = data("gauss", 30_000, 22);
    let spec = Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::Summary);
    let x = Tensor::new(&x, &[30_000]).unwrap();
    assert_same("three per dimension", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
}
