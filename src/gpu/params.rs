//! What every kernel is told; twin of `shaders/params.wgsl`.

use crate::quantized::Spec;
use crate::scheme::Rule;
use bytemuck::{Pod, Zeroable};

/// The uniform of every kernel; its meaning stands in `shaders/params.wgsl`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Params {
    /// Slots of the chunk.
    pub elems: u32,
    /// The range unit of its first slot.
    pub first_unit: u32,
    /// What is left of that slot's run, saturated.
    pub first_left: u32,
    /// Slots per run, saturated.
    pub run: u32,
    /// Range units of the tensor.
    pub units: u32,
    /// 0 for rows, 1 for run by run, the distance of an invocation's slots for columns.
    pub stride: u32,
    /// Slots per workgroup.
    pub tile_elems: u32,
    /// Range units per workgroup, where invocations hold their slots.
    pub tile_units: u32,
    /// What divides by `run` within a tile of a chunk of vectors.
    pub run_factor: u32,
    /// The bits that are dropped then.
    pub run_shift: u32,
    /// The slots of the first run before such a chunk.
    pub first_offset: u32,
    /// Where the chunk's counters begin.
    pub counters: u32,
    /// 1 when the scales are the caller's.
    pub given: u32,
    /// 1 when the loss will be summed with the codes.
    pub with_loss: u32,
    /// Slots per row where rows count, saturated; else 0.
    pub row_slots: u32,
    /// Elements among them.
    pub row_elems: u32,
    /// The distance of rows in what is read.
    pub row_pitch: u32,
    /// Runs per row where they end with it; else 0.
    pub row_units: u32,
    /// What is left of the first row, saturated.
    pub first_row_slots: u32,
    /// The elements among them.
    pub first_row_elems: u32,
    /// The runs among them.
    pub first_row_runs: u32,
    /// Where the first slot's element is read.
    pub first_at: u32,
    /// Where the second row begins in what is read.
    pub second_row_at: u32,
    /// The kind of rule.
    pub kind: u32,
    /// The smallest code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// What the range is divided by.
    pub divisor: u32,
    /// Its factor.
    pub divisor_factor: u32,
    /// What the largest magnitude is divided by.
    pub magnitude_divisor: u32,
    /// Its factor.
    pub magnitude_factor: u32,
    /// What stands in for a scale of 0.
    pub zero_scale: u32,
    /// The codes' sign, in place.
    pub sign_bit: u32,
    /// 1 of a scheme with zero points.
    pub has_zero_point: u32,
    /// 1 when the f16 cast saturates.
    pub saturate: u32,
    /// The averaging constant's bits, or 0.
    pub averaging: u32,
    /// Where the input begins in what is bound, in vectors of four elements.
    pub x_at: u32,
    /// Where given codes begin, in words.
    pub codes_at: u32,
    /// Where codes or values that are written begin, in words.
    pub out_at: u32,
    /// Where scales begin, in words.
    pub scales_at: u32,
    /// Where zero points begin, in words.
    pub zero_points_at: u32,
    /// Where ranges begin, in range units.
    pub ranges_at: u32,
    /// Where recipes begin, in range units.
    pub recipes_at: u32,
    /// Where the loss's words begin.
    pub losses_at: u32,
    /// Where |x' - x| begins, in words.
    pub errors_at: u32,
    /// Rows of the table that this is a row of.
    pub rows: u32,
    /// Its first workgroup.
    pub first_workgroup: u32,
}

impl Params {
    /// Whether no finite value is clipped by its unit's own scale, and codes have at most 127 steps.
    pub(super) fn unclipped(&self) -> bool {
        let over_last_code = f32::from_bits(self.magnitude_divisor) == self.qmax as f32;
        self.kind == Rule::ABSMAX && over_last_code && self.qmax <= 127
    }

    /// The numbers of a scheme; nothing of a tensor yet.
    pub(super) fn of(spec: &Spec) -> Self {
        let Rule { kind, qmin, qmax, divisor, divisor_factor, magnitude_divisor, magnitude_factor, zero_scale } =
            Rule::new(spec.scheme);
        let code = spec.scheme.code();
        Self {
            kind,
            qmin,
            qmax,
            divisor,
            divisor_factor,
            magnitude_divisor,
            magnitude_factor,
            zero_scale,
            sign_bit: if code.is_signed() { 1 << (code.bits() - 1) } else { 0 },
            has_zero_point: spec.scheme.has_zero_point().into(),
            saturate: spec.saturate.into(),
            ..Self::default()
        }
    }
}
