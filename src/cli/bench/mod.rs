//! `wgpu-quant bench`: this machine against copies of the same bytes.

mod adapter;
#[cfg(feature = "gpu")]
mod clock;
mod data;
mod figures;
mod files;
mod host;
#[cfg(feature = "gpu")]
mod kernels;
mod measure;
mod operation;
#[cfg(feature = "gpu")]
mod resident;

use super::args::{BenchArgs, Region};
use super::{Code, Outcome, output, report};
use adapter::Adapter;
use figures::{Figures, LEGEND, Size};
use measure::{By, Checked};
use operation::Operation;
use std::cell::OnceCell;
use std::time::{Duration, Instant, SystemTime};
use wgpu_quant::Result;
use wgpu_quant::file::NewFile;

/// Elements of a row.
const COLUMNS: usize = 4096;

/// From here on a tensor is too large to be written to a file for this.
const MOST_FILE_ELEMS: usize = 64 << 20;

/// The tensor beside which a batch and an odd length are measured, if there is one of its size.
const EXTRAS_ELEMS: usize = 16 << 20;

/// What is measured with a tensor.
struct Wanted<'a> {
    /// All where it is empty.
    regions: &'a [Region],
    operations: &'a [Operation],
    x: &'a [f32],
    shape: &'a [usize],
    /// Whether a batch and an odd length are, too.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "they are kernels'"))]
    extras: bool,
}

impl Wanted<'_> {
    fn has(&self, region: Region) -> bool {
        self.regions.is_empty() || self.regions.contains(&region)
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<Outcome> {
    let started = Instant::now();
    let to_stdout = args.json.as_deref() == Some("-".as_ref());
    let report_path = args.json.as_deref().filter(|_| !to_stdout);
    report_path.map_or(Ok(()), |path| output::check(path, &[], args.force))?;
    let report_file = report_path.map(|path| NewFile::create(path, args.force)).transpose()?;

    let mut notes = vec![];
    let adapter = Adapter::open(&args.device.name, &mut notes)?;
    let software = adapter.as_ref().is_some_and(|adapter| adapter.info().device_type == "cpu");
    let sizes: Vec<usize> = match (&args.sizes[..], &adapter) {
        ([], None) => vec![1, 16, 64],
        ([], Some(_)) if software => vec![1, 16],
        ([], Some(_)) => vec![1, 16, 64, 256],
        (given, _) => given.iter().map(|&mi| mi.into()).collect(),
    };
    let sizes: Vec<usize> = sizes.into_iter().map(|mi| mi << 20).collect();
    let extras = sizes.iter().find(|&&elems| elems >= EXTRAS_ELEMS).or(sizes.last()).copied();
    let largest_file = sizes.iter().filter(|&&elems| elems <= MOST_FILE_ELEMS).max().copied();

    let mut figures = Figures {
        version: 1,
        wgpu_quant: env!("CARGO_PKG_VERSION"),
        time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        cpu: cpu_name(),
        threads: rayon::current_num_threads(),
        device: adapter.as_ref().map(|adapter| adapter.info().clone().into()),
        software_adapter: software,
        start: adapter.as_ref().map(Adapter::start).transpose()?,
        sizes: vec![],
        wrong: vec![],
        notes,
    };
    let is_case = |what: &str| args.case.is_empty() || args.case.iter().any(|text| what.contains(text));
    let operations: Vec<_> = operation::all().into_iter().filter(|operation| is_case(&operation.what())).collect();
    let mut devices = vec![(By::Cpu, "cpu".to_owned())];
    devices.extend(adapter.as_ref().and_then(|adapter| Some((By::Gpu, adapter.info().index?.to_string()))));
    let all_elems: usize = sizes.iter().sum();
    let (mut until, seconds) = (started, f64::from(args.seconds));
    for &elems in &sizes {
        // Larger ones take longer, but not in proportion.
        let share = 0.5 / sizes.len() as f64 + 0.5 * elems as f64 / all_elems as f64;
        until += Duration::from_secs_f64(seconds * share);
        let (x, shape, folder) = (data::normal(elems), [elems / COLUMNS, COLUMNS], OnceCell::new());
        let extras = extras == Some(elems) && args.case.is_empty();
        let wanted = Wanted { regions: &args.only, operations: &operations, x: &x, shape: &shape, extras };
        let mut all = Checked::default();
        if wanted.has(Region::Host) {
            all.cases.extend(host::copies(&x));
            all.extend(host::cpu(&wanted)?);
        }
        if let Some(adapter) = &adapter {
            all.extend(adapter.cases(&wanted)?);
        }
        if wanted.has(Region::File) && is_case(files::WHAT) && largest_file == Some(elems) {
            let made = files::Folder::new(&x, &shape)?;
            all.cases.extend(files::cases(folder.get_or_init(|| made), elems, &devices));
        }
        let rows = measure::rounds(all.cases, args.rounds.into(), until)?;
        figures.sizes.push(Size::new(elems, &shape, measure::may_be_cached(elems), &rows));
        figures.wrong.extend(all.wrong.into_iter().map(|what| format!("{what}, {} Mi elements", elems >> 20)));
    }

    let json = report::json(&figures)?;
    if let Some(file) = report_file {
        file.write_at(0, json.as_bytes())?;
        file.commit()?;
    }
    let text = if to_stdout { json } else { figures.to_text() + LEGEND };
    let code = if figures.wrong.is_empty() { Code::Done } else { Code::Difference };
    Ok(Outcome { text, code })
}

fn cpu_name() -> String {
    let file = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = file.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}
