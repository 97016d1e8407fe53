//! `wgpu-quant quantize`

use super::args::QuantizeArgs;
use super::choice::{Choice, CopyReason, Decision};
use super::output::{self, Writer};
use super::progress::Progress;
use super::report::{Figures, Report, Row, Status, count};
use super::{Code, Outcome, warn};
use globset::Glob;
use std::collections::BTreeMap;
use std::path::Path;
use wgpu_quant::file::{
    self, Digest, Input, Layout, METADATA_KEY, NewFile, PartBytes, PartKind, Source, Sources, TensorView,
};
use wgpu_quant::{Backend, ElemType, Granularity, LossDetail, Result, Spec, Tensor};

pub(crate) fn run(args: &QuantizeArgs) -> Result<Outcome> {
    let input = Input::open(&args.input)?;
    let to_stdout = args.json.as_deref() == Some("-".as_ref());
    let report_path = args.json.as_deref().filter(|_| !to_stdout);
    check_paths(args, report_path)?;
    let mut steps = plan(args, &input)?;
    let first = layout(&input, &steps, Digest::PLACEHOLDER)?;
    let backend = Backend::open(&args.device.name)?;
    // Opened before the work, so that a path that cannot be written to costs no time.
    let mut out = match &args.out {
        Some(path) if !args.dry_run => Writer::create(path, args.force, first)?,
        _ => Writer::dry(first),
    };
    let report_file = report_path.map(|path| NewFile::create(path, args.force)).transpose()?;

    let wants_report = args.json.is_some() || !args.quiet;
    let loss = if wants_report { LossDetail::Summary } else { LossDetail::None };
    let mut report = Report::new(&backend);
    let progress = Progress::new(input.tensors().map(|t| t.bytes.len() as u64).sum(), args.quiet);
    for Step { tensor, action } in &mut steps {
        progress.start(tensor.name);
        match action {
            Action::Quantize(source) => {
                let spec = source.spec().loss(loss);
                source.digest = quantize(&backend, tensor, &spec, source, &mut out, &mut report)
                    .map_err(|e| output::at_tensor(&args.input, tensor.name, e))?;
            }
            Action::Copy(reason) => {
                out.write(tensor.name, tensor.bytes)?;
                report.push(Row::copied(tensor, reason.to_string()));
            }
        }
        progress.done(tensor.bytes.len());
    }
    drop(progress);
    report.finish(&backend);

    if let Some(digest) = report.digest() {
        out.replace_header(&layout(&input, &steps, digest)?)?;
    }
    out.commit()?;
    if let Some(mut file) = report_file {
        file.write_at(0, report.to_json()?.as_bytes())?;
        file.commit()?;
    }
    let text = match (to_stdout, args.quiet) {
        (true, _) => report.to_json()?,
        (false, true) => String::new(),
        (false, false) => report.to_text(),
    };
    let lapsed = warn_of_lapses(&steps);
    Ok(Outcome { text, code: if lapsed && args.strict { Code::NotAsAsked } else { Code::Done } })
}

fn check_paths(args: &QuantizeArgs, report: Option<&Path>) -> Result<()> {
    let mut taken = vec![&*args.input];
    if let Some(out) = &args.out {
        output::check(out, &taken, args.force)?;
        taken.push(out);
    }
    report.map_or(Ok(()), |report| output::check(report, &taken, args.force))
}

/// What happens to a tensor.
struct Step<'a> {
    tensor: TensorView<'a>,
    action: Action,
}

enum Action {
    Quantize(Source),
    Copy(CopyReason),
}

fn plan<'a>(args: &QuantizeArgs, input: &'a Input) -> Result<Vec<Step<'a>>> {
    if input.metadata().contains_key(METADATA_KEY) {
        return Err(file::invalid(&args.input, "is quantized by wgpu-quant already; `dequantize` it first"));
    }
    let choice = Choice::new(&args.include, &args.exclude, args.scheme, args.per, input.kind())
        .map_err(|e| file::invalid(&args.input, format!("--include and --exclude: {e}")))?;
    warn_of_idle_globs("--include", &args.include, input);
    warn_of_idle_globs("--exclude", &args.exclude, input);
    let action = |tensor: &TensorView<'_>| match choice.decide(tensor) {
        Decision::Copy(reason) => Action::Copy(reason),
        Decision::Quantize(granularity) => Action::Quantize(source(args, tensor, granularity)),
    };
    Ok(input.tensors().map(|tensor| Step { action: action(&tensor), tensor }).collect())
}

fn source(args: &QuantizeArgs, tensor: &TensorView<'_>, granularity: Granularity) -> Source {
    let (scheme, saturate, dtype) = (args.scheme, args.saturate, tensor.dtype);
    Source { scheme, granularity, saturate, shape: tensor.shape.to_vec(), dtype, digest: Some(Digest::PLACEHOLDER) }
}

/// The same whatever the digests are, but for the text of the header.
fn layout(input: &Input, steps: &[Step<'_>], digest: Digest) -> Result<Layout> {
    let refuse = |message: String| file::invalid(input.path(), message);
    let (mut tensors, mut sources) = (vec![], Sources { digest: Some(digest), ..Sources::default() });
    for Step { tensor, action } in steps {
        let name = tensor.name.to_owned();
        let Action::Quantize(source) = action else {
            tensors.push((name, tensor.dtype, tensor.shape.to_vec()));
            continue;
        };
        let parts = file::parts(tensor.name, source).map_err(|e| output::at_tensor(input.path(), tensor.name, e))?;
        for part in parts {
            let what = match part.kind {
                PartKind::Scale => "scale",
                PartKind::ZeroPoint => "zero point",
                _ => {
                    tensors.push((part.name, part.dtype, part.shape));
                    continue;
                }
            };
            if input.tensor(&part.name).is_some() {
                return Err(refuse(format!("holds {:?}, the name that the {what} of {name:?} needs", part.name)));
            }
            tensors.push((part.name, part.dtype, part.shape));
        }
        sources.tensors.insert(name, source.clone());
    }
    let mut metadata: BTreeMap<String, String> = input.metadata().clone();
    metadata.insert(METADATA_KEY.to_owned(), sources.to_json().map_err(refuse)?);
    Layout::new(tensors, &metadata).map_err(refuse)
}

/// Gives the digest; none of a dry run.
fn quantize(
    backend: &Backend,
    tensor: &TensorView<'_>,
    spec: &Spec,
    source: &Source,
    out: &mut Writer,
    report: &mut Report,
) -> Result<Option<Digest>> {
    let parts = file::parts(tensor.name, source)?;
    let bytes = parts.iter().map(|part| out.tensor_bytes(&part.name)).sum();
    let row = |status, figures| Row::coded(tensor, status, (spec.scheme, spec.granularity), bytes, figures);
    if out.is_dry() {
        report.push(row(Status::Planned, Figures::default()));
        return Ok(None);
    }
    // Only floats that are read were chosen.
    let (elem_type, bytes) = (tensor.elem_type().unwrap_or(ElemType::F32), tensor.ne_bytes());
    let result = backend.quantize(Tensor::from_bytes(elem_type, &bytes, tensor.shape)?, spec)?.value;
    let stored = PartBytes::of(&result.tensor);
    for part in &parts {
        out.write(&part.name, stored.part(part.kind))?;
    }
    let digest = stored.digest();
    let figures = result.loss.as_ref().map(|loss| {
        report.add_loss(&loss.sums);
        Figures::new(&loss.sums, result.counts)
    });
    report.push(row(Status::Quantized, figures.unwrap_or_default()).digest(digest));
    Ok(Some(digest))
}

/// Tells of float tensors that are left alone though they were asked for; true when there are any.
fn warn_of_lapses(steps: &[Step<'_>]) -> bool {
    let mut by_reason = BTreeMap::<String, u64>::new();
    for step in steps {
        if let Action::Copy(reason) = &step.action
            && reason.trips_strict()
        {
            *by_reason.entry(reason.to_string()).or_default() += 1;
        }
    }
    for (reason, n) in &by_reason {
        warn(&format!("copied and not quantized: {}: {reason}", count(*n, "float tensor")));
    }
    !by_reason.is_empty()
}

/// A misspelt pattern is silent otherwise.
fn warn_of_idle_globs(flag: &str, globs: &[Glob], input: &Input) {
    for glob in globs {
        let matcher = glob.compile_matcher();
        if !input.tensors().any(|tensor| matcher.is_match(tensor.name)) {
            warn(&format!("{flag} {:?} matches no tensor", glob.glob()));
        }
    }
}
