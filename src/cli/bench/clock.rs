//! Two clocks for what an adapter does: timestamps in its own passes, and the time on the wall from submission to the end.

use super::kernels::Dispatch;
use super::measure::{Case, Label, SAMPLE_SECONDS, Sample};
use std::time::Instant;
use wgpu_quant::gpu::Bound;
use wgpu_quant::{Error, Gpu, Result, wgpu};

/// Something that can be recorded again and again.
pub(super) enum Recording {
    Plan(Bound),
    Dispatches(Vec<Dispatch>),
    Copy { from: wgpu::Buffer, to: wgpu::Buffer, bytes: u64 },
}

impl Recording {
    fn record(&self, encoder: &mut wgpu::CommandEncoder, timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>) {
        match self {
            Self::Plan(bound) => bound.record_timed(encoder, timestamps),
            Self::Dispatches(dispatches) => {
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: timestamps };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
            }
            Self::Copy { from, to, bytes } => encoder.copy_buffer_to_buffer(from, 0, to, 0, *bytes),
        }
    }

    fn has_pass(&self) -> bool {
        !matches!(self, Self::Copy { .. })
    }
}

const MOST_REPEATS: usize = 500;

/// From here on what submission costs is nothing beside it.
const LONG_SECONDS: f64 = 0.1;

/// Recordings that do the same in different buffers, in turn.
struct Turns<'a> {
    gpu: &'a Gpu,
    recordings: Vec<Recording>,
    queries: Option<Queries>,
    repeats: usize,
    next: usize,
}

struct Queries {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staged: wgpu::Buffer,
}

pub(super) fn case<'a>(gpu: &'a Gpu, label: Label, recordings: Vec<Recording>) -> Case<'a> {
    let can = gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY);
    let queries = (can && recordings.iter().all(Recording::has_pass)).then(|| Queries::new(gpu.device()));
    let mut turns = Turns { gpu, recordings, queries, repeats: 0, next: 0 };
    Case { label, sample: Box::new(move || turns.sample()) }
}

impl Turns<'_> {
    /// What submission and waiting cost by themselves is the same for twice as many repeats, and falls out; where one takes
    /// long, it does not show.
    fn sample(&mut self) -> Result<Sample> {
        if self.repeats == 0 {
            self.repeats = self.calibrate()?;
        }
        let n = self.repeats;
        let (one, device) = self.run(n)?;
        if one > LONG_SECONDS * n as f64 {
            return Ok(Sample { wall: one / n as f64, device: device.map(|seconds| seconds / n as f64) });
        }
        let (two, device) = self.run(2 * n)?;
        // A busy machine can turn them round; then there is no difference to speak of.
        let wall = if two > one { (two - one) / n as f64 } else { two / (2 * n) as f64 };
        Ok(Sample { wall, device: device.map(|seconds| seconds / (2 * n) as f64) })
    }

    /// How many repeats fill a sample.
    fn calibrate(&mut self) -> Result<usize> {
        self.run(1)?;
        if self.run(1)?.0 > SAMPLE_SECONDS {
            return Ok(1);
        }
        let (two, six) = (self.run(2)?.0, self.run(6)?.0);
        let once = ((six - two) / 4.0).max(1e-6);
        Ok(((SAMPLE_SECONDS / once).ceil() as usize).clamp(1, MOST_REPEATS))
    }

    /// The seconds that so many take together, by both clocks.
    fn run(&mut self, repeats: usize) -> Result<(f64, Option<f64>)> {
        let (device, queue) = (self.gpu.device(), self.gpu.queue());
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for i in 0..repeats {
            let (first, last) = (i == 0, i + 1 == repeats);
            let timestamps =
                self.queries.as_ref().filter(|_| first || last).map(|queries| wgpu::ComputePassTimestampWrites {
                    query_set: &queries.set,
                    beginning_of_pass_write_index: first.then_some(0),
                    end_of_pass_write_index: last.then_some(1),
                });
            self.recordings[self.next].record(&mut encoder, timestamps);
            self.next = (self.next + 1) % self.recordings.len();
        }
        if let Some(queries) = &self.queries {
            encoder.resolve_query_set(&queries.set, 0..2, &queries.resolved, 0);
            encoder.copy_buffer_to_buffer(&queries.resolved, 0, &queries.staged, 0, Queries::BYTES);
        }
        let commands = encoder.finish();
        let started = Instant::now();
        queue.submit([commands]);
        wait(device)?;
        let wall = started.elapsed().as_secs_f64();
        let seconds = self.queries.as_ref().map(|queries| queries.seconds(device, queue)).transpose()?;
        Ok((wall, seconds))
    }
}

impl Queries {
    const BYTES: u64 = 16;

    fn new(device: &wgpu::Device) -> Self {
        let (ty, count) = (wgpu::QueryType::Timestamp, 2);
        let set = device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty, count });
        let buffer = |usage| {
            let (label, size, mapped_at_creation) = (None, Self::BYTES, false);
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let staged = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        Self { set, resolved, staged }
    }

    fn seconds(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<f64> {
        let bytes = mapped(device, &self.staged)?;
        let ticks: Vec<u64> = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        Ok(ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(queue.get_timestamp_period()) * 1e-9)
    }
}

pub(super) fn wait(device: &wgpu::Device) -> Result<()> {
    device.poll(wgpu::PollType::wait_indefinitely()).map(|_| ()).map_err(gpu_error)
}

/// What a buffer that can be mapped holds.
pub(super) fn mapped(device: &wgpu::Device, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
    wait(device)?;
    receiver.recv().map_err(gpu_error)?.map_err(gpu_error)?;
    let bytes = buffer.get_mapped_range(..).map_err(gpu_error)?.to_vec();
    buffer.unmap();
    Ok(bytes)
}

fn gpu_error(error: impl std::fmt::Display) -> Error {
    Error::Gpu { message: error.to_string() }
}

/// Fills buffers with zeros.
pub(super) fn clear<'b>(gpu: &Gpu, buffers: impl IntoIterator<Item = &'b wgpu::Buffer>) {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    buffers.into_iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
    gpu.queue().submit([encoder.finish()]);
}

/// Records it once and waits for it.
pub(super) fn once(gpu: &Gpu, recording: &Recording) -> Result<()> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    recording.record(&mut encoder, None);
    gpu.queue().submit([encoder.finish()]);
    wait(gpu.device())
}

/// Bytes that go to or from the device at a time.
const PIECE: usize = 64 << 20;

pub(super) fn upload(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        let mut whole = piece.to_vec();
        whole.resize(piece.len().next_multiple_of(4), 0);
        gpu.queue().write_buffer(buffer, (i * PIECE) as u64, &whole);
        gpu.queue().submit([]);
        wait(gpu.device())?;
    }
    Ok(())
}

/// The first bytes that a buffer holds.
pub(super) fn download(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: usize) -> Result<Vec<u8>> {
    let device = gpu.device();
    let size = (bytes.min(PIECE) as u64).next_multiple_of(4).max(4);
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staged = device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let mut found = Vec::with_capacity(bytes);
    while found.len() < bytes {
        let start = found.len() as u64;
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, start, &staged, 0, size.min(buffer.size() - start));
        gpu.queue().submit([encoder.finish()]);
        let piece = mapped(device, &staged)?;
        found.extend_from_slice(&piece[..piece.len().min(bytes - found.len())]);
    }
    Ok(found)
}
