//! A plan bound to a caller's buffers, and its recording.

use super::job::Scopes;
use super::job::grid;
use super::params::Params;
use super::plan::{Plan, RECIPE_GRANULE, Step};
use super::role::{Role, refused};
use super::shader::{Kernel, Program, RECIPE_WORDS};
use super::stages::{Place, Space};
use crate::error::Result;
use crate::layout::saturate;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;

/// A [`Plan`] and the buffers that it works on.
#[derive(Debug)]
pub struct Bound {
    steps: Vec<(wgpu::ComputePipeline, wgpu::BindGroup, (u32, u32))>,
}

impl Bound {
    /// Records into a compute pass of its own. Creates no object of wgpu, submits nothing and waits for nothing.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record_timed(encoder, None);
    }

    /// The same, and the times of the pass's begin and end are written where the caller says.
    pub fn record_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let label = Some("wgpu-quant pass");
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes });
        self.record_in(&mut pass);
    }

    /// The same in a compute pass of the caller's. Its pipeline and its bind group 0 are others afterwards.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, bind_group, (x, y)) in &self.steps {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }

    /// How many dispatches a recording is.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }
}

/// A caller's buffers, by role: one each, or one per slice or tensor.
struct Given<'a>([Vec<(&'a wgpu::Buffer, u64)>; Role::ALL.len()]);

/// Bytes of a buffer that a role takes, and whether they are written.
type Held<'a> = (&'a wgpu::Buffer, Range<u64>, Role, bool);

/// Dispatches of one kernel that became one, and the windows that they bind.
struct Group<'a> {
    program: Program,
    pipeline: &'a wgpu::ComputePipeline,
    rows: Vec<Row<'a>>,
    windows: Vec<(u32, Space, &'a wgpu::Buffer, Range<u64>)>,
    workgroups: u64,
}

/// A dispatch among them, and the byte at which each of its places begins.
struct Row<'a> {
    step: &'a Step,
    starts: Vec<u64>,
}

impl Plan {
    /// Binds buffers, each with the byte at which what it holds begins.
    ///
    /// Every role that the plan [needs](Self::need) is given once; those of a batch but counts and scratch once per tensor,
    /// in order; the input of a tensor in slices once per slice, its output once or once per slice. Offsets may be
    /// multiples of what [`Need::offset_alignment_bytes`](super::Need::offset_alignment_bytes) says, even where the device binds at larger multiples only.
    /// Buffers are of usage `STORAGE`. What is written overlaps with nothing; and since wgpu allows no dispatch that reads
    /// a buffer and writes it, what a kernel reads and what it writes are to be different buffers.
    ///
    /// Tensors of a batch share dispatches where they lie within what the device binds at once, in the same buffers.
    ///
    /// # Errors
    /// [`Error::Binding`](crate::Error::Binding), which names the buffer, what was found and what is allowed; [`Error::OutOfMemory`](crate::Error::OutOfMemory) and
    /// [`Error::DeviceLost`](crate::Error::DeviceLost).
    pub fn bind(&self, buffers: &[(Role, &wgpu::Buffer, u64)]) -> Result<Bound> {
        let given = self.check(buffers)?;
        let groups = self.groups(&given)?;
        self.state.check_alive()?;
        let scopes = Scopes::open(&self.device, &self.state);
        let alignment = if self.batched {
            self.limits.min_storage_buffer_offset_alignment
        } else {
            self.limits.min_uniform_buffer_offset_alignment
        };
        let mut all = vec![];
        let mut at = vec![];
        for group in &groups {
            all.resize(all.len().next_multiple_of(alignment as usize), 0);
            let start = all.len();
            let mut first_workgroup = 0;
            for row in &group.rows {
                let params = Params { rows: saturate(group.rows.len()), first_workgroup, ..self.shifted(group, row) };
                all.extend_from_slice(bytemuck::bytes_of(&params));
                first_workgroup += saturate(usize::try_from(row.step.workgroups).unwrap_or(usize::MAX));
            }
            at.push(start as u64..all.len() as u64);
        }
        let table = scopes.buffer(&wgpu::BufferDescriptor {
            label: Some("wgpu-quant params"),
            size: (all.len().max(4) as u64).next_multiple_of(4),
            usage: if self.batched { wgpu::BufferUsages::STORAGE } else { wgpu::BufferUsages::UNIFORM },
            mapped_at_creation: true,
        });
        if let Ok(mut view) = table.get_mapped_range_mut(..all.len() as u64) {
            view.copy_from_slice(&all);
        }
        table.unmap();
        let binding = |binding, buffer, bytes: &Range<u64>| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: bytes.start,
                size: NonZeroU64::new(bytes.end - bytes.start),
            }),
        };
        let steps = groups.iter().zip(&at).map(|(group, at)| {
            let windows = group.windows.iter().map(|(number, _, buffer, window)| binding(*number, *buffer, window));
            let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&format!("wgpu-quant {}", group.program.label())),
                layout: &group.pipeline.get_bind_group_layout(0),
                entries: &std::iter::once(binding(0, &table, at)).chain(windows).collect::<Vec<_>>(),
            });
            Ok((group.pipeline.clone(), bind_group, grid(group.workgroups, self.workgroups_per_dimension)?))
        });
        let steps = steps.collect::<Result<_>>();
        scopes.check()?;
        Ok(Bound { steps: steps? })
    }

    /// Where a place of a tensor begins, and in which buffer.
    fn find<'a>(&self, given: &Given<'a>, tensor: usize, place: &Place) -> (&'a wgpu::Buffer, u64) {
        let role = self.operation.role(place.space);
        let entries = &given.0[role as usize];
        let start = place.bytes.start + if place.space == Space::Recipes { self.shared.recipes_start() } else { 0 };
        let slices = match role {
            Role::Input => &self.tensors[tensor].slices[0][..],
            Role::Output => &self.tensors[tensor].slices[1],
            _ => &[],
        };
        let (i, start) = match entries.len() {
            1 => (0, start),
            n if n == slices.len() => {
                let i = slices.partition_point(|&begin| begin <= start) - 1;
                (i, start - slices[i])
            }
            _ => (tensor, start),
        };
        (entries[i].0, entries[i].1 + start)
    }

    /// The dispatches, those of a batch together where they can be.
    fn groups<'a>(&'a self, given: &Given<'a>) -> Result<Vec<Group<'a>>> {
        let alignment = u64::from(self.limits.min_storage_buffer_offset_alignment);
        let most = self.limits.max_storage_buffer_binding_size;
        let mut groups: Vec<Group<'a>> = vec![];
        // The group that is being filled, by program.
        let mut open = HashMap::new();
        for step in &self.steps {
            let mut windows = vec![];
            let mut starts = vec![];
            for (binding, place) in &step.places {
                let (buffer, start) = self.find(given, step.tensor, place);
                // Recipes are counted from the beginning of the window.
                let back =
                    if place.space == Space::Recipes { place.bytes.start % RECIPE_GRANULE } else { start % alignment };
                // Whole words, of elements whole vectors: what is half bound cannot be read. Not beyond the buffer's end.
                let whole = if place.space == Space::Elems { self.vector_bytes(step.tensor).min(16) } else { 4 };
                let end = (start + place.bytes.end - place.bytes.start).next_multiple_of(whole).min(buffer.size());
                windows.push((*binding, place.space, buffer, start - back..end));
                starts.push(start);
            }
            let row = Row { step, starts };
            if self.batched
                && let Some(&i) = open.get(&step.program)
            {
                let group: &mut Group<'a> = &mut groups[i];
                let joined = group.windows.iter().zip(&windows).map(|((.., held, a), (.., buffer, b))| {
                    let window = a.start.min(b.start)..a.end.max(b.end);
                    (held == buffer && window.end - window.start <= most).then_some(window)
                });
                let workgroups = group.workgroups + step.workgroups;
                if let Some(joined) = joined.collect::<Option<Vec<_>>>()
                    && grid(workgroups, self.workgroups_per_dimension).is_ok()
                {
                    for (window, joined) in group.windows.iter_mut().zip(joined) {
                        window.3 = joined;
                    }
                    group.workgroups = workgroups;
                    group.rows.push(row);
                    continue;
                }
            }
            open.insert(step.program, groups.len());
            let (program, pipeline, workgroups) = (step.program, &step.pipeline, step.workgroups);
            groups.push(Group { program, pipeline, rows: vec![row], windows, workgroups });
        }
        for group in &groups {
            self.check_access(group)?;
        }
        Ok(groups)
    }

    /// Four elements of a tensor.
    fn vector_bytes(&self, tensor: usize) -> u64 {
        4 * self.tensors[tensor].elem_type.bytes() as u64
    }

    /// No dispatch may read a buffer that it writes.
    fn check_access(&self, group: &Group<'_>) -> Result<()> {
        let writes = |binding| group.program.kernel.writes(binding);
        for (binding, space, buffer, _) in &group.windows {
            let other = group.windows.iter().find(|other| other.2 == *buffer && writes(other.0) != writes(*binding));
            if let Some((_, other, ..)) = other {
                let (role, other) = (self.operation.role(*space), self.operation.role(*other));
                // The one that is written is named first.
                let (role, other) = if writes(*binding) { (role, other) } else { (other, role) };
                let message = format!(
                    "it is also the {other} buffer, and what a kernel reads and what it writes are to be different buffers"
                );
                return Err(refused(role, message));
            }
        }
        Ok(())
    }

    /// A row's parameters: how far behind the begin of what is bound each of its places begins.
    fn shifted(&self, group: &Group<'_>, row: &Row<'_>) -> Params {
        let step = row.step;
        let mut params = step.params;
        let mut seen = vec![];
        for (((binding, place), start), (.., window)) in step.places.iter().zip(&row.starts).zip(&group.windows) {
            // A place that stands in for another is bound twice.
            if seen.contains(&place.space) {
                continue;
            }
            seen.push(place.space);
            let bytes = usize::try_from(start - window.start).unwrap_or(usize::MAX);
            let words = saturate(bytes / 4);
            let mut first = |rest: u32| {
                // What is looked up row by row may begin anywhere; all else begins with a whole word or vector.
                params.first_at += rest;
                params.second_row_at = params.second_row_at.saturating_add(rest);
            };
            match place.space {
                _ if step.program.kernel == Kernel::Clear => params.out_at = words,
                Space::Elems => {
                    let elems = bytes / self.tensors[step.tensor].elem_type.bytes();
                    first(saturate(elems % 4));
                    params.x_at = saturate(elems / 4);
                }
                Space::Codes if !group.program.kernel.writes(*binding) => {
                    first(saturate(bytes % 4 * 8) / self.spec.scheme.code().bits());
                    params.codes_at = words;
                }
                Space::Codes | Space::Values => params.out_at = words,
                Space::Scales => params.scales_at = words,
                Space::ZeroPoints => params.zero_points_at = words,
                Space::Counts => params.counters += words,
                Space::Ranges => params.ranges_at = words / 2,
                Space::Recipes => params.recipes_at = words / saturate(RECIPE_WORDS),
                Space::LossSums => params.losses_at = words,
                Space::AbsErrors => params.errors_at = words,
                Space::Observed | Space::Unused => {}
            }
        }
        params
    }

    fn check<'a>(&self, buffers: &[(Role, &'a wgpu::Buffer, u64)]) -> Result<Given<'a>> {
        let mut given = Given(Default::default());
        let mut places = vec![];
        for &(role, buffer, offset) in buffers {
            let part = given.0[role as usize].len();
            given.0[role as usize].push((buffer, offset));
            if self.need(role).is_none() {
                return Err(refused(role, "this plan has none"));
            }
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(refused(role, format!("of usage {:?}, STORAGE is needed", buffer.usage())));
            }
            places.push((role, part, buffer, offset));
        }
        for role in Role::ALL.into_iter().filter(|&role| self.need(role).is_some()) {
            let allowed = self.parts(role);
            match given.0[role as usize].len() {
                0 => return Err(refused(role, "not given")),
                found if allowed.contains(&found) => {}
                found => {
                    let allowed = allowed.map(|n| n.to_string());
                    let allowed = if allowed[0] == allowed[1] { allowed[0].clone() } else { allowed.join(" or ") };
                    return Err(refused(role, format!("given {found} times, {allowed} allowed")));
                }
            }
        }
        let mut bytes = vec![];
        for (role, part, buffer, offset) in places {
            let need = self.need_of_part(role, part, given.0[role as usize].len());
            let alignment = need.offset_alignment_bytes;
            if offset % alignment != 0 {
                return Err(refused(role, format!("at byte {offset}, multiples of {alignment} are allowed")));
            }
            let left = buffer.size().saturating_sub(offset);
            if left < need.bytes || offset > buffer.size() {
                let message = format!("of {left} bytes from byte {offset} on, {} are needed", need.bytes);
                return Err(refused(role, message));
            }
            bytes.push((buffer, offset..offset + need.bytes, role, need.is_written));
        }
        bytes.sort_by(|(a, x, ..), (b, y, ..)| a.cmp(b).then(x.start.cmp(&y.start)));
        // The place that reaches furthest so far, and the written one that does.
        let mut furthest: [Option<&Held<'a>>; 2] = [None, None];
        for place in &bytes {
            let (buffer, at, role, is_written) = place;
            let meets = |other: &&Held<'a>| other.0 == *buffer && other.1.end > at.start;
            let other = if *is_written { furthest[0] } else { furthest[1] };
            if let Some((.., other, _)) = other.filter(|other| meets(other) && !at.is_empty()) {
                return Err(refused(*role, format!("its bytes {}..{} are {other} too", at.start, at.end)));
            }
            for (i, furthest) in furthest.iter_mut().enumerate() {
                let reaches = furthest.is_none_or(|f| f.0 != *buffer || f.1.end < at.end);
                if reaches && (i == 0 || *is_written) {
                    *furthest = Some(place);
                }
            }
        }
        Ok(given)
    }
}
