//! Recording into a caller's encoder: a plan is made once, bound to buffers as often as is wanted, and recorded.

use super::Gpu;
use super::call::{self, tallies};
use super::cut::TALLIES;
use super::job::{Dispatch, Scopes, grid};
use super::shader::{Kernel, LOSS_WORDS, Params, Program, RECIPE_WORDS};
use super::stages::{Place, Request, Source, Space, Stages, Work};
use super::state::State;
use crate::error::{Error, Result};
use crate::layout::{Slots, saturate};
use crate::loss::Loss;
use crate::quantized::{Counts, LossDetail, Spec};
use crate::scheme::Scheme;
use crate::tensor::ElemType;
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

/// What a [`Plan`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`cpu::quantize`](crate::cpu::quantize): codes, and the scales and zero points that they need; the loss, if the
    /// specification asks for it.
    Quantize,
    /// [`cpu::quantize_with_scales`](crate::cpu::quantize_with_scales): scales and zero points are read.
    QuantizeWithScales,
    /// [`cpu::fake_quantize`](crate::cpu::fake_quantize): f32 values out.
    FakeQuantize,
    /// [`cpu::fake_quantize_with_scales`](crate::cpu::fake_quantize_with_scales).
    FakeQuantizeWithScales,
    /// [`cpu::dequantize`](crate::cpu::dequantize): codes in, f32 values out.
    Dequantize,
    /// Ranges of the elements, added to those that are there: parts of a tensor, or batches, one after the other.
    Ranges,
    /// Scales and zero points of ranges; no elements are read.
    Scales,
}

impl Operation {
    fn work(self) -> (Work, Source) {
        match self {
            Self::Quantize => (Work::Quantize, Source::Tensor),
            Self::QuantizeWithScales => (Work::Quantize, Source::Given),
            Self::FakeQuantize => (Work::FakeQuantize, Source::Tensor),
            Self::FakeQuantizeWithScales => (Work::FakeQuantize, Source::Given),
            Self::Dequantize => (Work::Dequantize, Source::Given),
            Self::Ranges => (Work::Ranges, Source::Tensor),
            Self::Scales => (Work::Scales, Source::Tensor),
        }
    }

    /// Which of the caller's buffers a space lies in.
    fn role(self, space: Space) -> Role {
        match space {
            Space::Elems => Role::Input,
            Space::Codes if self == Self::Dequantize => Role::Input,
            Space::Codes | Space::Values => Role::Output,
            Space::Scales => Role::Scales,
            Space::ZeroPoints => Role::ZeroPoints,
            Space::Counts => Role::Counts,
            Space::Ranges if matches!(self, Self::Ranges | Self::Scales) => Role::Ranges,
            Space::LossSums => Role::LossSums,
            Space::AbsErrors => Role::AbsErrors,
            Space::Ranges | Space::Observed | Space::Recipes | Space::Unused => Role::Scratch,
        }
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The elements; of [`Operation::Dequantize`] the codes.
    Input,
    /// The codes, or the f32 values. Bits of the last word beyond the last code are written, as zeros.
    Output,
    /// f32, one per range unit; of casts only with the loss, which needs nominal ones.
    Scales,
    /// i32, one per range unit; of schemes that have them.
    ZeroPoints,
    /// What [`Plan::counts`] takes apart, where elements are quantized.
    Counts,
    /// Two words per range unit, of [`Operation::Ranges`] and [`Operation::Scales`]. All zeros stand for nothing seen; a
    /// recording adds to them and does not clear them.
    Ranges,
    /// What [`Plan::loss`] takes apart, where the specification asks for the loss.
    LossSums,
    /// f32 |x' - x| of each element, with [`LossDetail::PerElement`]; where rows of 4-bit codes are filled up, one more.
    AbsErrors,
    /// Room between the kernels. It needs no clearing and holds nothing afterwards.
    Scratch,
}

impl Role {
    const ALL: [Self; 9] = [
        Self::Input,
        Self::Output,
        Self::Scales,
        Self::ZeroPoints,
        Self::Counts,
        Self::Ranges,
        Self::LossSums,
        Self::AbsErrors,
        Self::Scratch,
    ];

    /// Whether a batch has one for all of its tensors.
    fn is_shared(self) -> bool {
        matches!(self, Self::Counts | Self::Scratch)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Scales => "scales",
            Self::ZeroPoints => "zero points",
            Self::Counts => "counts",
            Self::Ranges => "ranges",
            Self::LossSums => "loss sums",
            Self::AbsErrors => "absolute errors",
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

/// How a tensor lies in its buffers.
///
/// ```
/// use wgpu_quant::{ElemType, gpu::Layout};
/// let dense = Layout::new(&[64, 1000], ElemType::F32);
/// let in_two_buffers = dense.clone().slices_elems(&[24_000, 40_000]);
/// let rows_apart = dense.row_pitch_elems(1024);
/// # let _ = (in_two_buffers, rows_apart);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    shape: Vec<usize>,
    elem_type: ElemType,
    row_pitch_elems: usize,
    slices_elems: Vec<usize>,
}

impl Layout {
    /// Row-major and dense, in one buffer.
    pub fn new(shape: &[usize], elem_type: ElemType) -> Self {
        let row_pitch_elems = shape.last().copied().unwrap_or(1);
        Self { shape: shape.to_vec(), elem_type, row_pitch_elems, slices_elems: vec![] }
    }

    /// The same with rows of the last axis of the elements that begin so many elements apart.
    #[must_use]
    pub fn row_pitch_elems(self, row_pitch_elems: usize) -> Self {
        Self { row_pitch_elems, ..self }
    }

    /// The same as a list of slices of so many elements, each in a buffer of its own: the input in as many buffers as there
    /// are slices, the output in as many or in one. Range units may go on from one slice to the next. All slices but the
    /// last begin where a word of codes does.
    #[must_use]
    pub fn slices_elems(self, slices_elems: &[usize]) -> Self {
        Self { slices_elems: slices_elems.to_vec(), ..self }
    }
}

/// An operation on tensors of one layout, or on a batch of tensors, compiled: bound to buffers any number of times, and those
/// bindings recorded any number of times. It is `Send` and `Sync`.
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
    state: Arc<State>,
    operation: Operation,
    spec: Spec,
    batched: bool,
    tensors: Vec<Planned>,
    steps: Vec<Step>,
    shared: Room,
    limits: wgpu::Limits,
    workgroups_per_dimension: u32,
}

/// A tensor of a plan.
#[derive(Debug)]
struct Planned {
    slots: Slots,
    elem_type: ElemType,
    units: usize,
    needs: [Option<Need>; Role::ALL.len()],
    /// Where each slice begins in the input and in the output; empty where there is one.
    slices: [Vec<u64>; 2],
    /// Its words in the buffer of counts.
    counts: Range<usize>,
}

/// What a plan's tensors have in common.
#[derive(Clone, Copy, Debug)]
struct Room {
    counts_bytes: u64,
    /// Ranges begin behind what is bound and not touched, recipes behind the ranges.
    ranges_end: u64,
    recipes: u64,
}

/// A dispatch over places.
#[derive(Debug)]
struct Step {
    program: Program,
    pipeline: wgpu::ComputePipeline,
    params: Params,
    tensor: usize,
    places: Vec<(u32, Place)>,
    workgroups: u64,
}

/// A [`Plan`] and the buffers that it works on.
#[derive(Debug)]
pub struct Bound {
    steps: Vec<(wgpu::ComputePipeline, wgpu::BindGroup, (u32, u32))>,
}

impl Bound {
    /// Records into a compute pass of its own. Creates no object of wgpu, submits nothing and waits for nothing.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record_timed(encoder, None);
    }

    /// The same, and the times of the pass's begin and end are written where the caller says.
    pub fn record_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let label = Some("wgpu-quant pass");
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes });
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
    /// # Errors
    /// Those of [`plan_of`](Self::plan_of).
    pub fn plan(&self, operation: Operation, spec: &Spec, shape: &[usize], elem_type: ElemType) -> Result<Plan> {
        self.plan_of(operation, spec, &[Layout::new(shape, elem_type)])
    }

    /// Plans an operation on one tensor of any layout, or on a batch of tensors, whose dispatches are shared: a model's
    /// layers, a KV cache's heads.
    ///
    /// The specification's loss is computed by [`Operation::Quantize`] and [`Operation::QuantizeWithScales`] of one tensor. Of [`Operation::Dequantize`] the layout's slices are the values'; codes have no row pitch, and no type.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize); [`Error::LengthMismatch`] of slices that do not make up the tensor,
    /// [`Error::Binding`] of slices that begin inside a word of codes, and of slices and the loss in a batch;
    /// [`Error::Strides`] of a row pitch below the row; [`Error::TooLarge`] of columns with more range units than a buffer
    /// holds.
    pub fn plan_of(&self, operation: Operation, spec: &Spec, layouts: &[Layout]) -> Result<Plan> {
        self.state.check_alive()?;
        let batched = layouts.len() > 1;
        let mut room = Room { counts_bytes: 0, ranges_end: 2 * SCRATCH_ALIGNMENT, recipes: 0 };
        let mut tensors = vec![];
        let mut steps = vec![];
        for (tensor, layout) in layouts.iter().enumerate() {
            if batched && layout.slices_elems.len() > 1 {
                return Err(refused(Role::Input, "of several slices, one is allowed in a batch"));
            }
            if batched && spec.loss != LossDetail::None && operation.work().0 == Work::Quantize {
                return Err(refused(Role::LossSums, "the loss is asked for, and none is computed of a batch"));
            }
            let (planned, dispatches) = self.planned(operation, spec, layout, &mut room)?;
            tensors.push(planned);
            steps.extend(dispatches.into_iter().map(|dispatch| (tensor, dispatch)));
        }
        let [counts, ranges] = [0..room.counts_bytes, 2 * SCRATCH_ALIGNMENT..room.ranges_end];
        let mut cleared = vec![(Space::Counts, counts), (Space::Ranges, ranges)];
        if let [Planned { units, needs, .. }] = &tensors[..]
            && needs[Role::LossSums as usize].is_some()
        {
            cleared.push((Space::LossSums, 0..4 * (LOSS_WORDS * units) as u64));
        }
        for (space, bytes) in cleared {
            steps.extend(self.clears(space, bytes).map(|dispatch| (0, dispatch)));
        }
        // A tensor's stages are in this order already.
        steps.sort_by_key(|(_, dispatch)| dispatch.program.kernel.rank());
        let scopes = Scopes::open(&self.device, &self.state);
        let steps = steps.into_iter().map(|(tensor, Dispatch { program, params, buffers, workgroups })| {
            grid(workgroups, self.workgroups_per_dimension())?;
            let program = program.batched(batched);
            Ok(Step { program, pipeline: self.pipeline(program)?, params, tensor, places: buffers, workgroups })
        });
        let steps = steps.collect::<Result<Vec<_>>>();
        scopes.check()?;
        Ok(Plan {
            device: self.device().clone(),
            state: Arc::clone(&self.state),
            operation,
            spec: *spec,
            batched,
            tensors,
            steps: steps?,
            shared: room,
            limits: self.limits.clone(),
            workgroups_per_dimension: self.workgroups_per_dimension(),
        })
    }

    /// Zeroes for these bytes, as many at a time as invocations can be dispatched.
    fn clears(&self, space: Space, bytes: Range<u64>) -> impl Iterator<Item = Dispatch<Place>> {
        let program = Program::new(Kernel::Clear, Scheme::INT8_ABSMAX, ElemType::F32);
        let most = 4 * self.invocations();
        (bytes.start..bytes.end).step_by(usize::try_from(most).unwrap_or(usize::MAX)).map(move |start| {
            let bytes = start..(start + most).min(bytes.end);
            let words = (bytes.end - bytes.start) / 4;
            let params = Params { elems: u32::try_from(words).unwrap_or(u32::MAX), ..Params::default() };
            self.over_units(program, params, &[(1, &Place { space, bytes })], words)
        })
    }

    /// A tensor's dispatches over places in its buffers, and what these must be.
    fn planned(
        &self,
        operation: Operation,
        spec: &Spec,
        layout: &Layout,
        room: &mut Room,
    ) -> Result<(Planned, Vec<Dispatch<Place>>)> {
        let (work, source) = operation.work();
        let spec = if work == Work::Quantize { *spec } else { spec.loss(LossDetail::None) };
        let (scheme, units) = (spec.scheme, spec.units(&layout.shape)?);
        let row_elems = layout.shape.last().copied().unwrap_or(1);
        if layout.row_pitch_elems < row_elems {
            let strides_elems = vec![layout.row_pitch_elems, 1];
            return Err(Error::Strides { shape: layout.shape.clone(), strides_elems });
        }
        let borders_elems = borders(layout, units.elems())?;
        let request = Request {
            work,
            spec,
            source,
            units,
            elem_type: layout.elem_type,
            row_elems,
            row_pitch: layout.row_pitch_elems,
            borders_elems: &borders_elems,
        };
        let slots = request.slots();
        let (bits, elem_bytes) = (scheme.code().bits() as u64, layout.elem_type.bytes() as u64);
        // The bits of a slot that is read and of one that is written.
        let (in_bits, out_bits) = match work {
            Work::Dequantize => (bits, 32),
            Work::FakeQuantize => (8 * elem_bytes, 32),
            _ => (8 * elem_bytes, bits),
        };
        for (i, &border) in borders_elems.iter().enumerate() {
            let (slot, at) = (slots.of(border), slots.at_of(border));
            let is_whole = slot.is_multiple_of(8) && (work != Work::Dequantize || at.is_multiple_of(8));
            if !is_whole || !(at as u64 * in_bits).is_multiple_of(32) {
                let message = format!(
                    "slice {} begins at element {border}, the beginnings of whole words of codes are allowed",
                    i + 1
                );
                return Err(refused(Role::Input, message));
            }
        }
        let Stages { mut dispatches, cut, .. } = self.stages(&request);
        // Chunks that begin inside a word of codes would have to share it, or read vectors that begin anywhere.
        let is_whole = |slot: usize| {
            let words = out_bits == 32 || (slot as u64 * bits).is_multiple_of(32);
            words && (!slots.is_dense() || slot.is_multiple_of(8))
        };
        if !cut.chunks.iter().all(|(chunk, _)| is_whole(chunk.slots.start)) {
            let (found, allowed) = (units.units as u64, self.slab_units() as u64);
            return Err(Error::TooLarge { what: "the number of range units that are recorded", found, allowed });
        }

        // What a batch has in common is numbered through.
        let counts =
            if dispatches.iter().any(|dispatch| dispatch.program.kernel.counts()) { cut.chunks.len() } else { 0 };
        let counts_start = room.counts_bytes;
        room.counts_bytes += 4 * (TALLIES * counts) as u64;
        let (ranges_start, recipes_start) = (room.ranges_end, 4 * RECIPE_WORDS as u64 * room.recipes);
        let in_scratch = |space| operation.role(space) == Role::Scratch;
        let uses = |space| dispatches.iter().any(|d| d.buffers.iter().any(|(_, place)| place.space == space));
        if uses(Space::Ranges) && in_scratch(Space::Ranges) {
            room.ranges_end += 8 * units.units as u64;
        }
        if uses(Space::Recipes) {
            room.recipes += units.units as u64;
        }
        let has_loss = spec.loss != LossDetail::None;
        for (_, place) in dispatches.iter_mut().flat_map(|dispatch| &mut dispatch.buffers) {
            let by = match place.space {
                Space::Counts => counts_start,
                Space::Ranges if in_scratch(Space::Ranges) => ranges_start,
                Space::Recipes => recipes_start,
                _ => 0,
            };
            place.bytes = place.bytes.start + by..place.bytes.end + by;
        }
        let unit_bytes = 4 * units.units as u64;
        let of_bits = |slots: usize, bits: u64| (slots as u64 * bits).div_ceil(8);
        let vector_bytes = if work == Work::Dequantize { 4 } else { 4 * elem_bytes };
        let in_bytes = of_bits(slots.at_end(), in_bits).next_multiple_of(if work == Work::Dequantize { 4 } else { 16 });
        let out_bytes = of_bits(slots.count(), out_bits);
        let need = |exists: bool, bytes: u64, offset_alignment_bytes: u64, is_written: bool| {
            exists.then(|| Need { bytes: bytes.next_multiple_of(4), offset_alignment_bytes, is_written })
        };
        let (is_ranges, is_scales) = (work == Work::Ranges, work == Work::Scales);
        let computes = source == Source::Tensor;
        let elementwise = !is_ranges && !is_scales;
        let needs = Role::ALL.map(|role| match role {
            Role::Input => need(!is_scales, in_bytes, vector_bytes, false),
            Role::Output => need(elementwise, out_bytes, 4, true),
            Role::Scales => {
                need(!is_ranges && (!scheme.is_cast() || has_loss), unit_bytes, 4, computes || scheme.is_cast())
            }
            Role::ZeroPoints => need(!is_ranges && scheme.has_zero_point(), unit_bytes, 4, computes),
            Role::Counts => need(elementwise && work != Work::Dequantize, room.counts_bytes, 4, true),
            Role::Ranges => need(!elementwise, 2 * unit_bytes, 8, true),
            Role::LossSums => need(has_loss, unit_bytes * LOSS_WORDS as u64, 4, true),
            Role::AbsErrors => need(spec.loss == LossDetail::PerElement, 4 * slots.count() as u64, 4, true),
            Role::Scratch => need(true, room.scratch_bytes(), SCRATCH_ALIGNMENT, true),
        });
        let starts = |at: &dyn Fn(usize) -> usize, bits: u64| -> Vec<u64> {
            if borders_elems.is_empty() {
                return vec![];
            }
            std::iter::once(0).chain(borders_elems.iter().map(|&border| at(border) as u64 * bits / 8)).collect()
        };
        let slices = [starts(&|elem| slots.at_of(elem), in_bits), starts(&|elem| slots.of(elem), out_bits)];
        let words = |byte: u64| usize::try_from(byte / 4).unwrap_or(usize::MAX);
        let counts = words(counts_start)..words(room.counts_bytes);
        Ok((Planned { slots, elem_type: layout.elem_type, units: units.units, needs, slices, counts }, dispatches))
    }
}

/// Where slices but the first begin.
fn borders(layout: &Layout, elems: usize) -> Result<Vec<usize>> {
    let slices = &layout.slices_elems;
    let mut found = 0usize;
    let mut borders = vec![];
    for (i, &slice) in slices.iter().enumerate() {
        if slice == 0 && elems > 0 {
            return Err(refused(Role::Input, format!("slice {i} of no elements, 1 and more are allowed")));
        }
        if i > 0 {
            borders.push(found);
        }
        found = found.saturating_add(slice);
    }
    if !slices.is_empty() && found != elems {
        return Err(Error::LengthMismatch { what: "the slices", found_elems: found, expected_elems: elems });
    }
    Ok(if elems == 0 { vec![] } else { borders })
}

/// What every device allows as an offset of storage.
const SCRATCH_ALIGNMENT: u64 = 256;

/// The least that is both whole recipes and an offset of storage.
const RECIPE_GRANULE: u64 = SCRATCH_ALIGNMENT * RECIPE_WORDS as u64;

impl Room {
    /// Where recipes begin.
    fn recipes_start(&self) -> u64 {
        self.ranges_end.next_multiple_of(RECIPE_GRANULE)
    }

    fn scratch_bytes(&self) -> u64 {
        match self.recipes {
            0 => self.ranges_end,
            recipes => self.recipes_start() + 4 * RECIPE_WORDS as u64 * recipes,
        }
    }
}

/// A caller's buffers, by role: one each, or one per slice or tensor.
struct Given<'a>([Vec<(&'a wgpu::Buffer, u64)>; Role::ALL.len()]);

/// Bytes of a buffer that a role takes, and whether they are written.
type Held<'a> = (&'a wgpu::Buffer, Range<u64>, Role, bool);

/// Dispatches of one kernel that became one, and the windows that they bind.
struct Group<'a> {
    program: Program,
    pipeline: &'a wgpu::ComputePipeline,
    rows: Vec<Row<'a>>,
    windows: Vec<(u32, Space, &'a wgpu::Buffer, Range<u64>)>,
    workgroups: u64,
}

/// A dispatch among them, and the byte at which each of its places begins.
struct Row<'a> {
    step: &'a Step,
    starts: Vec<u64>,
}

impl Plan {
    /// What is done.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// How many tensors it is done to: 1, or those of a batch.
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// What is needed of the buffer with this role; `None` where there is none. In a batch that is the first tensor's, or
    /// what all share.
    pub fn need(&self, role: Role) -> Option<Need> {
        self.need_of(role, 0)
    }

    /// The same of each part that is given separately: of every tensor of a batch, of every slice. Counts and scratch are
    /// all tensors' together.
    pub fn needs(&self, role: Role) -> Vec<Need> {
        let parts = self.parts(role)[1];
        if self.need(role).is_none() {
            return vec![];
        }
        (0..parts).map(|part| self.need_of_part(role, part, parts)).collect()
    }

    fn need_of(&self, role: Role, tensor: usize) -> Option<Need> {
        let need = self.tensors.get(tensor)?.needs[role as usize]?;
        let bytes = match role {
            Role::Counts => self.shared.counts_bytes,
            Role::Scratch => self.shared.scratch_bytes(),
            _ => need.bytes,
        };
        Some(Need { bytes, ..need })
    }

    /// A buffer for this role alone, of usages `STORAGE`, `COPY_SRC` and `COPY_DST`; in a batch with room for all of its
    /// tensors, at [`offsets`](Self::offsets).
    ///
    /// # Errors
    /// [`Error::Binding`] where the plan has no such buffer; [`Error::OutOfMemory`] and [`Error::Gpu`].
    pub fn create(&self, role: Role) -> Result<wgpu::Buffer> {
        let (_, bytes) = self.packed(role);
        self.need(role).ok_or_else(|| refused(role, "this plan has none"))?;
        self.state.check_alive()?;
        let scopes = Scopes::open(&self.device, &self.state);
        let buffer = scopes.buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-quant {role}")),
            size: bytes.max(16).next_multiple_of(16),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        scopes.check()?;
        Ok(buffer)
    }

    /// Offsets for this role's tensors side by side in one buffer: one each, or one where all share it.
    pub fn offsets(&self, role: Role) -> Vec<u64> {
        self.packed(role).0
    }

    fn packed(&self, role: Role) -> (Vec<u64>, u64) {
        let tensors = if role.is_shared() { 1 } else { self.tensors.len() };
        let mut end = 0u64;
        let needs = (0..tensors).filter_map(|tensor| self.need_of(role, tensor));
        let place = |need: Need| {
            let start = end.next_multiple_of(need.offset_alignment_bytes);
            end = start + need.bytes;
            start
        };
        let offsets = needs.map(place).collect();
        (offsets, end)
    }

    /// Takes apart what a recording left in the buffer of counts; of a batch the sum of all tensors'.
    pub fn counts(&self, words: &[u32]) -> Counts {
        let [nan_elems, inf_elems, clipped_elems, ..] = tallies(words);
        Counts { clipped_elems, nan_elems, inf_elems }
    }

    /// The same of one tensor of a batch, from all tensors' words.
    pub fn counts_of(&self, tensor: usize, words: &[u32]) -> Counts {
        let range = self.tensors.get(tensor).map(|tensor| tensor.counts.clone());
        self.counts(range.and_then(|range| words.get(range)).unwrap_or_default())
    }

    /// Takes apart what a recording left in a tensor's buffers of counts, loss sums and scales, and, if it was asked for,
    /// of absolute errors.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when there are not as many as the plan needs.
    pub fn loss(&self, counts: &[u32], loss_sums: &[u32], scales: &[f32], abs_errors: Option<&[f32]>) -> Result<Loss> {
        let Some(Planned { slots, units, .. }) = self.tensors.first() else {
            return Err(refused(Role::LossSums, "this plan has no tensor"));
        };
        let has = |what, found_elems: usize, expected_elems: usize| {
            let is_enough = found_elems >= expected_elems;
            if is_enough { Ok(()) } else { Err(Error::LengthMismatch { what, found_elems, expected_elems }) }
        };
        has("the counts", counts.len(), usize::try_from(self.shared.counts_bytes / 4).unwrap_or(usize::MAX))?;
        has("the loss sums", loss_sums.len(), LOSS_WORDS * units)?;
        has("scales", scales.len(), *units)?;
        let errors = match abs_errors {
            Some(errors) => {
                has("the absolute errors", errors.len(), slots.count())?;
                Some(call::of_elems(*slots, errors[..slots.count()].to_vec()))
            }
            None => None,
        };
        let is_cast = self.spec.scheme.is_cast();
        Ok(call::loss(*slots, is_cast, tallies(counts), &loss_sums[..LOSS_WORDS * units], &scales[..*units], errors))
    }

    /// Binds buffers, each with the byte at which what it holds begins.
    ///
    /// Every role that the plan [needs](Self::need) is given once; those of a batch but counts and scratch once per tensor,
    /// in order; the input of a tensor in slices once per slice, its output once or once per slice. Offsets may be
    /// multiples of what [`Need::offset_alignment_bytes`] says, even where the device binds at larger multiples only.
    /// Buffers are of usage `STORAGE`. What is written overlaps with nothing; and since wgpu allows no dispatch that reads
    /// a buffer and writes it, what a kernel reads and what it writes are to be different buffers.
    ///
    /// Tensors of a batch share dispatches where they lie within what the device binds at once, in the same buffers.
    ///
    /// # Errors
    /// [`Error::Binding`], which names the buffer, what was found and what is allowed; [`Error::OutOfMemory`] and
    /// [`Error::DeviceLost`].
    pub fn bind(&self, buffers: &[(Role, &wgpu::Buffer, u64)]) -> Result<Bound> {
        let given = self.check(buffers)?;
        let groups = self.groups(&given)?;
        self.state.check_alive()?;
        let scopes = Scopes::open(&self.device, &self.state);
        let alignment = if self.batched {
            self.limits.min_storage_buffer_offset_alignment
        } else {
            self.limits.min_uniform_buffer_offset_alignment
        };
        let mut all = vec![];
        let mut at = vec![];
        for group in &groups {
            all.resize(all.len().next_multiple_of(alignment as usize), 0);
            let start = all.len();
            let mut first_workgroup = 0;
            for row in &group.rows {
                let params = Params { rows: saturate(group.rows.len()), first_workgroup, ..self.shifted(group, row) };
                all.extend_from_slice(bytemuck::bytes_of(&params));
                first_workgroup += saturate(usize::try_from(row.step.workgroups).unwrap_or(usize::MAX));
            }
            at.push(start as u64..all.len() as u64);
        }
        let table = scopes.buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant params"),
            size: (all.len().max(4) as u64).next_multiple_of(4),
            usage: if self.batched { wgpu::BufferUsages::STORAGE } else { wgpu::BufferUsages::UNIFORM },
            mapped_at_creation: true,
        });
        if let Ok(mut view) = table.get_mapped_range_mut(..all.len() as u64) {
            view.copy_from_slice(&all);
        }
        table.unmap();
        let binding = |binding, buffer, bytes: &Range<u64>| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: bytes.start,
                size: NonZeroU64::new(bytes.end - bytes.start),
            }),
        };
        let steps = groups.iter().zip(&at).map(|(group, at)| {
            let windows = group.windows.iter().map(|(number, _, buffer, window)| binding(*number, *buffer, window));
            let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&format!("wgpu-quant {}", group.program.label())),
                layout: &group.pipeline.get_bind_group_layout(0),
                entries: &std::iter::once(binding(0, &table, at)).chain(windows).collect::<Vec<_>>(),
            });
            Ok((group.pipeline.clone(), bind_group, grid(group.workgroups, self.workgroups_per_dimension)?))
        });
        let steps = steps.collect::<Result<_>>();
        scopes.check()?;
        Ok(Bound { steps: steps? })
    }

    /// Where a place of a tensor begins, and in which buffer.
    fn find<'a>(&self, given: &Given<'a>, tensor: usize, place: &Place) -> (&'a wgpu::Buffer, u64) {
        let role = self.operation.role(place.space);
        let entries = &given.0[role as usize];
        let start = place.bytes.start + if place.space == Space::Recipes { self.shared.recipes_start() } else { 0 };
        let slices = match role {
            Role::Input => &self.tensors[tensor].slices[0][..],
            Role::Output => &self.tensors[tensor].slices[1],
            _ => &[],
        };
        let (i, start) = match entries.len() {
            1 => (0, start),
            n if n == slices.len() => {
                let i = slices.partition_point(|&begin| begin <= start) - 1;
                (i, start - slices[i])
            }
            _ => (tensor, start),
        };
        (entries[i].0, entries[i].1 + start)
    }

    /// The dispatches, those of a batch together where they can be.
    fn groups<'a>(&'a self, given: &Given<'a>) -> Result<Vec<Group<'a>>> {
        let alignment = u64::from(self.limits.min_storage_buffer_offset_alignment);
        let most = self.limits.max_storage_buffer_binding_size;
        let mut groups: Vec<Group<'a>> = vec![];
        // The group that is being filled, by program.
        let mut open = HashMap::new();
        for step in &self.steps {
            let mut windows = vec![];
            let mut starts = vec![];
            for (binding, place) in &step.places {
                let (buffer, start) = self.find(given, step.tensor, place);
                // Recipes are counted from the beginning of the window.
                let back =
                    if place.space == Space::Recipes { place.bytes.start % RECIPE_GRANULE } else { start % alignment };
                // Whole words, and not beyond the buffer's end.
                let end = (start + place.bytes.end - place.bytes.start).next_multiple_of(4).min(buffer.size());
                windows.push((*binding, place.space, buffer, start - back..end));
                starts.push(start);
            }
            let row = Row { step, starts };
            if self.batched
                && let Some(&i) = open.get(&step.program)
            {
                let group: &mut Group<'a> = &mut groups[i];
                let joined = group.windows.iter().zip(&windows).map(|((.., held, a), (.., buffer, b))| {
                    let window = a.start.min(b.start)..a.end.max(b.end);
                    (held == buffer && window.end - window.start <= most).then_some(window)
                });
                let workgroups = group.workgroups + step.workgroups;
                if let Some(joined) = joined.collect::<Option<Vec<_>>>()
                    && grid(workgroups, self.workgroups_per_dimension).is_ok()
                {
                    for (window, joined) in group.windows.iter_mut().zip(joined) {
                        window.3 = joined;
                    }
                    group.workgroups = workgroups;
                    group.rows.push(row);
                    continue;
                }
            }
            open.insert(step.program, groups.len());
            let (program, pipeline, workgroups) = (step.program, &step.pipeline, step.workgroups);
            groups.push(Group { program, pipeline, rows: vec![row], windows, workgroups });
        }
        for group in &groups {
            self.check_access(group)?;
        }
        Ok(groups)
    }

    /// No dispatch may read a buffer that it writes.
    fn check_access(&self, group: &Group<'_>) -> Result<()> {
        let writes = |binding| group.program.kernel.writes(binding);
        for (binding, space, buffer, _) in &group.windows {
            let other = group.windows.iter().find(|other| other.2 == *buffer && writes(other.0) != writes(*binding));
            if let Some((_, other, ..)) = other {
                let (role, other) = (self.operation.role(*space), self.operation.role(*other));
                // The one that is written is named first.
                let (role, other) = if writes(*binding) { (role, other) } else { (other, role) };
                let message = format!(
                    "it is also the {other} buffer, and what a kernel reads and what it writes are to be different buffers"
                );
                return Err(refused(role, message));
            }
        }
        Ok(())
    }

    /// A row's parameters: how far behind the begin of what is bound each of its places begins.
    fn shifted(&self, group: &Group<'_>, row: &Row<'_>) -> Params {
        let step = row.step;
        let mut params = step.params;
        let mut seen = vec![];
        for (((binding, place), start), (.., window)) in step.places.iter().zip(&row.starts).zip(&group.windows) {
            // A place that stands in for another is bound twice.
            if seen.contains(&place.space) {
                continue;
            }
            seen.push(place.space);
            let bytes = usize::try_from(start - window.start).unwrap_or(usize::MAX);
            let words = saturate(bytes / 4);
            let mut first = |rest: u32| {
                // What is looked up row by row may begin anywhere; all else begins with a whole word or vector.
                params.first_at += rest;
                params.second_row_at = params.second_row_at.saturating_add(rest);
            };
            match place.space {
                _ if step.program.kernel == Kernel::Clear => params.out_at = words,
                Space::Elems => {
                    let elems = bytes / self.tensors[step.tensor].elem_type.bytes();
                    first(saturate(elems % 4));
                    params.x_at = saturate(elems / 4);
                }
                Space::Codes if !group.program.kernel.writes(*binding) => {
                    first(saturate(bytes % 4 * 8) / self.spec.scheme.code().bits());
                    params.codes_at = words;
                }
                Space::Codes | Space::Values => params.out_at = words,
                Space::Scales => params.scales_at = words,
                Space::ZeroPoints => params.zero_points_at = words,
                Space::Counts => params.counters += words,
                Space::Ranges => params.ranges_at = words / 2,
                Space::Recipes => params.recipes_at = words / saturate(RECIPE_WORDS),
                Space::LossSums => params.losses_at = words,
                Space::AbsErrors => params.errors_at = words,
                Space::Observed | Space::Unused => {}
            }
        }
        params
    }

    fn check<'a>(&self, buffers: &[(Role, &'a wgpu::Buffer, u64)]) -> Result<Given<'a>> {
        let mut given = Given(Default::default());
        let mut places = vec![];
        for &(role, buffer, offset) in buffers {
            let part = given.0[role as usize].len();
            given.0[role as usize].push((buffer, offset));
            if self.need(role).is_none() {
                return Err(refused(role, "this plan has none"));
            }
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(refused(role, format!("of usage {:?}, STORAGE is needed", buffer.usage())));
            }
            places.push((role, part, buffer, offset));
        }
        for role in Role::ALL.into_iter().filter(|&role| self.need(role).is_some()) {
            let allowed = self.parts(role);
            match given.0[role as usize].len() {
                0 => return Err(refused(role, "not given")),
                found if allowed.contains(&found) => {}
                found => {
                    let allowed = allowed.map(|n| n.to_string());
                    let allowed = if allowed[0] == allowed[1] { allowed[0].clone() } else { allowed.join(" or ") };
                    return Err(refused(role, format!("given {found} times, {allowed} are allowed")));
                }
            }
        }
        let mut bytes = vec![];
        for (role, part, buffer, offset) in places {
            let need = self.need_of_part(role, part, given.0[role as usize].len());
            let alignment = need.offset_alignment_bytes;
            if offset % alignment != 0 {
                return Err(refused(role, format!("at byte {offset}, multiples of {alignment} are allowed")));
            }
            let left = buffer.size().saturating_sub(offset);
            if left < need.bytes || offset > buffer.size() {
                let message = format!("of {left} bytes from byte {offset} on, {} are needed", need.bytes);
                return Err(refused(role, message));
            }
            bytes.push((buffer, offset..offset + need.bytes, role, need.is_written));
        }
        bytes.sort_by(|(a, x, ..), (b, y, ..)| a.cmp(b).then(x.start.cmp(&y.start)));
        // The place that reaches furthest so far, and the written one that does.
        let mut furthest: [Option<&Held<'a>>; 2] = [None, None];
        for place in &bytes {
            let (buffer, at, role, is_written) = place;
            let meets = |other: &&Held<'a>| other.0 == *buffer && other.1.end > at.start;
            let other = if *is_written { furthest[0] } else { furthest[1] };
            if let Some((.., other, _)) = other.filter(|other| meets(other) && !at.is_empty()) {
                return Err(refused(*role, format!("its bytes {}..{} are {other} too", at.start, at.end)));
            }
            for (i, furthest) in furthest.iter_mut().enumerate() {
                let reaches = furthest.is_none_or(|f| f.0 != *buffer || f.1.end < at.end);
                if reaches && (i == 0 || *is_written) {
                    *furthest = Some(place);
                }
            }
        }
        Ok(given)
    }

    /// How often a role is given.
    fn parts(&self, role: Role) -> [usize; 2] {
        let slices = self.tensors.first().map_or(1, |tensor| tensor.slices[0].len().max(1));
        match role {
            _ if role.is_shared() => [1; 2],
            _ if self.batched => [self.tensors.len(); 2],
            Role::Input => [slices; 2],
            Role::Output => [1, slices],
            _ => [1; 2],
        }
    }

    /// What is needed of a tensor's or a slice's buffer, where a role is given so many times.
    fn need_of_part(&self, role: Role, part: usize, parts: usize) -> Need {
        let tensor = if self.batched && !role.is_shared() { part } else { 0 };
        let need = self.need_of(role, tensor).expect("checked before");
        let starts = match role {
            Role::Input => &self.tensors[tensor].slices[0],
            Role::Output => &self.tensors[tensor].slices[1],
            _ => return need,
        };
        if self.batched || parts == 1 {
            return need;
        }
        let end = starts.get(part + 1).copied().unwrap_or(need.bytes);
        Need { bytes: end - starts[part], ..need }
    }
}

fn refused(role: Role, message: impl Into<String>) -> Error {
    Error::Binding { buffer: role.to_string(), message: message.into() }
}
