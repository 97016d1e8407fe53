//! The bits do not depend on how the work is cut.

use crate::corpus::data;
use crate::{Test, another, assert_same, assert_same_values};
use wgpu_quant::gpu::Tuning;
use wgpu_quant::{Gpu, Granularity, LossDetail, Scheme, Spec, Tensor, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("the_bits_are_the_same_for_every_workgroup_size", workgroups),
    ("the_bits_are_the_same_for_every_chunk_size", chunks),
    ("the_bits_are_the_same_however_many_range_units_share_a_buffer", slabs),
    ("the_bits_are_the_same_when_a_dispatch_has_two_dimensions", dimensions),
];

type Shapes = [(&'static [usize], Granularity)];

const SHAPES: &Shapes = &[
    (&[20_011], Granularity::Tensor),
    (&[61, 331], Granularity::Channel(0)),
    (&[3, 67, 101], Granularity::Channel(1)),
    (&[700, 29], Granularity::Channel(1)),
    (&[29, 700], Granularity::Channel(1)),
    (&[29, 7, 3], Granularity::Channel(1)),
];

/// Every slab of every repeat is a dispatch of each kernel, so there are few.
const SLAB_SHAPES: &Shapes = &[
    (&[2011], Granularity::Tensor),
    (&[61, 331], Granularity::Channel(0)),
    (&[3, 67, 101], Granularity::Channel(1)),
    (&[8, 29], Granularity::Channel(1)),
    (&[2, 130], Granularity::Channel(1)),
    (&[29, 7, 3], Granularity::Channel(1)),
];

/// Both paths over some shapes, with the device cut as `tuning` says.
fn agree(gpu: &Gpu, tuning: Tuning, shapes: &Shapes) {
    let gpu = another(gpu).with_tuning(tuning).unwrap();
    for &(shape, granularity) in shapes {
        for kind in ["mixed", "far-from-zero"] {
            let x = data(kind, shape.iter().product(), 21);
            let x = Tensor::new(&x, shape).unwrap();
            let spec = Spec::new(Scheme::INT8_MINMAX).per(granularity).loss(LossDetail::PerElement);
            let case = format!("{kind} {shape:?} {granularity} {tuning:?}");
            let reference = cpu::quantize(x, &spec).unwrap();
            assert_same(&case, &gpu.quantize(x, &spec).unwrap(), &reference);
            let scales: Vec<f32> =
                (0..reference.tensor.scales().len()).map(|unit| 0.01 * (unit % 97 + 1) as f32).collect();
            let given = gpu.quantize_with_scales(x, &spec, &scales, &[]).unwrap();
            assert_same(&case, &given, &cpu::quantize_with_scales(x, &spec, &scales, &[]).unwrap());
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
        agree(gpu, Tuning::default().workgroup(workgroup), SHAPES);
    }
}

fn chunks(gpu: &Gpu) {
    for chunk_elems in [68, 1000, 4096, 4100, 16_384, 16_388] {
        agree(gpu, gpu.tuning().chunk_elems(chunk_elems), SHAPES);
    }
}

fn slabs(gpu: &Gpu) {
    for slab_units in [1, 7, 16, 60] {
        agree(gpu, gpu.tuning().slab_units(slab_units), SLAB_SHAPES);
    }
    agree(gpu, gpu.tuning().slab_units(9).chunk_elems(100), SLAB_SHAPES);
}

fn dimensions(gpu: &Gpu) {
    for workgroups in [3, 5] {
        agree(gpu, Tuning::default().workgroup(64).workgroups_per_dimension(workgroups * workgroups), SHAPES);
    }
    // 20011 elements are 20 tiles of 1024: several rows of three workgroups.
    let gpu = another(gpu).with_tuning(gpu.tuning().workgroups_per_dimension(3)).unwrap();
    let x = data("gauss", 30_000, 22);
    let spec = Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::Summary);
    let x = Tensor::new(&x, &[30_000]).unwrap();
    assert_same("three per dimension", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
}
