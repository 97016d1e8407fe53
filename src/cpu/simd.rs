//! Kernels are plain loops, compiled once for each vector unit; which one runs is found out on the machine.
//!
//! This is all of the CPU path's `unsafe`: that a function compiled for a vector unit runs only where there is one, and the
//! instructions of x86 that no loop becomes: two for memory, two for [`Unit`]. No level changes a bit: vector units add,
//! multiply and divide as IEEE says, lane by lane, and Rust never fuses two operations.

use bytemuck::Pod;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// The vector unit that the CPU path computes with; the bits are the same with each.
///
/// ```
/// use wgpu_quant::cpu;
/// println!("{}", cpu::simd_level()); // avx512
/// # assert!(cpu::simd_level() >= cpu::SimdLevel::Baseline);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum SimdLevel {
    /// What the build takes for granted: SSE2 of an x86-64 build, NEON of an AArch64 one, more if it was told so.
    Baseline,
    /// 256 bits.
    Avx2,
    /// 512 bits.
    Avx512,
}

impl SimdLevel {
    /// Every level.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// The best that this machine has.
fn best() -> SimdLevel {
    static BEST: OnceLock<SimdLevel> = OnceLock::new();
    *BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx2, avx512) {
                (true, true) => SimdLevel::Avx512,
                (true, false) => SimdLevel::Avx2,
                _ => SimdLevel::Baseline,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        SimdLevel::Baseline
    })
}

static AT_MOST: AtomicU8 = AtomicU8::new(SimdLevel::Avx512 as u8);

/// The vector unit that the CPU path computes with on this machine.
pub fn simd_level() -> SimdLevel {
    let at_most = usize::from(AT_MOST.load(Ordering::Relaxed));
    best().min(SimdLevel::ALL[at_most])
}

/// From here on no better level than this is used in this process: for tests, and to compare.
#[doc(hidden)]
pub fn limit_simd_level(at_most: SimdLevel) {
    AT_MOST.store(at_most as u8, Ordering::Relaxed);
}

/// What is worth compiling for each level: a loop over slices.
pub(super) trait Kernel {
    type Output;

    /// To be `#[inline(always)]`, as all that it calls in its loop: only what is inlined is compiled for the level. The unit is
    /// for what a loop does not say.
    fn run(self, unit: impl Unit) -> Self::Output;
}

/// 32-bit lanes in which a [`Unit`] computes; each holds one number, or two of 16 bits.
pub(super) const LANES: usize = 16;

/// Rows as long as they are many, in whole lines of a cache: they are read again at once.
#[repr(align(64))]
pub(super) struct Square(pub(super) [[f32; LANES]; LANES]);

/// What vector units can do and compilers do not see in loops. Whoever holds one runs where it is.
pub(super) trait Unit: Copy {
    /// The whole numbers nearest to floats, ties to even where the thread's floats are IEEE's; any number in place of those that
    /// 32 bits do not hold.
    fn nearest(self, x: [f32; LANES]) -> [i32; LANES];

    /// Adds to each lane `a b` of its two numbers of 16 bits.
    fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]);

    /// The same to whatever lanes, at most four to each: what they make together is what is told.
    #[inline(always)]
    fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
        self.add_products(to, a, b);
    }

    /// `y - x step`, rounded once, where the product is a float.
    #[inline(always)]
    fn less(self, y: f32, x: f32, step: f32) -> f32 {
        y - x * step
    }

    /// The columns of a square.
    #[inline(always)]
    fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
        for (i, row) in rows.into_iter().enumerate() {
            for (to, &v) in to.0.iter_mut().zip(row) {
                to[i] = v;
            }
        }
    }

    /// `x / s`, rounded once, where `per_s` is `1 / s`, rounded once, `s` [`is_divisor`] and `x / s` is below 2^24. Of what is
    /// below a quarter it may be the last place off, and lack 0's sign.
    ///
    /// Two fused multiplications make the quotient of the product `x per_s`, at a fraction of a division's cost. In last places
    /// of the quotient, `S` being the digits of `s` as a whole number: the product is less than 1 1/2 off. What is then added
    /// misses the rest by at most `S / 2^48` of it, and where that is above 1, and may have more than 24 digits, by `1 / S` more.
    /// From the midpoints half a place away a quotient is at least `1 / 2S`, more than is missed there, `S / 2^49`. Of those 1 1/2
    /// away it stays clear by 4.5 / 2^24, more than the 3.1 / 2^24 that are missed; but where the digits of `s` are all ones by
    /// half of that, and of these a test takes every `x`.
    #[inline(always)]
    fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
        let _ = per_s;
        x / s
    }
}

/// Whether [`Unit::quotient`] divides by this: no digit of what comes on the way is below the least float's, and nothing is
/// beyond the largest.
#[inline(always)]
pub(super) fn is_divisor(s: f32) -> bool {
    (2f32.powi(-90)..=2f32.powi(90)).contains(&s)
}

/// [`Unit::quotient`] where `mul_add` is an instruction.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fused_quotient(x: f32, s: f32, per_s: f32) -> f32 {
    let near = x * per_s;
    (-near).mul_add(s, x).mul_add(per_s, near)
}

/// What every machine has.
#[cfg(not(target_arch = "x86_64"))]
pub(super) use Plain as Any;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Any;

/// What every machine has, said in loops.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy)]
pub(super) struct Plain;

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Unit for Plain {
    #[inline(always)]
    fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
        x.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            let (low, high) = (i32::from(a as i16) * i32::from(b as i16), (a >> 16) * (b >> 16));
            *to = to.wrapping_add(low).wrapping_add(high);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]

    use super::{LANES, Square, Unit};
    use bytemuck::cast;
    use std::arch::x86_64::*;

    /// SSE2, which every x86-64 has.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Any;
    /// Is made only where there is AVX2.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());
    /// Is made only where there is AVX-512 F and BW.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    impl Avx2 {
        #[target_feature(enable = "avx2")]
        pub(super) fn new() -> Self {
            Self(())
        }
    }

    impl Avx512 {
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(super) fn new() -> Self {
            Self(())
        }
    }

    #[inline(always)]
    fn add(to: &mut [i32], more: &[i32]) {
        to.iter_mut().zip(more).for_each(|(to, more)| *to = to.wrapping_add(*more));
    }

    impl Unit for Any {
        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: SSE2 is everywhere.
            cast(cast::<_, [__m128; 4]>(x).map(|x| unsafe { _mm_cvtps_epi32(x) }))
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            let (a, b): ([__m128i; 4], [__m128i; 4]) = (cast(a), cast(b));
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                // SAFETY: SSE2 is everywhere.
                add(&mut to[4 * i..], &cast::<_, [i32; 4]>(unsafe { _mm_madd_epi16(a, b) }));
            }
        }

        // To few lanes: 16 registers hold no more.
        #[inline(always)]
        fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            let (a, b): ([__m128i; 4], [__m128i; 4]) = (cast(a), cast(b));
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                // SAFETY: SSE2 is everywhere.
                add(&mut to[i % 2 * 4..], &cast::<_, [i32; 4]>(unsafe { _mm_madd_epi16(a, b) }));
            }
        }
    }

    impl Unit for Avx2 {
        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: `self` is where AVX2 is.
            cast(cast::<_, [__m256; 2]>(x).map(|x| unsafe { _mm256_cvtps_epi32(x) }))
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            let (a, b): ([__m256i; 2], [__m256i; 2]) = (cast(a), cast(b));
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                // SAFETY: `self` is where AVX2 is.
                add(&mut to[8 * i..], &cast::<_, [i32; 8]>(unsafe { _mm256_madd_epi16(a, b) }));
            }
        }

        // To few lanes: 16 registers hold no more.
        #[inline(always)]
        fn add_products_to_any(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            let (a, b): ([__m256i; 2], [__m256i; 2]) = (cast(a), cast(b));
            for (a, b) in a.into_iter().zip(b) {
                // SAFETY: `self` is where AVX2 is.
                add(to, &cast::<_, [i32; 8]>(unsafe { _mm256_madd_epi16(a, b) }));
            }
        }

        #[inline(always)]
        fn less(self, y: f32, x: f32, step: f32) -> f32 {
            (-x).mul_add(step, y)
        }

        #[inline(always)]
        fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
            for (i, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
                let rows = rows.map(|row| cast::<_, [__m256; 2]>(*row));
                for j in 0..2 {
                    // SAFETY: `self` is where AVX2 is.
                    let columns = unsafe { columns_of_8(rows.map(|row| row[j])) };
                    for (to, column) in to.0[8 * j..].iter_mut().zip(columns) {
                        to[8 * i..][..8].copy_from_slice(&cast::<_, [f32; 8]>(column));
                    }
                }
            }
        }
    }

    impl Unit for Avx512 {
        #[inline(always)]
        fn quotient(self, x: f32, s: f32, per_s: f32) -> f32 {
            super::fused_quotient(x, s, per_s)
        }

        #[inline(always)]
        fn nearest(self, x: [f32; LANES]) -> [i32; LANES] {
            // SAFETY: `self` is where AVX-512 F is.
            cast(unsafe { _mm512_cvtps_epi32(cast(x)) })
        }

        #[inline(always)]
        fn add_products(self, to: &mut [i32; LANES], a: [i32; LANES], b: [i32; LANES]) {
            // SAFETY: `self` is where AVX-512 BW is.
            add(to, &cast::<_, [i32; LANES]>(unsafe { _mm512_madd_epi16(cast(a), cast(b)) }));
        }

        #[inline(always)]
        fn less(self, y: f32, x: f32, step: f32) -> f32 {
            (-x).mul_add(step, y)
        }

        #[inline(always)]
        fn columns(self, rows: [&[f32; LANES]; LANES], to: &mut Square) {
            // SAFETY: `self` is where AVX-512 F is.
            unsafe { columns_of_16(rows, to) };
        }
    }

    /// By neighbours, by pairs of them, and by halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn columns_of_8(rows: [__m256; 8]) -> [__m256; 8] {
        let mut columns = rows;
        let mut fours = [[_mm256_setzero_ps(); 4]; 2];
        for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = rows.map(|row| row);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let pairs = |ab, cd| {
                let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
                [_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd)].map(|pair| _mm256_castpd_ps(pair))
            };
            let ([first, second], [third, fourth]) = (pairs(ab, cd), pairs(ab_high, cd_high));
            *four = [first, second, third, fourth];
        }
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(fours[0][i], fours[1][i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[0][i], fours[1][i]);
        }
        columns
    }

    /// The same.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn columns_of_16(rows: [&[f32; LANES]; LANES], to: &mut Square) {
        let mut fours = [[_mm512_setzero_ps(); 4]; 4];
        for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = rows.map(|row| cast(*row));
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            let pairs = |ab, cd| {
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)].map(|pair| _mm512_castpd_ps(pair))
            };
            let ([first, second], [third, fourth]) = (pairs(ab, cd), pairs(ab_high, cd_high));
            *four = [first, second, third, fourth];
        }
        for i in 0..4 {
            let [a, b, c, d] = fours.map(|four| four[i]);
            let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
            to.0[i] = cast(_mm512_shuffle_f32x4::<0x88>(even[0], even[1]));
            to.0[4 + i] = cast(_mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]));
            to.0[8 + i] = cast(_mm512_shuffle_f32x4::<0xdd>(even[0], even[1]));
            to.0[12 + i] = cast(_mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]));
        }
    }
}

/// What becomes of one item is one item's affair.
pub(super) struct Map<'a, A, B, F> {
    pub(super) from: &'a [A],
    pub(super) to: &'a mut [B],
    pub(super) f: F,
}

impl<A: Copy, B, F: Fn(A) -> B> Kernel for Map<'_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Unit) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = (self.f)(from);
        }
    }
}

/// Runs a kernel at the level of this machine.
#[inline]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]
    match simd_level() {
        // SAFETY: a level is never above `best`, which has found all the features that the function is compiled for.
        SimdLevel::Avx512 => return unsafe { avx512(kernel) },
        // SAFETY: the same.
        SimdLevel::Avx2 => return unsafe { avx2(kernel) },
        SimdLevel::Baseline => {}
    }
    kernel.run(Any)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(x86::Avx512::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(x86::Avx2::new())
}

/// The memory that is asked for while a kernel looks at other memory, so many bytes ahead of it. The processor asks by itself,
/// but not beyond a page of 4 KiB.
///
/// What looks twice at what it reads asks for half of the lines each time, so that memory is never idle.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    bytes: usize,
    lines: Lines,
}

/// Bytes that are asked for while as many are looked at.
pub(super) const ASK_BYTES: usize = 16 << 10;

/// Of each four.
#[derive(Clone, Copy)]
enum Lines {
    None,
    All,
    First,
    Last,
}

impl Ask {
    pub(super) const NOTHING: Self = Self { bytes: 0, lines: Lines::None };
    pub(super) const ALL: Self = Self { bytes: ASK_BYTES, lines: Lines::All };
    /// Elements that four lines hold.
    pub(super) const ELEMS: usize = 64;

    /// One half each, of what comes after runs of so many bytes.
    pub(super) fn halves(run_bytes: usize) -> [Self; 2] {
        let bytes = ASK_BYTES.next_multiple_of(run_bytes.max(1)).next_multiple_of(ASK_BYTES);
        [Self { bytes, lines: Lines::First }, Self { bytes, lines: Lines::Last }]
    }

    pub(super) fn is_nothing(self) -> bool {
        matches!(self.lines, Lines::None)
    }

    /// Asks, while this is looked at.
    #[inline(always)]
    pub(super) fn beside(self, x: &[f32; Self::ELEMS]) {
        match self.lines {
            Lines::None => {}
            Lines::All => ask::<4>(x, self.bytes, 0..4),
            Lines::First => ask::<4>(x, self.bytes, 0..2),
            Lines::Last => ask::<4>(x, self.bytes, 2..4),
        }
    }
}

/// Asks for as many lines of memory as are looked at here, 1, 2 or 4, while what follows is looked at in the same way; the
/// lines lie so many bytes ahead, a multiple of [`ASK_BYTES`].
#[inline(always)]
pub(super) fn ask_ahead<const LOOKED_AT: usize>(x: &[f32], ahead_bytes: usize) {
    ask::<LOOKED_AT>(x, ahead_bytes, 0..LOOKED_AT);
}

/// The same, for some of these lines.
///
/// One comes of each of four pages in turn, as processors have more under way from several pages than from one; and they are
/// to be in the second cache, as more may be under way there than to the first.
#[inline(always)]
fn ask<const LOOKED_AT: usize>(x: &[f32], ahead_bytes: usize, lines: Range<usize>) {
    const PAGE_BYTES: usize = ASK_BYTES / 4;
    const FOUR_BYTES: usize = 4 * LINE_BYTES;
    let at = x.as_ptr().addr();
    // Which of so many lines it is makes the page, and which four lines they are among the line of the page.
    let page = at % FOUR_BYTES / (LOOKED_AT * LINE_BYTES) * (LOOKED_AT * PAGE_BYTES);
    let first = at / ASK_BYTES * ASK_BYTES + ahead_bytes + page + at % ASK_BYTES / FOUR_BYTES * LINE_BYTES;
    for line in lines {
        prefetch(x, first.wrapping_add(line * PAGE_BYTES));
    }
}

/// Asks for the memory at an address.
#[inline(always)]
fn prefetch(x: &[f32], addr: usize) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the instruction takes a pointer")]
    // SAFETY: a prefetch reads nothing and never faults, whatever the address; the pointer is made without claiming that it
    // points into anything.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().cast::<i8>().with_addr(addr));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, addr);
}

/// The most bytes of input and output that caches may be expected to hold.
const CACHED_BYTES: usize = 32 << 20;

/// Whether output is better written past the caches, which cannot hold it anyway: then lines need not be read before they
/// are written.
pub(super) fn is_past_caches(bytes: usize) -> bool {
    cfg!(target_arch = "x86_64") && bytes > CACHED_BYTES
}

/// The least that goes past the caches, and where it may begin.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

const LINE_BYTES: usize = size_of::<Line>();

// SAFETY: bytes and nothing else, of any value; their number is a multiple of the alignment, so that nothing lies between.
#[allow(unsafe_code, reason = "to be seen as bytes and back")]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: the same.
#[allow(unsafe_code, reason = "to be seen as bytes and back")]
unsafe impl Pod for Line {}

/// What a task writes, one block after the other.
///
/// Past the caches goes what makes up a line, as soon as it does: short bursts between reads cost less than long ones.
pub(super) struct Output<'a, T: Pod> {
    out: &'a mut [T],
    /// Of output that goes past the caches, the lines that are being made.
    lines: Option<Vec<Line>>,
    /// Bytes from the beginning of the first line that `out` reaches into to `out`, to the first of `lines`, and to what
    /// is made next.
    first: usize,
    held: usize,
    next: usize,
}

impl<'a, T: Pod> Output<'a, T> {
    pub(super) fn new(out: &'a mut [T], past_caches: bool) -> Self {
        let first = out.as_ptr().addr() % LINE_BYTES;
        Self { out, lines: past_caches.then(Vec::new), first, held: 0, next: first }
    }

    /// Elements that are best made at once.
    pub(super) fn block_elems(&self) -> usize {
        if self.lines.is_some() { 1024 } else { super::fold::BLOCK_ELEMS }
    }

    /// Writes what `make` makes; each place begins where the one before ends.
    pub(super) fn write<R>(&mut self, place: Range<usize>, make: impl FnOnce(&mut [T]) -> R) -> R {
        let out = &mut self.out[place.clone()];
        let Some(lines) = &mut self.lines else { return make(out) };
        assert_eq!(self.first + place.start * size_of::<T>(), self.next, "one block after the other");
        let made = self.next - self.held..self.next - self.held + size_of_val(out);
        if lines.len() * LINE_BYTES < made.end {
            lines.resize(made.end.div_ceil(LINE_BYTES), Line([0; LINE_BYTES]));
        }
        let result = make(bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<_, u8>(lines)[made.clone()]));
        self.next += made.len();
        let whole = made.end / LINE_BYTES;
        if whole > 0 {
            let out = bytemuck::cast_slice_mut::<_, u8>(self.out);
            let mut from = &lines[..whole];
            if self.held < self.first {
                // `out` begins within this line.
                let head = LINE_BYTES - self.first;
                out[..head].copy_from_slice(&from[0].0[self.first..]);
                (from, self.held) = (&from[1..], LINE_BYTES);
            }
            let at = self.held - self.first;
            stream(from, &mut out[at..at + from.len() * LINE_BYTES]);
            self.held += from.len() * LINE_BYTES;
            if !made.end.is_multiple_of(LINE_BYTES) {
                lines[0] = lines[whole];
            }
        }
        result
    }
}

impl<T: Pod> Drop for Output<'_, T> {
    fn drop(&mut self) {
        let Some(lines) = &self.lines else { return };
        let begun = self.held.max(self.first);
        if begun < self.next {
            let from = &bytemuck::cast_slice::<_, u8>(lines)[begun - self.held..self.next - self.held];
            bytemuck::cast_slice_mut(self.out)[begun - self.first..self.next - self.first].copy_from_slice(from);
        }
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "a caller without a vector unit's feature cannot call what has it in safe code")]
        // SAFETY: x86-64 has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Copies past the caches, by the widest store that there is; `Output` alone calls it.
fn stream(from: &[Line], to: &mut [u8]) {
    assert!(to.len() == size_of_val(from) && to.as_ptr().addr().is_multiple_of(LINE_BYTES));
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the instructions take pointers, and want a vector unit")]
    {
        use std::arch::x86_64::*;
        // What is stored in this way must be fenced before anything else looks at it: `Output` borrows it exclusively for as
        // long as it lives, and fences when it ends.
        #[target_feature(enable = "avx512f")]
        fn by_64(from: &[Line], to: &mut [[u8; LINE_BYTES]]) {
            for (from, to) in from.iter().zip(to) {
                // SAFETY: both are 64 bytes; `from` is aligned by its type, `to` as `stream` asserts of the first of them.
                unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), _mm512_load_si512(from.0.as_ptr().cast())) }
            }
        }
        #[target_feature(enable = "avx")]
        fn by_32(from: &[Line], to: &mut [[u8; LINE_BYTES]]) {
            for (from, to) in from.iter().zip(to) {
                for at in [0, 32] {
                    // SAFETY: the same, of each half.
                    unsafe {
                        let half = _mm256_load_si256(from.0.as_ptr().add(at).cast());
                        _mm256_stream_si256(to.as_mut_ptr().add(at).cast(), half);
                    }
                }
            }
        }
        fn by_16(from: &[Line], to: &mut [[u8; LINE_BYTES]]) {
            for (from, to) in from.iter().zip(to) {
                for at in [0, 16, 32, 48] {
                    // SAFETY: the same, of each quarter.
                    unsafe {
                        let quarter = _mm_load_si128(from.0.as_ptr().add(at).cast());
                        _mm_stream_si128(to.as_mut_ptr().add(at).cast(), quarter);
                    }
                }
            }
        }
        let to = to.as_chunks_mut().0;
        match simd_level() {
            // SAFETY: a level is never above `best`, which has found all the features that the function is compiled for.
            SimdLevel::Avx512 => unsafe { by_64(from, to) },
            // SAFETY: the same.
            SimdLevel::Avx2 => unsafe { by_32(from, to) },
            SimdLevel::Baseline => by_16(from, to),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(bytemuck::cast_slice(from));
}

/// Calls `check` with each level that this machine has.
#[cfg(test)]
pub(super) fn for_each_level(mut check: impl FnMut(SimdLevel)) {
    for level in SimdLevel::ALL.into_iter().filter(|&level| level <= best()) {
        limit_simd_level(level);
        check(level);
    }
    limit_simd_level(SimdLevel::Avx512);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::Rng;

    #[test]
    fn every_vector_unit_rounds_and_multiplies_as_loops_say() {
        #[derive(Clone, Copy)]
        struct Of([f32; LANES], [[i32; LANES]; 2]);
        impl Kernel for Of {
            type Output = ([i32; LANES], [i32; LANES], i32);

            #[inline(always)]
            fn run(self, unit: impl Unit) -> Self::Output {
                let (Self(x, [a, b]), mut products, mut to_any) = (self, [1; LANES], [1; LANES]);
                unit.add_products(&mut products, a, b);
                unit.add_products_to_any(&mut to_any, a, b);
                (unit.nearest(x), products, to_any.into_iter().fold(0, i32::wrapping_add))
            }
        }
        for_each_level(|level| {
            let mut rng = Rng::new(45);
            for _ in 0..10_000 {
                // Halves, and any of less than 31 bits.
                let x = std::array::from_fn(|i| match i % 2 {
                    0 => (rng.next_u32().cast_signed() >> 7) as f32 / 2.0,
                    _ => f32::from_bits((rng.next_u32() % (157 << 23)) | (rng.next_u32() & (1 << 31))),
                });
                let of = Of(x, [0; 2].map(|_| [0; LANES].map(|_| rng.next_u32().cast_signed())));
                assert_eq!(run(of), of.run(Plain), "{level} {x:?}");
            }
        });
    }

    #[test]
    fn quotients_are_those_of_divisions_at_every_level() {
        struct All<'a>(&'a [f32], f32, &'a mut [f32]);
        impl Kernel for All<'_> {
            type Output = ();

            #[inline(always)]
            fn run(self, unit: impl Unit) {
                let Self(x, s, out) = self;
                let per_s = 1.0 / s;
                x.iter().zip(out).for_each(|(&x, out)| *out = unit.quotient(x, s, per_s));
            }
        }
        let check = |x: &[f32], s: f32| {
            let mut found = vec![0.0; x.len()];
            run(All(x, s, &mut found));
            for (&x, found) in x.iter().zip(found) {
                let q = x / s;
                let equal = found.to_bits() == q.to_bits();
                assert!(equal || q.abs() < 0.25 && (found - q).abs() <= 2f32.powi(-26), "{x:e} / {s:e}: {found:e}");
            }
        };
        let ones = f32::from_bits(0x3fff_ffff);
        let all_digits: Vec<f32> = (0..1 << 23).map(|digits| f32::from_bits(0x4200_0000 + digits)).collect();
        for_each_level(|_| {
            check(&all_digits, ones);
            let mut rng = Rng::new(46);
            for i in 0..3000 {
                let exponent = rng.below(180).cast_signed() - 90;
                let s = match i % 4 {
                    0 => f32::from_bits(0x3fff_ffff - rng.below(8)),
                    1 => f32::from_bits(0x3f80_0000 + rng.below(8)),
                    _ => f32::from_bits(0x3f80_0000 | rng.below(1 << 23)),
                };
                // Of quotients between floats and between whole numbers, both sides; any; and what is nearly nothing.
                let s = s * 2f32.powi(exponent.min(89));
                assert!(is_divisor(s));
                let x: Vec<f32> = (0..256)
                    .map(|k| {
                        let q = f64::from(f32::from_bits(((125 + rng.below(24)) << 23) | rng.below(1 << 23)));
                        let x = match k % 4 {
                            0 => (q + f64::from(q as f32 * f32::EPSILON) / 4.0) * f64::from(s),
                            1 => (q.floor() + 0.5) * f64::from(s),
                            2 => q * f64::from(s),
                            _ => f64::from(f32::from_bits(rng.below(1 << 28))) * f64::from(s),
                        };
                        let x = x as f32;
                        let x = f32::from_bits(x.to_bits().saturating_add_signed(rng.below(3).cast_signed() - 1));
                        if rng.below(2) == 0 { x } else { -x }
                    })
                    .collect();
                check(&x, s);
            }
        });
    }

    #[test]
    fn what_goes_past_the_caches_is_what_was_made_wherever_it_begins_and_ends() {
        fn check<T: Pod + PartialEq>(rng: &mut Rng, of: impl Fn(usize) -> T) {
            for start in 0..64 {
                for len in [0, 1, 20, 63, 64, 65, 200, 3000, 20_000] {
                    let untouched = of(7);
                    let mut all = vec![untouched; start + len + 64];
                    let mut out = Output::new(&mut all[start..start + len], true);
                    let mut at = 0;
                    while at < len {
                        let n = (rng.next_u32() as usize % [3, 70, 5000][at % 3]).min(len - at);
                        let made = out.write(at..at + n, |out| {
                            out.iter_mut().enumerate().for_each(|(i, out)| *out = of(at + i));
                            out.len()
                        });
                        assert_eq!(made, n);
                        at += n;
                    }
                    drop(out);
                    let expected = |i: usize| if (start..start + len).contains(&i) { of(i - start) } else { untouched };
                    assert!(all.iter().enumerate().all(|(i, v)| *v == expected(i)), "{start} {len}");
                }
            }
        }
        for_each_level(|_| {
            let mut rng = Rng::new(44);
            check(&mut rng, |i| (i * 7) as u8);
            check(&mut rng, |i| ((i * 7) as u16).to_le_bytes());
            check(&mut rng, |i| i as f32);
        });
    }
}
