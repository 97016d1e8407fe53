//! The traversal that all stages share: tasks over contiguous elements, cut where range units end.

use super::float_env;
use crate::layout::RangeUnits;
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Elements per task: large enough to hide what a task costs, small enough to stay in a core's cache.
pub(super) const TASK_ELEMS: usize = 1 << 16;
/// Elements that a task holds on its stack at a time.
pub(super) const BLOCK_ELEMS: usize = 1024;

/// A stretch of consecutive elements of one range unit.
pub(super) struct Run {
    pub(super) unit: usize,
    pub(super) elems: Range<usize>,
    /// Whether this task may use float arithmetic; if not, it takes the integer twin.
    pub(super) ieee: bool,
}

impl Run {
    /// Where its elements stand in a slice that begins with element `start`.
    pub(super) fn within(&self, start: usize) -> Range<usize> {
        self.elems.start - start..self.elems.end - start
    }
}

/// Cuts `elems` into runs, in order.
pub(super) fn runs(units: RangeUnits, elems: Range<usize>) -> impl Iterator<Item = Run> {
    let ieee = float_env::is_ieee_default();
    let mut start = elems.start;
    let mut unit = if elems.is_empty() { 0 } else { units.unit_of(start) };
    std::iter::from_fn(move || {
        if start >= elems.end {
            return None;
        }
        let end = units.run_end(start).min(elems.end);
        let run = Run { unit, elems: start..end, ieee };
        (start, unit) = (end, if unit + 1 == units.units { 0 } else { unit + 1 });
        Some(run)
    })
}

/// Cuts `elems` into runs, in order, and calls `visit` with each and its values.
pub(super) fn for_each_run(x: Tensor<'_>, units: RangeUnits, elems: Range<usize>, mut visit: impl FnMut(Run, &[f32])) {
    if let Some(all) = x.as_f32() {
        for run in runs(units, elems) {
            let values = &all[run.elems.clone()];
            visit(run, values);
        }
        return;
    }
    // Values of other types, and of rows that lie apart, are first brought together as f32.
    let mut buffer = [0f32; BLOCK_ELEMS];
    for start in elems.clone().step_by(BLOCK_ELEMS) {
        let block = start..(start + BLOCK_ELEMS).min(elems.end);
        let values = &mut buffer[..block.len()];
        x.read(start, values);
        for run in runs(units, block) {
            let place = run.within(start);
            visit(run, &values[place]);
        }
    }
}

/// A task's values, one for each range unit that it sees.
pub(super) struct Slots<A> {
    first_unit: usize,
    units: usize,
    values: Vec<A>,
}

impl<A> Slots<A> {
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
    // A task's partial results cost memory, so tasks that see many units are longer.
    let task_elems =
        if units.inner_elems >= 64 { TASK_ELEMS } else { n.div_ceil(4 * rayon::current_num_threads()).max(TASK_ELEMS) };
    // Ragged units do not repeat, so that a run's number is its unit's.
    let run_of = |i| if units.ragged_row_elems == 0 { i / units.inner_elems } else { units.unit_of(i) };
    let parts: Vec<Slots<A>> = (0..n.div_ceil(task_elems))
        .into_par_iter()
        .map(|task| {
            let elems = task * task_elems..((task + 1) * task_elems).min(n);
            let runs_seen = run_of(elems.end - 1) - run_of(elems.start) + 1;
            let values = vec![identity.clone(); runs_seen.min(units.units)];
            let mut part = Slots { first_unit: units.unit_of(elems.start), units: units.units, values };
            visit(&mut part, elems);
            part
        })
        .collect();
    for Slots { first_unit, values, .. } in parts {
        for (slot, value) in values.into_iter().enumerate() {
            merge(&mut all[(first_unit + slot) % units.units], value);
        }
    }
    all
}

/// Fills `out` in parallel, `task_len` values at a time, and sums what `fill(first, values)` returns.
pub(super) fn map_tasks<T: Send>(out: &mut [T], task_len: usize, fill: impl Fn(usize, &mut [T]) -> u64 + Sync) -> u64 {
    out.par_chunks_mut(task_len).enumerate().map(|(task, out)| fill(task * task_len, out)).sum()
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
            let runs = map_tasks(&mut out, TASK_ELEMS, |first, out| {
                let elems = first..first + out.len();
                runs(units, elems)
                    .map(|run| {
                        let place = run.within(first);
                        out[place].fill(run.unit);
                        1
                    })
                    .sum()
            });
            assert!(runs >= (units.outer * units.units) as u64);
            assert!(out.iter().enumerate().all(|(i, &unit)| unit == units.unit_of(i)), "{shape:?} {granularity}");
        }
    }

    #[test]
    fn values_of_other_types_are_brought_block_by_block() {
        let data: Vec<f64> = (0..5000).map(f64::from).collect();
        let units = RangeUnits::new(&[5, 1000], Group(300)).unwrap();
        let mut next = 70;
        for_each_run(Tensor::f64(&data, &[5, 1000]).unwrap(), units, 70..4321, |run, values| {
            assert_eq!((run.elems.start, run.elems.len()), (next, values.len()));
            for (i, &value) in run.elems.clone().zip(values) {
                assert_eq!((value, run.unit), (i as f32, units.unit_of(i)));
            }
            next = run.elems.end;
        });
        assert_eq!(next, 4321);
    }
}
