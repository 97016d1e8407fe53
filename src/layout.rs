//! Shapes and lengths, in whole numbers: which element belongs to which range unit.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Which elements share a scale: the tensor, each index of one axis, or so many neighbours.
///
/// Written `tensor`, `channel=K` and `group=N`; a negative `K` counts from the last axis. Groups are N consecutive
/// elements of the last axis and never cross its end, so that the last group of a row may be short.
///
/// ```
/// use wgpu_quant::Granularity;
/// assert_eq!("channel=-1".parse::<Granularity>()?, Granularity::Channel(-1));
/// assert_eq!("group=32".parse::<Granularity>()?, Granularity::Group(32));
/// assert_eq!(Granularity::Tensor.to_string(), "tensor");
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Granularity {
    /// One scale for the whole tensor.
    #[default]
    Tensor,
    /// One scale per index of this axis; negative counts from the end.
    Channel(i32),
    /// One scale per so many consecutive elements of the last axis; 1 and more.
    Group(usize),
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.pad("tensor"),
            Self::Channel(axis) => f.pad(&format!("channel={axis}")),
            Self::Group(n) => f.pad(&format!("group={n}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = match text.split_once('=') {
            None if text == "tensor" => Some(Self::Tensor),
            Some(("channel", axis)) => axis.parse().ok().map(Self::Channel),
            Some(("group", n)) => n.parse().ok().filter(|&n| n > 0).map(Self::Group),
            _ => None,
        };
        parsed.ok_or_else(|| Error::UnknownGranularity { found: text.to_owned() })
    }
}

/// The number of elements of a shape; the empty shape is a scalar and holds one.
///
/// # Errors
/// [`Error::ShapeOverflow`] when the product does not fit in a `usize`.
pub fn elems(shape: &[usize]) -> Result<usize> {
    // A zero dimension makes the tensor empty, however large the others are.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
}

/// The most range units of a tensor without elements: its shape, a few bytes in a hostile file, is no evidence that the
/// terabytes for their scales are there.
const MOST_EMPTY_UNITS: usize = 1 << 20;

/// How a tensor falls into range units.
///
/// Seen as `[outer, units, inner]` in row-major order, element `i` belongs to unit `(i / inner) % units`:
/// `channel=K` of shape `[d0 .. dn]` has `outer = d0 * .. * d(K-1)`, `units = dK`, `inner = d(K+1) * .. * dn`;
/// `tensor` has one unit; `group=N` has `inner = N`, or `dn` where that is less. Only groups that do not divide
/// their row are not of this form: they begin anew with each row, and the last one is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeUnits {
    /// How often the sequence of units repeats.
    pub outer: usize,
    /// The number of range units, and so of scales.
    pub units: usize,
    /// Consecutive elements of one unit; of short groups those of the others.
    pub inner_elems: usize,
    /// The elements of a row whose last group is short; 0 where there is no short group.
    pub ragged_row_elems: usize,
}

impl RangeUnits {
    /// The range units of a shape.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`] when the axis does not exist, [`Error::ScalarHasNoGroups`],
    /// [`Error::UnknownGranularity`] of groups of 0, and [`Error::ShapeOverflow`] when the shape is too large to
    /// address, or empty with more than 2^20 range units.
    pub fn new(shape: &[usize], granularity: Granularity) -> Result<Self> {
        let all = elems(shape)?;
        // Nothing else bounds the scales of a tensor without elements.
        let few = |units| {
            let is_few = units <= MOST_EMPTY_UNITS;
            if is_few { Ok(units) } else { Err(Error::ShapeOverflow { shape: shape.to_vec() }) }
        };
        let uniform = |outer, units, inner_elems| Self { outer, units, inner_elems, ragged_row_elems: 0 };
        match granularity {
            Granularity::Tensor => Ok(uniform(1, 1, all)),
            Granularity::Channel(axis) => {
                let rank = shape.len();
                let from_start = if axis < 0 { axis + i32::try_from(rank).unwrap_or(i32::MAX) } else { axis };
                let k = usize::try_from(from_start)
                    .ok()
                    .filter(|&k| k < rank)
                    .ok_or(Error::AxisOutOfRange { axis, rank })?;
                if all == 0 {
                    return Ok(uniform(0, few(shape[k])?, 0));
                }
                Ok(uniform(shape[..k].iter().product(), shape[k], shape[k + 1..].iter().product()))
            }
            Granularity::Group(0) => Err(Error::UnknownGranularity { found: granularity.to_string() }),
            Granularity::Group(n) => {
                let Some((&row, outer)) = shape.split_last() else {
                    return Err(Error::ScalarHasNoGroups { granularity });
                };
                let rows = elems(outer)?;
                let groups = row.div_ceil(n);
                if all == 0 {
                    let units =
                        rows.checked_mul(groups).ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })?;
                    return Ok(uniform(0, few(units)?, 0));
                }
                let ragged_row_elems = if n < row && !row.is_multiple_of(n) { row } else { 0 };
                Ok(Self { outer: 1, units: rows * groups, inner_elems: n.min(row), ragged_row_elems })
            }
        }
    }

    /// Groups per row, where the last one is short.
    pub(crate) fn ragged_row_units(self) -> usize {
        self.ragged_row_elems.div_ceil(self.inner_elems.max(1))
    }

    /// The number of elements.
    pub fn elems(self) -> usize {
        match self.ragged_row_elems {
            0 => self.outer * self.units * self.inner_elems,
            row => self.units / self.ragged_row_units() * row,
        }
    }

    /// The unit of element `i`.
    pub fn unit_of(self, i: usize) -> usize {
        match self.ragged_row_elems {
            0 => (i / self.inner_elems) % self.units,
            row => i / row * self.ragged_row_units() + i % row / self.inner_elems,
        }
    }

    /// Where the run of element `i` ends.
    pub(crate) fn run_end(self, i: usize) -> usize {
        match self.ragged_row_elems {
            0 => i - i % self.inner_elems + self.inner_elems,
            row => {
                let (start, column) = (i - i % row, i % row);
                start + (column - column % self.inner_elems + self.inner_elems).min(row)
            }
        }
    }

    /// The shape of the scales: `[]` per tensor, `[dK]` per channel, `[d0 .. d(n-1), ceil(dn / N)]` per group.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn scale_shape(shape: &[usize], granularity: Granularity) -> Result<Vec<usize>> {
        let units = Self::new(shape, granularity)?;
        Ok(match (granularity, shape.split_last()) {
            (Granularity::Tensor, _) => vec![],
            (Granularity::Group(n), Some((row, outer))) => [outer, &[row.div_ceil(n)]].concat(),
            _ => vec![units.units],
        })
    }
}

/// A tensor's slots, in order: its elements, row by row, with what fills up rows where their codes end within a byte.
///
/// `at` counts elements in what is read, whose rows may lie apart.
#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the device cuts tensors into chunks"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) units: RangeUnits,
    pub(crate) row_elems: usize,
    pub(crate) row_slots: usize,
    pub(crate) row_pitch: usize,
    /// What is read can only be cut at multiples of so many elements, chunks only at as many slots.
    pub(crate) align: usize,
}

/// Consecutive slots that fit one buffer, of range units of one slab.
#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the device cuts tensors into chunks"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) slots: Range<usize>,
    pub(crate) slab: usize,
    /// What is read for it.
    pub(crate) at: Range<usize>,
    /// The unit of its first slot, counted within the slab.
    pub(crate) first_unit: usize,
    /// What is left of the first slot's run.
    pub(crate) first_left: usize,
    /// What is left of the first slot's row.
    pub(crate) first_row_slots: usize,
    pub(crate) first_row_elems: usize,
    pub(crate) first_row_runs: usize,
    /// Where the first slot's element stands in what is read, and the second row.
    pub(crate) first_at: usize,
    pub(crate) second_row_at: usize,
}

#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the device cuts tensors into chunks"))]
impl Slots {
    /// Whether slots, elements and what is read are the same, and all runs are equally long.
    pub(crate) fn is_dense(self) -> bool {
        self.row_slots == self.row_elems && self.row_pitch == self.row_elems && self.units.ragged_row_elems == 0
    }

    /// The slots that lie densely and in runs of the same length: all, or of a single row those before its short last run.
    pub(crate) fn full_units(self) -> usize {
        let ragged = Self { units: RangeUnits { ragged_row_elems: 0, ..self.units }, ..self };
        match self.units.inner_elems {
            _ if self.is_dense() => self.count(),
            inner if ragged.is_dense() && self.count() == self.row_elems && inner > 0 => self.row_elems / inner * inner,
            _ => 0,
        }
    }

    /// Runs that begin in a row, where runs end with their row; else 0.
    pub(crate) fn row_units(self) -> usize {
        if self.units.inner_elems < self.row_elems { self.row_elems.div_ceil(self.units.inner_elems.max(1)) } else { 0 }
    }

    /// Slots per run; those of a row's last run may be fewer.
    pub(crate) fn run_slots(self) -> usize {
        let inner = self.units.inner_elems;
        if self.is_dense() || self.row_units() > 0 { inner } else { inner / self.row_elems.max(1) * self.row_slots }
    }

    pub(crate) fn count(self) -> usize {
        self.units.elems() / self.row_elems.max(1) * self.row_slots
    }

    /// Where what is read ends.
    pub(crate) fn at_end(self) -> usize {
        match self.units.elems() / self.row_elems.max(1) {
            0 => 0,
            rows => (rows - 1) * self.row_pitch + self.row_elems,
        }
    }

    /// The slot of an element.
    pub(crate) fn of(self, elem: usize) -> usize {
        let row_elems = self.row_elems.max(1);
        elem / row_elems * self.row_slots + elem % row_elems
    }

    /// Where an element stands in what is read.
    pub(crate) fn at_of(self, elem: usize) -> usize {
        let row_elems = self.row_elems.max(1);
        elem / row_elems * self.row_pitch + elem % row_elems
    }

    /// Range units cut so that the entries of each slab fit a buffer of `most`, and chunks can begin with a slab.
    pub(crate) fn slabs(self, most: usize) -> Vec<Range<usize>> {
        let RangeUnits { outer, units, .. } = self.units;
        // Slabs of so many units begin with a whole word of codes.
        let aligned = if self.align > 1 || most >= 8 { (most & !7).max(8) } else { most };
        let row_units = if outer == 1 && !self.is_dense() { self.row_units() } else { 0 };
        // Where groups begin anew with each row, a slab holds whole rows, or a part of one.
        let (period, step) = match row_units {
            0 => (units, aligned),
            _ if row_units <= most => {
                let rows = most / row_units;
                (units, (if rows < 8 { rows } else { rows & !7 }) * row_units)
            }
            _ => (row_units, aligned),
        };
        let mut slabs = vec![];
        for first in (0..units).step_by(period.max(1)) {
            let end = (first + period).min(units);
            slabs.extend((first..end).step_by(step).map(|start| start..(start + step).min(end)));
        }
        if slabs.is_empty() {
            slabs.push(0..0);
        }
        slabs
    }

    /// Cuts the tensor into chunks of at most this many slots, a multiple of 8, in order. None crosses a border, of which
    /// those inside the tensor are given as slots, in order.
    pub(crate) fn chunks(self, chunk_slots: u32, slabs: &[Range<usize>], borders: &[usize]) -> Vec<Chunk> {
        let RangeUnits { outer, units, inner_elems, ragged_row_elems } = self.units;
        let mut chunks = Vec::new();
        if self.count() == 0 {
            return chunks;
        }
        // Where there is one slab, runs of units follow each other through the whole tensor.
        let repeats = if slabs.len() == 1 { 1 } else { outer };
        let first_elem = |repeat: usize, unit: usize| match ragged_row_elems {
            0 => (repeat * units + unit) * inner_elems,
            row => {
                let row_units = self.units.ragged_row_units();
                unit / row_units * row + unit % row_units * inner_elems
            }
        };
        for repeat in 0..repeats {
            for (slab, range) in slabs.iter().enumerate() {
                let first = self.of(first_elem(repeat, range.start));
                let end = if slabs.len() == 1 { self.count() } else { self.of(first_elem(repeat, range.end)) };
                let mut start = first;
                while start < end {
                    let border = borders.get(borders.partition_point(|&border| border <= start)).copied();
                    let stop = start.saturating_add(chunk_slots as usize).min(border.unwrap_or(end)).min(end);
                    chunks.push(self.chunk(start..stop, slab, range.start));
                    start = stop;
                }
            }
        }
        chunks
    }

    fn chunk(self, slots: Range<usize>, slab: usize, slab_start: usize) -> Chunk {
        let Self { units, row_elems, row_slots, row_pitch, align } = self;
        let (row, column) = (slots.start / row_slots, slots.start % row_slots);
        let elem = row * row_elems + column;
        let first_left = if self.is_dense() || self.row_units() > 0 {
            units.run_end(elem) - elem
        } else {
            self.run_slots() - slots.start % self.run_slots()
        };
        let (last_row, last_column) = ((slots.end - 1) / row_slots, (slots.end - 1) % row_slots);
        let at = row * row_pitch + column;
        let window = at - at % align;
        Chunk {
            slab,
            at: window..last_row * row_pitch + last_column.min(row_elems - 1) + 1,
            first_unit: units.unit_of(elem) - slab_start,
            first_left,
            first_row_slots: row_slots - column,
            first_row_elems: row_elems - column,
            first_row_runs: self.row_units().saturating_sub(column / units.inner_elems),
            first_at: at - window,
            second_row_at: (row + 1) * row_pitch - window,
            slots,
        }
    }
}

#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only shaders need it"))]
/// A count as a shader sees it: all that lies beyond a chunk's end is as good as the largest u32.
pub(crate) fn saturate(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_axis_counts_from_either_end() {
        let units = |axis| RangeUnits::new(&[2, 3, 5], Granularity::Channel(axis)).unwrap();
        let uniform = |outer, units, inner_elems| RangeUnits { outer, units, inner_elems, ragged_row_elems: 0 };
        assert_eq!(units(1), uniform(2, 3, 5));
        assert_eq!(units(-3), uniform(1, 2, 15));
        assert_eq!(units(2), units(-1));
        assert_eq!(units(1).unit_of(14), 2);
        assert_eq!(units(1).unit_of(15), 0);
        for axis in [3, -4, i32::MIN, i32::MAX] {
            let error = RangeUnits::new(&[2, 3, 5], Granularity::Channel(axis)).unwrap_err();
            assert!(matches!(error, Error::AxisOutOfRange { rank: 3, .. }), "{error}");
        }
    }

    #[test]
    fn groups_never_cross_a_row_and_the_last_may_be_short() {
        let units = |shape: &[usize], n| RangeUnits::new(shape, Granularity::Group(n)).unwrap();
        let ragged = units(&[2, 3, 5], 2);
        assert_eq!((ragged.units, ragged.elems()), (18, 30));
        let of: Vec<_> = (0..10).map(|i| ragged.unit_of(i)).collect();
        assert_eq!(of, [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]);
        let ends: Vec<_> = (0..6).map(|i| ragged.run_end(i)).collect();
        assert_eq!(ends, [2, 2, 4, 4, 5, 7]);
        assert_eq!(units(&[4, 6], 3), units(&[8, 3], 100));
        assert_eq!(RangeUnits::scale_shape(&[4, 2, 7], Granularity::Group(3)).unwrap(), [4, 2, 3]);
        assert_eq!((units(&[3, 0], 4).units, units(&[0, 5], 4).units), (0, 0));
        assert!(matches!(RangeUnits::new(&[], Granularity::Group(4)), Err(Error::ScalarHasNoGroups { .. })));
        assert!(RangeUnits::new(&[4], Granularity::Group(0)).is_err());
    }

    #[test]
    fn an_empty_axis_and_an_empty_rest_are_told_apart() {
        let units = |shape: &[usize]| RangeUnits::new(shape, Granularity::Channel(0)).unwrap();
        assert_eq!((units(&[3, 0]).units, units(&[3, 0]).elems()), (3, 0));
        assert_eq!((units(&[0, 3]).units, units(&[0, 3]).elems()), (0, 0));
        assert_eq!(RangeUnits::new(&[0], Granularity::Tensor).unwrap().units, 1);
        assert_eq!(elems(&[]).unwrap(), 1);
    }

    /// Every slot of a chunk by the words that a kernel gets, in the kernel's way.
    fn check_chunk(slots: Slots, chunk: &Chunk, slab: &Range<usize>) {
        let units = slots.units;
        for i in 0..chunk.slots.len() {
            let slot = chunk.slots.start + i;
            let (row, column) = (slot / slots.row_slots, slot % slots.row_slots);
            let elem = row * slots.row_elems + column.min(slots.row_elems - 1);
            assert!(slab.contains(&units.unit_of(elem)), "{slots:?} {chunk:?} {i}");
            let run = slots.run_slots();
            let (unit, at) = if i < chunk.first_row_slots {
                let j = i.min(chunk.first_row_elems - 1);
                let runs = if j < chunk.first_left { 0 } else { 1 + (j - chunk.first_left) / run };
                (chunk.first_unit + runs, chunk.first_at + i)
            } else {
                let j = i - chunk.first_row_slots;
                let (row, column) = (j / slots.row_slots, (j % slots.row_slots).min(slots.row_elems - 1));
                let unit = chunk.first_unit + chunk.first_row_runs + row * slots.row_units() + column / run;
                (unit, chunk.second_row_at + row * slots.row_pitch + column)
            };
            if slots.row_units() > 0 {
                assert_eq!(slab.start + unit % slab.len(), units.unit_of(elem), "{slots:?} {chunk:?} {i}");
            } else {
                let runs = if i < chunk.first_left { 0 } else { 1 + (i - chunk.first_left) / run };
                assert_eq!(slab.start + (chunk.first_unit + runs) % slab.len(), units.unit_of(elem));
            }
            if column < slots.row_elems {
                assert_eq!(chunk.at.start + at, row * slots.row_pitch + column, "{slots:?} {chunk:?} {i}");
                assert!(chunk.at.contains(&(chunk.at.start + at)));
            }
        }
    }

    #[test]
    fn chunks_cover_the_tensor_and_know_where_they_stand() {
        use Granularity::{Channel, Group, Tensor};
        for shape in [&[1000][..], &[2, 3, 7], &[50, 20], &[1000, 1], &[3, 20], &[5, 33], &[4, 3, 9], &[1]] {
            for granularity in [Tensor, Channel(0), Channel(-1), Group(1), Group(3), Group(4), Group(64)] {
                let units = RangeUnits::new(shape, granularity).unwrap();
                let row_elems = *shape.last().unwrap();
                for (row_slots, row_pitch, align) in [
                    (row_elems, row_elems, 1),
                    (row_elems.next_multiple_of(2), row_elems, 2),
                    (row_elems, row_elems + 5, 1),
                    (row_elems, row_elems.next_multiple_of(2), 2),
                ] {
                    let slots = Slots { units, row_elems, row_slots, row_pitch, align };
                    for (chunk_slots, most) in [(8, 8), (64, 16), (104, 9), (100_000, 10_000)] {
                        let slabs = slots.slabs(most);
                        assert_eq!(slabs.iter().map(ExactSizeIterator::len).sum::<usize>(), units.units);
                        for borders in [&[][..], &[8], &[16, 24, 104]] {
                            let mut next = 0;
                            for chunk in slots.chunks(chunk_slots, &slabs, borders) {
                                assert_eq!(chunk.slots.start, next);
                                check_chunk(slots, &chunk, &slabs[chunk.slab]);
                                next = chunk.slots.end;
                                assert!(!borders.iter().any(|b| (chunk.slots.start + 1..next).contains(b)));
                            }
                            assert_eq!(next, slots.count());
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn tensors_of_up_to_2_to_the_40_elements_are_cut_right() {
        use Granularity::{Channel, Group, Tensor};
        let side = 1usize << 20;
        for (shape, granularity) in [
            (vec![side, side], Tensor),
            (vec![side, side], Channel(0)),
            (vec![16, side >> 4, side], Channel(1)),
            (vec![side, side], Channel(1)),
            (vec![side, side], Group(1 << 14)),
            (vec![(1 << 32) + 7], Tensor),
            (vec![(1 << 17) + 3, (1 << 15) + 1], Group(1 << 10)),
            (vec![3, (1 << 31) + 5], Group(1 << 30)),
        ] {
            let units = RangeUnits::new(&shape, granularity).unwrap();
            let row_elems = *shape.last().unwrap();
            for (row_slots, align) in [(row_elems, 1), (row_elems.next_multiple_of(2), 2)] {
                let slots = Slots { units, row_elems, row_slots, row_pitch: row_elems, align };
                let slabs = slots.slabs(1 << 25);
                let chunks = slots.chunks((1 << 25) & !7, &slabs, &[]);
                let mut next = 0;
                for chunk in &chunks {
                    assert_eq!(chunk.slots.start, next, "{shape:?} {granularity}");
                    next = chunk.slots.end;
                    // The ends of the chunk, by the words that a kernel gets.
                    let first = chunk.slots.start / row_slots * row_elems + chunk.slots.start % row_slots;
                    let unit = units.unit_of(first.min(units.elems() - 1));
                    assert_eq!(slabs[chunk.slab].start + chunk.first_unit, unit, "{shape:?} {granularity} {chunk:?}");
                    for n in [chunk.slots.len(), chunk.first_unit, chunk.at.len()] {
                        assert!(u32::try_from(n).is_ok(), "{n} of {shape:?} {granularity}");
                    }
                }
                assert_eq!(next, slots.count());
                assert_eq!(slabs.iter().map(ExactSizeIterator::len).sum::<usize>(), units.units);
            }
        }
    }

    #[test]
    fn a_shape_that_overflows_is_refused_unless_it_is_empty() {
        assert!(matches!(elems(&[usize::MAX, 2]), Err(Error::ShapeOverflow { .. })));
        assert_eq!(elems(&[usize::MAX, 2, 0]).unwrap(), 0);
    }

    #[test]
    fn an_empty_tensor_has_no_endless_scales() {
        for (shape, granularity) in [
            (vec![usize::MAX, 0], Granularity::Channel(0)),
            (vec![0, (1 << 20) + 1], Granularity::Channel(1)),
            (vec![1 << 20, 1 << 20, 0, 5], Granularity::Group(2)),
        ] {
            let units = RangeUnits::new(&shape, granularity);
            // Groups of no row are none.
            let is_none = matches!(units, Ok(RangeUnits { units: 0, .. }));
            assert!(is_none || matches!(units, Err(Error::ShapeOverflow { .. })), "{shape:?}: {units:?}");
        }
        assert_eq!(RangeUnits::new(&[0, 1 << 20], Granularity::Channel(1)).unwrap().units, 1 << 20);
    }

    #[test]
    fn granularities_print_as_they_parse() {
        for text in ["tensor", "channel=0", "channel=-1", "group=1", "group=32"] {
            assert_eq!(text.parse::<Granularity>().unwrap().to_string(), text);
        }
        for text in ["", "channel", "channel=", "channel=x", "group", "group=0", "group=-1", "Tensor", "tensor=1"] {
            assert!(text.parse::<Granularity>().is_err(), "{text:?} parsed");
        }
    }
}
