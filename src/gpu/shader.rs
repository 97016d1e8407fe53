//! The kernels and the text that each is composed of.
//!
//! WGSL is composed by concatenation: constants of the scheme and of the tuning, the fragments, the kernel.
//! Module scope in WGSL has no order and refuses doubles, so a missing or a doubled piece is a located error.

use crate::scheme::{Mapping, Scheme};
use bytemuck::{Pod, Zeroable};
use std::fmt::Write;
use std::ops::Range;

/// A kernel: the stem of its WGSL file, and its entry point's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Range reduction.
    MinMax,
    /// Ranges to scales.
    Scale,
    /// Values to codes.
    Quantize,
    /// Values to codes, and the loss's sums.
    QuantizeLoss,
    /// Codes to values.
    Dequantize,
    /// The largest |x' - x| per range unit.
    AbsError,
    /// The same, and |x' - x| per element.
    AbsErrorStore,
    /// The loss's sums of given codes.
    Loss,
}

/// How the work is cut; results never depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tuning {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// The most elements per buffer, when the device's limits allow as many; a multiple of 4.
    pub chunk_elems: u32,
    /// The most range units whose scales share a buffer, when the device's limits allow as many.
    pub slab_units: usize,
    /// The most workgroups per dimension, when the device's limits allow as many.
    pub workgroups_per_dimension: u32,
    /// How long a call waits for the device.
    pub timeout_seconds: u64,
    /// Whether each kernel's time is taken, where the device can; each is then a pass of its own.
    pub timestamps: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            workgroup: 256,
            // 1 GiB of f32: far above what most devices bind at once.
            chunk_elems: 1 << 28,
            slab_units: 1 << 26,
            workgroups_per_dimension: 65_535,
            timeout_seconds: 600,
            timestamps: false,
        }
    }
}

impl Tuning {
    /// The default with this many invocations per workgroup.
    #[must_use]
    pub fn workgroup(self, workgroup: u32) -> Self {
        Self { workgroup, ..self }
    }

    /// The same with at most this many elements per buffer.
    #[must_use]
    pub fn chunk_elems(self, chunk_elems: u32) -> Self {
        Self { chunk_elems, ..self }
    }

    /// The same with at most this many range units to a buffer.
    #[must_use]
    pub fn slab_units(self, slab_units: usize) -> Self {
        Self { slab_units, ..self }
    }

    /// The same with at most this many workgroups per dimension.
    #[must_use]
    pub fn workgroups_per_dimension(self, workgroups_per_dimension: u32) -> Self {
        Self { workgroups_per_dimension, ..self }
    }

    /// The same, waiting at most this long for the device.
    #[must_use]
    pub fn timeout_seconds(self, timeout_seconds: u64) -> Self {
        Self { timeout_seconds, ..self }
    }

    /// The same, taking each kernel's time.
    #[must_use]
    pub fn timestamps(self, timestamps: bool) -> Self {
        Self { timestamps, ..self }
    }
}

/// The uniform of every kernel; its meaning stands in `shaders/params.wgsl`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Params {
    /// Elements of the chunk.
    pub elems: u32,
    /// The range unit of its first element.
    pub first_unit: u32,
    /// What is left of that element's run, saturated.
    pub first_left: u32,
    /// Elements per run, saturated.
    pub run: u32,
    /// Range units of the tensor.
    pub units: u32,
    /// 0 for rows, the distance of an invocation's elements for columns.
    pub stride: u32,
    /// Where the chunk's counters begin.
    pub counters: u32,
    /// 1 when the scales are the caller's.
    pub given: u32,
    /// 1 when the loss will be summed with the codes.
    pub with_loss: u32,
}

/// Runs shorter than this are traversed as columns.
pub(super) const MIN_RUN: u32 = 64;
/// Words per range unit in the buffer of recipes: what quantize needs of a scale.
pub const RECIPE_WORDS: usize = 8;
/// The counters of a chunk, in order.
pub(super) const TALLIES: [&str; 5] =
    ["NAN_ELEMS", "INF_ELEMS", "CLIPPED_ELEMS", "EXCLUDED_ELEMS", "NONFINITE_OUT_ELEMS"];
/// Words per range unit in the buffer of the loss's sums; the last are unused.
pub(super) const LOSS_WORDS: usize = 16;
/// Where the sums stand among a unit's words.
pub(super) const MAX_AT: usize = 0;
pub(super) const ABS: Range<usize> = 1..4;
pub(super) const NOISE: Range<usize> = 4..8;
pub(super) const CODES: Range<usize> = 8..11;
pub(super) const CROSS: Range<usize> = 11..14;

const FLOAT: &str = include_str!("../../shaders/exact/float.wgsl");
const CODE: &str = include_str!("../../shaders/exact/code.wgsl");
const GRID: &str = include_str!("../../shaders/exact/loss.wgsl");
const PARAMS: &str = include_str!("../../shaders/params.wgsl");
const TRAVERSE: &str = include_str!("../../shaders/traverse.wgsl");
const COLUMNS: &str = include_str!("../../shaders/columns.wgsl");
const PACK: &str = include_str!("../../shaders/pack.wgsl");
const TALLY: &str = include_str!("../../shaders/tally.wgsl");
const LOSS_SUMS: &str = include_str!("../../shaders/loss_sums.wgsl");
const NO_LOSS: &str = include_str!("../../shaders/no_loss.wgsl");

impl Kernel {
    /// Every kernel.
    pub const ALL: &'static [Self] = &[
        Self::MinMax,
        Self::Scale,
        Self::Quantize,
        Self::QuantizeLoss,
        Self::Dequantize,
        Self::AbsError,
        Self::AbsErrorStore,
        Self::Loss,
    ];

    /// The entry point's name, which is the file's too.
    pub fn entry_point(self) -> &'static str {
        match self {
            Self::MinMax => "min_max",
            Self::Scale => "scale",
            Self::Quantize | Self::QuantizeLoss => "quantize",
            Self::Dequantize => "dequantize",
            Self::AbsError | Self::AbsErrorStore => "abs_error",
            Self::Loss => "loss",
        }
    }

    /// The variant's name, in labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::QuantizeLoss => "quantize_loss",
            Self::AbsErrorStore => "abs_error_store",
            _ => self.entry_point(),
        }
    }

    /// Vectors of four elements per invocation: reductions take more, for fewer atomics.
    pub(super) fn vecs(self) -> u32 {
        match self {
            Self::MinMax => 16,
            _ => 4,
        }
    }

    fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::MinMax => &[COLUMNS, TALLY, include_str!("../../shaders/min_max.wgsl")],
            Self::Scale => &[include_str!("../../shaders/scale.wgsl")],
            Self::Quantize => &[TALLY, NO_LOSS, include_str!("../../shaders/quantize.wgsl")],
            Self::QuantizeLoss => &[TALLY, LOSS_SUMS, include_str!("../../shaders/quantize.wgsl")],
            Self::Dequantize => &[include_str!("../../shaders/dequantize.wgsl")],
            Self::AbsError | Self::AbsErrorStore => &[COLUMNS, include_str!("../../shaders/abs_error.wgsl")],
            Self::Loss => &[COLUMNS, TALLY, LOSS_SUMS, include_str!("../../shaders/loss.wgsl")],
        }
    }
}

/// The WGSL text of a kernel for a scheme, as the device gets it.
pub fn shader_source(kernel: Kernel, scheme: Scheme, workgroup: u32) -> String {
    let mut text = String::new();
    let mut define = |name: &str, value: &dyn std::fmt::Display, suffix: &str| {
        writeln!(text, "const {name} = {value}{suffix};").expect("writing to a string cannot fail");
    };
    define("WORKGROUP", &workgroup, "u");
    define("VECS", &kernel.vecs(), "u");
    define("MIN_RUN", &MIN_RUN, "u");
    define("QMIN", &scheme.qmin(), "i");
    define("QMAX", &scheme.qmax(), "i");
    define("DIVISOR", &scheme.divisor(), "u");
    define("MINMAX", &(scheme.mapping() == Mapping::MinMax), "");
    define("FUSED", &(kernel == Kernel::QuantizeLoss), "");
    define("STORE_ERRORS", &(kernel == Kernel::AbsErrorStore), "");
    define("LOSS_WORDS", &LOSS_WORDS, "u");
    define("MAX_AT", &MAX_AT, "u");
    for (name, words) in [("ABS_AT", ABS), ("NOISE_AT", NOISE), ("CODES_AT", CODES), ("CROSS_AT", CROSS)] {
        define(name, &words.start, "u");
    }
    define("SUM_WORDS", &CROSS.end, "u");
    define("TALLIES", &TALLIES.len(), "u");
    for (i, name) in TALLIES.iter().enumerate() {
        define(name, &i, "u");
    }
    let common: &[&str] = match kernel {
        // It sees units, not elements, and needs no traversal's hooks.
        Kernel::Scale => &[PARAMS, FLOAT, CODE],
        _ => &[PARAMS, FLOAT, CODE, GRID, PACK, TRAVERSE],
    };
    for fragment in common.iter().chain(kernel.fragments()) {
        text.push('\n');
        text.push_str(fragment);
    }
    text
}
