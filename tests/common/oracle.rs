//! The contract's arithmetic in exact whole numbers: slow, obvious, and nothing of `src/` but its plain types.
//!
//! Every finite f32 is a whole number of *ticks* of 2^-149, its smallest subnormal. So a range, a sum and a
//! product by a code need nothing but big integers, a quotient is two of them, and the only rounding there
//! is stands in [`round_to_f32`] and [`rne`]. Floats appear as bit patterns.

use num_bigint::{BigInt, BigUint, Sign};
use std::cmp::Ordering;
use wgpu_quant::{Granularity, Scheme};

pub(crate) const INF: u32 = 0x7f80_0000;
/// The one NaN that a loss per element may be.
pub(crate) const NAN: u32 = 0x7fc0_0000;
const SIGN: u32 = 0x8000_0000;
const ONE: u32 = 0x3f80_0000;

/// The scheme's row in the contract's table.
struct Row {
    qmin: i32,
    qmax: i32,
    minmax: bool,
}

fn row(scheme: Scheme) -> Row {
    match scheme.name() {
        "int8-minmax" => Row { qmin: -128, qmax: 127, minmax: true },
        "int8-absmax" => Row { qmin: -128, qmax: 127, minmax: false },
        name => panic!("the oracle has no row for {name}"),
    }
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
    assert!(is_finite(bits), "{bits:#010x} has no value");
    let (exponent, fraction) = (bits >> 23 & 0xff, bits & 0x007f_ffff);
    // A subnormal counts ticks itself; the first normal exponent does too, with the hidden bit.
    let magnitude =
        if exponent == 0 { BigInt::from(fraction) } else { BigInt::from(fraction | 0x0080_0000) << (exponent - 1) };
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

/// The f32 nearest to `numer / denom`, ties to even: subnormals are kept, and what would round to 2^128 or
/// more is infinite.
pub(crate) fn round_to_f32(numer: &BigInt, denom: &BigUint) -> u32 {
    let sign = if numer.sign() == Sign::Minus { SIGN } else { 0 };
    let numer = numer.magnitude();
    if numer.bits() == 0 {
        return sign;
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
    // The distance between neighbouring floats here: 24 significant bits, but never finer than a tick.
    let quantum = (exponent - 23).max(-149);
    let (n, d) = scaled(-quantum);
    let significand = i64::try_from(rne(&n, &d)).unwrap();
    // A pattern counts the floats from 0 up, 2^23 for each quantum; so a significand that rounded up to 2^24
    // carries into the next exponent, and a subnormal needs no case of its own.
    let pattern = ((quantum + 149) << 23) + significand;
    sign | u32::try_from(pattern.min(INF.into())).unwrap()
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
    let Granularity::Channel(axis) = granularity else { return (1, vec![0; elems]) };
    let from_end = if axis < 0 { axis.unsigned_abs() as usize } else { shape.len() - axis as usize };
    let axis = shape.len() - from_end;
    let coordinate = |mut i: usize, axis: usize| {
        for d in (axis + 1..shape.len()).rev() {
            i /= shape[d];
        }
        i % shape[axis]
    };
    (shape[axis], (0..elems).map(|i| coordinate(i, axis)).collect())
}

/// The smallest and the largest finite value; both +0 where there is none. -0 is as +0.
pub(crate) fn range(x: impl Iterator<Item = u32>) -> (u32, u32) {
    let finite: Vec<BigInt> = x.filter(|&bits| is_finite(bits)).map(ticks).collect();
    let pattern = |value: Option<&BigInt>| value.map_or(0, |ticks| round_to_f32(ticks, &ticks_per_one()));
    (pattern(finite.iter().min()), pattern(finite.iter().max()))
}

/// The scale of a range unit with this range.
pub(crate) fn scale((lo, hi): (u32, u32), scheme: Scheme) -> u32 {
    let Row { qmin, qmax, minmax } = row(scheme);
    let s = if minmax && lo != hi {
        let width = sub(hi, lo);
        if is_finite(width) {
            div_int(width, qmax - qmin)
        } else {
            add(div_int(hi, qmax - qmin), div_int(lo ^ SIGN, qmax - qmin))
        }
    } else {
        let amax = (lo & !SIGN).max(hi & !SIGN);
        div_int(amax, qmax)
    };
    if s == 0 { ONE } else { s }
}

/// The code of an element, and whether it is counted as clipped.
fn code(x: u32, s: u32, scheme: Scheme) -> (i32, bool) {
    let Row { qmin, qmax, .. } = row(scheme);
    let end = if x & SIGN == 0 { qmax } else { qmin };
    if is_nan(x) {
        return (0, false);
    }
    if !is_finite(x) {
        return (end, false);
    }
    let quotient = div(x, s);
    if !is_finite(quotient) {
        return (end, true);
    }
    let magnitude = rne(ticks(quotient).magnitude(), &ticks_per_one());
    let whole = if quotient & SIGN == 0 { BigInt::from(magnitude) } else { -BigInt::from(magnitude) };
    let clamped = whole.clone().clamp(qmin.into(), qmax.into());
    (i32::try_from(&clamped).unwrap(), clamped != whole)
}

/// What quantizing gives.
pub(crate) struct Encoded {
    pub(crate) codes: Vec<i32>,
    pub(crate) clipped: u64,
    pub(crate) nan: u64,
    pub(crate) inf: u64,
}

/// The codes of a tensor whose element `i` has scale `scales[unit_of[i]]`.
pub(crate) fn encode(x: &[u32], unit_of: &[usize], scales: &[u32], scheme: Scheme) -> Encoded {
    let codes: Vec<(i32, bool)> = x.iter().zip(unit_of).map(|(&x, &unit)| code(x, scales[unit], scheme)).collect();
    let count = |of: &dyn Fn(u32) -> bool| x.iter().filter(|&&bits| of(bits)).count() as u64;
    Encoded {
        clipped: codes.iter().filter(|(_, clipped)| *clipped).count() as u64,
        nan: count(&is_nan),
        inf: count(&|bits| bits & !SIGN == INF),
        codes: codes.into_iter().map(|(code, _)| code).collect(),
    }
}

/// `x'` of every code.
pub(crate) fn decode(codes: &[i32], unit_of: &[usize], scales: &[u32]) -> Vec<u32> {
    codes.iter().zip(unit_of).map(|(&code, &unit)| mul_int(code, scales[unit])).collect()
}

/// `|x' - x|` of any two values.
pub(crate) fn abs_error(x: u32, out: u32) -> u32 {
    match (is_finite(x), is_finite(out)) {
        (true, true) => sub(out, x) & !SIGN,
        _ if is_nan(x) || x == out => NAN,
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
