//! What is measured, on every path.

use wgpu_quant::{Granularity, LossDetail, Scheme, Spec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Ranges,
    Quantize,
    FakeQuantize,
    Dequantize,
}

/// A job, how it is specified, and what it has to read and write per element, at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) job: Job,
    pub(super) spec: Spec,
    pub(super) bytes_per_elem: f64,
}

impl Operation {
    pub(super) fn what(&self) -> String {
        let Spec { scheme, granularity, loss, .. } = self.spec;
        let job = match self.job {
            Job::Ranges => return format!("ranges per {granularity}"),
            Job::Quantize => "quantize",
            Job::FakeQuantize => "fake_quantize",
            Job::Dequantize => "dequantize",
        };
        let loss = if loss == LossDetail::None { "" } else { " + loss" };
        format!("{job} {scheme} per {granularity}{loss}")
    }
}

pub(super) fn all() -> Vec<Operation> {
    let int8 = Spec::new(Scheme::INT8_ABSMAX);
    let (row, group) = (Granularity::Channel(0), Granularity::Group(32));
    // The scale of a group is a 32nd of a word per element; those of rows and tensors do not show.
    let scale = 4.0 / 32.0;
    let operation = |job, spec, bytes_per_elem| Operation { job, spec, bytes_per_elem };
    vec![
        operation(Job::Ranges, int8, 4.0),
        operation(Job::Quantize, int8, 9.0),
        operation(Job::Quantize, int8.per(row), 5.0),
        operation(Job::Quantize, int8.per(group), 5.0 + scale),
        operation(Job::Quantize, Spec::new(Scheme::UINT8_AFFINE), 9.0),
        operation(Job::Quantize, Spec::new(Scheme::INT4_ABSMAX).per(group), 4.5 + scale),
        operation(Job::Quantize, int8.loss(LossDetail::Summary), 9.0),
        operation(Job::Quantize, int8.per(row).loss(LossDetail::Summary), 5.0),
        operation(Job::Quantize, int8.per(group).loss(LossDetail::Summary), 5.0 + scale),
        operation(Job::FakeQuantize, int8.per(row), 8.0),
        operation(Job::Dequantize, int8, 5.0),
        operation(Job::Dequantize, int8.per(row), 5.0),
    ]
}
