//! Samples of cases, taken in turn and in random order, so that a slow moment of the machine falls on all alike.

use super::super::args::Region;
use std::collections::BTreeMap;
use std::time::Instant;
use wgpu_quant::Result;

/// Who does the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// What the region's times are divided by.
    Yardstick,
    /// Another copy or read, for orientation.
    Bound,
    Cpu,
    Gpu,
    /// A kernel that is not exact, and its shape.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "kernels belong to the GPU half"))]
    Float(&'static str),
}

/// What is measured.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) region: Region,
    pub(super) what: String,
    pub(super) by: By,
    /// What has to be read and written, at least.
    pub(super) bytes: f64,
}

/// A turn's seconds: by the clock on the wall, and by the adapter's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) wall: f64,
    pub(super) device: Option<f64>,
}

/// Something that can be timed again and again.
pub(super) struct Case<'a> {
    pub(super) label: Label,
    pub(super) sample: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

/// What a sample takes at least, unless one call takes longer by itself.
pub(super) const SAMPLE_SECONDS: f64 = 0.01;

impl<'a> Case<'a> {
    /// Work of the host, whose result is dropped outside the time.
    pub(super) fn of<T>(label: Label, work: impl FnMut() -> Result<T> + 'a) -> Self {
        Self::after(label, || Ok(()), work)
    }

    /// The same after something that is not timed.
    pub(super) fn after<T>(
        label: Label,
        mut prepare: impl FnMut() -> Result<()> + 'a,
        mut work: impl FnMut() -> Result<T> + 'a,
    ) -> Self {
        let sample = move || {
            let (mut sum, mut calls) = (0.0, 0.0);
            while sum < SAMPLE_SECONDS {
                prepare()?;
                let started = Instant::now();
                let result = std::hint::black_box(work()?);
                sum += started.elapsed().as_secs_f64();
                calls += 1.0;
                drop(result);
            }
            Ok(Sample { wall: sum / calls, device: None })
        };
        Self { label, sample: Box::new(sample) }
    }
}

/// Cases whose result is the CPU path's, and the names of those whose result is another.
#[derive(Default)]
pub(super) struct Checked<'a> {
    pub(super) cases: Vec<Case<'a>>,
    pub(super) wrong: Vec<String>,
}

impl<'a> Checked<'a> {
    pub(super) fn extend(&mut self, other: Self) {
        self.cases.extend(other.cases);
        self.wrong.extend(other.wrong);
    }

    #[cfg(feature = "gpu")]
    pub(super) fn push(&mut self, case: Case<'a>, is_right: bool) {
        match case.label {
            _ if is_right => self.cases.push(case),
            Label { what, by: By::Float(shape), .. } => self.wrong.push(format!("{what} ({shape})")),
            Label { what, .. } => self.wrong.push(what),
        }
    }
}

/// Copies of an input that take turns, where one is small enough to stay in a cache.
const TURNS: usize = 3;
const LARGE_BYTES: usize = 256 << 20;

pub(super) fn turns(elems: usize) -> usize {
    if 4 * elems < LARGE_BYTES { TURNS } else { 1 }
}

/// Whether what takes turns may still be in a cache when its turn comes again.
pub(super) fn may_be_cached(elems: usize) -> bool {
    4 * elems * turns(elems) < LARGE_BYTES
}

/// A case's samples, one a round.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) label: Label,
    pub(super) samples: Vec<Sample>,
}

/// Rounds are cut short where time runs out, but not below this.
const LEAST_ROUNDS: usize = 3;

/// Every case once a round; the first round warms up and is forgotten.
pub(super) fn rounds(mut cases: Vec<Case<'_>>, rounds: usize, until: Instant) -> Result<Vec<Row>> {
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| vec![]).collect();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let mut rng = super::data::Rng::new(1);
    for case in &mut cases {
        (case.sample)()?;
    }
    for round in 0..rounds {
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u32 + 1) as usize);
        }
        for &i in &order {
            samples[i].push((cases[i].sample)()?);
        }
        if round + 1 >= LEAST_ROUNDS && Instant::now() > until {
            break;
        }
    }
    Ok(cases.into_iter().zip(samples).map(|(case, samples)| Row { label: case.label, samples }).collect())
}

/// The middle one.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The two clocks may be apart by this much.
const CLOCKS_APART: f64 = 0.1;

impl Row {
    fn walls(&self) -> impl Iterator<Item = f64> {
        self.samples.iter().map(|sample| sample.wall)
    }

    pub(super) fn median(&self) -> f64 {
        median(self.walls())
    }

    pub(super) fn best(&self) -> f64 {
        self.walls().fold(f64::INFINITY, f64::min)
    }

    /// How much longer the slowest took than the fastest.
    pub(super) fn spread(&self) -> f64 {
        self.walls().fold(0.0, f64::max) / self.best() - 1.0
    }

    /// The median by the adapter's clock.
    pub(super) fn device_median(&self) -> Option<f64> {
        self.samples.iter().map(|sample| sample.device).collect::<Option<Vec<_>>>().map(median)
    }

    pub(super) fn clocks_agree(&self) -> Option<bool> {
        self.device_median().map(|device| (device / self.median() - 1.0).abs() <= CLOCKS_APART)
    }

    /// The median over the rounds of this time by that one.
    pub(super) fn by(&self, yardstick: &Self) -> f64 {
        median(self.walls().zip(yardstick.walls()).map(|(a, b)| a / b))
    }
}

/// Each region's yardstick.
pub(super) fn yardsticks(rows: &[Row]) -> BTreeMap<Region, &Row> {
    rows.iter().filter(|row| row.label.by == By::Yardstick).map(|row| (row.label.region, row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[(f64, Option<f64>)]) -> Row {
        let label = Label { region: Region::Host, what: String::new(), by: By::Cpu, bytes: 0.0 };
        Row { label, samples: samples.iter().map(|&(wall, device)| Sample { wall, device }).collect() }
    }

    #[test]
    fn figures_are_of_the_middle_round() {
        let row = row(&[(3.0, Some(3.1)), (1.0, Some(9.0)), (2.0, Some(2.1))]);
        assert_eq!((row.median(), row.best(), row.spread()), (2.0, 1.0, 2.0));
        assert_eq!(row.device_median(), Some(3.1));
        assert_eq!(row.clocks_agree(), Some(false));
    }

    #[test]
    fn times_are_divided_round_by_round() {
        let slow = [(2.0, None), (20.0, None), (3.0, None)];
        let copy = [(1.0, None), (10.0, None), (1.0, None)];
        assert_eq!(row(&slow).by(&row(&copy)), 2.0);
        assert_eq!(row(&slow).clocks_agree(), None);
    }
}
