//! What goes wrong on the way: each failure is an `Error` that says what it was, nothing stays behind, and the next call
//! gives the right bits.

use crate::corpus::data;
use crate::device::{own_adapter, own_device};
use crate::record::objects;
use crate::{Test, another, assert_same};
use std::fmt::Debug;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use wgpu_quant::gpu::{Fault, Operation, Plan, Role, Scales, Tuning};
use wgpu_quant::{
    ElemType, Error, Gpu, Granularity, LossDetail, ObservedRanges, Observer, QuantizeOutput, Quantized, Result, Scheme,
    Spec, Tensor, cpu, wgpu,
};

pub(crate) const TESTS: &[Test] = &[
    ("the_creation_of_any_buffer_may_fail", creations),
    ("what_is_asked_for_wrongly_is_refused", requests),
    ("what_is_bound_wrongly_is_refused", bindings),
    ("a_device_that_allows_too_little_is_an_error", limits),
    ("a_kernel_or_a_mapping_may_fail", compilations),
    ("a_device_may_be_lost_at_any_time", losses),
    ("a_device_may_be_lost_under_many_threads", losses_under_threads),
];

pub(crate) const SOFTWARE_VULKAN_TESTS: &[Test] = &[("a_call_that_took_too_long_leaves_nothing_behind", timeouts)];

const SHAPE: [usize; 2] = [6, 100];

fn values() -> Vec<f32> {
    data("mixed", 600, 71)
}

/// One pass over the range units; in the other direction two.
fn along(axis: i32) -> Spec {
    Spec::new(Scheme::UINT8_AFFINE).per(Granularity::Channel(axis)).loss(LossDetail::PerElement)
}

fn quantized(x: &[f32], spec: &Spec) -> QuantizeOutput {
    cpu::quantize(Tensor::new(x, &SHAPE).unwrap(), spec).unwrap()
}

/// The faults of one `Gpu`, printed as a table.
struct Faults<'g> {
    gpu: &'g Gpu,
    x: Vec<f32>,
    reference: QuantizeOutput,
    objects: [isize; 3],
}

impl<'g> Faults<'g> {
    fn of(gpu: &'g Gpu) -> Self {
        let x = values();
        let reference = quantized(&x, &along(0));
        let mut faults = Self { gpu, x, reference, objects: [0; 3] };
        faults.works();
        faults.objects = faults.left();
        faults
    }

    fn works(&self) {
        let ours = self.gpu.quantize(Tensor::new(&self.x, &SHAPE).unwrap(), &along(0)).unwrap();
        assert_same("after a fault", &ours, &self.reference);
    }

    /// The objects that there are once the device is done, but for those of kernels, which are kept.
    fn left(&self) -> [isize; 3] {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let [buffers, bind_groups, .., query_sets] = objects(self.gpu);
        [buffers, bind_groups, query_sets]
    }

    /// An error of this kind with these words, and nothing else changed.
    #[track_caller]
    fn row<T: Debug>(&self, fault: &str, kind: &str, words: &str, done: Result<T>) {
        is_error(fault, kind, words, done);
        assert_eq!(self.left(), self.objects, "{fault}: what is left");
        self.works();
        assert_eq!(self.left(), self.objects, "after {fault}: what is left");
    }
}

#[track_caller]
fn is_error<T: Debug>(fault: &str, kind: &str, words: &str, done: Result<T>) {
    let error = match done {
        Ok(done) => panic!("{fault}: {}", format!("{done:?}").chars().take(200).collect::<String>()),
        Err(error) => error,
    };
    let (text, debug) = (error.to_string(), format!("{error:?}"));
    assert!(debug.starts_with(kind) && text.contains(words), "{fault}: {debug}, expected {kind} and {words:?}");
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(150).collect();
    println!("  {fault:<60} {kind}: {line}");
}

/// A buffer that holds these values.
fn held<T: bytemuck::Pod>(gpu: &Gpu, values: &[T], usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let size = size_of_val(values) as u64;
    let usage = usage | wgpu::BufferUsages::COPY_DST;
    let buffer =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    // The device may be lost.
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(values));
    gpu.queue().submit([]);
    drop(scope);
    buffer
}

/// A call whose result is compared with the CPU path's.
type Call = (&'static str, fn(&Gpu) -> Result<()>);

const CALLS: &[Call] = &[
    ("quantize in one pass", |gpu| quantizes(gpu, &along(0), None)),
    ("quantize in two passes", |gpu| quantizes(gpu, &along(1), None)),
    ("quantize_async", |gpu| {
        let x = values();
        let done = finished(gpu, gpu.quantize_async(Tensor::new(&x, &SHAPE).unwrap(), &along(0)));
        assert_same("async", &done?.value, &quantized(&x, &along(0)));
        Ok(())
    }),
    ("quantize_with_scales of the host", |gpu| quantizes(gpu, &along(0), Some(false))),
    ("quantize_with_scales of the device", |gpu| quantizes(gpu, &along(0), Some(true))),
    ("quantize_with_scales that were observed", |gpu| {
        let (x, ranges) = observed(gpu)?;
        let x = Tensor::new(&x, &SHAPE).unwrap();
        let ours = gpu.quantize_with_scales(x, &along(0), Scales::Observed(&ranges))?;
        let seen = cpu::observe(x, Granularity::Channel(0)).unwrap();
        let (scales, zero_points) = cpu::scales(&seen, along(0).scheme).unwrap();
        assert_same("observed", &ours, &cpu::quantize_with_scales(x, &along(0), &scales, &zero_points).unwrap());
        Ok(())
    }),
    ("fake_quantize", |gpu| {
        let x = values();
        let x = Tensor::new(&x, &SHAPE).unwrap();
        assert_eq!(gpu.fake_quantize(x, &along(0))?.value, cpu::fake_quantize(x, &along(0)).unwrap());
        Ok(())
    }),
    ("dequantize", |gpu| {
        let q = quantized(&values(), &along(0)).tensor;
        assert_eq!(crate::bits(&gpu.dequantize(&q)?), crate::bits(&cpu::dequantize(&q).unwrap()));
        Ok(())
    }),
    ("loss", |gpu| {
        let x = values();
        let QuantizeOutput { tensor, loss, .. } = quantized(&x, &along(1));
        assert_eq!(Some(gpu.loss(Tensor::new(&x, &SHAPE).unwrap(), &tensor, true)?.value), loss);
        Ok(())
    }),
    ("observe", |gpu| observed(gpu).map(drop)),
    ("observed", |gpu| {
        let (x, ranges) = observed(gpu)?;
        let reference = cpu::observe(Tensor::new(&x, &SHAPE).unwrap(), Granularity::Channel(0)).unwrap();
        assert_eq!(gpu.observed(&ranges)?.value, reference);
        Ok(())
    }),
    ("restore_ranges", |gpu| {
        let ranges = gpu.restore_ranges(&ObservedRanges::new(6), Granularity::Channel(0), Observer::MIN_MAX)?;
        assert_eq!(gpu.observed(&ranges)?.batches(), 0);
        Ok(())
    }),
    ("stream in one pass", |gpu| streams(gpu, &along(0), None)),
    ("stream in two passes", |gpu| streams(gpu, &along(1), None)),
    ("stream with scales of the host", |gpu| streams(gpu, &along(0), Some(()))),
    ("stream of codes", |gpu| {
        let q = quantized(&values(), &along(0)).tensor;
        let mut values = vec![];
        let read = |offset, to: &mut [u8]| {
            to.copy_from_slice(&q.codes()[offset as usize..offset as usize + to.len()]);
            Ok(())
        };
        let write = |bytes: &[u8]| {
            values.extend_from_slice(bytes);
            Ok(())
        };
        let (s, z) = (q.scales(), q.zero_points());
        let none = gpu.stream(&SHAPE, &along(0)).ring(2).budget_bytes(0);
        let budget = some(none.dequantize(s, z, |_, _| Ok(()), |_| Ok(())))?;
        none.budget_bytes(budget).dequantize(s, z, read, write)?;
        assert_eq!(values, bytemuck::cast_slice::<f32, u8>(&cpu::dequantize(&q).unwrap()));
        Ok(())
    }),
    ("Plan::create", |gpu| planned(gpu)?.create(Role::Output).map(drop)),
    ("Plan::bind", |gpu| {
        let plan = planned(gpu)?;
        let buffers = ROLES.map(|role| plan.create(role));
        let mut all = vec![];
        for (role, buffer) in ROLES.iter().zip(buffers) {
            all.push((*role, buffer?));
        }
        plan.bind(&all.iter().map(|(role, buffer)| (*role, buffer, 0)).collect::<Vec<_>>()).map(drop)
    }),
];

/// What a future gives, while the device is polled.
fn finished<T>(gpu: &Gpu, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        gpu.poll();
    }
}

const ROLES: [Role; 5] = [Role::Input, Role::Output, Role::Scales, Role::Counts, Role::Scratch];

fn planned(gpu: &Gpu) -> Result<Plan> {
    gpu.plan(Operation::Quantize, &Spec::new(Scheme::INT8_ABSMAX), &SHAPE, ElemType::F32)
}

fn quantizes(gpu: &Gpu, spec: &Spec, on_device: Option<bool>) -> Result<()> {
    let x = values();
    let reference = quantized(&x, spec);
    let (scales, zero_points) = (reference.tensor.scales(), reference.tensor.zero_points());
    let x = Tensor::new(&x, &SHAPE).unwrap();
    let ours = match on_device {
        None => gpu.quantize(x, spec),
        Some(false) => gpu.quantize_with_scales(x, spec, Scales::Host(scales, zero_points)),
        Some(true) => {
            let usage = wgpu::BufferUsages::COPY_SRC;
            let (scales, zero_points) = (held(gpu, scales, usage), held(gpu, zero_points, usage));
            gpu.quantize_with_scales(x, spec, Scales::Device(&scales, Some(&zero_points)))
        }
    };
    assert_same("call", &ours?.value, &reference);
    Ok(())
}

/// A budget that is too little for the tensor at once.
fn some<T>(refused: Result<T>) -> Result<u64> {
    match refused {
        Ok(_) => panic!("no budget will do"),
        Err(Error::TooSmall { enough, .. }) => Ok(enough + 1000),
        Err(error) => Err(error),
    }
}

fn streams(gpu: &Gpu, spec: &Spec, given: Option<()>) -> Result<()> {
    let x = values();
    let bytes: &[u8] = bytemuck::cast_slice(&x);
    let reference = quantized(&x, spec);
    let (s, z) = (reference.tensor.scales(), reference.tensor.zero_points());
    let (mut reads, mut codes) = (0, vec![]);
    let read = |offset, to: &mut [u8]| {
        reads += 1;
        to.copy_from_slice(&bytes[offset as usize..offset as usize + to.len()]);
        Ok(())
    };
    let write = |bytes: &[u8]| {
        codes.extend_from_slice(bytes);
        Ok(())
    };
    let none = gpu.stream(&SHAPE, spec).ring(2).budget_bytes(0);
    let (f32, given) = (ElemType::F32, given.map(|()| Scales::Host(s, z)));
    let out = match given {
        None => {
            let budget = some(none.quantize(f32, |_, _| Ok(()), |_| Ok(())))?;
            none.budget_bytes(budget).quantize(f32, read, write)?
        }
        Some(scales) => {
            let budget = some(none.quantize_with_scales(f32, scales, |_, _| Ok(()), |_| Ok(())))?;
            none.budget_bytes(budget).quantize_with_scales(f32, scales, read, write)?
        }
    };
    assert!(reads > 2, "{reads} reads");
    let ours = (&codes[..], crate::bits(&out.scales), &out.zero_points[..], out.counts);
    assert_eq!(ours, (reference.tensor.codes(), crate::bits(s), z, reference.counts));
    Ok(())
}

/// An accumulator that has seen one batch, and the batch. One that fails changes nothing.
fn observed(gpu: &Gpu) -> Result<(Vec<f32>, wgpu_quant::gpu::RangeAccumulator)> {
    let x = values();
    let mut ranges = gpu.range_accumulator(&SHAPE, Granularity::Channel(0), Observer::MIN_MAX)?;
    let done = gpu.observe(&mut ranges, Tensor::new(&x, &SHAPE).unwrap());
    assert_eq!(ranges.batches(), u64::from(done.is_ok()));
    done.map(|()| (x, ranges))
}

fn creations(gpu: &Gpu) {
    // All of them are made in one place, by one call or the other.
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/gpu")).unwrap();
    let texts = sources.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    assert_eq!(texts.map(|text| text.matches(".create_buffer").count()).sum::<usize>(), 2);
    // As they are, and in several chunks and slabs, with each kernel's time taken.
    let cut = another(gpu).with_tuning(gpu.tuning().chunk_elems(400).slab_units(60).timestamps(true)).unwrap();
    let mut rows = 0;
    for gpu in [&another(gpu), &cut] {
        for (_, call) in CALLS {
            call(gpu).unwrap();
        }
        let faults = Faults::of(gpu);
        for (name, call) in CALLS {
            let all = (0..1000).take_while(|&nth| {
                gpu.fail(Fault::Buffer, Some(nth));
                let done = call(gpu);
                gpu.fail(Fault::Buffer, None);
                let failed = done.is_err();
                if failed {
                    faults.row(&format!("{name}: buffer {nth}"), "OutOfMemory", "out of device memory", done);
                }
                failed
            });
            let all = all.count();
            assert!((1..1000).contains(&all), "{name}: {all} buffers");
            rows += all;
        }
    }
    println!("{rows} creations failed");
}

fn requests(gpu: &Gpu) {
    let gpu = &another(gpu);
    for (_, call) in CALLS {
        call(gpu).unwrap();
    }
    let faults = Faults::of(gpu);
    let x = values();
    let (x, spec) = (Tensor::new(&x, &SHAPE).unwrap(), along(0));
    let q = quantized(&values(), &spec).tensor;
    let given =
        |scales: &[f32], zero_points: &[i32]| gpu.quantize_with_scales(x, &spec, Scales::Host(scales, zero_points));
    let (ones, zeros) = ([1.0f32; 6], [0i32; 6]);
    faults.row("too few scales", "LengthMismatch", "holds 5 elements, expected 6", given(&ones[1..], &zeros));
    faults.row("too few zero points", "LengthMismatch", "holds 5 elements, expected 6", given(&ones, &zeros[1..]));
    let bad = |at: usize, value: f32| std::array::from_fn::<_, 6, _>(|i| if i == at { value } else { 1.0 });
    faults.row("a scale of 0", "InvalidScale", "scale 0 of range unit 3", given(&bad(3, 0.0), &zeros));
    faults.row("a scale that is NaN", "InvalidScale", "scale NaN of range unit 5", given(&bad(5, f32::NAN), &zeros));
    faults.row("a zero point that is no code", "InvalidZeroPoint", "256", given(&ones, &[0, 0, 256, 0, 0, 0]));
    faults.row("an axis that is not there", "AxisOutOfRange", "axis 2", gpu.quantize(x, &along(2)));
    let cast = Spec::new(Scheme::F16).per(Granularity::Group(2));
    faults.row("groups of a cast", "CastHasNoScale", "f16 is a cast", gpu.quantize(x, &cast));
    let tall = values();
    let tall = Tensor::new(&tall, &[100, 6]).unwrap();
    faults.row("the loss of another shape", "ShapeMismatch", "[6, 100]", gpu.loss(tall, &q, false));

    // A caller's buffers.
    let source = wgpu::BufferUsages::COPY_SRC;
    let (scales, zero_points) = (held(gpu, &ones, source), held(gpu, &zeros, source));
    let on_device = |scales: &wgpu::Buffer, zero_points: Option<&wgpu::Buffer>| {
        gpu.quantize_with_scales(x, &spec, Scales::Device(scales, zero_points))
    };
    on_device(&scales, Some(&zero_points)).unwrap();
    let (short, mute) = (held(gpu, &ones[1..], source), held(gpu, &ones, wgpu::BufferUsages::STORAGE));
    let (gone, bad_scale) = (held(gpu, &ones, source), held(gpu, &bad(1, -1.0), source));
    let bad_zero_point = held(gpu, &[0, 0, 0, -1, 0, 0], source);
    // What the test itself holds does not count as left behind.
    let faults = Faults::of(gpu);
    let points = Some(&zero_points);
    faults.row("scales: a short buffer", "LengthMismatch", "holds 5 elements, expected 6", on_device(&short, points));
    faults.row("zero points: a short buffer", "LengthMismatch", "expected 6", on_device(&scales, Some(&short)));
    faults.row("zero points: no buffer", "LengthMismatch", "holds 0 elements, expected 6", on_device(&scales, None));
    let needed = "the scales buffer: of usage BufferUsages(COPY_DST | STORAGE), COPY_SRC is needed";
    faults.row("scales: a buffer that cannot be copied", "Binding", needed, on_device(&mute, points));
    let needed = "the zero points buffer: of usage BufferUsages(COPY_DST | STORAGE), COPY_SRC is needed";
    faults.row("zero points: a buffer that cannot be copied", "Binding", needed, on_device(&scales, Some(&mute)));
    faults.row(
        "scales: a buffer with a negative one",
        "InvalidScale",
        "scale -1 of range unit 1",
        on_device(&bad_scale, points),
    );
    faults.row(
        "zero points: a buffer with no code",
        "InvalidZeroPoint",
        "-1 of range unit 3",
        on_device(&scales, Some(&bad_zero_point)),
    );
    gone.destroy();
    let faults = Faults::of(gpu);
    faults.row("scales: a buffer that was destroyed", "Gpu", "destroyed", on_device(&gone, points));

    // Ranges.
    let other = another(gpu);
    let mut elsewhere = other.range_accumulator(&SHAPE, Granularity::Channel(0), Observer::MIN_MAX).unwrap();
    let mut five = gpu.range_accumulator(&[5, 1], Granularity::Channel(0), Observer::MIN_MAX).unwrap();
    let faults = Faults::of(gpu);
    let words = "belongs to another Gpu";
    faults.row("observe: another Gpu's ranges", "OtherDevice", words, gpu.observe(&mut elsewhere, x));
    faults.row("observed: another Gpu's ranges", "OtherDevice", words, gpu.observed(&elsewhere));
    let with = |ranges| gpu.quantize_with_scales(x, &spec, Scales::Observed(ranges));
    faults.row("quantize: another Gpu's ranges", "OtherDevice", words, with(&elsewhere));
    faults.row("quantize: ranges of too few units", "LengthMismatch", "holds 6 elements, expected 5", with(&five));
    let words = "the range units of a batch holds 6 elements, expected 5";
    faults.row("observe: a batch of more units", "LengthMismatch", words, gpu.observe(&mut five, x));
    let casts = gpu.quantize_with_scales(x, &Spec::new(Scheme::BF16), Scales::Observed(&elsewhere));
    faults.row("quantize: a cast with ranges", "CastHasNoScale", "bf16 is a cast", casts);
    assert_eq!((five.batches(), elsewhere.batches()), (0, 0));
}

fn bindings(gpu: &Gpu) {
    let gpu = &another(gpu);
    let plan = planned(gpu).unwrap();
    let buffers = ROLES.map(|role| plan.create(role).unwrap());
    let good: Vec<(Role, &wgpu::Buffer, u64)> = ROLES.into_iter().zip(&buffers).map(|(role, b)| (role, b, 0)).collect();
    let storage = wgpu::BufferUsages::STORAGE;
    let (plain, large) = (held(gpu, &[0u8; 2400], wgpu::BufferUsages::COPY_SRC), held(gpu, &[0u8; 8000], storage));
    let (short, gone) = (held(gpu, &[0u8; 2396], storage), held(gpu, &[0u8; 2400], storage));
    gone.destroy();
    plan.bind(&good).unwrap();
    let faults = Faults::of(gpu);
    let with = |changes: &[(usize, &wgpu::Buffer, u64)]| {
        let mut all = good.clone();
        for &(at, buffer, offset) in changes {
            all[at] = (all[at].0, buffer, offset);
        }
        plan.bind(&all)
    };
    let usage = "the input buffer: of usage BufferUsages(COPY_SRC | COPY_DST), STORAGE is needed";
    let row = |fault, words, done| faults.row(fault, "Binding", words, done);
    row("bind: a buffer of another usage", usage, with(&[(0, &plain, 0)]));
    row("bind: an input at any byte", "at byte 8, multiples of 16 are allowed", with(&[(0, &large, 8)]));
    row("bind: an output at any byte", "at byte 2, multiples of 4 are allowed", with(&[(1, &large, 2)]));
    let words = "of 2396 bytes from byte 0 on, 2400 are needed";
    row("bind: a short buffer", words, with(&[(0, &short, 0)]));
    row("bind: too far behind", "of 1600 bytes from byte 6400 on, 2400 are needed", with(&[(0, &large, 6400)]));
    row("bind: beyond the end", "of 0 bytes from byte 8192 on", with(&[(0, &large, 8192)]));
    row(
        "bind: beyond all numbers",
        "of 0 bytes from byte 18446744073709551600 on",
        with(&[(0, &large, u64::MAX - 15)]),
    );
    row("bind: overlapping", "its bytes 596..600 are output too", with(&[(1, &large, 0), (2, &large, 596)]));
    row("bind: input and output", "it is also the input buffer", with(&[(0, &large, 0), (1, &large, 4096)]));
    row("bind: none", "the input buffer: not given", plan.bind(&[]));
    row("bind: one missing", "the scratch buffer: not given", plan.bind(&good[..4]));
    row("bind: one twice", "the input buffer: given 2 times, 1 allowed", plan.bind(&[&good[..], &good[..1]].concat()));
    let extra = [&good[..], &[(Role::ZeroPoints, &large, 0)]].concat();
    row("bind: one too many", "the zero points buffer: this plan has none", plan.bind(&extra));
    faults.row("create: a buffer that there is not", "Binding", "this plan has none", plan.create(Role::ZeroPoints));
    // What it has written to its uniform waits for a submission.
    is_error("bind: a buffer that was destroyed", "Gpu", "destroyed", with(&[(0, &gone, 0)]));
    faults.works();
    let plans = |spec: &Spec, shape: &[usize]| gpu.plan(Operation::Quantize, spec, shape, ElemType::F32);
    faults.row("plan: an axis that is not there", "AxisOutOfRange", "axis 2", plans(&along(2), &SHAPE));
    let endless = [usize::MAX, 2];
    faults.row("plan: a shape beyond all numbers", "ShapeOverflow", "more elements", plans(&along(0), &endless));

    // Of an empty tensor nothing is needed, but offsets are to lie in the buffer all the same.
    let empty = gpu.plan(Operation::Quantize, &along(0).loss(LossDetail::None), &[0, 3], ElemType::F32).unwrap();
    let roles = [Role::Input, Role::Output, Role::Scales, Role::ZeroPoints, Role::Counts, Role::Scratch];
    let buffers = roles.map(|role| empty.create(role).unwrap());
    let mut all: Vec<_> = roles.into_iter().zip(&buffers).map(|(role, b)| (role, b, 0)).collect();
    empty.bind(&all).unwrap();
    for at in 0..roles.len() {
        all[at].2 = u64::MAX - 255;
        let done = empty.bind(&all);
        is_error(&format!("bind: the {} of nothing beyond all numbers", roles[at]), "Binding", "of 0 bytes", done);
        all[at].2 = 0;
    }
}

fn limits(gpu: &Gpu) {
    let x = data("mixed", 100_000, 72);
    let x = Tensor::new(&x, &[100_000]).unwrap();
    let tuned = |tuning| another(gpu).with_tuning(tuning);
    let tuning = Tuning::default();
    for (fault, words, tuning) in [
        ("tuning: a workgroup of none", "workgroup in invocations is 0", tuning.workgroup(0)),
        ("tuning: a workgroup of a million", "workgroup in invocations is 1048576", tuning.workgroup(1 << 20)),
        ("tuning: a chunk of none", "chunk in blocks of 8 elements is 0", tuning.chunk_elems(0)),
        ("tuning: a chunk of a few", "chunk in blocks of 8 elements is 0", tuning.chunk_elems(7)),
        ("tuning: a chunk of too many", "chunk in blocks of 8 elements is 536870911", tuning.chunk_elems(u32::MAX)),
        ("tuning: a slab of none", "slab in range units is 0", tuning.slab_units(0)),
        ("tuning: dispatches of none", "workgroups per dimension is 0", tuning.workgroups_per_dimension(0)),
    ] {
        is_error(fault, "TooLarge", words, tuned(tuning));
    }
    let spec = Spec::new(Scheme::INT8_ABSMAX);
    let narrow = tuned(gpu.tuning().workgroups_per_dimension(1)).unwrap();
    // One workgroup at a time is slow, and no error.
    assert_same("one workgroup at a time", &narrow.quantize(x, &spec).unwrap(), &cpu::quantize(x, &spec).unwrap());
    narrow.plan(Operation::Quantize, &spec, x.shape(), ElemType::F32).unwrap();
    let timed = tuned(gpu.tuning().chunk_elems(8).timestamps(true)).unwrap();
    if timed.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        let faults = Faults::of(&timed);
        let words = "the number of dispatches that are timed is 25001, the device allows at most 2048";
        faults.row("quantize: more timed dispatches than queries", "TooLarge", words, timed.quantize(x, &spec));
    } else {
        println!("  this adapter takes no timestamps");
    }

    // Callers' devices that allow less than is needed.
    let adapter = own_adapter(gpu);
    let with = |change: fn(&mut wgpu::Limits)| {
        let mut required_limits = wgpu::Limits::default().or_worse_values_from(&adapter.limits());
        change(&mut required_limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Gpu::from_device(device, queue)
    };
    let few = with(|limits| limits.max_storage_buffers_per_shader_stage = 3);
    for _ in 0..2 {
        let words = "storage buffers of a kernel is 6, the device allows at most 3";
        is_error("quantize: three storage buffers", "TooLarge", words, few.quantize(x, &spec));
    }
    let small = with(|limits| {
        limits.max_buffer_size = 1 << 20;
        limits.max_storage_buffer_binding_size = 1 << 20;
    });
    let faults = Faults::of(&small);
    let many = ObservedRanges::new((1 << 17) + 1);
    let words = "observed ranges is 1048592, the device allows at most 1048576";
    let restored = small.restore_ranges(&many, Granularity::Channel(0), Observer::MIN_MAX);
    faults.row("restore_ranges: more than a buffer holds", "TooLarge", words, restored);

    // Two devices of one instance.
    let (one, other) = (with(|_| ()), with(|_| ()));
    let scale = held(&other, &[1.0f32], wgpu::BufferUsages::COPY_SRC);
    let done = one.quantize_with_scales(x, &spec, Scales::Device(&scale, None));
    is_error("scales: a buffer of another device", "Gpu", "evice", done);
    let plan = one.plan(Operation::Dequantize, &spec, &[4], ElemType::F32).unwrap();
    let buffers =
        [Role::Input, Role::Output, Role::Scales, Role::Scratch].map(|role| (role, plan.create(role).unwrap()));
    let theirs = held(&other, &[0u32; 4], wgpu::BufferUsages::STORAGE);
    let mut all: Vec<_> = buffers.iter().map(|(role, buffer)| (*role, buffer, 0)).collect();
    plan.bind(&all).unwrap();
    all[0].1 = &theirs;
    is_error("bind: a buffer of another device", "Gpu", "evice", plan.bind(&all));
}

fn compilations(gpu: &Gpu) {
    let gpu = &another(gpu);
    let faults = Faults::of(gpu);
    let q = quantized(&values(), &along(0)).tensor;
    let before = objects(gpu);
    gpu.fail(Fault::Kernel, Some(0));
    faults.row("a kernel that does not compile", "Gpu", "dequantize", gpu.dequantize(&q));
    gpu.fail(Fault::Kernel, Some(0));
    faults.row("plan: a kernel that does not compile", "Gpu", "wgpu-quant", planned(gpu));
    assert_eq!(objects(gpu), before, "a kernel that failed is kept");
    let calls = CALLS.iter().filter(|(name, _)| !name.starts_with("Plan") && !name.starts_with("restore"));
    for (_, call) in CALLS {
        call(gpu).unwrap();
    }
    let faults = Faults::of(gpu);
    for (name, call) in calls {
        gpu.fail(Fault::Mapping, Some(0));
        let done = call(gpu);
        gpu.fail(Fault::Mapping, None);
        match *name {
            "observe" => done.unwrap(),
            _ => faults.row(&format!("{name}: the mapping"), "Gpu", "a result could not be mapped", done),
        }
    }
}

/// Devices of our own and of a caller's, and the error's words when they are lost.
fn devices(gpu: &Gpu) -> [(&'static str, Gpu, &'static str); 2] {
    let (device, queue) = own_device(gpu);
    let borrowed = Gpu::from_device(device, queue);
    [("own", another(gpu), "the device was lost"), ("a caller's", borrowed, "it gives no buffers any more")]
}

fn losses(gpu: &Gpu) {
    let x = values();
    let x = Tensor::new(&x, &SHAPE).unwrap();
    // Before a call: each of them is the first to know.
    for (name, call) in CALLS.iter().skip(1).step_by(3).chain(&CALLS[..1]) {
        for (whose, gpu, words) in devices(gpu) {
            gpu.device().destroy();
            is_error(&format!("{whose} device lost before {name}"), "DeviceLost", words, call(&gpu));
            for (_, call) in CALLS {
                assert!(matches!(call(&gpu), Err(Error::DeviceLost { .. })));
            }
        }
    }
    for (whose, gpu, words) in devices(gpu) {
        let mut ranges = gpu.range_accumulator(&SHAPE, Granularity::Channel(0), Observer::MIN_MAX).unwrap();
        gpu.observe(&mut ranges, x).unwrap();
        gpu.device().destroy();
        is_error(&format!("{whose} device lost before observed"), "DeviceLost", words, gpu.observed(&ranges));
        assert!(matches!(gpu.observe(&mut ranges, x), Err(Error::DeviceLost { .. })));
        assert_eq!(ranges.batches(), 1);
    }
    for (whose, gpu, words) in devices(gpu) {
        let plan = planned(&gpu).unwrap();
        let buffers = ROLES.map(|role| (role, plan.create(role).unwrap()));
        let all: Vec<_> = buffers.iter().map(|(role, buffer)| (*role, buffer, 0)).collect();
        let bound = plan.bind(&all).unwrap();
        gpu.device().destroy();
        // The caller's commands fail as those of any lost device do.
        let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
        println!("  {whose} device lost before record and submit: {:?}", pollster::block_on(scope.pop()).is_some());
        is_error(&format!("{whose} device lost before Plan::bind"), "DeviceLost", words, plan.bind(&all));
        is_error(&format!("{whose} device lost before Plan::create"), "DeviceLost", words, plan.create(Role::Output));
    }
    // Work is on its way.
    let many = data("mixed", 1 << 21, 73);
    let many = Tensor::new(&many, &[1 << 21]).unwrap();
    let spec = Spec::new(Scheme::INT8_ABSMAX);
    for (whose, gpu, words) in devices(gpu) {
        gpu.quantize(many, &spec).unwrap();
        let mut call = Box::pin(gpu.quantize_async(many, &spec));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        gpu.device().destroy();
        match finished(&gpu, call) {
            // A thread of ours polls our own device, and may have been faster.
            Ok(done) if whose == "own" => assert_same("in time", &done, &cpu::quantize(many, &spec).unwrap()),
            done => is_error(&format!("{whose} device lost under way"), "DeviceLost", words, done),
        }
    }
    // The way on.
    Faults::of(&another(gpu)).works();
}

fn losses_under_threads(gpu: &Gpu) {
    for (whose, gpu, _) in devices(gpu) {
        for (_, call) in CALLS {
            call(&gpu).unwrap();
        }
        let under_way = Barrier::new(5);
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (gpu, under_way) = (&gpu, &under_way);
                scope.spawn(move || {
                    under_way.wait();
                    // Each call gives the right bits or the error.
                    let ended = CALLS.iter().cycle().skip(3 * first).find_map(|(_, call)| call(gpu).err()).unwrap();
                    assert!(matches!(ended, Error::DeviceLost { .. }), "{whose}: {ended:?}");
                });
            }
            under_way.wait();
            std::thread::sleep(std::time::Duration::from_millis(100));
            gpu.device().destroy();
        });
        is_error(&format!("{whose} device lost under four threads"), "DeviceLost", "", planned(&gpu));
    }
}

fn timeouts(gpu: &Gpu) {
    let many = data("mixed", 1 << 22, 74);
    let many = Tensor::new(&many, &[1 << 22]).unwrap();
    let spec = Spec::new(Scheme::INT8_ABSMAX);
    let q: Quantized = cpu::quantize(many, &spec).unwrap().tensor;
    let gpu = another(gpu);
    gpu.quantize(many, &spec).unwrap();
    gpu.dequantize(&q).unwrap();
    let before = Faults::of(&gpu).objects;
    let (hasty, patient) = (gpu.tuning().timeout_seconds(0), gpu.tuning().timeout_seconds(u64::MAX));
    let gpu = gpu.with_tuning(hasty).unwrap();
    let words = "within 0 s";
    is_error("quantize: no time", "Timeout", words, gpu.quantize(many, &spec));
    is_error("quantize_async: no time", "Timeout", words, pollster::block_on(gpu.quantize_async(many, &spec)));
    is_error("dequantize: no time", "Timeout", words, gpu.dequantize(&q));
    let gpu = gpu.with_tuning(patient).unwrap();
    let faults = Faults::of(&gpu);
    assert_eq!(faults.objects, before, "what is left");
}
