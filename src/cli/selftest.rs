//! `wgpu-quant selftest`

use super::args::SelftestArgs;
use super::report::{self, DeviceName};
use super::table::{self, Align};
use super::{Code, Outcome, printable};
use serde::Serialize;
use wgpu_quant::gpu::Select;
use wgpu_quant::selftest::{self, Difference, Selftest};
use wgpu_quant::{DeviceInfo, Error, Gpu, Result, Scheme};

#[derive(Debug, Serialize)]
struct Listing {
    version: u32,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    name: DeviceName,
    /// Null when the device could not run the test.
    exact: Option<bool>,
    cases: u64,
    words: u64,
    seconds: Option<f64>,
    kernels: Vec<KernelRow>,
    differences: Vec<DifferenceRow>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct KernelRow {
    kernel: &'static str,
    scheme: &'static str,
    cases: u64,
    words: u64,
    differing_words: u64,
}

#[derive(Debug, Serialize)]
struct DifferenceRow {
    kernel: &'static str,
    scheme: &'static str,
    case: String,
    output: &'static str,
    index: usize,
    input: String,
    found: String,
    expected: String,
    differing_words: u64,
}

pub(crate) fn run(args: &SelftestArgs) -> Result<Outcome> {
    let schemes = if args.scheme.is_empty() { Scheme::ALL } else { &args.scheme };
    let mut results = vec![];
    for (info, gpu) in adapters(&args.device)? {
        let result = gpu.and_then(|gpu| selftest::run(&gpu, schemes));
        results.push((info, result));
    }
    let wrong = |result: &Result<Selftest>| result.as_ref().is_ok_and(|report| !report.is_exact());
    let failed = |result: &Result<Selftest>| !matches!(result, Ok(_) | Err(Error::UnfitAdapter { .. }));
    let code = if results.iter().any(|(_, result)| wrong(result)) {
        Code::Difference
    } else if results.iter().any(|(_, result)| failed(result)) {
        Code::Failed
    } else {
        Code::Done
    };
    let text = if args.json {
        report::json(&Listing { version: 1, devices: results.into_iter().map(device).collect() })?
    } else {
        results.iter().map(|(info, result)| to_text(info, result)).collect::<Vec<_>>().join("\n")
    };
    Ok(Outcome { text, code })
}

/// The adapters that are asked for, each opened or with the reason why not.
fn adapters(wanted: &str) -> Result<Vec<(DeviceInfo, Result<Gpu>)>> {
    let select = match wanted {
        "all" => {
            let all = Gpu::open_all();
            // With none, to open the best tells why.
            return if all.is_empty() { Gpu::open(&Select::Best).map(|_| all) } else { Ok(all) };
        }
        "auto" => Select::from_env(),
        "cpu" => {
            let tried = "the CPU path is what adapters are compared with; name one, or `all`".to_owned();
            return Err(Error::NoAdapter { wanted: "the CPU path".to_owned(), tried });
        }
        named => Select::parse(named),
    };
    let gpu = Gpu::open(&select)?;
    Ok(vec![(gpu.info().clone(), Ok(gpu))])
}

fn device((info, result): (DeviceInfo, Result<Selftest>)) -> Device {
    let (report, error) = match result {
        Ok(report) => (Some(report), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let kernels = report.iter().flat_map(|report| &report.rows).map(|row| KernelRow {
        kernel: row.kernel.label(),
        scheme: row.scheme.name(),
        cases: row.cases,
        words: row.words,
        differing_words: row.differing_words,
    });
    Device {
        name: info.into(),
        exact: report.as_ref().map(Selftest::is_exact),
        cases: report.as_ref().map_or(0, Selftest::cases),
        words: report.as_ref().map_or(0, Selftest::words),
        seconds: report.as_ref().map(|report| report.seconds),
        kernels: kernels.collect(),
        differences: report.iter().flat_map(|report| &report.differences).map(difference).collect(),
        error,
    }
}

fn difference(difference: &Difference) -> DifferenceRow {
    let Difference { kernel, scheme, case, output, index, input, found, expected, differing_words, .. } = difference;
    DifferenceRow {
        kernel: kernel.label(),
        scheme: scheme.name(),
        case: case.clone(),
        output,
        index: *index,
        input: input.clone(),
        found: format!("{found:#x}"),
        expected: format!("{expected:#x}"),
        differing_words: *differing_words,
    }
}

fn to_text(info: &DeviceInfo, result: &Result<Selftest>) -> String {
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            return format!("{} was not tested: {}\n", printable(&info.to_string()), printable(&error.to_string()));
        }
    };
    let columns = [
        ("kernel", Align::Left),
        ("scheme", Align::Left),
        ("cases", Align::Right),
        ("words", Align::Right),
        ("differing", Align::Right),
    ];
    let cells = |row: &selftest::Row| {
        let [cases, words, differing] = [row.cases, row.words, row.differing_words].map(|n| n.to_string());
        vec![row.kernel.label().to_owned(), row.scheme.to_string(), cases, words, differing]
    };
    let table = table::render(&columns, &report.rows.iter().map(cells).collect::<Vec<_>>());
    let shown: Vec<_> = report.to_string().lines().map(printable).collect();
    format!("{table}\n{}\n", shown.join("\n"))
}
