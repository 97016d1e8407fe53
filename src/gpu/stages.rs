//! The stages of an operation, in order: which kernels run over which places. Calls and recordings are made of them.

use super::Gpu;
use super::cut::{Cut, TALLIES, code_range, slots_of_codes, slots_of_rows};
use super::job::Dispatch;
use super::params::Params;
use super::shader::{Kernel, LOSS_WORDS, MIN_RUN, Program, RECIPE_WORDS};
use crate::layout::{Chunk, RangeUnits, Slots, saturate};
use crate::quantized::{LossDetail, Spec};
use crate::tensor::ElemType;
use std::ops::Range;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Codes of elements, and the loss that the specification asks for.
    Quantize,
    /// De-quantized values of elements.
    FakeQuantize,
    /// Values of codes.
    Dequantize,
    /// The loss of given codes.
    Loss,
    /// Ranges of elements, added to those that are there.
    Ranges,
    /// Scales and zero points of ranges.
    Scales,
}

impl Work {
    pub(super) fn writes_values(self) -> bool {
        matches!(self, Self::Dequantize | Self::FakeQuantize)
    }
}

/// Where scales and zero points come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The tensor.
    Tensor,
    /// They are there.
    Given,
    /// Ranges that were observed before.
    Observed,
}

/// What a place is part of. Each has a numbering of its own, as if it were one buffer, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Space {
    /// The elements.
    Elems,
    Codes,
    Values,
    Scales,
    ZeroPoints,
    Counts,
    /// The keys of each range unit.
    Ranges,
    /// The same, found before.
    Observed,
    Recipes,
    /// The loss's words of each range unit.
    LossSums,
    /// |x' - x| of each slot.
    AbsErrors,
    /// Bound as if it were written, and not touched.
    Unused,
}

impl Space {
    /// Its name, in labels and errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Elems => "input",
            Self::Codes => "codes",
            Self::Values => "values",
            Self::Scales => "scales",
            Self::ZeroPoints => "zero points",
            Self::Counts => "counts",
            Self::Ranges => "ranges",
            Self::Observed => "observed ranges",
            Self::Recipes => "recipes",
            Self::LossSums => "loss sums",
            Self::AbsErrors => "absolute errors",
            Self::Unused => "unused",
        }
    }
}

/// Bytes of a space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) space: Space,
    pub(super) bytes: Range<u64>,
}

impl Place {
    fn new(space: Space, bytes: Range<usize>) -> Self {
        Self { space, bytes: bytes.start as u64..bytes.end as u64 }
    }

    fn unused(n: usize) -> Self {
        Self::new(Space::Unused, 16 * n..16 * (n + 1))
    }

    /// Its length.
    pub(super) fn len_bytes(&self) -> usize {
        usize::try_from(self.bytes.end - self.bytes.start).unwrap_or(usize::MAX)
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) work: Work,
    pub(super) spec: Spec,
    pub(super) source: Source,
    pub(super) units: RangeUnits,
    pub(super) elem_type: ElemType,
    pub(super) row_elems: usize,
    pub(super) row_pitch: usize,
    /// Elements that begin a slice of the tensor.
    pub(super) borders_elems: &'a [usize],
}

impl Request<'_> {
    /// The slots that are visited.
    pub(super) fn slots(&self) -> Slots {
        let bits = self.spec.scheme.code().bits();
        match self.work {
            Work::Dequantize => slots_of_codes(self.row_elems, self.units, bits),
            Work::Quantize | Work::Loss => slots_of_rows(self.row_elems, self.row_pitch, self.units, bits),
            _ => slots_of_rows(self.row_elems, self.row_pitch, self.units, 32),
        }
    }
}

/// Dispatches over places, in order.
pub(super) struct Stages {
    pub(super) dispatches: Vec<Dispatch<Place>>,
    pub(super) cut: Cut,
    bits: u32,
    elem_bytes: usize,
}

impl Stages {
    /// What is read of the elements for a chunk, in whole vectors.
    fn elems(&self, chunk: &Chunk) -> Place {
        let start = (chunk.at.start + chunk.first_at) * self.elem_bytes;
        Place::new(Space::Elems, start..start + ((chunk.at.end * self.elem_bytes) - start).next_multiple_of(16))
    }

    /// A chunk's codes, one per slot.
    pub(super) fn codes(&self, chunk: &Chunk) -> Place {
        Place::new(Space::Codes, code_range(&chunk.slots, self.bits))
    }

    /// A chunk's values.
    pub(super) fn values(chunk: &Chunk) -> Place {
        Place::new(Space::Values, 4 * chunk.slots.start..4 * chunk.slots.end)
    }

    /// |x' - x| of a chunk's slots.
    pub(super) fn abs_errors(chunk: &Chunk) -> Place {
        Place::new(Space::AbsErrors, 4 * chunk.slots.start..4 * chunk.slots.end)
    }

    /// The counters of all chunks.
    pub(super) fn counts(&self) -> Place {
        Place::new(Space::Counts, 0..4 * TALLIES * self.cut.chunks.len())
    }

    /// What each of a slab's range units has in a space.
    pub(super) fn of_units(space: Space, slab: &Range<usize>) -> Place {
        let words = match space {
            Space::Ranges | Space::Observed => 2,
            Space::Recipes => RECIPE_WORDS,
            Space::LossSums => LOSS_WORDS,
            _ => 1,
        };
        Place::new(space, 4 * words * slab.start..4 * words * slab.end)
    }

    fn slab(&self, chunk: &Chunk) -> &Range<usize> {
        &self.cut.slabs[chunk.slab]
    }
}

impl Gpu {
    /// The stages of what is asked for.
    pub(super) fn stages(&self, request: &Request<'_>) -> Stages {
        let &Request { work, spec, source, units, elem_type, borders_elems, .. } = request;
        let scheme = spec.scheme;
        let slots = request.slots();
        let dequantizes = work == Work::Dequantize;
        let elem_bytes = if dequantizes { 4 } else { elem_type.bytes() };
        let mut borders: Vec<usize> = borders_elems.iter().map(|&elem| slots.of(elem)).collect();
        // Values are written in whole vectors, and what is left by itself.
        let all = slots.count();
        if work.writes_values() && !all.is_multiple_of(4) && all > 8 && slots.is_dense() {
            borders.push(all & !7);
        }
        let with_loss = spec.loss != LossDetail::None && matches!(work, Work::Quantize | Work::Loss);
        let is_given = source != Source::Tensor && !scheme.is_cast();
        let fake = work == Work::FakeQuantize;
        let once = match work {
            Work::Quantize | Work::FakeQuantize if !is_given && !scheme.is_cast() => {
                let kernel = if fake { Kernel::FakeQuantizeOnce } else { Kernel::QuantizeOnce };
                self.once(kernel, slots, elem_bytes.max(4), &borders)
            }
            _ => None,
        };
        // What comes before a short last unit is cut as if there was none.
        let full = slots.full_units();
        if 0 < full && full < slots.count() && full.is_multiple_of(8) {
            borders.push(full);
        }
        borders.sort_unstable();
        borders.dedup();
        let cut = self.cut_work(slots, Params::of(&spec), elem_bytes.max(4), once.unwrap_or(0), &borders);
        let bits = scheme.code().bits();
        let mut stages = Stages { dispatches: vec![], cut, bits, elem_bytes };
        let program = |kernel| Program::new(kernel, scheme, elem_type);
        // Where runs are short, neighbouring codes have different units, and the sums take a pass of their own; so do
        // those of casts, whose largest loss nothing tells beforehand.
        let short = stages.cut.chunks.iter().any(|(_, params)| params.units > 1 && params.run < MIN_RUN);
        let fused = with_loss && work == Work::Quantize && !scheme.is_cast() && (once.is_some() || !short);
        match work {
            Work::Dequantize => self.dequantize_stage(&mut stages, program(Kernel::Dequantize), scheme.is_cast()),
            Work::Quantize | Work::FakeQuantize => {
                if source == Source::Observed && is_given {
                    self.scale_stage(&mut stages, &spec, Space::Observed, (false, false));
                }
                // Given scales need no ranges, but the loss needs to know how far values lie beyond the codes.
                if once.is_none() && (with_loss || !(is_given || scheme.is_cast())) {
                    self.range_stage(&mut stages, units, program(Kernel::MinMax));
                }
                if once.is_none() && (with_loss || !scheme.is_cast()) {
                    self.scale_stage(&mut stages, &spec, Space::Ranges, (is_given, fused));
                }
                let kernel = match (fake, once.is_some(), fused) {
                    (true, true, _) => Kernel::FakeQuantizeOnce,
                    (true, false, _) => Kernel::FakeQuantize,
                    (false, true, true) => Kernel::QuantizeOnceLoss,
                    (false, true, false) => Kernel::QuantizeOnce,
                    (false, false, true) => Kernel::QuantizeLoss,
                    (false, false, false) => Kernel::Quantize,
                };
                self.quantize_stage(&mut stages, program(kernel), fake);
            }
            Work::Loss if scheme.is_cast() => {
                // The loss grid of a cast hangs on the range, by nominal scales.
                self.range_stage(&mut stages, units, program(Kernel::MinMax));
                self.scale_stage(&mut stages, &spec, Space::Ranges, (false, false));
            }
            Work::Loss => {}
            Work::Ranges => self.range_stage(&mut stages, units, program(Kernel::MinMax)),
            Work::Scales => self.scale_stage(&mut stages, &spec, Space::Ranges, (false, false)),
        }
        if with_loss {
            self.loss_stages(&mut stages, &spec, units, elem_type, !fused);
        }
        stages
    }

    fn dequantize_stage(&self, stages: &mut Stages, program: Program, is_cast: bool) {
        let mut dispatches = vec![];
        for (chunk, params) in &stages.cut.chunks {
            let slab = stages.slab(chunk);
            let codes = Place::new(Space::Codes, code_range(&chunk.at, stages.bits));
            let scales = if is_cast { codes.clone() } else { Stages::of_units(Space::Scales, slab) };
            let zero_points = zero_points(*params, slab).unwrap_or(scales.clone());
            let buffers = [(2, &codes), (3, &scales), (4, &Stages::values(chunk)), (5, &zero_points)];
            dispatches.push(self.over_rows(program, *params, &buffers));
        }
        stages.dispatches.extend(dispatches);
    }

    fn range_stage(&self, stages: &mut Stages, units: RangeUnits, program: Program) {
        let mut dispatches = vec![];
        for (chunk, params) in &stages.cut.chunks {
            let ranges = Stages::of_units(Space::Ranges, stages.slab(chunk));
            let buffers = [(2, &stages.elems(chunk)), (3, &ranges)];
            dispatches.push(self.over_runs(program, units, at_first(*params, chunk), &buffers));
        }
        stages.dispatches.extend(dispatches);
    }

    fn scale_stage(&self, stages: &mut Stages, spec: &Spec, ranges: Space, (given, with_loss): (bool, bool)) {
        let program = Program::new(Kernel::Scale, spec.scheme, ElemType::default());
        for slab in stages.cut.slabs.iter().filter(|slab| !slab.is_empty()) {
            let params = Params {
                units: saturate(slab.len()),
                given: given.into(),
                with_loss: with_loss.into(),
                ..Params::of(spec)
            };
            let losses = if with_loss { Stages::of_units(Space::LossSums, slab) } else { Place::unused(1) };
            let zero_points = zero_points(params, slab).unwrap_or(Place::unused(0));
            let [ranges, scales, recipes] =
                [ranges, Space::Scales, Space::Recipes].map(|space| Stages::of_units(space, slab));
            let buffers = [(2, &ranges), (3, &scales), (4, &recipes), (5, &losses), (6, &zero_points)];
            stages.dispatches.push(self.over_units(program, params, &buffers, slab.len() as u64));
        }
    }

    fn quantize_stage(&self, stages: &mut Stages, program: Program, fake: bool) {
        let kernel = program.kernel;
        let mut dispatches = vec![];
        for (chunk, params) in &stages.cut.chunks {
            let slab = stages.slab(chunk);
            let out = if fake { Stages::values(chunk) } else { stages.codes(chunk) };
            let space = if kernel.is_once() { Space::Scales } else { Space::Recipes };
            let (counts, elems, third) = (stages.counts(), stages.elems(chunk), Stages::of_units(space, slab));
            let losses = Stages::of_units(Space::LossSums, slab);
            let zero_points = zero_points(*params, slab).unwrap_or(Place::unused(0));
            let mut buffers = vec![(1, &counts), (2, &elems), (3, &third), (4, &out)];
            if matches!(kernel, Kernel::QuantizeLoss | Kernel::QuantizeOnceLoss) {
                buffers.push((5, &losses));
            }
            if kernel.is_once() {
                buffers.push((6, &zero_points));
            }
            dispatches.push(self.over_rows(program, at_first(*params, chunk), &buffers));
        }
        stages.dispatches.extend(dispatches);
    }

    /// The passes over given codes that are still missing: each unit's largest loss, with every element's if
    /// asked, and the sums.
    fn loss_stages(&self, stages: &mut Stages, spec: &Spec, units: RangeUnits, elem_type: ElemType, sums: bool) {
        let store = spec.loss == LossDetail::PerElement;
        let program = |kernel| Program::new(kernel, spec.scheme, elem_type);
        let largest = program(if store { Kernel::AbsErrorStore } else { Kernel::AbsError });
        let mut dispatches = vec![];
        let mut pass = |largest_pass: bool, program: Program| {
            for (chunk, params) in &stages.cut.chunks {
                let slab = stages.slab(chunk);
                let (elems, codes) = (stages.elems(chunk), stages.codes(chunk));
                let [scales, losses] = [Space::Scales, Space::LossSums].map(|space| Stages::of_units(space, slab));
                let zero_points = zero_points(*params, slab).unwrap_or(scales.clone());
                let errors = if store { Stages::abs_errors(chunk) } else { Place::unused(0) };
                let counts = stages.counts();
                let first = if largest_pass { (6, &errors) } else { (1, &counts) };
                let buffers = [first, (2, &elems), (3, &scales), (4, &codes), (5, &losses), (7, &zero_points)];
                dispatches.push(self.over_runs(program, units, at_first(*params, chunk), &buffers));
            }
        };
        if store || sums {
            pass(true, largest);
        }
        if sums {
            pass(false, program(Kernel::Loss));
        }
        stages.dispatches.extend(dispatches);
    }
}

/// The parameters of a chunk whose elements are bound from its first on.
fn at_first(params: Params, chunk: &Chunk) -> Params {
    if params.row_slots == 0 {
        return params;
    }
    Params { first_at: 0, second_row_at: saturate(chunk.second_row_at - chunk.first_at), ..params }
}

/// The zero points of a slab, where there are any. Where there are none a kernel still binds something: what it reads
/// anyway, or a place that nobody touches.
fn zero_points(params: Params, slab: &Range<usize>) -> Option<Place> {
    (params.has_zero_point == 1).then(|| Stages::of_units(Space::ZeroPoints, slab))
}
