//! The contract's arithmetic in exact whole numbers: slow, obvious, and nothing of `src/` but its plain types.
//!
//! Every finite f32 is a whole number of *ticks* of 2^-149, its smallest subnormal. So a range, a sum and a
//! product by a code need nothing but big integers, a quotient is two of them, and the only rounding there
//! is stands in [`Format::round`] and [`rne`]. Floats appear as bit patterns.

use num_bigint::{BigInt, BigUint, Sign};
use std::cmp::Ordering;
use wgpu_quant::{Granularity, Scheme};

pub(crate) const INF: u32 = 0x7f80_0000;
/// The one NaN that a loss per element may be.
pub(crate) const NAN: u32 = 0x7fc0_0000;
const SIGN: u32 = 0x8000_0000;
const ONE: u32 = 0x3f80_0000;
/// 2^-23, which compressed-tensors takes for a scale of 0.
const EPSILON: u32 = 0x3400_0000;

/// An IEEE format.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, fraction_bits: 10 };
pub(crate) const BF16: Format = Format { exponent_bits: 8, fraction_bits: 7 };
pub(crate) const F32: Format = Format { exponent_bits: 8, fraction_bits: 23 };
pub(crate) const F64: Format = Format { exponent_bits: 11, fraction_bits: 52 };

impl Format {
    fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.fraction_bits)
    }

    fn inf(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.fraction_bits
    }

    /// The smallest subnormal is two to this.
    fn least_exponent(self) -> i64 {
        let bias = (1 << (self.exponent_bits - 1)) - 1;
        1 - bias - i64::from(self.fraction_bits)
    }

    /// How many of the smallest subnormals a finite magnitude is.
    fn count(self, magnitude: u64) -> BigUint {
        assert!(magnitude < self.inf(), "{magnitude:#x} has no value");
        let hidden = 1 << self.fraction_bits;
        let (exponent, fraction) = (magnitude >> self.fraction_bits, magnitude & (hidden - 1));
        // A subnormal counts them itself; the first normal exponent does too, with the hidden bit.
        if exponent == 0 { BigUint::from(fraction) } else { BigUint::from(fraction | hidden) << (exponent - 1) }
    }

    /// The float nearest to `numer / denom`, ties to even: subnormals are kept, and what would round beyond the
    /// largest finite value, were the exponent without bound, is infinite.
    fn round(self, numer: &BigUint, denom: &BigUint) -> u64 {
        if numer.bits() == 0 {
            return 0;
        }
        // numer / denom * 2^up, as a numerator and a denominator.
        let scaled = |up: i64| {
            if up >= 0 { (numer << up, denom.clone()) } else { (numer.clone(), denom << -up) }
        };
        // 2^exponent <= numer / denom < 2^(exponent + 1)
        let mut exponent = i64::try_from(numer.bits()).unwrap() - i64::try_from(denom.bits()).unwrap();
        let (n, d) = scaled(-exponent);
        if n < d {
            exponent -= 1;
        }
        // The distance between neighbouring floats here: all significant bits, but never finer than a subnormal.
        let quantum = (exponent - i64::from(self.fraction_bits)).max(self.least_exponent());
        let (n, d) = scaled(-quantum);
        let significand = i64::try_from(rne(&n, &d)).unwrap();
        // A pattern counts the floats from 0 up, as many for each quantum as the fraction has; so a significand that
        // rounded up carries into the next exponent, and a subnormal needs no case of its own.
        let pattern = ((quantum - self.least_exponent()) << self.fraction_bits) + significand;
        u64::try_from(pattern).unwrap().min(self.inf())
    }

    /// The same value in another format, rounded once. NaN keeps its sign and the top bits of its payload, and where
    /// bits are lost it becomes quiet, so that it stays NaN.
    pub(crate) fn convert(self, bits: u64, to: Self) -> u64 {
        let sign = if bits & self.sign() == 0 { 0 } else { to.sign() };
        let magnitude = bits & (self.sign() - 1);
        if magnitude > self.inf() {
            let payload = magnitude - self.inf();
            return if to.fraction_bits < self.fraction_bits {
                let quiet = 1 << (to.fraction_bits - 1);
                sign | to.inf() | payload >> (self.fraction_bits - to.fraction_bits) | quiet
            } else {
                sign | to.inf() | payload << (to.fraction_bits - self.fraction_bits)
            };
        }
        if magnitude == self.inf() {
            return sign | to.inf();
        }
        sign | to.round(&self.count(magnitude), &(BigUint::from(1u32) << -self.least_exponent()))
    }

    /// What an element of this format is to all that follows.
    pub(crate) fn to_f32(self, bits: u64) -> u32 {
        u32::try_from(self.convert(bits, F32)).unwrap()
    }
}

/// How the contract's table maps values to codes.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    MinMax,
    AbsMax,
    Affine,
    OnnxDynamic,
    CompressedTensors,
}

/// The scheme's row in the contract's table; a cast's has nothing but its format.
#[derive(Clone, Copy)]
enum Row {
    Scaled { qmin: i32, qmax: i32, rule: Rule },
    Cast(Format),
}

fn row(scheme: Scheme) -> Row {
    let scaled = |qmin, qmax, rule| Row::Scaled { qmin, qmax, rule };
    match scheme.name() {
        "int8-minmax" => scaled(-128, 127, Rule::MinMax),
        "int16-minmax" => scaled(-32768, 32767, Rule::MinMax),
        "int4-minmax" => scaled(-8, 7, Rule::MinMax),
        "int8-absmax" => scaled(-128, 127, Rule::AbsMax),
        "int16-absmax" => scaled(-32768, 32767, Rule::AbsMax),
        "int4-absmax" => scaled(-8, 7, Rule::AbsMax),
        "int8-affine" => scaled(-128, 127, Rule::Affine),
        "uint8-affine" => scaled(0, 255, Rule::Affine),
        "int16-affine" => scaled(-32768, 32767, Rule::Affine),
        "uint16-affine" => scaled(0, 65535, Rule::Affine),
        "int4-affine" => scaled(-8, 7, Rule::Affine),
        "uint4-affine" => scaled(0, 15, Rule::Affine),
        "onnx-dynamic-uint8" => scaled(0, 255, Rule::OnnxDynamic),
        "ct-int8" => scaled(-128, 127, Rule::CompressedTensors),
        "ct-int4" => scaled(-8, 7, Rule::CompressedTensors),
        "f16" => Row::Cast(F16),
        "bf16" => Row::Cast(BF16),
        name => panic!("the oracle has no row for {name}"),
    }
}

/// The ends of the codes of a scheme with a scale.
pub(crate) fn ends(scheme: Scheme) -> (i32, i32) {
    let Row::Scaled { qmin, qmax, .. } = row(scheme) else { panic!("{scheme} has no scale") };
    (qmin, qmax)
}

pub(crate) fn is_cast(scheme: Scheme) -> bool {
    matches!(row(scheme), Row::Cast(_))
}

pub(crate) fn has_zero_point(scheme: Scheme) -> bool {
    matches!(row(scheme), Row::Scaled { rule: Rule::Affine | Rule::OnnxDynamic, .. })
}

pub(crate) fn is_nan(bits: u32) -> bool {
    bits & !SIGN > INF
}

pub(crate) fn is_finite(bits: u32) -> bool {
    bits & !SIGN < INF
}

/// 2^149: how many ticks make 1.
fn ticks_per_one() -> BigUint {
    BigUint::from(1u32) << 149u32
}

/// A finite f32 as a whole number of ticks.
pub(crate) fn ticks(bits: u32) -> BigInt {
    let magnitude = BigInt::from(F32.count((bits & !SIGN).into()));
    if bits & SIGN == 0 { magnitude } else { -magnitude }
}

/// `numer / denom` to the nearest whole number, ties to the even one.
fn rne(numer: &BigUint, denom: &BigUint) -> BigUint {
    let (floor, rest) = (numer / denom, numer % denom);
    let up = match (rest * 2u32).cmp(denom) {
        Ordering::Less => false,
        Ordering::Equal => floor.bit(0),
        Ordering::Greater => true,
    };
    floor + u32::from(up)
}

/// `numer / denom` of either sign to the nearest whole number, ties to the even one.
fn rne_signed(numer: &BigInt, denom: &BigUint) -> BigInt {
    let magnitude = BigInt::from(rne(numer.magnitude(), denom));
    if numer.sign() == Sign::Minus { -magnitude } else { magnitude }
}

/// The f32 nearest to `numer / denom`, ties to even.
pub(crate) fn round_to_f32(numer: &BigInt, denom: &BigUint) -> u32 {
    let sign = if numer.sign() == Sign::Minus { SIGN } else { 0 };
    sign | u32::try_from(F32.round(numer.magnitude(), denom)).unwrap()
}

/// `a + b`, `a - b`, rounded once.
pub(crate) fn add(a: u32, b: u32) -> u32 {
    round_to_f32(&(ticks(a) + ticks(b)), &ticks_per_one())
}

pub(crate) fn sub(a: u32, b: u32) -> u32 {
    round_to_f32(&(ticks(a) - ticks(b)), &ticks_per_one())
}

/// `a / b` for positive `b`, rounded once.
pub(crate) fn div(a: u32, b: u32) -> u32 {
    round_to_f32(&ticks(a), ticks(b).magnitude())
}

/// `a / k`, rounded once.
pub(crate) fn div_int(a: u32, k: i32) -> u32 {
    round_to_f32(&ticks(a), &(ticks_per_one() * k.unsigned_abs()))
}

/// `k * a`, rounded once.
pub(crate) fn mul_int(k: i32, a: u32) -> u32 {
    round_to_f32(&(k * ticks(a)), &ticks_per_one())
}

/// How many range units a tensor has, and each element's.
pub(crate) fn units(shape: &[usize], granularity: Granularity) -> (usize, Vec<usize>) {
    let elems: usize = shape.iter().product();
    // The coordinates of an element, from the last axis back.
    let coordinate = |mut i: usize, axis: usize| {
        for d in (axis + 1..shape.len()).rev() {
            i /= shape[d];
        }
        i % shape[axis]
    };
    match granularity {
        Granularity::Tensor => (1, vec![0; elems]),
        Granularity::Channel(axis) => {
            let from_end = if axis < 0 { axis.unsigned_abs() as usize } else { shape.len() - axis as usize };
            let axis = shape.len() - from_end;
            (shape[axis], (0..elems).map(|i| coordinate(i, axis)).collect())
        }
        Granularity::Group(n) => {
            let (&row_elems, outer) = shape.split_last().expect("a scalar has no groups");
            let groups_per_row = row_elems.div_ceil(n);
            let unit_of = |i: usize| i / row_elems * groups_per_row + i % row_elems / n;
            (outer.iter().product::<usize>() * groups_per_row, (0..elems).map(unit_of).collect())
        }
        other => panic!("the oracle does not know {other}"),
    }
}

/// The smallest and the largest finite value; both +0 where there is none. -0 is as +0.
pub(crate) fn range(x: impl Iterator<Item = u32>) -> (u32, u32) {
    let finite: Vec<BigInt> = x.filter(|&bits| is_finite(bits)).map(ticks).collect();
    let pattern = |value: Option<&BigInt>| value.map_or(0, |ticks| round_to_f32(ticks, &ticks_per_one()));
    (pattern(finite.iter().min()), pattern(finite.iter().max()))
}

/// `(hi - lo) / steps`, or the quotients' sum where the difference is beyond binary32.
fn width_over(lo: u32, hi: u32, steps: i32) -> u32 {
    let width = sub(hi, lo);
    if is_finite(width) { div_int(width, steps) } else { add(div_int(hi, steps), div_int(lo ^ SIGN, steps)) }
}

/// `min(x, 0)` and `max(x, 0)`.
fn min0(x: u32) -> u32 {
    if x & SIGN == 0 { 0 } else { x }
}

fn max0(x: u32) -> u32 {
    if x & SIGN == 0 { x } else { 0 }
}

/// The scale of a range unit with this range.
pub(crate) fn scale((lo, hi): (u32, u32), scheme: Scheme) -> u32 {
    let Row::Scaled { qmin, qmax, rule } = row(scheme) else { panic!("{scheme} has no scale") };
    let amax = (lo & !SIGN).max(hi & !SIGN);
    let s = match rule {
        Rule::MinMax if lo != hi => width_over(lo, hi, qmax - qmin),
        Rule::MinMax | Rule::AbsMax => div_int(amax, qmax),
        Rule::Affine | Rule::OnnxDynamic => width_over(min0(lo), max0(hi), qmax - qmin),
        // By 127.5 or 7.5, which is half of an odd number.
        Rule::CompressedTensors => round_to_f32(&(2 * ticks(amax)), &(ticks_per_one() * (qmax - qmin).unsigned_abs())),
    };
    match s {
        0 if rule == Rule::CompressedTensors => EPSILON,
        0 => ONE,
        _ => s,
    }
}

/// The zero point of a range unit with this range and scale; `None` where the scheme has none.
pub(crate) fn zero_point((lo, _): (u32, u32), s: u32, scheme: Scheme) -> Option<i32> {
    let Row::Scaled { qmin, qmax, rule } = row(scheme) else { return None };
    if !has_zero_point(scheme) {
        return None;
    }
    let quotient = div(min0(lo), s);
    if !is_finite(quotient) {
        return Some(qmax);
    }
    let one = ticks_per_one();
    let from_qmin = ticks(round_to_f32(&(BigInt::from(one.clone()) * qmin - ticks(quotient)), &one));
    let z = if rule == Rule::OnnxDynamic {
        // ONNX clips, then rounds.
        let end = |code: i32| BigInt::from(one.clone()) * code;
        rne_signed(&from_qmin.clamp(end(qmin), end(qmax)), &one)
    } else {
        rne_signed(&from_qmin, &one).clamp(qmin.into(), qmax.into())
    };
    Some(i32::try_from(z).unwrap())
}

/// The code of an element, and whether it is counted as clipped.
fn scaled_code(x: u32, s: u32, z: i32, (qmin, qmax, rule): (i32, i32, Rule)) -> (i32, bool) {
    let end = if x & SIGN == 0 { qmax } else { qmin };
    if is_nan(x) {
        return (z, false);
    }
    if !is_finite(x) {
        return (end, false);
    }
    let quotient = div(x, s);
    if !is_finite(quotient) {
        return (end, true);
    }
    let one = ticks_per_one();
    let whole = rne_signed(&ticks(quotient), &one) + z;
    let clamped = if rule == Rule::CompressedTensors {
        // compressed-tensors clamps, then rounds.
        let end = |code: i32| BigInt::from(one.clone()) * code;
        rne_signed(&ticks(quotient).clamp(end(qmin), end(qmax)), &one)
    } else {
        whole.clone().clamp(qmin.into(), qmax.into())
    };
    (i32::try_from(&clamped).unwrap(), !(BigInt::from(qmin)..=BigInt::from(qmax)).contains(&whole))
}

/// The pattern that a cast gives, and whether it is counted as clipped.
fn cast_code(x: u32, to: Format, saturate: bool) -> (i32, bool) {
    let code = F32.convert(x.into(), to);
    let overflows = code & (to.sign() - 1) == to.inf();
    // The largest finite pattern is the one before infinity's.
    let kept = if overflows && saturate { code - 1 } else { code };
    (i32::try_from(kept).unwrap(), overflows && is_finite(x))
}

/// What quantizing gives.
pub(crate) struct Encoded {
    pub(crate) codes: Vec<i32>,
    pub(crate) clipped: u64,
    pub(crate) nan: u64,
    pub(crate) inf: u64,
}

/// What a tensor is quantized by: element `i` has scale `scales[unit_of[i]]`, and that zero point where there is one.
pub(crate) struct Plan {
    pub(crate) scheme: Scheme,
    pub(crate) saturate: bool,
    pub(crate) unit_of: Vec<usize>,
    pub(crate) scales: Vec<u32>,
    pub(crate) zero_points: Vec<i32>,
}

impl Plan {
    /// The zero point of an element; 0 where the scheme has none.
    fn zero_point_of(&self, i: usize) -> i32 {
        if has_zero_point(self.scheme) { self.zero_points[self.unit_of[i]] } else { 0 }
    }

    pub(crate) fn encode(&self, x: &[u32]) -> Encoded {
        let code = |i: usize| match row(self.scheme) {
            Row::Cast(format) => cast_code(x[i], format, self.saturate),
            Row::Scaled { qmin, qmax, rule } => {
                scaled_code(x[i], self.scales[self.unit_of[i]], self.zero_point_of(i), (qmin, qmax, rule))
            }
        };
        let codes: Vec<(i32, bool)> = (0..x.len()).map(code).collect();
        let count = |of: &dyn Fn(u32) -> bool| x.iter().filter(|&&bits| of(bits)).count() as u64;
        Encoded {
            clipped: codes.iter().filter(|(_, clipped)| *clipped).count() as u64,
            nan: count(&is_nan),
            inf: count(&|bits| bits & !SIGN == INF),
            codes: codes.into_iter().map(|(code, _)| code).collect(),
        }
    }

    /// `x'` of every code.
    pub(crate) fn decode(&self, codes: &[i32]) -> Vec<u32> {
        let value = |(i, &code): (usize, &i32)| match row(self.scheme) {
            Row::Cast(format) => format.to_f32(u64::try_from(code).unwrap()),
            Row::Scaled { .. } => mul_int(code - self.zero_point_of(i), self.scales[self.unit_of[i]]),
        };
        codes.iter().enumerate().map(value).collect()
    }

    /// The bytes that the codes of a tensor of this shape are stored in.
    pub(crate) fn bytes(&self, codes: &[i32], shape: &[usize]) -> Vec<u8> {
        match self.scheme.name() {
            name if name.contains("int4") => self.nibbles(codes, shape.last().copied().unwrap_or(1)),
            name if name.contains("int8") => codes.iter().map(|code| code.to_le_bytes()[0]).collect(),
            _ => codes.iter().flat_map(|code| [code.to_le_bytes()[0], code.to_le_bytes()[1]]).collect(),
        }
    }

    /// The even element in the low half; an odd row is filled up with the zero point of its last element.
    fn nibbles(&self, codes: &[i32], row_elems: usize) -> Vec<u8> {
        let mut bytes = vec![];
        for (row, codes) in codes.chunks(row_elems.max(1)).enumerate() {
            let mut nibbles: Vec<u8> = codes.iter().map(|code| code.to_le_bytes()[0] & 0xf).collect();
            if nibbles.len() % 2 == 1 {
                nibbles.push(self.zero_point_of(row * row_elems + codes.len() - 1).to_le_bytes()[0] & 0xf);
            }
            bytes.extend(nibbles.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        }
        bytes
    }

    /// The largest scale as a number; of a cast the step that the summaries of its loss count in, 2^-12 of the largest
    /// value's power of two.
    pub(crate) fn largest_step(&self, x: &[u32]) -> f64 {
        if !is_cast(self.scheme) {
            return self.scales.iter().map(|&s| f64::from(f32::from_bits(s))).fold(0.0, f64::max);
        }
        let amax = x.iter().filter(|&&bits| is_finite(bits)).map(|bits| bits & !SIGN).max().unwrap_or(0);
        if amax == 0 { 0.0 } else { 2f64.powi(i32::try_from(ticks(amax).bits()).unwrap() - 1 - 149 - 12) }
    }
}

/// `|x' - x|` of any two values.
pub(crate) fn abs_error(x: u32, out: u32) -> u32 {
    match (is_finite(x), is_finite(out)) {
        (true, true) => sub(out, x) & !SIGN,
        _ if is_nan(x) || is_nan(out) || x == out => NAN,
        _ => INF,
    }
}

/// The exact sums over elements with finite x and finite x', in ticks and ticks squared.
#[derive(Clone, Default)]
pub(crate) struct Sums {
    pub(crate) elems: u64,
    pub(crate) nonfinite_out: u64,
    pub(crate) max_bits: u32,
    pub(crate) abs: BigInt,
    pub(crate) noise: BigInt,
    pub(crate) signal: BigInt,
    pub(crate) recon: BigInt,
    pub(crate) dot: BigInt,
}

impl Sums {
    pub(crate) fn add(&mut self, x: u32, out: u32) {
        self.nonfinite_out += u64::from(!is_finite(out));
        if !is_finite(x) || !is_finite(out) {
            return;
        }
        self.elems += 1;
        self.max_bits = self.max_bits.max(abs_error(x, out));
        let (x, out) = (ticks(x), ticks(out));
        let error = &out - &x;
        self.abs += BigInt::from(error.magnitude().clone());
        self.noise += &error * &error;
        self.signal += &x * &x;
        self.recon += &out * &out;
        self.dot += &x * &out;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.elems += other.elems;
        self.nonfinite_out += other.nonfinite_out;
        self.max_bits = self.max_bits.max(other.max_bits);
        self.abs += &other.abs;
        self.noise += &other.noise;
        self.signal += &other.signal;
        self.recon += &other.recon;
        self.dot += &other.dot;
    }

    pub(crate) fn mean_abs_error(&self) -> Option<f64> {
        (self.elems > 0).then(|| to_f64(&self.abs, &BigInt::from(self.elems), -149))
    }

    pub(crate) fn mse(&self) -> Option<f64> {
        (self.elems > 0).then(|| to_f64(&self.noise, &BigInt::from(self.elems), -298))
    }

    pub(crate) fn noise(&self) -> f64 {
        to_f64(&self.noise, &BigInt::from(1), -298)
    }

    pub(crate) fn signal(&self) -> f64 {
        to_f64(&self.signal, &BigInt::from(1), -298)
    }

    pub(crate) fn recon(&self) -> f64 {
        to_f64(&self.recon, &BigInt::from(1), -298)
    }

    pub(crate) fn cosine(&self) -> Option<f64> {
        let squared = &self.signal * &self.recon;
        let sign = if self.dot.sign() == Sign::Minus { -1.0 } else { 1.0 };
        (squared.sign() != Sign::NoSign).then(|| sign * to_f64(&(&self.dot * &self.dot), &squared, 0).sqrt())
    }
}

/// `numer / denom * 2^exp` for a positive `denom`, to the last few bits of an f64.
fn to_f64(numer: &BigInt, denom: &BigInt, exp: i32) -> f64 {
    // As many bits of the quotient as surely fit in a u64.
    let up = 63 - (numer.bits() as i32 - denom.bits() as i32);
    let quotient = if up >= 0 { (numer << up) / denom } else { numer / (denom << -up) };
    u64::try_from(quotient).expect("a quotient of sums that are not negative") as f64 * 2f64.powi(exp - up)
}
