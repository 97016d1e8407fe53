//! `wgpu-quant devices`

use super::args::DevicesArgs;
use super::table::{self, Align};
use super::{Outcome, printable, report};
use serde::Serialize;
use wgpu_quant::{DeviceInfo, Result, devices};

#[derive(Debug, Serialize)]
struct Listing {
    version: u32,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct Device {
    index: Option<usize>,
    name: String,
    backend: String,
    r#type: String,
    driver: String,
}

pub(crate) fn run(args: &DevicesArgs) -> Result<Outcome> {
    let devices: Vec<_> = devices().into_iter().map(device).collect();
    let text = if args.json { report::json(&Listing { version: 1, devices })? } else { to_text(&devices) };
    Ok(report::done(text))
}

fn device(info: DeviceInfo) -> Device {
    let DeviceInfo { index, name, backend, device_type, driver, .. } = info;
    Device { index, name, backend, r#type: device_type, driver }
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
    ];
    let cells = |device: &Device| {
        let index = device.index.map(|i| i.to_string()).unwrap_or_default();
        [&index, &device.name, &device.backend, &device.r#type, &device.driver].map(|cell| printable(cell)).to_vec()
    };
    table::render(&columns, &devices.iter().map(cells).collect::<Vec<_>>())
}
