//! The stages of each call: which kernels run over which buffers, and what is read back.
//!
//! Slots are cut into chunks of one buffer each, range units into slabs. Both are usually one.

use super::Gpu;
use super::job::{Dispatch, Finished, Job, Pending};
use super::observe::RangeAccumulator;
use super::shader::{self, Kernel, LOSS_WORDS, MIN_RUN, ONCE_UNITS, Params, Program, RECIPE_WORDS};
use crate::error::{Error, Result};
use crate::layout::{Chunk, RangeUnits, Slots, saturate};
use crate::loss::{Loss, UnitSums};
use crate::quantized::{
    Counts, FakeQuantizeOutput, LossDetail, QuantizeOutput, Quantized, Spec, check_given, check_zero_points_elems,
};
use crate::scheme::Scheme;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::ops::Range;

/// Where scales and zero points come from that are not computed from the tensor: one per range unit, zero points where
/// the scheme has them.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// The host.
    Host(&'a [f32], &'a [i32]),
    /// Buffers of f32 and i32 on the device, of usage `COPY_SRC`. They are checked when they come back: what is no scale or
    /// no code is an error then.
    Device(&'a wgpu::Buffer, Option<&'a wgpu::Buffer>),
    /// What the scheme gives the ranges that were observed; they stay on the device.
    Observed(&'a RangeAccumulator),
}

/// What a binding may begin before the bytes that it is for.
const BINDING_SLACK_BYTES: usize = 256;

/// How a call's work is cut.
pub(super) struct Cut {
    pub(super) slabs: Vec<Range<usize>>,
    pub(super) chunks: Vec<(Chunk, Params)>,
}

/// A slab's buffers, one entry per range unit each.
struct Slab {
    units: usize,
    scales: wgpu::Buffer,
    zero_points: wgpu::Buffer,
    losses: wgpu::Buffer,
    ranges: wgpu::Buffer,
    recipes: wgpu::Buffer,
}

/// A chunk's place and buffers.
struct Part {
    params: Params,
    slab: usize,
    x: wgpu::Buffer,
    codes: wgpu::Buffer,
}

/// Counters per chunk.
pub(super) const TALLIES: usize = shader::TALLIES.len();

impl Gpu {
    /// The most slots of so many bytes that one buffer can hold here.
    fn chunk_slots(&self, slot_bytes: usize) -> u32 {
        let slots = saturate(
            usize::try_from(self.max_buffer_bytes()).unwrap_or(usize::MAX).saturating_sub(BINDING_SLACK_BYTES)
                / slot_bytes,
        );
        (slots.min(self.tuning.chunk_elems) & !7).max(8)
    }

    /// The most range units whose entries fit in one buffer here.
    pub(super) fn slab_units(&self) -> usize {
        let widest = 4 * LOSS_WORDS.max(RECIPE_WORDS) as u64;
        let units = usize::try_from(self.max_buffer_bytes() / widest).unwrap_or(usize::MAX);
        units.min(self.tuning.slab_units).max(1)
    }

    /// The chunks of a tensor, each with its parameters. `slot_bytes` is the most that a slot takes in any buffer,
    /// `tile_elems` what chunks must be a multiple of.
    pub(super) fn cut_work(&self, slots: Slots, numbers: Params, slot_bytes: usize, tile_elems: u32) -> Cut {
        let slabs = slots.slabs(self.slab_units());
        // What is read may lie up to twice as far apart as it is long.
        let spread = if slots.row_pitch > slots.row_elems { 2 } else { 1 };
        let chunk_slots = self.chunk_slots(slot_bytes * spread);
        let chunk_slots = chunk_slots.checked_div(tile_elems).map_or(chunk_slots, |tiles| tiles.max(1) * tile_elems);
        let params = |(i, chunk): (usize, &Chunk)| {
            let params = Params {
                elems: saturate(chunk.slots.len()),
                first_unit: saturate(chunk.first_unit),
                first_left: saturate(chunk.first_left),
                run: saturate(slots.run_slots()),
                units: saturate(slabs[chunk.slab].len()),
                counters: saturate(i * TALLIES),
                tile_elems,
                ..numbers
            };
            if slots.is_dense() {
                return params;
            }
            Params {
                row_slots: saturate(slots.row_slots),
                row_elems: saturate(slots.row_elems),
                row_pitch: saturate(slots.row_pitch),
                row_units: saturate(slots.row_units()),
                first_row_slots: saturate(chunk.first_row_slots),
                first_row_elems: saturate(chunk.first_row_elems),
                first_row_runs: saturate(chunk.first_row_runs),
                first_at: saturate(chunk.first_at),
                second_row_at: saturate(chunk.second_row_at),
                ..params
            }
        };
        let chunks = slots.chunks(chunk_slots, &slabs);
        let params: Vec<Params> = chunks.iter().enumerate().map(params).collect();
        Cut { slabs, chunks: chunks.into_iter().zip(params).collect() }
    }

    /// The slots of a tile that is quantized in one pass; `None` where range units do not fit or follow each other.
    pub(super) fn once(&self, kernel: Kernel, slots: Slots, slot_bytes: usize) -> Option<u32> {
        let RangeUnits { outer, units, inner_elems, .. } = slots.units;
        let most = kernel.tile_elems(self.tuning.workgroup).min(self.chunk_slots(slot_bytes)) as usize & !7;
        if !self.tuning.one_pass || !slots.is_dense() || outer != 1 || inner_elems == 0 || inner_elems > most {
            return None;
        }
        if slots.slabs(self.slab_units()).len() > 1 {
            return None;
        }
        if units == 1 {
            return Some(saturate(inner_elems.next_multiple_of(8)));
        }
        // So many units end with a block of 8 slots, and so with a whole word of codes.
        let together = 8 >> inner_elems.trailing_zeros().min(3);
        let tile_units = (most / inner_elems).min(ONCE_UNITS as usize) / together * together;
        (tile_units > 0).then(|| saturate(tile_units * inner_elems))
    }

    /// Whether a tensor is quantized in one pass.
    pub(crate) fn quantizes_once(&self, x: Tensor<'_>, spec: &Spec) -> bool {
        let Ok(units) = spec.units(x.shape()) else { return false };
        let slots = slots_of_input(x, units, spec.scheme.code().bits());
        !spec.scheme.is_cast() && self.once(Kernel::QuantizeOnce, slots, x.elem_type().bytes().max(4)).is_some()
    }

    /// A dispatch that visits every slot of a chunk, as rows.
    pub(super) fn over_rows<B: Clone>(&self, program: Program, params: Params, buffers: &[(u32, &B)]) -> Dispatch<B> {
        let kernel = program.kernel;
        let tile = if kernel.is_once() { params.tile_elems } else { kernel.tile_elems(self.tuning.workgroup) };
        Dispatch::new(program, params, buffers, u64::from(params.elems).div_ceil(tile.into()))
    }

    /// The same for a reduction per range unit: run by run or as columns where runs are short.
    pub(super) fn over_runs<B: Clone>(
        &self,
        program: Program,
        units: RangeUnits,
        params: Params,
        buffers: &[(u32, &B)],
    ) -> Dispatch<B> {
        if !(params.units > 1 && params.run < MIN_RUN) {
            return self.over_rows(program, params, buffers);
        }
        let elems = u64::from(params.elems);
        let dispatch = |stride: u64, invocations: u64| {
            let params = Params { stride: u32::try_from(stride).unwrap_or(u32::MAX), ..params };
            Dispatch::new(program, params, buffers, invocations.div_ceil(self.tuning.workgroup.into()))
        };
        if units.outer == 1 && params.row_slots == 0 {
            let rest = elems.saturating_sub(params.first_left.into());
            return dispatch(1, 1 + rest.div_ceil(params.run.into()));
        }
        // A whole number of periods, and enough neighbours to fill some workgroups. A chunk within one period
        // is a single row, of which every invocation sees one slot.
        let period = match params.row_units {
            0 => u64::from(params.run) * u64::from(params.units),
            _ if units.outer == 1 => elems,
            _ => u64::from(params.row_slots),
        };
        let wanted = u64::from(4 * self.tuning.workgroup);
        let stride = (period * wanted.div_ceil(period)).min(elems);
        let rows = elems.div_ceil(stride);
        dispatch(stride, stride * rows.div_ceil(u64::from(8 * program.kernel.blocks(self.tuning.workgroup))))
    }

    /// The buffers of a plan's slabs.
    fn slabs(&self, job: &mut Job<'_>, cut: &Cut, spec: &Spec, given: Option<Scales<'_>>) -> Result<Vec<Slab>> {
        let with_loss = spec.loss != LossDetail::None;
        let mut slabs = Vec::new();
        for range in &cut.slabs {
            let units = range.len();
            let bytes = 4 * range.start..4 * range.end;
            let none = if spec.scheme.has_zero_point() { 4 * units } else { 0 };
            let (scales, zero_points) = match given {
                Some(Scales::Host(scales, zero_points)) if !scales.is_empty() => {
                    let zero_points = zero_points.get(range.clone()).unwrap_or_default();
                    (
                        job.upload("scales", bytemuck::cast_slice(&scales[range.clone()]))?,
                        job.upload("zero points", bytemuck::cast_slice(zero_points))?,
                    )
                }
                Some(Scales::Device(scales, zero_points)) => (
                    job.copy("scales", scales, bytes.clone())?,
                    match zero_points {
                        Some(zero_points) => job.copy("zero points", zero_points, bytes)?,
                        None => job.buffer("zero points", 0)?,
                    },
                ),
                _ => (job.buffer("scales", 4 * units)?, job.buffer("zero points", none)?),
            };
            let slab = Slab {
                units,
                scales,
                zero_points,
                losses: job.buffer("loss sums", if with_loss { 4 * LOSS_WORDS * units } else { 0 })?,
                ranges: job.buffer("ranges", 8 * units)?,
                recipes: job.buffer("recipes", 4 * RECIPE_WORDS * units)?,
            };
            if let Some(Scales::Observed(observed)) = given {
                // The tensor's own ranges, if its loss needs them, get the slab's buffer.
                let ranges = observed.copy(job, range)?;
                self.scale(job, spec, &slab, &ranges, (false, false));
            }
            slabs.push(slab);
        }
        Ok(slabs)
    }

    /// Ranges, if they are asked for, and what follows from them for each unit.
    #[allow(clippy::too_many_arguments, reason = "they are one call's buffers")]
    fn scales(
        &self,
        job: &mut Job<'_>,
        spec: &Spec,
        x: Tensor<'_>,
        slots: Slots,
        slabs: &[Slab],
        parts: &[Part],
        (ranges, given, with_loss): (bool, bool, bool),
    ) {
        let program = |kernel| Program::new(kernel, spec.scheme, x.elem_type());
        for part in parts.iter().filter(|_| ranges) {
            let buffers = [(2, &part.x), (3, &slabs[part.slab].ranges)];
            job.dispatch(self.over_runs(program(Kernel::MinMax), slots.units, part.params, &buffers));
        }
        for slab in slabs {
            self.scale(job, spec, slab, &slab.ranges, (given, with_loss));
        }
    }

    /// What follows from the ranges of a slab's units.
    fn scale(
        &self,
        job: &mut Job<'_>,
        spec: &Spec,
        slab: &Slab,
        ranges: &wgpu::Buffer,
        (given, with_loss): (bool, bool),
    ) {
        if slab.units == 0 {
            return;
        }
        let params = Params {
            units: saturate(slab.units),
            given: given.into(),
            with_loss: with_loss.into(),
            ..Params::of(spec)
        };
        let Slab { scales, zero_points, losses, recipes, .. } = slab;
        let buffers = [(2, ranges), (3, scales), (4, recipes), (5, losses), (6, zero_points)];
        let program = Program::new(Kernel::Scale, spec.scheme, Default::default());
        job.dispatch(Dispatch::new(program, params, &buffers, self.workgroups_of_units(slab.units)));
    }

    /// Workgroups with an invocation per range unit.
    pub(super) fn workgroups_of_units(&self, units: usize) -> u64 {
        (units as u64).div_ceil(self.tuning.workgroup.into())
    }

    /// A batch's ranges go into what was observed. Nothing is read back.
    pub(super) fn start_observe(&self, observed: &RangeAccumulator, x: Tensor<'_>) -> Result<Pending> {
        let units = RangeUnits::new(x.shape(), observed.granularity())?;
        observed.check(self, units.units)?;
        let slots = slots_of_input(x, units, 32);
        let mut job = Job::new(self)?;
        let slot_bytes = x.elem_type().bytes().max(4);
        let cut = self.cut_work(slots, Params::default(), slot_bytes, 0);
        let ranges = cut.slabs.iter().map(|slab| job.buffer("ranges", 8 * slab.len())).collect::<Result<Vec<_>>>()?;
        // Neither kernel sees codes, so that any scheme will do.
        let program = |kernel| Program::new(kernel, Scheme::INT8_ABSMAX, x.elem_type());
        for (chunk, params) in &cut.chunks {
            let input = job.upload("input", &input_bytes(x, slots, chunk))?;
            let buffers = [(2, &input), (3, &ranges[chunk.slab])];
            job.dispatch(self.over_runs(program(Kernel::MinMax), units, *params, &buffers));
        }
        for (slab, ranges) in cut.slabs.iter().zip(&ranges).filter(|(slab, _)| !slab.is_empty()) {
            let params = Params {
                first_unit: saturate(slab.start),
                units: saturate(slab.len()),
                averaging: observed.observer().averaging_bits(),
                ..Params::default()
            };
            let buffers = [(2, ranges), (3, observed.keys())];
            let workgroups = self.workgroups_of_units(slab.len());
            job.dispatch(Dispatch::new(program(Kernel::Observe), params, &buffers, workgroups));
        }
        job.submit()
    }

    pub(super) fn start_quantize(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        given: Option<Scales<'_>>,
    ) -> Result<(Pending, Reading)> {
        self.start(x, spec, given, false)
    }

    /// The loss that the specification asks for is not computed.
    pub(super) fn start_fake_quantize(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        given: Option<Scales<'_>>,
    ) -> Result<(Pending, Reading)> {
        self.start(x, &spec.loss(LossDetail::None), given, true)
    }

    fn start(&self, x: Tensor<'_>, spec: &Spec, given: Option<Scales<'_>>, fake: bool) -> Result<(Pending, Reading)> {
        let units = spec.units(x.shape())?;
        check(self, spec, units, given)?;
        let scheme = spec.scheme;
        let with_loss = spec.loss != LossDetail::None;
        let is_given = given.is_some() && !scheme.is_cast();
        let bits = if fake { 32 } else { scheme.code().bits() };
        let slots = slots_of_input(x, units, bits);
        let slot_bytes = x.elem_type().bytes().max(4);
        let kernel = if fake { Kernel::FakeQuantizeOnce } else { Kernel::QuantizeOnce };
        let once = if is_given || scheme.is_cast() { None } else { self.once(kernel, slots, slot_bytes) };

        let mut job = Job::new(self)?;
        let cut = self.cut_work(slots, Params::of(spec), slot_bytes, once.unwrap_or(0));
        let counters = job.buffer("counters", 4 * TALLIES * cut.chunks.len())?;
        let slabs = self.slabs(&mut job, &cut, spec, given)?;
        let mut parts = Vec::new();
        for (chunk, params) in &cut.chunks {
            parts.push(Part {
                params: *params,
                slab: chunk.slab,
                x: job.upload("input", &input_bytes(x, slots, chunk))?,
                codes: job.buffer("codes", code_range(&(0..chunk.slots.len()), bits).len())?,
            });
        }
        // Where runs are short, neighbouring codes have different units, and the sums take a pass of their own; so do
        // those of casts, whose largest loss nothing tells beforehand.
        let short = parts.iter().any(|part| part.params.units > 1 && part.params.run < MIN_RUN);
        let fused = with_loss && !scheme.is_cast() && (once.is_some() || !short);
        let program = |kernel| Program::new(kernel, scheme, x.elem_type());
        if once.is_some() {
            let kernel = match (fake, fused) {
                (true, _) => Kernel::FakeQuantizeOnce,
                (false, true) => Kernel::QuantizeOnceLoss,
                (false, false) => Kernel::QuantizeOnce,
            };
            for part in &parts {
                let Slab { scales, zero_points, losses, .. } = &slabs[part.slab];
                let mut buffers = vec![(1, &counters), (2, &part.x), (3, scales), (4, &part.codes)];
                buffers.extend(fused.then_some((5, losses)));
                buffers.push((6, zero_points));
                job.dispatch(self.over_rows(program(kernel), part.params, &buffers));
            }
        } else {
            // Given scales need no ranges, but the loss needs to know how far values lie beyond the codes.
            let ranges = with_loss || !(is_given || scheme.is_cast());
            if ranges || !scheme.is_cast() {
                self.scales(&mut job, spec, x, slots, &slabs, &parts, (ranges, is_given, fused));
            }
            let kernel = match (fake, fused) {
                (true, _) => Kernel::FakeQuantize,
                (false, true) => Kernel::QuantizeLoss,
                (false, false) => Kernel::Quantize,
            };
            for part in &parts {
                let Slab { recipes, losses, .. } = &slabs[part.slab];
                let mut buffers = vec![(1, &counters), (2, &part.x), (3, recipes), (4, &part.codes)];
                buffers.extend(fused.then_some((5, losses)));
                job.dispatch(self.over_rows(program(kernel), part.params, &buffers));
            }
        }

        let mut reading = Reading::new(*spec, x.shape(), slots);
        reading.counters = job.read(&counters, 4 * TALLIES * parts.len());
        reading.read_units(&mut job, &slabs);
        let bytes = |part: &Part| code_range(&(0..part.params.elems as usize), bits).len();
        reading.codes = parts.iter().map(|part| job.read(&part.codes, bytes(part))).collect();
        if with_loss {
            self.losses_of_codes(&mut job, x, &counters, &slabs, &parts, !fused, &mut reading)?;
        }
        Ok((job.submit()?, reading))
    }

    /// The passes over given codes that are still missing: each unit's largest loss, with every element's if
    /// asked, and the sums.
    #[allow(clippy::too_many_arguments, reason = "they are one call's buffers")]
    fn losses_of_codes(
        &self,
        job: &mut Job<'_>,
        x: Tensor<'_>,
        counters: &wgpu::Buffer,
        slabs: &[Slab],
        parts: &[Part],
        sums: bool,
        reading: &mut Reading,
    ) -> Result<()> {
        let store = reading.spec.loss == LossDetail::PerElement;
        let kernel = if store { Kernel::AbsErrorStore } else { Kernel::AbsError };
        let program = |kernel| Program::new(kernel, reading.spec.scheme, x.elem_type());
        let units = reading.slots.units;
        // A buffer that the composed kernel never writes still has to be bound.
        let unused = job.buffer("unused", 16)?;
        for part in parts.iter().filter(|_| store || sums) {
            let errors = if store { job.buffer("errors", 4 * part.params.elems as usize)? } else { unused.clone() };
            let Slab { scales, zero_points, losses, .. } = &slabs[part.slab];
            let buffers = [(2, &part.x), (3, scales), (4, &part.codes), (5, losses), (6, &errors), (7, zero_points)];
            job.dispatch(self.over_runs(program(kernel), units, part.params, &buffers));
            if store {
                reading.errors.push(job.read(&errors, 4 * part.params.elems as usize));
            }
        }
        for part in parts.iter().filter(|_| sums) {
            let Slab { scales, zero_points, losses, .. } = &slabs[part.slab];
            let buffers = [(1, counters), (2, &part.x), (3, scales), (4, &part.codes), (5, losses), (7, zero_points)];
            job.dispatch(self.over_runs(program(Kernel::Loss), units, part.params, &buffers));
        }
        reading.losses = slabs.iter().map(|slab| job.read(&slab.losses, 4 * LOSS_WORDS * slab.units)).collect();
        Ok(())
    }

    /// The reads that the values will be.
    pub(super) fn start_dequantize(&self, q: &Quantized) -> Result<(Pending, Vec<usize>)> {
        let bits = q.scheme().code().bits();
        let slots = slots_of_codes(q.shape().last().copied().unwrap_or(1), q.units(), bits);
        let spec = Spec::new(q.scheme()).per(q.granularity());
        let mut job = Job::new(self)?;
        let cut = self.cut_work(slots, Params::of(&spec), 4, 0);
        let slabs = self.slabs(&mut job, &cut, &spec, Some(Scales::Host(q.scales(), q.zero_points())))?;
        let mut reads = Vec::new();
        for (chunk, params) in &cut.chunks {
            let codes = job.upload("codes", &q.codes()[code_range(&chunk.at, bits)])?;
            let out = job.buffer("output", 4 * chunk.slots.len())?;
            let Slab { scales, zero_points, .. } = &slabs[chunk.slab];
            let buffers = [(2, &codes), (3, scales), (4, &out), (5, zero_points)];
            let program = Program::new(Kernel::Dequantize, q.scheme(), Default::default());
            job.dispatch(self.over_rows(program, *params, &buffers));
            reads.push(job.read(&out, 4 * chunk.slots.len()));
        }
        Ok((job.submit()?, reads))
    }

    pub(super) fn start_loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<(Pending, Reading)> {
        if x.shape() != q.shape() {
            return Err(Error::ShapeMismatch { found: q.shape().to_vec(), expected: x.shape().to_vec() });
        }
        let detail = if per_element { LossDetail::PerElement } else { LossDetail::Summary };
        let spec = Spec::new(q.scheme()).per(q.granularity()).loss(detail);
        let bits = q.scheme().code().bits();
        let slots = slots_of_input(x, q.units(), bits);
        let mut job = Job::new(self)?;
        let cut = self.cut_work(slots, Params::of(&spec), x.elem_type().bytes().max(4), 0);
        let counters = job.buffer("counters", 4 * TALLIES * cut.chunks.len())?;
        let slabs = self.slabs(&mut job, &cut, &spec, Some(Scales::Host(q.scales(), q.zero_points())))?;
        let mut parts = Vec::new();
        for (chunk, params) in &cut.chunks {
            parts.push(Part {
                params: *params,
                slab: chunk.slab,
                x: job.upload("input", &input_bytes(x, slots, chunk))?,
                codes: job.upload("codes", &q.codes()[code_range(&chunk.slots, bits)])?,
            });
        }
        if q.scheme().is_cast() {
            self.scales(&mut job, &spec, x, slots, &slabs, &parts, (true, false, false));
        }
        let mut reading = Reading::new(spec, q.shape(), slots);
        reading.counters = job.read(&counters, 4 * TALLIES * parts.len());
        reading.read_units(&mut job, &slabs);
        self.losses_of_codes(&mut job, x, &counters, &slabs, &parts, true, &mut reading)?;
        Ok((job.submit()?, reading))
    }
}

/// What is wrong with given scales, as far as the host can see.
fn check(gpu: &Gpu, spec: &Spec, units: RangeUnits, given: Option<Scales<'_>>) -> Result<()> {
    let scheme = spec.scheme;
    match given {
        None => Ok(()),
        Some(Scales::Host(scales, zero_points)) => check_given(scheme, units, scales, zero_points),
        Some(_) if scheme.is_cast() => Err(Error::CastHasNoScale { scheme, found: "a given scale".to_owned() }),
        Some(Scales::Observed(ranges)) => ranges.check(gpu, units.units),
        Some(Scales::Device(scales, zero_points)) => {
            let held = |buffer: &wgpu::Buffer| usize::try_from(buffer.size() / 4).unwrap_or(usize::MAX);
            let found_elems = held(scales);
            if found_elems < units.units {
                return Err(Error::LengthMismatch { what: "scales", found_elems, expected_elems: units.units });
            }
            check_zero_points_elems(scheme, units, zero_points.map_or(0, |buffer| held(buffer).min(units.units)))
        }
    }
}

/// Whether a tensor's runs are so short that the loss takes passes of its own, unless it is quantized in one pass.
pub(crate) fn has_short_runs(units: RangeUnits) -> bool {
    units.units > 1 && units.inner_elems < MIN_RUN as usize
}

/// The slots of a row of codes of so many bits.
fn code_row_slots(row_elems: usize, bits: u32) -> usize {
    if bits == 4 { row_elems.next_multiple_of(2) } else { row_elems }
}

/// The slots of an input whose codes have so many bits. Rows that lie far apart are moved together on their way.
fn slots_of_input(x: Tensor<'_>, units: RangeUnits, bits: u32) -> Slots {
    let row_elems = x.row_elems();
    let row_pitch = if x.row_pitch_elems() <= 2 * row_elems { x.row_pitch_elems() } else { row_elems };
    slots_of_rows(row_elems, row_pitch, units, bits)
}

/// The slots of rows of elements whose codes have so many bits.
pub(super) fn slots_of_rows(row_elems: usize, row_pitch: usize, units: RangeUnits, bits: u32) -> Slots {
    let align = if bits == 4 { 2 } else { 1 };
    let row_slots = code_row_slots(row_elems, bits);
    Slots { units, row_elems, row_slots, row_pitch, align }
}

/// The slots of codes that are read.
pub(super) fn slots_of_codes(row_elems: usize, units: RangeUnits, bits: u32) -> Slots {
    let row_pitch = code_row_slots(row_elems, bits);
    Slots { units, row_elems, row_slots: row_elems, row_pitch, align: if bits == 4 { 2 } else { 1 } }
}

/// What is read of an input for a chunk.
fn input_bytes<'a>(x: Tensor<'a>, slots: Slots, chunk: &Chunk) -> Cow<'a, [u8]> {
    let size = x.elem_type().bytes();
    if slots.row_pitch == x.row_pitch_elems() {
        return Cow::Borrowed(&x.bytes()[chunk.at.start * size..chunk.at.end * size]);
    }
    let mut bytes = Vec::with_capacity(chunk.at.len() * size);
    let mut i = chunk.at.start;
    while i < chunk.at.end {
        let (row, column) = (i / slots.row_elems, i % slots.row_elems);
        let run = (slots.row_elems - column).min(chunk.at.end - i);
        let start = (row * x.row_pitch_elems() + column) * size;
        bytes.extend_from_slice(&x.bytes()[start..start + run * size]);
        i += run;
    }
    Cow::Owned(bytes)
}

/// The bytes of these slots' codes; 4-bit codes begin with a byte.
pub(super) fn code_range(slots: &Range<usize>, bits: u32) -> Range<usize> {
    let bits = bits as usize;
    slots.start * bits / 8..(slots.end * bits).div_ceil(8)
}

/// Which of a call's reads holds what: numbers from [`Job::read`].
pub(super) struct Reading {
    spec: Spec,
    shape: Vec<usize>,
    slots: Slots,
    counters: usize,
    scales: Vec<usize>,
    zero_points: Vec<usize>,
    losses: Vec<usize>,
    codes: Vec<usize>,
    errors: Vec<usize>,
}

impl Reading {
    fn new(spec: Spec, shape: &[usize], slots: Slots) -> Self {
        let (scales, zero_points, losses, codes, errors) = Default::default();
        Self { spec, shape: shape.to_vec(), slots, counters: 0, scales, zero_points, losses, codes, errors }
    }

    fn read_units(&mut self, job: &mut Job<'_>, slabs: &[Slab]) {
        self.scales = slabs.iter().map(|slab| job.read(&slab.scales, 4 * slab.units)).collect();
        if self.spec.scheme.has_zero_point() {
            self.zero_points = slabs.iter().map(|slab| job.read(&slab.zero_points, 4 * slab.units)).collect();
        }
    }

    /// The counters' sums over the chunks, in the order of [`shader::TALLIES`].
    fn tallies(&self, finished: &Finished) -> Result<[u64; TALLIES]> {
        let words: Vec<u32> = finished.concat(&[self.counters])?;
        let mut sums = [0; TALLIES];
        for chunk in words.chunks(TALLIES) {
            for (sum, &word) in sums.iter_mut().zip(chunk) {
                *sum += u64::from(word);
            }
        }
        Ok(sums)
    }

    fn counts(&self, finished: &Finished) -> Result<Counts> {
        let [nan_elems, inf_elems, clipped_elems, ..] = self.tallies(finished)?;
        Ok(Counts { clipped_elems, nan_elems, inf_elems })
    }

    /// The scales, none of a cast.
    fn scales(&self, finished: &Finished) -> Result<Vec<f32>> {
        if self.spec.scheme.is_cast() { Ok(vec![]) } else { finished.concat(&self.scales) }
    }

    pub(super) fn finish(self, finished: &Finished) -> Result<QuantizeOutput> {
        let counts = self.counts(finished)?;
        let (scales, zero_points) = (self.scales(finished)?, finished.concat(&self.zero_points)?);
        let codes: Vec<u8> = finished.concat(&self.codes)?;
        let loss = match self.spec.loss {
            LossDetail::None => None,
            _ => Some(self.loss(finished)?),
        };
        let Spec { scheme, granularity, .. } = self.spec;
        let tensor = Quantized::from_parts(scheme, granularity, self.shape, codes, scales, zero_points)?;
        Ok(QuantizeOutput::new(tensor, counts, loss))
    }

    pub(super) fn values(self, finished: &Finished) -> Result<FakeQuantizeOutput> {
        let (scales, zero_points) = (self.scales(finished)?, finished.concat(&self.zero_points)?);
        check_given(self.spec.scheme, self.slots.units, &scales, &zero_points)?;
        let values = finished.concat(&self.codes)?;
        Ok(FakeQuantizeOutput::new(values, scales, zero_points, self.counts(finished)?))
    }

    pub(super) fn loss(&self, finished: &Finished) -> Result<Loss> {
        let [.., excluded_elems, nonfinite_out_elems] = self.tallies(finished)?;
        let words: Vec<u32> = finished.concat(&self.losses)?;
        let sums: Vec<UnitSums> = words.chunks(LOSS_WORDS).map(unit_sums).collect();
        // Of a cast the nominal ones.
        let scales: Vec<f32> = finished.concat(&self.scales)?;
        let abs_errors = match self.spec.loss {
            LossDetail::PerElement => Some(self.of_elems(finished.concat(&self.errors)?)),
            _ => None,
        };
        let elems = self.slots.units.elems() as u64 - excluded_elems;
        Ok(Loss::new(&sums, &scales, self.spec.scheme.is_cast(), elems, nonfinite_out_elems, abs_errors))
    }

    /// Leaves out what fills up rows.
    fn of_elems(&self, values: Vec<f32>) -> Vec<f32> {
        let Slots { row_elems, row_slots, .. } = self.slots;
        if row_elems == row_slots {
            return values;
        }
        values.chunks(row_slots).flat_map(|row| &row[..row_elems]).copied().collect()
    }
}

/// A unit's sums from its words.
fn unit_sums(words: &[u32]) -> UnitSums {
    let unsigned = |at: Range<usize>| words[at].iter().rev().fold(0u128, |sum, &word| (sum << 32) | u128::from(word));
    let cross = unsigned(shader::CROSS);
    UnitSums {
        max_bits: words[shader::MAX_AT],
        abs: unsigned(shader::ABS),
        noise: unsigned(shader::NOISE),
        codes: unsigned(shader::CODES),
        // 96 bits in two's complement.
        cross: (cross << 32).cast_signed() >> 32,
    }
}
