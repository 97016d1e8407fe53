//! From values to codes and back, of elements that share a scale; twin of `shaders/exact/code.wgsl`.

use super::fold::Run;
use crate::exact::{self, narrow, widen};
use crate::quantized::Quantized;
use crate::scheme::{CodeType, Scheme};

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

impl Coder {
    /// How the codes of a run become values.
    pub(super) fn of(q: &Quantized, run: &Run) -> Self {
        let s = q.scales().get(run.unit).copied().unwrap_or(1.0);
        Self { scheme: q.scheme(), saturate: false, s, z: q.zero_point(run.unit), ieee: run.ieee }
    }

    /// Stores the code of every value; returns the number of clipped ones.
    pub(super) fn encode<T>(&self, x: &[f32], out: &mut [T], store: impl Fn(i32) -> T) -> u64 {
        match self.scheme.code() {
            CodeType::F16 => self.cast(x, 0x7c00, |b| narrow::to_f16(b, false), out, store),
            CodeType::Bf16 => self.cast(x, 0x7f80, narrow::to_bf16, out, store),
            _ if self.ieee => self.plain(x, out, store),
            _ => self.exact(x, out, store),
        }
    }

    fn plain<T>(&self, x: &[f32], out: &mut [T], store: impl Fn(i32) -> T) -> u64 {
        let (s, z) = (self.s, self.z);
        // The steps from the zero point to the last codes, whole numbers below 2^16.
        let (least, most) = ((self.scheme.qmin() - z) as f32, (self.scheme.qmax() - z) as f32);
        // A run is no longer than a task; 32 bits keep the loop's lanes alike.
        let mut clipped = 0u32;
        for (code, &v) in out.iter_mut().zip(x) {
            let y = v / s;
            // Beyond the codes one value is as good as another; a NaN stays.
            let near = y.clamp(-65536.0, 65536.0);
            let whole = (near + WHOLE) - WHOLE;
            let finite = v.abs() < f32::INFINITY;
            clipped += u32::from(finite & ((whole < least) | (whole > most)));
            let q = if v.is_nan() { 0.0 } else { whole.clamp(least, most) };
            // The sum's low bits are the number.
            *code = store((q + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()).cast_signed() + z);
        }
        clipped.into()
    }

    fn exact<T>(&self, x: &[f32], out: &mut [T], store: impl Fn(i32) -> T) -> u64 {
        let recipe = exact::code::recipe(self.s.to_bits(), self.z, self.scheme.qmin(), self.scheme.qmax());
        let mut clipped = 0;
        for (code, v) in out.iter_mut().zip(x) {
            *code = store(exact::code::encode(v.to_bits(), &recipe, self.scheme.code().bits() > 8) + self.z);
            clipped += u64::from(exact::code::is_clipped(v.to_bits(), &recipe));
        }
        clipped
    }

    /// No Rust float is narrower than f32, so that a cast is whole numbers in every float environment.
    fn cast<T>(
        &self,
        x: &[f32],
        inf: u32,
        narrow: impl Fn(u32) -> u32,
        out: &mut [T],
        store: impl Fn(i32) -> T,
    ) -> u64 {
        let mut clipped = 0u32;
        for (code, v) in out.iter_mut().zip(x) {
            let half = narrow(v.to_bits());
            let infinite = half & 0x7fff == inf;
            clipped += u32::from(infinite & is_finite(*v));
            // The pattern below infinity is the largest finite value.
            *code = store((half - u32::from(infinite & self.saturate)).cast_signed());
        }
        clipped.into()
    }

    /// `x'` of codes, each less the zero point.
    pub(super) fn decode(&self, steps: &[i32], out: &mut [f32]) {
        let all = out.iter_mut().zip(steps);
        match self.scheme.code() {
            CodeType::F16 => all.for_each(|(x, &c)| *x = f32::from_bits(widen::from_f16(c.cast_unsigned()))),
            CodeType::Bf16 => all.for_each(|(x, &c)| *x = f32::from_bits(widen::from_bf16(c.cast_unsigned()))),
            // A difference of codes has at most 17 bits, so that the float is the number.
            _ if self.ieee => all.for_each(|(x, &c)| *x = c as f32 * self.s),
            _ => all.for_each(|(x, &c)| *x = f32::from_bits(exact::code::decode(c, self.s.to_bits()))),
        }
    }
}

/// Adding and subtracting it rounds a magnitude below 2^22 to a whole number, ties to even: above 2^23 the
/// floats are the whole numbers. It is `round_ties_even` in a form that every vector unit has.
const WHOLE: f32 = 12_582_912.0;

/// On bits: true in every float environment.
pub(super) fn is_finite(v: f32) -> bool {
    v.to_bits() & 0x7fff_ffff < 0x7f80_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{KINDS, Rng, SCALES, data, edge_bits};

    /// The codes, and how many were clipped.
    fn encode(coder: Coder, x: &[f32]) -> (Vec<i32>, u64) {
        let mut codes = vec![i32::MAX; x.len()];
        let clipped = coder.encode(x, &mut codes, |code| code);
        (codes, clipped)
    }

    fn decode(coder: Coder, codes: &[i32]) -> Vec<u32> {
        let steps: Vec<i32> = codes.iter().map(|code| code - coder.z).collect();
        let mut values = vec![f32::NAN; codes.len()];
        coder.decode(&steps, &mut values);
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
