//! How work is cut: slots into chunks that fit a buffer each, range units into slabs that do, chunks into workgroups.

use super::Gpu;
use super::job::Dispatch;
use super::params::Params;
use super::shader::{
    self, HELD_ELEMS, Kernel, LOSS_WORDS, MIN_RUN, ONCE_LEAST_ELEMS, ONCE_UNITS, Program, RECIPE_WORDS, Shape,
    TABLE_UNITS,
};
use crate::layout::{Chunk, RangeUnits, Slots, saturate};
use std::ops::Range;

/// What a binding may begin before the bytes that it is for.
const BINDING_SLACK_BYTES: usize = 256;

/// Fewer range units than this leave workgroups idle when each takes a whole one, unless they are short.
const FEW_UNITS: usize = 64;
/// Tiles that keep a large device busy: of fewer elements tiles are shorter.
const ENOUGH_TILES: u32 = 1024;

/// Counters per chunk.
pub(super) const TALLIES: usize = shader::TALLIES.len();

/// An operation's pieces. Both are usually one.
pub(super) struct Cut {
    pub(super) slabs: Vec<Range<usize>>,
    pub(super) chunks: Vec<(Chunk, Params)>,
}

impl Gpu {
    /// The most slots of so many bytes that one buffer can hold here.
    fn chunk_slots(&self, slot_bytes: usize) -> u32 {
        let slots = saturate(
            usize::try_from(self.max_buffer_bytes()).unwrap_or(usize::MAX).saturating_sub(BINDING_SLACK_BYTES)
                / slot_bytes,
        );
        let invocations = u32::try_from(self.invocations()).unwrap_or(u32::MAX);
        let most = slots.min(self.tuning.chunk_elems).min(invocations);
        // Large chunks begin where tiles and rows of a power of two do, so that a tile sees one row.
        if most >= 1 << 20 { most & !0xffff } else { (most & !7).max(8) }
    }

    /// The most invocations of one dispatch.
    pub(super) fn invocations(&self) -> u64 {
        let workgroups = u64::from(self.workgroups_per_dimension());
        workgroups * workgroups * u64::from(self.tuning.workgroup)
    }

    /// The most range units whose entries fit in one buffer here.
    pub(super) fn slab_units(&self) -> usize {
        let widest = 4 * LOSS_WORDS.max(RECIPE_WORDS) as u64;
        let units = usize::try_from(self.max_buffer_bytes().saturating_sub(BINDING_SLACK_BYTES as u64) / widest)
            .unwrap_or(usize::MAX);
        let invocations = usize::try_from(self.invocations()).unwrap_or(usize::MAX);
        units.min(self.tuning.slab_units).min(invocations).max(1)
    }

    /// The chunks of a tensor, each with its parameters. `slot_bytes` is the most that a slot takes in any buffer,
    /// `tile_elems` what chunks must be a multiple of, `borders` the slots that no chunk crosses.
    pub(super) fn cut_work(
        &self,
        slots: Slots,
        numbers: Params,
        slot_bytes: usize,
        tile_elems: u32,
        borders: &[usize],
    ) -> Cut {
        let slabs = slots.slabs(self.slab_units());
        // What is read may lie further apart than it is long.
        let spread = slots.row_pitch.div_ceil(slots.row_elems.max(1)).max(1);
        let chunk_slots = self.chunk_slots(slot_bytes.saturating_mul(spread));
        // So many together begin and end with a tile, or with a run that tiles can be fitted to.
        let together = match saturate(slots.run_slots()) {
            _ if tile_elems > 0 => tile_elems,
            run if slots.is_dense() && run.is_multiple_of(8) && (1024..=chunk_slots).contains(&run) => run,
            _ => 1,
        };
        let chunk_slots = (chunk_slots / together).max(1) * together;
        let params = |(i, chunk): (usize, &Chunk)| {
            let params = Params {
                elems: saturate(chunk.slots.len()),
                first_unit: saturate(chunk.first_unit),
                first_left: saturate(chunk.first_left),
                run: saturate(slots.run_slots()),
                units: saturate(slabs[chunk.slab].len()),
                counters: saturate(i * TALLIES),
                tile_elems,
                ..numbers
            };
            if chunk.slots.end <= slots.full_units() {
                return params;
            }
            Params {
                row_slots: saturate(slots.row_slots),
                row_elems: saturate(slots.row_elems),
                row_pitch: saturate(slots.row_pitch),
                row_units: saturate(slots.row_units()),
                first_row_slots: saturate(chunk.first_row_slots),
                first_row_elems: saturate(chunk.first_row_elems),
                first_row_runs: saturate(chunk.first_row_runs),
                first_at: saturate(chunk.first_at),
                second_row_at: saturate(chunk.second_row_at),
                ..params
            }
        };
        let chunks = slots.chunks(chunk_slots, &slabs, borders);
        let params: Vec<Params> = chunks.iter().enumerate().map(params).collect();
        Cut { slabs, chunks: chunks.into_iter().zip(params).collect() }
    }

    /// The slots of a tile that is quantized in one pass; `None` where range units do not fit or follow each other, or
    /// a border cuts one.
    pub(super) fn once(&self, kernel: Kernel, slots: Slots, slot_bytes: usize, borders: &[usize]) -> Option<u32> {
        let RangeUnits { outer, units, inner_elems, .. } = slots.units;
        let most = kernel.tile_elems(self.tuning.workgroup).min(self.chunk_slots(slot_bytes)) as usize & !7;
        if !self.tuning.one_pass || !slots.is_dense() || outer != 1 || inner_elems == 0 || inner_elems > most {
            return None;
        }
        if slots.slabs(self.slab_units()).len() > 1 || borders.iter().any(|border| border % inner_elems != 0) {
            return None;
        }
        if units == 1 {
            let whole = !kernel.writes_values() || inner_elems.is_multiple_of(4);
            return whole.then(|| saturate(inner_elems.next_multiple_of(8)));
        }
        if !inner_elems.is_multiple_of(4) {
            return None;
        }
        // A workgroup is busy with a long unit for long, while others of a device have nothing to do.
        if inner_elems > ONCE_LEAST_ELEMS as usize && units < FEW_UNITS {
            return None;
        }
        // So many units end with a block of 8 slots, and so with a whole word of codes.
        let together = 8 >> inner_elems.trailing_zeros().min(3);
        let wanted = (ONCE_LEAST_ELEMS as usize).min(most) / inner_elems / together * together;
        let tile_elems = wanted.clamp(together, ONCE_UNITS as usize) * inner_elems;
        (tile_elems <= most).then(|| saturate(tile_elems))
    }

    /// A dispatch that visits every slot of a chunk, as rows.
    pub(super) fn over_rows<B: Clone>(&self, program: Program, params: Params, buffers: &[(u32, &B)]) -> Dispatch<B> {
        let kernel = program.kernel;
        let (shape, params) = if let Some((shape, params)) = self.held(program, &params) {
            (shape, params)
        } else {
            let mut most = kernel.tile_elems(self.tuning.workgroup);
            if kernel == Kernel::QuantizeLoss {
                let runs = kernel.slots(self.tuning.workgroup) / 2 - 1;
                let fair = (params.elems / ENOUGH_TILES).next_power_of_two().max(16 * self.tuning.workgroup);
                // A software adapter is never idle, and does not gain by longer ones.
                most = if self.tuning.spread { most.min(fair) } else { most / 2 };
                most = most.min(params.run.saturating_mul(runs) & !7).max(8);
            }
            let tile_elems = if kernel.is_once() { params.tile_elems } else { fit_tile(most, &params) };
            let params = Params { tile_elems, ..params };
            let whole = !kernel.writes_values() || params.elems.is_multiple_of(4);
            match fours(&params).filter(|_| whole && kernel.takes_fours()) {
                // Most tiles are of several units then.
                Some(params) if kernel.takes_several() && params.run <= tile_elems / 2 => (Shape::Several, params),
                // Of all tiles but some, all is of the first unit.
                Some(params)
                    if program.has_tables() && self.tuning.spread && !kernel.is_once() && params.run >= tile_elems =>
                {
                    (Shape::Table, params)
                }
                Some(params) => (Shape::Fours, params),
                None => (Shape::Any, params),
            }
        };
        let workgroups = u64::from(params.elems).div_ceil(params.tile_elems.into());
        Dispatch::new(program.shape(shape), params, buffers, workgroups)
    }

    /// Where invocations can hold their slots, the form for it: a chunk of whole units, of whole pieces each.
    fn held(&self, program: Program, params: &Params) -> Option<(Shape, Params)> {
        let kernel = program.kernel;
        let &Params { elems, run, .. } = params;
        let most = HELD_ELEMS * self.tuning.workgroup;
        let whole = run > 0 && run.is_multiple_of(HELD_ELEMS) && elems.is_multiple_of(run) && params.first_left == run;
        let alone = run == HELD_ELEMS;
        // With the loss it is worth it where the units are few enough for tables.
        let spread =
            self.tuning.spread && (!kernel.sums_loss() || program.has_tables() && most / run.max(1) <= TABLE_UNITS);
        // What is an invocation's own lies apart from its neighbours', and so would the values.
        let far = alone && spread && kernel.writes_values();
        if !self.tuning.held || !kernel.is_once() || far || !whole || run > most || params.row_slots > 0 {
            return None;
        }
        let tile_units = (most / run).min(if alone { most } else { ONCE_UNITS });
        let tile_elems = tile_units * run;
        let shape = Shape::Held { alone, unclipped: params.unclipped(), spread: spread && !alone };
        // Where there is one unit, it is the first.
        let params = fours(&Params { tile_elems, tile_units, ..*params })?;
        Some((shape, Params { run, ..params }))
    }

    /// The same for a reduction per range unit: run by run or as columns where runs are short.
    pub(super) fn over_runs<B: Clone>(
        &self,
        program: Program,
        units: RangeUnits,
        params: Params,
        buffers: &[(u32, &B)],
    ) -> Dispatch<B> {
        if !(params.units > 1 && params.run < MIN_RUN) {
            return self.over_rows(program, params, buffers);
        }
        let elems = u64::from(params.elems);
        let dispatch = |stride: u64, invocations: u64| {
            let params = Params { stride: u32::try_from(stride).unwrap_or(u32::MAX), ..params };
            Dispatch::new(program, params, buffers, invocations.div_ceil(self.tuning.workgroup.into()))
        };
        if units.outer == 1 && params.row_slots == 0 {
            let rest = elems.saturating_sub(params.first_left.into());
            return dispatch(1, 1 + rest.div_ceil(params.run.into()));
        }
        // A whole number of periods, and enough neighbours to fill some workgroups. A chunk within one period
        // is a single row, of which every invocation sees one slot.
        let period = match params.row_units {
            0 => u64::from(params.run) * u64::from(params.units),
            _ if units.outer == 1 => elems,
            _ => u64::from(params.row_slots),
        };
        let wanted = u64::from(4 * self.tuning.workgroup);
        let stride = (period * wanted.div_ceil(period)).min(elems);
        let rows = elems.div_ceil(stride);
        dispatch(stride, stride * rows.div_ceil(u64::from(8 * program.kernel.blocks(self.tuning.workgroup))))
    }

    /// A dispatch with an invocation for each of so many.
    pub(super) fn over_units<B: Clone>(
        &self,
        program: Program,
        params: Params,
        buffers: &[(u32, &B)],
        units: u64,
    ) -> Dispatch<B> {
        Dispatch::new(program, params, buffers, units.div_ceil(self.tuning.workgroup.into()))
    }
}

/// The slots of a workgroup's tile: the most, or somewhat fewer where that makes each tile a part of one run.
fn fit_tile(most: u32, params: &Params) -> u32 {
    let run = params.run;
    if params.row_slots > 0 || params.units < 2 || run < most / 8 {
        return most;
    }
    let tile = run / run.div_ceil(most);
    let fits = tile >= most / 8 && tile.is_multiple_of(8) && run.is_multiple_of(tile);
    if fits && params.first_left.is_multiple_of(tile) { tile } else { most }
}

/// The parameters of a chunk whose vectors of four slots lie in one run each, and are read as they lie; `None` where they
/// do not, or units repeat.
fn fours(params: &Params) -> Option<Params> {
    let &Params { elems, first_unit, first_left, run, units, tile_elems, .. } = params;
    if params.row_slots > 0 {
        return None;
    }
    if first_left >= elems {
        return Some(Params { run: u32::MAX, run_factor: 0, first_offset: 0, ..*params });
    }
    let first_offset = run.checked_sub(first_left).filter(|_| run < u32::MAX)?;
    let runs = 1 + u64::from(elems - first_left).div_ceil(run.into());
    let fits = u64::from(first_offset) + u64::from(elems) < 1 << 32;
    if !fits || run % 4 > 0 || first_left % 4 > 0 || u64::from(first_unit) + runs > units.into() {
        return None;
    }
    // A run that is as long as a tile needs no division.
    let shift = 15 + run.next_power_of_two().trailing_zeros();
    let (run_factor, run_shift) = if run >= tile_elems { (0, 0) } else { ((1u32 << shift).div_ceil(run), shift) };
    Some(Params { run_factor, run_shift, first_offset, ..*params })
}

/// Whether a tensor's runs are so short that the loss takes passes of its own, unless it is quantized in one pass.
pub(crate) fn has_short_runs(units: RangeUnits) -> bool {
    units.units > 1 && units.inner_elems < MIN_RUN as usize
}

/// The slots of a row of codes of so many bits.
fn code_row_slots(row_elems: usize, bits: u32) -> usize {
    if bits == 4 { row_elems.next_multiple_of(2) } else { row_elems }
}

/// The slots of rows of elements whose codes have so many bits.
pub(super) fn slots_of_rows(row_elems: usize, row_pitch: usize, units: RangeUnits, bits: u32) -> Slots {
    let align = if bits == 4 { 2 } else { 1 };
    let row_slots = code_row_slots(row_elems, bits);
    Slots { units, row_elems, row_slots, row_pitch, align }
}

/// The slots of codes that are read.
pub(super) fn slots_of_codes(row_elems: usize, units: RangeUnits, bits: u32) -> Slots {
    let row_pitch = code_row_slots(row_elems, bits);
    Slots { units, row_elems, row_slots: row_elems, row_pitch, align: if bits == 4 { 2 } else { 1 } }
}

/// The bytes of these slots' codes; 4-bit codes begin with a byte.
pub(super) fn code_range(slots: &Range<usize>, bits: u32) -> Range<usize> {
    let bits = bits as usize;
    slots.start * bits / 8..(slots.end * bits).div_ceil(8)
}
