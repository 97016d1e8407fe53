//! A stream's pieces on their way: the ring of their buffers, and who does what with them.
//!
//! All calls of wgpu are made by the calling thread: error scopes belong to a thread, and a backend whose context is one
//! (GL) cannot be waited for by one thread and used by another. The second thread touches mapped bytes only.

use super::Gpu;
use super::bind::Bound;
use super::call::Scales;
use super::job::{self, Scopes};
use super::plan::Plan;
use super::role::Role;
use super::state::Fault;
use super::stream::{Fitted, Sections, Stream, Streamed, Task, Work};
use crate::error::{Error, Result};
use crate::layout::RangeUnits;
use crate::pieces::Piece;
use crate::quantized::Counts;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use wgpu::BufferUsages;

/// What the writing thread does with what comes back, and how many bytes of it count.
pub(super) fn write_views(
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
pub(super) type Stop = Option<Error>;

pub(super) struct Ring<'a> {
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
    pub(super) fn new(
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
        let out = Streamed { scales, zero_points, counts: Counts::default(), loss: None };
        Ok(Self { gpu, fitted, ranges, idle, flying: VecDeque::new(), to_write, written, out })
    }

    pub(super) fn run(
        mut self,
        task: &Task<'_>,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Streamed, Stop> {
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
                    self.out.counts.merge(found);
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
