//! Kernels are plain loops, compiled once for each vector unit; which one runs is found out on the machine.
//!
//! This and what it is made of is all of the CPU path's `unsafe`: that a function compiled for a vector unit runs only where
//! there is one, and the instructions of x86 that no loop becomes: for [`unit`], and for [`memory`]. No level changes a bit:
//! vector units add, multiply and divide as IEEE says, lane by lane, and Rust fuses no two operations but where it is told to.

mod memory;
mod unit;

pub(super) use memory::{ASK_BYTES, Ask, Output, ask_ahead, ask_beside, is_past_caches};
pub(super) use unit::{Floats, MOST_LANES, Unit, Whole, is_divisor};

use std::fmt;
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
    /// 512 bits, and VNNI.
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
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
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
    /// for what a loop does not say; its registers have so many lanes.
    fn run<const LANES: usize>(self, unit: impl Unit<LANES>) -> Self::Output;
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
    fn run<const LANES: usize>(self, _: impl Unit<LANES>) {
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
    kernel.run(unit::Any)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(unit::Avx512::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(unit::Avx2::new())
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
