//! Tensors piece by piece, through a ring of buffers: what lies on the host, in a file or beyond the device's memory.
//!
//! All calls of wgpu are made by the calling thread: error scopes belong to a thread, and a backend whose context is one
//! (GL) cannot be waited for by one thread and used by another. The second thread touches mapped bytes only.

use super::Gpu;
use super::bind::Bound;
use super::call::{self, Scales};
use super::job::{self, Scopes};
use super::pieces::{Piece, Pieces};
use super::plan::Plan;
use super::role::{Operation, Role};
use super::state::Fault;
use crate::device::Computed;
use crate::error::{Error, Result};
use crate::layout::RangeUnits;
use crate::quantized::{Counts, LossDetail, Spec, check_given, code_bytes};
use crate::tensor::ElemType;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use wgpu::BufferUsages;

/// What streaming a tensor gives beside its codes, which were written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Streamed {
    /// One scale per range unit; none of a cast.
    pub scales: Vec<f32>,
    /// One zero point per range unit, where the scheme has them.
    pub zero_points: Vec<i32>,
    /// Elements out of the ordinary.
    pub counts: Counts,
}

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
    gpu: &'g Gpu,
    shape: Vec<usize>,
    spec: Spec,
    budget_bytes: u64,
    ring: usize,
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
struct Work {
    pass: usize,
    elems: usize,
    units: usize,
    source_bytes: usize,
    /// What is written; `None` of a pass that only looks.
    output_bytes: Option<usize>,
    plans: Vec<Plan>,
}

impl Work {
    /// What its operations need of a role's buffer.
    fn bytes(&self, role: Role) -> u64 {
        self.plans.iter().filter_map(|plan| plan.need(role)).map(|need| need.bytes).max().unwrap_or(0)
    }
}

/// What is done with a tensor.
struct Task<'a> {
    operation: Operation,
    elem_type: ElemType,
    given: Option<Scales<'a>>,
}

impl<'a> Task<'a> {
    /// Scales and zero points that go to the device with their pieces.
    fn host(&self) -> Option<(&'a [f32], &'a [i32])> {
        match self.given {
            Some(Scales::Host(scales, zero_points)) => Some((scales, zero_points)),
            _ => None,
        }
    }

    fn dequantizes(&self) -> bool {
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
struct Fitted {
    pieces: Pieces,
    passes: &'static [Pass],
    works: Vec<Work>,
    slots: usize,
    /// Of the ranges of all units, where they reach over pieces.
    ranges_bytes: u64,
    buffers: Vec<(Role, u64)>,
    upload: Sections,
    download: Sections,
}

/// Parts of a staging buffer, each for a role.
struct Sections {
    parts: Vec<(Role, u64)>,
    bytes: u64,
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

    fn at(&self, role: Role) -> Option<u64> {
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

    fn source_bytes(&self) -> usize {
        self.works.iter().map(|work| work.source_bytes).max().unwrap_or(0)
    }
}

/// What the writing thread does with what comes back, and how many bytes of it count.
fn write_views(
    views: &Receiver<(wgpu::BufferView, usize)>,
    note: &Sender<()>,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    for (view, bytes) in views {
        if bytes > 0 {
            write(&view[..bytes])?;
        }
        drop(view);
        if note.send(()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Resolves when a buffer is mapped.
type Mapped = Receiver<Result<(), wgpu::BufferAsyncError>>;

/// The buffers of a piece on its way.
struct Slot {
    upload: wgpu::Buffer,
    download: wgpu::Buffer,
    buffers: Vec<(Role, wgpu::Buffer)>,
    /// For each work its operations.
    bound: Vec<Vec<Bound>>,
}

impl Slot {
    fn buffer(&self, role: Role) -> Option<&wgpu::Buffer> {
        self.buffers.iter().find(|buffer| buffer.0 == role).map(|buffer| &buffer.1)
    }
}

/// A piece on its way.
struct Flight {
    slot: Slot,
    piece: Piece,
    work: usize,
    index: wgpu::SubmissionIndex,
    uploaded: Mapped,
    /// `None` where nothing comes back, and once it is with the writer.
    downloaded: Option<Mapped>,
}

/// Why the calling thread stops: an error, or nothing of its own but that the writer has stopped.
type Stop = Option<Error>;

struct Ring<'a> {
    gpu: &'a Gpu,
    fitted: &'a Fitted,
    /// The ranges of all units, where they reach over pieces or were observed.
    ranges: Option<wgpu::Buffer>,
    idle: Vec<Slot>,
    flying: VecDeque<Flight>,
    to_write: Sender<(wgpu::BufferView, usize)>,
    written: Receiver<()>,
    out: Streamed,
}

impl<'a> Ring<'a> {
    fn new(
        stream: &Stream<'a>,
        task: &Task<'_>,
        units: RangeUnits,
        fitted: &'a Fitted,
        to_write: Sender<(wgpu::BufferView, usize)>,
        written: Receiver<()>,
    ) -> Result<Self> {
        let gpu = stream.gpu;
        let idle = (0..fitted.slots).map(|_| Slot::new(gpu, fitted)).collect::<Result<_>>()?;
        // New buffers are zeros, which is nothing seen.
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let ranges = match (task.given, fitted.ranges_bytes) {
            (Some(Scales::Observed(observed)), _) => Some(observed.keys().clone()),
            (_, 0) => None,
            (_, bytes) => Some(create(gpu, "ranges", bytes, usage)?),
        };
        let scheme = stream.spec.scheme;
        let of_units = |is_there: bool| if is_there { units.units } else { 0 };
        let (scales, zero_points) = match task.host() {
            _ if task.dequantizes() => (vec![], vec![]),
            Some((scales, zero_points)) => (scales.to_vec(), zero_points.to_vec()),
            None => (vec![0.0; of_units(!scheme.is_cast())], vec![0; of_units(scheme.has_zero_point())]),
        };
        let out = Streamed { scales, zero_points, counts: Counts::default() };
        Ok(Self { gpu, fitted, ranges, idle, flying: VecDeque::new(), to_write, written, out })
    }

    fn run(mut self, task: &Task<'_>, read: &mut impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Streamed, Stop> {
        let Fitted { pieces, passes, works, .. } = self.fitted;
        // wgpu lets nobody read into mapped memory.
        let mut room = vec![0u8; self.fitted.source_bytes()];
        for pass in 0..passes.len() {
            let mut offset = 0;
            for i in 0..pieces.count() {
                let piece = pieces.get(i);
                let is_its = |work: &Work| work.pass == pass && work.elems == piece.elems.len();
                let work = works.iter().position(is_its).expect("every length has its work");
                let source = &mut room[..works[work].source_bytes];
                if !source.is_empty() {
                    read(offset, source)?;
                }
                offset += source.len() as u64;
                self.hand_over()?;
                let slot = self.slot()?;
                let flight = self.submit(slot, piece, work, task, source)?;
                self.flying.push_back(flight);
                self.hand_over()?;
            }
        }
        while !self.flying.is_empty() {
            self.land()?;
        }
        Ok(self.out)
    }

    /// A slot that nothing uses.
    fn slot(&mut self) -> Result<Slot, Stop> {
        match self.idle.pop() {
            Some(slot) => Ok(slot),
            None => self.land(),
        }
    }

    /// Gives the writer what has come back meanwhile.
    fn hand_over(&mut self) -> Result<(), Stop> {
        // A failure shows where it is waited for.
        let _ = job::poll(&self.gpu.device, wgpu::PollType::Poll);
        let Self { gpu, fitted, flying, to_write, .. } = self;
        for flight in flying {
            match flight.downloaded.as_ref().map(Receiver::try_recv) {
                None => {}
                Some(Err(TryRecvError::Empty)) => break,
                Some(Ok(Ok(()))) => flight.hand_over(gpu, fitted, to_write)?,
                Some(other) => return Err(Some(unmapped(gpu, &other))),
            }
        }
        Ok(())
    }

    /// Waits for the oldest piece until it is written.
    fn land(&mut self) -> Result<Slot, Stop> {
        let mut flight = self.flying.pop_front().expect("a slot is idle or flies");
        let timeout = self.gpu.timeout();
        let wait = |mapped: &Mapped| match mapped.recv_timeout(timeout) {
            Ok(Ok(())) => Ok(()),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(Error::Timeout { seconds: timeout.as_secs() }),
            other => Err(unmapped(self.gpu, &other)),
        };
        job::wait_for(&self.gpu.device, Some(flight.index.clone()), timeout)
            .map_err(|error| job::cause(&self.gpu.device, &self.gpu.state, error))?;
        wait(&flight.uploaded)?;
        if let Some(downloaded) = &flight.downloaded {
            wait(downloaded)?;
            flight.hand_over(self.gpu, self.fitted, &self.to_write)?;
        }
        if self.fitted.works[flight.work].output_bytes.is_none() {
            return Ok(flight.slot);
        }
        self.gpu.count_readback();
        // The writer is behind; its own failure is what stops this then.
        self.written.recv().map_err(|_| None)?;
        self.collect(&flight)?;
        let scopes = Scopes::open(&self.gpu.device, &self.gpu.state);
        flight.slot.download.unmap();
        scopes.check()?;
        Ok(flight.slot)
    }

    /// Takes what came back with the codes.
    fn collect(&mut self, flight: &Flight) -> Result<()> {
        let Flight { slot, piece, work, .. } = flight;
        let gpu = self.gpu;
        let work = &self.fitted.works[*work];
        for &(role, at) in &self.fitted.download.parts {
            let bytes = work.bytes(role);
            if role == Role::Output || bytes == 0 {
                continue;
            }
            let view = slot.download.get_mapped_range(at..at + bytes).map_err(|e| unmapped(gpu, &e))?;
            let words = view.as_chunks::<4>().0;
            let units = piece.first_unit..piece.first_unit + work.units;
            match role {
                Role::Counts => {
                    let words: Vec<u32> = words.iter().map(|&word| u32::from_ne_bytes(word)).collect();
                    let counting = work.plans.iter().find(|plan| plan.need(role).is_some());
                    let found = counting.map(|plan| plan.counts(&words)).unwrap_or_default();
                    let all = &mut self.out.counts;
                    all.clipped_elems += found.clipped_elems;
                    all.nan_elems += found.nan_elems;
                    all.inf_elems += found.inf_elems;
                }
                Role::Scales => {
                    for (scale, &word) in self.out.scales[units].iter_mut().zip(words) {
                        *scale = f32::from_ne_bytes(word);
                    }
                }
                _ => {
                    for (zero_point, &word) in self.out.zero_points[units].iter_mut().zip(words) {
                        *zero_point = i32::from_ne_bytes(word);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a piece on its way.
    fn submit(&self, slot: Slot, piece: Piece, work: usize, task: &Task<'_>, source: &[u8]) -> Result<Flight> {
        let Self { gpu, fitted, .. } = self;
        let of = &fitted.works[work];
        gpu.state.check_alive()?;
        let scopes = Scopes::open(&gpu.device, &gpu.state);
        let mut view = slot.upload.get_mapped_range_mut(..).map_err(|e| unmapped(gpu, &e))?;
        let units = piece.first_unit..piece.first_unit + of.units;
        for &(role, at) in &fitted.upload.parts {
            let bytes = match (role, task.host()) {
                (Role::Scales, Some((scales, _))) => bytemuck::cast_slice(&scales[units.clone()]),
                (Role::ZeroPoints, Some((_, zero_points))) => bytemuck::cast_slice(&zero_points[units.clone()]),
                _ => source,
            };
            view.slice(at as usize..at as usize + bytes.len()).copy_from_slice(bytes);
        }
        drop(view);
        slot.upload.unmap();
        let mut encoder =
            gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgpu-quant piece") });
        let copies = |sections: &'a Sections| sections.parts.iter().map(|&(role, at)| (role, at, of.bytes(role)));
        for (role, at, bytes) in copies(&fitted.upload).filter(|copy| copy.2 > 0) {
            if let Some(to) = slot.buffer(role) {
                encoder.copy_buffer_to_buffer(&slot.upload, at, to, 0, bytes);
            }
        }
        if let Some(Scales::Device(scales, zero_points)) = task.given {
            let of_role = [(Role::Scales, Some(scales)), (Role::ZeroPoints, zero_points)];
            for (role, from) in of_role.into_iter().filter(|(role, _)| of.bytes(*role) > 0) {
                if let Some((from, to)) = from.zip(slot.buffer(role)) {
                    encoder.copy_buffer_to_buffer(from, 4 * piece.first_unit as u64, to, 0, of.bytes(role));
                }
            }
        }
        let (ranges_at, ranges_bytes) = (8 * piece.first_unit as u64, 8 * of.units as u64);
        let ranges = self.ranges.as_ref().zip(slot.buffer(Role::Ranges));
        if let Some((all, own)) = ranges {
            encoder.copy_buffer_to_buffer(all, ranges_at, own, 0, ranges_bytes);
        }
        for bound in &slot.bound[work] {
            bound.record(&mut encoder);
        }
        if let (Some((all, own)), None) = (ranges, of.output_bytes) {
            encoder.copy_buffer_to_buffer(own, 0, all, ranges_at, ranges_bytes);
        }
        for (role, at, bytes) in copies(&fitted.download).filter(|copy| copy.2 > 0) {
            if let Some(from) = slot.buffer(role) {
                encoder.copy_buffer_to_buffer(from, 0, &slot.download, at, bytes);
            }
        }
        let index = gpu.queue.submit([encoder.finish()]);
        gpu.count_submission();
        let uploaded = map(gpu, &slot.upload, wgpu::MapMode::Write);
        let downloaded = of.output_bytes.map(|_| map(gpu, &slot.download, wgpu::MapMode::Read));
        scopes.check()?;
        Ok(Flight { slot, piece, work, index, uploaded, downloaded })
    }
}

impl Slot {
    fn new(gpu: &Gpu, fitted: &Fitted) -> Result<Self> {
        let storage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let upload = create(gpu, "upload", fitted.upload.bytes, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC)?;
        let download = create(gpu, "download", fitted.download.bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let buffers = fitted.buffers.iter().map(|&(role, bytes)| Ok((role, create(gpu, "piece", bytes, storage)?)));
        let buffers: Vec<(Role, wgpu::Buffer)> = buffers.collect::<Result<_>>()?;
        let bind = |plan: &Plan| {
            let of_plan = buffers.iter().filter(|(role, _)| plan.need(*role).is_some());
            plan.bind(&of_plan.map(|(role, buffer)| (*role, buffer, 0)).collect::<Vec<_>>())
        };
        let bound = fitted.works.iter().map(|work| work.plans.iter().map(bind).collect()).collect::<Result<_>>()?;
        Ok(Self { upload, download, buffers, bound })
    }
}

impl Flight {
    fn hand_over(
        &mut self,
        gpu: &Gpu,
        fitted: &Fitted,
        to_write: &Sender<(wgpu::BufferView, usize)>,
    ) -> Result<(), Stop> {
        let at = fitted.download.at(Role::Output).unwrap_or(0);
        let bytes = fitted.works[self.work].output_bytes.unwrap_or(0);
        let end = at + (bytes as u64).next_multiple_of(4).max(4);
        let view = self.slot.download.get_mapped_range(at..end).map_err(|e| unmapped(gpu, &e))?;
        self.downloaded = None;
        to_write.send((view, bytes)).map_err(|_| None)
    }
}

/// A buffer; one to write from is mapped.
fn create(gpu: &Gpu, what: &str, size: u64, usage: BufferUsages) -> Result<wgpu::Buffer> {
    gpu.state.check_alive()?;
    let scopes = Scopes::open(&gpu.device, &gpu.state);
    let buffer = scopes.buffer(&wgpu::BufferDescriptor {
        label: Some(&format!("wgpu-quant {what}")),
        size,
        usage,
        mapped_at_creation: usage.contains(BufferUsages::MAP_WRITE),
    });
    scopes.check()?;
    Ok(buffer)
}

fn map(gpu: &Gpu, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Mapped {
    let (sender, mapped) = channel();
    buffer.map_async(mode, .., move |result| {
        // Nobody waits for it after an error elsewhere.
        let _ = sender.send(result);
    });
    if gpu.state.fails(Fault::Mapping) {
        buffer.unmap();
    }
    mapped
}

/// Why a buffer's bytes cannot be reached; of a lost device that.
fn unmapped(gpu: &Gpu, found: &impl std::fmt::Debug) -> Error {
    job::cause(&gpu.device, &gpu.state, Error::Gpu { message: format!("a result could not be mapped: {found:?}") })
}
