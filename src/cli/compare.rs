//! `wgpu-quant compare`

use super::args::CompareArgs;
use super::output;
use super::pairs::Pairs;
use super::progress::Progress;
use super::report::{Figures, Report, Row, Status};
use super::{Code, Outcome, warn};
use std::path::Path;
use wgpu_quant::file::{self, Digest, Input, Sources, TensorView, part_bytes};
use wgpu_quant::{Backend, Quantized, Result, Spec, Tensor};

pub(crate) fn run(args: &CompareArgs) -> Result<Outcome> {
    let (original, quantized) = (Input::open(&args.original)?, Input::open(&args.quantized)?);
    let sources = Sources::expect(&quantized)?;
    let Pairs { both: pairs, missing } = Pairs::new(&original, &quantized, &sources);
    if let Some(error) = missing {
        return Err(error);
    }
    let backend = Backend::open(&args.device.name)?;

    let mut report = Report::new(&backend);
    let total = pairs.iter().map(|(before, _)| before.bytes.len() as u64).sum();
    let progress = Progress::new(total, args.quiet || args.json);
    for (before, after) in &pairs {
        progress.start(after.name);
        match sources.load(&quantized, after.name)? {
            Some(q) => {
                measure(&backend, before, &q, &args.original, &mut report)
                    .map_err(|e| output::at_tensor(&args.quantized, after.name, e))?;
            }
            None if before.dtype == after.dtype && before.shape == after.shape && before.bytes == after.bytes => {
                report.push(Row::copied(before, "not quantized, equal to the original's"));
            }
            None => {
                let message = format!("tensor {:?} is neither quantized nor equal to the original's", after.name);
                return Err(file::invalid(&args.quantized, message));
            }
        }
        progress.done(before.bytes.len());
    }
    drop(progress);
    report.finish();

    let text = match (args.json, args.quiet) {
        (true, _) => report.to_json()?,
        (false, true) => String::new(),
        (false, false) => report.to_text(),
    };
    let sqnr = report.total_sqnr();
    let code = match args.min_sqnr {
        Some(least) if sqnr < least => {
            warn(&format!("the total SQNR is {sqnr:.2} dB, --min-sqnr is {least} dB"));
            Code::Difference
        }
        _ => Code::Done,
    };
    Ok(Outcome { text, code })
}

fn measure(
    backend: &Backend,
    before: &TensorView<'_>,
    q: &Quantized,
    original: &Path,
    report: &mut Report,
) -> Result<()> {
    let refuse = |message: String| Err(file::invalid(original, format!("tensor {:?} is {message}", before.name)));
    if before.shape != q.shape() {
        return refuse(format!("of shape {:?}, the quantized one of {:?}", before.shape, q.shape()));
    }
    let Some(values) = before.to_f32() else {
        return refuse(format!("{}; F64, F32, F16 and BF16 are compared", before.dtype));
    };
    let x = Tensor::new(&values, before.shape)?;
    let loss = backend.loss(x, q, false)?.value;
    // What quantizing with these scales counts: NaN, infinite and clipped values.
    let spec = Spec::new(q.scheme()).per(q.granularity());
    let counts = backend.quantize_with_scales(x, &spec, q.scales())?.counts;
    report.add_loss(&loss.sums);
    let bytes = q.codes().len() + size_of_val(q.scales());
    let (coded, figures) = ((q.scheme(), q.granularity()), Figures::new(&loss.sums, counts));
    let row = Row::coded(before, Status::Quantized, coded, bytes as u64, figures);
    report.push(row.digest(Digest::of_tensor(&part_bytes(q))));
    Ok(())
}
