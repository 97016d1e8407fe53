//! Kernels to compare ours with: copies, and the same work in floats that need not be exact.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU64;
use wgpu_quant::{Gpu, wgpu};

const COPY: &str = include_str!("../../../benches/copy.wgsl");
const FLOAT: &str = include_str!("../../../benches/float.wgsl");

/// How a kernel that is not exact is made, and takes its elements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub(super) affine: bool,
    pub(super) four_bits: bool,
    /// An invocation takes neighbours: the entry points that end so.
    pub(super) wide: bool,
}

impl Shape {
    pub(super) fn name(self) -> &'static str {
        if self.wide { "float, neighbours" } else { "float, side by side" }
    }

    fn source(self) -> String {
        let Self { affine, four_bits, .. } = self;
        let bits = if four_bits { 4 } else { 8 };
        format!("const AFFINE = {affine};\nconst BITS = {bits}u;\n{FLOAT}")
    }
}

pub(super) struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: (u32, u32),
}

impl Dispatch {
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups.0, self.workgroups.1, 1);
    }
}

/// A buffer under its number, and the bytes of it that belong to so many vectors of the input; all of it belongs to all of
/// them where that is `None`.
pub(super) type Binding<'a> = (u32, &'a wgpu::Buffer, Option<(u64, u64)>);

/// Vectors of four elements that a window is a multiple of, so that everything begins where it can be bound.
const GRANULE: u64 = 1 << 16;

/// The pipelines that are compiled already.
pub(super) struct Kernels<'a> {
    gpu: &'a Gpu,
    pipelines: RefCell<HashMap<(String, String), wgpu::ComputePipeline>>,
}

impl<'a> Kernels<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, pipelines: RefCell::default() }
    }

    fn pipeline(&self, source: String, entry: String) -> wgpu::ComputePipeline {
        let device = self.gpu.device();
        let compile = |(source, entry): &(String, String)| {
            let source = wgpu::ShaderSource::Wgsl(source.into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(entry), source });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        };
        self.pipelines.borrow_mut().entry((source, entry)).or_insert_with_key(compile).clone()
    }

    /// An entry point of the copies, or of the floats in a shape, over all vectors: in as few dispatches as the device's
    /// bindings allow.
    pub(super) fn dispatches(
        &self,
        shape: Option<Shape>,
        entry: &str,
        vectors: u64,
        vectors_per_workgroup: u64,
        bindings: &[Binding<'_>],
    ) -> Vec<Dispatch> {
        let (device, limits) = (self.gpu.device(), self.gpu.device().limits());
        let is_wide = shape.is_some_and(|shape| shape.wide) && !matches!(entry, "clear" | "reduce");
        let entry = format!("{entry}{}", if is_wide { "_wide" } else { "" });
        let pipeline = self.pipeline(shape.map_or_else(|| COPY.to_owned(), Shape::source), entry);
        let window = (limits.max_storage_buffer_binding_size / 16 / GRANULE).max(1) * GRANULE;
        let starts = (0..vectors).step_by(usize::try_from(window).unwrap_or(usize::MAX));
        let dispatch = |start: u64| {
            let count = window.min(vectors - start);
            let entries: Vec<_> = bindings
                .iter()
                .map(|&(binding, buffer, part)| {
                    let (offset, size) = match part {
                        Some((bytes, per)) => (start / per * bytes, NonZeroU64::new(count / per * bytes)),
                        None => (0, None),
                    };
                    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                    wgpu::BindGroupEntry { binding, resource }
                })
                .collect();
            let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let workgroups = u32::try_from(count.div_ceil(vectors_per_workgroup)).unwrap_or(u32::MAX);
            let most = limits.max_compute_workgroups_per_dimension;
            let workgroups = (workgroups.min(most), workgroups.div_ceil(most));
            Dispatch { pipeline: pipeline.clone(), bind_group, workgroups }
        };
        starts.map(dispatch).collect()
    }
}
