//! The traversal that all stages share: tasks over contiguous elements, cut where range units end.

use super::float_env;
use crate::layout::RangeUnits;
use rayon::prelude::*;
use std::ops::Range;

/// Elements per task: large enough to hide what a task costs, small enough to stay in a core's cache.
const TASK_ELEMS: usize = 1 << 16;

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
    let mut unit = if elems.is_empty() { 0 } else { units.unit_of(start) };
    std::iter::from_fn(move || {
        if start >= elems.end {
            return None;
        }
        let end = (start - start % units.inner_elems + units.inner_elems).min(elems.end);
        let run = Run { unit, elems: start..end, ieee };
        (start, unit) = (end, if unit + 1 == units.units { 0 } else { unit + 1 });
        Some(run)
    })
}

/// One value per range unit, folded over the unit's runs in parallel; `merge` must not care for order.
pub(super) fn fold_units<A: Clone + Send + Sync>(
    units: RangeUnits,
    identity: &A,
    visit: impl Fn(&mut A, Run) + Sync,
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
    let parts: Vec<(usize, Vec<A>)> = (0..n.div_ceil(task_elems))
        .into_par_iter()
        .map(|task| {
            let elems = task * task_elems..((task + 1) * task_elems).min(n);
            let first_run = elems.start / units.inner_elems;
            let runs_seen = (elems.end - 1) / units.inner_elems - first_run + 1;
            let first_unit = first_run % units.units;
            let mut part = vec![identity.clone(); runs_seen.min(units.units)];
            for run in runs(units, elems) {
                let slot = (run.unit + units.units - first_unit) % units.units;
                visit(&mut part[slot], run);
            }
            (first_unit, part)
        })
        .collect();
    for (first_unit, part) in parts {
        for (slot, value) in part.into_iter().enumerate() {
            merge(&mut all[(first_unit + slot) % units.units], value);
        }
    }
    all
}

/// Fills `out`, one value per element, run by run in parallel, and sums what the runs return.
pub(super) fn map_runs<T: Send>(units: RangeUnits, out: &mut [T], visit: impl Fn(&mut [T], Run) -> u64 + Sync) -> u64 {
    out.par_chunks_mut(TASK_ELEMS)
        .enumerate()
        .map(|(task, out)| {
            let start = task * TASK_ELEMS;
            runs(units, start..start + out.len())
                .map(|run| {
                    let place = run.elems.start - start..run.elems.end - start;
                    visit(&mut out[place], run)
                })
                .sum::<u64>()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_visited_once_under_its_own_unit() {
        for (outer, units, inner_elems) in
            [(1, 1, 200_000), (3, 5, 70_001), (70_000, 3, 1), (2, 90_000, 1), (1, 300, 999)]
        {
            let units = RangeUnits { outer, units, inner_elems };
            let visited = fold_units(
                units,
                &(0usize, 0usize),
                |sum, run| {
                    for i in run.elems {
                        assert_eq!(units.unit_of(i), run.unit);
                        *sum = (sum.0 + 1, sum.1.wrapping_add(i * i));
                    }
                },
                |a, b| *a = (a.0 + b.0, a.1.wrapping_add(b.1)),
            );
            for (unit, &(count, squares)) in visited.iter().enumerate() {
                let own = (0..units.elems()).filter(|&i| units.unit_of(i) == unit);
                if unit % 1000 == 0 {
                    assert_eq!(squares, own.fold(0usize, |s, i| s.wrapping_add(i * i)));
                }
                assert_eq!(count, outer * inner_elems);
            }
            let mut out = vec![usize::MAX; units.elems()];
            let runs = map_runs(units, &mut out, |out, run| {
                out.fill(run.unit);
                1
            });
            assert!(runs >= (outer * units.units) as u64);
            assert!(out.iter().enumerate().all(|(i, &unit)| unit == units.unit_of(i)));
        }
    }
}
