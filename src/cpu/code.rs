//! From values to codes and back, of elements that share a scale; twin of `shaders/exact/code.wgsl`.

use super::fold::Run;
use super::nibble;
use super::simd::{self, Ask, Floats, Kernel, Map, Unit, Whole};
use crate::exact::{self, narrow, widen};
use crate::quantized::{Counts, Quantized};
use crate::range::Range as Ends;
use crate::scheme::{CodeType, Scheme};
use bytemuck::Pod;
use std::ops::Range;

/// How the elements of a run become codes and values again.
#[derive(Clone, Copy)]
pub(super) struct Coder {
    pub(super) scheme: Scheme,
    pub(super) saturate: bool,
    /// Of no meaning to a cast.
    pub(super) s: f32,
    /// 0 of a scheme that has none.
    pub(super) z: i32,
    /// Whether float arithmetic may be used.
    pub(super) ieee: bool,
}

/// What a value becomes: a code's bits, or, where there and back is one stage, the code's value.
pub(super) trait Made: Pod + Send {
    /// From the sum of [`WHOLE`] and the steps from the zero point, the scale and the zero point.
    fn from_sum(scheme: Scheme) -> impl Fn(f32, f32, i32) -> Self;
    /// From the steps, in every float environment.
    fn from_step(coder: &Coder) -> impl Fn(i32) -> Self;
    /// From a cast's bits.
    fn from_half(coder: &Coder) -> impl Fn(u32) -> Self;
}

/// The bits of a code in an item of its own, above them zeros.
pub(super) trait Field: Pod + Send + Sync {
    fn of(bits: u32) -> Self;
    fn bits(self) -> u32;
    /// The codes of these elements.
    fn read<'a>(q: &'a Quantized, elems: Range<usize>, buffer: &'a mut Vec<Self>) -> &'a [Self];
}

impl Field for u8 {
    #[inline(always)]
    fn of(bits: u32) -> Self {
        bits as u8
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.into()
    }

    fn read<'a>(q: &'a Quantized, elems: Range<usize>, buffer: &'a mut Vec<Self>) -> &'a [Self] {
        if q.scheme().code().bits() == 8 {
            return &q.codes()[elems];
        }
        buffer.resize(elems.len(), 0);
        nibble::unpack(q, elems, buffer);
        buffer
    }
}

impl Field for [u8; 2] {
    #[inline(always)]
    fn of(bits: u32) -> Self {
        (bits as u16).to_le_bytes()
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        u16::from_le_bytes(self).into()
    }

    fn read<'a>(q: &'a Quantized, elems: Range<usize>, _: &'a mut Vec<Self>) -> &'a [Self] {
        &q.codes().as_chunks().0[elems]
    }
}

impl<T: Field> Made for T {
    #[inline(always)]
    fn from_sum(scheme: Scheme) -> impl Fn(f32, f32, i32) -> Self {
        let mask = mask(scheme);
        // The sum's low bits are the steps.
        move |sum, _, z| Self::of(sum.to_bits().wrapping_add(z.cast_unsigned()) & mask)
    }

    fn from_step(coder: &Coder) -> impl Fn(i32) -> Self {
        let (z, mask) = (coder.z, mask(coder.scheme));
        move |step| Self::of((step + z).cast_unsigned() & mask)
    }

    #[inline(always)]
    fn from_half(_: &Coder) -> impl Fn(u32) -> Self {
        Self::of
    }
}

impl Made for f32 {
    #[inline(always)]
    fn from_sum(_: Scheme) -> impl Fn(f32, f32, i32) -> Self {
        |sum, s, _| (sum - WHOLE) * s
    }

    fn from_step(coder: &Coder) -> impl Fn(i32) -> Self {
        let s = coder.s.to_bits();
        move |step| Self::from_bits(exact::code::decode(step, s))
    }

    #[inline(always)]
    fn from_half(coder: &Coder) -> impl Fn(u32) -> Self {
        let widen = if coder.scheme.code() == CodeType::F16 { widen::from_f16 } else { widen::from_bf16 };
        move |half| Self::from_bits(widen(half))
    }
}

/// The bits that a code has.
pub(super) fn mask(scheme: Scheme) -> u32 {
    (1 << scheme.code().bits()) - 1
}

/// A byte four times.
#[inline(always)]
pub(super) fn in_each_byte(byte: i32) -> i32 {
    (byte & 0xff).wrapping_mul(0x0101_0101)
}

/// The least and the most quotient that is not clipped: half a step beyond the last codes, or the float before, since
/// ties go to the even step.
#[inline(always)]
pub(super) fn quotients(qmin: i32, qmax: i32, z: i32) -> (f32, f32) {
    let end = |code: i32, half: f32| {
        let step = code - z;
        // Below 2^17, so that the sum is exact; of at least 1/2, so that the float before has the same sign.
        let tie = step as f32 + half;
        f32::from_bits(tie.to_bits() - (step & 1).cast_unsigned())
    };
    (end(qmin, -0.5), end(qmax, 0.5))
}

/// Whether finite values of this range are ordinary ones: none is clipped, as the ends tell of all, for quotients grow with the
/// value; and the scale is neither tiny nor huge.
#[inline(always)]
pub(super) fn are_ordinary(lo: f32, hi: f32, s: f32, (first, last): (f32, f32)) -> bool {
    simd::is_divisor(s) & (first <= lo / s) & (hi / s <= last)
}

impl Coder {
    /// How the codes of a run become values.
    pub(super) fn of(q: &Quantized, run: &Run) -> Self {
        let s = q.scales().get(run.unit).copied().unwrap_or(1.0);
        Self { scheme: q.scheme(), saturate: false, s, z: q.zero_point(run.unit), ieee: run.ieee }
    }

    /// Whether values of this range may be computed as [`are_ordinary`] ones.
    pub(super) fn is_ordinary(&self, range: Ends) -> bool {
        let ends = quotients(self.scheme.qmin(), self.scheme.qmax(), self.z);
        self.ieee && are_ordinary(range.lo, range.hi, self.s, ends)
    }

    /// Makes something of every value.
    pub(super) fn encode<T: Made>(&self, x: &[f32], out: &mut [T]) -> Counts {
        let made = T::from_half(self);
        match self.scheme.code() {
            // No Rust float is narrower than f32, so that a cast is whole numbers in every float environment.
            CodeType::F16 => {
                let (narrow, saturate) = (|b| narrow::to_f16(b, false), self.saturate.into());
                simd::run(Cast { x, inf: 0x7c00, saturate, narrow, made, out })
            }
            CodeType::Bf16 => simd::run(Cast { x, inf: 0x7f80, saturate: 0, narrow: narrow::to_bf16, made, out }),
            _ if !self.ieee => self.exact(x, out),
            _ => {
                let (s, z, made) = (self.s, self.z, T::from_sum(self.scheme));
                let ends = quotients(self.scheme.qmin(), self.scheme.qmax(), self.z);
                simd::run(Careful { x, s, ends, made: |sum| made(sum, s, z), out })
            }
        }
    }

    /// The same, by float arithmetic, of values that are finite and not clipped, as is known of a scheme with scales; meanwhile
    /// asks for memory.
    pub(super) fn encode_ordinary<T: Made>(&self, x: &[f32], ask: Ask, out: &mut [T]) {
        debug_assert!(self.ieee, "the exact way is another one");
        let (s, z, made) = (self.s, self.z, T::from_sum(self.scheme));
        let to_bytes = ToBytes::new(self.scheme, z);
        simd::run(Ordinary { x, s, ask, made: |sum| made(sum, s, z), to_bytes, out });
    }

    /// The same of elements each of which has a scale and a zero point of its own; not of casts, and by float arithmetic.
    pub(super) fn encode_each<T: Made>(
        scheme: Scheme,
        x: &[f32],
        (s, z): (&[f32], &[i32]),
        ordinary: bool,
        out: &mut [T],
    ) -> Counts {
        let made = T::from_sum(scheme);
        if ordinary {
            simd::run(OrdinaryEach { x, s, z, made, out });
            return Counts::default();
        }
        simd::run(CarefulEach { x, s, z, ends: (scheme.qmin(), scheme.qmax()), made, out })
    }

    fn exact<T: Made>(&self, x: &[f32], out: &mut [T]) -> Counts {
        let recipe = exact::code::recipe(
            self.s.to_bits(),
            self.z,
            self.scheme.qmin(),
            self.scheme.qmax(),
            self.scheme.code().bits() > 8,
        );
        let made = T::from_step(self);
        let mut counts = Counts::default();
        for (out, v) in out.iter_mut().zip(x) {
            *out = made(exact::code::encode(v.to_bits(), &recipe, self.scheme.code().bits() > 8));
            counts.clipped_elems += u64::from(exact::code::is_clipped(v.to_bits(), &recipe));
            counts.nan_elems += u64::from(is_nan(*v));
            counts.inf_elems += u64::from(is_infinite(*v));
        }
        counts
    }

    /// The steps from the zero point that a code's bits stand for; of a cast the bits.
    #[inline(always)]
    pub(super) fn steps(&self) -> impl Fn(u32) -> i32 {
        let sign: u32 = if self.scheme.code().is_signed() { 1 << (self.scheme.code().bits() - 1) } else { 0 };
        let least = sign.cast_signed() + self.z;
        move |bits| (bits ^ sign).cast_signed() - least
    }

    /// `x'` of codes.
    pub(super) fn decode<T: Field>(&self, codes: &[T], out: &mut [f32]) {
        let (s, steps) = (self.s, self.steps());
        match self.scheme.code() {
            CodeType::F16 if self.ieee => simd::run(Map { from: codes, to: out, f: |c: T| widen_f16(c.bits()) }),
            CodeType::F16 => {
                out.iter_mut().zip(codes).for_each(|(x, c)| *x = f32::from_bits(widen::from_f16(c.bits())))
            }
            CodeType::Bf16 => {
                simd::run(Map { from: codes, to: out, f: |c: T| f32::from_bits(widen::from_bf16(c.bits())) });
            }
            // A difference of codes has at most 17 bits, so that the float is the number.
            _ if self.ieee => simd::run(Map { from: codes, to: out, f: |c: T| steps(c.bits()) as f32 * s }),
            _ => out
                .iter_mut()
                .zip(codes)
                .for_each(|(x, c)| *x = f32::from_bits(exact::code::decode(steps(c.bits()), s.to_bits()))),
        }
    }
}

/// `x'` of codes each of which has a scale and a zero point of its own; not of casts, and by float arithmetic.
pub(super) fn decode_each<T: Field>(scheme: Scheme, codes: &[T], (s, z): (&[f32], &[i32]), out: &mut [f32]) {
    let coder = Coder { scheme, saturate: false, s: 1.0, z: 0, ieee: true };
    simd::run(DecodeEach { codes, s, z, steps: coder.steps(), out });
}

struct DecodeEach<'a, T, S> {
    codes: &'a [T],
    s: &'a [f32],
    z: &'a [i32],
    steps: S,
    out: &'a mut [f32],
}

impl<T: Field, S: Fn(u32) -> i32> Kernel for DecodeEach<'_, T, S> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) {
        for (((out, &code), &s), &z) in self.out.iter_mut().zip(self.codes).zip(self.s).zip(self.z) {
            *out = ((self.steps)(code.bits()) - z) as f32 * s;
        }
    }
}

/// Adding it rounds a magnitude below 2^22 to a whole number, ties to even: above 2^23 the floats are the whole numbers.
/// It is `round_ties_even` in a form that every vector unit has.
pub(super) const WHOLE: f32 = 12_582_912.0;

/// [`widen::from_f16`] by one exact product, in a form that every vector unit has.
#[inline(always)]
pub(super) fn widen_f16(half: u32) -> f32 {
    // Of the pattern's exponent the product makes that of the value: 15 becomes 127. It is exact for subnormals too.
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    let endless = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | endless | (half & 0x8000) << 16)
}

/// On bits: true in every float environment.
pub(super) fn is_finite(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff < 0x7f80_0000
}

/// On bits.
#[inline(always)]
pub(super) fn is_infinite(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff == 0x7f80_0000
}

/// On bits.
#[inline(always)]
pub(super) fn is_nan(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff > 0x7f80_0000
}

/// From sums of [`WHOLE`] and the steps from the zero point to codes of at most 8 bits, a byte each.
#[derive(Clone, Copy)]
pub(super) struct ToBytes {
    /// The zero point, and the bits that a code has, in each byte.
    plus: i32,
    mask: i32,
}

impl ToBytes {
    #[inline(always)]
    pub(super) fn new(scheme: Scheme, z: i32) -> Self {
        Self { plus: in_each_byte(z), mask: in_each_byte(mask(scheme).cast_signed()) }
    }

    /// Whether it is worth its while: with AVX2. SSE2's loops do as well, and AVX-512 narrows by an instruction.
    #[inline(always)]
    pub(super) const fn is_for<T, const LANES: usize>() -> bool {
        size_of::<T>() == 1 && LANES == 8
    }

    /// The codes of ordinary values, in order, of which as many are looked at as fill four registers again and again.
    #[inline(always)]
    pub(super) fn encode<T: Pod, const LANES: usize>(
        self,
        unit: impl Unit<LANES>,
        x: &[f32],
        (s, per_s): (f32, f32),
        out: &mut [T],
    ) {
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        let (plus, mask, whole) = ([self.plus; LANES], [self.mask; LANES], [WHOLE; LANES]);
        let chunks = x.as_chunks::<LANES>().0.as_chunks::<4>().0;
        for (x, out) in chunks.iter().zip(out.as_chunks_mut::<LANES>().0.as_chunks_mut::<4>().0) {
            let mut sums = [[0.0; LANES]; 4];
            for v in 0..4 {
                sums[v] = unit.sum(unit.quotients(x[v], [s; LANES], [per_s; LANES]), whole);
            }
            *out = unit.bytes_in_turn(bytes_of_sums(unit, sums, plus, mask));
        }
    }
}

/// What sums of [`WHOLE`] and steps become: the codes of the four of each lane, a byte each.
#[inline(always)]
pub(super) fn bytes_of_sums<const LANES: usize>(
    unit: impl Unit<LANES>,
    sums: [Floats<LANES>; 4],
    plus: Whole<LANES>,
    mask: Whole<LANES>,
) -> Whole<LANES> {
    // The sums' low bits are the steps.
    let [a, b, c, d] = bytemuck::cast(sums);
    unit.bytes([unit.pairs([a, c]), unit.pairs([b, d])], plus, mask)
}

/// Quotients of values that are finite and not clipped.
struct Ordinary<'a, T, M> {
    x: &'a [f32],
    s: f32,
    ask: Ask,
    made: M,
    to_bytes: ToBytes,
    out: &'a mut [T],
}

impl<T: Pod, M: Fn(f32) -> T> Kernel for Ordinary<'_, T, M> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) {
        let Self { x, s, ask, made, to_bytes, out } = self;
        let per_s = 1.0 / s;
        let mut done = 0;
        if ToBytes::is_for::<T, LANES>() || !ask.is_nothing() {
            let (x, _) = x.as_chunks::<{ Ask::ELEMS }>();
            let (out, _) = out.as_chunks_mut::<{ Ask::ELEMS }>();
            for (x, out) in x.iter().zip(out) {
                ask.beside(x);
                if ToBytes::is_for::<T, LANES>() {
                    to_bytes.encode(unit, x, (s, per_s), out);
                    continue;
                }
                for (out, &v) in out.iter_mut().zip(x) {
                    *out = made(unit.quotient(v, s, per_s) + WHOLE);
                }
            }
            done = Ask::ELEMS * x.len();
        }
        for (out, &v) in out[done..].iter_mut().zip(&x[done..]) {
            *out = made(unit.quotient(v, s, per_s) + WHOLE);
        }
    }
}

/// Quotients of any values.
struct Careful<'a, T, M> {
    x: &'a [f32],
    s: f32,
    /// The least and the most that is not clipped.
    ends: (f32, f32),
    made: M,
    out: &'a mut [T],
}

impl<T, M: Fn(f32) -> T> Kernel for Careful<'_, T, M> {
    type Output = Counts;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Counts {
        let Self { x, s, ends: (first, last), made, out } = self;
        let mut counts = Counts::default();
        // 32 bits keep the loop's lanes alike.
        for (x, out) in x.chunks(1 << 30).zip(out.chunks_mut(1 << 30)) {
            let (mut nan, mut inf, mut clipped) = (0u32, 0u32, 0u32);
            for (out, &v) in out.iter_mut().zip(x) {
                nan += u32::from(v.is_nan());
                inf += u32::from(v.abs() == f32::INFINITY);
                let y = if v.is_nan() { 0.0 } else { v / s };
                // In this form a comparison is an instruction of its own.
                let held = if y > first { y } else { first };
                let held = if held < last { held } else { last };
                clipped += u32::from(held != y);
                *out = made(held + WHOLE);
            }
            // Every infinity is beyond the codes.
            counts.merge(Counts::new(clipped - inf, nan, inf));
        }
        counts
    }
}

/// Quotients of values that are finite and not clipped, each by a scale of its own.
struct OrdinaryEach<'a, T, M> {
    x: &'a [f32],
    s: &'a [f32],
    z: &'a [i32],
    made: M,
    out: &'a mut [T],
}

impl<T, M: Fn(f32, f32, i32) -> T> Kernel for OrdinaryEach<'_, T, M> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) {
        for (((out, &v), &s), &z) in self.out.iter_mut().zip(self.x).zip(self.s).zip(self.z) {
            *out = (self.made)(v / s + WHOLE, s, z);
        }
    }
}

/// Quotients of any values, each by a scale of its own.
struct CarefulEach<'a, T, M> {
    x: &'a [f32],
    s: &'a [f32],
    z: &'a [i32],
    /// The last codes.
    ends: (i32, i32),
    made: M,
    out: &'a mut [T],
}

impl<T, M: Fn(f32, f32, i32) -> T> Kernel for CarefulEach<'_, T, M> {
    type Output = Counts;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Counts {
        let Self { x, s, z, ends: (qmin, qmax), made, out } = self;
        debug_assert!(x.len() < 1 << 30, "a block");
        let (mut nan, mut inf, mut clipped) = (0u32, 0u32, 0u32);
        for (((out, &v), &s), &z) in out.iter_mut().zip(x).zip(s).zip(z) {
            let (first, last) = quotients(qmin, qmax, z);
            nan += u32::from(v.is_nan());
            inf += u32::from(v.abs() == f32::INFINITY);
            let y = if v.is_nan() { 0.0 } else { v / s };
            let held = if y > first { y } else { first };
            let held = if held < last { held } else { last };
            clipped += u32::from(held != y);
            *out = made(held + WHOLE, s, z);
        }
        Counts::new(clipped - inf, nan, inf)
    }
}

/// Casts to a narrower float.
struct Cast<'a, T, N, M> {
    x: &'a [f32],
    /// Infinity's bits.
    inf: u32,
    /// What is taken off infinity's bits.
    saturate: u32,
    narrow: N,
    made: M,
    out: &'a mut [T],
}

impl<T, N: Fn(u32) -> u32, M: Fn(u32) -> T> Kernel for Cast<'_, T, N, M> {
    type Output = Counts;

    #[inline(always)]
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) -> Counts {
        let Self { x, inf, saturate, narrow, made, out } = self;
        let mut counts = Counts::default();
        for (x, out) in x.chunks(1 << 30).zip(out.chunks_mut(1 << 30)) {
            let (mut nan, mut infinite, mut beyond) = (0u32, 0u32, 0u32);
            for (out, &v) in out.iter_mut().zip(x) {
                nan += u32::from(is_nan(v));
                infinite += u32::from(is_infinite(v));
                let half = narrow(v.to_bits());
                let is_inf = u32::from(half & 0x7fff == inf);
                beyond += is_inf;
                // The pattern below infinity is the largest finite value.
                *out = made(half - (is_inf & saturate));
            }
            counts.merge(Counts::new(beyond - infinite, nan, infinite));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{KINDS, Rng, SCALES, data, edge_bits};

    /// The codes, and how many were clipped.
    fn encode(coder: Coder, x: &[f32]) -> (Vec<i32>, u64) {
        let mut codes = vec![[0; 2]; x.len()];
        let counts = coder.encode(x, &mut codes);
        assert_eq!(counts.nan_elems, x.iter().filter(|v| v.is_nan()).count() as u64);
        assert_eq!(counts.inf_elems, x.iter().filter(|v| v.is_infinite()).count() as u64);
        let number = coder.steps();
        (codes.into_iter().map(|code| number(code.bits()) + coder.z).collect(), counts.clipped_elems)
    }

    fn decode(coder: Coder, codes: &[i32]) -> Vec<u32> {
        let codes: Vec<[u8; 2]> =
            codes.iter().map(|&code| Field::of(code.cast_unsigned() & mask(coder.scheme))).collect();
        let mut values = vec![f32::NAN; codes.len()];
        coder.decode(&codes, &mut values);
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn plain_and_exact_codes_and_values_agree_over_all_schemes() {
        let mut rng = Rng::new(21);
        let edges: Vec<f32> = edge_bits().into_iter().map(f32::from_bits).collect();
        for &scheme in Scheme::ALL {
            for i in 0..300 {
                let s = match SCALES.get(i) {
                    Some(&bits) => bits,
                    None => rng.float_bits() & 0x7fff_ffff,
                };
                let s = f32::from_bits(s.clamp(1, 0x7f7f_ffff));
                let span = (scheme.qmax() - scheme.qmin()).cast_unsigned();
                let z = match rng.below(4) {
                    _ if !scheme.has_zero_point() => 0,
                    0 => scheme.qmin(),
                    1 => scheme.qmax(),
                    _ => scheme.qmin() + rng.below(span + 1).cast_signed(),
                };
                let plain = Coder { scheme, saturate: false, s, z, ieee: true };
                let exact = Coder { ieee: false, ..plain };
                let mut x = data(KINDS[i % KINDS.len()], 300, i as u64);
                x.extend(&edges);
                // Halfway between any two codes, where bits differ first.
                let half = |rng: &mut Rng| (f64::from(rng.below(2 * span + 2)) - f64::from(span)) / 2.0 * f64::from(s);
                x.extend((0..300).map(|_| half(&mut rng) as f32));
                let found = encode(plain, &x);
                assert_eq!(found, encode(exact, &x), "{scheme}, s {s:e}, z {z}");
                assert!(found.0.iter().all(|code| (scheme.qmin()..=scheme.qmax()).contains(code)), "{scheme}");
                assert_eq!(decode(plain, &found.0), decode(exact, &found.0), "{scheme}, s {s:e}, z {z}");
            }
        }
    }

    /// The contract's formula, as it stands.
    fn formula(scheme: Scheme, s: f32, z: i32, v: f32) -> (i32, bool) {
        let whole = (v / s).round_ties_even() + z as f32;
        let code = if v.is_nan() { z as f32 } else { whole.clamp(scheme.qmin() as f32, scheme.qmax() as f32) };
        (code as i32, v.is_finite() && whole != code)
    }

    #[test]
    fn at_every_level_codes_and_counts_are_those_of_the_formula_for_any_length_and_address() {
        let mut rng = Rng::new(23);
        let mut x: Vec<f32> = edge_bits().into_iter().map(f32::from_bits).collect();
        for &scheme in Scheme::ALL.iter().filter(|scheme| !scheme.is_cast()) {
            for (i, &bits) in SCALES.iter().enumerate() {
                let (s, span) = (f32::from_bits(bits), (scheme.qmax() - scheme.qmin()).cast_unsigned());
                let z = match i % 4 {
                    _ if !scheme.has_zero_point() => 0,
                    0 => scheme.qmin(),
                    1 => scheme.qmax(),
                    _ => scheme.qmin() + rng.below(span + 1).cast_signed(),
                };
                x.truncate(edge_bits().len());
                while x.len() < 400 {
                    // The floats around a point halfway between codes, within and beyond them.
                    let half = (f64::from(rng.below(4 * span)) - 2.0 * f64::from(span)) / 2.0 * f64::from(s);
                    let near = (half as f32).to_bits().wrapping_add(rng.below(5)).wrapping_sub(2);
                    x.push(f32::from_bits(near));
                }
                let coder = Coder { scheme, saturate: false, s, z, ieee: true };
                let start = rng.below(200) as usize;
                let x = &x[start..][..rng.below(200) as usize];
                let expected: Vec<(i32, bool)> = x.iter().map(|&v| formula(scheme, s, z, v)).collect();
                let clipped = expected.iter().filter(|code| code.1).count() as u64;
                let (s_of, z_of) = (vec![s; x.len()], vec![z; x.len()]);
                simd::for_each_level(|level| {
                    let what = format!("{level} {scheme} s {s:e} z {z}");
                    let (codes, found) = encode(coder, x);
                    assert!(codes.iter().copied().eq(expected.iter().map(|code| code.0)), "{what}");
                    assert_eq!(found, clipped, "{what}");
                    let mut each = vec![[0; 2]; x.len()];
                    let counts = Coder::encode_each(scheme, x, (&s_of, &z_of), false, &mut each);
                    let mut one = vec![[0; 2]; x.len()];
                    assert_eq!(counts, coder.encode(x, &mut one), "{what}");
                    assert_eq!(each, one, "{what}");
                    // What is ordinary needs no care.
                    let ordinary: Vec<f32> =
                        x.iter().zip(&expected).filter(|(v, code)| v.is_finite() && !code.1).map(|(&v, _)| v).collect();
                    let n = ordinary.len();
                    coder.encode(&ordinary, &mut one[..n]);
                    if simd::is_divisor(s) {
                        coder.encode_ordinary(&ordinary, Ask::NOTHING, &mut each[..n]);
                        assert_eq!(each[..n], one[..n], "{what}");
                    }
                    Coder::encode_each(scheme, &ordinary, (&s_of, &z_of), true, &mut each[..n]);
                    assert_eq!(each[..n], one[..n], "{what}");
                    let range = ordinary
                        .iter()
                        .fold(Ends { lo: 0.0, hi: 0.0 }, |ends, &v| Ends { lo: ends.lo.min(v), hi: ends.hi.max(v) });
                    assert_eq!(coder.is_ordinary(range), simd::is_divisor(s), "{what}: {range:?}");
                    let of = |codes: &[[u8; 2]], each: bool| {
                        let mut values = vec![f32::NAN; codes.len()];
                        match each {
                            true => decode_each(scheme, codes, (&s_of, &z_of), &mut values),
                            false => coder.decode(codes, &mut values),
                        }
                        values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    let mut fake = vec![f32::NAN; x.len()];
                    let mut one = vec![[0; 2]; x.len()];
                    assert_eq!(coder.encode(x, &mut fake), coder.encode(x, &mut one), "{what}");
                    let fake: Vec<u32> = fake.into_iter().map(f32::to_bits).collect();
                    assert!(of(&one, false) == fake && of(&one, true) == fake, "{what}");
                });
            }
        }
    }

    #[test]
    fn f16_widens_by_a_product_as_by_its_fields() {
        for half in 0..=0xffff {
            assert_eq!(widen_f16(half).to_bits(), widen::from_f16(half), "{half:#06x}");
        }
    }

    #[test]
    fn ties_go_to_the_even_quotient_and_then_the_zero_point_is_added() {
        let coder = |scheme, z| Coder { scheme, saturate: false, s: 0.5, z, ieee: true };
        let x = [0.25, 0.75, -0.25, -0.75, 1.25, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        assert_eq!(encode(coder(Scheme::INT8_AFFINE, 3), &x).0, [3, 5, 3, 1, 5, 3, 127, -128, 3]);
        assert_eq!(encode(coder(Scheme::UINT4_AFFINE, 1), &x).0, [1, 3, 1, 0, 3, 1, 15, 0, 1]);
        assert_eq!(encode(coder(Scheme::UINT4_AFFINE, 1), &x).1, 1);
        assert_eq!(encode(coder(Scheme::INT16_ABSMAX, 0), &x).0, [0, 2, 0, -2, 2, 0, 32767, -32768, 0]);
        // The least and the most quotient that no uint16 code is clipped from.
        let ends = coder(Scheme::UINT16_AFFINE, 65535);
        assert_eq!(encode(ends, &[-32767.5, -32767.75, -32768.0, 0.25, 0.5]), (vec![0, 0, 0, 65535, 65535], 3));
        assert_eq!(decode(ends, &[0, 65535]), [(-32767.5f32).to_bits(), 0]);
        assert_eq!(encode(coder(Scheme::UINT16_AFFINE, 0), &[32767.5, 32768.0]), (vec![65535, 65535], 1));
    }

    #[test]
    fn casts_are_bit_patterns_and_overflow_is_counted_whether_it_saturates_or_not() {
        let f16 = |saturate| Coder { scheme: Scheme::F16, saturate, s: 1.0, z: 0, ieee: true };
        let x = [1.0, -0.0, 65504.0, 65519.0, 65520.0, -1e9, f32::INFINITY, f32::NEG_INFINITY, 2f32.powi(-24)];
        let plain = vec![0x3c00, 0x8000, 0x7bff, 0x7bff, 0x7c00, 0xfc00, 0x7c00, 0xfc00, 1];
        let saturated = vec![0x3c00, 0x8000, 0x7bff, 0x7bff, 0x7bff, 0xfbff, 0x7bff, 0xfbff, 1];
        assert_eq!(encode(f16(false), &x), (plain, 2));
        assert_eq!(encode(f16(true), &x), (saturated, 2));
        let nan = f32::from_bits(0xff80_2000);
        assert_eq!(encode(f16(true), &[nan]), (vec![0xfe01], 0));
        let bf16 = Coder { scheme: Scheme::BF16, ..f16(false) };
        assert_eq!(
            encode(bf16, &[f32::MAX, -1.0, f32::from_bits(0x3f80_8000), nan]),
            (vec![0x7f80, 0xbf80, 0x3f80, 0xffc0], 1)
        );
        assert_eq!(decode(bf16, &[0x8000, 0x7f80, 1]), [0x8000_0000, 0x7f80_0000, 0x0001_0000]);
        assert_eq!(decode(f16(false), &[1, 0xfbff]), [2f32.powi(-24).to_bits(), (-65504f32).to_bits()]);
    }
}
