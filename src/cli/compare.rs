//! `wgpu-quant compare`

use super::args::CompareArgs;
use super::output;
use super::pairs::Pairs;
use super::progress::Progress;
use super::report::{Figures, Report, Row, Status};
use super::{Code, Outcome, warn};
use std::path::Path;
use wgpu_quant::file::{self, Input, PartBytes, Source, Sources, TensorView};
use wgpu_quant::{Backend, Error, Quantized, Result, Tensor};

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
        match sources.tensors.get(after.name).zip(sources.load(&quantized, after.name)?) {
            Some((source, q)) => {
                measure(&backend, before, (source, &q), &args.original, &mut report)
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
    report.finish(&backend);

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
    (source, q): (&Source, &Quantized),
    original: &Path,
    report: &mut Report,
) -> Result<()> {
    let refuse = |message: String| Err(file::invalid(original, format!("tensor {:?} is {message}", before.name)));
    if before.shape != q.shape() {
        return refuse(format!("of shape {:?}, the quantized one of {:?}", before.shape, q.shape()));
    }
    let Some(elem_type) = before.elem_type() else {
        return refuse(format!("{}; F64, F32, F16 and BF16 are compared", before.dtype));
    };
    let bytes = before.ne_bytes();
    let x = Tensor::from_bytes(elem_type, &bytes, before.shape)?;
    let stored = PartBytes::of(q);
    let (digest, measured) = output::digest_beside(&stored, || {
        let loss = backend.loss(x, q, false)?.value;
        // What quantizing with these scales and zero points counts: NaN, infinite and clipped values.
        let counts = backend.quantize_with_scales(x, &source.spec(), q.scales(), q.zero_points())?.counts;
        Ok::<_, Error>((loss, counts))
    });
    let (loss, counts) = measured?;
    report.add_loss(&loss.sums);
    let (coded, figures) = ((q.scheme(), q.granularity()), Figures::new(&loss.sums, counts));
    report.push(Row::coded(before, Status::Quantized, coded, stored.count(), figures).digest(digest));
    Ok(())
}
