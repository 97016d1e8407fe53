//! The stages of each call: which kernels run over which buffers, and what is read back.
//!
//! Elements are cut into chunks of one buffer each, range units into slabs. Both are usually one.

use super::Gpu;
use super::job::{Dispatch, Finished, Job, Pending};
use super::shader::{self, Kernel, LOSS_WORDS, MIN_RUN, Params, RECIPE_WORDS};
use crate::error::{Error, Result};
use crate::layout::{Chunk, RangeUnits, Tensor, saturate};
use crate::loss::{Loss, UnitSums};
use crate::quantized::{Counts, LossDetail, QuantizeOutput, Quantized, Spec, check_scales};
use crate::scheme::Scheme;
use std::ops::Range;

/// A slab's buffers, one entry per range unit each.
struct Slab {
    units: usize,
    scales: wgpu::Buffer,
    losses: wgpu::Buffer,
}

/// A chunk's place and buffers.
struct Part {
    params: Params,
    slab: usize,
    x: wgpu::Buffer,
    codes: wgpu::Buffer,
}

/// Counters per chunk.
const TALLIES: usize = shader::TALLIES.len();

impl Gpu {
    /// The most elements that one buffer of f32 can hold here.
    fn chunk_elems(&self) -> u32 {
        let elems = saturate(usize::try_from(self.max_buffer_bytes() / 4).unwrap_or(usize::MAX));
        (elems.min(self.tuning.chunk_elems) & !3).max(4)
    }

    /// The most range units whose entries fit in one buffer here.
    fn slab_units(&self) -> usize {
        let widest = 4 * LOSS_WORDS.max(RECIPE_WORDS) as u64;
        let units = usize::try_from(self.max_buffer_bytes() / widest).unwrap_or(usize::MAX);
        units.min(self.tuning.slab_units).max(1)
    }

    /// The chunks of a tensor, each with its parameters.
    fn plan(&self, units: RangeUnits) -> Vec<(Chunk, Params)> {
        let slab_units = self.slab_units();
        let chunks = units.chunks(self.chunk_elems(), slab_units);
        let params = |(i, chunk): (usize, &Chunk)| Params {
            elems: chunk.elems,
            first_unit: chunk.first_unit,
            first_left: chunk.first_left,
            run: saturate(units.inner_elems),
            units: saturate(units.slab(chunk.slab, slab_units).len()),
            counters: saturate(i * TALLIES),
            ..Params::default()
        };
        chunks.iter().copied().zip(chunks.iter().enumerate().map(params)).collect()
    }

    /// A dispatch that visits every element of a chunk, as rows.
    fn over_rows(&self, kernel: Kernel, scheme: Scheme, params: Params, buffers: &[(u32, &wgpu::Buffer)]) -> Dispatch {
        let tile_elems = u64::from(self.tuning.workgroup * kernel.vecs() * 4);
        let workgroups = u64::from(params.elems).div_ceil(tile_elems);
        Dispatch::new(kernel, scheme, params, buffers, workgroups)
    }

    /// The same for a reduction per range unit: as columns where runs are short.
    fn over_runs(&self, kernel: Kernel, scheme: Scheme, params: Params, buffers: &[(u32, &wgpu::Buffer)]) -> Dispatch {
        if !is_columns(&params) {
            return self.over_rows(kernel, scheme, params, buffers);
        }
        // A whole number of periods, and enough neighbours to fill some workgroups. A chunk within one period
        // is a single row, of which every invocation sees one element.
        let period = u64::from(params.run) * u64::from(params.units);
        let wanted = u64::from(4 * self.tuning.workgroup);
        let stride = (period * wanted.div_ceil(period)).min(u64::from(params.elems));
        let rows = u64::from(params.elems).div_ceil(stride);
        let invocations = stride * rows.div_ceil(u64::from(4 * kernel.vecs()));
        let params = Params { stride: u32::try_from(stride).unwrap_or(u32::MAX), ..params };
        Dispatch::new(kernel, scheme, params, buffers, invocations.div_ceil(self.tuning.workgroup.into()))
    }

    pub(super) fn start_quantize(
        &self,
        x: Tensor<'_>,
        spec: &Spec,
        given: Option<&[f32]>,
    ) -> Result<(Pending, Reading)> {
        let units = RangeUnits::new(x.shape(), spec.granularity)?;
        if let Some(scales) = given {
            if scales.len() != units.units {
                let found_elems = scales.len();
                return Err(Error::LengthMismatch { what: "scales", found_elems, expected_elems: units.units });
            }
            check_scales(scales)?;
        }
        let scheme = spec.scheme;
        let with_loss = spec.loss != LossDetail::None;
        let mut job = Job::new(self)?;
        let plan = self.plan(units);
        let counters = job.buffer("counters", 4 * TALLIES * plan.len())?;

        let (mut slabs, mut ranges, mut recipes) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..units.slabs(self.slab_units()) {
            let range = units.slab(i, self.slab_units());
            let scales = match given {
                Some(scales) => job.upload("scales", bytemuck::cast_slice(&scales[range.clone()]))?,
                None => job.buffer("scales", 4 * range.len())?,
            };
            let losses = job.buffer("loss sums", if with_loss { 4 * LOSS_WORDS * range.len() } else { 0 })?;
            ranges.push(job.buffer("ranges", 8 * range.len())?);
            recipes.push(job.buffer("recipes", 4 * RECIPE_WORDS * range.len())?);
            slabs.push(Slab { units: range.len(), scales, losses });
        }

        let mut parts = Vec::new();
        for (chunk, params) in &plan {
            let part = Part {
                params: *params,
                slab: chunk.slab,
                x: job.upload("input", bytemuck::cast_slice(chunk_of(x.data(), chunk)))?,
                codes: job.buffer("codes", chunk.elems as usize)?,
            };
            let buffers = [(1, &counters), (2, &part.x), (3, &ranges[part.slab])];
            job.dispatch(self.over_runs(Kernel::MinMax, scheme, part.params, &buffers));
            parts.push(part);
        }
        for (i, slab) in slabs.iter().enumerate().filter(|(_, slab)| slab.units > 0) {
            let params = Params {
                units: saturate(slab.units),
                given: u32::from(given.is_some()),
                with_loss: u32::from(with_loss),
                ..Params::default()
            };
            let buffers = [(2, &ranges[i]), (3, &slab.scales), (4, &recipes[i]), (5, &slab.losses)];
            let workgroups = (slab.units as u64).div_ceil(self.tuning.workgroup.into());
            job.dispatch(Dispatch::new(Kernel::Scale, scheme, params, &buffers, workgroups));
        }
        // Where runs are short, neighbouring codes have different units, and the sums take a pass of their own.
        let fused = with_loss && !parts.iter().any(|part| is_columns(&part.params));
        let kernel = if fused { Kernel::QuantizeLoss } else { Kernel::Quantize };
        for part in &parts {
            let buffers = [
                (1, &counters),
                (2, &part.x),
                (3, &recipes[part.slab]),
                (4, &part.codes),
                (5, &slabs[part.slab].losses),
            ];
            let bound = if fused { &buffers[..] } else { &buffers[..4] };
            job.dispatch(self.over_rows(kernel, scheme, part.params, bound));
        }

        let mut reading = Reading::new(*spec, x.shape(), units);
        reading.counters = job.read(&counters, 4 * TALLIES * parts.len());
        reading.scales = slabs.iter().map(|slab| job.read(&slab.scales, 4 * slab.units)).collect();
        reading.codes = parts.iter().map(|part| job.read(&part.codes, part.params.elems as usize)).collect();
        if with_loss {
            let sums = !fused;
            self.losses_of_codes(&mut job, scheme, &counters, &slabs, &parts, sums, &mut reading)?;
        }
        Ok((job.submit()?, reading))
    }

    /// The passes over given codes that are still missing: each unit's largest loss, with every element's if
    /// asked, and the sums.
    #[allow(clippy::too_many_arguments, reason = "they are one call's buffers")]
    fn losses_of_codes(
        &self,
        job: &mut Job<'_>,
        scheme: Scheme,
        counters: &wgpu::Buffer,
        slabs: &[Slab],
        parts: &[Part],
        sums: bool,
        reading: &mut Reading,
    ) -> Result<()> {
        let store = reading.spec.loss == LossDetail::PerElement;
        let kernel = if store { Kernel::AbsErrorStore } else { Kernel::AbsError };
        // A buffer that the composed kernel never writes still has to be bound.
        let unused = job.buffer("unused", 16)?;
        for part in parts.iter().filter(|_| store || sums) {
            let errors = if store { job.buffer("errors", 4 * part.params.elems as usize)? } else { unused.clone() };
            let Slab { scales, losses, .. } = &slabs[part.slab];
            let buffers = [(2, &part.x), (3, scales), (4, &part.codes), (5, losses), (6, &errors)];
            job.dispatch(self.over_runs(kernel, scheme, part.params, &buffers));
            if store {
                reading.errors.push(job.read(&errors, 4 * part.params.elems as usize));
            }
        }
        for part in parts.iter().filter(|_| sums) {
            let Slab { scales, losses, .. } = &slabs[part.slab];
            let buffers = [(1, counters), (2, &part.x), (3, scales), (4, &part.codes), (5, losses)];
            job.dispatch(self.over_runs(Kernel::Loss, scheme, part.params, &buffers));
        }
        reading.losses = slabs.iter().map(|slab| job.read(&slab.losses, 4 * LOSS_WORDS * slab.units)).collect();
        Ok(())
    }

    /// The reads that the values will be.
    pub(super) fn start_dequantize(&self, q: &Quantized) -> Result<(Pending, Vec<usize>)> {
        let units = q.units();
        let mut job = Job::new(self)?;
        let plan = self.plan(units);
        let mut scales = Vec::new();
        for i in 0..units.slabs(self.slab_units()) {
            scales.push(job.upload("scales", bytemuck::cast_slice(&q.scales()[units.slab(i, self.slab_units())]))?);
        }
        let mut reads = Vec::new();
        for (chunk, params) in &plan {
            let codes = job.upload("codes", chunk_of(q.codes(), chunk))?;
            let out = job.buffer("output", 4 * chunk.elems as usize)?;
            let buffers = [(2, &codes), (3, &scales[chunk.slab]), (4, &out)];
            job.dispatch(self.over_rows(Kernel::Dequantize, q.scheme(), *params, &buffers));
            reads.push(job.read(&out, 4 * chunk.elems as usize));
        }
        Ok((job.submit()?, reads))
    }

    pub(super) fn start_loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<(Pending, Reading)> {
        if x.shape() != q.shape() {
            return Err(Error::ShapeMismatch { found: q.shape().to_vec(), expected: x.shape().to_vec() });
        }
        let units = q.units();
        let mut job = Job::new(self)?;
        let plan = self.plan(units);
        let counters = job.buffer("counters", 4 * TALLIES * plan.len())?;
        let mut slabs = Vec::new();
        for i in 0..units.slabs(self.slab_units()) {
            let range = units.slab(i, self.slab_units());
            slabs.push(Slab {
                units: range.len(),
                scales: job.upload("scales", bytemuck::cast_slice(&q.scales()[range.clone()]))?,
                losses: job.buffer("loss sums", 4 * LOSS_WORDS * range.len())?,
            });
        }
        let mut parts = Vec::new();
        for (chunk, params) in &plan {
            parts.push(Part {
                params: *params,
                slab: chunk.slab,
                x: job.upload("input", bytemuck::cast_slice(chunk_of(x.data(), chunk)))?,
                codes: job.upload("codes", chunk_of(q.codes(), chunk))?,
            });
        }
        let detail = if per_element { LossDetail::PerElement } else { LossDetail::Summary };
        let spec = Spec::new(q.scheme()).per(q.granularity()).loss(detail);
        let mut reading = Reading::new(spec, q.shape(), units);
        reading.counters = job.read(&counters, 4 * TALLIES * parts.len());
        self.losses_of_codes(&mut job, q.scheme(), &counters, &slabs, &parts, true, &mut reading)?;
        Ok((job.submit()?, reading))
    }
}

/// Whether a tensor's runs are so short that they are traversed as columns, and the loss takes passes of its own.
pub(crate) fn has_short_runs(units: RangeUnits) -> bool {
    units.units > 1 && units.inner_elems < MIN_RUN as usize
}

/// The same of a chunk.
fn is_columns(params: &Params) -> bool {
    params.units > 1 && params.run < MIN_RUN
}

fn chunk_of<'a, T>(data: &'a [T], chunk: &Chunk) -> &'a [T] {
    &data[chunk.start..chunk.start + chunk.elems as usize]
}

/// Which of a call's reads holds what: numbers from [`Job::read`].
pub(super) struct Reading {
    spec: Spec,
    shape: Vec<usize>,
    units: RangeUnits,
    counters: usize,
    scales: Vec<usize>,
    losses: Vec<usize>,
    codes: Vec<usize>,
    errors: Vec<usize>,
}

impl Reading {
    fn new(spec: Spec, shape: &[usize], units: RangeUnits) -> Self {
        let (scales, losses, codes, errors) = Default::default();
        Self { spec, shape: shape.to_vec(), units, counters: 0, scales, losses, codes, errors }
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

    pub(super) fn finish(self, finished: &Finished) -> Result<QuantizeOutput> {
        let [nan_elems, inf_elems, clipped_elems, ..] = self.tallies(finished)?;
        let scales: Vec<f32> = finished.concat(&self.scales)?;
        let codes: Vec<u8> = finished.concat(&self.codes)?;
        let loss = match self.spec.loss {
            LossDetail::None => None,
            _ => Some(self.loss(finished, &scales)?),
        };
        let Spec { scheme, granularity, .. } = self.spec;
        let tensor = Quantized::from_parts(scheme, granularity, self.shape, codes, scales)?;
        Ok(QuantizeOutput::new(tensor, Counts { clipped_elems, nan_elems, inf_elems }, loss))
    }
    pub(super) fn loss(&self, finished: &Finished, scales: &[f32]) -> Result<Loss> {
        let [.., excluded_elems, nonfinite_out_elems] = self.tallies(finished)?;
        let words: Vec<u32> = finished.concat(&self.losses)?;
        let sums: Vec<UnitSums> = words.chunks(LOSS_WORDS).map(unit_sums).collect();
        let abs_errors = match self.spec.loss {
            LossDetail::PerElement => Some(finished.concat(&self.errors)?),
            _ => None,
        };
        let elems = self.units.elems() as u64 - excluded_elems;
        Ok(Loss::new(&sums, scales, elems, nonfinite_out_elems, abs_errors))
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
