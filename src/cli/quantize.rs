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
    self, Digest, Digester, Input, Layout, METADATA_KEY, NewFile, PartBytes, PartKind, Source, Sources, TensorView,
};
use wgpu_quant::{Backend, ElemType, Granularity, LossDetail, LossSums, Result, Spec};

pub(crate) fn run(args: &QuantizeArgs) -> Result<Outcome> {
    let input = Input::open(&args.input)?;
    let to_stdout = args.json.as_deref() == Some("-".as_ref());
    let report_path = args.json.as_deref().filter(|_| !to_stdout);
    check_paths(args, report_path)?;
    let mut steps = plan(args, &input)?;
    let first = layout(&input, &steps, Digest::PLACEHOLDER)?;
    let backend = Backend::open(&args.device.name)?;
    // Opened before the work, so that a path that cannot be written to costs no time.
    let out = match &args.out {
        Some(path) if !args.dry_run => Writer::create(path, args.force, first)?,
        _ => Writer::dry(first),
    };
    let report_file = report_path.map(|path| NewFile::create(path, args.force)).transpose()?;

    let wants_report = args.json.is_some() || !args.quiet;
    let loss = if wants_report { LossDetail::Summary } else { LossDetail::None };
    let mut report = Report::new(&backend);
    let progress = Progress::new(input.tensors().map(|t| t.bytes.len() as u64).sum(), args.quiet);
    let done = output::for_each(&backend, &steps, |Step { tensor, action }| {
        progress.start(tensor.name);
        let done = match action {
            Action::Quantize(source) => quantize(&backend, (&input, tensor), &source.spec().loss(loss), source, &out)
                .map_err(|e| output::at_tensor(&args.input, tensor.name, e))?,
            Action::Copy(reason) => {
                out.write(tensor.name, tensor.bytes)?;
                Done { row: Row::copied(tensor, reason.to_string()), digest: None, loss: None }
            }
        };
        progress.done(tensor.bytes.len());
        Ok(done)
    })?;
    drop(progress);
    for (step, done) in steps.iter_mut().zip(done) {
        if let Action::Quantize(source) = &mut step.action {
            source.digest = done.digest;
        }
        if let Some(loss) = &done.loss {
            report.add_loss(loss);
        }
        report.push(done.row);
    }
    report.finish(&backend);

    if let Some(digest) = report.digest() {
        out.replace_header(&layout(&input, &steps, digest)?)?;
    }
    out.commit()?;
    if let Some(file) = report_file {
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

/// What came of a tensor.
struct Done {
    row: Row,
    /// None of a copy and of a dry run.
    digest: Option<Digest>,
    loss: Option<LossSums>,
}

fn quantize(
    backend: &Backend,
    (input, tensor): (&Input, &TensorView<'_>),
    spec: &Spec,
    source: &Source,
    out: &Writer,
) -> Result<Done> {
    let parts = file::parts(tensor.name, source)?;
    let bytes = parts.iter().map(|part| out.tensor_bytes(&part.name)).sum();
    let row = |status, figures| Row::coded(tensor, status, (spec.scheme, spec.granularity), bytes, figures);
    if out.is_dry() {
        return Ok(Done { row: row(Status::Planned, Figures::default()), digest: None, loss: None });
    }
    // Only floats that are read were chosen.
    let elem_type = tensor.elem_type().unwrap_or(ElemType::F32);
    let read = |at, bytes: &mut [u8]| {
        input.read(tensor.name, at, bytes)?;
        file::to_native_order(elem_type, bytes);
        Ok(())
    };
    let mut digester = Digester::default();
    let write = |at, codes: &[u8]| out.write_at(tensor.name, at, codes);
    let digest = |at, codes: &[u8]| {
        if at == 0 {
            digester = Digester::default();
        }
        digester.update(codes);
    };
    let made = backend.quantize_stream(elem_type, tensor.shape, spec, read, write, digest)?;
    let stored = PartBytes::of_scales(spec.scheme.code(), &made.scales, &made.zero_points);
    for part in parts.iter().filter(|part| part.kind != PartKind::Codes) {
        out.write(&part.name, stored.part(part.kind))?;
        digester.update(stored.part(part.kind));
    }
    let digest = digester.finish();
    let figures = made.loss.as_ref().map(|sums| Figures::new(sums, made.counts)).unwrap_or_default();
    Ok(Done { row: row(Status::Quantized, figures).digest(digest), digest: Some(digest), loss: made.loss })
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
