//! Every kind of data, shape and granularity, on both paths.

use crate::corpus::{KINDS, Rng, SCALES, data, halfway_neighbours};
use crate::{Cases, Test, assert_same, assert_same_values, bits, check, check_tensor};
use wgpu_quant::gpu::{Kernel, Scales};
use wgpu_quant::{ElemType, Gpu, Granularity, LossDetail, Quantized, Scheme, Spec, Tensor, code_bytes, cpu};

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
    ("every_scheme_agrees_in_every_granularity_from_every_input_type", matrix),
    ("every_size_of_range_units_agrees_in_one_pass_and_in_two", one_pass),
    ("the_loss_of_long_runs_agrees_with_tables_and_without", long_runs),
    ("what_fits_a_workgroup_is_quantized_by_one_kernel", passes),
    ("rows_that_lie_apart_agree", pitch),
    ("given_scales_and_zero_points_agree_from_the_host_and_from_the_device", given),
    ("quantizing_and_dequantizing_in_one_go_agrees", fake_quantize),
];

/// Whether a scheme has this granularity.
fn allows(scheme: Scheme, granularity: Granularity) -> bool {
    !scheme.is_cast() || granularity == Granularity::Tensor
}

/// Zero points at the codes' ends, in their middle and anywhere; none of a scheme that has none.
fn zero_points(scheme: Scheme, units: usize) -> Vec<i32> {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let mut rng = Rng::new(units as u64);
    let any = |i: usize, rng: &mut Rng| match i % 4 {
        0 => qmin,
        1 => qmax,
        2 => qmin + (qmax - qmin) / 2,
        _ => qmin + rng.below((qmax - qmin).unsigned_abs()).cast_signed(),
    };
    if scheme.has_zero_point() { (0..units).map(|i| any(i, &mut rng)).collect() } else { vec![] }
}

/// Given scales, where the scheme has them.
fn of_scheme(scheme: Scheme, scales: &[f32]) -> (Vec<f32>, Vec<i32>) {
    if scheme.is_cast() { (vec![], vec![]) } else { (scales.to_vec(), zero_points(scheme, scales.len())) }
}

/// The bytes of values in another type: the nearest one's upper half for f16 too, whose patterns are all allowed.
pub(crate) fn bytes_of(elem_type: ElemType, x: &[f32], rng: &mut Rng) -> Vec<u8> {
    match elem_type {
        ElemType::F32 => bytemuck::cast_slice(x).to_vec(),
        // Mostly ordinary magnitudes, and any pattern at times.
        ElemType::F16 => x
            .iter()
            .flat_map(|v| {
                let b = v.to_bits();
                let ordinary = (b >> 16 & 0x8000) | (0x3000 + (b >> 10 & 0x0fff));
                (if rng.below(8) == 0 { b >> 16 } else { ordinary } as u16).to_ne_bytes()
            })
            .collect(),
        ElemType::Bf16 => x.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_ne_bytes()).collect(),
        // Neighbours of f32 values and of the halfway points between them.
        _ => x
            .iter()
            .flat_map(|v| {
                let bits = f64::from(*v).to_bits();
                let off = [0, 1 << 28, (1 << 28) + 1, (1 << 28) - 1, 1 << 27][rng.below(5) as usize];
                // A NaN may have nothing but its lowest bits.
                let nan = (bits & 0xfff0_0000_0000_0000) | off.max(1);
                (if v.is_nan() {
                    nan
                } else if v.is_infinite() {
                    bits
                } else {
                    bits + off
                })
                .to_ne_bytes()
            })
            .collect(),
    }
}

fn matrix(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 11);
    let mut rng = Rng::new(41);
    for (i, (shape, granularities)) in [
        (&[3, 5, 67][..], &["tensor", "channel=0", "channel=1", "channel=2", "group=1", "group=5", "group=32"][..]),
        (&[4, 3, 64], &["tensor", "channel=-1", "group=16", "group=24", "group=64", "group=100"]),
        (&[2, 1500], &["tensor", "channel=0", "group=100", "group=128", "group=700"]),
        // A tile of a hundred and more short runs, every other one of a single element.
        (&[130, 65], &["group=64"]),
        (&[4099], &["tensor", "channel=0", "group=3"]),
        (&[], &["tensor"]),
    ]
    .into_iter()
    .enumerate()
    {
        for (j, &elem_type) in ElemType::ALL.iter().enumerate() {
            // Each type meets each kind of data in some shape.
            let kind = ["mixed", "gauss", "far-from-zero", "bits"][(i + j) % 4];
            let x = data(kind, shape.iter().product(), (10 * i + j) as u64);
            let bytes = bytes_of(elem_type, &x, &mut rng);
            let x = Tensor::from_bytes(elem_type, &bytes, shape).unwrap();
            for &scheme in Scheme::ALL {
                for granularity in granularities.iter().map(|text| text.parse().unwrap()) {
                    if !allows(scheme, granularity) {
                        continue;
                    }
                    let detail = DETAILS[cases.all % 3];
                    let spec = Spec::new(scheme).per(granularity).loss(detail);
                    let case = format!("{kind} {shape:?} {elem_type:?} {spec:?}");
                    if cases.take() {
                        check_tensor(gpu, &case, x, &spec);
                    }
                }
            }
        }
    }
    cases.print();
}

fn one_pass(gpu: &Gpu) {
    let two = gpu.tuned(gpu.tuning().one_pass(false)).unwrap();
    // What is read once by software adapters in one way and by GPUs in another, in the other one too, and twice.
    let spread = gpu.tuned(gpu.tuning().spread(!gpu.tuning().spread)).unwrap();
    let not_held = gpu.tuned(gpu.tuning().held(false)).unwrap();
    let mut cases = Cases::of(gpu, 23);
    // Well past what a workgroup takes of odd sizes, 8 * 2047 elements; then around what it takes at most.
    let sizes: Vec<usize> = (1..=2300).chain([4100, 4104, 8192, 11008, 16384, 16385]).collect();
    // Scheme by scheme: software adapters forget kernels among many, and compile them again.
    let in_turn = (0..15).flat_map(|scheme| sizes.iter().copied().filter(move |n| n % 15 == scheme));
    for n in in_turn {
        let units = if n > 4096 { 64 } else { [1, 3, 7, 20][n % 4] };
        let x = data(["mixed", "far-from-zero", "gauss"][n % 3], units * n, n as u64);
        let shape = [units, n];
        let x = Tensor::new(&x, &shape).unwrap();
        let scheme = Scheme::ALL[n % 15];
        let spec = Spec::new(scheme).per(Granularity::Channel(0)).loss(DETAILS[n / 4 % 3]);
        let case = format!("{shape:?} {spec:?}");
        if !cases.take() {
            continue;
        }
        let (ours, reference) = (gpu.quantize(x, &spec).unwrap(), cpu::quantize(x, &spec).unwrap());
        assert_same(&case, &ours, &reference);
        assert_same(&case, &two.quantize(x, &spec).unwrap(), &reference);
        if n % 32 == 0 {
            let values = cpu::fake_quantize(x, &spec).unwrap();
            for other in [&spread, &not_held] {
                assert_same(&case, &other.quantize(x, &spec).unwrap(), &reference);
            }
            for gpu in [gpu, &spread, &not_held] {
                let found = gpu.fake_quantize(x, &spec).unwrap().value;
                assert_same_values(&case, &found.values, &values.values);
                assert_eq!((found.scales, found.counts), (values.scales.clone(), values.counts), "{case}");
            }
        }
    }
    cases.print();
}

fn long_runs(gpu: &Gpu) {
    let spread = gpu.tuned(gpu.tuning().spread(!gpu.tuning().spread)).unwrap();
    let mut cases = Cases::of(gpu, 13);
    // Around what a tile has at least and at most, and of what it has one run and two.
    for n in [4092, 4096, 4100, 5000, 8196, 16_388, 32_768, 32_772, 70_000, 131_072, 131_076] {
        for (i, scheme) in [Scheme::INT8_ABSMAX, Scheme::UINT8_AFFINE, Scheme::INT4_MINMAX, Scheme::INT16_ABSMAX]
            .into_iter()
            .enumerate()
        {
            for (kind, shape) in [("gauss", [1, n]), ("mixed", [3, n]), ("far-from-zero", [5, n])] {
                let spec = Spec::new(scheme).per(Granularity::Channel(0)).loss(DETAILS[1 + (n + i) % 2]);
                if !cases.take() {
                    continue;
                }
                let x = data(kind, shape[0] * n, (n + i) as u64);
                let x = Tensor::new(&x, &shape).unwrap();
                let case = format!("{kind} {shape:?} {spec:?}");
                let reference = cpu::quantize(x, &spec).unwrap();
                for gpu in [gpu, &spread] {
                    let two = gpu.tuned(gpu.tuning().one_pass(false)).unwrap();
                    assert_same(&case, &gpu.quantize(x, &spec).unwrap(), &reference);
                    assert_same(&case, &two.quantize(x, &spec).unwrap(), &reference);
                }
            }
        }
    }
    // Rows of which a workgroup takes two to four, with and without invocations to spare.
    for n in [1664, 1696, 2016, 2048, 2080, 2720, 2752, 4096] {
        for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT8_AFFINE, Scheme::INT4_ABSMAX] {
            if !cases.take() {
                continue;
            }
            let x = data("gauss", 9 * n, n as u64);
            let shape = [9, n];
            let x = Tensor::new(&x, &shape).unwrap();
            let spec = Spec::new(scheme).per(Granularity::Channel(0)).loss(LossDetail::Summary);
            let reference = cpu::quantize(x, &spec).unwrap();
            for gpu in [gpu, &spread] {
                assert_same(&format!("{shape:?} {spec:?}"), &gpu.quantize(x, &spec).unwrap(), &reference);
            }
        }
    }
    // A scale of one digit clips all of them by half of the codes' range: sums of squares of an invocation's take 65 bits.
    // An invocation has as many only of a large tensor on what is no software adapter, or is told so.
    if !cases.takes_a_part() {
        let n = 1 << 25;
        let x = vec![f32::from_bits(190); n];
        let shape = [n];
        let x = Tensor::new(&x, &shape).unwrap();
        let spec = Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::Summary);
        let gpu = gpu.tuned(gpu.tuning().spread(true)).unwrap();
        assert_same("all clipped", &gpu.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
    }
    cases.print();
}

/// The kernels of a call, where the adapter can say when they ran.
fn kernels(gpu: &Gpu, shape: &[usize; 2]) -> Option<Vec<Kernel>> {
    if !gpu.device().features().contains(wgpu_quant::wgpu::Features::TIMESTAMP_QUERY) {
        return None;
    }
    let x = data("gauss", shape[0] * shape[1], 1);
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    gpu.quantize(Tensor::new(&x, shape).unwrap(), &spec).unwrap();
    Some(gpu.kernel_seconds().into_iter().map(|(kernel, _)| kernel).collect())
}

fn passes(gpu: &Gpu) {
    let timed = |one_pass| gpu.tuned(gpu.tuning().timestamps(true).one_pass(one_pass)).unwrap();
    let (once, twice) = (timed(true), timed(false));
    let one = |kernels: Option<Vec<Kernel>>| kernels.is_none_or(|kernels| kernels == [Kernel::QuantizeOnce]);
    let two = |kernels: Option<Vec<Kernel>>| {
        kernels.is_none_or(|kernels| kernels == [Kernel::MinMax, Kernel::Scale, Kernel::Quantize])
    };
    // At most 16384 elements of whole vectors and words of codes; and if long, enough units.
    for (shape, fits) in [
        ([70, 1], false),
        ([70, 4], true),
        ([70, 32], true),
        ([3, 2046], false),
        ([3, 2052], true),
        ([3, 4096], true),
        ([3, 4104], false),
        ([64, 4104], true),
        ([64, 16384], true),
        ([64, 16392], false),
        ([1, 16383], true),
        ([1, 16385], false),
    ] {
        assert!(if fits { one(kernels(&once, &shape)) } else { two(kernels(&once, &shape)) }, "{shape:?}");
        assert!(two(kernels(&twice, &shape)), "{shape:?}");
    }
}

fn pitch(gpu: &Gpu) {
    let (mut turn, mut cases) = (0, Cases::of(gpu, 11));
    for (shape, pitch) in [(&[37, 67][..], 70), (&[37, 67], 300), (&[5, 9, 64], 65), (&[3, 1], 2), (&[300, 20], 24)] {
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let columns = shape[shape.len() - 1];
        let mut strides = vec![1, pitch];
        if shape.len() == 3 {
            strides.push(pitch * shape[1]);
        }
        strides.reverse();
        let x = data("mixed", (rows - 1) * pitch + columns, 51);
        let mut rng = Rng::new(52);
        for &elem_type in ElemType::ALL {
            let bytes = bytes_of(elem_type, &x, &mut rng);
            let x = Tensor::strided(elem_type, &bytes, shape, &strides).unwrap();
            for granularity in ["tensor", "channel=0", "channel=-1", "group=16", "group=25"] {
                let granularity = granularity.parse().unwrap();
                for scheme in [(); 4].map(|()| scheme_in_turn(&mut turn)) {
                    let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                    let case = format!("{shape:?} pitch {pitch} {elem_type:?} {spec:?}");
                    if cases.take() {
                        check_tensor(gpu, &case, x, &spec);
                    }
                }
            }
        }
    }
    cases.print();
    // Rows so far apart that they are moved together, and chunks that begin inside of them.
    let cut = gpu.tuned(gpu.tuning().chunk_elems(1000)).unwrap();
    let x = data("gauss", 36 * 300 + 67, 53);
    let x = Tensor::strided(ElemType::F32, bytemuck::cast_slice(&x), &[37, 67], &[300, 1]).unwrap();
    for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE, Scheme::BF16] {
        for granularity in [Granularity::Tensor, Granularity::Channel(0)] {
            if allows(scheme, granularity) {
                let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                check_tensor(&cut, &format!("cut {spec:?}"), x, &spec);
            }
        }
    }
}

/// A caller's buffer on the device.
fn buffer(gpu: &Gpu, bytes: &[u8]) -> wgpu_quant::wgpu::Buffer {
    use wgpu_quant::wgpu::{BufferDescriptor, BufferUsages};
    let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let size = bytes.len().max(4) as u64;
    let buffer = gpu.device().create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

fn given(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 3);
    for (shape, granularity) in [
        (vec![5001], Granularity::Tensor),
        (vec![30, 301], Granularity::Channel(0)),
        (vec![41, 30], Granularity::Channel(1)),
        (vec![10, 77], Granularity::Group(32)),
        (vec![10, 96], Granularity::Group(32)),
    ] {
        let x = data("mixed", shape.iter().product(), 61);
        let x = Tensor::new(&x, &shape).unwrap();
        for (i, &scheme) in Scheme::ALL.iter().filter(|scheme| !scheme.is_cast()).enumerate() {
            let spec = Spec::new(scheme).per(granularity).loss(DETAILS[i % 3]);
            let case = format!("{shape:?} {spec:?}");
            if !cases.take() {
                continue;
            }
            let units = spec.units(&shape).unwrap().units;
            let scales: Vec<f32> = (0..units).map(|unit| 0.003 * (unit % 97 + 1) as f32).collect();
            let zero_points = zero_points(scheme, units);
            let reference = cpu::quantize_with_scales(x, &spec, &scales, &zero_points).unwrap();
            assert_same(
                &case,
                &gpu.quantize_with_scales(x, &spec, Scales::Host(&scales, &zero_points)).unwrap(),
                &reference,
            );
            let on_device = buffer(gpu, bytemuck::cast_slice(&scales));
            let zero = scheme.has_zero_point().then(|| buffer(gpu, bytemuck::cast_slice(&zero_points)));
            let ours = gpu.quantize_with_scales(x, &spec, Scales::Device(&on_device, zero.as_ref())).unwrap();
            assert_same(&case, &ours, &reference);
            let ours = gpu.fake_quantize_with_scales(x, &spec, Scales::Host(&scales, &zero_points)).unwrap();
            assert_eq!(*ours, cpu::fake_quantize_with_scales(x, &spec, &scales, &zero_points).unwrap(), "{case}");
        }
    }
    cases.print();
    // What is no scale and no code on the device is an error when it comes back.
    let x = Tensor::new(&[1.0, 2.0], &[2]).unwrap();
    let spec = Spec::new(Scheme::UINT8_AFFINE).loss(LossDetail::PerElement);
    for (scale, zero_point, holds) in [
        (0.0f32, 0i32, "scale 0"),
        (f32::NAN, 0, "scale NaN"),
        (f32::INFINITY, 3, "scale inf"),
        (-1.0, 0, "scale -1"),
        (1.0, 256, "zero point 256"),
        (1.0, i32::MIN, "zero point -2147483648"),
    ] {
        let (scales, zero) = (buffer(gpu, &scale.to_ne_bytes()), buffer(gpu, &zero_point.to_ne_bytes()));
        let error = gpu.quantize_with_scales(x, &spec, Scales::Device(&scales, Some(&zero))).err().unwrap().to_string();
        assert!(error.contains(holds), "{error}");
    }
    let scales = buffer(gpu, &1f32.to_ne_bytes());
    assert!(
        gpu.quantize_with_scales(x, &spec, Scales::Device(&scales, None))
            .err()
            .unwrap()
            .to_string()
            .contains("zero points")
    );
    let rows = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    let error = gpu.quantize_with_scales(x, &rows, Scales::Device(&scales, None)).err().unwrap().to_string();
    assert!(error.contains("scales holds 1 elements, expected 2"), "{error}");
}

fn fake_quantize(gpu: &Gpu) {
    let (mut rng, mut cases) = (Rng::new(71), Cases::of(gpu, 11));
    for (shape, granularity) in [
        (vec![5001], Granularity::Tensor),
        (vec![30, 301], Granularity::Channel(0)),
        (vec![41, 30], Granularity::Channel(1)),
        (vec![10, 77], Granularity::Group(32)),
        (vec![10, 96], Granularity::Group(32)),
    ] {
        for kind in ["mixed", "huge", "bits"] {
            let x = data(kind, shape.iter().product(), 72);
            for &elem_type in ElemType::ALL {
                let bytes = bytes_of(elem_type, &x, &mut rng);
                let x = Tensor::from_bytes(elem_type, &bytes, &shape).unwrap();
                for &scheme in Scheme::ALL.iter().filter(|scheme| allows(**scheme, granularity)) {
                    let spec = Spec::new(scheme).per(granularity);
                    let case = format!("{kind} {shape:?} {elem_type:?} {spec:?}");
                    if !cases.take() {
                        continue;
                    }
                    let (ours, reference) =
                        (gpu.fake_quantize(x, &spec).unwrap(), cpu::fake_quantize(x, &spec).unwrap());
                    assert_same_values(&case, &ours.values, &reference.values);
                    assert_eq!(*ours, reference, "{case}");
                }
            }
        }
    }
    cases.print();
    let x = data("bits", 10_000, 73);
    let spec = Spec::new(Scheme::F16).saturate(true).loss(LossDetail::PerElement);
    check(gpu, "saturating", &x, &[10_000], &spec);
}

const DETAILS: [LossDetail; 3] = [LossDetail::None, LossDetail::Summary, LossDetail::PerElement];

fn worked_example(gpu: &Gpu) {
    let x = [-10.0, -5.0, 0.0, 5.0, 10.0];
    let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::PerElement);
    let out = gpu.quantize(Tensor::new(&x, &[5]).unwrap(), &spec).unwrap();
    assert_eq!(bits(out.tensor.scales()), [0x3da0_a0a1]);
    assert_eq!(out.tensor.code_values(), [-127, -64, 0, 64, 127]);
    let values = gpu.dequantize(&out.tensor).unwrap();
    assert_eq!(*values, [-9.960785, -5.019608, 0.0, 5.019608, 9.960785]);
    let loss = out.value.loss.unwrap();
    let expected = x.map(|x| if x == 0.0 { 0.0 } else { x }).into_iter().zip(values.iter()).map(|(x, v)| (v - x).abs());
    assert_eq!(loss.abs_errors.unwrap(), expected.collect::<Vec<_>>());
    assert_eq!(loss.sums.summary().max_abs_error, Some(0.039215088));
}

fn kinds(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 11);
    for (i, kind) in KINDS.iter().enumerate() {
        for &scheme in Scheme::ALL {
            let seed = (i * 10) as u64;
            for (shape, granularity) in [
                (vec![10_007], Granularity::Tensor),
                (vec![37, 271], Granularity::Channel(0)),
                (vec![271, 37], Granularity::Channel(1)),
            ] {
                let x = data(kind, shape.iter().product(), seed);
                if allows(scheme, granularity) {
                    let spec = Spec::new(scheme).per(granularity).loss(DETAILS[cases.all % 3]);
                    let case = format!("{kind} {shape:?} {spec:?}");
                    if cases.take() {
                        check(gpu, &case, &x, &shape, &spec);
                    }
                }
            }
        }
    }
    cases.print();
}

/// The next of the schemes that have every granularity.
fn scheme_in_turn(turn: &mut usize) -> Scheme {
    let schemes: Vec<Scheme> = Scheme::ALL.iter().copied().filter(|scheme| !scheme.is_cast()).collect();
    *turn += 1;
    schemes[*turn % schemes.len()]
}

fn axes(gpu: &Gpu) {
    let (mut turn, mut cases) = (0, Cases::of(gpu, 11));
    for shape in [vec![5, 7, 11], vec![3, 200, 70], vec![2, 3, 4096], vec![64, 64, 3], vec![1, 1, 1], vec![4, 1, 65]] {
        for axis in -3..3 {
            // The schemes in turn: which axis it is does not depend on them.
            for scheme in [(); 5].map(|()| scheme_in_turn(&mut turn)) {
                for detail in DETAILS {
                    let x = data("mixed", shape.iter().product(), 77);
                    let spec = Spec::new(scheme).per(Granularity::Channel(axis)).loss(detail);
                    let case = format!("{shape:?} {spec:?}");
                    if cases.take() {
                        check(gpu, &case, &x, &shape, &spec);
                    }
                }
            }
        }
    }
    cases.print();
}

fn lengths(gpu: &Gpu) {
    // A workgroup's tile holds 4096 elements for codes and 16384 for ranges.
    let (mut turn, mut cases) = (0, Cases::of(gpu, 11));
    let around = [4096usize, 8192, 16_384, 32_768, 65_536].into_iter().flat_map(|n| n - 2..=n + 2);
    for n in (1..=40).chain([63, 64, 65, 255, 256, 257, 1023, 1024, 1025]).chain(around) {
        let x = data("mixed", n, n as u64);
        let codecs = [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE, Scheme::INT16_AFFINE, Scheme::F16, Scheme::BF16];
        for scheme in codecs.into_iter().chain([scheme_in_turn(&mut turn)]) {
            let spec = Spec::new(scheme).loss(LossDetail::PerElement);
            let case = format!("length {n} {scheme}");
            if cases.take() {
                check(gpu, &case, &x, &[n], &spec);
            }
        }
        // Two rows of that length: the second begins inside a vector where n is odd.
        let x = data("gauss", 2 * n, n as u64);
        let spec = Spec::new(Scheme::INT8_MINMAX).per(Granularity::Channel(0)).loss(LossDetail::Summary);
        let case = format!("two rows of {n}");
        if cases.take() {
            check(gpu, &case, &x, &[2, n], &spec);
        }
    }
    cases.print();
}

fn halfway(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 5);
    for s in SCALES.map(f32::from_bits) {
        let x = halfway_neighbours(s);
        for &scheme in Scheme::ALL {
            let spec = Spec::new(scheme).loss(LossDetail::PerElement);
            let shape = [x.len()];
            let x = Tensor::new(&x, &shape).unwrap();
            let (scales, mut zero) = of_scheme(scheme, &[s]);
            for middle in [false, true] {
                if let (true, Some(z)) = (middle, zero.first_mut()) {
                    *z = (scheme.qmin() + scheme.qmax()) / 2;
                }
                if !cases.take() {
                    continue;
                }
                let ours = gpu.quantize_with_scales(x, &spec, Scales::Host(&scales, &zero)).unwrap();
                let reference = cpu::quantize_with_scales(x, &spec, &scales, &zero).unwrap();
                assert_same(&format!("scale {s:e} {scheme} zero point {zero:?}"), &ours, &reference);
            }
        }
    }
    cases.print();
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
        for &scheme in Scheme::ALL.iter().filter(|scheme| !scheme.is_cast()) {
            let spec = Spec::new(scheme).per(Granularity::Channel(0)).loss(LossDetail::PerElement);
            let (scales, zero) = of_scheme(scheme, &scales);
            let ours = gpu.quantize_with_scales(x, &spec, Scales::Host(&scales, &zero)).unwrap();
            let case = format!("{kind} {scheme}");
            assert_same(&case, &ours, &cpu::quantize_with_scales(x, &spec, &scales, &zero).unwrap());
        }
    }
}

fn foreign_codes(gpu: &Gpu) {
    let (mut turn, mut cases) = (0, Cases::of(gpu, 3));
    for (shape, granularity) in [
        (vec![9001], Granularity::Tensor),
        (vec![30, 300], Granularity::Channel(0)),
        (vec![300, 30], Granularity::Channel(1)),
    ] {
        for kind in KINDS {
            let n: usize = shape.iter().product();
            let x = data(kind, n, 8);
            let x = Tensor::new(&x, &shape).unwrap();
            let units = if granularity == Granularity::Tensor { 1 } else { 30 };
            let scales: Vec<f32> = data("finite-bits", units, 10)
                .into_iter()
                .map(|s| f32::from_bits(s.to_bits() & 0x7fff_ffff | 1))
                .collect();
            let casts = [Scheme::F16, Scheme::BF16].into_iter().filter(|scheme| allows(*scheme, granularity));
            for scheme in [(); 3].map(|()| scheme_in_turn(&mut turn)).into_iter().chain(casts) {
                if !cases.take() {
                    continue;
                }
                let bytes = code_bytes(&shape, scheme.code()).unwrap();
                let codes = data("bits", bytes, 9).iter().map(|v| v.to_bits() as u8).collect();
                let (scales, zero) = of_scheme(scheme, &scales);
                let q = Quantized::from_parts(scheme, granularity, shape.clone(), codes, scales, zero).unwrap();
                for per_element in [false, true] {
                    let ours = gpu.loss(x, &q, per_element).unwrap();
                    let reference = cpu::loss(x, &q, per_element).unwrap();
                    assert_eq!(ours.summary(), reference.summary(), "{kind} {scheme} {granularity}");
                    assert_eq!(ours.value, reference, "{kind} {scheme} {granularity}");
                }
            }
        }
    }
    cases.print();
}

fn dequantize_all_codes(gpu: &Gpu) {
    for &scheme in Scheme::ALL {
        let bits = scheme.code().bits();
        // A row of every code: one for each scale, or one in all.
        let rows = if scheme.is_cast() { 1 } else { SCALES.len() };
        let row_bytes = (1usize << bits) * bits as usize / 8;
        let codes: Vec<u8> = (0..rows * row_bytes)
            .map(|i| match bits {
                4 => ((i * 2 % 16) | (((i * 2 + 1) % 16) << 4)) as u8,
                8 => i as u8,
                _ => ((i / 2) >> (8 * (i % 2))) as u8,
            })
            .collect();
        let granularity = if scheme.is_cast() { Granularity::Tensor } else { Granularity::Channel(0) };
        let (scales, zero) = of_scheme(scheme, &SCALES.map(f32::from_bits));
        let q = Quantized::from_parts(scheme, granularity, vec![rows, 1 << bits], codes, scales, zero).unwrap();
        let values = gpu.dequantize(&q).unwrap();
        assert_same_values(&format!("all codes of {scheme}"), &values, &cpu::dequantize(&q).unwrap());
        assert!(bits != 8 || values.iter().any(|v| v.is_infinite()) && values.iter().any(|v| v.is_subnormal()));
    }
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
    assert_eq!(q.code_values()[n - 2..], [0, 127]);
}

fn many_channels(gpu: &Gpu) {
    for (shape, axis) in [(vec![100_000, 3], 0), (vec![3, 100_000], 1), (vec![2, 5000, 65], 1), (vec![1, 100_001], -1)]
    {
        let x = data("mixed", shape.iter().product(), 12);
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(axis)).loss(LossDetail::Summary);
        check(gpu, &format!("{shape:?} axis {axis}"), &x, &shape, &spec);
    }
}
