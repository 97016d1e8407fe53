//! Recording into a caller's encoder: a plan is made once, bound to buffers as often as is wanted, and recorded.

use super::Gpu;
use super::call::{self, tallies};
use super::cut::TALLIES;
use super::job::{Dispatch, Scopes, grid};
use super::params::Params;
use super::role::{Layout, Need, Operation, Role, refused};
use super::shader::{Kernel, LOSS_WORDS, Program, RECIPE_WORDS};
use super::stages::{Place, Request, Source, Space, Stages, Work};
use super::state::State;
use crate::error::{Error, Result};
use crate::layout::Slots;
use crate::loss::Loss;
use crate::quantized::{Counts, LossDetail, Spec};
use crate::scheme::Scheme;
use crate::tensor::ElemType;
use std::ops::Range;
use std::sync::Arc;

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
    pub(super) device: wgpu::Device,
    pub(super) state: Arc<State>,
    pub(super) operation: Operation,
    pub(super) spec: Spec,
    pub(super) batched: bool,
    pub(super) tensors: Vec<Planned>,
    pub(super) steps: Vec<Step>,
    pub(super) shared: Room,
    pub(super) limits: wgpu::Limits,
    pub(super) workgroups_per_dimension: u32,
}

/// A tensor of a plan.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) slots: Slots,
    pub(super) elem_type: ElemType,
    pub(super) units: usize,
    pub(super) needs: [Option<Need>; Role::ALL.len()],
    /// Where each slice begins in the input and in the output; empty where there is one.
    pub(super) slices: [Vec<u64>; 2],
    /// Its words in the buffer of counts.
    pub(super) counts: Range<usize>,
}

/// What a plan's tensors have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) counts_bytes: u64,
    /// Ranges begin behind what is bound and not touched, recipes behind the ranges.
    pub(super) ranges_end: u64,
    pub(super) recipes: u64,
}

/// A dispatch over places.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) program: Program,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) params: Params,
    pub(super) tensor: usize,
    pub(super) places: Vec<(u32, Place)>,
    pub(super) workgroups: u64,
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
            if !slot.is_multiple_of(8) || !at.is_multiple_of(if work == Work::Dequantize { 8 } else { 4 }) {
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
        let in_vectors = work.writes_values() || dispatches.iter().any(|d| d.program.shape.is_held());
        let needs = Role::ALL.map(|role| match role {
            Role::Input => need(!is_scales, in_bytes, vector_bytes, false),
            Role::Output => need(elementwise, out_bytes, if in_vectors { 16 } else { 4 }, true),
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
pub(super) const RECIPE_GRANULE: u64 = SCRATCH_ALIGNMENT * RECIPE_WORDS as u64;

impl Room {
    /// Where recipes begin.
    pub(super) fn recipes_start(&self) -> u64 {
        self.ranges_end.next_multiple_of(RECIPE_GRANULE)
    }

    fn scratch_bytes(&self) -> u64 {
        match self.recipes {
            0 => self.ranges_end,
            recipes => self.recipes_start() + 4 * RECIPE_WORDS as u64 * recipes,
        }
    }
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

    pub(super) fn need_of(&self, role: Role, tensor: usize) -> Option<Need> {
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

    /// The bytes that they take together.
    pub(super) fn packed_bytes(&self, role: Role) -> usize {
        usize::try_from(self.packed(role).1).unwrap_or(usize::MAX)
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

    /// What the parameters of a binding of one tensor take.
    pub(super) fn params_bytes(&self) -> u64 {
        let alignment = self.limits.min_uniform_buffer_offset_alignment.into();
        self.steps.len() as u64 * (size_of::<Params>() as u64).next_multiple_of(alignment)
    }

    /// How often a role is given.
    pub(super) fn parts(&self, role: Role) -> [usize; 2] {
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
    pub(super) fn need_of_part(&self, role: Role, part: usize, parts: usize) -> Need {
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
