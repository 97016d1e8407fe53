//! The bits do not depend on how the work is cut.

use crate::corpus::data;
use crate::{Cases, Test, assert_same, assert_same_values};
use wgpu_quant::gpu::{Scales, Tuning};
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
    (&[61, 96], Granularity::Group(32)),
    (&[61, 96], Granularity::Channel(0)),
    (&[29, 77], Granularity::Group(32)),
    (&[9, 331], Granularity::Group(70)),
    (&[33, 31], Granularity::Tensor),
];

/// Every slab of every repeat is a dispatch of each kernel, so there are few.
const SLAB_SHAPES: &Shapes = &[
    (&[2011], Granularity::Tensor),
    (&[61, 331], Granularity::Channel(0)),
    (&[3, 67, 101], Granularity::Channel(1)),
    (&[8, 29], Granularity::Channel(1)),
    (&[2, 130], Granularity::Channel(1)),
    (&[29, 7, 3], Granularity::Channel(1)),
    (&[6, 64], Granularity::Group(8)),
    (&[9, 77], Granularity::Group(5)),
    (&[1, 333], Granularity::Group(7)),
];

/// Codes of each width; those of 4 bits fill up odd rows.
const SCHEMES: [(&str, Scheme); 3] =
    [("mixed", Scheme::INT8_ABSMAX), ("far-from-zero", Scheme::UINT4_AFFINE), ("gauss", Scheme::INT16_AFFINE)];

/// Both paths over some shapes, with the device cut as `tuning` says.
fn agree(cases: &mut Cases<'_>, tuning: Tuning, shapes: &Shapes, schemes: &[(&str, Scheme)]) {
    let gpu = cases.gpu;
    let gpu = gpu.tuned(tuning).unwrap();
    for &(shape, granularity) in shapes {
        for &(kind, scheme) in schemes {
            if !cases.take() {
                continue;
            }
            let x = data(kind, shape.iter().product(), 21);
            let x = Tensor::new(&x, shape).unwrap();
            let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
            let case = format!("{kind} {shape:?} {spec:?} {tuning:?}");
            let reference = cpu::quantize(x, &spec).unwrap();
            assert_same(&case, &gpu.quantize(x, &spec).unwrap(), &reference);
            let scales: Vec<f32> =
                (0..reference.tensor.scales().len()).map(|unit| 0.01 * (unit % 97 + 1) as f32).collect();
            let zero_points = reference.tensor.zero_points();
            let given = gpu.quantize_with_scales(x, &spec, Scales::Host(&scales, zero_points)).unwrap();
            assert_same(&case, &given, &cpu::quantize_with_scales(x, &spec, &scales, zero_points).unwrap());
            let fake = gpu.fake_quantize(x, &spec).unwrap();
            assert_eq!(fake.value, cpu::fake_quantize(x, &spec).unwrap(), "{case}: fake");
            let values = gpu.dequantize(&reference.tensor).unwrap();
            assert_same_values(&case, &values, &cpu::dequantize(&reference.tensor).unwrap());
            let loss = gpu.loss(x, &reference.tensor, true).unwrap();
            assert_eq!(Some(loss.value), reference.loss, "{case}: loss of the codes");
        }
    }
}

fn workgroups(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    let most = gpu.device().limits().max_compute_invocations_per_workgroup;
    // Each size compiles its kernels anew.
    for workgroup in [32, 64, 128, 256, 512, 1024].into_iter().filter(|&w| w <= most) {
        agree(
            &mut cases,
            Tuning::default().workgroup(workgroup),
            SHAPES,
            if workgroup == 64 { &SCHEMES } else { &SCHEMES[..1] },
        );
    }
    cases.print();
}

fn chunks(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    // Within a tile, about a tile, and not a multiple of 8, which is rounded down.
    for chunk_elems in [68, 1000, 4100, 16_384] {
        agree(&mut cases, gpu.tuning().chunk_elems(chunk_elems), SHAPES, &SCHEMES);
    }
    cases.print();
}

fn slabs(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    for slab_units in [1, 16, 60] {
        agree(&mut cases, gpu.tuning().slab_units(slab_units), SLAB_SHAPES, &SCHEMES);
    }
    agree(&mut cases, gpu.tuning().slab_units(9).chunk_elems(100), SLAB_SHAPES, &SCHEMES);
    cases.print();
}

fn dimensions(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    for workgroups in [3, 5] {
        agree(
            &mut cases,
            Tuning::default().workgroup(64).workgroups_per_dimension(workgroups * workgroups),
            SHAPES,
            &SCHEMES[1..2],
        );
    }
    // 20011 elements are 20 tiles of 1024: several rows of three workgroups.
    let gpu = gpu.tuned(gpu.tuning().workgroups_per_dimension(3)).unwrap();
    let x = data("gauss", 30_000, 22);
    let spec = Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::Summary);
    let x = Tensor::new(&x, &[30_000]).unwrap();
    assert_same("three per dimension", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
    cases.print();
}
