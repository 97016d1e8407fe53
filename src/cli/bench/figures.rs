//! What was measured, as tables and as JSON.

use super::super::args::Region;
use super::super::report::DeviceName;
use super::super::table::{self, Align};
use super::measure::{By, Row, yardsticks};
use clap::ValueEnum;
use serde::Serialize;

/// Everything, in the order of the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) version: u32,
    pub(super) wgpu_quant: &'static str,
    /// Seconds since 1970.
    pub(super) time: u64,
    pub(super) cpu: String,
    pub(super) threads: usize,
    /// Null where only the CPU path is measured.
    pub(super) device: Option<DeviceName>,
    pub(super) software_adapter: bool,
    pub(super) start: Option<Start>,
    pub(super) sizes: Vec<Size>,
    pub(super) wrong: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// What comes before the first result.
#[derive(Debug, Serialize)]
pub(super) struct Start {
    pub(super) device_seconds: f64,
    pub(super) first_call_seconds: f64,
    pub(super) second_call_seconds: f64,
}

/// A tensor's figures.
#[derive(Debug, Serialize)]
pub(super) struct Size {
    elems: usize,
    shape: Vec<usize>,
    /// Whether the adapter's caches may hold what its kernels read.
    may_be_cached: bool,
    regions: Vec<RegionFigures>,
}

#[derive(Debug, Serialize)]
struct RegionFigures {
    region: Region,
    rounds: usize,
    yardstick: String,
    yardstick_spread: f64,
    /// Whether the yardstick was steady enough for the rest to mean something.
    reliable: bool,
    cases: Vec<CaseFigures>,
}

#[derive(Debug, Serialize)]
struct CaseFigures {
    case: String,
    by: &'static str,
    median_seconds: f64,
    best_seconds: f64,
    spread: f64,
    device_median_seconds: Option<f64>,
    clocks_agree: Option<bool>,
    bytes: f64,
    bytes_per_second: f64,
    /// Time by the yardstick's, and the bytes by the yardstick's bytes: what it would be at that rate.
    by_yardstick: f64,
    floor: f64,
    /// Time by that of the fastest kernel that does the same without being exact.
    by_float: Option<f64>,
    seconds: Vec<f64>,
}

/// A yardstick that varies by more says that the machine was busy.
const STEADY: f64 = 0.2;

impl Size {
    pub(super) fn new(elems: usize, shape: &[usize], may_be_cached: bool, rows: &[Row]) -> Self {
        let yardsticks = yardsticks(rows);
        let region = |region: Region| {
            let yardstick = *yardsticks.get(&region)?;
            let cases = rows.iter().filter(|row| row.label.region == region);
            let spread = yardstick.spread();
            Some(RegionFigures {
                region,
                rounds: yardstick.samples.len(),
                yardstick: yardstick.label.what.clone(),
                yardstick_spread: spread,
                reliable: spread <= STEADY,
                cases: cases.map(|row| CaseFigures::new(row, yardstick, fastest_float(row, rows))).collect(),
            })
        };
        let regions = Region::value_variants().iter().copied().filter_map(region).collect();
        Self { elems, shape: shape.to_vec(), may_be_cached, regions }
    }
}

fn fastest_float<'a>(row: &Row, rows: &'a [Row]) -> Option<&'a Row> {
    let is_peer = |other: &&Row| matches!(other.label.by, By::Float(_)) && other.label.what == row.label.what;
    let is_kernel = row.label.by == By::Gpu && row.label.region == Region::Kernels;
    rows.iter().filter(|other| is_kernel && is_peer(other)).min_by(|a, b| a.median().total_cmp(&b.median()))
}

impl CaseFigures {
    fn new(row: &Row, yardstick: &Row, float: Option<&Row>) -> Self {
        let (median, label) = (row.median(), &row.label);
        Self {
            case: label.what.clone(),
            by: match label.by {
                By::Yardstick => "yardstick",
                By::Bound => "bound",
                By::Cpu => "cpu",
                By::Gpu => "adapter",
                By::Float(shape) => shape,
            },
            median_seconds: median,
            best_seconds: row.best(),
            spread: row.spread(),
            device_median_seconds: row.device_median(),
            clocks_agree: row.clocks_agree(),
            bytes: label.bytes,
            bytes_per_second: label.bytes / median,
            by_yardstick: row.by(yardstick),
            floor: label.bytes / yardstick.label.bytes,
            by_float: float.map(|float| row.by(float)),
            seconds: row.samples.iter().map(|sample| sample.wall).collect(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let apart = if self.clocks_agree == Some(false) { " !" } else { "" };
        vec![
            self.case.clone(),
            self.by.to_owned(),
            millis(self.median_seconds),
            millis(self.best_seconds),
            format!("{:.0} %", self.spread * 100.0),
            self.device_median_seconds.map(|seconds| millis(seconds) + apart).unwrap_or_default(),
            format!("{:.1}", self.bytes_per_second / 1e9),
            format!("{:.2}", self.by_yardstick),
            format!("{:.2}", self.floor),
            self.by_float.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        ]
    }
}

fn millis(seconds: f64) -> String {
    let millis = seconds * 1e3;
    if millis < 10.0 { format!("{millis:.4}") } else { format!("{millis:.1}") }
}

impl Figures {
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("CPU: {}, {} threads\n", self.cpu, self.threads);
        if let Some(device) = &self.device {
            let kind = if self.software_adapter { "software adapter, not a GPU" } else { &device.r#type };
            text += &format!("adapter: {} ({}, {kind}, {})\n", device.name, device.backend, device.driver);
        }
        if let Some(Start { device_seconds, first_call_seconds, second_call_seconds }) = self.start {
            let [device, first, second] = [device_seconds, first_call_seconds, second_call_seconds].map(millis);
            text += &format!("start: device {device} ms, first call {first} ms, second call {second} ms\n");
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        for size in &self.sizes {
            for region in &size.regions {
                text.push('\n');
                text += &self.table(size, region);
            }
        }
        for what in &self.wrong {
            text += &format!("wrong, and not timed: {what}\n");
        }
        text
    }

    fn table(&self, size: &Size, region: &RegionFigures) -> String {
        const COLUMNS: [(&str, Align); 10] = [
            ("case", Align::Left),
            ("by", Align::Left),
            ("ms", Align::Right),
            ("best", Align::Right),
            ("spread", Align::Right),
            ("timestamps", Align::Right),
            ("GB/s", Align::Right),
            ("/ copy", Align::Right),
            ("floor", Align::Right),
            ("/ float", Align::Right),
        ];
        let is_kernels = region.region == Region::Kernels;
        let title = match region.region {
            Region::Kernels => "kernels on resident data, outputs reused",
            Region::Host => "host memory to host memory; outputs reused, the adapter's new",
            Region::File => "file to file, from a warm page cache",
        };
        let shape = size.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let mut text = format!("{shape} f32, {title}; {} rounds\n", region.rounds);
        if is_kernels && self.software_adapter {
            text += "a software adapter: these are no figures of a GPU\n";
        }
        if is_kernels && size.may_be_cached {
            text += "caches may hold all of it\n";
        }
        if !region.reliable {
            let spread = region.yardstick_spread * 100.0;
            text += &format!("unreliable: {} varies by {spread:.0} %\n", region.yardstick);
        }
        text + &table::render(&COLUMNS, &region.cases.iter().map(CaseFigures::cells).collect::<Vec<_>>())
    }
}

/// What the columns mean.
pub(super) const LEGEND: &str = "
ms, best: the middle round and the fastest; spread: the slowest over the fastest; GB/s: bytes that have to move, in the
middle round; / copy: time over that of the copy in the same round; floor: those bytes over the copy's; timestamps: the
adapter's own clock, with ! where it is more than 10 % off; / float: over the fastest kernel that is not exact
";
