//! Recordings of our own: what the self-test compares of what engines record.

use super::Gpu;
use super::job::Job;
use super::role::{Layout, Operation, Role};
use crate::error::Result;
use crate::quantized::{QuantizeOutput, Quantized, Spec, code_bytes};
use crate::tensor::Tensor;

/// The roles that are read back.
const READ: [Role; 4] = [Role::Output, Role::Scales, Role::ZeroPoints, Role::Counts];

impl Gpu {
    /// [`quantize`](Self::quantize) without the loss, of dense tensors, as one recorded batch.
    pub(crate) fn quantize_recorded(&self, tensors: &[Tensor<'_>], spec: &Spec) -> Result<Vec<QuantizeOutput>> {
        let layouts: Vec<Layout> = tensors.iter().map(|x| Layout::new(x.shape(), x.elem_type())).collect();
        let plan = self.plan_of(Operation::Quantize, spec, &layouts)?;
        let mut job = Job::new(self)?;
        let mut input = vec![];
        for (x, offset) in tensors.iter().zip(plan.offsets(Role::Input)) {
            input.resize(usize::try_from(offset).unwrap_or(usize::MAX), 0);
            input.extend_from_slice(x.bytes());
        }
        input.resize(plan.packed_bytes(Role::Input), 0);
        let input = job.upload("input", &input)?;
        let scratch = job.buffer("scratch", plan.packed_bytes(Role::Scratch))?;
        let mut buffers = vec![(Role::Input, input), (Role::Scratch, scratch)];
        for role in READ.into_iter().filter(|&role| plan.need(role).is_some()) {
            buffers.push((role, job.buffer("output", plan.packed_bytes(role))?));
        }
        let places = buffers
            .iter()
            .flat_map(|(role, buffer)| plan.offsets(*role).into_iter().map(move |offset| (*role, buffer, offset)));
        job.record(plan.bind(&places.collect::<Vec<_>>())?);
        let reads: Vec<(Role, usize)> =
            buffers[2..].iter().map(|(role, buffer)| (*role, job.read(buffer, plan.packed_bytes(*role)))).collect();
        let finished = self.wait(job.submit()?)?;

        let read = |role| match reads.iter().find(|read| read.0 == role) {
            Some(&(_, read)) => finished.concat::<u8>(&[read]),
            None => Ok(vec![]),
        };
        let [codes, scales, zero_points, counts] = READ.map(read);
        let (codes, scales, zero_points, counts) = (codes?, scales?, zero_points?, counts?);
        let counts: Vec<u32> = words(&counts, 0, counts.len());
        let start =
            |role, i: usize| plan.offsets(role).get(i).map_or(0, |&at| usize::try_from(at).unwrap_or(usize::MAX));
        let outputs = tensors.iter().enumerate().map(|(i, x)| {
            let units = spec.units(x.shape())?.units;
            let (codes_start, codes_bytes) = (start(Role::Output, i), code_bytes(x.shape(), spec.scheme.code())?);
            let tensor = Quantized::from_parts(
                spec.scheme,
                spec.granularity,
                x.shape().to_vec(),
                codes[codes_start..codes_start + codes_bytes].to_vec(),
                if scales.is_empty() { vec![] } else { words(&scales, start(Role::Scales, i), 4 * units) },
                if zero_points.is_empty() {
                    vec![]
                } else {
                    words(&zero_points, start(Role::ZeroPoints, i), 4 * units)
                },
            )?;
            Ok(QuantizeOutput::new(tensor, plan.counts_of(i, &counts), None))
        });
        outputs.collect()
    }
}

fn words<T: bytemuck::Pod>(bytes: &[u8], start: usize, len: usize) -> Vec<T> {
    bytes[start..start + len].chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}
