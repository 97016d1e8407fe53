//! One call's work on the device: dispatches and copies gathered, submitted at once, read back at once.

use super::Gpu;
use super::shader::{Kernel, Params};
use crate::error::{Error, Result};
use crate::scheme::Scheme;
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::time::Duration;

/// What a dispatch covers: invocations enough for this many workgroups.
pub(super) struct Dispatch {
    pub(super) kernel: Kernel,
    pub(super) scheme: Scheme,
    pub(super) params: Params,
    pub(super) buffers: Vec<(u32, wgpu::Buffer)>,
    pub(super) workgroups: u64,
}

type Scope = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

/// Work that is being gathered. Every error of wgpu from here to `submit` is caught.
pub(super) struct Job<'g> {
    gpu: &'g Gpu,
    scopes: [wgpu::ErrorScopeGuard; 3],
    dispatches: Vec<Dispatch>,
    reads: Vec<(wgpu::Buffer, u64)>,
}

/// Submitted work.
pub(super) struct Pending {
    device: wgpu::Device,
    scopes: Vec<Scope>,
    index: Option<wgpu::SubmissionIndex>,
    mapped: Vec<(wgpu::Buffer, OneshotReceiver<Result<(), wgpu::BufferAsyncError>>)>,
    kernels: Vec<Kernel>,
    timestamp_period: f32,
}

/// What came back: each read's bytes, and the kernels' times if they were taken.
pub(super) struct Finished {
    buffers: Vec<wgpu::Buffer>,
    pub(super) times: Vec<(Kernel, f64)>,
}

impl<'g> Job<'g> {
    pub(super) fn new(gpu: &'g Gpu) -> Result<Self> {
        gpu.check_alive()?;
        let scope = |filter| gpu.device.push_error_scope(filter);
        // A scope catches one kind of error; the innermost comes last.
        let scopes = [
            scope(wgpu::ErrorFilter::Internal),
            scope(wgpu::ErrorFilter::Validation),
            scope(wgpu::ErrorFilter::OutOfMemory),
        ];
        Ok(Self { gpu, scopes, dispatches: Vec::new(), reads: Vec::new() })
    }

    /// A zeroed storage buffer of this many bytes, rounded up to whole vectors.
    pub(super) fn buffer(&self, what: &'static str, bytes: usize) -> Result<wgpu::Buffer> {
        let size = (bytes.max(1) as u64).next_multiple_of(16);
        let limits = &self.gpu.limits;
        let allowed = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
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

    pub(super) fn dispatch(&mut self, dispatch: Dispatch) {
        self.dispatches.push(dispatch);
    }

    /// Asks for a buffer's first bytes; they are the next read's.
    pub(super) fn read(&mut self, buffer: &wgpu::Buffer, bytes: usize) {
        self.reads.push((buffer.clone(), (bytes as u64).next_multiple_of(4)));
    }

    /// Records everything into one command buffer and submits it.
    pub(super) fn submit(self) -> Result<Pending> {
        let Self { gpu, scopes, dispatches, reads } = self;
        let device = &gpu.device;
        let recorded = record(gpu, &dispatches, &reads);
        let staged = recorded.map(|(commands, staged)| {
            let index = gpu.queue.submit([commands]);
            gpu.count_submission();
            (index, staged)
        });
        // Popped on the thread that pushed them, innermost first, also when recording failed.
        let scopes = scopes.into_iter().rev().map(|scope| Box::pin(scope.pop()) as Scope).collect();
        let (index, staged) = staged?;
        let mapped = staged
            .into_iter()
            .map(|buffer| {
                let (sender, receiver) = oneshot_channel();
                buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The receiver may be gone: a future that was dropped.
                    let _ = sender.send(result);
                });
                (buffer, receiver)
            })
            .collect();
        let timed = gpu.takes_timestamps();
        Ok(Pending {
            device: device.clone(),
            scopes,
            index: Some(index),
            mapped,
            kernels: if timed { dispatches.iter().map(|d| d.kernel).collect() } else { Vec::new() },
            timestamp_period: gpu.queue.get_timestamp_period(),
        })
    }
}

fn record(
    gpu: &Gpu,
    dispatches: &[Dispatch],
    reads: &[(wgpu::Buffer, u64)],
) -> Result<(wgpu::CommandBuffer, Vec<wgpu::Buffer>)> {
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
    let mut pass = None;
    for (i, dispatch) in dispatches.iter().enumerate() {
        let pipeline = gpu.pipeline(dispatch.kernel, dispatch.scheme);
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
            label: Some(&format!("wgpu-quant {}", dispatch.kernel.label())),
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
        let to = staging((*bytes).max(4));
        encoder.copy_buffer_to_buffer(buffer, 0, &to, 0, *bytes);
        staged.push(to);
    }
    if let Some(queries) = &queries {
        let bytes = u64::from(queries.count()) * 8;
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        encoder.resolve_query_set(queries, 0..queries.count(), &resolved, 0);
        let to = staging(bytes);
        encoder.copy_buffer_to_buffer(&resolved, 0, &to, 0, bytes);
        staged.push(to);
    }
    Ok((encoder.finish(), staged))
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).expect("a call makes few dispatches")
}

/// A grid of at least this many workgroups, and of fewer than one row more.
fn grid(workgroups: u64, per_dimension: u32) -> Result<(u32, u32)> {
    let most = u64::from(per_dimension);
    let y = workgroups.div_ceil(most).max(1);
    let x = workgroups.div_ceil(y);
    match (u32::try_from(x), u32::try_from(y)) {
        (Ok(x), Ok(y)) if y <= per_dimension => Ok((x, y)),
        _ => Err(Error::TooLarge { what: "dispatch in workgroups", found: workgroups, allowed: most * most }),
    }
}

impl Pending {
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
        let mut first = Ok(());
        for scope in std::mem::take(&mut self.scopes) {
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
        // A lost device fails everything in its own words; say what is behind them.
        gpu.check_alive().and(first)
    }

    async fn finish(self, gpu: &Gpu) -> Result<Finished> {
        let mut buffers = Vec::with_capacity(self.mapped.len());
        for (buffer, receiver) in self.mapped {
            match receiver.receive().await {
                Some(Ok(())) => buffers.push(buffer),
                Some(Err(_)) | None => {
                    gpu.check_alive()?;
                    return Err(lost("a result could not be mapped"));
                }
            }
        }
        gpu.count_readback();
        let mut finished = Finished { buffers, times: Vec::new() };
        if !self.kernels.is_empty() {
            let ticks: Vec<u64> = finished.values(finished.buffers.len() - 1, 2 * self.kernels.len())?;
            let seconds = |pair: &[u64]| (pair[1] - pair[0]) as f64 * f64::from(self.timestamp_period) * 1e-9;
            finished.times = self.kernels.into_iter().zip(ticks.chunks(2).map(seconds)).collect();
        }
        Ok(finished)
    }
}

fn lost(message: &str) -> Error {
    Error::DeviceLost { message: message.to_owned() }
}

fn wait_for(device: &wgpu::Device, index: Option<wgpu::SubmissionIndex>, timeout: Duration) -> Result<()> {
    match device.poll(wgpu::PollType::Wait { submission_index: index, timeout: Some(timeout) }) {
        Ok(_) => Ok(()),
        Err(wgpu::PollError::Timeout) => Err(Error::Timeout { seconds: timeout.as_secs() }),
        Err(error) => Err(Error::Gpu { message: error.to_string() }),
    }
}

impl Finished {
    /// Appends the first `len` values of read `i`.
    pub(super) fn append<T: bytemuck::Pod>(&self, i: usize, len: usize, out: &mut Vec<T>) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let view =
            self.buffers[i].get_mapped_range(..).map_err(|e| Error::Gpu { message: format!("mapping: {e:?}") })?;
        let bytes = &view[..len * size_of::<T>()];
        match bytemuck::try_cast_slice(bytes) {
            Ok(values) => out.extend_from_slice(values),
            // A mapping is aligned everywhere that is known; where it is not, read value by value.
            Err(_) => out.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>)),
        }
        Ok(())
    }

    /// The first `len` values of read `i`.
    pub(super) fn values<T: bytemuck::Pod>(&self, i: usize, len: usize) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(len);
        self.append(i, len, &mut values)?;
        Ok(values)
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
