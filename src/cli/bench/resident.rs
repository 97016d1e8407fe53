//! Kernels on data that stays in the adapter's memory, each compared with the CPU path before it is timed.

use super::super::args::Region;
use super::Wanted;
use super::clock::{self, Recording, download, upload};
use super::kernels::{Binding, Dispatch, Kernels, Shape};
use super::measure::{By, Checked, Label, turns};
use super::operation::{Job, Operation};
use std::collections::HashMap;
use wgpu_quant::gpu::{Layout, Operation as Recorded, Plan, Role};
use wgpu_quant::{
    ElemType, Gpu, Granularity, LossDetail, QuantizeOutput, Quantized, Result, Scheme, Spec, Tensor, cpu, wgpu,
};

/// Codes that are looked at of a kernel that need not be exact.
const LOOKED_AT: usize = 16 << 20;

/// Tensors of a batch.
const BATCH: usize = 300;

/// The buffers that cases use, a set for each turn.
struct Set {
    input: wgpu::Buffer,
    /// As large as the input.
    output: wgpu::Buffer,
    /// What the kernels in floats keep: the range of the whole input, and scales.
    range: wgpu::Buffer,
    scales: wgpu::Buffer,
    /// Whatever else our plans need, which all of them share.
    others: HashMap<Role, wgpu::Buffer>,
}

struct Resident<'a> {
    gpu: &'a Gpu,
    x: &'a [f32],
    shape: &'a [usize],
    sets: Vec<Set>,
    kernels: Kernels<'a>,
    all: Checked<'a>,
}

pub(super) fn cases<'a>(gpu: &'a Gpu, wanted: &Wanted<'a>) -> Result<Checked<'a>> {
    let Wanted { x, shape, operations, extras, .. } = *wanted;
    let group = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Group(32));
    let plan = gpu.plan(Recorded::FakeQuantize, &group, shape, ElemType::F32)?;
    let set = |_| {
        let [input, output, range, scales] =
            [Role::Input, Role::Output, Role::Counts, Role::Scales].map(|role| plan.create(role));
        let set = Set { input: input?, output: output?, range: range?, scales: scales?, others: HashMap::new() };
        upload(gpu, &set.input, bytemuck::cast_slice(x))?;
        Ok(set)
    };
    let sets = (0..turns(x.len())).map(set).collect::<Result<_>>()?;
    let mut resident = Resident { gpu, x, shape, sets, kernels: Kernels::new(gpu), all: Checked::default() };
    resident.copies();
    for operation in operations {
        let expected = [cpu::quantize(Tensor::new(x, shape)?, &operation.spec)?];
        resident.exact(operation.what(), operation, &[shape.to_vec()], &expected)?;
        resident.floats(operation, &expected[0].tensor)?;
    }
    if extras {
        resident.batches()?;
        resident.odd()?;
    }
    Ok(resident.all)
}

/// A recording for each turn.
fn in_turn(sets: &[Set], record: impl Fn(&Set) -> Vec<Dispatch>) -> Vec<Recording> {
    sets.iter().map(|set| Recording::Dispatches(record(set))).collect()
}

impl Resident<'_> {
    fn vectors(&self) -> u64 {
        self.x.len() as u64 / 4
    }

    fn push(&mut self, what: impl Into<String>, by: By, bytes: f64, recordings: Vec<Recording>, is_right: bool) {
        let label = Label { region: Region::Kernels, what: what.into(), by, bytes };
        self.all.push(clock::case(self.gpu, label, recordings), is_right);
    }

    fn copies(&mut self) {
        let (vectors, bytes) = (self.vectors(), 4.0 * self.x.len() as f64);
        let kernel = |entry, per, out: fn(&Set) -> Binding<'_>| {
            in_turn(&self.sets, |set| {
                self.kernels.dispatches(None, entry, vectors, per, &[(0, &set.input, Some((16, 1))), out(set)])
            })
        };
        let copy = kernel("copy", 1024, |set| (1, &set.output, Some((16, 1))));
        let narrow = kernel("narrow", 1024, |set| (2, &set.output, Some((4, 1))));
        let read = kernel("scan", 4096, |set| (2, &set.output, Some((4, 1))));
        let by_queue = self.sets.iter().map(|Set { input, output, .. }| {
            let (from, to) = (input.clone(), output.clone());
            Recording::Copy { from, to, bytes: 16 * vectors }
        });
        let by_queue = by_queue.collect();
        self.push("copy kernel, 4N to 4N", By::Yardstick, 2.0 * bytes, copy, true);
        self.push("copy kernel, 4N to N", By::Bound, 1.25 * bytes, narrow, true);
        self.push("read only", By::Bound, bytes, read, true);
        self.push("copy_buffer_to_buffer", By::Bound, 2.0 * bytes, by_queue, true);
    }

    /// Our kernels on tensors of these shapes, which lie one behind the other in the input.
    fn exact(
        &mut self,
        what: String,
        operation: &Operation,
        shapes: &[Vec<usize>],
        expected: &[QuantizeOutput],
    ) -> Result<()> {
        let gpu = self.gpu;
        let recorded = match operation.job {
            Job::Ranges => Recorded::Ranges,
            Job::Quantize => Recorded::Quantize,
            Job::FakeQuantize => Recorded::FakeQuantize,
            Job::Dequantize => Recorded::Dequantize,
        };
        let layouts: Vec<_> = shapes.iter().map(|shape| Layout::new(shape, ElemType::F32)).collect();
        let plan = gpu.plan_of(recorded, &operation.spec, &layouts)?;
        let mut recordings = vec![];
        let mut is_right = true;
        for turn in 0..self.sets.len() {
            let mut buffers = vec![];
            for role in ROLES.into_iter().filter(|&role| plan.need(role).is_some()) {
                let held = |content: &[u8]| -> Result<wgpu::Buffer> {
                    let buffer = plan.create(role)?;
                    upload(gpu, &buffer, content)?;
                    Ok(buffer)
                };
                let set = &mut self.sets[turn];
                let buffer = match (role, operation.job) {
                    (Role::Input, Job::Dequantize) => held(expected[0].tensor.codes())?,
                    (Role::Scales, Job::Dequantize) => held(bytemuck::cast_slice(expected[0].tensor.scales()))?,
                    (Role::Input, _) => set.input.clone(),
                    (Role::Output, _) => set.output.clone(),
                    // Ranges are added to what is there: zeros, at first.
                    (Role::Ranges, _) => plan.create(role)?,
                    _ if shapes.len() > 1 => plan.create(role)?,
                    _ => {
                        let enough = |buffer: &&wgpu::Buffer| plan.need(role).is_some_and(|n| n.bytes <= buffer.size());
                        let buffer = match set.others.get(&role).filter(enough) {
                            Some(buffer) => buffer.clone(),
                            None => plan.create(role)?,
                        };
                        set.others.insert(role, buffer.clone());
                        buffer
                    }
                };
                buffers.push((role, buffer));
            }
            let places: Vec<_> = buffers
                .iter()
                .flat_map(|(role, buffer)| plan.offsets(*role).into_iter().map(move |at| (*role, buffer, at)))
                .collect();
            let recording = Recording::Plan(plan.bind(&places)?);
            if turn == 0 {
                // What an earlier case left would do for a kernel that writes nothing.
                let is_read = |role| role == Role::Input || role == Role::Scales && operation.job == Job::Dequantize;
                let written = buffers.iter().filter(|(role, _)| !is_read(*role)).map(|(_, buffer)| buffer);
                clock::clear(gpu, written);
                clock::once(gpu, &recording)?;
                is_right = self.is_right(operation, &plan, &buffers, expected)?;
            }
            recordings.push(recording);
        }
        let elems: usize = expected.iter().map(|out| out.tensor.elems()).sum();
        self.push(what, By::Gpu, operation.bytes_per_elem * elems as f64, recordings, is_right);
        Ok(())
    }

    /// Whether these buffers hold what the CPU path computes.
    fn is_right(
        &self,
        operation: &Operation,
        plan: &Plan,
        buffers: &[(Role, wgpu::Buffer)],
        expected: &[QuantizeOutput],
    ) -> Result<bool> {
        let gpu = self.gpu;
        let held = |role: Role, bytes: usize| match buffers.iter().find(|(held, _)| *held == role) {
            Some((_, buffer)) => download(gpu, buffer, bytes),
            None => Ok(vec![]),
        };
        let holds = |role: Role, parts: &[&[u8]]| -> Result<bool> {
            let at: Vec<_> = plan.offsets(role).into_iter().map(|at| usize::try_from(at).unwrap_or(0)).collect();
            let end = at.iter().zip(parts).map(|(at, part)| at + part.len()).max();
            let bytes = held(role, end.unwrap_or(0))?;
            Ok(at.iter().zip(parts).all(|(&at, part)| bytes.get(at..).is_some_and(|bytes| bytes.starts_with(part))))
        };
        let words = |role: Role| -> Result<Vec<u32>> {
            let bytes = plan.need(role).map_or(0, |need| usize::try_from(need.bytes).unwrap_or(usize::MAX));
            Ok(held(role, bytes)?.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
        };
        let tensor = &expected[0].tensor;
        match operation.job {
            Job::Ranges => self.makes_scales(&operation.spec, buffers, tensor.scales()),
            Job::FakeQuantize | Job::Dequantize => {
                let values = cpu::dequantize(tensor)?;
                holds(Role::Output, &[bytemuck::cast_slice(&values)])
            }
            Job::Quantize => {
                let parts =
                    |of: fn(&Quantized) -> &[u8]| expected.iter().map(|out| of(&out.tensor)).collect::<Vec<_>>();
                let counts = words(Role::Counts)?;
                let clipped: u64 = expected.iter().map(|out| out.counts.clipped_elems).sum();
                let mut is_right = holds(Role::Output, &parts(Quantized::codes))?
                    && holds(Role::Scales, &parts(|q| bytemuck::cast_slice(q.scales())))?
                    && holds(Role::ZeroPoints, &parts(|q| bytemuck::cast_slice(q.zero_points())))?
                    && plan.counts(&counts).clipped_elems == clipped;
                if let Some(loss) = &expected[0].loss {
                    let found = plan.loss(&counts, &words(Role::LossSums)?, tensor.scales(), None)?;
                    is_right &= found.sums == loss.sums;
                }
                Ok(is_right)
            }
        }
    }

    /// Whether the ranges in these buffers give these scales.
    fn makes_scales(&self, spec: &Spec, buffers: &[(Role, wgpu::Buffer)], scales: &[f32]) -> Result<bool> {
        let plan = self.gpu.plan(Recorded::Scales, spec, self.shape, ElemType::F32)?;
        let mut places = vec![];
        for role in ROLES.into_iter().filter(|&role| plan.need(role).is_some()) {
            let ranges = buffers.iter().find(|(held, _)| role == Role::Ranges && *held == role);
            let buffer = match ranges {
                Some((_, ranges)) => ranges.clone(),
                None => plan.create(role)?,
            };
            places.push((role, buffer));
        }
        let bound = plan.bind(&places.iter().map(|(role, buffer)| (*role, buffer, 0)).collect::<Vec<_>>())?;
        clock::once(self.gpu, &Recording::Plan(bound))?;
        let made = places.iter().find(|(role, _)| *role == Role::Scales);
        let scales: &[u8] = bytemuck::cast_slice(scales);
        let made = made.map_or(Ok(vec![]), |(_, buffer)| download(self.gpu, buffer, scales.len()))?;
        Ok(made == scales)
    }

    /// One recording of many small tensors, and one tensor as large as all of them.
    fn batches(&mut self) -> Result<()> {
        let &[rows, columns] = self.shape else { return Ok(()) };
        let rows = rows / BATCH;
        if rows == 0 {
            return Ok(());
        }
        for per in [Granularity::Channel(0), Granularity::Tensor] {
            let spec = Spec::new(Scheme::INT8_ABSMAX).per(per);
            let bytes_per_elem = if per == Granularity::Tensor { 9.0 } else { 5.0 };
            let operation = Operation { job: Job::Quantize, spec, bytes_per_elem };
            let shapes = [vec![vec![rows, columns]; BATCH], vec![vec![BATCH * rows, columns]]];
            for shapes in shapes {
                let elems = shapes[0].iter().product();
                let expected: Vec<_> = self
                    .x
                    .chunks(elems)
                    .take(shapes.len())
                    .map(|x| cpu::quantize(Tensor::new(x, &shapes[0])?, &spec))
                    .collect::<Result<_>>()?;
                let what = match shapes.len() {
                    1 => format!("{}, 1 tensor of {} x {columns}", operation.what(), BATCH * rows),
                    n => format!("{}, {n} tensors of {rows} x {columns}", operation.what()),
                };
                self.exact(what, &operation, &shapes, &expected)?;
            }
        }
        Ok(())
    }

    /// A length that no vector divides.
    fn odd(&mut self) -> Result<()> {
        let elems = self.x.len() - 3;
        for (per, bytes_per_elem) in [(Granularity::Tensor, 9.0), (Granularity::Group(32), 5.125)] {
            let operation =
                Operation { job: Job::Quantize, spec: Spec::new(Scheme::INT8_ABSMAX).per(per), bytes_per_elem };
            let expected = [cpu::quantize(Tensor::new(&self.x[..elems], &[elems])?, &operation.spec)?];
            self.exact(format!("{}, {elems} elements", operation.what()), &operation, &[vec![elems]], &expected)?;
        }
        Ok(())
    }

    /// The same in floats, in the shapes that there are.
    fn floats(&mut self, operation: &Operation, expected: &Quantized) -> Result<()> {
        let Operation { job, spec, bytes_per_elem } = *operation;
        let Spec { scheme, granularity, loss, .. } = spec;
        let four_bits = scheme == Scheme::INT4_ABSMAX;
        let tensor = granularity == Granularity::Tensor;
        let exists = loss == LossDetail::None
            && self.vectors().is_multiple_of(4096)
            && (tensor || job == Job::Quantize)
            && job != Job::FakeQuantize
            && (granularity != Granularity::Channel(0) || self.shape[1] == 4096);
        let widths: &[bool] = match job {
            _ if !exists => &[],
            Job::Ranges => &[false],
            _ if four_bits => &[true],
            _ => &[false, true],
        };
        if job == Job::Dequantize && exists {
            // The scale, from the range that quantizing leaves.
            let ranges = |set: &Set| self.float_dispatches(set, Job::Ranges, granularity, Shape::default());
            in_turn(&self.sets, ranges).iter().try_for_each(|recording| clock::once(self.gpu, recording))?;
        }
        for &wide in widths {
            let shape = Shape { affine: scheme == Scheme::UINT8_AFFINE, four_bits, wide };
            let recordings = in_turn(&self.sets, |set| self.float_dispatches(set, job, granularity, shape));
            clock::clear(self.gpu, [&self.sets[0].output]);
            clock::once(self.gpu, &recordings[0])?;
            let is_near = self.is_near(job, expected)?;
            let (by, bytes) = (By::Float(shape.name()), bytes_per_elem * self.x.len() as f64);
            self.push(operation.what(), by, bytes, recordings, is_near);
        }
        Ok(())
    }

    fn float_dispatches(&self, set: &Set, job: Job, granularity: Granularity, shape: Shape) -> Vec<Dispatch> {
        let Set { input, output, range, scales, .. } = set;
        let dispatches = |entry, vectors, per, bindings: &[Binding<'_>]| {
            self.kernels.dispatches(Some(shape), entry, vectors, per, bindings)
        };
        let vectors = self.vectors();
        let x = (0, input, Some((16, 1)));
        let codes = (if shape.wide { 2 } else { 1 }, output, Some((if shape.four_bits { 2 } else { 4 }, 1)));
        let ranges = || {
            let clear = dispatches("clear", 1, 1, &[(3, range, None)]);
            let reduce = dispatches("reduce", vectors, 4096, &[x, (3, range, None)]);
            clear.into_iter().chain(reduce)
        };
        match (job, granularity) {
            (Job::Ranges, _) => ranges().collect(),
            // Any bytes are codes: those of the input, with the scale that was left behind.
            (Job::Dequantize, _) => {
                let coded = (if shape.wide { 8 } else { 7 }, input, Some((4, 1)));
                dispatches("dequantize", vectors, 1024, &[coded, (4, range, None), (6, output, Some((16, 1)))])
            }
            (_, Granularity::Tensor) => {
                let quantize = dispatches("quantize", vectors, 1024, &[x, codes, (4, range, None)]);
                ranges().chain(quantize).collect()
            }
            (_, Granularity::Group(_)) => {
                let per = if shape.wide { 2048 } else { 256 };
                dispatches("quantize_group", vectors, per, &[x, codes, (5, scales, Some((4, 8)))])
            }
            _ => dispatches("quantize_row", vectors, 1024, &[x, codes, (5, scales, Some((4, 1024)))]),
        }
    }

    /// Whether what a kernel in floats left is off by no more than one code, or a rounding.
    fn is_near(&self, job: Job, expected: &Quantized) -> Result<bool> {
        let set = &self.sets[0];
        let scale = expected.scales()[0];
        Ok(match job {
            Job::Ranges => {
                let most: u32 = bytemuck::pod_read_unaligned(&download(self.gpu, &set.range, 4)?);
                (f32::from_bits(most & 0x7fff_ffff) / 127.0 / scale - 1.0).abs() < 1e-6
            }
            Job::Dequantize => {
                let values = download(self.gpu, &set.output, 4 * LOOKED_AT.min(self.x.len()))?;
                let codes: &[i8] = bytemuck::cast_slice(self.x);
                let near = |(value, &code): (&[u8], &i8)| {
                    let value: f32 = bytemuck::pod_read_unaligned(value);
                    (value - f32::from(code) * scale).abs() <= 1e-5
                };
                values.chunks_exact(4).zip(codes).all(near)
            }
            _ => {
                let codes = download(self.gpu, &set.output, LOOKED_AT.min(expected.codes().len()))?;
                let code = expected.scheme().code();
                let near = |(&a, &b): (&u8, &u8)| match code.bits() {
                    4 => nibbles(a).zip(nibbles(b)).all(|(a, b)| a.abs_diff(b) <= 1),
                    _ if code.is_signed() => a.cast_signed().abs_diff(b.cast_signed()) <= 1,
                    _ => a.abs_diff(b) <= 1,
                };
                codes.iter().zip(expected.codes()).all(near)
            }
        })
    }
}

/// The two signed codes of a byte.
fn nibbles(byte: u8) -> impl Iterator<Item = i8> {
    [(byte << 4).cast_signed() >> 4, byte.cast_signed() >> 4].into_iter()
}

/// What our plans need.
const ROLES: [Role; 8] = [
    Role::Input,
    Role::Output,
    Role::Scales,
    Role::ZeroPoints,
    Role::Counts,
    Role::Ranges,
    Role::LossSums,
    Role::Scratch,
];
