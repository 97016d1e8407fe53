//! Calls from host to host: the stages of each over buffers of its own, and what is read back.

use super::Gpu;
use super::cut::TALLIES;
use super::job::{Dispatch, Finished, Job, Pending};
use super::observe::RangeAccumulator;
use super::params::Params;
use super::shader::{self, Kernel, LOSS_WORDS, Program};
use super::stages::{Place, Request, Source, Space, Stages, Work};
use crate::error::{Error, Result};
use crate::layout::{RangeUnits, Slots, saturate};
use crate::loss::{Loss, UnitSums};
use crate::quantized::{
    Counts, FakeQuantizeOutput, LossDetail, QuantizeOutput, Quantized, Spec, check_given, check_zero_points_elems,
};
use crate::scheme::Scheme;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::collections::HashMap;
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

/// What a call's buffer holds before the first stage.
enum Content<'a> {
    Zeros,
    Bytes(Cow<'a, [u8]>),
    /// Bytes of a caller's buffer.
    Copy(&'a wgpu::Buffer),
}

/// A call's buffers: one for each place.
struct Buffers<F> {
    made: HashMap<Place, wgpu::Buffer>,
    content: F,
}

impl<'a, F: Fn(&Place) -> Content<'a>> Buffers<F> {
    fn new(content: F) -> Self {
        Self { made: HashMap::new(), content }
    }

    fn of(&mut self, job: &mut Job<'_>, place: &Place) -> Result<wgpu::Buffer> {
        if let Some(buffer) = self.made.get(place) {
            return Ok(buffer.clone());
        }
        let what = place.space.name();
        let buffer = match (self.content)(place) {
            Content::Zeros => job.buffer(what, place.len_bytes())?,
            Content::Bytes(bytes) => job.upload(what, &bytes)?,
            Content::Copy(from) => {
                let range = |byte| usize::try_from(byte).unwrap_or(usize::MAX);
                job.copy(what, from, range(place.bytes.start)..range(place.bytes.end))?
            }
        };
        self.made.insert(place.clone(), buffer.clone());
        Ok(buffer)
    }

    fn dispatch(&mut self, job: &mut Job<'_>, stages: &Stages) -> Result<()> {
        for Dispatch { program, params, buffers, workgroups } in &stages.dispatches {
            let buffers = buffers.iter().map(|(binding, place)| Ok((*binding, self.of(job, place)?)));
            let buffers = buffers.collect::<Result<_>>()?;
            job.dispatch(Dispatch { program: *program, params: *params, buffers, workgroups: *workgroups });
        }
        Ok(())
    }

    /// Asks for what a place will hold, and returns the read's number.
    fn read(&mut self, job: &mut Job<'_>, place: &Place) -> Result<usize> {
        let buffer = self.of(job, place)?;
        Ok(job.read(&buffer, place.len_bytes()))
    }
}

/// The bytes of a whole, as far as it has them.
fn part<'a>(all: &'a [u8], bytes: &Range<u64>) -> Content<'a> {
    let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX).min(all.len());
    Content::Bytes(Cow::Borrowed(&all[at(bytes.start)..at(bytes.end)]))
}

impl Gpu {
    /// Whether a tensor is quantized in one pass.
    pub(crate) fn quantizes_once(&self, x: Tensor<'_>, spec: &Spec) -> bool {
        let Ok(units) = spec.units(x.shape()) else { return false };
        let slots = request(Work::Quantize, *spec, Source::Tensor, x, units).slots();
        !spec.scheme.is_cast() && self.once(Kernel::QuantizeOnce, slots, x.elem_type().bytes().max(4), &[]).is_some()
    }

    /// A batch's ranges go into what was observed. Nothing is read back.
    pub(super) fn start_observe(&self, observed: &RangeAccumulator, x: Tensor<'_>) -> Result<Pending> {
        let units = RangeUnits::new(x.shape(), observed.granularity())?;
        observed.check(self, units.units)?;
        // The kernels do not see codes, so that any scheme will do.
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(observed.granularity());
        let request = request(Work::Ranges, spec, Source::Tensor, x, units);
        let slots = request.slots();
        let stages = self.stages(&request);
        let mut job = Job::new(self)?;
        let mut buffers = Buffers::new(|place: &Place| match place.space {
            Space::Elems => Content::Bytes(elem_bytes(x, slots, &place.bytes)),
            _ => Content::Zeros,
        });
        buffers.dispatch(&mut job, &stages)?;
        for slab in stages.cut.slabs.iter().filter(|slab| !slab.is_empty()) {
            let params = Params {
                first_unit: saturate(slab.start),
                units: saturate(slab.len()),
                averaging: observed.observer().averaging_bits(),
                ..Params::default()
            };
            let ranges = buffers.of(&mut job, &Stages::of_units(Space::Ranges, slab))?;
            let program = Program::new(Kernel::Observe, spec.scheme, x.elem_type());
            let bound = [(2, &ranges), (3, observed.keys())];
            job.dispatch(self.over_units(program, params, &bound, slab.len() as u64));
        }
        job.submit()
    }

    pub(super) fn start_quantize(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        given: Option<Scales<'_>>,
    ) -> Result<(Pending, Reading)> {
        self.start(Work::Quantize, x, spec, given)
    }

    /// The loss that the specification asks for is not computed.
    pub(super) fn start_fake_quantize(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        given: Option<Scales<'_>>,
    ) -> Result<(Pending, Reading)> {
        self.start(Work::FakeQuantize, x, &spec.loss(LossDetail::None), given)
    }

    fn start(&self, work: Work, x: Tensor<'_>, spec: &Spec, given: Option<Scales<'_>>) -> Result<(Pending, Reading)> {
        let units = spec.units(x.shape())?;
        check(self, spec, units, given)?;
        let source = match given {
            None => Source::Tensor,
            Some(Scales::Observed(_)) => Source::Observed,
            Some(_) => Source::Given,
        };
        let request = request(work, *spec, source, x, units);
        let slots = request.slots();
        let content = |place: &Place| match (place.space, given) {
            (Space::Elems, _) => Content::Bytes(elem_bytes(x, slots, &place.bytes)),
            (Space::Observed, Some(Scales::Observed(ranges))) => Content::Copy(ranges.keys()),
            (Space::Scales, Some(Scales::Host(scales, _))) if !spec.scheme.is_cast() => {
                part(bytemuck::cast_slice(scales), &place.bytes)
            }
            (Space::ZeroPoints, Some(Scales::Host(_, zero_points))) => {
                part(bytemuck::cast_slice(zero_points), &place.bytes)
            }
            (Space::Scales, Some(Scales::Device(scales, _))) => Content::Copy(scales),
            (Space::ZeroPoints, Some(Scales::Device(_, Some(zero_points)))) => Content::Copy(zero_points),
            _ => Content::Zeros,
        };
        self.submit(&request, x.shape(), content)
    }

    /// The reads that the values will be.
    pub(super) fn start_dequantize(&self, q: &Quantized) -> Result<(Pending, Vec<usize>)> {
        let spec = Spec::new(q.scheme()).per(q.granularity());
        let request = Request {
            work: Work::Dequantize,
            spec,
            source: Source::Given,
            units: q.units(),
            elem_type: Default::default(),
            row_elems: q.shape().last().copied().unwrap_or(1),
            row_pitch: 0,
            borders_elems: &[],
        };
        let (pending, reading) = self.submit(&request, q.shape(), |place| content_of(q, place))?;
        Ok((pending, reading.codes))
    }

    pub(super) fn start_loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<(Pending, Reading)> {
        if x.shape() != q.shape() {
            return Err(Error::ShapeMismatch { found: q.shape().to_vec(), expected: x.shape().to_vec() });
        }
        let detail = if per_element { LossDetail::PerElement } else { LossDetail::Summary };
        let spec = Spec::new(q.scheme()).per(q.granularity()).loss(detail);
        let request = request(Work::Loss, spec, Source::Given, x, q.units());
        let slots = request.slots();
        self.submit(&request, q.shape(), |place| match place.space {
            Space::Elems => Content::Bytes(elem_bytes(x, slots, &place.bytes)),
            _ => content_of(q, place),
        })
    }

    /// All stages in one submission, and what will be read of them.
    fn submit<'a>(
        &self,
        request: &Request<'_>,
        shape: &[usize],
        content: impl Fn(&Place) -> Content<'a>,
    ) -> Result<(Pending, Reading)> {
        let Request { work, spec, .. } = *request;
        let mut job = Job::new(self)?;
        let stages = self.stages(request);
        let mut buffers = Buffers::new(content);
        buffers.dispatch(&mut job, &stages)?;
        let mut reading = Reading::new(spec, shape, request.slots());
        let chunks = || stages.cut.chunks.iter().map(|(chunk, _)| chunk);
        let mut read = |place: Place| buffers.read(&mut job, &place);
        if work != Work::Dequantize {
            reading.counters = read(stages.counts())?;
            let units = |space| stages.cut.slabs.iter().map(move |slab| Stages::of_units(space, slab));
            reading.scales = units(Space::Scales).map(&mut read).collect::<Result<_>>()?;
            if spec.scheme.has_zero_point() {
                reading.zero_points = units(Space::ZeroPoints).map(&mut read).collect::<Result<_>>()?;
            }
            if spec.loss != LossDetail::None {
                reading.losses = units(Space::LossSums).map(&mut read).collect::<Result<_>>()?;
            }
            if spec.loss == LossDetail::PerElement {
                reading.errors = chunks().map(Stages::abs_errors).map(&mut read).collect::<Result<_>>()?;
            }
        }
        reading.codes = match work {
            Work::Quantize => chunks().map(|chunk| stages.codes(chunk)).map(&mut read).collect::<Result<_>>()?,
            Work::FakeQuantize | Work::Dequantize => {
                chunks().map(Stages::values).map(&mut read).collect::<Result<_>>()?
            }
            _ => vec![],
        };
        Ok((job.submit()?, reading))
    }
}

/// What is asked for of a tensor. Rows that lie far apart are moved together on their way.
fn request(work: Work, spec: Spec, source: Source, x: Tensor<'_>, units: RangeUnits) -> Request<'static> {
    let row_elems = x.row_elems();
    let row_pitch = if x.row_pitch_elems() <= 2 * row_elems { x.row_pitch_elems() } else { row_elems };
    Request { work, spec, source, units, elem_type: x.elem_type(), row_elems, row_pitch, borders_elems: &[] }
}

/// What a quantized tensor has at a place.
fn content_of<'a>(q: &'a Quantized, place: &Place) -> Content<'a> {
    match place.space {
        Space::Codes => part(q.codes(), &place.bytes),
        // Those of a cast are nominal, and found on the device.
        Space::Scales if !q.scheme().is_cast() => part(bytemuck::cast_slice(q.scales()), &place.bytes),
        Space::ZeroPoints => part(bytemuck::cast_slice(q.zero_points()), &place.bytes),
        _ => Content::Zeros,
    }
}

/// What is wrong with given scales, as far as the host can see.
pub(super) fn check(gpu: &Gpu, spec: &Spec, units: RangeUnits, given: Option<Scales<'_>>) -> Result<()> {
    let scheme = spec.scheme;
    match given {
        None => Ok(()),
        Some(Scales::Host(scales, zero_points)) => check_given(scheme, units, scales, zero_points),
        Some(_) if scheme.is_cast() => Err(Error::CastHasNoScale { scheme, found: "a given scale".to_owned() }),
        Some(Scales::Observed(ranges)) => ranges.check(gpu, units.units),
        Some(Scales::Device(scales, zero_points)) => {
            let held = |buffer: &wgpu::Buffer| usize::try_from(buffer.size() / 4).unwrap_or(usize::MAX);
            for (what, buffer) in [("scales", Some(scales)), ("zero points", zero_points)] {
                if let Some(usage) =
                    buffer.map(wgpu::Buffer::usage).filter(|u| !u.contains(wgpu::BufferUsages::COPY_SRC))
                {
                    let message = format!("of usage {usage:?}, COPY_SRC is needed");
                    return Err(Error::Binding { buffer: what.to_owned(), message });
                }
            }
            let found_elems = held(scales);
            if found_elems < units.units {
                return Err(Error::LengthMismatch { what: "scales", found_elems, expected_elems: units.units });
            }
            check_zero_points_elems(scheme, units, zero_points.map_or(0, |buffer| held(buffer).min(units.units)))
        }
    }
}

/// What is read of a tensor's elements at these bytes.
fn elem_bytes<'a>(x: Tensor<'a>, slots: Slots, bytes: &Range<u64>) -> Cow<'a, [u8]> {
    let size = x.elem_type().bytes();
    let at = |byte: u64| (usize::try_from(byte).unwrap_or(usize::MAX) / size).min(slots.at_end());
    let elems = at(bytes.start)..at(bytes.end);
    if slots.row_pitch == x.row_pitch_elems() {
        return Cow::Borrowed(&x.bytes()[elems.start * size..elems.end * size]);
    }
    let mut bytes = Vec::with_capacity(elems.len() * size);
    let mut i = elems.start;
    while i < elems.end {
        let (row, column) = (i / slots.row_elems, i % slots.row_elems);
        let run = (slots.row_elems - column).min(elems.end - i);
        let start = (row * x.row_pitch_elems() + column) * size;
        bytes.extend_from_slice(&x.bytes()[start..start + run * size]);
        i += run;
    }
    Cow::Owned(bytes)
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

    fn tallies(&self, finished: &Finished) -> Result<[u64; TALLIES]> {
        Ok(tallies(&finished.concat::<u32>(&[self.counters])?))
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
        let words: Vec<u32> = finished.concat(&self.losses)?;
        // Of a cast the nominal ones.
        let scales: Vec<f32> = finished.concat(&self.scales)?;
        let abs_errors = match self.spec.loss {
            LossDetail::PerElement => Some(of_elems(self.slots, finished.concat(&self.errors)?)),
            _ => None,
        };
        let is_cast = self.spec.scheme.is_cast();
        Ok(loss(self.slots, is_cast, self.tallies(finished)?, &words, &scales, abs_errors))
    }
}

/// The counters' sums over the chunks, in the order of [`shader::TALLIES`].
pub(super) fn tallies(words: &[u32]) -> [u64; TALLIES] {
    let mut sums = [0; TALLIES];
    for chunk in words.chunks_exact(TALLIES) {
        for (sum, &word) in sums.iter_mut().zip(chunk) {
            *sum += u64::from(word);
        }
    }
    sums
}

/// The loss from its words and what else was counted.
pub(super) fn loss(
    slots: Slots,
    is_cast: bool,
    tallies: [u64; TALLIES],
    words: &[u32],
    scales: &[f32],
    abs_errors: Option<Vec<f32>>,
) -> Loss {
    let [.., excluded_elems, nonfinite_out_elems] = tallies;
    let sums: Vec<UnitSums> = words.chunks(LOSS_WORDS).map(unit_sums).collect();
    let elems = slots.units.elems() as u64 - excluded_elems;
    Loss::new(&sums, scales, is_cast, elems, nonfinite_out_elems, abs_errors)
}

/// What slots have, without what fills up rows.
pub(super) fn of_elems(slots: Slots, values: Vec<f32>) -> Vec<f32> {
    let Slots { row_elems, row_slots, .. } = slots;
    if row_elems == row_slots {
        return values;
    }
    values.chunks(row_slots).flat_map(|row| &row[..row_elems]).copied().collect()
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
