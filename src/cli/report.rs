//! The report of `quantize` and `compare`: rows and totals, as JSON and as a table.

use super::table::{self, Align};
use super::{Code, Outcome, printable, warn};
use serde::Serialize;
use std::collections::BTreeMap;
use wgpu_quant::file::{Digest, Dtype, TensorView, invalid};
use wgpu_quant::{Backend, Counts, DeviceInfo, Granularity, LossSums, Result, Scheme};

/// Everything, in the order of the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    device: Device,
    tensors: Vec<Row>,
    totals: Totals,
    #[serde(skip)]
    sums: LossSums,
    #[serde(skip)]
    with_loss: bool,
}

/// A device, as every JSON names it.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceName {
    pub(crate) index: Option<usize>,
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(crate) r#type: String,
    pub(crate) driver: String,
}

impl From<DeviceInfo> for DeviceName {
    fn from(DeviceInfo { index, name, backend, device_type, driver, .. }: DeviceInfo) -> Self {
        Self { index, name, backend, r#type: device_type, driver }
    }
}

/// What computed.
#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    name: DeviceName,
    reason: String,
    #[serde(skip)]
    shown: String,
}

impl Device {
    fn new(backend: &Backend) -> Self {
        let info = backend.info();
        Self { name: info.clone().into(), reason: backend.reason().to_owned(), shown: info.to_string() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Quantized,
    Dequantized,
    Copied,
    /// A dry run's word for what would be quantized.
    Planned,
}

/// A tensor.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    scheme: Option<&'static str>,
    granularity: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(flatten)]
    figures: Figures,
    status: Status,
    reason: Option<String>,
    digest: Option<Digest>,
    #[serde(skip)]
    elems: u64,
}

impl Row {
    /// A tensor that becomes codes, or values again.
    pub(crate) fn coded(
        tensor: &TensorView<'_>,
        status: Status,
        coded: (Scheme, Granularity),
        bytes_out: u64,
        figures: Figures,
    ) -> Self {
        let (scheme, granularity) = (Some(coded.0.name()), Some(coded.1.to_string()));
        Self { scheme, granularity, bytes_out, figures, status, reason: None, ..Self::copied(tensor, "") }
    }

    /// A tensor that stays as it is.
    pub(crate) fn copied(tensor: &TensorView<'_>, reason: impl Into<String>) -> Self {
        let bytes = tensor.bytes.len() as u64;
        Self {
            name: tensor.name.to_owned(),
            shape: tensor.shape.to_vec(),
            dtype: tensor.dtype,
            scheme: None,
            granularity: None,
            bytes_in: bytes,
            bytes_out: bytes,
            figures: Figures::default(),
            status: Status::Copied,
            reason: Some(reason.into()),
            digest: None,
            elems: tensor.elems() as u64,
        }
    }

    /// The same with other bytes read.
    pub(crate) fn reading(self, bytes_in: u64) -> Self {
        Self { bytes_in, ..self }
    }

    /// The same with the digest of the codes, scales and zero points.
    pub(crate) fn digest(self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self }
    }
}

/// The loss, and what was out of the ordinary; null where there is no value or it was not asked for.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Figures {
    max_abs_error: Option<f64>,
    mean_abs_error: Option<f64>,
    mse: Option<f64>,
    sqnr_db: Option<f64>,
    clipped: Option<u64>,
    nan: Option<u64>,
    inf: Option<u64>,
    nonfinite_out: Option<u64>,
}

impl Figures {
    pub(crate) fn new(sums: &LossSums, counts: Counts) -> Self {
        let summary = sums.summary();
        Self {
            max_abs_error: summary.max_abs_error.map(exactly),
            mean_abs_error: summary.mean_abs_error,
            mse: summary.mse,
            sqnr_db: summary.sqnr_db,
            clipped: Some(counts.clipped_elems),
            nan: Some(counts.nan_elems),
            inf: Some(counts.inf_elems),
            nonfinite_out: Some(summary.nonfinite_out_elems),
        }
    }
}

/// The same value as f64. Not by a conversion of a subnormal, which a host may flush: a driver that was loaded
/// into this process can set that mode.
fn exactly(value: f32) -> f64 {
    let bits = value.to_bits();
    if bits >> 23 != 0 { f64::from(value) } else { f64::from(bits) * f64::from_bits((1023 - 149) << 52) }
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    tensors: u64,
    quantized: u64,
    copied: u64,
    elems: u64,
    bytes_in: u64,
    bytes_out: u64,
    ratio: Option<f64>,
    bits_per_weight: Option<f64>,
    #[serde(flatten)]
    figures: Figures,
    cosine: Option<f64>,
    digest: Option<Digest>,
}

/// `a / b`, if there is such a number.
pub(crate) fn ratio(a: u64, b: u64) -> Option<f64> {
    (b != 0).then(|| a as f64 / b as f64)
}

impl Report {
    pub(crate) fn new(backend: &Backend) -> Self {
        let (device, sums) = (Device::new(backend), LossSums::default());
        Self { version: 1, device, tensors: vec![], totals: Totals::default(), sums, with_loss: false }
    }

    pub(crate) fn push(&mut self, row: Row) {
        let totals = &mut self.totals;
        totals.tensors += 1;
        *(if row.status == Status::Copied { &mut totals.copied } else { &mut totals.quantized }) += 1;
        totals.elems += row.elems;
        totals.bytes_in += row.bytes_in;
        totals.bytes_out += row.bytes_out;
        for (sum, count) in [
            (&mut totals.figures.clipped, row.figures.clipped),
            (&mut totals.figures.nan, row.figures.nan),
            (&mut totals.figures.inf, row.figures.inf),
        ] {
            if let Some(count) = count {
                *sum = Some(sum.unwrap_or(0) + count);
            }
        }
        self.tensors.push(row);
    }

    /// Adds a tensor's loss to the totals.
    pub(crate) fn add_loss(&mut self, sums: &LossSums) {
        self.sums.merge(sums);
        self.with_loss = true;
    }

    /// Computes the totals, once all rows are there. What computed may be another than at the start, which is warned of.
    pub(crate) fn finish(&mut self, backend: &Backend) {
        if let Some(notice) = backend.take_notice() {
            warn(&notice);
        }
        self.device = Device::new(backend);
        let totals = &mut self.totals;
        totals.ratio = ratio(totals.bytes_in, totals.bytes_out);
        totals.bits_per_weight = ratio(totals.bytes_out.saturating_mul(8), totals.elems);
        if self.with_loss {
            let summary = self.sums.summary();
            let Figures { clipped, nan, inf, .. } = totals.figures;
            totals.figures = Figures { clipped, nan, inf, ..Figures::new(&self.sums, Counts::default()) };
            totals.cosine = summary.cosine;
        }
        // Of all quantized tensors or of none: a dry run and the way back make no codes.
        let coded = self.tensors.iter().filter(|row| row.status != Status::Copied);
        let digests = coded.map(|row| Some((&*row.name, row.digest?))).collect::<Option<Vec<_>>>();
        totals.digest = digests.map(Digest::of_file);
    }

    /// The total signal-to-noise ratio in dB; infinite when nothing was lost.
    pub(crate) fn total_sqnr(&self) -> f64 {
        let Figures { sqnr_db, mse, .. } = self.totals.figures;
        let noise = mse.unwrap_or(0.0) > 0.0;
        sqnr_db.unwrap_or(if noise { f64::NEG_INFINITY } else { f64::INFINITY })
    }

    /// The digest of all quantized tensors, once finished, if there are codes.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.totals.digest
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        json(self)
    }

    pub(crate) fn to_text(&self) -> String {
        const COLUMNS: [(&str, Align); 8] = [
            ("tensor", Align::Left),
            ("shape", Align::Left),
            ("dtype", Align::Left),
            ("scheme", Align::Left),
            ("per", Align::Left),
            ("bytes", Align::Left),
            ("max error", Align::Right),
            ("SQNR dB", Align::Right),
        ];
        const CLIPPED: (&str, Align) = ("clipped", Align::Right);
        let rows: Vec<_> = self.tensors.iter().filter(|row| row.status != Status::Copied).map(cells).collect();
        let mut text = String::new();
        if !rows.is_empty() {
            text = table::render(&[&COLUMNS[..], &[CLIPPED]].concat(), &rows);
            text.push('\n');
        }
        text + &self.copies() + &self.summary()
    }

    /// A line per reason.
    fn copies(&self) -> String {
        let mut by_reason = BTreeMap::<&str, (u64, u64)>::new();
        for row in self.tensors.iter().filter(|row| row.status == Status::Copied) {
            let (tensors, bytes) = by_reason.entry(row.reason.as_deref().unwrap_or_default()).or_default();
            *tensors += 1;
            *bytes += row.bytes_in;
        }
        let line = |(reason, (n, bytes)): (&str, (u64, u64))| {
            format!("copied: {}, {}: {reason}\n", count(n, "tensor"), table::bytes(bytes))
        };
        by_reason.into_iter().map(line).collect()
    }

    fn summary(&self) -> String {
        let Totals { tensors, bytes_in, bytes_out, ratio, bits_per_weight, figures, cosine, .. } = &self.totals;
        let sizes = format!("{} -> {}", table::bytes(*bytes_in), table::bytes(*bytes_out));
        let mut text = format!("total:  {}, {sizes}", count(*tensors, "tensor"));
        if let (Some(ratio), Some(bits)) = (ratio, bits_per_weight) {
            text += &format!(" (ratio {ratio:.2}), {bits:.2} bits per weight");
        }
        text.push('\n');
        if self.with_loss {
            let Figures { max_abs_error, mean_abs_error, mse, sqnr_db, clipped, nan, inf, nonfinite_out } = *figures;
            let cosine = cosine.map_or_else(|| "-".to_owned(), |v| format!("{v:.8}"));
            text += &format!(
                "loss:   max {}, mean {}, MSE {}, SQNR {} dB, cosine {cosine}\n",
                table::small(max_abs_error),
                table::small(mean_abs_error),
                table::small(mse),
                table::fixed(sqnr_db),
            );
            let counts = [(clipped, "clipped"), (nan, "NaN"), (inf, "Inf"), (nonfinite_out, "overflowed")];
            let shown: Vec<_> = counts.iter().map(|(n, what)| format!("{} {what}", n.unwrap_or(0))).collect();
            text += &format!("counts: {}\n", shown.join(", "));
        }
        text += &format!("device: {}: {}\n", printable(&self.device.shown), printable(&self.device.reason));
        if let Some(digest) = self.totals.digest {
            text += &format!("digest: {digest}\n");
        }
        text
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn cells(row: &Row) -> Vec<String> {
    let Figures { max_abs_error, sqnr_db, clipped, .. } = row.figures;
    // Of a tensor without loss figures all three are empty; with them, a figure without a value is a dash.
    let shown = |text: String| if clipped.is_some() { text } else { String::new() };
    vec![
        printable(&row.name),
        format!("{:?}", row.shape),
        row.dtype.to_string(),
        row.scheme.unwrap_or_default().to_owned(),
        row.granularity.clone().unwrap_or_default(),
        format!("{} -> {}", table::bytes(row.bytes_in), table::bytes(row.bytes_out)),
        shown(table::small(max_abs_error)),
        shown(table::fixed(sqnr_db)),
        clipped.map(|n| n.to_string()).unwrap_or_default(),
    ]
}

/// A value as JSON text for stdout or a file.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| invalid("report".as_ref(), e.to_string()))?;
    Ok(text + "\n")
}

/// A command that did what it was asked to.
pub(crate) fn done(text: String) -> Outcome {
    Outcome { text, code: Code::Done }
}
