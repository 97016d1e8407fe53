//! Recordings of tensors that lie otherwise than whole and dense: in slices, with rows apart, many at once, in parts.

use crate::corpus::{Rng, data};
use crate::device::own_adapter;
use crate::equality::bytes_of as typed;
use crate::record::{Held, bind, bytes_of, submit, words};
use crate::{Cases, Test, assert_all_equal, assert_same, bits};
use std::collections::HashMap;
use wgpu_quant::gpu::{Layout, Operation, Plan, Role};
use wgpu_quant::{ElemType, Error, Gpu, Granularity, LossDetail, Quantized, Scheme, Spec, Tensor, cpu, wgpu};

pub(crate) const TESTS: &[Test] = &[
    ("a_tensor_in_slices_agrees_wherever_they_are_cut", slices),
    ("rows_apart_agree", pitched),
    ("a_recorded_loss_agrees", loss),
    ("ranges_of_parts_give_the_scales_of_the_whole", parts),
    ("a_batch_agrees_in_a_few_dispatches", batch),
    ("layouts_that_cannot_be_are_refused", refused),
    ("a_device_of_tiny_limits_agrees_across_every_border", tiny),
];

const ROLES: [Role; 9] = [
    Role::Input,
    Role::Output,
    Role::Scales,
    Role::ZeroPoints,
    Role::Counts,
    Role::Ranges,
    Role::LossSums,
    Role::AbsErrors,
    Role::Scratch,
];

/// What a recording leaves in each part of each buffer. `whole` gives an output in slices one buffer.
fn run(
    gpu: &Gpu,
    case: &str,
    plan: &Plan,
    turn: u64,
    whole: bool,
    content: impl Fn(Role, usize) -> Vec<u8>,
) -> HashMap<Role, Vec<Vec<u8>>> {
    let mut held = vec![];
    for (i, role) in ROLES.into_iter().enumerate() {
        let needs =
            if whole && role == Role::Output { plan.need(role).into_iter().collect() } else { plan.needs(role) };
        for (part, need) in needs.into_iter().enumerate() {
            let turn = (turn * 5 + 3 * i as u64 + part as u64) % 13 * u64::from(turn > 0);
            held.push(Held::of(gpu, need, role, turn, &content(role, part)));
        }
    }
    let bound = bind(plan, &held);
    submit(gpu, |encoder| bound.record(encoder));
    let mut all: HashMap<Role, Vec<Vec<u8>>> = HashMap::new();
    for held in &held {
        all.entry(held.role).or_default().push(held.read(gpu, case));
    }
    all
}

/// All parts of a role, one after the other, up to so many bytes.
fn joined(all: &HashMap<Role, Vec<Vec<u8>>>, role: Role, bytes: usize) -> Vec<u8> {
    let mut joined = all.get(&role).map(|parts| parts.concat()).unwrap_or_default();
    assert!(joined.len() >= bytes && joined.len() < bytes + 16, "{role}: {} bytes of {bytes}", joined.len());
    joined.truncate(bytes);
    joined
}

/// Fails unless a recording of quantize left what the CPU path gives.
fn assert_quantized(
    case: &str,
    plan: &Plan,
    all: &HashMap<Role, Vec<Vec<u8>>>,
    reference: &wgpu_quant::QuantizeOutput,
) {
    let q = &reference.tensor;
    assert_all_equal("codes", case, &joined(all, Role::Output, q.codes().len()), q.codes());
    if !q.scheme().is_cast() {
        assert_all_equal("scales", case, &words::<u32>(&all[&Role::Scales][0]), &bits(q.scales()));
    }
    if q.scheme().has_zero_point() {
        assert_all_equal("zero points", case, &words::<i32>(&all[&Role::ZeroPoints][0]), q.zero_points());
    }
    assert_eq!(plan.counts(&words(&all[&Role::Counts][0])), reference.counts, "{case}: counts");
}

/// Cuts so many elements into slices whose lengths are multiples of `unit`, but for the last.
fn cut(elems: usize, unit: usize, rng: &mut Rng) -> Vec<usize> {
    let mut slices = vec![];
    let mut left = elems;
    while left > unit && slices.len() < 5 {
        let slice = (1 + rng.next_u32() as usize % (left / unit)) * unit;
        if slice >= left {
            break;
        }
        slices.push(slice);
        left -= slice;
    }
    slices.push(left);
    slices
}

fn slices(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 11);
    let small = gpu.tuned(gpu.tuning().chunk_elems(1000).workgroups_per_dimension(3)).unwrap();
    let mut rng = Rng::new(211);
    let mut several = 0;
    // Slices begin where whole words of codes do: at multiples of 8 elements, or of 8 rows where rows are filled up.
    for (shape, granularity, unit) in [
        (&[5001][..], Granularity::Tensor, 8),
        (&[30, 302], Granularity::Channel(0), 8),
        (&[48, 301], Granularity::Channel(0), 8 * 301),
        (&[41, 32], Granularity::Channel(1), 8),
        (&[3, 40, 16], Granularity::Channel(1), 8),
        (&[40, 77], Granularity::Group(32), 8 * 77),
        (&[10, 96], Granularity::Group(32), 8),
        (&[10, 96], Granularity::Group(32), 32),
    ] {
        let elems: usize = shape.iter().product();
        let values = data("mixed", elems, 212);
        for (i, &scheme) in Scheme::ALL.iter().enumerate() {
            let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
            let spec = Spec::new(scheme).per(granularity);
            let elem_type = ElemType::ALL[(i + shape.len()) % 4];
            let bytes = typed(elem_type, &values, &mut rng);
            let x = Tensor::from_bytes(elem_type, &bytes, shape).unwrap();
            let list = cut(elems, unit, &mut rng);
            let starts: Vec<usize> =
                list.iter().scan(0, |end, slice| Some(std::mem::replace(end, *end + slice))).chain([elems]).collect();
            for whole in [false, true] {
                let gpu = if cases.all % 3 == 2 { &small } else { gpu };
                let case = format!("{shape:?} {elem_type:?} {spec:?} {list:?} {whole}");
                let turn = cases.all as u64 % 11;
                if !cases.take() {
                    continue;
                }
                several += usize::from(list.len() > 1);
                let layout = Layout::new(shape, elem_type).slices_elems(&list);
                let plan = gpu.plan_of(Operation::Quantize, &spec, &[layout]).unwrap_or_else(|e| panic!("{case}: {e}"));
                let all = run(gpu, &case, &plan, turn, whole, |role, part| match role {
                    Role::Input => {
                        bytes[starts[part] * elem_type.bytes()..starts[part + 1] * elem_type.bytes()].to_vec()
                    }
                    _ => vec![],
                });
                let reference = cpu::quantize(x, &spec).unwrap();
                assert_quantized(&case, &plan, &all, &reference);
                // And back, from as many slices of codes.
                let q = &reference.tensor;
                let layout = Layout::new(shape, ElemType::F32).slices_elems(&list);
                let back =
                    gpu.plan_of(Operation::Dequantize, &spec, &[layout]).unwrap_or_else(|e| panic!("{case}: {e}"));
                let code_bytes = |elem: usize| match scheme.code().bits() {
                    4 => {
                        elem / shape[shape.len() - 1] * shape[shape.len() - 1].div_ceil(2)
                            + elem % shape[shape.len() - 1] / 2
                    }
                    bits => elem * bits as usize / 8,
                };
                let all = run(gpu, &case, &back, turn, whole, |role, part| match role {
                    Role::Input => {
                        let end = if part + 2 == starts.len() { q.codes().len() } else { code_bytes(starts[part + 1]) };
                        q.codes()[code_bytes(starts[part])..end].to_vec()
                    }
                    Role::Scales => bytes_of(q.scales()),
                    Role::ZeroPoints => bytes_of(q.zero_points()),
                    _ => vec![],
                });
                let values = joined(&all, Role::Output, 4 * elems);
                assert_all_equal("values", &case, &words::<u32>(&values), &bits(&cpu::dequantize(q).unwrap()));
            }
        }
    }
    cases.print();
    assert!(several > cases.taken / 2);
}

fn pitched(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 7);
    let mut rng = Rng::new(213);
    for (shape, granularity) in [
        ([30, 301], Granularity::Channel(0)),
        ([41, 30], Granularity::Channel(1)),
        ([20, 77], Granularity::Group(32)),
        ([20, 77], Granularity::Tensor),
    ] {
        for (i, pitch) in [shape[1], shape[1] + 3, 5 * shape[1]].into_iter().enumerate() {
            let values = data("mixed", (shape[0] - 1) * pitch + shape[1], 214);
            for (j, &scheme) in Scheme::ALL.iter().enumerate() {
                let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
                let spec = Spec::new(scheme).per(granularity);
                let elem_type = ElemType::ALL[(i + j) % 4];
                let bytes = typed(elem_type, &values, &mut rng);
                let x = Tensor::strided(elem_type, &bytes, &shape, &[pitch, 1]).unwrap();
                let case = format!("{shape:?} pitch {pitch} {elem_type:?} {spec:?}");
                if !cases.take() {
                    continue;
                }
                let layout = Layout::new(&shape, elem_type).row_pitch_elems(pitch);
                let plan = gpu.plan_of(Operation::Quantize, &spec, &[layout]).unwrap();
                let input = |role, _| if role == Role::Input { bytes.clone() } else { vec![] };
                let all = run(gpu, &case, &plan, cases.all as u64 % 5, false, input);
                assert_quantized(&case, &plan, &all, &cpu::quantize(x, &spec).unwrap());
            }
        }
    }
    cases.print();
}

fn loss(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 5);
    let small = gpu.tuned(gpu.tuning().chunk_elems(1000).slab_units(24)).unwrap();
    for (shape, granularity) in [
        (&[5001][..], Granularity::Tensor),
        (&[30, 301], Granularity::Channel(0)),
        (&[41, 24], Granularity::Channel(1)),
        (&[10, 77], Granularity::Group(32)),
        (&[10, 96], Granularity::Group(32)),
        (&[0, 3], Granularity::Channel(0)),
    ] {
        let values = data("mixed", shape.iter().product(), 215);
        let x = Tensor::new(&values, shape).unwrap();
        for &scheme in Scheme::ALL {
            for detail in [LossDetail::Summary, LossDetail::PerElement] {
                let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
                let spec = Spec::new(scheme).per(granularity).loss(detail);
                let case = format!("{shape:?} {spec:?}");
                let gpu = if cases.all % 3 == 1 { &small } else { gpu };
                if !cases.take() {
                    continue;
                }
                let plan = gpu.plan(Operation::Quantize, &spec, shape, ElemType::F32).unwrap();
                let input = |role, _| if role == Role::Input { bytes_of(&values) } else { vec![] };
                let all = run(gpu, &case, &plan, cases.all as u64 % 5, false, input);
                let reference = cpu::quantize(x, &spec).unwrap();
                assert_quantized(&case, &plan, &all, &reference);
                let errors = all.get(&Role::AbsErrors).map(|parts| words::<f32>(&parts[0]));
                assert_eq!(errors.is_some(), detail == LossDetail::PerElement);
                let of = |role: Role| words::<u32>(&all[&role][0]);
                let scales: Vec<f32> = words(&all[&Role::Scales][0]);
                let ours = plan.loss(&of(Role::Counts), &of(Role::LossSums), &scales, errors.as_deref()).unwrap();
                let theirs = reference.loss.unwrap();
                assert_eq!(ours.summary(), theirs.summary(), "{case}");
                assert_all_equal("unit losses", &case, &ours.units, &theirs.units);
                let [ours, theirs] =
                    [ours.abs_errors, theirs.abs_errors].map(|errors| bits(&errors.unwrap_or_default()));
                assert_all_equal("absolute errors", &case, &ours, &theirs);
            }
        }
    }
    cases.print();
}

fn parts(gpu: &Gpu) {
    // Three parts of a tensor in three recordings, whose ranges meet in one buffer.
    let (shape, part_shape) = ([9, 40, 50], [3, 40, 50]);
    let values = data("mixed", 18_000, 216);
    for (granularity, scheme) in [
        (Granularity::Tensor, Scheme::INT8_ABSMAX),
        (Granularity::Channel(1), Scheme::UINT8_AFFINE),
        (Granularity::Channel(2), Scheme::INT4_MINMAX),
    ] {
        let spec = Spec::new(scheme).per(granularity);
        let reference = cpu::quantize(Tensor::new(&values, &shape).unwrap(), &spec).unwrap().tensor;
        let case = format!("{spec:?}");
        let ranges = gpu.plan(Operation::Ranges, &spec, &part_shape, ElemType::F32).unwrap();
        let scales = gpu.plan(Operation::Scales, &spec, &part_shape, ElemType::F32).unwrap();
        assert_eq!((ranges.need(Role::Output), scales.need(Role::Input)), (None, None));
        let seen = Held::of(gpu, ranges.need(Role::Ranges).unwrap(), Role::Ranges, 3, &[]);
        let fresh = |plan: &Plan, role| Held::of(gpu, plan.need(role).unwrap(), role, 2, &[]);
        submit(gpu, |encoder| seen.clear(encoder));
        for part in values.chunks(6000) {
            let input = Held::of(gpu, ranges.need(Role::Input).unwrap(), Role::Input, 1, &bytes_of(part));
            let scratch = fresh(&ranges, Role::Scratch);
            let bound = bind(&ranges, [&input, &seen, &scratch]);
            submit(gpu, |encoder| bound.record(encoder));
        }
        let mut held = vec![fresh(&scales, Role::Scales), fresh(&scales, Role::Scratch)];
        if scheme.has_zero_point() {
            held.push(fresh(&scales, Role::ZeroPoints));
        }
        let bound = bind(&scales, held.iter().chain([&seen]));
        submit(gpu, |encoder| bound.record(encoder));
        assert_all_equal("scales", &case, &words::<u32>(&held[0].read(gpu, &case)), &bits(reference.scales()));
        if scheme.has_zero_point() {
            assert_all_equal("zero points", &case, &words::<i32>(&held[2].read(gpu, &case)), reference.zero_points());
        }
    }
}

/// A buffer with all tensors of a role at odd places, and what is around.
fn arena(gpu: &Gpu, plan: &Plan, role: Role, content: &[Vec<u8>]) -> (wgpu::Buffer, Vec<u64>) {
    let mut bytes = vec![];
    let mut offsets = vec![];
    for (need, content) in plan.needs(role).into_iter().zip(content) {
        bytes.resize(bytes.len() + 36, 0xa5);
        bytes.resize(bytes.len().next_multiple_of(need.offset_alignment_bytes as usize), 0xa5);
        offsets.push(bytes.len() as u64);
        bytes.extend(content);
        bytes.resize(*offsets.last().unwrap() as usize + need.bytes as usize, 0xa5);
    }
    bytes.resize(bytes.len() + 64, 0xa5);
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.len().next_multiple_of(4) as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    bytes.resize(buffer.size() as usize, 0xa5);
    gpu.queue().write_buffer(&buffer, 0, &bytes);
    (buffer, offsets)
}

/// Quantizes so many tensors in one recording, and returns its number of dispatches.
fn check_batch(gpu: &Gpu, operation: Operation, spec: &Spec, elem_type: ElemType, shapes: &[Vec<usize>]) -> usize {
    let case = format!("{operation:?} {spec:?} {elem_type:?} {} tensors", shapes.len());
    let mut rng = Rng::new(217);
    let layouts: Vec<Layout> = shapes.iter().map(|shape| Layout::new(shape, elem_type)).collect();
    let plan = gpu.plan_of(operation, spec, &layouts).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(plan.tensors(), shapes.len());
    let inputs: Vec<Vec<u8>> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| typed(elem_type, &data("mixed", shape.iter().product(), i as u64), &mut rng))
        .collect();
    let tensors = || inputs.iter().zip(shapes).map(|(x, shape)| Tensor::from_bytes(elem_type, x, shape).unwrap());
    let references: Vec<Quantized> = tensors().map(|x| cpu::quantize(x, spec).unwrap().tensor).collect();
    let content = |role| -> Vec<Vec<u8>> {
        match (role, operation) {
            (Role::Input, Operation::Dequantize) => references.iter().map(|q| q.codes().to_vec()).collect(),
            (Role::Input, _) => inputs.clone(),
            (_, Operation::Quantize) => vec![vec![]; shapes.len()],
            (Role::Scales, _) => references.iter().map(|q| bytes_of(q.scales())).collect(),
            (Role::ZeroPoints, _) => references.iter().map(|q| bytes_of(q.zero_points())).collect(),
            _ => vec![vec![]; shapes.len()],
        }
    };
    let held: Vec<(Role, wgpu::Buffer, Vec<u64>)> = ROLES
        .into_iter()
        .filter(|&role| plan.need(role).is_some())
        .map(|role| {
            let (buffer, offsets) = arena(gpu, &plan, role, &content(role));
            (role, buffer, offsets)
        })
        .collect();
    let entries: Vec<(Role, &wgpu::Buffer, u64)> = held
        .iter()
        .flat_map(|(role, buffer, offsets)| offsets.iter().map(move |&offset| (*role, buffer, offset)))
        .collect();
    let bound = plan.bind(&entries).unwrap_or_else(|e| panic!("{case}: {e}"));
    submit(gpu, |encoder| bound.record(encoder));
    for (role, buffer, offsets) in &held {
        let bytes = crate::record::read(gpu, buffer);
        let mut is_ours = vec![false; bytes.len()];
        for (i, (need, &offset)) in plan.needs(*role).iter().zip(offsets).enumerate() {
            let (start, end) = (offset as usize, (offset + need.bytes) as usize);
            is_ours[start..end].fill(true);
            let found = &bytes[start..end];
            let what = format!("{case}: {role} of tensor {i}, {:?}", shapes.get(i));
            match (role, operation) {
                (Role::Output, Operation::Dequantize) => {
                    assert_all_equal(
                        "values",
                        &what,
                        &words::<u32>(found),
                        &bits(&cpu::dequantize(&references[i]).unwrap()),
                    );
                }
                (Role::Output, _) => {
                    assert_all_equal("codes", &what, &found[..references[i].codes().len()], references[i].codes());
                }
                (Role::Scales, _) => {
                    assert_all_equal("scales", &what, &words::<u32>(found), &bits(references[i].scales()))
                }
                (Role::ZeroPoints, _) => {
                    assert_all_equal("zero points", &what, &words::<i32>(found), references[i].zero_points());
                }
                (Role::Counts, _) => {
                    for (j, x) in tensors().enumerate() {
                        let counts =
                            cpu::quantize_with_scales(x, spec, references[j].scales(), references[j].zero_points());
                        assert_eq!(plan.counts_of(j, &words(found)), counts.unwrap().counts, "{what}");
                    }
                }
                _ => {}
            }
        }
        let beside = bytes.iter().zip(&is_ours).position(|(&byte, ours)| !ours && byte != 0xa5);
        assert_eq!(beside, None, "{case}: {role} beside its places");
    }
    bound.dispatches()
}

fn batch(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 5);
    // Heads of a KV cache: many of one shape. Layers of a model: few alike, some empty.
    let heads: Vec<Vec<usize>> = vec![vec![16, 64]; 200];
    let layers: Vec<Vec<usize>> = (0..60).map(|i| vec![i % 7 * 5, 3 + i * 11 % 90]).collect();
    let mut most = 0;
    for (shapes, granularity) in [
        (&heads, Granularity::Channel(0)),
        (&heads, Granularity::Channel(1)),
        (&heads, Granularity::Group(32)),
        (&layers, Granularity::Tensor),
        (&layers, Granularity::Channel(0)),
        (&layers, Granularity::Channel(1)),
        (&layers, Granularity::Group(32)),
    ] {
        for operation in [Operation::Quantize, Operation::QuantizeWithScales, Operation::Dequantize] {
            for (i, &scheme) in Scheme::ALL.iter().enumerate() {
                // Every scheme with some granularity, every granularity with some schemes.
                let is_turn = (i + shapes.len()) % 4 == operation as usize % 4;
                if !is_turn || !cases.take() {
                    continue;
                }
                let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
                let spec = Spec::new(scheme).per(granularity);
                most = most.max(check_batch(gpu, operation, &spec, ElemType::ALL[i % 4], shapes));
            }
        }
    }
    cases.print();
    // Counts are cleared, and the rest is one kernel.
    let spec = Spec::new(Scheme::UINT4_AFFINE).per(Granularity::Group(64));
    assert_eq!(check_batch(gpu, Operation::Quantize, &spec, ElemType::F16, &vec![vec![16, 128]; 32]), 2);
    println!("at most {most} dispatches for up to {} tensors", heads.len());
    // Zeroes, one pass or ranges, scales and codes, each for all of them at once, but for what lies in vectors and what does
    // not, and short units.
    assert!(most <= 8, "{most} dispatches");
}

fn refused(gpu: &Gpu) {
    let spec = Spec::new(Scheme::INT4_ABSMAX);
    let plan = |layouts: &[Layout], spec: &Spec| gpu.plan_of(Operation::Quantize, spec, layouts);
    let says = |layout: Layout, text: &str| {
        let error = plan(&[layout], &spec).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    let layout = Layout::new(&[10, 16], ElemType::F32);
    says(layout.clone().slices_elems(&[80, 81]), "the slices holds 161 elements, expected 160");
    says(layout.clone().slices_elems(&[160, 0]), "slice 1 of no elements");
    says(layout.clone().slices_elems(&[12, 148]), "slice 1 begins at element 12");
    says(Layout::new(&[10, 15], ElemType::F32).slices_elems(&[8 * 15 + 4, 26]), "slice 1 begins at element 124");
    says(layout.clone().row_pitch_elems(15), "strides of [15, 1]");
    let both = [layout.clone(), layout.clone().slices_elems(&[80, 80])];
    assert!(matches!(plan(&both, &spec), Err(Error::Binding { .. })));
    let both = [layout.clone(), layout.clone()];
    assert!(matches!(plan(&both, &spec.loss(LossDetail::Summary)), Err(Error::Binding { .. })));
    let wide = plan(&both, &spec).unwrap();
    let (buffer, offsets) = (wide.create(Role::Input).unwrap(), wide.offsets(Role::Input));
    assert_eq!(offsets, [0, 640]);
    let once = [(Role::Input, &buffer, 0)];
    assert!(wide.bind(&once).unwrap_err().to_string().contains("given 1 times, 2 allowed"));
    // Scratch is read by the kernel that writes the codes.
    let rows = gpu.plan(Operation::Quantize, &spec, &[100_000], ElemType::F32).unwrap();
    let roles = [Role::Input, Role::Scales, Role::Counts];
    let buffers = roles.map(|role| rows.create(role).unwrap());
    let shared = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 1 << 20,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let mut entries: Vec<_> = roles.into_iter().zip(&buffers).map(|(role, buffer)| (role, buffer, 0)).collect();
    entries.extend([(Role::Output, &shared, 0), (Role::Scratch, &shared, 1 << 19)]);
    let error = rows.bind(&entries).unwrap_err().to_string();
    assert!(error.contains("the output buffer: it is also the scratch buffer"), "{error}");
    assert!(rows.loss(&[], &[], &[], None).is_err());
}

fn tiny(gpu: &Gpu) {
    // Bindings of 64 KiB, then dispatches of 3 workgroups to a dimension.
    let adapter = own_adapter(gpu);
    for (binding_bytes, workgroups, scale) in [(64 << 10, 65_535, 4), (128 << 20, 3, 1)] {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: binding_bytes,
            max_compute_workgroups_per_dimension: workgroups,
            ..wgpu::Limits::default()
        };
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let tiny = Gpu::from_device(device, queue).with_tuning(gpu.tuning().workgroup(64)).unwrap();
        check_tiny(&tiny, scale);
    }
}

fn check_tiny(gpu: &Gpu, scale: usize) {
    let mut cases = Cases::of(gpu, 7);
    for (shape, granularity) in [
        (vec![6001 * scale], Granularity::Tensor),
        (vec![7, 1203 * scale], Granularity::Channel(0)),
        (vec![600, 5 * scale], Granularity::Channel(1)),
        (vec![2, 1024 * scale, 3], Granularity::Channel(1)),
        (vec![50 * scale, 141], Granularity::Group(32)),
        (vec![50 * scale, 128], Granularity::Group(32)),
    ] {
        let values = data("mixed", shape.iter().product(), 218);
        let x = Tensor::new(&values, &shape).unwrap();
        for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE] {
            let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
            let spec = Spec::new(scheme).per(granularity);
            let case = format!("{shape:?} {spec:?}");
            if !cases.take() {
                continue;
            }
            let with_loss = spec.loss(LossDetail::PerElement);
            let reference = cpu::quantize(x, &with_loss).unwrap();
            assert_same(&case, &gpu.quantize(x, &with_loss).unwrap(), &reference);
            let values_back = gpu.dequantize(&reference.tensor).unwrap();
            assert_all_equal("values", &case, &bits(&values_back), &bits(&cpu::dequantize(&reference.tensor).unwrap()));
            let plan = match gpu.plan(Operation::Quantize, &spec, &shape, ElemType::F32) {
                // More columns than go together.
                Err(Error::TooLarge { found, .. }) if found as usize == 1024 * scale => continue,
                plan => plan.unwrap(),
            };
            let input = |role, _| if role == Role::Input { bytes_of(&values) } else { vec![] };
            let all = run(gpu, &case, &plan, cases.all as u64 % 5, false, input);
            assert_quantized(&case, &plan, &all, &reference);
        }
    }
    cases.print();
    let shapes: Vec<Vec<usize>> = (0..20 * scale).map(|i| vec![10 + i % 40, 64]).collect();
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
    let dispatches = check_batch(gpu, Operation::Quantize, &spec, ElemType::F32, &shapes);
    assert!(dispatches > 6, "{dispatches} dispatches that bind and cover little each");
}
