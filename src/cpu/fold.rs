//! The traversal that all stages share: tasks over contiguous elements, cut where range units end.

use super::code::widen_f16;
use super::simd::{self, Map};
use crate::exact::widen::{from_bf16, read};
use crate::float_env;
use crate::layout::RangeUnits;
use crate::tensor::{ElemType, Tensor};
use crate::threads::share;
use std::ops::Range;

/// Elements per task: large enough to hide what a task costs, small enough to stay in a core's cache.
pub(super) const TASK_ELEMS: usize = 1 << 16;
/// Elements that a task looks at more than once before it goes on: few enough to stay in a core's first cache.
pub(super) const BLOCK_ELEMS: usize = 4096;

/// A stretch of consecutive elements of one range unit.
pub(super) struct Run {
    pub(super) unit: usize,
    pub(super) elems: Range<usize>,
    /// Whether this task may use float arithmetic; if not, it takes the integer twin.
    pub(super) ieee: bool,
}

/// Cuts `elems` into runs, in order.
pub(super) fn runs(units: RangeUnits, elems: Range<usize>) -> impl Iterator<Item = Run> {
    let ieee = float_env::is_ieee_default();
    let mut start = elems.start;
    let (mut unit, mut run_end) = if elems.is_empty() { (0, 0) } else { (units.unit_of(start), units.run_end(start)) };
    std::iter::from_fn(move || {
        if start >= elems.end {
            return None;
        }
        let end = run_end.min(elems.end);
        let run = Run { unit, elems: start..end, ieee };
        (start, unit) = (end, if unit + 1 == units.units { 0 } else { unit + 1 });
        // All runs but those of ragged units are equally long, and a division costs as much as some elements.
        run_end = if units.ragged_row_elems == 0 { end + units.inner_elems } else { units.run_end(end) };
        Some(run)
    })
}

/// Runs of fewer elements are better not looked at one by one.
pub(super) const FEW_ELEMS: usize = 256;

/// Each element's own scale and zero point.
#[derive(Default)]
pub(super) struct Spread {
    s: Vec<f32>,
    z: Vec<i32>,
}

impl Spread {
    /// Those of a block; without zero points 0.
    pub(super) fn of(
        &mut self,
        units: RangeUnits,
        elems: &Range<usize>,
        scales: &[f32],
        zero_points: &[i32],
    ) -> (&[f32], &[i32]) {
        spread(units, elems, scales, &mut self.s);
        spread(units, elems, zero_points, &mut self.z);
        (&self.s[..elems.len()], &self.z[..elems.len()])
    }
}

fn spread<V: Copy + Default>(units: RangeUnits, elems: &Range<usize>, values: &[V], out: &mut Vec<V>) {
    out.resize(out.len().max(elems.len()), V::default());
    if values.is_empty() {
        return;
    }
    let mut out = &mut out[..elems.len()];
    if units.inner_elems == 1 && units.ragged_row_elems == 0 {
        let mut unit = units.unit_of(elems.start);
        while !out.is_empty() {
            let (now, later) = out.split_at_mut(out.len().min(units.units - unit));
            now.copy_from_slice(&values[unit..unit + now.len()]);
            (out, unit) = (later, 0);
        }
        return;
    }
    for run in runs(units, elems.clone()) {
        out[run.elems.start - elems.start..run.elems.end - elems.start].fill(values[run.unit]);
    }
}

/// A tensor's values, block by block.
pub(super) struct Values<'a> {
    x: Tensor<'a>,
    all: Option<&'a [f32]>,
    buffer: Vec<f32>,
    ieee: bool,
}

impl<'a> Values<'a> {
    pub(super) fn new(x: Tensor<'a>) -> Self {
        Self { x, all: x.as_f32(), buffer: vec![], ieee: float_env::is_ieee_default() }
    }

    /// The values of a block. Those of other types, and of rows that lie apart, are first brought together as f32.
    pub(super) fn get(&mut self, elems: Range<usize>) -> &[f32] {
        if let Some(all) = self.all {
            return &all[elems];
        }
        let n = elems.len();
        if self.buffer.len() < n {
            self.buffer.resize(n, 0.0);
        }
        self.x.read_with(elems.start, &mut self.buffer[..n], |bytes, out| {
            widen(self.x.elem_type(), bytes, out, self.ieee)
        });
        &self.buffer[..n]
    }
}

/// The values that these bytes hold, in this machine's byte order.
fn widen(elem_type: ElemType, bytes: &[u8], out: &mut [f32], ieee: bool) {
    let halves = bytes.as_chunks().0;
    match elem_type {
        ElemType::F16 if ieee => {
            simd::run(Map { from: halves, to: out, f: |h| widen_f16(u16::from_ne_bytes(h).into()) })
        }
        ElemType::Bf16 => {
            let f = |h| f32::from_bits(from_bf16(u16::from_ne_bytes(h).into()));
            simd::run(Map { from: halves, to: out, f });
        }
        _ => read(elem_type, bytes, out),
    }
}

/// Cuts `elems` into blocks, in order.
pub(super) fn blocks(elems: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    blocks_of(BLOCK_ELEMS, elems)
}

/// Cuts `elems` into blocks of so many elements, in order.
pub(super) fn blocks_of(block_elems: usize, elems: Range<usize>) -> impl ExactSizeIterator<Item = Range<usize>> {
    let end = elems.end;
    elems.step_by(block_elems).map(move |start| start..(start + block_elems).min(end))
}

/// A task's values, one for each range unit that it sees.
pub(super) struct Slots<A> {
    first_unit: usize,
    units: usize,
    values: Vec<A>,
}

impl<A: Clone> Slots<A> {
    /// Of a task over these elements, of which there are some.
    pub(super) fn new(units: RangeUnits, elems: &Range<usize>, identity: &A) -> Self {
        // Ragged units do not repeat, so that a run's number is its unit's.
        let run_of = |i| if units.ragged_row_elems == 0 { i / units.inner_elems } else { units.unit_of(i) };
        let runs_seen = run_of(elems.end - 1) - run_of(elems.start) + 1;
        let values = vec![identity.clone(); runs_seen.min(units.units)];
        Self { first_unit: units.unit_of(elems.start), units: units.units, values }
    }

    /// Merges each value into its unit's.
    pub(super) fn merge_into(self, all: &mut [A], merge: impl Fn(&mut A, A)) {
        for (slot, value) in self.values.into_iter().enumerate() {
            merge(&mut all[(self.first_unit + slot) % self.units], value);
        }
    }

    pub(super) fn of(&mut self, unit: usize) -> &mut A {
        &mut self.values[(unit + self.units - self.first_unit) % self.units]
    }
}

/// One value per range unit, folded over the tensor in parallel; `merge` must not care for order.
pub(super) fn fold_units<A: Clone + Send + Sync>(
    units: RangeUnits,
    identity: &A,
    visit: impl Fn(&mut Slots<A>, Range<usize>) + Sync,
    merge: impl Fn(&mut A, A),
) -> Vec<A> {
    let mut all = vec![identity.clone(); units.units];
    let n = units.elems();
    if n == 0 {
        return all;
    }
    let tasks = blocks_of(task_elems(units), 0..n);
    let done = share(tasks, Vec::new, |parts, elems| {
        let mut part = Slots::new(units, &elems, identity);
        visit(&mut part, elems);
        parts.push(part);
    });
    for part in done.into_iter().flatten() {
        part.merge_into(&mut all, &merge);
    }
    all
}

/// Elements of a task that has a value for each unit that it sees: these cost memory, so that tasks that see many units
/// are longer.
pub(super) fn task_elems(units: RangeUnits) -> usize {
    if units.inner_elems >= 64 {
        TASK_ELEMS
    } else {
        units.elems().div_ceil(4 * rayon::current_num_threads()).max(TASK_ELEMS).next_multiple_of(2)
    }
}

/// `out` in stretches, each with its number, the last one first: what was read before begins to leave the caches with what
/// was read first.
pub(super) fn backwards<T>(out: &mut [T], task_len: usize) -> impl ExactSizeIterator<Item = (usize, &mut [T])> {
    out.chunks_mut(task_len).enumerate().rev()
}

/// A vector of `n` values of the memory of another one, if that is enough: what they are is left over or zero.
pub(super) fn recycled<T: Clone + Default>(mut vec: Vec<T>, n: usize) -> Vec<T> {
    if vec.capacity() < n {
        // Cleared by the system, page by page as it is touched.
        return vec![T::default(); n];
    }
    vec.resize(n, T::default());
    vec
}

/// Fills `out` in parallel by `fill(first, values)`, `task_len` values at a time.
pub(super) fn map_tasks<T: Send>(out: &mut [T], task_len: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
    share(out.chunks_mut(task_len).enumerate(), || (), |(), (task, out)| fill(task * task_len, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Granularity::{self, Channel, Group};

    #[test]
    fn every_element_is_visited_once_under_its_own_unit() {
        let cases: [(&[usize], Granularity); 10] = [
            (&[200_000], Granularity::Tensor),
            (&[3, 5, 70_001], Channel(1)),
            (&[70_000, 3], Channel(1)),
            (&[90_000, 2], Channel(0)),
            (&[300, 999], Channel(0)),
            (&[300, 999], Group(128)),
            (&[40_000, 5], Group(2)),
            (&[2, 3, 33_333], Group(7)),
            (&[3, 70_000], Group(69_999)),
            (&[4, 1024], Group(64)),
        ];
        for (shape, granularity) in cases {
            let units = RangeUnits::new(shape, granularity).unwrap();
            let mut expected = vec![(0usize, 0usize); units.units];
            for i in 0..units.elems() {
                let (count, squares) = expected[units.unit_of(i)];
                expected[units.unit_of(i)] = (count + 1, squares.wrapping_add(i * i));
            }
            let visited = fold_units(
                units,
                &(0usize, 0usize),
                |slots, elems| {
                    for run in runs(units, elems) {
                        let sum = slots.of(run.unit);
                        for i in run.elems {
                            *sum = (sum.0 + 1, sum.1.wrapping_add(i * i));
                        }
                    }
                },
                |a, b| *a = (a.0 + b.0, a.1.wrapping_add(b.1)),
            );
            assert_eq!(visited, expected, "{shape:?} {granularity}");
            let mut out = vec![usize::MAX; units.elems()];
            map_tasks(&mut out, TASK_ELEMS, |first, out| {
                for run in runs(units, first..first + out.len()) {
                    out[run.elems.start - first..run.elems.end - first].fill(run.unit);
                }
            });
            assert!(out.iter().enumerate().all(|(i, &unit)| unit == units.unit_of(i)), "{shape:?} {granularity}");
        }
    }

    #[test]
    fn values_of_other_types_are_brought_block_by_block() {
        let data: Vec<f64> = (0..5000).map(f64::from).collect();
        let units = RangeUnits::new(&[5, 1000], Group(300)).unwrap();
        let mut next = 70;
        let mut values = Values::new(Tensor::f64(&data, &[5, 1000]).unwrap());
        for run in runs(units, 70..4321) {
            for block in blocks(run.elems.clone()) {
                assert_eq!(block.start, next);
                for (i, &value) in block.clone().zip(values.get(block.clone())) {
                    assert_eq!((value, run.unit), (i as f32, units.unit_of(i)));
                }
                next = block.end;
            }
        }
        assert_eq!(next, 4321);
    }
}
