//! Memory that is asked for ahead, and output that goes past the caches.

#[cfg(target_arch = "x86_64")]
use super::simd_level;
use super::{SimdLevel, best};
use bytemuck::Pod;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

/// The memory that is asked for while a kernel looks at other memory, so many bytes ahead of it. The processor asks by itself,
/// but not beyond a page of 4 KiB.
///
/// What looks twice at what it reads asks for half of the lines each time, so that memory is never idle.
#[derive(Clone, Copy)]
pub(in super::super) struct Ask {
    bytes: usize,
    lines: Lines,
}

/// Bytes that are asked for while as many are looked at.
pub(in super::super) const ASK_BYTES: usize = 16 << 10;

/// Of each four.
#[derive(Clone, Copy)]
enum Lines {
    None,
    All,
    First,
    Last,
}

impl Ask {
    pub(in super::super) const NOTHING: Self = Self { bytes: 0, lines: Lines::None };
    pub(in super::super) const ALL: Self = Self { bytes: ASK_BYTES, lines: Lines::All };
    /// Elements that four lines hold.
    pub(in super::super) const ELEMS: usize = 64;

    /// One half each, of what comes after runs of so many bytes.
    pub(in super::super) fn halves(run_bytes: usize) -> [Self; 2] {
        let bytes = ASK_BYTES.next_multiple_of(run_bytes.max(1)).next_multiple_of(ASK_BYTES);
        [Self { bytes, lines: Lines::First }, Self { bytes, lines: Lines::Last }]
    }

    pub(in super::super) fn is_nothing(self) -> bool {
        matches!(self.lines, Lines::None)
    }

    /// Asks, while this is looked at.
    #[inline(always)]
    pub(in super::super) fn beside(self, x: &[f32; Self::ELEMS]) {
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
pub(in super::super) fn ask_ahead<const LOOKED_AT: usize>(x: &[f32], ahead_bytes: usize) {
    ask::<LOOKED_AT>(x, ahead_bytes, 0..LOOKED_AT);
}

/// The same, while four registers are looked at.
#[inline(always)]
pub(in super::super) fn ask_beside<const LANES: usize>(x: &[[f32; LANES]; 4], ahead_bytes: usize) {
    match LANES {
        16 => ask_ahead::<4>(x.as_flattened(), ahead_bytes),
        8 => ask_ahead::<2>(x.as_flattened(), ahead_bytes),
        _ => ask_ahead::<1>(x.as_flattened(), ahead_bytes),
    }
}

/// The same, for some of these lines.
///
/// They are to be in the second cache, as more may be under way there than to the first.
#[inline(always)]
fn ask<const LOOKED_AT: usize>(x: &[f32], ahead_bytes: usize, lines: Range<usize>) {
    const PAGE_BYTES: usize = ASK_BYTES / 4;
    const FOUR_BYTES: usize = 4 * LINE_BYTES;
    let at = x.as_ptr().addr();
    if asks_in_line() {
        // Of four pages together, so that their addresses are looked up side by side.
        if lines.start == 0 && at % ASK_BYTES < LOOKED_AT * LINE_BYTES {
            for page in 1..4 {
                prefetch(x, at.wrapping_add(ahead_bytes + page * PAGE_BYTES));
            }
        }
        for line in lines {
            prefetch(x, at.wrapping_add(ahead_bytes + line * LINE_BYTES));
        }
        return;
    }
    // Which of so many lines it is makes the page, and which four lines they are among the line of the page.
    let page = at % FOUR_BYTES / (LOOKED_AT * LINE_BYTES) * (LOOKED_AT * PAGE_BYTES);
    let first = at / ASK_BYTES * ASK_BYTES + ahead_bytes + page + at % ASK_BYTES / FOUR_BYTES * LINE_BYTES;
    for line in lines {
        prefetch(x, first.wrapping_add(line * PAGE_BYTES));
    }
}

/// Whether lines are asked for as they lie, and not of four pages in turn: a Xeon had more under way of several pages than of one,
/// an EPYC less.
#[inline(always)]
fn asks_in_line() -> bool {
    // 0 as long as it is not known.
    static IN_LINE: AtomicU8 = AtomicU8::new(0);
    match IN_LINE.load(Ordering::Relaxed) {
        0 => {
            let in_line = is_amd();
            IN_LINE.store(if in_line { 1 } else { 2 }, Ordering::Relaxed);
            in_line
        }
        known => known == 1,
    }
}

#[cold]
#[inline(never)]
fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let std::arch::x86_64::CpuidResult { ebx, ecx, edx, .. } = std::arch::x86_64::__cpuid(0);
        [ebx, edx, ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
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
/// are written. Beside much more that is read, an EPYC without AVX-512 takes longer for that than for reading them.
pub(in super::super) fn is_past_caches(read_bytes: usize, written_bytes: usize) -> bool {
    let is_better = written_bytes >= read_bytes / 2 || !asks_in_line() || best() == SimdLevel::Avx512;
    cfg!(target_arch = "x86_64") && read_bytes + written_bytes > CACHED_BYTES && is_better
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
pub(in super::super) struct Output<'a, T: Pod> {
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
    pub(in super::super) fn new(out: &'a mut [T], past_caches: bool) -> Self {
        let first = out.as_ptr().addr() % LINE_BYTES;
        Self { out, lines: past_caches.then(Vec::new), first, held: 0, next: first }
    }

    /// Elements that are best made at once.
    pub(in super::super) fn block_elems(&self) -> usize {
        if self.lines.is_some() { 1024 } else { crate::cpu::fold::BLOCK_ELEMS }
    }

    /// Writes what `make` makes; each place begins where the one before ends.
    pub(in super::super) fn write<R>(&mut self, place: Range<usize>, make: impl FnOnce(&mut [T]) -> R) -> R {
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

#[cfg(test)]
mod tests {
    use super::super::for_each_level;
    use super::*;
    use crate::test_data::Rng;

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
