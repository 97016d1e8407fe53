//! Kernels are plain loops, compiled once for each vector unit; which one runs is found out on the machine.
//!
//! This is all of the CPU path's `unsafe`: that a function compiled for a vector unit runs only where there is one, and two
//! instructions of x86 for memory. No level changes a bit: vector units add, multiply and divide as IEEE says, lane by
//! lane, and Rust never fuses two operations.

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

    /// To be `#[inline(always)]`, as all that it calls in its loop: only what is inlined is compiled for the level.
    fn run(self) -> Self::Output;
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
    fn run(self) {
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
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Asks for the memory that lies so many bytes behind the beginning of `x`, wherever that is. The processor asks by itself,
/// but not beyond a page of 4 KiB.
#[inline(always)]
pub(super) fn prefetch(x: &[f32], ahead_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the instruction takes a pointer")]
    // SAFETY: a prefetch reads nothing and never faults, whatever the address; the pointer is made without claiming that it
    // points into anything.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(ahead_bytes));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, ahead_bytes);
}

/// The most bytes of input and output that caches may be expected to hold.
const CACHED_BYTES: usize = 32 << 20;

/// Whether output is better written past the caches, which cannot hold it anyway: then lines need not be read before they
/// are written.
pub(super) fn is_past_caches(bytes: usize) -> bool {
    cfg!(target_arch = "x86_64") && bytes > CACHED_BYTES
}

/// What a task writes, block by block.
pub(super) struct Output<'a, T: Pod> {
    out: &'a mut [T],
    /// Of output that goes past the caches, the block that is being made.
    block: Option<Vec<T>>,
}

impl<'a, T: Pod> Output<'a, T> {
    pub(super) fn new(out: &'a mut [T], past_caches: bool) -> Self {
        Self { out, block: past_caches.then(Vec::new) }
    }

    /// Writes what `make` makes.
    pub(super) fn write<R>(&mut self, place: Range<usize>, make: impl FnOnce(&mut [T]) -> R) -> R {
        let out = &mut self.out[place];
        let Some(block) = &mut self.block else { return make(out) };
        block.resize(block.len().max(out.len()), T::zeroed());
        let block = &mut block[..out.len()];
        let made = make(block);
        stream(bytemuck::cast_slice(block), bytemuck::cast_slice_mut(out));
        made
    }
}

impl<T: Pod> Drop for Output<'_, T> {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.block.is_some() {
            #[allow(
                unsafe_code,
                reason = "a caller without a vector unit's feature cannot call what has it in safe code"
            )]
            // SAFETY: x86-64 has SSE.
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
    }
}

/// Copies past the caches; `Output` alone calls it.
fn stream(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the instruction takes a pointer")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        // Whole lines go past the caches; what is before the first and after the last of them does not.
        const LINE: usize = 64;
        let head = to.as_ptr().align_offset(LINE).min(to.len());
        let lines = (to.len() - head) / LINE * LINE;
        let tail = head + lines;
        to[..head].copy_from_slice(&from[..head]);
        to[tail..].copy_from_slice(&from[tail..]);
        for at in (head..tail).step_by(size_of::<__m128i>()) {
            // SAFETY: both slices reach to `tail` and beyond `at + 16`, since lines are whole; `to` is exclusive, and its
            // address at `head` a multiple of 64. What is stored this way must be fenced before anything else looks at it:
            // `Output` borrows it exclusively for as long as it lives, and fences when it ends.
            unsafe {
                let sixteen = _mm_loadu_si128(from.as_ptr().add(at).cast());
                _mm_stream_si128(to.as_mut_ptr().add(at).cast(), sixteen);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
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
