//! Ranges over many batches, kept on the device.

use super::Gpu;
use super::job::{InFlight, Job, Pending};
use super::state::State;
use crate::device::Computed;
use crate::error::{Error, Result};
use crate::layout::{Granularity, RangeUnits};
use crate::range::{ObservedRanges, Observer};
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::sync::Arc;

/// Batches that may be on their way to the device at once; what they take there is bounded so.
const MOST_IN_FLIGHT: usize = 4;

/// The ranges of all batches seen, on the device: what calibration gathers before it fixes scales.
///
/// [`Gpu::range_accumulator`] makes an empty one, [`Gpu::observe`] adds a batch without waiting for the device,
/// [`Scales::Observed`](super::Scales::Observed) quantizes with what it gives, and [`Gpu::observed`] reads it back, to be
/// saved and [restored](Gpu::restore_ranges).
#[derive(Debug)]
pub struct RangeAccumulator {
    /// The [`Gpu`] that it belongs to, by what that shares with none. Devices themselves compare equal across instances.
    owner: Arc<State>,
    granularity: Granularity,
    observer: Observer,
    units: usize,
    keys: wgpu::Buffer,
    batches: u64,
    in_flight: VecDeque<InFlight>,
}

impl RangeAccumulator {
    /// Which elements share a range.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// How batches become one range.
    pub fn observer(&self) -> Observer {
        self.observer
    }

    /// The number of range units.
    pub fn units(&self) -> usize {
        self.units
    }

    /// How many batches were observed.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// The oldest batch that is on its way, while there are too many.
    fn next_to_wait_for(&mut self) -> Option<InFlight> {
        if self.in_flight.len() < MOST_IN_FLIGHT { None } else { self.in_flight.pop_front() }
    }

    pub(super) fn keys(&self) -> &wgpu::Buffer {
        &self.keys
    }

    /// Whether a tensor of so many range units can go with it here.
    pub(super) fn check(&self, gpu: &Gpu, units: usize) -> Result<()> {
        if !Arc::ptr_eq(&gpu.state, &self.owner) {
            return Err(Error::OtherDevice { what: "the range accumulator" });
        }
        if units != self.units {
            let (found_elems, expected_elems) = (units, self.units);
            return Err(Error::LengthMismatch { what: "the range units of a batch", found_elems, expected_elems });
        }
        Ok(())
    }
}

impl Gpu {
    /// An accumulator for batches of this shape, or of any other with as many range units; it has seen nothing yet.
    ///
    /// # Errors
    /// Those of [`RangeUnits::new`]; [`Error::TooLarge`], [`Error::OutOfMemory`] and [`Error::DeviceLost`] when the
    /// device cannot.
    ///
    /// ```no_run
    /// use wgpu_quant::gpu::{Scales, Select};
    /// use wgpu_quant::{Gpu, Granularity, Observer, Scheme, Spec, Tensor};
    /// let gpu = Gpu::open(&Select::from_env())?;
    /// let observer = Observer::moving_average(0.01)?;
    /// let mut ranges = gpu.range_accumulator(&[8, 64], Granularity::Tensor, observer)?;
    /// for batch in [vec![0.5; 512], vec![-2.0; 512]] {
    ///     gpu.observe(&mut ranges, Tensor::new(&batch, &[8, 64])?)?; // submitted, not waited for
    /// }
    /// let x = Tensor::new(&[1.0, -0.25], &[2])?;
    /// let out = gpu.quantize_with_scales(x, &Spec::new(Scheme::UINT8_AFFINE), Scales::Observed(&ranges))?;
    /// std::fs::write("ranges.bin", gpu.observed(&ranges)?.to_bytes()).unwrap();
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn range_accumulator(
        &self,
        shape: &[usize],
        granularity: Granularity,
        observer: Observer,
    ) -> Result<RangeAccumulator> {
        let units = RangeUnits::new(shape, granularity)?.units;
        self.restore_ranges(&ObservedRanges::new(units), granularity, observer)
    }

    /// An accumulator that goes on where `ranges` were left.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`] and [`Error::DeviceLost`] when the device cannot.
    pub fn restore_ranges(
        &self,
        ranges: &ObservedRanges,
        granularity: Granularity,
        observer: Observer,
    ) -> Result<RangeAccumulator> {
        let mut job = Job::new(self)?;
        let keys = job.upload("observed ranges", bytemuck::cast_slice(ranges.keys()))?;
        // Nothing runs, but what failed shows.
        self.noted(job.submit().and_then(Pending::submitted))?;
        Ok(RangeAccumulator {
            owner: Arc::clone(&self.state),
            granularity,
            observer,
            units: ranges.units(),
            keys,
            batches: ranges.batches(),
            in_flight: VecDeque::new(),
        })
    }

    /// Adds a batch to the ranges: [`cpu::observe`](crate::cpu::observe) and
    /// [`cpu::merge_ranges`](crate::cpu::merge_ranges) on the device.
    ///
    /// It returns when the work is submitted, and waits only while four batches are on their way. A batch that gives
    /// an error changes nothing.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] of an accumulator of another [`Gpu`], [`Error::LengthMismatch`] when the batch has not as
    /// many range units, those of [`RangeUnits::new`]; [`Error::TooLarge`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`], [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn observe(&self, ranges: &mut RangeAccumulator, x: Tensor<'_>) -> Result<()> {
        while let Some(oldest) = ranges.next_to_wait_for() {
            self.noted(oldest.wait(self))?;
        }
        self.add(ranges, x)
    }

    /// [`observe`](Self::observe) without blocking.
    ///
    /// # Errors
    /// Those of [`observe`](Self::observe).
    pub async fn observe_async(&self, ranges: &mut RangeAccumulator, x: Tensor<'_>) -> Result<()> {
        while let Some(oldest) = ranges.next_to_wait_for() {
            self.noted(oldest.finished(self).await)?;
        }
        self.add(ranges, x)
    }

    fn add(&self, ranges: &mut RangeAccumulator, x: Tensor<'_>) -> Result<()> {
        let in_flight = self.noted(self.start_observe(ranges, x).and_then(Pending::submitted))?;
        ranges.in_flight.push_back(in_flight);
        ranges.batches += 1;
        Ok(())
    }

    /// Reads the ranges back; blocks.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] of an accumulator of another [`Gpu`]; [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Timeout`] and [`Error::Gpu`] when the device cannot.
    pub fn observed(&self, ranges: &RangeAccumulator) -> Result<Computed<ObservedRanges>> {
        let (pending, read) = self.start_observed(ranges)?;
        let keys = self.wait(pending)?.concat(&[read]);
        self.output(keys.map(|keys| ObservedRanges::from_keys(keys, ranges.batches)))
    }

    /// [`observed`](Self::observed) without blocking.
    ///
    /// # Errors
    /// Those of [`observed`](Self::observed).
    pub async fn observed_async(&self, ranges: &RangeAccumulator) -> Result<Computed<ObservedRanges>> {
        let (pending, read) = self.start_observed(ranges)?;
        let keys = self.finished(pending).await?.concat(&[read]);
        self.output(keys.map(|keys| ObservedRanges::from_keys(keys, ranges.batches)))
    }

    fn start_observed(&self, ranges: &RangeAccumulator) -> Result<(Pending, usize)> {
        ranges.check(self, ranges.units)?;
        let mut job = Job::new(self)?;
        let read = job.read(&ranges.keys, 8 * ranges.units);
        Ok((job.submit()?, read))
    }
}
