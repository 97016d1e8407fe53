//! The range of each range unit; twin of `shaders/min_max.wgsl`.

use super::fold::{FEW_ELEMS, TASK_ELEMS, Values, blocks, blocks_of, fold_units, runs};
use super::simd::{self, Ask, Kernel, Unit};
use crate::error::Result;
use crate::exact::float::{from_hi_key, from_lo_key, hi_key, lo_key};
use crate::float_env;
use crate::layout::{Granularity, RangeUnits};
pub use crate::range::Range;
use crate::tensor::Tensor;
use crate::threads::share;
use std::ops;

/// The ranges of a tensor's range units, and the elements that are not finite.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Ranges {
    /// One range per range unit.
    pub units: Vec<Range>,
    /// NaN elements.
    pub nan_elems: u64,
    /// Infinite elements.
    pub inf_elems: u64,
}

/// What a run contributes: keys grow with the value (`hi`) or fall with it (`lo`); 0 is no finite value.
#[derive(Clone, Default)]
pub(super) struct Part {
    pub(super) hi_key: u32,
    pub(super) lo_key: u32,
    nan: u64,
    inf: u64,
}

impl Part {
    pub(super) fn merge(&mut self, other: &Self) {
        self.hi_key = self.hi_key.max(other.hi_key);
        self.lo_key = self.lo_key.max(other.lo_key);
        self.nan += other.nan;
        self.inf += other.inf;
    }
}

/// The range of each range unit over its finite values, in one read of the tensor.
///
/// ```text
/// lo = min x, hi = max x, over finite x
/// ```
///
/// of each element as f32: f16 and bf16 widened exactly, f64 rounded once, to nearest, ties to even.
///
/// One range per range unit, in the units' order; the counts are of the whole tensor.
///
/// NaN and infinities are left out and counted; -0 is as +0; subnormals count exactly; a unit without a
/// finite value, and an empty one, has `lo = hi = 0`. An f64 that rounds to infinity is one.
///
/// # Errors
/// Those of [`RangeUnits::new`].
///
/// ```
/// use wgpu_quant::{Granularity, Tensor, cpu};
/// let x = [1.0, -2.0, f32::NAN, 3.0];
/// let ranges = cpu::min_max(Tensor::new(&x, &[2, 2])?, Granularity::Channel(0))?;
/// assert_eq!((ranges.units[0].lo, ranges.units[0].hi), (-2.0, 1.0));
/// assert_eq!((ranges.units[1].amax(), ranges.nan_elems), (3.0, 1));
/// # Ok::<(), wgpu_quant::Error>(())
/// ```
pub fn min_max(x: Tensor<'_>, granularity: Granularity) -> Result<Ranges> {
    let parts = parts(x, RangeUnits::new(x.shape(), granularity)?);
    let sum = |of: fn(&Part) -> u64| parts.iter().map(of).sum();
    Ok(Ranges {
        nan_elems: sum(|part| part.nan),
        inf_elems: sum(|part| part.inf),
        units: parts.iter().map(Part::range).collect(),
    })
}

/// What each range unit contributes.
pub(super) fn parts(x: Tensor<'_>, units: RangeUnits) -> Vec<Part> {
    let column_elems = units.units * units.inner_elems;
    if units.outer > 1 && units.inner_elems < FEW_ELEMS && column_elems <= COLUMNS_ELEMS {
        return columns(x, units);
    }
    fold_units(
        units,
        &Part::default(),
        |slots, elems| {
            let mut values = Values::new(x);
            for run in runs(units, elems) {
                for block in blocks(run.elems.clone()) {
                    slots.of(run.unit).merge(&Part::of(values.get(block), run.ieee, Ask::ALL));
                }
            }
        },
        |a, b| a.merge(&b),
    )
}

/// The most elements after which units begin anew, whose ends are held side by side.
const COLUMNS_ELEMS: usize = 1 << 16;

/// What each unit contributes where they repeat and their runs are short: the ends of all that lie above each other.
fn columns(x: Tensor<'_>, units: RangeUnits) -> Vec<Part> {
    let row_elems = units.units * units.inner_elems;
    let task_rows = units.outer.div_ceil(4 * rayon::current_num_threads()).max(TASK_ELEMS.div_ceil(row_elems));
    let none = || vec![Part::default(); units.units];
    let work = |all: &mut Vec<Part>, rows: ops::Range<usize>| {
        let mut values = Values::new(x);
        if !float_env::is_ieee_default() {
            for run in runs(units, rows.start * row_elems..rows.end * row_elems) {
                all[run.unit].merge(&Part::exact(values.get(run.elems)));
            }
            return;
        }
        let (mut lo, mut hi) = (vec![f32::INFINITY; row_elems], vec![f32::NEG_INFINITY; row_elems]);
        let (mut nan, mut inf) = (vec![0u32; row_elems], vec![0u32; row_elems]);
        for row in rows {
            for block in blocks(0..row_elems) {
                let x = values.get(row * row_elems + block.start..row * row_elems + block.end);
                let (lo, hi) = (&mut lo[block.clone()], &mut hi[block.clone()]);
                simd::run(ColumnEnds { x, lo, hi, nan: &mut nan[block.clone()], inf: &mut inf[block] });
            }
        }
        for (i, (&lo, &hi)) in lo.iter().zip(&hi).enumerate() {
            let (nan, inf) = (nan[i].into(), inf[i].into());
            // An infinity here means that there was no finite value; its key is as good as none.
            let part = Part { hi_key: hi_key(hi.to_bits()), lo_key: lo_key(lo.to_bits()), nan, inf };
            all[i / units.inner_elems].merge(&part);
        }
    };
    let merge = |mut all: Vec<Part>, more: Vec<Part>| {
        all.iter_mut().zip(&more).for_each(|(part, more)| part.merge(more));
        all
    };
    share(blocks_of(task_rows, 0..units.outer), none, work).into_iter().fold(none(), merge)
}

struct ColumnEnds<'a> {
    x: &'a [f32],
    lo: &'a mut [f32],
    hi: &'a mut [f32],
    nan: &'a mut [u32],
    inf: &'a mut [u32],
}

impl Kernel for ColumnEnds<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) {
        let ends = self.x.iter().zip(self.lo).zip(self.hi);
        for (((&v, lo), hi), (nan, inf)) in ends.zip(self.nan.iter_mut().zip(self.inf)) {
            let finite = v.abs() < f32::INFINITY;
            *lo = if finite & (v < *lo) { v } else { *lo };
            *hi = if finite & (v > *hi) { v } else { *hi };
            *nan += u32::from(v.is_nan());
            *inf += u32::from(v.abs() == f32::INFINITY);
        }
    }
}

/// The least and the largest value.
struct Ends<'a> {
    x: &'a [f32],
    ask: Ask,
}

impl Kernel for Ends<'_> {
    type Output = Part;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Part {
        // Independent lanes, so that several vectors are in flight.
        const LANES: usize = 32;
        let (mut lo, mut hi, mut nan) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0u32; LANES]);
        let mut step = |values: &[f32]| {
            for (i, &v) in values.iter().enumerate() {
                // In this form a comparison is an instruction of its own, and a NaN changes nothing.
                lo[i] = if v < lo[i] { v } else { lo[i] };
                hi[i] = if v > hi[i] { v } else { hi[i] };
                nan[i] += u32::from(v.is_nan());
            }
        };
        let (chunks, rest) = self.x.as_chunks::<{ Ask::ELEMS }>();
        for chunk in chunks {
            self.ask.beside(chunk);
            for lanes in chunk.as_chunks::<LANES>().0 {
                step(lanes);
            }
        }
        rest.chunks(LANES).for_each(step);
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lo[i] = if lo[i + width] < lo[i] { lo[i + width] } else { lo[i] };
                hi[i] = if hi[i + width] > hi[i] { hi[i + width] } else { hi[i] };
            }
        }
        let (lo, hi) = (lo[0], hi[0]);
        let nan = nan.into_iter().map(u64::from).sum();
        if lo.is_finite() && hi.is_finite() {
            return Part { hi_key: hi_key(hi.to_bits()), lo_key: lo_key(lo.to_bits()), nan, inf: 0 };
        }
        // There are infinities, or no values.
        let finite = |worst: f32| move |v: &f32| if v.is_finite() { *v } else { worst };
        let lo = self.x.iter().map(finite(f32::INFINITY)).fold(f32::INFINITY, f32::min);
        let hi = self.x.iter().map(finite(f32::NEG_INFINITY)).fold(f32::NEG_INFINITY, f32::max);
        let inf = self.x.iter().map(|v| u64::from(v.is_infinite())).sum();
        // An infinity here means that there was no finite value; its key is as good as none.
        Part { hi_key: hi_key(hi.to_bits()), lo_key: lo_key(lo.to_bits()), nan, inf }
    }
}

impl Part {
    /// Of a block, by float arithmetic where it may be used.
    pub(super) fn of(x: &[f32], ieee: bool, ask: Ask) -> Self {
        if ieee { simd::run(Ends { x, ask }) } else { Self::exact(x) }
    }

    pub(super) fn exact(x: &[f32]) -> Self {
        let mut part = Self::default();
        for bits in x.iter().map(|v| v.to_bits()) {
            part.hi_key = part.hi_key.max(hi_key(bits));
            part.lo_key = part.lo_key.max(lo_key(bits));
            let magnitude = bits & 0x7fff_ffff;
            part.nan += u64::from(magnitude > 0x7f80_0000);
            part.inf += u64::from(magnitude == 0x7f80_0000);
        }
        part
    }

    pub(super) fn range(&self) -> Range {
        Range { lo: f32::from_bits(from_lo_key(self.lo_key)), hi: f32::from_bits(from_hi_key(self.hi_key)) }
    }

    /// Whether all values are finite.
    pub(super) fn is_finite(&self) -> bool {
        self.nan + self.inf == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::ElemType;

    #[test]
    fn groups_of_padded_rows_have_ranges_of_their_own() {
        let data = [1.0, -2.0, 5.0, f32::NAN, 9.0, 0.5, f32::INFINITY, -3.0];
        let bytes = bytemuck::cast_slice(&data);
        let x = Tensor::strided(ElemType::F32, bytes, &[2, 3], &[5, 1]).unwrap();
        let ranges = min_max(x, Granularity::Group(2)).unwrap();
        let found: Vec<_> = ranges.units.iter().map(|range| (range.lo, range.hi)).collect();
        assert_eq!(found, [(-2.0, 1.0), (5.0, 5.0), (0.5, 0.5), (-3.0, -3.0)]);
        // What stands between the rows is not counted.
        assert_eq!((ranges.nan_elems, ranges.inf_elems), (0, 1));
    }

    #[test]
    fn an_f64_is_first_rounded_to_f32() {
        let x = [1e300, -1e-300, 0.1, f64::NAN];
        let ranges = min_max(Tensor::f64(&x, &[4]).unwrap(), Granularity::Tensor).unwrap();
        assert_eq!(ranges.units, [Range { lo: 0.0, hi: 0.1 }]);
        assert_eq!((ranges.nan_elems, ranges.inf_elems), (1, 1));
    }
}
