//! Tensors piece by piece, through a ring of buffers: what lies on the host, in a file or beyond the device's memory.

use super::Gpu;
use super::call::{self, Scales};
use super::job::Scopes;
use super::plan::Plan;
use super::ring::{Ring, write_views};
use super::role::{Operation, Role};
use crate::device::Computed;
use crate::error::{Error, Result};
use crate::layout::RangeUnits;
use crate::pieces::Pieces;
pub use crate::quantized::Streamed;
use crate::quantized::{LossDetail, Spec, check_given, code_bytes};
use crate::tensor::ElemType;
use std::sync::mpsc::channel;

/// A tensor that is read, worked on and written piece by piece, in bounded memory.
///
/// [`Gpu::stream`] makes one. Reading, the kernels and writing overlap: while the device works on one piece, the calling
/// thread reads the next and another thread writes the one before. The bits are those of the whole tensor.
///
/// ```no_run
/// use std::fs::File;
/// use std::io::{Read, Seek, SeekFrom, Write};
/// use wgpu_quant::{ElemType, Error, Gpu, Granularity, Scheme, Spec, gpu::Select};
/// let gpu = Gpu::open(&Select::from_env())?;
/// let failed = |source| Error::Io { path: "weights".into(), source };
/// let (mut values, mut codes) =
///     (File::open("weights.f32").map_err(failed)?, File::create("weights.int8").map_err(failed)?);
/// let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0));
/// let out = gpu.stream(&[1 << 20, 1 << 14], &spec).budget_bytes(1 << 30).quantize(
///     ElemType::F32,
///     |offset, bytes| {
///         values.seek(SeekFrom::Start(offset)).and_then(|_| values.read_exact(bytes)).map_err(failed)
///     },
///     |bytes| codes.write_all(bytes).map_err(failed),
/// )?;
/// println!("{} scales, {} NaN", out.scales.len(), out.counts.nan_elems);
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens before it is told what to do"]
pub struct Stream<'g> {
    pub(super) gpu: &'g Gpu,
    pub(super) shape: Vec<usize>,
    pub(super) spec: Spec,
    pub(super) budget_bytes: u64,
    pub(super) ring: usize,
}

impl Gpu {
    /// A tensor of this shape, to be streamed, whatever its size: within 256 MiB and through a ring of 3 slots, unless it is
    /// told otherwise. [`Stream`] has an example.
    pub fn stream(&self, shape: &[usize], spec: &Spec) -> Stream<'_> {
        // Of several pieces there is no loss to compute.
        let spec = spec.loss(LossDetail::None);
        Stream { gpu: self, shape: shape.to_vec(), spec, budget_bytes: 256 << 20, ring: 3 }
    }
}

/// The operations of one pass over the source.
type Pass = &'static [Operation];

/// Pieces of one length, in one pass.
pub(super) struct Work {
    pub(super) pass: usize,
    pub(super) elems: usize,
    pub(super) units: usize,
    pub(super) source_bytes: usize,
    /// What is written; `None` of a pass that only looks.
    pub(super) output_bytes: Option<usize>,
    pub(super) plans: Vec<Plan>,
}

impl Work {
    /// What its operations need of a role's buffer.
    pub(super) fn bytes(&self, role: Role) -> u64 {
        self.plans.iter().filter_map(|plan| plan.need(role)).map(|need| need.bytes).max().unwrap_or(0)
    }
}

/// What is done with a tensor.
pub(super) struct Task<'a> {
    pub(super) operation: Operation,
    pub(super) elem_type: ElemType,
    pub(super) given: Option<Scales<'a>>,
}

impl<'a> Task<'a> {
    /// Scales and zero points that go to the device with their pieces.
    pub(super) fn host(&self) -> Option<(&'a [f32], &'a [i32])> {
        match self.given {
            Some(Scales::Host(scales, zero_points)) => Some((scales, zero_points)),
            _ => None,
        }
    }

    pub(super) fn dequantizes(&self) -> bool {
        self.operation == Operation::Dequantize
    }

    /// How often the source is gone through, and for what.
    fn passes(&self, share_units: bool) -> &'static [Pass] {
        // Scales follow from ranges piece by piece, so that only ranges are kept of all units.
        match (self.operation, self.given) {
            (Operation::Dequantize, _) => &[&[Operation::Dequantize]],
            (_, Some(Scales::Observed(_))) => &[&[Operation::Scales, Operation::QuantizeWithScales]],
            (_, Some(_)) => &[&[Operation::QuantizeWithScales]],
            _ if share_units => &[&[Operation::Ranges], &[Operation::Scales, Operation::QuantizeWithScales]],
            _ => &[&[Operation::Quantize]],
        }
    }
}

/// How a tensor is cut, and the sizes of all buffers.
pub(super) struct Fitted {
    pub(super) pieces: Pieces,
    pub(super) passes: &'static [Pass],
    pub(super) works: Vec<Work>,
    pub(super) slots: usize,
    /// Of the ranges of all units, where they reach over pieces.
    pub(super) ranges_bytes: u64,
    pub(super) buffers: Vec<(Role, u64)>,
    pub(super) upload: Sections,
    pub(super) download: Sections,
}

/// Parts of a staging buffer, each for a role.
pub(super) struct Sections {
    pub(super) parts: Vec<(Role, u64)>,
    pub(super) bytes: u64,
}

impl Sections {
    fn new(roles: &[Role], largest: impl Fn(Role) -> u64) -> Self {
        let mut bytes = 0;
        let mut parts = vec![];
        for &role in roles.iter().filter(|&&role| largest(role) > 0) {
            parts.push((role, bytes));
            bytes += whole_bytes(largest(role));
        }
        Self { parts, bytes: whole_bytes(bytes) }
    }

    pub(super) fn at(&self, role: Role) -> Option<u64> {
        self.parts.iter().find(|part| part.0 == role).map(|part| part.1)
    }
}

/// Whole vectors, and at least one: nothing is bound or mapped of no bytes.
fn whole_bytes(bytes: u64) -> u64 {
    bytes.max(16).next_multiple_of(16)
}

/// What the smallest pieces hold: 8 codes of any width are whole words.
const LEAST_ELEMS: usize = 8;

/// Every role's buffer that a slot may have.
const ROLES: [Role; 7] =
    [Role::Input, Role::Output, Role::Scales, Role::ZeroPoints, Role::Counts, Role::Ranges, Role::Scratch];

impl Stream<'_> {
    /// The same with at most so many bytes: of buffers on the device and on the way there and back, and of vectors here, the
    /// returned ones included. Compiled kernels and what wgpu keeps beside its buffers are not counted.
    pub fn budget_bytes(self, budget_bytes: u64) -> Self {
        Self { budget_bytes, ..self }
    }

    /// The same through so many slots, 2 and more: pieces that may be on their way at once.
    pub fn ring(self, ring: usize) -> Self {
        Self { ring, ..self }
    }

    /// Quantizes what `read` gives and hands the codes to `write`; blocks.
    ///
    /// Codes, scales, zero points and counts are those of [`cpu::quantize`](crate::cpu::quantize) of the whole tensor, whose
    /// documentation says what becomes of NaN and of empty tensors. The loss that the specification asks for is not
    /// computed.
    ///
    /// `read(offset, bytes)` fills `bytes` with those of the source from byte `offset` on; the source is the tensor dense and
    /// row-major, in this machine's byte order. It is called in order, on the calling thread. Where range units reach over
    /// several pieces, the source is read twice, from its begin. `write` gets all codes, as [`code_bytes`] counts them, in
    /// order and piece by piece, on a thread of its own.
    ///
    /// # Errors
    /// Those of the CPU path. The first error of `read` or `write`; the other is called at most for pieces that were on
    /// their way then. [`Error::TooSmall`] when not even the smallest pieces fit the budget, and of a ring of less than 2.
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Timeout`] and [`Error::Gpu`] when
    /// the device cannot.
    ///
    /// ```no_run
    /// use wgpu_quant::{ElemType, Gpu, Scheme, Spec, gpu::Select};
    /// let gpu = Gpu::open(&Select::from_env())?;
    /// let (shape, mut codes) = ([1 << 15, 1 << 16], vec![]);
    /// // A tensor that nobody holds: each element is the low part of its number.
    /// let read = |offset, bytes: &mut [u8]| {
    ///     for (i, bytes) in (offset / 4..).zip(bytes.chunks_exact_mut(4)) {
    ///         bytes.copy_from_slice(&f32::from(i as u16).to_ne_bytes());
    ///     }
    ///     Ok(())
    /// };
    /// let write = |bytes: &[u8]| Ok(codes.extend_from_slice(bytes));
    /// let out = gpu.stream(&shape, &Spec::new(Scheme::INT8_ABSMAX)).quantize(ElemType::F32, read, write)?;
    /// assert_eq!((out.scales.len(), codes.len()), (1, 1 << 31));
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn quantize(
        &self,
        elem_type: ElemType,
        read: impl FnMut(u64, &mut [u8]) -> Result<()>,
        write: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<Computed<Streamed>> {
        let out = self.run(&Task { operation: Operation::Quantize, elem_type, given: None }, read, write)?;
        Ok(Computed { value: out, device: self.gpu.info.clone() })
    }

    /// Quantizes what `read` gives with these scales and zero points, and hands the codes to `write`; blocks.
    ///
    /// All is that of [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales) of the whole tensor. `read` and `write`
    /// are called as by [`quantize`](Self::quantize), and the source is read once.
    ///
    /// # Errors
    /// Those of [`Gpu::quantize_with_scales`] and of [`quantize`](Self::quantize).
    ///
    /// ```no_run
    /// use wgpu_quant::gpu::{Scales, Select};
    /// use wgpu_quant::{ElemType, Gpu, Scheme, Spec};
    /// let gpu = Gpu::open(&Select::from_env())?;
    /// let stream = gpu.stream(&[1 << 31], &Spec::new(Scheme::UINT8_AFFINE)).budget_bytes(64 << 20);
    /// let zeros = |_, bytes: &mut [u8]| Ok(bytes.fill(0));
    /// let write = |codes: &[u8]| Ok(assert!(codes.iter().all(|&code| code == 128)));
    /// stream.quantize_with_scales(ElemType::Bf16, Scales::Host(&[0.5], &[128]), zeros, write)?;
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn quantize_with_scales(
        &self,
        elem_type: ElemType,
        scales: Scales<'_>,
        read: impl FnMut(u64, &mut [u8]) -> Result<()>,
        write: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<Computed<Streamed>> {
        let given = Some(scales);
        let out = self.run(&Task { operation: Operation::QuantizeWithScales, elem_type, given }, read, write)?;
        Ok(Computed { value: out, device: self.gpu.info.clone() })
    }

    /// De-quantizes the codes that `read` gives and hands the values to `write`; blocks.
    ///
    /// The values are those of [`cpu::dequantize`](crate::cpu::dequantize) of the whole tensor, f32 in this machine's byte
    /// order. `read` and `write` are called as by [`quantize`](Self::quantize); the source is the codes, as
    /// [`code_bytes`] counts them, and is read once.
    ///
    /// # Errors
    /// Those of [`Quantized::from_parts`](crate::Quantized::from_parts) about scales and zero points, and those of
    /// [`quantize`](Self::quantize).
    ///
    /// ```no_run
    /// use wgpu_quant::{Gpu, Scheme, Spec, gpu::Select};
    /// let gpu = Gpu::open(&Select::from_env())?;
    /// let stream = gpu.stream(&[1 << 31], &Spec::new(Scheme::INT4_ABSMAX));
    /// let ones = |_, bytes: &mut [u8]| Ok(bytes.fill(0x11));
    /// let write = |values: &[u8]| Ok(assert!(values.chunks(4).all(|value| value == 0.5f32.to_ne_bytes())));
    /// stream.dequantize(&[0.5], &[], ones, write)?;
    /// # Ok::<(), wgpu_quant::Error>(())
    /// ```
    pub fn dequantize(
        &self,
        scales: &[f32],
        zero_points: &[i32],
        read: impl FnMut(u64, &mut [u8]) -> Result<()>,
        write: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<()> {
        let (elem_type, given) = (ElemType::F32, Some(Scales::Host(scales, zero_points)));
        self.run(&Task { operation: Operation::Dequantize, elem_type, given }, read, write).map(|_| ())
    }

    fn run(
        &self,
        task: &Task<'_>,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
        write: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<Streamed> {
        let units = self.spec.units(&self.shape)?;
        call::check(self.gpu, &self.spec, units, task.given)?;
        if self.ring < 2 {
            return Err(Error::TooSmall { what: "the ring in slots", found: self.ring as u64, enough: 2 });
        }
        let fitted = self.fitted(task, units)?;
        let (to_write, views) = channel();
        let (note, written) = channel();
        std::thread::scope(|scope| {
            let writer = std::thread::Builder::new()
                .name("wgpu-quant write".to_owned())
                .spawn_scoped(scope, move || write_views(&views, &note, write))
                .map_err(|e| Error::Gpu { message: format!("no thread to write from: {e}") })?;
            // Owns what the writer waits for, so that it ends when this does.
            let ours = Ring::new(self, task, units, &fitted, to_write, written)
                .map_err(Some)
                .and_then(|ring| ring.run(task, &mut read));
            if ours.is_err() {
                // What wgpu itself writes into new buffers would wait for a submission that may never come.
                let scopes = Scopes::open(&self.gpu.device, &self.gpu.state);
                self.gpu.queue.submit([]);
                // The error that is known explains more.
                let _ = scopes.check();
            }
            let theirs = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (ours, theirs) {
                (Ok(out), Ok(())) if task.dequantizes() => Ok(out),
                // What a caller's buffers held is known now.
                (Ok(out), Ok(())) => check_given(self.spec.scheme, units, &out.scales, &out.zero_points).map(|()| out),
                (Err(Some(error)), _) | (_, Err(error)) => Err(error),
                (Err(None), Ok(())) => Err(Error::Gpu { message: "the writing thread ended early".to_owned() }),
            }
        })
    }

    /// The largest pieces that the budget allows.
    fn fitted(&self, task: &Task<'_>, units: RangeUnits) -> Result<Fitted> {
        let scheme = self.spec.scheme;
        let (bits, all) = (scheme.code().bits(), units.elems());
        // Whatever is counted in bytes below fits.
        code_bytes(&self.shape, scheme.code())?;
        if all.checked_mul(8).is_none() {
            return Err(Error::ShapeOverflow { shape: self.shape.clone() });
        }
        let unit_words = u64::from(!scheme.is_cast()) + u64::from(scheme.has_zero_point());
        let returned_bytes = if task.dequantizes() { 0 } else { (4 * unit_words).saturating_mul(units.units as u64) };
        if all == 0 && returned_bytes >= self.budget_bytes {
            // There may be more units than anything can hold. Kernels take less than 32 bytes for each that is returned.
            let enough = returned_bytes.saturating_add(1 << 10).saturating_mul(32);
            return Err(Error::TooSmall { what: "the budget in bytes", found: self.budget_bytes, enough });
        }
        let cut = |most| {
            let fitted =
                self.planned(task, units, Pieces::new(&self.shape, self.spec.granularity, units, bits, most))?;
            let bytes = fitted.bytes().saturating_add(returned_bytes);
            Ok::<_, Error>((fitted, bytes))
        };
        // Pieces take as much again on their way; what they need beside that makes them smaller step by step.
        let elem_bytes = 2 * (task.elem_type.bytes() as u64 + 1);
        let most = self.budget_bytes / (elem_bytes * self.ring as u64);
        let mut most = usize::try_from(most).unwrap_or(usize::MAX);
        while most > LEAST_ELEMS {
            most = match cut(most) {
                Ok((fitted, bytes)) if bytes <= self.budget_bytes => return Ok(fitted),
                Ok((fitted, bytes)) => {
                    let fixed_bytes = bytes - fitted.ring_bytes();
                    let left = u128::from(self.budget_bytes.saturating_sub(fixed_bytes));
                    let fits = left * most as u128 / u128::from(fitted.ring_bytes());
                    usize::try_from(fits).unwrap_or(most).min(most - 1)
                }
                // More than a buffer, a binding or a dispatch can hold.
                Err(Error::TooLarge { .. }) => most / 2,
                Err(error) => return Err(error),
            };
        }
        // The smallest pieces; and those that just hold a unit, which need no second pass and may take less.
        let (fitted, mut enough) = cut(LEAST_ELEMS)?;
        if enough <= self.budget_bytes {
            return Ok(fitted);
        }
        if units.inner_elems > LEAST_ELEMS && (units.inner_elems as u64) < enough {
            let (fitted, bytes) = cut(units.inner_elems)?;
            if bytes <= self.budget_bytes {
                return Ok(fitted);
            }
            enough = enough.min(bytes);
        }
        Err(Error::TooSmall { what: "the budget in bytes", found: self.budget_bytes, enough })
    }

    /// Plans for these pieces, and the buffers that they need.
    fn planned(&self, task: &Task<'_>, units: RangeUnits, pieces: Pieces) -> Result<Fitted> {
        let code = self.spec.scheme.code();
        let shares = !self.spec.scheme.is_cast() && pieces.share_units();
        let passes = task.passes(shares);
        let mut works = vec![];
        for (pass, operations) in passes.iter().enumerate() {
            for elems in pieces.lengths() {
                let (shape, granularity) = pieces.tensor(elems);
                let spec = self.spec.per(granularity);
                let codes = code_bytes(&shape, code)?;
                let (source_bytes, output_bytes) =
                    if task.dequantizes() { (codes, 4 * elems) } else { (elems * task.elem_type.bytes(), codes) };
                let output_bytes = (pass + 1 == passes.len()).then_some(output_bytes);
                let plan = |&operation| self.gpu.plan(operation, &spec, &shape, task.elem_type);
                let plans = operations.iter().map(plan).collect::<Result<_>>()?;
                let units = spec.units(&shape)?.units;
                works.push(Work { pass, elems, units, source_bytes, output_bytes, plans });
            }
        }
        let largest = |role: Role| works.iter().map(|work| work.bytes(role)).max().unwrap_or(0);
        let (up, down) = match (task.host().is_some(), task.dequantizes()) {
            (_, true) => (&[Role::Input, Role::Scales, Role::ZeroPoints][..], &[Role::Output][..]),
            (true, false) => (&[Role::Input, Role::Scales, Role::ZeroPoints][..], &[Role::Output, Role::Counts][..]),
            (false, false) => (&[Role::Input][..], &[Role::Output, Role::Counts, Role::Scales, Role::ZeroPoints][..]),
        };
        let (upload, download) = (Sections::new(up, largest), Sections::new(down, largest));
        let needed = |role: &Role| works.iter().any(|work| work.plans.iter().any(|plan| plan.need(*role).is_some()));
        let buffers: Vec<_> = ROLES.into_iter().filter(needed).map(|role| (role, whole_bytes(largest(role)))).collect();
        let ranges_bytes = if passes.len() > 1 { whole_bytes(8 * units.units as u64) } else { 0 };
        let allowed = self.gpu.limits.max_buffer_size;
        if ranges_bytes > allowed {
            return Err(Error::TooLarge { what: "the ranges of all units in bytes", found: ranges_bytes, allowed });
        }
        let bytes = buffers.iter().map(|buffer| buffer.1).chain([upload.bytes, download.bytes]);
        if let Some(found) = bytes.max().filter(|&bytes| bytes > allowed) {
            return Err(Error::TooLarge { what: "a piece's buffer in bytes", found, allowed });
        }
        let slots = self.ring.min(pieces.count());
        Ok(Fitted { pieces, passes, works, slots, ranges_bytes, buffers, upload, download })
    }
}

impl Fitted {
    fn bytes(&self) -> u64 {
        self.ring_bytes().saturating_add(self.ranges_bytes)
    }

    /// What grows with the pieces: the slots, and the room that is read into.
    fn ring_bytes(&self) -> u64 {
        let params = self.works.iter().flat_map(|work| &work.plans).map(Plan::params_bytes).sum::<u64>();
        let buffers = self.buffers.iter().map(|buffer| buffer.1).sum::<u64>();
        let slot = buffers + params + self.upload.bytes + self.download.bytes;
        (self.slots as u64).saturating_mul(slot).saturating_add(self.source_bytes() as u64)
    }

    pub(super) fn source_bytes(&self) -> usize {
        self.works.iter().map(|work| work.source_bytes).max().unwrap_or(0)
    }
}
