//! Plans recorded into a caller's encoder, over a caller's buffers.

use crate::corpus::{Rng, data};
use crate::{Cases, Test, another, assert_all_equal};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use wgpu_quant::gpu::{Bound, Need, Operation, Plan, Role};
use wgpu_quant::{Counts, ElemType, Error, Gpu, Granularity, Quantized, Scheme, Spec, Tensor, cpu, wgpu};

pub(crate) const TESTS: &[Test] = &[
    ("what_is_recorded_agrees_and_nothing_else_is_written", agrees),
    ("a_bound_plan_is_recorded_again_and_again", again),
    ("recording_creates_nothing_and_allocates_no_more_than_by_hand", frugal),
    ("a_recording_writes_its_times", timed),
    ("what_cannot_be_bound_is_refused_with_what_was_found", refused),
];

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: everything is the system's allocator's; a thread's counter is a plain cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; `alloc` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise; `alloc` is the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Before and behind what a plan works on.
const CANARY: u8 = 0xa5;
const MARGIN: u64 = 64;

/// A caller's buffer: a role's bytes at some offset, with other data around.
pub(crate) struct Held {
    pub(crate) role: Role,
    buffer: wgpu::Buffer,
    offset: u64,
    bytes: u64,
}

impl Held {
    fn new(gpu: &Gpu, plan: &Plan, role: Role, turn: u64, content: &[u8]) -> Option<Self> {
        Some(Self::of(gpu, plan.need(role)?, role, turn, content))
    }

    pub(crate) fn of(gpu: &Gpu, need: Need, role: Role, turn: u64, content: &[u8]) -> Self {
        let offset = turn * need.offset_alignment_bytes;
        let size = (offset + need.bytes + MARGIN).next_multiple_of(4);
        let mut bytes = vec![CANARY; size as usize];
        bytes[offset as usize..offset as usize + content.len()].copy_from_slice(content);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer =
            gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        gpu.queue().write_buffer(&buffer, 0, &bytes);
        Self { role, buffer, offset, bytes: need.bytes }
    }

    /// Zeroes its place.
    pub(crate) fn clear(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.clear_buffer(&self.buffer, self.offset, Some(self.bytes));
    }

    /// What it holds, after a look at what is around.
    pub(crate) fn read(&self, gpu: &Gpu, case: &str) -> Vec<u8> {
        let all = read(gpu, &self.buffer);
        let (start, end) = (self.offset as usize, (self.offset + self.bytes) as usize);
        let others = all[..start].iter().chain(&all[end..]);
        assert!(others.into_iter().all(|&byte| byte == CANARY), "{case}: {} beside its place", self.role);
        all[start..end].to_vec()
    }
}

pub(crate) fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    gpu.queue().submit([encoder.finish()]);
    let (sender, mapped) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| sender.send(result).unwrap());
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    // Another thread's poll may be the one that maps it.
    mapped.recv().unwrap().unwrap();
    staging.get_mapped_range(..).unwrap().to_vec()
}

pub(crate) fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

pub(crate) fn bind<'h>(plan: &Plan, held: impl IntoIterator<Item = &'h Held>) -> Bound {
    plan.bind(&held.into_iter().map(|held| (held.role, &held.buffer, held.offset)).collect::<Vec<_>>()).unwrap()
}

const ROLES: [Role; 6] = [Role::Input, Role::Output, Role::Scales, Role::ZeroPoints, Role::Counts, Role::Scratch];

/// What an operation gives: the output's bytes, scales and zero points as bits, counts.
#[derive(Debug, PartialEq)]
pub(crate) struct Result {
    output: Vec<u8>,
    scales: Vec<u32>,
    zero_points: Vec<i32>,
    counts: Option<Counts>,
}

pub(crate) fn bytes_of<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

pub(crate) fn words<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Runs an operation as it is recorded, at offsets that `turn` chooses.
pub(crate) fn recorded(gpu: &Gpu, case: &str, plan: &Plan, input: &[u8], q: &Quantized, turn: u64) -> Result {
    let held: Vec<Held> = ROLES
        .into_iter()
        .enumerate()
        .filter_map(|(i, role)| {
            let content = match (role, plan.operation()) {
                (Role::Input, _) => input.to_vec(),
                (_, Operation::Quantize | Operation::FakeQuantize) => vec![],
                (Role::Scales, _) => bytes_of(q.scales()),
                (Role::ZeroPoints, _) => bytes_of(q.zero_points()),
                _ => vec![],
            };
            Held::new(gpu, plan, role, (turn * 7 + 3 * i as u64) % 23 * u64::from(turn > 0), &content)
        })
        .collect();
    let bound = bind(plan, &held);
    submit(gpu, |encoder| bound.record(encoder));
    let of = |role| held.iter().find(|held| held.role == role).map(|held| held.read(gpu, case));
    // The input is as it was, and so are the bytes around the scratch.
    assert_eq!(&of(Role::Input).unwrap()[..input.len()], input, "{case}");
    of(Role::Scratch);
    Result {
        output: of(Role::Output).unwrap(),
        scales: of(Role::Scales).map(|bytes| words(&bytes)).unwrap_or_default(),
        zero_points: of(Role::ZeroPoints).map(|bytes| words(&bytes)).unwrap_or_default(),
        counts: of(Role::Counts).map(|bytes| plan.counts(&words(&bytes))),
    }
}

/// The same by the CPU path. The last word of codes is filled up with zeros.
pub(crate) fn expected(operation: Operation, spec: &Spec, x: Tensor<'_>, q: &Quantized) -> Result {
    let (scales, zero_points) = (q.scales(), q.zero_points());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let of_codes = |out: wgpu_quant::QuantizeOutput| {
        let mut output = out.tensor.codes().to_vec();
        output.resize(output.len().next_multiple_of(4), 0);
        let (scales, zero_points) = (bits(out.tensor.scales()), out.tensor.zero_points().to_vec());
        Result { output, scales, zero_points, counts: Some(out.counts) }
    };
    let of_values = |out: wgpu_quant::FakeQuantizeOutput| Result {
        output: bytes_of(&out.values),
        scales: bits(&out.scales),
        zero_points: out.zero_points,
        counts: Some(out.counts),
    };
    match operation {
        Operation::Quantize => of_codes(cpu::quantize(x, spec).unwrap()),
        Operation::QuantizeWithScales => of_codes(cpu::quantize_with_scales(x, spec, scales, zero_points).unwrap()),
        Operation::FakeQuantize => of_values(cpu::fake_quantize(x, spec).unwrap()),
        Operation::FakeQuantizeWithScales => {
            of_values(cpu::fake_quantize_with_scales(x, spec, scales, zero_points).unwrap())
        }
        Operation::Dequantize => Result {
            output: bytes_of(&cpu::dequantize(q).unwrap()),
            scales: bits(scales),
            zero_points: zero_points.to_vec(),
            counts: None,
        },
        _ => unreachable!("{operation:?} has a test of its own"),
    }
}

pub(crate) const OPERATIONS: [Operation; 5] = [
    Operation::Quantize,
    Operation::QuantizeWithScales,
    Operation::FakeQuantize,
    Operation::FakeQuantizeWithScales,
    Operation::Dequantize,
];

fn agrees(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 7);
    // Whole, and cut into small chunks, slabs and dispatches.
    let tuning = gpu.tuning().chunk_elems(1000).slab_units(24).workgroups_per_dimension(3);
    let cut = gpu.tuned(tuning).unwrap();
    let mut rng = Rng::new(97);
    let mut refused = 0;
    for (shape, granularity) in [
        (&[5001][..], Granularity::Tensor),
        (&[30, 301], Granularity::Channel(0)),
        (&[41, 30], Granularity::Channel(1)),
        (&[10, 77], Granularity::Group(32)),
        (&[10, 96], Granularity::Group(32)),
        (&[3, 5, 7], Granularity::Group(1)),
        (&[], Granularity::Tensor),
        (&[3, 0], Granularity::Channel(0)),
        (&[0, 3], Granularity::Channel(0)),
    ] {
        let values = data("mixed", shape.iter().product(), 98);
        for (i, &scheme) in Scheme::ALL.iter().enumerate() {
            let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
            let spec = Spec::new(scheme).per(granularity);
            let elem_type = ElemType::ALL[(i + shape.len()) % 4];
            let bytes = crate::equality::bytes_of(elem_type, &values, &mut rng);
            let x = Tensor::from_bytes(elem_type, &bytes, shape).unwrap();
            let q = cpu::quantize(x, &spec).unwrap().tensor;
            for operation in OPERATIONS {
                let (name, gpu) = if cases.all % 3 == 2 { ("cut", &cut) } else { ("whole", gpu) };
                let case = format!("{operation:?} {shape:?} {elem_type:?} {spec:?} {name}");
                let turn = cases.all as u64 % 11;
                if !cases.take() {
                    continue;
                }
                let plan = match gpu.plan(operation, &spec, shape, elem_type) {
                    // Columns that are cut into slabs begin inside words of codes.
                    Err(Error::TooLarge { found: 30, allowed: 24, .. }) if granularity == Granularity::Channel(1) => {
                        refused += 1;
                        continue;
                    }
                    plan => plan.unwrap(),
                };
                let input = if operation == Operation::Dequantize { q.codes() } else { &bytes };
                let ours = recorded(gpu, &case, &plan, input, &q, turn);
                let reference = expected(operation, &spec, x, &q);
                assert_all_equal("output", &case, &ours.output, &reference.output);
                assert_eq!(ours, reference, "{case}");
            }
        }
    }
    cases.print();
    println!("{refused} of them cannot be planned");
    assert!(refused < cases.taken / 10);
}

fn again(gpu: &Gpu) {
    // New data through the same binding, twice in one encoder and in a pass of the caller's.
    let (shape, spec) = ([20, 3000], Spec::new(Scheme::UINT8_AFFINE).per(Granularity::Channel(0)));
    let plan = gpu.plan(Operation::Quantize, &spec, &shape, ElemType::F32).unwrap();
    let held: Vec<Held> = ROLES.into_iter().filter_map(|role| Held::new(gpu, &plan, role, 1, &[])).collect();
    let bound = bind(&plan, &held);
    for seed in 0..4 {
        let x = data("mixed", 60_000, seed);
        gpu.queue().write_buffer(&held[0].buffer, held[0].offset, bytemuck::cast_slice(&x));
        submit(gpu, |encoder| {
            bound.record(encoder);
            let mut pass = encoder.begin_compute_pass(&Default::default());
            bound.record_in(&mut pass);
            bound.record_in(&mut pass);
        });
        let reference = cpu::quantize(Tensor::new(&x, &shape).unwrap(), &spec).unwrap();
        assert_all_equal("codes", "again", &held[1].read(gpu, "codes"), reference.tensor.codes());
        let counts = held.iter().find(|held| held.role == Role::Counts).unwrap().read(gpu, "counts");
        assert_eq!(plan.counts(&words(&counts)), reference.counts);
    }
    // Plans and bindings go to other threads.
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(bind(&plan, &held).dispatches() > 0));
    });
}

fn frugal(gpu: &Gpu) {
    let gpu = another(gpu);
    let (shape, spec) = ([20, 3000], Spec::new(Scheme::UINT8_AFFINE).per(Granularity::Channel(0)));
    let plan = gpu.plan(Operation::Quantize, &spec, &shape, ElemType::F32).unwrap();
    let held: Vec<Held> = ROLES.into_iter().filter_map(|role| Held::new(&gpu, &plan, role, 1, &[])).collect();
    let bound = bind(&plan, &held);

    // The same number of dispatches by hand.
    let text = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
        @compute @workgroup_size(1) fn main() { a[0] = 1u; }";
    let buffer = plan.create(Role::Counts).unwrap();
    let kernels: Vec<_> = (0..bound.dispatches())
        .map(|_| {
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let module = gpu.device().create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            let pipeline = gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: Default::default(),
                cache: None,
            });
            let bind_group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
            });
            (pipeline, bind_group)
        })
        .collect();
    let by_hand = |encoder: &mut wgpu::CommandEncoder| {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-quant pass"),
            timestamp_writes: None,
        });
        for (pipeline, bind_group) in &kernels {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    };
    let allocations = |record: &dyn Fn(&mut wgpu::CommandEncoder)| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let before = ALLOCATIONS.get();
        for _ in 0..1000 {
            record(&mut encoder);
        }
        let count = ALLOCATIONS.get() - before;
        drop(encoder);
        count
    };
    let hand = allocations(&by_hand);
    let (objects, traffic) = (objects(&gpu), gpu.traffic());
    let ours = allocations(&|encoder| bound.record(encoder));
    // The encoder, which is gone again, is the test's own.
    assert_eq!((self::objects(&gpu), gpu.traffic()), (objects, traffic));
    println!("1000 recordings of {} dispatches: {ours} allocations, {hand} by hand", bound.dispatches());
    assert!(ours <= hand, "{ours} allocations, {hand} by hand");
}

fn timed(gpu: &Gpu) {
    if !gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        println!("no timestamps here");
        return;
    }
    let plan = gpu.plan(Operation::Quantize, &Spec::new(Scheme::INT8_ABSMAX), &[1 << 20], ElemType::F32).unwrap();
    let held: Vec<Held> = ROLES.into_iter().filter_map(|role| Held::new(gpu, &plan, role, 1, &[])).collect();
    let bound = bind(&plan, &held);
    let (ty, count) = (wgpu::QueryType::Timestamp, 2);
    let query_set = &gpu.device().create_query_set(&wgpu::QuerySetDescriptor { label: None, ty, count });
    let times = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    submit(gpu, |encoder| {
        let writes = wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        };
        bound.record_timed(encoder, Some(writes));
        encoder.resolve_query_set(query_set, 0..2, &times, 0);
    });
    let ticks: Vec<u64> = words(&read(gpu, &times));
    assert!(ticks[0] > 0 && ticks[1] > ticks[0], "{ticks:?}");
}

/// wgpu's own count of the objects that there are.
pub(crate) fn objects(gpu: &Gpu) -> [isize; 7] {
    let hal = gpu.device().get_internal_counters().hal;
    let counters = [
        &hal.buffers,
        &hal.bind_groups,
        &hal.bind_group_layouts,
        &hal.pipeline_layouts,
        &hal.compute_pipelines,
        &hal.shader_modules,
        &hal.query_sets,
    ];
    counters.map(|counter| counter.read())
}

fn refused(gpu: &Gpu) {
    let spec = Spec::new(Scheme::INT8_ABSMAX);
    let plan = gpu.plan(Operation::Quantize, &spec, &[10, 100], ElemType::F32).unwrap();
    let roles = [Role::Input, Role::Output, Role::Scales, Role::Counts, Role::Scratch];
    let buffers = roles.map(|role| plan.create(role).unwrap());
    let storage = |size, usage| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let good: Vec<(Role, &wgpu::Buffer, u64)> = roles.into_iter().zip(&buffers).map(|(role, b)| (role, b, 0)).collect();
    plan.bind(&good).unwrap();
    let with = |at: usize, buffer: &wgpu::Buffer, offset: u64, says: &str| {
        let mut all: Vec<_> = good.clone();
        all[at] = (all[at].0, buffer, offset);
        let error = plan.bind(&all).unwrap_err();
        assert!(matches!(error, Error::Binding { .. }) && error.to_string().contains(says), "{error}");
    };
    let usage = wgpu::BufferUsages::STORAGE;
    with(
        0,
        &storage(4000, wgpu::BufferUsages::COPY_DST),
        0,
        "the input buffer: of usage BufferUsages(COPY_DST), STORAGE",
    );
    with(0, &storage(8000, usage), 8, "at byte 8, multiples of 16 are allowed");
    with(1, &storage(8000, usage), 2, "the output buffer: at byte 2, multiples of 4");
    with(1, &storage(996, usage), 0, "of 996 bytes from byte 0 on, 1000 are needed");
    with(1, &storage(1500, usage), 504, "of 996 bytes from byte 504 on, 1000 are needed");
    with(1, &storage(1500, usage), 4000, "of 0 bytes");
    let both = storage(8000, usage);
    let mut all = good.clone();
    (all[0].1, all[1].1, all[1].2) = (&both, &both, 4096);
    let error = plan.bind(&all).unwrap_err().to_string();
    assert!(error.contains("the output buffer: it is also the input buffer"), "{error}");
    let mut all = good.clone();
    (all[1].1, all[2].1, all[2].2) = (&both, &both, 996);
    let error = plan.bind(&all).unwrap_err().to_string();
    assert!(error.contains("the scales buffer: its bytes 996..1000 are output too"), "{error}");
    // Side by side in one buffer is allowed.
    all[2].2 = 1000;
    plan.bind(&all).unwrap();
    let error = plan.bind(&good[1..]).unwrap_err().to_string();
    assert!(error.contains("the input buffer: not given"), "{error}");
    let twice = [&good[..], &good[..1]].concat();
    assert!(plan.bind(&twice).unwrap_err().to_string().contains("given 2 times, 1 allowed"));
    let extra = [&good[..], &[(Role::ZeroPoints, &both, 0)]].concat();
    assert!(plan.bind(&extra).unwrap_err().to_string().contains("the zero points buffer: this plan has none"));
    assert!(plan.create(Role::ZeroPoints).is_err());
    // Buffers of just the size that is needed will do, of empty tensors too.
    let per = spec.per(Granularity::Channel(0));
    for shape in [[0, 3], [3, 0], [3, 1000]] {
        let plan = gpu.plan(Operation::Quantize, &per, &shape, ElemType::F32).unwrap();
        let buffers = roles.map(|role| plan.create(role).unwrap());
        let all: Vec<_> = roles.into_iter().zip(&buffers).map(|(role, buffer)| (role, buffer, 0)).collect();
        let bound = plan.bind(&all).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        submit(gpu, |encoder| bound.record(encoder));
    }
    // Plans are refused as the calls are.
    let group = Spec::new(Scheme::F16).per(Granularity::Group(2));
    assert!(matches!(gpu.plan(Operation::Quantize, &group, &[4], ElemType::F32), Err(Error::CastHasNoScale { .. })));
    let lost = another(gpu);
    let plan = lost.plan(Operation::Dequantize, &spec, &[4], ElemType::F32).unwrap();
    lost.device().destroy();
    let _ = lost.device().poll(wgpu::PollType::wait_indefinitely());
    assert!(matches!(plan.create(Role::Output), Err(Error::DeviceLost { .. })));
    assert!(matches!(lost.plan(Operation::Quantize, &spec, &[4], ElemType::F32), Err(Error::DeviceLost { .. })));
}
