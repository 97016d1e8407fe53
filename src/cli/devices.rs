//! `wgpu-quant devices`

use super::args::DevicesArgs;
use super::report::{self, DeviceName};
use super::table::{self, Align};
use super::{Outcome, printable};
use serde::Serialize;
use wgpu_quant::{DeviceInfo, Result, devices};

#[derive(Debug, Serialize)]
struct Listing {
    version: u32,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    name: DeviceName,
    limits: Option<Limits>,
}

#[derive(Debug, Serialize)]
struct Limits {
    max_buffer_bytes: u64,
    max_binding_bytes: u64,
    max_workgroup: u32,
    max_workgroups_per_dimension: u32,
    workgroup_memory_bytes: u32,
}

pub(crate) fn run(args: &DevicesArgs) -> Result<Outcome> {
    let devices: Vec<_> = devices().into_iter().map(device).collect();
    let text = if args.json { report::json(&Listing { version: 1, devices })? } else { to_text(&devices) };
    Ok(report::done(text))
}

fn device(info: DeviceInfo) -> Device {
    let limits = info.limits.map(|limits| Limits {
        max_buffer_bytes: limits.max_buffer_bytes,
        max_binding_bytes: limits.max_binding_bytes,
        max_workgroup: limits.max_workgroup,
        max_workgroups_per_dimension: limits.max_workgroups_per_dimension,
        workgroup_memory_bytes: limits.workgroup_memory_bytes,
    });
    Device { name: info.into(), limits }
}

fn to_text(devices: &[Device]) -> String {
    if devices.is_empty() {
        return format!("no adapter was found; computing runs on the {}\n", DeviceInfo::cpu());
    }
    let columns = [
        ("index", Align::Right),
        ("name", Align::Left),
        ("backend", Align::Left),
        ("type", Align::Left),
        ("driver", Align::Left),
        ("max buffer", Align::Right),
        ("max binding", Align::Right),
        ("max workgroup", Align::Right),
    ];
    let cells = |device: &Device| {
        let DeviceName { index, name, backend, r#type, driver } = &device.name;
        let index = index.map(|i| i.to_string()).unwrap_or_default();
        let mut cells: Vec<String> = [&index, name, backend, r#type, driver].map(|cell| printable(cell)).into();
        let limit = |of: fn(&Limits) -> String| device.limits.as_ref().map(of).unwrap_or_default();
        cells.push(limit(|limits| table::bytes(limits.max_buffer_bytes)));
        cells.push(limit(|limits| table::bytes(limits.max_binding_bytes)));
        cells.push(limit(|limits| limits.max_workgroup.to_string()));
        cells
    };
    table::render(&columns, &devices.iter().map(cells).collect::<Vec<_>>())
}
