//! One call's work on the device: dispatches and copies gathered, submitted at once, read back at once.

use super::Gpu;
use super::bind::Bound;
use super::params::Params;
use super::shader::{Kernel, Program};
use super::state::{Fault, State};
use crate::error::{Error, Result};
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use std::any::Any;
use std::cell::Cell;
use std::future::{Future, ready};
use std::num::NonZeroU64;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::time::{Duration, Instant};

/// What a dispatch covers: invocations enough for this many workgroups. `B` is a buffer, or stands for one.
pub(super) struct Dispatch<B = wgpu::Buffer> {
    pub(super) program: Program,
    pub(super) params: Params,
    pub(super) buffers: Vec<(u32, B)>,
    pub(super) workgroups: u64,
}

impl<B: Clone> Dispatch<B> {
    pub(super) fn new(program: Program, params: Params, buffers: &[(u32, &B)], workgroups: u64) -> Self {
        let buffers = buffers.iter().map(|&(binding, buffer)| (binding, buffer.clone())).collect();
        Self { program, params, buffers, workgroups }
    }
}

type Scope = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

/// Open error scopes, one per kind of error; they must close in reverse order, on the thread that opened them. All
/// buffers are created within.
pub(super) struct Scopes<'d> {
    device: &'d wgpu::Device,
    state: &'d State,
    guards: Vec<wgpu::ErrorScopeGuard>,
    /// Whether a creation was made to fail.
    failed: Cell<bool>,
}

impl<'d> Scopes<'d> {
    pub(super) fn open(device: &'d wgpu::Device, state: &'d State) -> Self {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let guards = [Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter)).into();
        Self { device, state, guards, failed: Cell::new(false) }
    }

    /// Creates a buffer: every one of this library.
    ///
    /// For want of memory wgpu gives an invalid buffer and an error. So does a failure that a test asks for.
    pub(super) fn buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> wgpu::Buffer {
        if !self.state.fails(Fault::Buffer) {
            return self.device.create_buffer(descriptor);
        }
        self.failed.set(true);
        let unheard = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let usage = descriptor.usage | wgpu::BufferUsages::from_bits_retain(1 << 31);
        let invalid = self.device.create_buffer(&wgpu::BufferDescriptor { usage, ..descriptor.clone() });
        drop(unheard);
        invalid
    }

    /// Bytes on their way into a buffer, by a buffer of their own: for want of memory in `write_buffer`, wgpu would give up
    /// the device, and what that has written would wait for a submission that may never come.
    fn upload(&self, bytes: &[u8], to: &wgpu::Buffer) -> Copy {
        let from = self.buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant upload"),
            // Copies are whole words; codes may end inside one.
            size: (bytes.len() as u64).next_multiple_of(4),
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        // A creation that failed is heard of later.
        if let Ok(mut view) = from.get_mapped_range_mut(..) {
            view.slice(..bytes.len()).copy_from_slice(bytes);
        }
        from.unmap();
        let bytes = from.size();
        Copy { from, from_byte: 0, to: to.clone(), bytes }
    }

    fn close(mut self) -> Vec<Scope> {
        let injected = self.failed.get().then(|| {
            let source = "a test asked for it".into();
            Box::pin(ready(Some(wgpu::Error::OutOfMemory { source }))) as Scope
        });
        let closed = std::iter::from_fn(|| self.guards.pop()).map(|scope| Box::pin(scope.pop()) as Scope);
        injected.into_iter().chain(closed).collect()
    }

    /// Closes them, with the first error that they caught or what is behind it. Native scopes have their errors at once.
    pub(super) fn check(self) -> Result<()> {
        let (device, state) = (self.device, self.state);
        match pollster::block_on(first_error(self.close())) {
            Err(error) => Err(cause(device, state, error)),
            // What a lost device makes is invalid, and no scope hears of it.
            Ok(()) if is_lost(device) => Err(loss(device, state)),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Scopes<'_> {
    fn drop(&mut self) {
        while self.guards.pop().is_some() {}
    }
}

/// What is behind an error: a lost device fails everything, in other words.
pub(super) fn cause(device: &wgpu::Device, state: &State, error: Error) -> Error {
    match error {
        Error::Gpu { .. } if state.check_alive().is_ok() && is_lost(device) => loss(device, state),
        Error::DeviceLost { message } => {
            state.lose(message.clone());
            Error::DeviceLost { message }
        }
        _ => state.check_alive().err().unwrap_or(error),
    }
}

/// The error of a lost device. Of its own device the callback knows more, which wgpu makes when it is polled.
fn loss(device: &wgpu::Device, state: &State) -> Error {
    let _ = poll(device, wgpu::PollType::Poll);
    let message = "it gives no buffers any more".to_owned();
    state.check_alive().err().unwrap_or_else(|| {
        state.lose(message.clone());
        Error::DeviceLost { message }
    })
}

/// Whether a device gives buffers that cannot be mapped though there is memory: it is lost then. wgpu has no other answer
/// for those who may not set a callback.
pub(super) fn is_lost(device: &wgpu::Device) -> bool {
    let unfailing = State::default();
    let scopes = Scopes::open(device, &unfailing);
    let probe = scopes.buffer(&wgpu::BufferDescriptor {
        label: Some("wgpu-quant probe"),
        size: 4,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let mapped = probe.get_mapped_range_mut(..).is_ok();
    !mapped && pollster::block_on(first_error(scopes.close())).is_ok()
}

/// Work that is being gathered. Every error of wgpu from here to `submit` is caught.
pub(super) struct Job<'g> {
    gpu: &'g Gpu,
    scopes: Scopes<'g>,
    copies: Vec<Copy>,
    dispatches: Vec<Dispatch>,
    recordings: Vec<Bound>,
    reads: Vec<(wgpu::Buffer, usize)>,
}

/// Bytes to copy on the device before the first dispatch.
struct Copy {
    from: wgpu::Buffer,
    from_byte: u64,
    to: wgpu::Buffer,
    bytes: u64,
}

/// A buffer that is being mapped, and how many of its bytes count.
struct Mapping {
    buffer: wgpu::Buffer,
    bytes: usize,
    done: OneshotReceiver<Result<(), wgpu::BufferAsyncError>>,
}

/// Submitted work.
pub(super) struct Pending {
    device: wgpu::Device,
    queue: wgpu::Queue,
    scopes: Vec<Scope>,
    index: Option<wgpu::SubmissionIndex>,
    mapped: Vec<Mapping>,
    kernels: Vec<Kernel>,
    timestamp_period: f32,
}

/// Submitted work of which nothing is read.
#[derive(Debug)]
pub(super) struct InFlight {
    index: Option<wgpu::SubmissionIndex>,
    done: OneshotReceiver<()>,
}

impl InFlight {
    /// Blocks until the device is done with it.
    pub(super) fn wait(self, gpu: &Gpu) -> Result<()> {
        wait_for(&gpu.device, self.index, gpu.timeout())
    }

    /// The same without blocking, polled by whoever polls [`Pending::finished`].
    pub(super) async fn finished(self, gpu: &Gpu) -> Result<()> {
        if gpu.is_own {
            return waited_for(&gpu.device, self.index, gpu.timeout()).await;
        }
        self.done.receive().await;
        Ok(())
    }
}

/// What came back: each read's bytes, and the kernels' times if they were taken.
pub(super) struct Finished {
    buffers: Vec<(wgpu::Buffer, usize)>,
    pub(super) times: Vec<(Kernel, f64)>,
}

impl<'g> Job<'g> {
    pub(super) fn new(gpu: &'g Gpu) -> Result<Self> {
        gpu.state.check_alive()?;
        let scopes = Scopes::open(&gpu.device, &gpu.state);
        let (copies, dispatches, recordings, reads) = Default::default();
        Ok(Self { gpu, scopes, copies, dispatches, recordings, reads })
    }

    /// A zeroed storage buffer of this many bytes, rounded up to whole vectors.
    pub(super) fn buffer(&self, what: &'static str, bytes: usize) -> Result<wgpu::Buffer> {
        let size = (bytes.max(1) as u64).next_multiple_of(16);
        let allowed = self.gpu.max_buffer_bytes();
        if size > allowed {
            return Err(Error::TooLarge { what, found: size, allowed });
        }
        Ok(self.scopes.buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-quant {what}")),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        }))
    }

    /// The same, holding these bytes.
    pub(super) fn upload(&mut self, what: &'static str, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let to = self.buffer(what, bytes.len())?;
        if !bytes.is_empty() {
            self.copies.push(self.scopes.upload(bytes, &to));
        }
        Ok(to)
    }

    /// The same, holding these bytes of a caller's buffer.
    pub(super) fn copy(
        &mut self,
        what: &'static str,
        from: &wgpu::Buffer,
        bytes: Range<usize>,
    ) -> Result<wgpu::Buffer> {
        let to = self.buffer(what, bytes.len())?;
        let (from_byte, bytes) = (bytes.start as u64, bytes.len() as u64);
        self.copies.push(Copy { from: from.clone(), from_byte, to: to.clone(), bytes });
        Ok(to)
    }

    pub(super) fn dispatch(&mut self, dispatch: Dispatch) {
        self.dispatches.push(dispatch);
    }

    /// Adds a recording, which comes after all dispatches.
    pub(super) fn record(&mut self, bound: Bound) {
        self.recordings.push(bound);
    }

    /// Asks for a buffer's first bytes, and returns the read's number.
    pub(super) fn read(&mut self, buffer: &wgpu::Buffer, bytes: usize) -> usize {
        self.reads.push((buffer.clone(), bytes));
        self.reads.len() - 1
    }

    /// Records everything into one command buffer and submits it.
    pub(super) fn submit(self) -> Result<Pending> {
        let Self { gpu, scopes, mut copies, dispatches, recordings, reads } = self;
        let (commands, staged) = record(gpu, &scopes, &mut copies, &dispatches, &recordings, &reads)?;
        let index = gpu.queue.submit([commands]);
        gpu.count_submission();
        let mapped = staged
            .into_iter()
            .map(|(buffer, bytes)| {
                let (sender, done) = oneshot_channel();
                buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The receiver may be gone: a future that was dropped.
                    let _ = sender.send(result);
                });
                if gpu.state.fails(Fault::Mapping) {
                    buffer.unmap();
                }
                Mapping { buffer, bytes, done }
            })
            .collect();
        let scopes = scopes.close();
        let timed = gpu.takes_timestamps();
        Ok(Pending {
            device: gpu.device.clone(),
            queue: gpu.queue.clone(),
            scopes,
            index: Some(index),
            mapped,
            kernels: if timed { dispatches.iter().map(|d| d.program.kernel).collect() } else { Vec::new() },
            timestamp_period: gpu.queue.get_timestamp_period(),
        })
    }
}

/// Each takes two queries, and that many fit in a set.
const MOST_TIMED: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

fn record(
    gpu: &Gpu,
    scopes: &Scopes<'_>,
    copies: &mut Vec<Copy>,
    dispatches: &[Dispatch],
    recordings: &[Bound],
    reads: &[(wgpu::Buffer, usize)],
) -> Result<(wgpu::CommandBuffer, Vec<(wgpu::Buffer, usize)>)> {
    let device = &gpu.device;
    let mut encoder =
        device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgpu-quant commands") });
    let slot = size_of::<Params>().next_multiple_of(gpu.limits.min_uniform_buffer_offset_alignment as usize);
    let mut uniforms = vec![0u8; slot * dispatches.len().max(1)];
    for (dispatch, place) in dispatches.iter().zip(uniforms.chunks_mut(slot)) {
        place[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(&dispatch.params));
    }
    let uniform = scopes.buffer(&wgpu::BufferDescriptor {
        label: Some("wgpu-quant params"),
        size: uniforms.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    copies.push(scopes.upload(&uniforms, &uniform));
    if gpu.takes_timestamps() && dispatches.len() > MOST_TIMED {
        let (found, allowed) = (dispatches.len() as u64, MOST_TIMED as u64);
        return Err(Error::TooLarge { what: "the number of dispatches that are timed", found, allowed });
    }
    let queries = (gpu.takes_timestamps() && !dispatches.is_empty()).then(|| {
        device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("wgpu-quant timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * u32_of(dispatches.len()),
        })
    });
    for Copy { from, from_byte, to, bytes } in copies.iter().filter(|copy| copy.bytes > 0) {
        encoder.copy_buffer_to_buffer(from, *from_byte, to, 0, *bytes);
    }
    let mut pass = None;
    for (i, dispatch) in dispatches.iter().enumerate() {
        let pipeline = gpu.pipeline(dispatch.program)?;
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &uniform,
                offset: (i * slot) as u64,
                size: NonZeroU64::new(size_of::<Params>() as u64),
            }),
        }];
        entries.extend(
            dispatch.buffers.iter().map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding: *binding,
                resource: buffer.as_entire_binding(),
            }),
        );
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&format!("wgpu-quant {}", dispatch.program.label())),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        if queries.is_some() || pass.is_none() {
            // A timed kernel is a pass of its own: timestamps inside passes do not exist everywhere.
            drop(pass.take());
            let begun = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgpu-quant pass"),
                timestamp_writes: queries.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(2 * u32_of(i)),
                    end_of_pass_write_index: Some(2 * u32_of(i) + 1),
                }),
            });
            pass = Some(begun.forget_lifetime());
        }
        if let Some(pass) = &mut pass {
            let (x, y) = grid(dispatch.workgroups, gpu.workgroups_per_dimension())?;
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(x, y, 1);
        }
    }
    drop(pass);
    for bound in recordings {
        bound.record(&mut encoder);
    }
    let staging = |size| {
        scopes.buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant staging"),
            size,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        })
    };
    let mut staged = Vec::new();
    for (buffer, bytes) in reads {
        // Copies are whole words, and there are no empty ones.
        let size = (*bytes as u64).next_multiple_of(4);
        let to = staging(size.max(4));
        if size > 0 {
            encoder.copy_buffer_to_buffer(buffer, 0, &to, 0, size);
        }
        staged.push((to, *bytes));
    }
    if let Some(queries) = &queries {
        let bytes = 16 * dispatches.len() as u64;
        let resolved = scopes.buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        encoder.resolve_query_set(queries, 0..queries.count(), &resolved, 0);
        let to = staging(bytes);
        encoder.copy_buffer_to_buffer(&resolved, 0, &to, 0, bytes);
        staged.push((to, 16 * dispatches.len()));
    }
    Ok((encoder.finish(), staged))
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).expect("a call makes few dispatches")
}

/// A grid of at least this many workgroups, and of fewer than one row more.
pub(super) fn grid(workgroups: u64, per_dimension: u32) -> Result<(u32, u32)> {
    let most = u64::from(per_dimension);
    let y = workgroups.div_ceil(most).max(1);
    let x = workgroups.div_ceil(y);
    match (u32::try_from(x), u32::try_from(y)) {
        (Ok(x), Ok(y)) if y <= per_dimension => Ok((x, y)),
        _ => Err(Error::TooLarge { what: "dispatch in workgroups", found: workgroups, allowed: most * most }),
    }
}

impl Pending {
    /// Checks what wgpu made of the work, and does not wait for it.
    pub(super) fn submitted(mut self) -> Result<InFlight> {
        // Native scopes have their errors at once.
        pollster::block_on(self.check_scopes())?;
        let (sender, done) = oneshot_channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver may be gone: nobody waits for this work.
            let _ = sender.send(());
        });
        // Frees what earlier work is done with. A failure shows when this work is waited for.
        let _ = poll(&self.device, wgpu::PollType::Poll);
        Ok(InFlight { index: self.index.take(), done })
    }

    /// Blocks until the device is done.
    pub(super) fn wait(mut self, gpu: &Gpu) -> Result<Finished> {
        // The scopes' errors explain more than what follows from them.
        pollster::block_on(self.check_scopes())?;
        wait_for(&self.device, self.index.take(), gpu.timeout())?;
        pollster::block_on(self.finish(gpu))
    }

    /// Resolves when the device is done, without blocking the thread that polls it.
    ///
    /// wgpu makes callbacks only while somebody polls the device. A device of our own is polled here, by a thread of its
    /// own; a caller's by the caller.
    pub(super) async fn finished(mut self, gpu: &Gpu) -> Result<Finished> {
        self.check_scopes().await?;
        if gpu.is_own {
            waited_for(&self.device, self.index.take(), gpu.timeout()).await?;
        }
        self.finish(gpu).await
    }

    async fn check_scopes(&mut self) -> Result<()> {
        first_error(std::mem::take(&mut self.scopes)).await
    }

    async fn finish(self, gpu: &Gpu) -> Result<Finished> {
        let mut buffers = Vec::with_capacity(self.mapped.len());
        for Mapping { buffer, bytes, done } in self.mapped {
            match done.receive().await {
                Some(Ok(())) => buffers.push((buffer, bytes)),
                Some(Err(_)) | None => {
                    return Err(Error::Gpu { message: "a result could not be mapped".to_owned() });
                }
            }
        }
        gpu.count_readback();
        let mut finished = Finished { buffers, times: Vec::new() };
        if !self.kernels.is_empty() {
            let ticks: Vec<u64> = finished.concat(&[finished.buffers.len() - 1])?;
            // Some drivers let the clock step back between passes.
            let seconds =
                |pair: &[u64]| pair[1].saturating_sub(pair[0]) as f64 * f64::from(self.timestamp_period) * 1e-9;
            finished.times = self.kernels.into_iter().zip(ticks.chunks(2).map(seconds)).collect();
        }
        Ok(finished)
    }
}

async fn first_error(scopes: Vec<Scope>) -> Result<()> {
    let mut first = Ok(());
    for scope in scopes {
        if let Some(error) = scope.await {
            let error = match error {
                wgpu::Error::OutOfMemory { source } => Error::OutOfMemory { message: source.to_string() },
                wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                    Error::Gpu { message: description }
                }
            };
            first = first.and(Err(error));
        }
    }
    first
}

/// Blocks until the device is done with a submission.
pub(super) fn wait_for(device: &wgpu::Device, index: Option<wgpu::SubmissionIndex>, timeout: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        match poll(device, wgpu::PollType::Wait { submission_index: index.clone(), timeout: Some(left) })? {
            Ok(_) => return Ok(()),
            // GL waits for two seconds at most.
            Err(wgpu::PollError::Timeout) if started.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(1).min(timeout));
            }
            Err(wgpu::PollError::Timeout) => return Err(Error::Timeout { seconds: timeout.as_secs() }),
            Err(error) => return Err(Error::Gpu { message: error.to_string() }),
        }
    }
}

/// The same in a thread of its own.
async fn waited_for(device: &wgpu::Device, index: Option<wgpu::SubmissionIndex>, timeout: Duration) -> Result<()> {
    let (sender, receiver) = oneshot_channel();
    let device = device.clone();
    std::thread::Builder::new()
        .name("wgpu-quant wait".to_owned())
        .spawn(move || {
            // The receiver may be gone: a future that was dropped.
            let _ = sender.send(wait_for(&device, index, timeout));
        })
        .map_err(|e| Error::Gpu { message: format!("no thread to wait for the device: {e}") })?;
    let ended_early = || Error::Gpu { message: "the wait for the device ended early".to_owned() };
    receiver.receive().await.unwrap_or_else(|| Err(ended_early()))
}

/// Polls a device, which panics where its driver has lost it: wgpu has no value for that. A caller's callback that panics
/// goes on panicking.
pub(super) fn poll(
    device: &wgpu::Device,
    how: wgpu::PollType,
) -> Result<std::result::Result<wgpu::PollStatus, wgpu::PollError>> {
    catch_unwind(AssertUnwindSafe(|| device.poll(how))).or_else(|panic| match text_of(&*panic) {
        Some(text) if text.starts_with("Error in Device::poll") => Err(Error::DeviceLost { message: text.to_owned() }),
        _ => resume_unwind(panic),
    })
}

fn text_of(panic: &dyn Any) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied())
}

impl Finished {
    /// What these reads hold, one after the other.
    pub(super) fn concat<T: bytemuck::Pod>(&self, reads: &[usize]) -> Result<Vec<T>> {
        let mut all = Vec::with_capacity(reads.iter().map(|&read| self.buffers[read].1 / size_of::<T>()).sum());
        for &read in reads {
            let (buffer, bytes) = &self.buffers[read];
            let view = buffer.get_mapped_range(..).map_err(|e| Error::Gpu { message: format!("mapping: {e:?}") })?;
            match bytemuck::try_cast_slice(&view[..*bytes]) {
                Ok(values) => all.extend_from_slice(values),
                // A mapping is aligned everywhere that is known; where it is not, read value by value.
                Err(_) => {
                    all.extend(view[..*bytes].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_holds_every_workgroup_and_wastes_less_than_a_row() {
        for per_dimension in [1u32, 2, 3, 100, 65_535] {
            let most = u64::from(per_dimension) * u64::from(per_dimension);
            for workgroups in [1, 2, 3, 5, 99, 101, 65_536, 1 << 31, most].into_iter().filter(|&w| w <= most) {
                let (x, y) = grid(workgroups, per_dimension).unwrap();
                let all = u64::from(x) * u64::from(y);
                assert!(x <= per_dimension && y <= per_dimension && all >= workgroups && all - workgroups < y.into());
            }
            assert!(matches!(grid(most + 1, per_dimension), Err(Error::TooLarge { .. })));
        }
    }
}
