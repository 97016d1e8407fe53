//! Is this adapter exact? Thousands of hard cases per kernel and scheme, compared with the CPU path bit by bit.
//!
//! The shaders use nothing but integer arithmetic, so that what is left to trust is a driver's compiler. This
//! asks it: values within an ulp of halfway points for scales of every exponent and extreme significands,
//! subnormals, every distance of exponents and hence every shift, ranges whose ends cancel, borders of vectors,
//! tiles and runs, sums that carry while all workgroups add to one word, and tensors cut into small chunks.
//!
//! ```no_run
//! use wgpu_quant::{Gpu, Scheme, gpu::Select, selftest};
//! let gpu = Gpu::open(&Select::from_env())?;
//! let report = selftest::run(&gpu, &[Scheme::INT8_ABSMAX])?;
//! assert!(report.is_exact(), "{report}"); // the report says what to send to whom
//! # Ok::<(), wgpu_quant::Error>(())
//! ```

mod cases;

use crate::cpu;
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Kernel, Scales, has_short_runs};
use crate::layout::{Granularity, RangeUnits};
use crate::loss::Loss;
use crate::quantized::{Counts, FakeQuantizeOutput, LossDetail, QuantizeOutput, Quantized, Spec};
use crate::range::{ObservedRanges, Observer};
use crate::scheme::Scheme;
use crate::tensor::Tensor;
use cases::Case;
use std::fmt;
use std::time::Instant;

/// What a kernel was asked for a scheme, and how often it was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The kernel.
    pub kernel: Kernel,
    /// The scheme that it was composed for.
    pub scheme: Scheme,
    /// Range units compared, once for each output.
    pub cases: u64,
    /// Words compared: codes, scales, losses, counters.
    pub words: u64,
    /// Words that differ.
    pub differing_words: u64,
}

/// The first word that differs in an output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The kernel whose output it is.
    pub kernel: Kernel,
    /// The scheme that it was composed for.
    pub scheme: Scheme,
    /// The kind of case, and its shape and granularity.
    pub case: String,
    /// The output: codes, scales, errors ...
    pub output: &'static str,
    /// The element or range unit.
    pub index: usize,
    /// The input's bit patterns there.
    pub input: String,
    /// What the device gave, as a bit pattern.
    pub found: u64,
    /// What the CPU path gave.
    pub expected: u64,
    /// How many words of this output differ.
    pub differing_words: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, scheme, case, output, index, input, found, expected, differing_words } = self;
        let kernel = kernel.label();
        write!(f, "kernel {kernel}, scheme {scheme}, case {case}: {output}[{index}]{input}: found {found:#x}, ")?;
        write!(f, "expected {expected:#x} ({differing_words} words of this output differ)")
    }
}

/// What a self-test found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selftest {
    /// The adapter.
    pub device: DeviceInfo,
    /// One row per kernel and scheme.
    pub rows: Vec<Row>,
    /// The first difference of each output of each case that has any.
    pub differences: Vec<Difference>,
    /// How long it took, the CPU path's share and the compiling of the kernels included.
    pub seconds: f64,
}

impl Selftest {
    /// Whether every word was the CPU path's.
    pub fn is_exact(&self) -> bool {
        self.differences.is_empty()
    }

    /// Range units compared, once for each output of each kernel.
    pub fn cases(&self) -> u64 {
        self.rows.iter().map(|row| row.cases).sum()
    }

    /// Words compared, over all kernels.
    pub fn words(&self) -> u64 {
        self.rows.iter().map(|row| row.words).sum()
    }
}

/// A line where the adapter is exact; else a report to hand on as it is.
impl fmt::Display for Selftest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, cases, words) = (&self.device, self.cases(), self.words());
        if self.is_exact() {
            return write!(f, "{device} is exact: {cases} cases, {words} words, {:.1} s", self.seconds);
        }
        let version = env!("CARGO_PKG_VERSION");
        let outputs = self.differences.len();
        writeln!(f, "{device} is NOT exact: {outputs} outputs differ; {cases} cases, {words} words")?;
        writeln!(f, "wgpu-quant {version}, {} {}", std::env::consts::OS, std::env::consts::ARCH)?;
        writeln!(f, "adapter {}, type {}, backend {}", device.name, device.device_type, device.backend)?;
        write!(f, "driver {}", device.driver)?;
        self.differences.iter().try_for_each(|difference| write!(f, "\n{difference}"))
    }
}

/// Runs every kernel on the adapter, composed for these schemes, over the hard cases.
///
/// Compared word by word: ranges by the scales that come of them, scales, codes, de-quantized values, |x' - x|, each
/// range unit's loss, the exact sums behind the loss, and the counts. Where a stage differs, the stages after it are
/// not compared in that case, so that the first kernel named is the one to blame. The cases come from a fixed seed.
///
/// # Errors
/// Those of the [`Gpu`]'s calls, when the device cannot run a case at all.
pub fn run(gpu: &Gpu, schemes: &[Scheme]) -> Result<Selftest> {
    // Chunks shorter than a tile, a little longer than one, and of a few vectors.
    let cut = [gpu.cut(1000, 7, 9), gpu.cut(4100, 60, 65_535), gpu.cut(68, 60, 65_535)];
    let cut: Vec<&dyn Path> = cut.iter().map(|gpu| gpu as &dyn Path).collect();
    let twice = gpu.in_two_passes();
    let recorded = [Recorded(gpu), Recorded(&twice)];
    let recorded: Vec<&dyn Path> = recorded.iter().map(|path| path as &dyn Path).collect();
    compare(gpu, &twice, &cut, &recorded, gpu.tuning().workgroup, gpu.info(), schemes)
}

/// What is compared with the CPU path.
trait Path {
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<(&[f32], &[i32])>) -> Result<QuantizeOutput>;
    fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput>;
    fn dequantize(&self, q: &Quantized) -> Result<Vec<f32>>;
    fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss>;
    /// The ranges over all batches.
    fn observe(&self, batches: &[Tensor<'_>], granularity: Granularity, observer: Observer) -> Result<ObservedRanges>;
    /// Whether it quantizes a tensor in one pass.
    fn is_once(&self, x: Tensor<'_>, spec: &Spec) -> bool;
}

impl Path for Gpu {
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<(&[f32], &[i32])>) -> Result<QuantizeOutput> {
        Ok(match given {
            Some((scales, zero_points)) => self.quantize_with_scales(x, spec, Scales::Host(scales, zero_points))?.value,
            None => self.quantize(x, spec)?.value,
        })
    }

    fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput> {
        Ok(self.fake_quantize(x, spec)?.value)
    }

    fn dequantize(&self, q: &Quantized) -> Result<Vec<f32>> {
        Ok(self.dequantize(q)?.value)
    }

    fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
        Ok(self.loss(x, q, per_element)?.value)
    }

    fn observe(&self, batches: &[Tensor<'_>], granularity: Granularity, observer: Observer) -> Result<ObservedRanges> {
        let shape = batches.first().map_or(&[][..], |x| x.shape());
        let mut ranges = self.range_accumulator(shape, granularity, observer)?;
        for &x in batches {
            self.observe(&mut ranges, x)?;
        }
        Ok(self.observed(&ranges)?.value)
    }

    fn is_once(&self, x: Tensor<'_>, spec: &Spec) -> bool {
        self.quantizes_once(x, spec)
    }
}

/// What an engine records: the second of three tensors in a batch. Losses and given scales are the calls'.
struct Recorded<'g>(&'g Gpu);

impl Path for Recorded<'_> {
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<(&[f32], &[i32])>) -> Result<QuantizeOutput> {
        if given.is_some() || spec.loss != LossDetail::None {
            return Path::quantize(self.0, x, spec, given);
        }
        Ok(self.0.quantize_recorded(&[x; 3], spec)?.swap_remove(1))
    }

    fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput> {
        Path::fake_quantize(self.0, x, spec)
    }

    fn dequantize(&self, q: &Quantized) -> Result<Vec<f32>> {
        Path::dequantize(self.0, q)
    }

    fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
        Path::loss(self.0, x, q, per_element)
    }

    fn observe(&self, batches: &[Tensor<'_>], granularity: Granularity, observer: Observer) -> Result<ObservedRanges> {
        Path::observe(self.0, batches, granularity, observer)
    }

    fn is_once(&self, x: Tensor<'_>, spec: &Spec) -> bool {
        self.0.quantizes_once(x, spec)
    }
}

/// The CPU path.
struct Reference;

impl Path for Reference {
    fn quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<(&[f32], &[i32])>) -> Result<QuantizeOutput> {
        match given {
            Some((scales, zero_points)) => cpu::quantize_with_scales(x, spec, scales, zero_points),
            None => cpu::quantize(x, spec),
        }
    }

    fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput> {
        cpu::fake_quantize(x, spec)
    }

    fn dequantize(&self, q: &Quantized) -> Result<Vec<f32>> {
        cpu::dequantize(q)
    }

    fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
        cpu::loss(x, q, per_element)
    }

    fn observe(&self, batches: &[Tensor<'_>], granularity: Granularity, observer: Observer) -> Result<ObservedRanges> {
        let mut batches = batches.iter().map(|&x| cpu::observe(x, granularity));
        let first = batches.next().unwrap_or_else(|| Ok(ObservedRanges::new(0)))?;
        batches.try_fold(first, |seen, batch| cpu::merge_ranges(&seen, &batch?, observer))
    }

    fn is_once(&self, _: Tensor<'_>, _: &Spec) -> bool {
        false
    }
}

fn compare(
    whole: &dyn Path,
    twice: &dyn Path,
    cut: &[&dyn Path],
    recorded: &[&dyn Path],
    workgroup: u32,
    device: &DeviceInfo,
    schemes: &[Scheme],
) -> Result<Selftest> {
    let started = Instant::now();
    let mut found = Selftest { device: device.clone(), rows: vec![], differences: vec![], seconds: 0.0 };
    for &scheme in schemes {
        let mut test = Test { path: whole, scheme, found: &mut found };
        for case in cases::given_scales(scheme).map(|case| case.of(scheme)) {
            test.quantize(&case, Kernel::Scale, LossDetail::None)?;
            test.quantize(&case, Kernel::Scale, LossDetail::PerElement)?;
        }
        test.quantize(&cases::ranges().of(scheme), Kernel::Scale, LossDetail::None)?;
        test.quantize(&cases::ranges().of(scheme), Kernel::Scale, LossDetail::Summary)?;
        test.fake_quantize(&cases::ranges().of(scheme))?;
        let (case, codes) = cases::foreign_codes(scheme);
        test.codes(&case, codes)?;
        for case in cases::borders(workgroup).into_iter().chain(cases::contention()).map(|case| case.of(scheme)) {
            test.quantize(&case, Kernel::MinMax, LossDetail::None)?;
            test.quantize(&case, Kernel::MinMax, LossDetail::Summary)?;
            test.fake_quantize(&case)?;
        }
        for case in cases::own_scales(scheme).map(|case| case.of(scheme)) {
            test.quantize(&case, Kernel::MinMax, LossDetail::None)?;
            test.quantize(&case, Kernel::MinMax, LossDetail::Summary)?;
        }
        // Short units again, by the kernels that quantize in two passes.
        let mut test = Test { path: twice, scheme, found: &mut found };
        test.quantize(&cases::ranges().of(scheme), Kernel::MinMax, LossDetail::None)?;
        test.fake_quantize(&cases::ranges().of(scheme))?;
        for &path in recorded {
            let mut test = Test { path, scheme, found: &mut found };
            test.cleared(&cases::ranges().of(scheme))?;
            test.quantize(&cases::ranges().of(scheme), Kernel::MinMax, LossDetail::None)?;
        }
        for &path in cut {
            let mut test = Test { path, scheme, found: &mut found };
            for case in cases::cut().into_iter().map(|case| case.of(scheme)) {
                test.quantize(&case, Kernel::MinMax, LossDetail::PerElement)?;
            }
        }
    }
    // What is observed depends on no scheme.
    if let Some(&scheme) = schemes.first() {
        Test { path: whole, scheme, found: &mut found }.observe(&cases::ranges())?;
    }
    found.seconds = started.elapsed().as_secs_f64();
    Ok(found)
}

/// A scheme under test.
struct Test<'a> {
    path: &'a dyn Path,
    scheme: Scheme,
    found: &'a mut Selftest,
}

impl Test<'_> {
    /// Quantizes on both paths; wrong scales are `blamed` on this kernel, where it is a kernel of its own.
    fn quantize(&mut self, case: &Case, blamed: Kernel, detail: LossDetail) -> Result<()> {
        let spec = Spec::new(self.scheme).per(case.granularity).loss(detail);
        let x = Tensor::new(&case.x, &case.shape)?;
        let given = case.scales.as_deref().map(|scales| (scales, &*case.zero_points));
        let expected = Reference.quantize(x, &spec, given)?;
        let seen = View { case, units: expected.tensor.units(), scales: expected.tensor.scales() };
        let once = given.is_none() && self.path.is_once(x, &spec);
        let summed = detail != LossDetail::None;
        let fused = summed && !self.scheme.is_cast() && (once || !has_short_runs(seen.units));
        let encoder = match (once, fused) {
            (true, true) => Kernel::QuantizeOnceLoss,
            (true, false) => Kernel::QuantizeOnce,
            (false, true) => Kernel::QuantizeLoss,
            (false, false) => Kernel::Quantize,
        };
        let blamed = if once { encoder } else { blamed };
        let ours = match self.path.quantize(x, &spec, given) {
            // A scale that no scale can be: the calls do not return such tensors.
            Err(Error::InvalidScale { unit, found }) => {
                let words = (found.to_bits().into(), expected.tensor.scales()[unit].to_bits().into());
                self.differ(blamed, "scales", &seen, unit, words, 1);
                return Ok(());
            }
            Err(Error::InvalidZeroPoint { unit, found, .. }) => {
                let word = |z: i32| u64::from(z.cast_unsigned());
                let words = (word(found), word(expected.tensor.zero_points()[unit]));
                self.differ(blamed, "zero points", &seen, unit, words, 1);
                return Ok(());
            }
            result => result?,
        };

        let (a, b) = (ours.counts, expected.counts);
        let words = |z: &[i32]| z.iter().map(|z| z.cast_unsigned()).collect::<Vec<_>>();
        let mut same =
            self.words(blamed, "scales", &seen, &bits(ours.tensor.scales()), &bits(expected.tensor.scales()));
        let (zero_points, expected_zero_points) = (ours.tensor.zero_points(), expected.tensor.zero_points());
        same &= self.words(blamed, "zero points", &seen, &words(zero_points), &words(expected_zero_points));
        if !same {
            return Ok(());
        }
        same = self.words(encoder, "codes", &seen, ours.tensor.codes(), expected.tensor.codes());
        let counts = |counts: Counts| [counts.nan_elems, counts.inf_elems, counts.clipped_elems];
        same &= self.words(encoder, "counts of NaN, Inf and clipped values", &seen, &counts(a), &counts(b));
        if let (true, Some(ours), Some(expected)) = (same, ours.loss, expected.loss) {
            self.loss(fused.then_some(encoder), &seen, &ours, &expected);
        }
        Ok(())
    }

    /// What is counted, which is added to zeros.
    fn cleared(&mut self, case: &Case) -> Result<()> {
        let spec = Spec::new(self.scheme).per(case.granularity);
        let x = Tensor::new(&case.x, &case.shape)?;
        let expected = Reference.quantize(x, &spec, None)?;
        let ours = match self.path.quantize(x, &spec, None) {
            // Of these the comparison of scales tells.
            Err(Error::InvalidScale { .. } | Error::InvalidZeroPoint { .. }) => return Ok(()),
            result => result?,
        };
        let seen = View { case, units: expected.tensor.units(), scales: expected.tensor.scales() };
        let counts = |Counts { nan_elems, inf_elems, clipped_elems }| [nan_elems, inf_elems, clipped_elems];
        let output = "counts of NaN, Inf and clipped values";
        self.words(Kernel::Clear, output, &seen, &counts(ours.counts), &counts(expected.counts));
        Ok(())
    }

    /// Quantizes and de-quantizes in one go on both paths.
    fn fake_quantize(&mut self, case: &Case) -> Result<()> {
        if case.scales.is_some() {
            return Ok(());
        }
        let spec = Spec::new(self.scheme).per(case.granularity);
        let x = Tensor::new(&case.x, &case.shape)?;
        let expected = Reference.fake_quantize(x, &spec)?;
        let seen = View { case, units: spec.units(&case.shape)?, scales: &expected.scales };
        let once = self.path.is_once(x, &spec);
        let kernel = if once { Kernel::FakeQuantizeOnce } else { Kernel::FakeQuantize };
        let ours = self.path.fake_quantize(x, &spec)?;
        self.words(kernel, "values", &seen, &bits(&ours.values), &bits(&expected.values));
        Ok(())
    }

    /// Observes the case and its range units in reverse order, so that every range meets another one.
    fn observe(&mut self, case: &Case) -> Result<()> {
        let reversed: Vec<f32> = case.x.iter().rev().copied().collect();
        let batches = [Tensor::new(&case.x, &case.shape)?, Tensor::new(&reversed, &case.shape)?];
        let seen = View { case, units: RangeUnits::new(&case.shape, case.granularity)?, scales: &[] };
        let ends = |ranges: &ObservedRanges| {
            let ends = ranges.ranges().into_iter().flat_map(|range| [range.lo.to_bits(), range.hi.to_bits()]);
            ends.collect::<Vec<_>>()
        };
        for constant in [None, Some(0.01), Some(0.5), Some(1.0)] {
            let observer = constant.map_or(Ok(Observer::MIN_MAX), Observer::moving_average)?;
            let ours = self.path.observe(&batches, case.granularity, observer)?;
            let expected = Reference.observe(&batches, case.granularity, observer)?;
            self.words(Kernel::Observe, "ends of observed ranges", &seen, &ends(&ours), &ends(&expected));
        }
        Ok(())
    }

    /// De-quantizes codes on both paths, and measures their loss.
    fn codes(&mut self, case: &Case, codes: Vec<u8>) -> Result<()> {
        let (scales, zero_points) = (case.scales.clone().unwrap_or_default(), case.zero_points.clone());
        let q = Quantized::from_parts(self.scheme, case.granularity, case.shape.clone(), codes, scales, zero_points)?;
        let seen = View { case, units: q.units(), scales: q.scales() };
        let (ours, expected) = (self.path.dequantize(&q)?, Reference.dequantize(&q)?);
        self.words(Kernel::Dequantize, "values", &seen, &bits(&ours), &bits(&expected));
        let x = Tensor::new(&case.x, &case.shape)?;
        for per_element in [false, true] {
            let (ours, expected) = (self.path.loss(x, &q, per_element)?, Reference.loss(x, &q, per_element)?);
            self.loss(None, &seen, &ours, &expected);
        }
        Ok(())
    }

    /// Compares losses, `fused` being the kernel that computed them with the codes.
    fn loss(&mut self, fused: Option<Kernel>, seen: &View<'_>, ours: &Loss, expected: &Loss) {
        let errors = |loss: &Loss| loss.abs_errors.as_deref().map(bits);
        let (max, sums) = match (fused, &expected.abs_errors) {
            (Some(kernel), _) => (kernel, kernel),
            (None, Some(_)) => (Kernel::AbsErrorStore, Kernel::Loss),
            (None, None) => (Kernel::AbsError, Kernel::Loss),
        };
        let maxima = |loss: &Loss| loss.units.iter().map(|unit| unit.max_abs_error.to_bits()).collect::<Vec<_>>();
        let noise = |loss: &Loss| loss.units.iter().map(|unit| unit.noise.to_bits()).collect::<Vec<_>>();
        let mut same = true;
        if let (Some(ours), Some(expected)) = (errors(ours), errors(expected)) {
            same = self.words(Kernel::AbsErrorStore, "errors", seen, &ours, &expected);
        }
        same &= self.words(max, "largest errors", seen, &maxima(ours), &maxima(expected));
        // The sums lie on a grid that the largest error sets.
        if same {
            self.words(sums, "sums of squares", seen, &noise(ours), &noise(expected));
            self.words(sums, "sums of the tensor", seen, &ours.sums.words(), &expected.sums.words());
        }
    }

    /// Compares an output of a kernel; false if it differs.
    fn words<T: Copy + Into<u64>>(
        &mut self,
        kernel: Kernel,
        output: &'static str,
        seen: &View<'_>,
        ours: &[T],
        expected: &[T],
    ) -> bool {
        let row = self.row(kernel);
        row.cases += seen.units.units.min(expected.len()) as u64;
        row.words += expected.len() as u64;
        let pairs = || ours.iter().zip(expected).map(|(&a, &b)| (a.into(), b.into()));
        let Some(first) = pairs().position(|(a, b)| a != b) else { return true };
        let differing_words = pairs().filter(|(a, b)| a != b).count() as u64;
        self.differ(kernel, output, seen, first, (ours[first].into(), expected[first].into()), differing_words);
        false
    }

    fn differ(
        &mut self,
        kernel: Kernel,
        output: &'static str,
        seen: &View<'_>,
        index: usize,
        (found, expected): (u64, u64),
        differing_words: u64,
    ) {
        self.row(kernel).differing_words += differing_words;
        let case = format!("{:?} {:?} {}", seen.case.name, seen.case.shape, seen.case.granularity);
        let (scheme, input) = (self.scheme, seen.input(output, index));
        self.found.differences.push(Difference {
            kernel,
            scheme,
            case,
            output,
            index,
            input,
            found,
            expected,
            differing_words,
        });
    }

    fn row(&mut self, kernel: Kernel) -> &mut Row {
        let (rows, scheme) = (&mut self.found.rows, self.scheme);
        let at = rows.iter().position(|row| (row.kernel, row.scheme) == (kernel, scheme)).unwrap_or_else(|| {
            rows.push(Row { kernel, scheme, cases: 0, words: 0, differing_words: 0 });
            rows.len() - 1
        });
        &mut rows[at]
    }
}

/// A case as a difference shows it.
struct View<'a> {
    case: &'a Case,
    units: RangeUnits,
    scales: &'a [f32],
}

impl View<'_> {
    /// The input's patterns at a place of an output.
    fn input(&self, output: &str, index: usize) -> String {
        match output {
            // The index of codes counts bytes; it is the element's where a code is one.
            "codes" | "values" | "errors" if index < self.case.x.len() => {
                let unit = self.units.unit_of(index);
                let s = self.scales.get(unit).map_or(0, |s| s.to_bits());
                let x = self.case.x[index].to_bits();
                format!(" of unit {unit}, x {x:#010x}, scale {s:#010x}")
            }
            "scales" => {
                let of_unit = (0..self.case.x.len()).filter(|&i| self.units.unit_of(i) == index).take(4);
                let shown: Vec<_> = of_unit.map(|i| format!("{:#010x}", self.case.x[i].to_bits())).collect();
                format!(", x begins with {}", shown.join(" "))
            }
            _ => String::new(),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The CPU path with a fault in one output.
    struct Faulty {
        fault: &'static str,
        /// Calls until the fault shows.
        wait: Cell<u32>,
    }

    impl Faulty {
        fn is_due(&self, fault: &str) -> bool {
            if self.fault != fault {
                return false;
            }
            let left = self.wait.get();
            // Once, and never again.
            self.wait.set(left.checked_sub(1).unwrap_or(u32::MAX));
            left == 0
        }

        fn run(fault: &'static str, wait: u32) -> Selftest {
            let faulty = Self { fault, wait: Cell::new(wait) };
            compare(&faulty, &faulty, &[&faulty], &[], 256, &DeviceInfo::cpu(), &[Scheme::INT8_ABSMAX]).unwrap()
        }
    }

    fn rebuilt(q: &Quantized, change: impl FnOnce(&mut Vec<u8>, &mut Vec<f32>)) -> Result<Quantized> {
        let (mut codes, mut scales) = (q.codes().to_vec(), q.scales().to_vec());
        change(&mut codes, &mut scales);
        let zero_points = q.zero_points().to_vec();
        Quantized::from_parts(q.scheme(), q.granularity(), q.shape().to_vec(), codes, scales, zero_points)
    }

    impl Path for Faulty {
        fn quantize(&self, x: Tensor<'_>, spec: &Spec, given: Option<(&[f32], &[i32])>) -> Result<QuantizeOutput> {
            let mut out = Reference.quantize(x, spec, given)?;
            if given.is_none() && self.is_due("scale") {
                out.tensor = rebuilt(&out.tensor, |_, scales| scales[2] = f32::from_bits(scales[2].to_bits() ^ 1))?;
            }
            if given.is_none() && self.is_due("zero scale") {
                out.tensor = rebuilt(&out.tensor, |_, scales| scales[2] = 0.0)?;
            }
            if spec.loss == LossDetail::None && self.is_due("code") {
                out.tensor = rebuilt(&out.tensor, |codes, _| codes[1000] ^= 1)?;
            }
            out.counts.clipped_elems += u64::from(spec.loss == LossDetail::PerElement && self.is_due("clipped"));
            out.counts.nan_elems += u64::from(self.is_due("nan"));
            if let Some(loss) = &mut out.loss
                && self.is_due("noise")
            {
                loss.units[0].noise = f64::from_bits(loss.units[0].noise.to_bits() ^ 1);
            }
            Ok(out)
        }

        fn fake_quantize(&self, x: Tensor<'_>, spec: &Spec) -> Result<FakeQuantizeOutput> {
            let mut out = Reference.fake_quantize(x, spec)?;
            if self.is_due("fake") {
                out.values[3] = f32::from_bits(out.values[3].to_bits() ^ 1);
            }
            Ok(out)
        }

        fn is_once(&self, _: Tensor<'_>, _: &Spec) -> bool {
            false
        }

        fn observe(
            &self,
            batches: &[Tensor<'_>],
            granularity: Granularity,
            observer: Observer,
        ) -> Result<ObservedRanges> {
            // As if the last batch had been lost.
            let left = if self.is_due("observe") { 1 } else { batches.len() };
            Reference.observe(&batches[..left], granularity, observer)
        }

        fn dequantize(&self, q: &Quantized) -> Result<Vec<f32>> {
            let mut values = Reference.dequantize(q)?;
            if self.is_due("value") {
                values[77] = f32::from_bits(values[77].to_bits() ^ 1);
            }
            Ok(values)
        }

        fn loss(&self, x: Tensor<'_>, q: &Quantized, per_element: bool) -> Result<Loss> {
            let mut loss = Reference.loss(x, q, per_element)?;
            if let Some(errors) = &mut loss.abs_errors
                && self.is_due("error")
            {
                errors[5] = 0.0;
            }
            if self.is_due("largest") {
                loss.units[3].max_abs_error = -1.0;
            }
            Ok(loss)
        }
    }

    #[test]
    fn each_planted_fault_is_laid_to_its_kernel_and_place() {
        for (fault, wait, kernel, output, index) in [
            ("scale", 0, Kernel::Scale, "scales", 2),
            ("zero scale", 0, Kernel::Scale, "scales", 2),
            ("code", 0, Kernel::Quantize, "codes", 1000),
            ("code", 1, Kernel::Quantize, "codes", 1000),
            ("clipped", 0, Kernel::QuantizeLoss, "counts of NaN, Inf and clipped values", 2),
            ("nan", 7, Kernel::QuantizeLoss, "counts of NaN, Inf and clipped values", 0),
            ("fake", 0, Kernel::FakeQuantize, "values", 3),
            ("noise", 0, Kernel::QuantizeLoss, "sums of squares", 0),
            ("noise", 1, Kernel::Loss, "sums of squares", 0),
            ("value", 0, Kernel::Dequantize, "values", 77),
            ("error", 0, Kernel::AbsErrorStore, "errors", 5),
            ("largest", 0, Kernel::AbsError, "largest errors", 3),
            ("observe", 0, Kernel::Observe, "ends of observed ranges", 0),
        ] {
            let report = Faulty::run(fault, wait);
            let [difference] = &report.differences[..] else { panic!("{fault}: {report}") };
            assert_eq!((difference.kernel, difference.output, difference.index), (kernel, output, index), "{report}");
            assert!(difference.found != difference.expected, "{report}");
            assert!(difference.differing_words == 1 || fault == "observe", "{report}");
            assert!(!report.is_exact());
            let wrong: Vec<_> = report.rows.iter().filter(|row| row.differing_words > 0).collect();
            assert_eq!((wrong.len(), wrong[0].kernel, wrong[0].scheme), (1, kernel, Scheme::INT8_ABSMAX));
        }
    }

    #[test]
    fn a_report_holds_what_its_reader_needs() {
        let text = Faulty::run("code", 0).to_string();
        for part in ["NOT exact", env!("CARGO_PKG_VERSION"), "driver", "kernel quantize", "int8-absmax", "codes[1000]"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(text.contains("of unit 15, x 0x") && text.contains(", scale 0x"), "{text}");
    }

    #[test]
    fn the_cpu_path_is_itself_and_every_kernel_has_thousands_of_cases() {
        let report = Faulty::run("none", 0);
        assert!(report.is_exact(), "{report}");
        for &kernel in Kernel::ALL {
            // The CPU path has no kernels of one pass, and the calls that are compared clear nothing.
            let Some(row) = report.rows.iter().find(|row| row.kernel == kernel) else {
                assert!(kernel.label().contains("once") || kernel == Kernel::Clear, "{kernel:?}");
                continue;
            };
            assert!(row.cases >= 2000 && row.words >= 2000, "{row:?}");
        }
    }
}
