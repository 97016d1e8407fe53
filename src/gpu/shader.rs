//! The kernels and the text that each is composed of.
//!
//! WGSL is composed by concatenation: constants of the scheme and of the tuning, the fragments, the kernel.
//! Module scope in WGSL has no order and refuses doubles, so a missing or a doubled piece is a located error.

use crate::scheme::{CodeType, Scheme};
use crate::tensor::ElemType;
use std::fmt::Write;
use std::ops::Range;

/// A kernel: the stem of its WGSL file, and its entry point's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Zeroes, where a recording adds.
    Clear,
    /// Range reduction.
    MinMax,
    /// A batch's ranges into those that were observed.
    Observe,
    /// Ranges to scales and zero points.
    Scale,
    /// Values to codes.
    Quantize,
    /// Values to codes, and the loss's sums.
    QuantizeLoss,
    /// Range, scale and codes in one pass.
    QuantizeOnce,
    /// The same, and the loss's sums.
    QuantizeOnceLoss,
    /// Values to de-quantized values.
    FakeQuantize,
    /// Range, scale and de-quantized values in one pass.
    FakeQuantizeOnce,
    /// Codes to values.
    Dequantize,
    /// The largest |x' - x| per range unit.
    AbsError,
    /// The same, and |x' - x| per element.
    AbsErrorStore,
    /// The loss's sums of given codes.
    Loss,
}

/// What kind of codes a kernel is composed for. Schemes share kernels: their numbers are in the uniform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Whole numbers of 4 bits.
    Int4,
    /// Whole numbers of 8 bits.
    Int8,
    /// Whole numbers of 16 bits.
    Int16,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Codec {
    /// Every codec.
    pub const ALL: &'static [Self] = &[Self::Int4, Self::Int8, Self::Int16, Self::F16, Self::Bf16];

    /// The codec of a scheme's codes.
    pub fn of(scheme: Scheme) -> Self {
        match scheme.code() {
            CodeType::F16 => Self::F16,
            CodeType::Bf16 => Self::Bf16,
            code => match code.bits() {
                4 => Self::Int4,
                8 => Self::Int8,
                _ => Self::Int16,
            },
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
            Self::Int16 | Self::F16 | Self::Bf16 => 16,
        }
    }

    fn is_cast(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }
}

/// A kernel, composed: for these codes and this input. Where a kernel sees no codes or no input, the first of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// The kernel.
    pub kernel: Kernel,
    /// The codes that it is composed for.
    pub codec: Codec,
    /// The input that it is composed for.
    pub input: ElemType,
    /// Whether its parameters are rows of a table, one per tensor of a batch.
    pub batched: bool,
    /// What chunks it is for.
    pub shape: Shape,
}

/// What chunks a program is for, and which slots an invocation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Any: each slot may be looked up by itself.
    Any,
    /// Each vector of four slots lies in one run and is read as it lies.
    Fours,
    /// The same, and the loss takes what the codes of a tile's first unit stand for from a table.
    Table,
    /// The same, and tiles are of several units, for which nothing is gathered.
    Several,
    /// Whole units of pieces of 32 slots, each an invocation's, which reads it once.
    Held {
        /// Whether a unit is one piece.
        alone: bool,
        /// Whether no unit's own scale clips a finite value, and codes have at most 127 steps.
        unclipped: bool,
        /// Whether invocations that share a unit take its vectors in turn, and not neighbouring ones each.
        spread: bool,
    },
}

impl Shape {
    const HELD: [Self; 6] = [
        Self::Held { alone: false, unclipped: false, spread: false },
        Self::Held { alone: false, unclipped: true, spread: false },
        Self::Held { alone: false, unclipped: false, spread: true },
        Self::Held { alone: false, unclipped: true, spread: true },
        Self::Held { alone: true, unclipped: false, spread: false },
        Self::Held { alone: true, unclipped: true, spread: false },
    ];

    /// Of how many of a tile's units the loss has tables.
    fn table_units(self, kernel: Kernel) -> u32 {
        match self {
            Self::Table => 1,
            Self::Held { spread: true, .. } if kernel.sums_loss() => TABLE_UNITS,
            _ => 0,
        }
    }

    /// Whether invocations hold their slots, and may write their codes in vectors.
    pub(super) fn is_held(self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

impl Program {
    /// A kernel composed for a scheme and an input.
    pub fn new(kernel: Kernel, scheme: Scheme, input: ElemType) -> Self {
        let codec = if kernel.sees_codes() { Codec::of(scheme) } else { Codec::ALL[0] };
        let input = if kernel.sees_input() { input } else { ElemType::F32 };
        let shape = if kernel.is_once() { Shape::Fours } else { Shape::Any };
        Self { kernel, codec, input, batched: false, shape }
    }

    /// Whether the loss of such codes may come from tables.
    pub(super) fn has_tables(self) -> bool {
        self.kernel.sums_loss() && self.codec.bits() < 16
    }

    /// The same for other chunks.
    pub(super) fn shape(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    /// The same for a batch of tensors.
    pub(super) fn batched(self, batched: bool) -> Self {
        Self { batched, ..self }
    }

    /// Every program that a call or a recording can run.
    pub fn all() -> Vec<Self> {
        let mut all = vec![];
        for &kernel in Kernel::ALL {
            for &codec in if kernel.sees_codes() { Codec::ALL } else { &Codec::ALL[..1] } {
                // A cast has no range to find, and its loss is summed apart.
                let skipped = matches!(
                    kernel,
                    Kernel::QuantizeLoss | Kernel::QuantizeOnce | Kernel::QuantizeOnceLoss | Kernel::FakeQuantizeOnce
                );
                if codec.is_cast() && skipped {
                    continue;
                }
                for &input in if kernel.sees_input() { ElemType::ALL } else { &ElemType::ALL[..1] } {
                    for shape in kernel.shapes(codec) {
                        all.push(Self { kernel, codec, input, batched: false, shape });
                        if kernel.is_batched() {
                            all.push(Self { kernel, codec, input, batched: true, shape });
                        }
                    }
                }
            }
        }
        all
    }

    /// The entry point's name, which is that of a file too.
    pub fn entry_point(self) -> &'static str {
        if self.shape.is_held() { "held" } else { self.kernel.entry_point() }
    }

    /// The program's name, in labels.
    pub fn label(self) -> String {
        let mut label = self.kernel.label().to_owned();
        if self.kernel.sees_codes() {
            write!(label, "+{:?}", self.codec).expect("writing to a string cannot fail");
        }
        if self.kernel.sees_input() {
            write!(label, "+{}", self.input.name()).expect("writing to a string cannot fail");
        }
        match self.shape {
            Shape::Fours if !self.kernel.is_once() => label.push_str("+fours"),
            Shape::Table => label.push_str("+table"),
            Shape::Several => label.push_str("+several"),
            Shape::Held { alone, unclipped, spread } => {
                label.push_str(if alone { "+alone" } else { "+held" });
                label.push_str(if spread { "+spread" } else { "" });
                label.push_str(if unclipped { "+unclipped" } else { "" });
            }
            _ => {}
        }
        if self.batched {
            label.push_str("+batch");
        }
        label
    }
}

/// Runs shorter than this are not traversed as rows when they are reduced.
pub(super) const MIN_RUN: u32 = 64;
/// The most range units of a tile that is quantized in one pass.
pub(super) const ONCE_UNITS: u32 = 128;
/// The most slots of such a tile; `unit_in_tile` is proven for twice as many.
pub(super) const ONCE_ELEMS: u32 = 1 << 14;
/// The slots that an invocation holds.
pub(super) const HELD_ELEMS: u32 = 32;
/// The most units of such a tile for which the loss has tables, which cost as much as some elements each.
pub(super) const TABLE_UNITS: u32 = 4;
/// The slots that a tile has at least, where units are short.
pub(super) const ONCE_LEAST_ELEMS: u32 = 1 << 12;
/// Words per range unit in the buffer of recipes: what quantize needs of a scale.
pub const RECIPE_WORDS: usize = 7;
/// The counters of a chunk, in order.
pub(super) const TALLIES: [&str; 5] =
    ["NAN_ELEMS", "INF_ELEMS", "CLIPPED_ELEMS", "EXCLUDED_ELEMS", "NONFINITE_OUT_ELEMS"];
/// Words per range unit in the buffer of the loss's sums; the last are unused.
pub(super) const LOSS_WORDS: usize = 16;
/// Words of a run's slot in workgroup memory.
const SLOT_WORDS: u32 = 13;
/// Where the sums stand among a unit's words.
pub(super) const MAX_AT: usize = 0;
pub(super) const ABS: Range<usize> = 1..4;
pub(super) const NOISE: Range<usize> = 4..8;
pub(super) const CODES: Range<usize> = 8..11;
pub(super) const CROSS: Range<usize> = 11..14;

const FLOAT: &str = include_str!("../../shaders/exact/float.wgsl");
const CODE: &str = include_str!("../../shaders/exact/code.wgsl");
const SCALE: &str = include_str!("../../shaders/exact/scale.wgsl");
const GRID: &str = include_str!("../../shaders/exact/loss.wgsl");
const WIDEN: &str = include_str!("../../shaders/exact/widen.wgsl");
const NARROW: &str = include_str!("../../shaders/exact/narrow.wgsl");
const OBSERVE: &str = include_str!("../../shaders/exact/observe.wgsl");
const PARAMS: &str = include_str!("../../shaders/params.wgsl");
const ONE: &str = include_str!("../../shaders/one.wgsl");
const BATCH: &str = include_str!("../../shaders/batch.wgsl");
const UNIT: &str = include_str!("../../shaders/unit.wgsl");
const TRAVERSE: &str = include_str!("../../shaders/traverse.wgsl");
const FOURS: &str = include_str!("../../shaders/fours.wgsl");
const HELD: &str = include_str!("../../shaders/held.wgsl");
const HELD_VECTORS: &str = include_str!("../../shaders/held_vectors.wgsl");
const HELD_WORDS: &str = include_str!("../../shaders/held_words.wgsl");
const HELD_VALUES: &str = include_str!("../../shaders/held_values.wgsl");
const ROWS: &str = include_str!("../../shaders/rows.wgsl");
const VECTORS: &str = include_str!("../../shaders/vectors.wgsl");
const COLUMNS: &str = include_str!("../../shaders/columns.wgsl");
const PACK: &str = include_str!("../../shaders/pack.wgsl");
const TALLY: &str = include_str!("../../shaders/tally.wgsl");
const LOSS_SUMS: &str = include_str!("../../shaders/loss_sums.wgsl");
const NO_LOSS: &str = include_str!("../../shaders/no_loss.wgsl");
const ONCE: &str = include_str!("../../shaders/once.wgsl");
const TWICE: &str = include_str!("../../shaders/twice.wgsl");
const QUANTIZE: &str = include_str!("../../shaders/quantize.wgsl");
const VALUES: &str = include_str!("../../shaders/values.wgsl");
const FAKE_QUANTIZE: &str = include_str!("../../shaders/fake_quantize.wgsl");
const ABS_ERROR: &str = include_str!("../../shaders/abs_error.wgsl");

impl Kernel {
    /// Every kernel.
    pub const ALL: &'static [Self] = &[
        Self::Clear,
        Self::MinMax,
        Self::Observe,
        Self::Scale,
        Self::Quantize,
        Self::QuantizeLoss,
        Self::QuantizeOnce,
        Self::QuantizeOnceLoss,
        Self::FakeQuantize,
        Self::FakeQuantizeOnce,
        Self::Dequantize,
        Self::AbsError,
        Self::AbsErrorStore,
        Self::Loss,
    ];

    /// The entry point's name, which is the file's too, but where invocations hold their slots.
    fn entry_point(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::MinMax => "min_max",
            Self::Observe => "observe",
            Self::Scale => "scale",
            Self::Quantize | Self::QuantizeLoss | Self::QuantizeOnce | Self::QuantizeOnceLoss => "quantize",
            Self::FakeQuantize | Self::FakeQuantizeOnce => "fake_quantize",
            Self::Dequantize => "dequantize",
            Self::AbsError | Self::AbsErrorStore => "abs_error",
            Self::Loss => "loss",
        }
    }

    /// The variant's name, in labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::QuantizeLoss => "quantize_loss",
            Self::QuantizeOnce => "quantize_once",
            Self::QuantizeOnceLoss => "quantize_once_loss",
            Self::FakeQuantizeOnce => "fake_quantize_once",
            Self::AbsErrorStore => "abs_error_store",
            _ => self.entry_point(),
        }
    }

    /// Whether it writes what is bound there.
    pub(super) fn writes(self, binding: u32) -> bool {
        match self {
            Self::Clear => binding == 1,
            Self::MinMax | Self::Observe => binding == 3,
            Self::Scale => binding > 1,
            Self::Quantize | Self::FakeQuantize => matches!(binding, 1 | 4),
            Self::QuantizeLoss => matches!(binding, 1 | 4 | 5),
            Self::QuantizeOnce | Self::FakeQuantizeOnce => matches!(binding, 1 | 3 | 4 | 6),
            Self::QuantizeOnceLoss => matches!(binding, 1 | 3..=6),
            Self::Dequantize => binding == 4,
            Self::AbsError | Self::AbsErrorStore => matches!(binding, 5 | 6),
            Self::Loss => matches!(binding, 1 | 5),
        }
    }

    /// Whether recordings of a batch run it: neither the loss, which would bind one buffer too many, nor what gathers
    /// ranges over batches of data.
    fn is_batched(self) -> bool {
        !matches!(
            self,
            Self::Observe
                | Self::QuantizeLoss
                | Self::QuantizeOnceLoss
                | Self::AbsError
                | Self::AbsErrorStore
                | Self::Loss
        )
    }

    /// Whether it counts what is out of the ordinary.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Loss) || self.rank() == 3 && self != Self::Dequantize
    }

    /// Whether it comes after those of a lower rank, in every operation.
    pub(super) fn rank(self) -> u32 {
        match self {
            Self::Clear => 0,
            Self::MinMax => 1,
            Self::Observe | Self::Scale => 2,
            Self::AbsError | Self::AbsErrorStore => 4,
            Self::Loss => 5,
            _ => 3,
        }
    }

    fn sees_codes(self) -> bool {
        !matches!(self, Self::Clear | Self::MinMax | Self::Observe | Self::Scale)
    }

    fn sees_input(self) -> bool {
        !matches!(self, Self::Clear | Self::Observe | Self::Scale | Self::Dequantize)
    }

    /// Whether there is a form of it for chunks of vectors.
    pub(super) fn takes_fours(self) -> bool {
        self.is_once()
            || matches!(
                self,
                Self::MinMax | Self::Quantize | Self::QuantizeLoss | Self::FakeQuantize | Self::Dequantize
            )
    }

    /// Whether there is a form of it for tiles of several units.
    pub(super) fn takes_several(self) -> bool {
        matches!(self, Self::Quantize | Self::FakeQuantize | Self::Dequantize)
    }

    /// The chunks that there are forms of it for.
    fn shapes(self, codec: Codec) -> Vec<Shape> {
        let mut shapes = vec![];
        if !self.is_once() {
            shapes.push(Shape::Any);
        }
        if self.takes_fours() {
            shapes.push(Shape::Fours);
        }
        if self == Self::QuantizeLoss && codec.bits() < 16 {
            shapes.push(Shape::Table);
        }
        if self.takes_several() {
            shapes.push(Shape::Several);
        }
        if self.is_once() {
            let exists = |shape: &Shape| {
                let Shape::Held { unclipped, spread, .. } = *shape else { return true };
                codec.bits() < 16 || !(unclipped || spread && self.sums_loss())
            };
            shapes.extend(Shape::HELD.into_iter().filter(exists));
        }
        shapes
    }

    /// Whether it sums the loss with the codes.
    pub(super) fn sums_loss(self) -> bool {
        matches!(self, Self::QuantizeLoss | Self::QuantizeOnceLoss)
    }

    fn writes_codes(self) -> bool {
        matches!(self, Self::Quantize | Self::QuantizeLoss | Self::QuantizeOnce | Self::QuantizeOnceLoss)
    }

    /// Whether it writes values, which it does in whole vectors where it can.
    pub(super) fn writes_values(self) -> bool {
        matches!(self, Self::FakeQuantize | Self::FakeQuantizeOnce | Self::Dequantize)
    }

    /// Whether it reduces per range unit, so that it has another way with short runs.
    fn reduces(self) -> bool {
        matches!(self, Self::MinMax | Self::AbsError | Self::AbsErrorStore | Self::Loss)
    }

    /// Whether it quantizes in one pass.
    pub(super) fn is_once(self) -> bool {
        matches!(self, Self::QuantizeOnce | Self::QuantizeOnceLoss | Self::FakeQuantizeOnce)
    }

    /// Blocks of eight slots per invocation: reductions take more, for fewer atomics.
    pub(super) fn blocks(self, workgroup: u32) -> u32 {
        match self {
            Self::MinMax => 8,
            // A bit of a word for each of an invocation's vectors, which come by four.
            _ if self.is_once() => (ONCE_ELEMS / 8 / workgroup).clamp(2, 16) & !1,
            // Where each costs the same, more of them share what a workgroup does once.
            Self::Quantize | Self::FakeQuantize | Self::Dequantize => 4,
            // Sums of more elements do not fit in a word.
            Self::QuantizeLoss => 16,
            _ => 2,
        }
    }

    /// The most runs of a tile: two to a row of more than MIN_RUN, where the last run is short. With the loss, longer tiles
    /// are for longer runs.
    pub(super) fn slots(self, workgroup: u32) -> u32 {
        let blocks = if self == Self::QuantizeLoss { Self::Loss.blocks(workgroup) } else { self.blocks(workgroup) };
        8 * blocks * workgroup / MIN_RUN * 2 + 3
    }

    /// The slots of a workgroup's tile.
    pub(super) fn tile_elems(self, workgroup: u32) -> u32 {
        let elems = 8 * self.blocks(workgroup) * workgroup;
        if self.is_once() { elems.min(ONCE_ELEMS) } else { elems }
    }

    fn fragments(self, shape: Shape) -> &'static [&'static str] {
        match self {
            Self::QuantizeOnce | Self::FakeQuantizeOnce if shape.is_held() => &[TALLY, UNIT, NO_LOSS, HELD],
            Self::QuantizeOnceLoss if shape.is_held() => &[TALLY, UNIT, LOSS_SUMS, HELD],
            Self::Clear => &[include_str!("../../shaders/clear.wgsl")],
            Self::MinMax => &[include_str!("../../shaders/min_max.wgsl")],
            Self::Observe => &[OBSERVE, include_str!("../../shaders/observe.wgsl")],
            Self::Scale => &[UNIT, include_str!("../../shaders/scale.wgsl")],
            Self::Quantize => &[TALLY, TWICE, NO_LOSS, QUANTIZE],
            Self::QuantizeLoss => &[TALLY, TWICE, LOSS_SUMS, QUANTIZE],
            Self::QuantizeOnce => &[TALLY, UNIT, NO_LOSS, QUANTIZE],
            Self::QuantizeOnceLoss => &[TALLY, UNIT, LOSS_SUMS, QUANTIZE],
            Self::FakeQuantize => &[TALLY, TWICE, FAKE_QUANTIZE],
            Self::FakeQuantizeOnce => &[TALLY, UNIT, NO_LOSS, FAKE_QUANTIZE],
            Self::Dequantize => &[include_str!("../../shaders/dequantize.wgsl")],
            Self::AbsError | Self::AbsErrorStore => &[ABS_ERROR],
            Self::Loss => &[TALLY, LOSS_SUMS, include_str!("../../shaders/loss.wgsl")],
        }
    }
}

/// The most workgroup memory that a kernel takes: the loss's, with its sums for each run of a tile.
pub(super) fn workgroup_bytes(workgroup: u32) -> u32 {
    let slots = Kernel::Loss.slots(workgroup).max(ONCE_UNITS);
    4 * slots * SLOT_WORDS
}

fn input_fragment(input: ElemType) -> &'static str {
    match input {
        ElemType::F32 => include_str!("../../shaders/input/f32.wgsl"),
        ElemType::F16 => include_str!("../../shaders/input/f16.wgsl"),
        ElemType::Bf16 => include_str!("../../shaders/input/bf16.wgsl"),
        ElemType::F64 => include_str!("../../shaders/input/f64.wgsl"),
    }
}

/// The WGSL text of a program, as the device gets it.
pub fn shader_source(program: Program, workgroup: u32) -> String {
    let Program { kernel, codec, input, batched, shape } = program;
    let mut text = String::new();
    let mut define = |name: &str, value: &dyn std::fmt::Display, suffix: &str| {
        writeln!(text, "const {name} = {value}{suffix};").expect("writing to a string cannot fail");
    };
    define("WORKGROUP", &workgroup, "u");
    define("BLOCKS", &kernel.blocks(workgroup), "u");
    define("SLOTS", &kernel.slots(workgroup), "u");
    define("ONCE", &kernel.is_once(), "");
    define("ONCE_UNITS", &ONCE_UNITS, "u");
    define("PAIRS", &(codec.bits() == 4 && kernel.writes_codes()), "");
    define("CODE_BITS", &codec.bits(), "u");
    define("FIELD", &((1u32 << codec.bits()) - 1), "u");
    define("HALF", &(codec == Codec::F16), "");
    define("FUSED", &kernel.sums_loss(), "");
    define("ALONE", &matches!(shape, Shape::Held { alone: true, .. }), "");
    define("SPREAD", &matches!(shape, Shape::Held { spread: true, .. }), "");
    define("UNCLIPPED", &matches!(shape, Shape::Held { unclipped: true, .. }), "");
    define("SEVERAL", &(shape == Shape::Several), "");
    define("TABLE_UNITS", &shape.table_units(kernel), "u");
    define("STORE_ERRORS", &(kernel == Kernel::AbsErrorStore), "");
    define("LOSS_WORDS", &LOSS_WORDS, "u");
    define("MAX_AT", &MAX_AT, "u");
    for (name, words) in [("ABS_AT", ABS), ("NOISE_AT", NOISE), ("CODES_AT", CODES), ("CROSS_AT", CROSS)] {
        define(name, &words.start, "u");
    }
    define("SLOT_WORDS", &SLOT_WORDS, "u");
    define("TALLIES", &TALLIES.len(), "u");
    for (i, name) in TALLIES.iter().enumerate() {
        define(name, &i, "u");
    }
    let mut fragments = vec![PARAMS, if batched { BATCH } else { ONE }];
    // A fragment that a kernel has no use for is left out, so that what is tested is what runs.
    if kernel != Kernel::Clear {
        fragments.push(FLOAT);
    }
    if !matches!(kernel, Kernel::Clear | Kernel::MinMax | Kernel::Observe) {
        fragments.push(CODE);
    }
    if kernel == Kernel::Scale || kernel.is_once() {
        fragments.push(SCALE);
    }
    if !matches!(kernel, Kernel::Clear | Kernel::Observe | Kernel::Scale) {
        fragments.extend(match shape {
            Shape::Held { .. } if kernel.writes_values() => &[HELD_VALUES][..],
            Shape::Held { spread: true, .. } => &[HELD_WORDS],
            Shape::Held { spread: false, .. } => &[HELD_VECTORS],
            Shape::Fours if kernel.is_once() => &[FOURS, ONCE],
            Shape::Fours | Shape::Table | Shape::Several => &[FOURS],
            Shape::Any if kernel.reduces() => &[TRAVERSE, COLUMNS],
            Shape::Any => &[TRAVERSE, ROWS],
        });
    }
    if kernel.writes_values() && !shape.is_held() {
        fragments.push(if shape == Shape::Any { VALUES } else { VECTORS });
    }
    if kernel.sees_codes() {
        fragments.extend([GRID, PACK]);
        fragments.push(if codec.is_cast() {
            include_str!("../../shaders/codec/cast.wgsl")
        } else {
            include_str!("../../shaders/codec/int.wgsl")
        });
    }
    if codec.is_cast() {
        fragments.push(NARROW);
    }
    if codec.is_cast() || kernel.sees_input() && input != ElemType::F32 {
        fragments.push(WIDEN);
    }
    if kernel.sees_input() {
        fragments.push(input_fragment(input));
    }
    for fragment in fragments.iter().chain(kernel.fragments(shape)) {
        text.push('\n');
        text.push_str(fragment);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_writes_is_what_its_text_says() {
        for program in Program::all() {
            let text = shader_source(program, 64);
            let mut bound = 0;
            for declared in text.split("@binding(").skip(1).filter(|declared| declared.contains("var<storage")) {
                let (binding, rest) = declared.split_once(')').unwrap();
                let Some(access) = rest.trim_start().strip_prefix("var<storage, ") else { continue };
                let binding = binding.parse().unwrap();
                let writes = access.starts_with("read_write");
                assert_eq!(program.kernel.writes(binding) && binding > 0, writes, "{} {binding}", program.label());
                bound += 1;
            }
            assert!(bound > 0, "{}", program.label());
        }
    }
}
