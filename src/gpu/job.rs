//! One call's work on the device: dispatches and copies gathered, submitted at once, read back at once.

use super::Gpu;
use super::shader::{Kernel, Params, Program};
use crate::error::{Error, Result};
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use std::future::Future;
use std::num::NonZeroU64;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

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

/// Open error scopes, one per kind of error; they must close in reverse order, on the thread that opened them.
pub(super) struct Scopes(Vec<wgpu::ErrorScopeGuard>);

impl Scopes {
    pub(super) fn open(device: &wgpu::Device) -> Self {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        Self([Internal, Validation, OutOfMemory].map(|filter| device.push_error_scope(filter)).into())
    }

    fn close(mut self) -> Vec<Scope> {
        std::iter::from_fn(|| self.0.pop()).map(|scope| Box::pin(scope.pop()) as Scope).collect()
    }

    /// Closes them, with the first error that they caught. Native scopes have their errors at once.
    pub(super) fn first_error(self) -> Result<()> {
        pollster::block_on(first_error(self.close()))
    }

    /// The same; of a lost device that.
    pub(super) fn check(self, gpu: &Gpu) -> Result<()> {
        let first = self.first_error();
        gpu.check_alive().and(first)
    }
}

impl Drop for Scopes {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// Work that is being gathered. Every error of wgpu from here to `submit` is caught.
pub(super) struct Job<'g> {
    gpu: &'g Gpu,
    scopes: Scopes,
    copies: Vec<Copy>,
    dispatches: Vec<Dispatch>,
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
    scopes: Vec<Scope>,
    index: Option<wgpu::SubmissionIndex>,
    mapped: Vec<Mapping>,
    kernels: Vec<Kernel>,
    timestamp_period: f32,
}

/// What came back: each read's bytes, and the kernels' times if they were taken.
pub(super) struct Finished {
    buffers: Vec<(wgpu::Buffer, usize)>,
    pub(super) times: Vec<(Kernel, f64)>,
}

impl<'g> Job<'g> {
    pub(super) fn new(gpu: &'g Gpu) -> Result<Self> {
        gpu.check_alive()?;
        let scopes = Scopes::open(&gpu.device);
        Ok(Self { gpu, scopes, copies: Vec::new(), dispatches: Vec::new(), reads: Vec::new() })
    }

    /// A zeroed storage buffer of this many bytes, rounded up to whole vectors.
    pub(super) fn buffer(&self, what: &'static str, bytes: usize) -> Result<wgpu::Buffer> {
        let size = (bytes.max(1) as u64).next_multiple_of(16);
        let allowed = self.gpu.max_buffer_bytes();
        if size > allowed {
            return Err(Error::TooLarge { what, found: size, allowed });
        }
        Ok(self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-quant {what}")),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        }))
    }

    /// The same, holding these bytes.
    pub(super) fn upload(&self, what: &'static str, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let buffer = self.buffer(what, bytes.len())?;
        let whole = bytes.len() & !3;
        self.gpu.queue.write_buffer(&buffer, 0, &bytes[..whole]);
        if whole < bytes.len() {
            // Writes are whole words; codes may end inside one.
            let mut last = [0u8; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.gpu.queue.write_buffer(&buffer, whole as u64, &last);
        }
        Ok(buffer)
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

    /// Asks for a buffer's first bytes, and returns the read's number.
    pub(super) fn read(&mut self, buffer: &wgpu::Buffer, bytes: usize) -> usize {
        self.reads.push((buffer.clone(), bytes));
        self.reads.len() - 1
    }

    /// Records everything into one command buffer and submits it.
    pub(super) fn submit(self) -> Result<Pending> {
        let Self { gpu, scopes, copies, dispatches, reads } = self;
        let (commands, staged) = record(gpu, &copies, &dispatches, &reads)?;
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
                Mapping { buffer, bytes, done }
            })
            .collect();
        let scopes = scopes.close();
        let timed = gpu.takes_timestamps();
        Ok(Pending {
            device: gpu.device.clone(),
            scopes,
            index: Some(index),
            mapped,
            kernels: if timed { dispatches.iter().map(|d| d.program.kernel).collect() } else { Vec::new() },
            timestamp_period: gpu.queue.get_timestamp_period(),
        })
    }
}

fn record(
    gpu: &Gpu,
    copies: &[Copy],
    dispatches: &[Dispatch],
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
    let uniform = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("wgpu-quant params"),
        size: uniforms.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&uniform, 0, &uniforms);
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
        let pipeline = gpu.pipeline(dispatch.program);
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
    let staging = |size| {
        device.create_buffer(&wgpu::BufferDescriptor {
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
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
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
    pub(super) fn submitted(mut self, gpu: &Gpu) -> Result<Option<wgpu::SubmissionIndex>> {
        // Native scopes have their errors at once.
        pollster::block_on(self.check_scopes(gpu))?;
        // Frees what earlier work is done with. A failure shows when this work is waited for.
        let _ = self.device.poll(wgpu::PollType::Poll);
        Ok(self.index.take())
    }

    /// Blocks until the device is done.
    pub(super) fn wait(mut self, gpu: &Gpu) -> Result<Finished> {
        // The scopes' errors explain more than what follows from them.
        pollster::block_on(self.check_scopes(gpu))?;
        wait_for(&self.device, self.index.take(), gpu.timeout())?;
        pollster::block_on(self.finish(gpu))
    }

    /// Resolves when the device is done, without blocking the thread that polls it.
    pub(super) async fn finished(mut self, gpu: &Gpu) -> Result<Finished> {
        self.check_scopes(gpu).await?;
        let (sender, receiver) = oneshot_channel();
        let (device, index, timeout) = (self.device.clone(), self.index.take(), gpu.timeout());
        // wgpu makes callbacks only while somebody polls the device: a thread of its own does.
        std::thread::Builder::new()
            .name("wgpu-quant wait".to_owned())
            .spawn(move || {
                let _ = sender.send(wait_for(&device, index, timeout));
            })
            .map_err(|e| Error::Gpu { message: format!("no thread to wait for the device: {e}") })?;
        receiver.receive().await.unwrap_or_else(|| Err(lost("the wait ended early")))?;
        self.finish(gpu).await
    }

    async fn check_scopes(&mut self, gpu: &Gpu) -> Result<()> {
        let first = first_error(std::mem::take(&mut self.scopes)).await;
        // A lost device fails everything in its own words; say what is behind them, of which wgpu tells when it is polled.
        if first.is_err() {
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        gpu.check_alive().and(first)
    }

    async fn finish(self, gpu: &Gpu) -> Result<Finished> {
        let mut buffers = Vec::with_capacity(self.mapped.len());
        for Mapping { buffer, bytes, done } in self.mapped {
            match done.receive().await {
                Some(Ok(())) => buffers.push((buffer, bytes)),
                Some(Err(_)) | None => {
                    gpu.check_alive()?;
                    return Err(lost("a result could not be mapped"));
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

fn lost(message: &str) -> Error {
    Error::DeviceLost { message: message.to_owned() }
}

pub(super) fn wait_for(device: &wgpu::Device, index: Option<wgpu::SubmissionIndex>, timeout: Duration) -> Result<()> {
    match device.poll(wgpu::PollType::Wait { submission_index: index, timeout: Some(timeout) }) {
        Ok(_) => Ok(()),
        Err(wgpu::PollError::Timeout) => Err(Error::Timeout { seconds: timeout.as_secs() }),
        Err(error) => Err(Error::Gpu { message: error.to_string() }),
    }
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
