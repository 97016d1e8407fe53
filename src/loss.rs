//! What quantization lost: one definition of the summaries, order-free and in whole numbers.
//!
//! The loss of an element is |x' - x|, one f32 subtraction, rounded once. Summaries run over the elements
//! whose x and x' are finite. A float sum depends on its order, and no two devices add in the same order, so
//! the sums here are sums of whole numbers.
//!
//! **The grid.** Let `s = ms * 2^es` be a unit's scale with `2^23 <= ms < 2^24`, and `dmax` the largest loss
//! in the unit. The grid's step is `u = 2^g` with
//!
//! ```text
//! g = es - 1                                       if dmax <= s
//! g = max(es - 1, floor(log2(dmax)) - 28)          otherwise (a clipped unit)
//! ```
//!
//! that is, half of the scale's last place, unless a clipped value needs the room. Per element
//!
//! ```text
//! D = rne(x' / u) - rne(x / u)      a whole number, |D| <= 2^29 + 1
//! Q = q                             the code (less the zero point where there is one)
//! ```
//!
//! and per unit the four exact sums `abs = sum |D|`, `noise = sum D^2`, `codes = sum Q^2`,
//! `cross = sum Q * D`. A tensor's sums add its units' as exact numbers:
//!
//! ```text
//! abs    = sum u * abs                 mean  = abs / n                    rounded once to f64
//! noise  = sum u^2 * noise             MSE   = noise / n                  rounded once to f64
//! recon  = sum s^2 * codes             SQNR  = 10 log10(signal / noise)
//! signal = sum s^2 * codes - 2 s u * cross + u^2 * noise
//! dot    = sum s^2 * codes - s u * cross                 cosine = dot / sqrt(signal * recon)
//! ```
//!
//! The last two lines take `x = s Q - u D`, which holds up to the rounding of `x' = s Q` to 24 bits (2^-24 relative);
//! the product of a 16-bit code has up to 40.
//!
//! **Casts** have no scale. One that stands in, `2^(floor(log2 amax) - 12)` with the largest magnitude `amax` of the
//! tensor's finite values, sets the grid in the same way. Their `Q` is `x'` in steps of `2^-11` of that scale, to the
//! nearest, ties to even, and at most 2^26, which only codes that belong to another tensor reach; `recon`,
//! `signal` and `dot` take such a step for `s`. So `x = s Q - u D` is off by half a step at most, 2^-24 of `amax`.
//! An `x'` between the grid's points is a float of a quantum below u, and so within `u / 2` of x: its D is off by 1 at
//! most, which moves the mean by at most 2^-24 of that scale and the MSE by at most the square of that.
//!
//! **Why it is close enough.** `x'` lies on an unclipped unit's grid, because it is a multiple of `2^es`.
//! Where `q != 0`, `|x| > s / 2 >= 2^23 u`, so x lies on it too, and `u D` is `x' - x` exactly. Only elements
//! with `q = 0` are rounded, by at most `u / 2 <= 2^-25 s`. So the mean is within 2^-25 s, and `D^2 u^2` is
//! off by at most `2 |d| t + t^2` with `t = 2^-25 s`, which is below `1e-5 d^2 + 2^-32 s^2` for every d.
//! In a clipped unit `u <= 2^-28 dmax`: the noise is at least `dmax^2`, and n elements that are each off by u
//! at most change it by at most `2^-28 sqrt(n)` relative, were they all off the same way.
//!
//! **Where it is not.** The schemes' own scales keep a unit's losses within some steps, unless all its values
//! lie far from zero and lose alike. With scales from elsewhere one value can lie 2^12 steps and more beyond
//! the codes, among thousands that do not: then the unit's mean is only good to `u <= 2^-28 dmax`. And a value
//! below 2^-25 s has no weight on the grid, so that the SQNR and the cosine of a tensor are meaningless if all
//! of it is that small (values below 2^-143, whose scale would be 0 and is 1).
//!
//! **Why it cannot overflow.** `|D| < 2^30`, so `D^2 < 2^60`, and sums over 2^40 elements stay below 2^100. `|Q|` is at
//! most 2^16 of codes and 2^26 of casts, so that sums of `Q^2` stay below 2^92, those of `Q D` below 2^96, and times
//! `ms^2` or `2 ms`, which only codes have, below 2^121.
//!
//! Both paths compute the per-unit sums, each in its own arithmetic; everything after that is this file's,
//! and uses integers only, so that a host's rounding mode cannot change it.

use crate::exact::float::{Parts, parts};
use crate::exact::loss::{CAST_STEP_EXP, grid_exp};
use crate::threads::share;

/// `add`'s least exponent: `u^2` is at least `2^-346`.
const LSB_EXP: i32 = -352;
/// 768 bits: from `2^-352` to beyond the square of the largest f32 times 2^64 elements, and a sign.
const LIMBS: usize = 12;

/// A fixed-point number wide enough for any sum of squares of f32 values, in two's complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wide([u64; LIMBS]);

impl Wide {
    /// Adds `value * 2^exp`.
    fn add(&mut self, value: i128, exp: i32) {
        let shift = usize::try_from(exp - LSB_EXP).expect("no term is finer than the least exponent");
        let (limb, bit) = (shift / 64, shift % 64);
        let sign = if value < 0 { u64::MAX } else { 0 };
        let (lo, hi) = (value as u64, (value >> 64) as u64);
        let spill = |low: u64, high: u64| if bit == 0 { high } else { (high << bit) | (low >> (64 - bit)) };
        let words = [spill(0, lo), spill(lo, hi), spill(hi, sign)];
        let mut carry = false;
        for (i, slot) in self.0[limb..].iter_mut().enumerate() {
            let word = words.get(i).copied().unwrap_or(sign);
            let (sum, c1) = slot.overflowing_add(word);
            let (sum, c2) = sum.overflowing_add(u64::from(carry));
            (*slot, carry) = (sum, c1 | c2);
        }
    }

    fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (slot, &word) in self.0.iter_mut().zip(&other.0) {
            let (sum, c1) = slot.overflowing_add(word);
            let (sum, c2) = sum.overflowing_add(u64::from(carry));
            (*slot, carry) = (sum, c1 | c2);
        }
    }

    fn is_negative(&self) -> bool {
        self.0[LIMBS - 1] >> 63 == 1
    }

    fn magnitude(&self) -> Self {
        if !self.is_negative() {
            return *self;
        }
        let mut carry = true;
        Self(self.0.map(|limb| {
            let (negated, c) = (!limb).overflowing_add(u64::from(carry));
            carry = c;
            negated
        }))
    }

    /// The top 64 bits of the magnitude: `value = m * 2^e` truncated, with the top bit of `m` set; or `None`
    /// of zero.
    fn top(&self) -> Option<(u64, i32)> {
        let limbs = self.magnitude().0;
        let i = limbs.iter().rposition(|&limb| limb != 0)?;
        let lead = limbs[i].leading_zeros();
        let below = if i == 0 { 0 } else { limbs[i - 1] };
        let m = if lead == 0 { limbs[i] } else { (limbs[i] << lead) | (below >> (64 - lead)) };
        Some((m, LSB_EXP + 64 * exponent(i) - lead.cast_signed()))
    }

    /// `self / n`, rounded once. `self` is not negative.
    fn quotient(&self, n: u64) -> f64 {
        // Two limbs below the point give at least 64 bits of quotient for any n.
        let mut limbs = [0u64; LIMBS + 2];
        let mut rest = 0u128;
        for i in (0..LIMBS + 2).rev() {
            let limb = if i < 2 { 0 } else { self.0[i - 2] };
            let dividend = (rest << 64) | u128::from(limb);
            limbs[i] = (dividend / u128::from(n)) as u64;
            rest = dividend % u128::from(n);
        }
        let Some(i) = limbs.iter().rposition(|&limb| limb != 0) else { return 0.0 };
        let lead = limbs[i].leading_zeros();
        let below = if i == 0 { 0 } else { limbs[i - 1] };
        let both = (u128::from(limbs[i]) << 64 | u128::from(below)) << lead;
        let sticky = rest != 0 || i > 1 && (limbs[..i - 1].iter().any(|&limb| limb != 0));
        round_to_f64(false, both | u128::from(sticky), LSB_EXP - 128 + 64 * (exponent(i) - 1) - lead.cast_signed())
    }
}

fn exponent(limb: usize) -> i32 {
    i32::try_from(limb).expect("a limb's index is small")
}

/// `m * 2^e` rounded to nearest even, within the normal range of f64; the lowest bit of `m` may be sticky
/// if `m >= 2^56`.
fn round_to_f64(negative: bool, m: u128, e: i32) -> f64 {
    if m == 0 {
        return 0.0;
    }
    if m < 1 << 53 {
        // The number is a float, and so is its product by a power of two: nothing is rounded.
        let size = (m as u64) as f64 * f64::from_bits(u64::from((e + 1023).cast_unsigned()) << 52);
        return if negative { -size } else { size };
    }
    let lead = m.leading_zeros();
    let m = m << lead;
    let exp = e - lead.cast_signed() + 127;
    let (kept, rest) = ((m >> 75) as u64, m & ((1 << 75) - 1));
    let half = 1u128 << 74;
    let up = rest > half || (rest == half && kept & 1 == 1);
    let biased = u64::try_from(exp + 1023).expect("far inside the range of f64");
    // The hidden bit adds one to the exponent, and so does a carry out of the significand.
    let bits = ((biased - 1) << 52) + kept + u64::from(up);
    f64::from_bits(bits | u64::from(negative) << 63)
}

/// `log2(m / 2^63)` in steps of 2^-60, for `m` with its top bit set: each squaring gives one binary digit.
fn log2_fraction(m: u64) -> i128 {
    let (mut y, mut digits) = (u128::from(m), 0i128);
    for _ in 0..60 {
        y = (y * y) >> 63;
        digits <<= 1;
        if y >> 64 != 0 {
            y >>= 1;
            digits |= 1;
        }
    }
    digits
}

/// `10 log10(2)` in steps of 2^-54.
const DB_PER_OCTAVE: i128 = 54_228_743_051_985_909;

fn decibels(signal: &Wide, noise: &Wide) -> Option<f64> {
    let ((ms, es), (mn, en)) = (signal.top()?, noise.top()?);
    let octaves = (i128::from(es - en) << 60) + log2_fraction(ms) - log2_fraction(mn);
    let db = octaves * DB_PER_OCTAVE;
    Some(round_to_f64(db < 0, db.unsigned_abs(), -114))
}

fn cosine(dot: &Wide, signal: &Wide, recon: &Wide) -> Option<f64> {
    let ((ms, es), (mr, er)) = (signal.top()?, recon.top()?);
    let Some((md, ed)) = dot.top() else { return Some(0.0) };
    let (product, exp) = (u128::from(ms) * u128::from(mr), es + er);
    let (root, exp) = if exp % 2 == 0 { (product.isqrt(), exp / 2) } else { ((product >> 1).isqrt(), (exp + 1) / 2) };
    let ratio = (u128::from(md) << 63) / root;
    Some(round_to_f64(dot.is_negative(), ratio, ed - 63 - exp))
}

/// The exact sums of one range unit, as both paths deliver them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitSums {
    /// The largest loss, as f32 bits.
    pub(crate) max_bits: u32,
    /// `sum |D|`
    pub(crate) abs: u128,
    /// `sum D^2`
    pub(crate) noise: u128,
    /// `sum Q^2`
    pub(crate) codes: u128,
    /// `sum Q * D`
    pub(crate) cross: i128,
}

impl UnitSums {
    /// The exponent of the grid that the sums count in. The largest loss is infinite where the difference of two finite
    /// values is beyond binary32; of a device that computes wrong it may be NaN.
    fn grid(&self, scale_bits: u32) -> i32 {
        grid_exp(scale_bits, self.max_bits.min(0x7f80_0000))
    }

    /// What is told of the unit.
    #[inline]
    pub(crate) fn loss(&self, scale_bits: u32) -> UnitLoss {
        let noise = round_to_f64(false, self.noise, 2 * self.grid(scale_bits));
        UnitLoss { max_abs_error: f32::from_bits(self.max_bits), noise }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.max_bits = self.max_bits.max(other.max_bits);
        self.abs += other.abs;
        self.noise += other.noise;
        self.codes += other.codes;
        self.cross += other.cross;
    }
}

/// The loss of one range unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct UnitLoss {
    /// The largest |x' - x|; 0 of a unit without a countable element.
    pub max_abs_error: f32,
    /// The sum of (x' - x)^2 over the unit.
    pub noise: f64,
}

/// The loss of a tensor, or of several, as exact sums.
///
/// Sums merge exactly: [`merge`](Self::merge) gives the same bits in any order, whatever computed the parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossSums {
    elems: u64,
    nonfinite_out_elems: u64,
    max_bits: u32,
    abs: Wide,
    noise: Wide,
    signal: Wide,
    recon: Wide,
    dot: Wide,
}

impl LossSums {
    /// Adds another tensor's sums.
    pub fn merge(&mut self, other: &Self) {
        self.elems += other.elems;
        self.nonfinite_out_elems += other.nonfinite_out_elems;
        self.max_bits = self.max_bits.max(other.max_bits);
        self.abs.merge(&other.abs);
        self.noise.merge(&other.noise);
        self.signal.merge(&other.signal);
        self.recon.merge(&other.recon);
        self.dot.merge(&other.dot);
    }

    /// Adds terms that count in steps of `2^es` and `2^g`.
    fn add_terms(&mut self, &Terms { abs, noise, codes, cross }: &Terms, es: i32, g: i32) {
        self.abs.add(abs, g);
        self.noise.add(noise, 2 * g);
        self.recon.add(codes, 2 * es);
        for (sum, times) in [(&mut self.signal, 2), (&mut self.dot, 1)] {
            sum.add(codes, 2 * es);
            sum.add(cross.wrapping_mul(-times), es + g);
        }
        self.signal.add(noise, 2 * g);
    }

    pub(crate) fn merged(mut self, other: &Self) -> Self {
        self.merge(other);
        self
    }

    /// Counts elements.
    pub(crate) fn count(&mut self, elems: u64, nonfinite_out_elems: u64) {
        self.elems += elems;
        self.nonfinite_out_elems += nonfinite_out_elems;
    }

    /// Everything that the summary is made of.
    #[cfg(feature = "gpu")]
    pub(crate) fn words(&self) -> Vec<u64> {
        let wide = [&self.abs, &self.noise, &self.signal, &self.recon, &self.dot].into_iter().flat_map(|sum| sum.0);
        [self.elems, self.nonfinite_out_elems, self.max_bits.into()].into_iter().chain(wide).collect()
    }

    /// The summary of what was added.
    pub fn summary(&self) -> LossSummary {
        let some = |value| (self.elems > 0).then_some(value);
        LossSummary {
            elems: self.elems,
            nonfinite_out_elems: self.nonfinite_out_elems,
            max_abs_error: (self.elems > 0).then(|| f32::from_bits(self.max_bits)),
            mean_abs_error: some(self.abs.quotient(self.elems.max(1))),
            mse: some(self.noise.quotient(self.elems.max(1))),
            sqnr_db: decibels(&self.signal, &self.noise),
            cosine: cosine(&self.dot, &self.signal, &self.recon),
        }
    }
}

/// What units of one exponent add to a tensor's sums: those of the codes times the digits of their scales.
///
/// They stay below 2^121. Those of a device that computes wrong may not, and are wrong then, but no panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) abs: i128,
    pub(crate) noise: i128,
    pub(crate) codes: i128,
    pub(crate) cross: i128,
}

impl Terms {
    #[inline]
    fn add(&mut self, sums: &UnitSums, ms: i128) {
        self.abs = self.abs.wrapping_add(sums.abs.cast_signed());
        self.noise = self.noise.wrapping_add(sums.noise.cast_signed());
        self.codes = self.codes.wrapping_add((ms * ms).wrapping_mul(sums.codes.cast_signed()));
        self.cross = self.cross.wrapping_add(ms.wrapping_mul(sums.cross));
    }
}

/// The least exponent of a float with 24 digits, and how many there are: those of subnormals are below the others.
const LEAST_EXP: i32 = -172;
const EXPS: usize = 277;

/// Adds up units. Those on the grids of their own scales it gathers by exponent, in few words: a sum that holds all exponents
/// costs as much as what a short unit's elements do.
pub(crate) struct Adder {
    cast: bool,
    of_exponents: Vec<Terms>,
    sums: LossSums,
}

impl Adder {
    pub(crate) fn new(cast: bool) -> Self {
        Self { cast, of_exponents: vec![Terms::default(); EXPS], sums: LossSums::default() }
    }

    #[inline]
    pub(crate) fn add(&mut self, unit: &UnitSums, scale_bits: u32) {
        // What a device holds in place of a scale may be none: whoever checks the scales tells of it, and there is no loss.
        if !(1..f32::INFINITY.to_bits()).contains(&scale_bits) {
            return;
        }
        self.sums.max_bits = self.sums.max_bits.max(unit.max_bits);
        let Parts { m, e } = parts(scale_bits);
        if !self.cast && unit.max_bits <= scale_bits {
            self.of_exponents[(e - LEAST_EXP).cast_unsigned() as usize].add(unit, m.into());
            return;
        }
        let (ms, es) = if self.cast { (1, e + CAST_STEP_EXP) } else { (m.into(), e) };
        let mut terms = Terms::default();
        terms.add(unit, ms);
        self.sums.add_terms(&terms, es, unit.grid(scale_bits));
    }

    /// Adds what units on the grids of their own scales, all `m 2^exponent`, have together, and their largest loss.
    pub(crate) fn add_terms(&mut self, exponent: i32, max_bits: u32, terms: &Terms) {
        self.sums.max_bits = self.sums.max_bits.max(max_bits);
        let sums = &mut self.of_exponents[(exponent - LEAST_EXP).cast_unsigned() as usize];
        sums.abs += terms.abs;
        sums.noise += terms.noise;
        sums.codes += terms.codes;
        sums.cross += terms.cross;
    }

    /// What was added.
    pub(crate) fn finish(mut self) -> LossSums {
        for (terms, es) in self.of_exponents.iter().zip(LEAST_EXP..) {
            if *terms != Terms::default() {
                self.sums.add_terms(terms, es, es - 1);
            }
        }
        self.sums
    }
}

/// The loss in the usual figures. A figure without a value (no elements, no noise, no signal) is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LossSummary {
    /// Elements with finite x and finite x', over which the figures run.
    pub elems: u64,
    /// Elements whose x' is not finite: a product beyond binary32, or a cast's infinity or NaN.
    pub nonfinite_out_elems: u64,
    /// The largest |x' - x|, exact.
    pub max_abs_error: Option<f32>,
    /// The mean of |x' - x|.
    pub mean_abs_error: Option<f64>,
    /// The mean of (x' - x)^2.
    pub mse: Option<f64>,
    /// 10 log10 of the sum of x^2 over the sum of (x' - x)^2.
    pub sqnr_db: Option<f64>,
    /// The cosine of the angle between x and x'.
    pub cosine: Option<f64>,
}

/// The loss of quantizing a tensor.
///
/// [`sums`](Self::sums) defines the figures in the module's documentation of [`LossSums`]; they are the same
/// bits on every device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loss {
    /// Per range unit: the maximum and the noise sum.
    pub units: Vec<UnitLoss>,
    /// Over the whole tensor.
    pub sums: LossSums,
    /// |x' - x| of every element, when asked for: NaN where x or x' is (or where they are infinite alike), of
    /// bits 0x7fc00000; infinity where only one of them is infinite.
    pub abs_errors: Option<Vec<f32>>,
}

impl Loss {
    /// The summary over the whole tensor.
    pub fn summary(&self) -> LossSummary {
        self.sums.summary()
    }

    pub(crate) fn new(
        unit_sums: &[UnitSums],
        scales: &[f32],
        cast: bool,
        elems: u64,
        nonfinite_out_elems: u64,
        abs_errors: Option<Vec<f32>>,
    ) -> Self {
        const TASK_UNITS: usize = 1 << 14;
        let none = UnitLoss { max_abs_error: 0.0, noise: 0.0 };
        let mut units = vec![none; unit_sums.len()];
        let tasks = unit_sums.chunks(TASK_UNITS).zip(scales.chunks(TASK_UNITS)).zip(units.chunks_mut(TASK_UNITS));
        let adders = share(
            tasks,
            || Adder::new(cast),
            |adder, ((sums, scales), units)| {
                for ((sums, scale), unit) in sums.iter().zip(scales).zip(units) {
                    adder.add(sums, scale.to_bits());
                    *unit = sums.loss(scale.to_bits());
                }
            },
        );
        let mut sums = adders.into_iter().map(Adder::finish).fold(LossSums::default(), |a, b| a.merged(&b));
        sums.count(elems, nonfinite_out_elems);
        Self { units, sums, abs_errors }
    }
}

/// Equal when every bit is.
impl PartialEq for Loss {
    fn eq(&self, other: &Self) -> bool {
        let unit_bits = |unit: &UnitLoss| (unit.max_abs_error.to_bits(), unit.noise.to_bits());
        let error_bits =
            |loss: &Self| loss.abs_errors.as_ref().map(|errors| errors.iter().map(|e| e.to_bits()).collect::<Vec<_>>());
        self.sums == other.sums
            && self.units.len() == other.units.len()
            && self.units.iter().zip(&other.units).all(|(a, b)| unit_bits(a) == unit_bits(b))
            && error_bits(self) == error_bits(other)
    }
}

impl Eq for Loss {}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn wide(terms: &[(i128, i32)]) -> Wide {
        let mut sum = Wide::default();
        for &(value, exp) in terms {
            sum.add(value, exp);
        }
        sum
    }

    #[test]
    fn scales_that_are_none_end_in_no_panic() {
        for scale_bits in [0, 1, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000, 0x7fff_ffff, 0xbf80_0000, 0xffff_ffff] {
            for max_bits in [0, 1, 0x7f7f_ffff] {
                let mut adder = Adder::new(false);
                adder.add(&UnitSums { max_bits, abs: 5, noise: 25, codes: 9, cross: -3 }, scale_bits);
                adder.finish();
            }
        }
    }

    #[test]
    fn wide_sums_do_not_depend_on_order_and_cancel_to_zero() {
        let terms = [(i128::from(i64::MAX) * 77, -352), (-5, 250), (1 << 126, -333), (-1, -352), (12345, -64)];
        let forward = wide(&terms);
        let mut reversed = terms;
        reversed.reverse();
        assert_eq!(forward, wide(&reversed));
        let negated = terms.map(|(value, exp)| (-value, exp));
        let mut sum = forward;
        sum.merge(&wide(&negated));
        assert_eq!(sum, Wide::default());
        assert!(forward.is_negative() && !wide(&negated).is_negative());
    }

    #[test]
    fn quotients_are_those_of_binary64_where_binary64_rounds_once() {
        for (m, n) in
            [(1i64, 3u64), (i64::MAX >> 10, 7), (5, 1), (1 << 52, u64::MAX >> 11), (999_999_999_999, 1_000_003)]
        {
            for exp in [-300, -149, 0, 200] {
                let expected = m as f64 / n as f64 * 2f64.powi(exp);
                assert_eq!(wide(&[(m.into(), exp)]).quotient(n).to_bits(), expected.to_bits(), "{m} / {n} * 2^{exp}");
            }
        }
        assert_eq!(wide(&[]).quotient(1), 0.0);
    }

    #[test]
    fn decibels_and_cosine_agree_with_binary64() {
        for (a, b) in [(3i128, 2i128), (1 << 100, 3), (1, 1), (7, 1 << 90), (1_000_000_007, 1_000_000_006)] {
            let db = decibels(&wide(&[(a, -40)]), &wide(&[(b, -40)])).unwrap();
            assert_relative_eq!(db, 10.0 * (a as f64 / b as f64).log10(), max_relative = 1e-14, epsilon = 1e-12);
            let dot = a.min(b);
            let cos = cosine(&wide(&[(-dot, 3)]), &wide(&[(a, 3)]), &wide(&[(b, 3)])).unwrap();
            assert_relative_eq!(cos, -(dot as f64) / (a as f64 * b as f64).sqrt(), max_relative = 1e-15);
        }
        assert_eq!(decibels(&wide(&[]), &wide(&[(1, 0)])), None);
        assert_eq!(decibels(&wide(&[(1, 0)]), &wide(&[])), None);
        assert_eq!(cosine(&wide(&[]), &wide(&[(1, 0)]), &wide(&[])), None);
    }

    #[test]
    fn a_clipped_unit_has_a_coarser_grid_but_only_then() {
        let bits = f32::to_bits;
        assert_eq!(grid_exp(bits(1.0), bits(0.5)), -24);
        assert_eq!(grid_exp(bits(1.0), bits(1.0)), -24);
        assert_eq!(grid_exp(bits(1.0), bits(15.9)), -24);
        assert_eq!(grid_exp(bits(1.0), bits(16.0)), -24);
        assert_eq!(grid_exp(bits(1.0), bits(32.0)), -23);
        assert_eq!(grid_exp(bits(1.0), bits(f32::INFINITY)), 100);
        assert_eq!(grid_exp(1, 1), -173);
    }
}
