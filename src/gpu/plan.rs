//! Recording into a caller's encoder: a plan is made once, bound to buffers as often as is wanted, and recorded.

use super::call::{self, TALLIES};
use super::job::{Dispatch, Scopes, grid};
use super::shader::{Kernel, Params, Program};
use super::{Gpu, check_alive};
use crate::error::{Error, Result};
use crate::layout::{Chunk, saturate};
use crate::quantized::{Counts, LossDetail, Spec};
use crate::tensor::ElemType;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What a [`Plan`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`cpu::quantize`](crate::cpu::quantize): codes, and the scales and zero points that they need.
    Quantize,
    /// [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales): scales and zero points are read.
    QuantizeWithScales,
    /// [`cpu::fake_quantize`](crate::cpu::fake_quantize): f32 values out.
    FakeQuantize,
    /// [`cpu::fake_quantize_with_scales`](crate::cpu::fake_quantize_with_scales).
    FakeQuantizeWithScales,
    /// [`cpu::dequantize`](crate::cpu::dequantize): codes in, f32 values out.
    Dequantize,
}

impl Operation {
    fn is_given(self) -> bool {
        matches!(self, Self::QuantizeWithScales | Self::FakeQuantizeWithScales)
    }

    fn gives_values(self) -> bool {
        matches!(self, Self::FakeQuantize | Self::FakeQuantizeWithScales | Self::Dequantize)
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The elements, row-major; of [`Operation::Dequantize`] the codes.
    Input,
    /// The codes, or the f32 values. Bits of the last word beyond the last code are written, as zeros.
    Output,
    /// f32, one per range unit; not of casts.
    Scales,
    /// i32, one per range unit; of schemes that have them.
    ZeroPoints,
    /// What [`Plan::counts`] takes apart; not of [`Operation::Dequantize`].
    Counts,
    /// Room between the kernels. It needs no clearing and holds nothing afterwards.
    Scratch,
}

impl Role {
    const ALL: [Self; 6] = [Self::Input, Self::Output, Self::Scales, Self::ZeroPoints, Self::Counts, Self::Scratch];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Scales => "scales",
            Self::ZeroPoints => "zero points",
            Self::Counts => "counts",
            Self::Scratch => "scratch",
        })
    }
}

/// What a plan needs of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Need {
    /// Bytes from the offset on; those of the input are whole vectors of four elements, others whole words.
    pub bytes: u64,
    /// What offsets are a multiple of.
    pub offset_alignment_bytes: u64,
    /// Whether it is written, or bound as if.
    pub is_written: bool,
}

/// What is needed of each role's buffer.
type Needs = [Option<Need>; Role::ALL.len()];

/// Bytes of a role's buffer, counted from its offset; or a part of scratch that no kernel touches.
#[derive(Clone, Debug)]
struct Place {
    role: Role,
    bytes: Range<u64>,
}

/// An operation on tensors of one shape, compiled: bound to buffers any number of times, and those bindings recorded any
/// number of times. It is `Send` and `Sync`.
///
/// ```no_run
/// use wgpu_quant::gpu::{Operation, Role, Select};
/// use wgpu_quant::{ElemType, Gpu, Scheme, Spec, wgpu};
/// # fn engine(device: wgpu::Device, queue: wgpu::Queue, x: &wgpu::Buffer) -> wgpu_quant::Result<()> {
/// let gpu = Gpu::from_device(device.clone(), queue.clone()); // the engine's own
/// let plan = gpu.plan(Operation::Quantize, &Spec::new(Scheme::INT8_ABSMAX), &[64, 1024], ElemType::F32)?;
/// let [codes, scales, counts, scratch] =
///     [Role::Output, Role::Scales, Role::Counts, Role::Scratch].map(|role| plan.create(role));
/// let (codes, scales, counts, scratch) = (codes?, scales?, counts?, scratch?);
/// let bound = plan.bind(&[
///     (Role::Input, x, 0),
///     (Role::Output, &codes, 0),
///     (Role::Scales, &scales, 0),
///     (Role::Counts, &counts, 0),
///     (Role::Scratch, &scratch, 0),
/// ])?;
/// let mut encoder = device.create_command_encoder(&Default::default());
/// bound.record(&mut encoder); // nothing is created, submitted or waited for
/// queue.submit([encoder.finish()]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Plan {
    device: wgpu::Device,
    /// Why the device was lost, once that is known.
    lost: Arc<Mutex<Option<String>>>,
    operation: Operation,
    elem_type: ElemType,
    code_bits: u32,
    steps: Vec<Step>,
    needs: Needs,
    binding_alignment: u64,
    uniform_alignment: u64,
}

#[derive(Debug)]
struct Step {
    kernel: Kernel,
    pipeline: wgpu::ComputePipeline,
    params: Params,
    places: Vec<(u32, Place)>,
    grid: (u32, u32),
}

/// A [`Plan`] and the buffers that it works on.
#[derive(Debug)]
pub struct Bound {
    steps: Vec<(wgpu::ComputePipeline, wgpu::BindGroup, (u32, u32))>,
}

impl Bound {
    /// Records into a compute pass of its own. Creates no object of wgpu, submits nothing and waits for nothing.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let label = Some("wgpu-quant pass");
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes: None });
        self.record_in(&mut pass);
    }

    /// The same in a compute pass of the caller's. Its pipeline and its bind group 0 are others afterwards.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, bind_group, (x, y)) in &self.steps {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }

    /// How many dispatches a recording is.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }
}

impl Gpu {
    /// Plans an operation on tensors of this shape and type, dense and row-major, and compiles its kernels.
    ///
    /// The loss that the specification asks for is not computed.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize).
    pub fn plan(&self, operation: Operation, spec: &Spec, shape: &[usize], elem_type: ElemType) -> Result<Plan> {
        self.check_alive()?;
        let spec = spec.loss(LossDetail::None);
        let (dispatches, needs) = self.recorded(operation, &spec, shape, elem_type)?;
        let scopes = Scopes::open(self.device());
        let steps = dispatches.into_iter().map(|Dispatch { program, params, buffers, workgroups }| {
            let grid = grid(workgroups, self.workgroups_per_dimension())?;
            Ok(Step { kernel: program.kernel, pipeline: self.pipeline(program), params, places: buffers, grid })
        });
        let steps = steps.collect::<Result<Vec<_>>>();
        self.noted(scopes.check(self))?;
        Ok(Plan {
            device: self.device().clone(),
            lost: Arc::clone(&self.lost),
            operation,
            elem_type,
            code_bits: spec.scheme.code().bits(),
            steps: steps?,
            needs,
            binding_alignment: self.limits.min_storage_buffer_offset_alignment.into(),
            uniform_alignment: self.limits.min_uniform_buffer_offset_alignment.into(),
        })
    }

    /// The dispatches of an operation over places in its buffers, and what these must be.
    fn recorded(
        &self,
        operation: Operation,
        spec: &Spec,
        shape: &[usize],
        elem_type: ElemType,
    ) -> Result<(Vec<Dispatch<Place>>, Needs)> {
        let units = spec.units(shape)?;
        let scheme = spec.scheme;
        let bits = scheme.code().bits();
        let row_elems = shape.last().copied().unwrap_or(1);
        let values = operation.gives_values();
        let dequantizes = operation == Operation::Dequantize;
        let slots = match operation {
            Operation::Dequantize => call::slots_of_codes(row_elems, units, bits),
            _ => call::slots_of_rows(row_elems, row_elems, units, if values { 32 } else { bits }),
        };
        let elem_bytes = if dequantizes { 4 } else { elem_type.bytes() };
        let kernel = if values { Kernel::FakeQuantizeOnce } else { Kernel::QuantizeOnce };
        let computes = matches!(operation, Operation::Quantize | Operation::FakeQuantize) && !scheme.is_cast();
        let once = if computes { self.once(kernel, slots, elem_bytes.max(4)) } else { None };
        let cut = self.cut_work(slots, Params::of(spec), elem_bytes.max(4), once.unwrap_or(0));

        // Chunks that begin inside a word of codes would have to share it, or read vectors that begin anywhere.
        let is_whole = |(chunk, _): &(Chunk, Params)| {
            let words = values || call::code_range(&chunk.slots, bits).start.is_multiple_of(4);
            words && (!slots.is_dense() || chunk.slots.start.is_multiple_of(8))
        };
        if !cut.chunks.iter().all(is_whole) {
            let (found, allowed) = (units.units as u64, self.slab_units() as u64);
            return Err(Error::TooLarge { what: "the number of range units that are recorded", found, allowed });
        }

        let align = |bytes: u64| bytes.next_multiple_of(SCRATCH_ALIGNMENT);
        let place = |role, bytes: Range<u64>| Place { role, bytes };
        let whole = |role, bytes: u64| place(role, 0..bytes);
        // Scratch: two places that are bound and not touched, all ranges, and each slab's recipes.
        let unused = [0, 1].map(|i| place(Role::Scratch, i * SCRATCH_ALIGNMENT..(i + 1) * SCRATCH_ALIGNMENT));
        let mut end = 2 * SCRATCH_ALIGNMENT;
        let mut scratch = |bytes: u64| {
            let start = end;
            end += align(bytes);
            place(Role::Scratch, start..start + bytes)
        };
        let of_units = |slab: &Range<usize>| 4 * slab.start as u64..4 * slab.end as u64;
        let count_bytes = 4 * (TALLIES * cut.chunks.len()) as u64;
        let counts = whole(Role::Counts, count_bytes);
        let mut dispatches = vec![];
        let clear = |place: &Place| {
            let words = (place.bytes.end - place.bytes.start) / 4;
            let params = Params { elems: u32::try_from(words).unwrap_or(u32::MAX), ..Params::default() };
            let program = Program::new(Kernel::Clear, scheme, elem_type);
            Dispatch::new(program, params, &[(1, place)], self.workgroups_of_units(words as usize))
        };
        if !dequantizes && count_bytes > 0 {
            dispatches.push(clear(&counts));
        }
        let given_codes = |slots: &Range<usize>| {
            let bytes = call::code_range(slots, bits);
            place(if dequantizes { Role::Input } else { Role::Output }, bytes.start as u64..bytes.end as u64)
        };
        let out = |slots: &Range<usize>| {
            if values { place(Role::Output, 4 * slots.start as u64..4 * slots.end as u64) } else { given_codes(slots) }
        };
        let input = |at: &Range<usize>| {
            place(Role::Input, (at.start * elem_bytes) as u64..((at.end * elem_bytes) as u64).next_multiple_of(16))
        };
        let zero_points = |slab: &Range<usize>| {
            if scheme.has_zero_point() { place(Role::ZeroPoints, of_units(slab)) } else { unused[0].clone() }
        };
        let program = |kernel| Program::new(kernel, scheme, elem_type);
        let slab_of = |i: usize| &cut.slabs[i];
        if dequantizes {
            for (chunk, params) in &cut.chunks {
                let scales = if scheme.is_cast() {
                    unused[0].clone()
                } else {
                    place(Role::Scales, of_units(slab_of(chunk.slab)))
                };
                let zero_points = zero_points(slab_of(chunk.slab));
                let codes = given_codes(&chunk.at);
                let buffers = [(2, &codes), (3, &scales), (4, &out(&chunk.slots)), (5, &zero_points)];
                dispatches.push(self.over_rows(program(Kernel::Dequantize), *params, &buffers));
            }
        } else if once.is_some() {
            for (chunk, params) in &cut.chunks {
                let slab = slab_of(chunk.slab);
                let (x, scales, zero_points) =
                    (input(&chunk.at), place(Role::Scales, of_units(slab)), zero_points(slab));
                let out = out(&chunk.slots);
                let buffers = [(1, &counts), (2, &x), (3, &scales), (4, &out), (6, &zero_points)];
                dispatches.push(self.over_rows(program(kernel), *params, &buffers));
            }
        } else {
            let ranges: Vec<Place> = cut.slabs.iter().map(|slab| scratch(8 * slab.len() as u64)).collect();
            let recipes: Vec<Place> =
                cut.slabs.iter().map(|slab| scratch(4 * (super::RECIPE_WORDS * slab.len()) as u64)).collect();
            if computes {
                // A tensor without range units has nothing to clear, and nothing can be bound of no bytes.
                if let (Some(first), Some(last)) = (ranges.first(), ranges.last())
                    && units.units > 0
                {
                    dispatches.push(clear(&place(Role::Scratch, first.bytes.start..last.bytes.end)));
                }
                for (chunk, params) in &cut.chunks {
                    let buffers = [(2, &input(&chunk.at)), (3, &ranges[chunk.slab])];
                    dispatches.push(self.over_runs(program(Kernel::MinMax), units, *params, &buffers));
                }
            }
            for (slab, (ranges, recipes)) in cut.slabs.iter().zip(ranges.iter().zip(&recipes)) {
                if scheme.is_cast() || slab.is_empty() {
                    continue;
                }
                let params =
                    Params { units: saturate(slab.len()), given: operation.is_given().into(), ..Params::of(spec) };
                let (scales, zero_points) = (place(Role::Scales, of_units(slab)), zero_points(slab));
                let buffers = [(2, ranges), (3, &scales), (4, recipes), (5, &unused[1]), (6, &zero_points)];
                let workgroups = self.workgroups_of_units(slab.len());
                dispatches.push(Dispatch::new(program(Kernel::Scale), params, &buffers, workgroups));
            }
            let kernel = if values { Kernel::FakeQuantize } else { Kernel::Quantize };
            for (chunk, params) in &cut.chunks {
                let buffers =
                    [(1, &counts), (2, &input(&chunk.at)), (3, &recipes[chunk.slab]), (4, &out(&chunk.slots))];
                dispatches.push(self.over_rows(program(kernel), *params, &buffers));
            }
        }

        let in_bytes = if dequantizes {
            (call::code_range(&(0..slots.at_end()), bits).end as u64).next_multiple_of(4)
        } else {
            ((units.elems() * elem_bytes) as u64).next_multiple_of(16)
        };
        let out_bytes =
            if values { 4 * units.elems() as u64 } else { call::code_range(&(0..slots.count()), bits).end as u64 };
        let unit_bytes = 4 * units.units as u64;
        let need = |bytes: u64, offset_alignment_bytes: u64, is_written| {
            Some(Need { bytes: bytes.next_multiple_of(4), offset_alignment_bytes, is_written })
        };
        let vector_bytes = if dequantizes { 4 } else { 4 * elem_bytes as u64 };
        let needs = [
            need(in_bytes, vector_bytes, false),
            need(out_bytes, 4, true),
            if scheme.is_cast() { None } else { need(unit_bytes, 4, !dequantizes) },
            if scheme.has_zero_point() { need(unit_bytes, 4, !dequantizes) } else { None },
            if dequantizes { None } else { need(count_bytes, 4, true) },
            need(end, SCRATCH_ALIGNMENT, true),
        ];
        Ok((dispatches, needs))
    }
}

/// What every device allows as an offset of storage.
const SCRATCH_ALIGNMENT: u64 = 256;

impl Plan {
    /// What is done.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// What is needed of the buffer with this role; `None` where there is none.
    pub fn need(&self, role: Role) -> Option<Need> {
        self.needs[role as usize]
    }

    /// A buffer for this role alone, of usages `STORAGE`, `COPY_SRC` and `COPY_DST`.
    ///
    /// # Errors
    /// [`Error::Binding`] where the plan has no such buffer; [`Error::OutOfMemory`] and [`Error::Gpu`].
    pub fn create(&self, role: Role) -> Result<wgpu::Buffer> {
        let need = self.need(role).ok_or_else(|| refused(role, "this plan has none"))?;
        check_alive(&self.lost)?;
        let scopes = Scopes::open(&self.device);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-quant {role}")),
            size: need.bytes.max(16).next_multiple_of(16),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        scopes.first_error()?;
        Ok(buffer)
    }

    /// Takes apart what a recording left in the buffer of counts.
    pub fn counts(&self, words: &[u32]) -> Counts {
        let mut sums = [0u64; TALLIES];
        for chunk in words.chunks_exact(TALLIES) {
            for (sum, &word) in sums.iter_mut().zip(chunk) {
                *sum += u64::from(word);
            }
        }
        let [nan_elems, inf_elems, clipped_elems, ..] = sums;
        Counts { clipped_elems, nan_elems, inf_elems }
    }

    /// Binds buffers, each with the byte at which what it holds begins.
    ///
    /// Offsets may be multiples of what [`Need::offset_alignment_bytes`] says, even where the device binds at larger
    /// multiples only. Buffers are of usage `STORAGE`. What is written may share a buffer with what is written, without
    /// overlap; wgpu allows no dispatch that reads a buffer it writes.
    ///
    /// # Errors
    /// [`Error::Binding`], which names the buffer, what was found and what is allowed.
    pub fn bind(&self, buffers: &[(Role, &wgpu::Buffer, u64)]) -> Result<Bound> {
        self.check(buffers)?;
        check_alive(&self.lost)?;
        let scopes = Scopes::open(&self.device);
        let slot = (size_of::<Params>() as u64).next_multiple_of(self.uniform_alignment);
        let mut uniforms = vec![0u8; slot as usize * self.steps.len().max(1)];
        let mut bound = vec![];
        for (step, uniform) in self.steps.iter().zip(uniforms.chunks_mut(slot as usize)) {
            let mut params = step.params;
            let mut entries = vec![];
            for (binding, Place { role, bytes }) in &step.places {
                let &(_, buffer, offset) = find(buffers, *role).expect("checked");
                let start = offset + bytes.start;
                let aligned = start - start % self.binding_alignment;
                self.shift(&mut params, step.kernel, *role, start - aligned);
                // Whole words, and not beyond the buffer's end.
                let end = (offset + bytes.end).next_multiple_of(4).min(buffer.size());
                entries.push((*binding, buffer, aligned, NonZeroU64::new(end - aligned)));
            }
            uniform[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(&params));
            bound.push(entries);
        }
        let uniform = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant params"),
            size: uniforms.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        if let Ok(mut view) = uniform.get_mapped_range_mut(..) {
            view.copy_from_slice(&uniforms);
        }
        uniform.unmap();
        let steps = self.steps.iter().zip(bound).enumerate().map(|(i, (step, entries))| {
            let of_params = wgpu::BufferBinding {
                buffer: &uniform,
                offset: i as u64 * slot,
                size: NonZeroU64::new(size_of::<Params>() as u64),
            };
            let of_buffers = entries
                .into_iter()
                .map(|(binding, buffer, offset, size)| (binding, wgpu::BufferBinding { buffer, offset, size }));
            let entries: Vec<_> = std::iter::once((0, of_params))
                .chain(of_buffers)
                .map(|(binding, place)| wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(place),
                })
                .collect();
            let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&format!("wgpu-quant {}", step.kernel.label())),
                layout: &step.pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            (step.pipeline.clone(), bind_group, step.grid)
        });
        let steps = steps.collect();
        scopes.first_error()?;
        Ok(Bound { steps })
    }

    /// Tells a kernel how far behind the binding's begin a place does.
    fn shift(&self, params: &mut Params, kernel: Kernel, role: Role, bytes: u64) {
        let words = saturate(bytes as usize / 4);
        match role {
            _ if kernel == Kernel::Clear => params.out_at = words,
            Role::Input => {
                // What is looked up row by row may begin anywhere; all else begins with a whole word or vector.
                let rest = if self.operation == Operation::Dequantize {
                    params.codes_at = words;
                    saturate((bytes as usize % 4) * 8) / self.code_bits
                } else {
                    let elems = saturate(bytes as usize / self.elem_type.bytes());
                    params.x_at = elems / 4;
                    elems % 4
                };
                params.first_at += rest;
                params.second_row_at = params.second_row_at.saturating_add(rest);
            }
            Role::Output => params.out_at = words,
            Role::Scales => params.scales_at = words,
            Role::ZeroPoints => params.zero_points_at = words,
            Role::Counts => params.counters += words,
            Role::Scratch => {}
        }
    }

    fn check(&self, buffers: &[(Role, &wgpu::Buffer, u64)]) -> Result<()> {
        for (i, &(role, buffer, offset)) in buffers.iter().enumerate() {
            let need = self.need(role).ok_or_else(|| refused(role, "this plan has none"))?;
            if buffers[..i].iter().any(|other| other.0 == role) {
                return Err(refused(role, "given twice"));
            }
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(refused(role, format!("of usage {:?}, STORAGE is needed", buffer.usage())));
            }
            let alignment = need.offset_alignment_bytes;
            if offset % alignment != 0 {
                return Err(refused(role, format!("at byte {offset}, multiples of {alignment} are allowed")));
            }
            let (bytes, left) = (need.bytes, buffer.size().saturating_sub(offset));
            if left < bytes {
                return Err(refused(role, format!("of {left} bytes from byte {offset} on, {bytes} are needed")));
            }
            for &(other, _, other_offset) in buffers[..i].iter().filter(|other| other.1 == buffer) {
                let other_need = self.need(other).expect("checked before");
                if need.is_written != other_need.is_written {
                    let message = format!(
                        "it is also the {other} buffer, and what is read and what is written are \
                                           to be different buffers"
                    );
                    return Err(refused(role, message));
                }
                if need.is_written && offset < other_offset + other_need.bytes && other_offset < offset + bytes {
                    return Err(refused(role, format!("its bytes {offset}..{} are {other} too", offset + bytes)));
                }
            }
        }
        match Role::ALL.into_iter().find(|&role| self.need(role).is_some() && find(buffers, role).is_none()) {
            Some(role) => Err(refused(role, "not given")),
            None => Ok(()),
        }
    }
}

fn find<'a, 'b>(buffers: &'a [(Role, &'b wgpu::Buffer, u64)], role: Role) -> Option<&'a (Role, &'b wgpu::Buffer, u64)> {
    buffers.iter().find(|buffer| buffer.0 == role)
}

fn refused(role: Role, message: impl Into<String>) -> Error {
    Error::Binding { buffer: role.to_string(), message: message.into() }
}
