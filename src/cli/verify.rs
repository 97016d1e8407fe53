//! `wgpu-quant verify`

use super::args::VerifyArgs;
use super::output;
use super::pairs::Pairs;
use super::progress::Progress;
use super::report::{self, DeviceName, count};
use super::table::{self, Align};
use super::{Code, Outcome, printable, warn};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use wgpu_quant::file::{Digest, Input, PartBytes, Source, Sources, TensorView, zero_points};
use wgpu_quant::{Backend, CodeType, DeviceInfo, ElemType, Error, Quantized, Result, Tensor};

pub(crate) fn run(args: &VerifyArgs) -> Result<Outcome> {
    let (original, quantized) = (Input::open(&args.original)?, Input::open(&args.quantized)?);
    let sources = Sources::expect(&quantized)?;
    let Pairs { both: pairs, missing } = Pairs::new(&original, &quantized, &sources);
    let mut devices = match &args.device {
        Some(name) => {
            let backend = Backend::open(name)?;
            vec![Device::new(backend.info().clone(), Ok(backend))]
        }
        None => Backend::open_all().into_iter().map(|(info, backend)| Device::new(info, backend)).collect(),
    };

    let mut stored_digests = vec![];
    // The first thing that is wrong whatever the device.
    let mut wrong = missing.map(|error| error.to_string());
    let total = pairs.iter().map(|(before, _)| before.bytes.len() as u64).sum::<u64>() * devices.len() as u64;
    let progress = Progress::new(total, args.quiet || args.json);
    for (before, after) in &pairs {
        let described = sources.tensors.get(after.name).zip(sources.stored(&quantized, after.name));
        let found = match described {
            Some((source, stored)) => {
                let (digest, wrong) = match elem_type(before, source) {
                    Ok(elem_type) => {
                        let bytes = before.ne_bytes();
                        let x = Tensor::from_bytes(elem_type, &bytes, before.shape)?;
                        let (digest, ()) = output::digest_beside(&stored, || {
                            for device in &mut devices {
                                progress.start(&format!("{} on {}", after.name, device.info.name));
                                device.check(&args.quantized, after.name, x, source, &stored);
                                progress.done(before.bytes.len());
                            }
                        });
                        devices.iter_mut().for_each(|device| device.found_stored(digest));
                        (digest, wrong_digest(source.digest, digest))
                    }
                    Err(message) => {
                        progress.done(before.bytes.len() * devices.len());
                        (stored.digest(), Some(message))
                    }
                };
                stored_digests.push((after.name, digest));
                wrong
            }
            None => {
                progress.start(after.name);
                progress.done(before.bytes.len() * devices.len());
                wrong_copy(before, after)
            }
        };
        wrong = wrong.or_else(|| Some(format!("tensor {:?}: {}", after.name, found?)));
    }
    drop(progress);
    devices.iter_mut().for_each(Device::heed);

    let whole = stored_digests.len() == sources.tensors.len();
    let digest = whole.then(|| Digest::of_file(stored_digests));
    let wrong = wrong.or_else(|| wrong_digest(sources.digest, digest?));
    let verification = Verification::new(&devices, sources.tensors.len(), digest, wrong);
    let text = match (args.json, args.quiet) {
        (true, _) => report::json(&verification)?,
        (false, true) => String::new(),
        (false, false) => verification.to_text(),
    };
    if args.quiet {
        verification.problems().iter().for_each(|line| warn(line));
    }
    Ok(Outcome { text, code: verification.code })
}

/// The type of the values that were quantized, or why these cannot be them.
fn elem_type(before: &TensorView<'_>, source: &Source) -> Result<ElemType, String> {
    if (before.dtype, before.shape) != (source.dtype, &source.shape) {
        let (found, said) = (typed(before.dtype, before.shape), typed(source.dtype, &source.shape));
        return Err(format!("the original is {found}, the metadata says {said}"));
    }
    before.elem_type().ok_or_else(|| format!("the original is {}; F64, F32, F16 and BF16 are quantized", before.dtype))
}

fn typed(dtype: impl fmt::Display, shape: &[usize]) -> String {
    format!("{dtype} {shape:?}")
}

fn wrong_digest(said: Option<Digest>, found: Digest) -> Option<String> {
    let said = said.filter(|&said| said != found)?;
    Some(format!("the metadata's digest is {said}, that of the quantized tensors {found}"))
}

fn wrong_copy(before: &TensorView<'_>, after: &TensorView<'_>) -> Option<String> {
    let (was, is) = (typed(before.dtype, before.shape), typed(after.dtype, after.shape));
    if was != is {
        return Some(format!("the copy is {is}, the original {was}"));
    }
    let byte = unequal(after.bytes, before.bytes)?;
    let (is, was) = (after.bytes[byte], before.bytes[byte]);
    Some(format!("byte {byte} of the copy is {is:#04x}, of the original {was:#04x}"))
}

/// Where two lists of one length differ first.
fn unequal<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// A device, and what it found.
struct Device {
    info: DeviceInfo,
    /// An error from the moment on when it failed.
    backend: Result<Backend>,
    /// None yet of a tensor that is as it is stored.
    digests: Vec<(String, Option<Digest>)>,
    difference: Option<Difference>,
}

impl Device {
    fn new(info: DeviceInfo, backend: Result<Backend>) -> Self {
        Self { info, backend, digests: vec![], difference: None }
    }

    /// Quantizes a tensor again, and compares with what is stored.
    fn check(&mut self, file: &Path, name: &str, x: Tensor<'_>, source: &Source, stored: &PartBytes<'_>) {
        let Ok(backend) = &self.backend else { return };
        match backend.quantize(x, &source.spec()) {
            Ok(result) => {
                let q = &result.tensor;
                let recomputed = PartBytes::of(q);
                let differs = recomputed != *stored;
                if differs && self.difference.is_none() {
                    self.difference = Difference::first(name, stored, q);
                }
                self.digests.push((name.to_owned(), differs.then(|| recomputed.digest())));
            }
            Err(error) => self.backend = Err(output::at_tensor(file, name, error)),
        }
    }

    /// Tells the digest of the tensor that was checked last: the same bytes need not be digested once more.
    fn found_stored(&mut self, stored: Digest) {
        if let Some((_, digest)) = self.digests.last_mut() {
            digest.get_or_insert(stored);
        }
    }

    /// Warns of a device that was lost on the way. What took its place is what found all this.
    fn heed(&mut self) {
        if let Ok(backend) = &self.backend
            && let Some(notice) = backend.take_notice()
        {
            warn(&notice);
            self.info = backend.info().clone();
        }
    }

    fn status(&self, tensors: usize) -> Status {
        match &self.backend {
            Err(Error::UnfitAdapter { .. }) => Status::Skipped,
            Err(_) => Status::Failed,
            // What cannot be computed again is not what the file holds.
            Ok(_) if self.difference.is_some() || self.digests.len() < tensors => Status::Differs,
            Ok(_) => Status::BitIdentical,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    BitIdentical,
    Differs,
    Failed,
    Skipped,
}

/// Where a device's result is another than the stored one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Difference {
    tensor: String,
    part: Part,
    /// Of the element, of the scale's or the zero point's range unit, or of the padded row.
    index: usize,
    stored: String,
    recomputed: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Codes,
    /// What fills up a row of an odd number of 4-bit codes.
    Padding,
    Scale,
    ZeroPoint,
}

impl Difference {
    /// Scales and zero points come first: others are the reason of other codes.
    fn first(name: &str, stored: &PartBytes<'_>, q: &Quantized) -> Option<Self> {
        let of =
            |part, index, stored, recomputed| Some(Self { tensor: name.to_owned(), part, index, stored, recomputed });
        let recomputed = PartBytes::of(q);
        let ((stored_scales, _), (scales, _)) = (stored.scales.as_chunks::<4>(), recomputed.scales.as_chunks::<4>());
        if let Some(unit) = unequal(stored_scales, scales) {
            let bits = |scale: [u8; 4]| format!("{:#010x}", u32::from_le_bytes(scale));
            return of(Part::Scale, unit, bits(stored_scales[unit]), bits(scales[unit]));
        }
        let stored_points = zero_points(q.scheme().code(), &stored.zero_points);
        if let Some(unit) = unequal(&stored_points, q.zero_points()) {
            let [stored, recomputed] = [&stored_points, q.zero_points()].map(|points| points[unit].to_string());
            return of(Part::ZeroPoint, unit, stored, recomputed);
        }
        let byte = unequal(&stored.codes, &recomputed.codes)?;
        let codes = [stored.codes[byte], recomputed.codes[byte]];
        if q.scheme().code().bits() != 4 {
            let width = q.scheme().code().bits() as usize / 8;
            let element = byte / width;
            let [stored, recomputed] =
                [&stored.codes, &recomputed.codes].map(|all| shown(q, &all[element * width..][..width]));
            return of(Part::Codes, element, stored, recomputed);
        }
        let row_elems = q.shape().last().copied().unwrap_or(1);
        let (row, column) = (byte / row_elems.div_ceil(2), byte % row_elems.div_ceil(2) * 2);
        let odd = codes[0] & 0xf == codes[1] & 0xf;
        let [stored, recomputed] = codes.map(|codes| shown(q, &[if odd { codes >> 4 } else { codes & 0xf }]));
        match column + usize::from(odd) {
            column if column < row_elems => of(Part::Codes, row * row_elems + column, stored, recomputed),
            _ => of(Part::Padding, row, stored, recomputed),
        }
    }
}

/// A code as the number that it is, or the bits of a float.
fn shown(q: &Quantized, code: &[u8]) -> String {
    let bits = code.iter().rev().fold(0, |bits, &byte| bits << 8 | i32::from(byte));
    match q.scheme().code() {
        CodeType::F16 | CodeType::Bf16 => format!("{bits:#06x}"),
        code if code.is_signed() && bits > q.scheme().qmax() => (bits - (1 << code.bits())).to_string(),
        _ => bits.to_string(),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, part, index, stored, recomputed } = self;
        let place = match part {
            Part::Codes => "code of element",
            Part::Padding => "padding of row",
            Part::Scale => "scale of range unit",
            Part::ZeroPoint => "zero point of range unit",
        };
        write!(f, "tensor {tensor:?}: {place} {index}: stored {stored}, recomputed {recomputed}")
    }
}

/// The result, in the order of the JSON.
#[derive(Debug, Serialize)]
struct Verification {
    version: u32,
    /// Of the stored codes, scales and zero points.
    digest: Option<Digest>,
    verdict: String,
    devices: Vec<Row>,
    /// The first thing that is wrong whatever the device.
    file_difference: Option<String>,
    #[serde(skip)]
    code: Code,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    name: DeviceName,
    tensors: u64,
    /// Of the codes, scales and zero points as recomputed on it.
    digest: Option<Digest>,
    status: Status,
    first_difference: Option<Difference>,
    error: Option<String>,
    #[serde(skip)]
    shown: String,
}

impl Row {
    fn new(device: &Device, tensors: usize) -> Self {
        let Device { info, backend, digests, difference } = device;
        let whole = backend.is_ok() && digests.len() == tensors;
        Self {
            name: info.clone().into(),
            tensors: digests.len() as u64,
            digest: whole
                .then(|| Digest::of_file(digests.iter().filter_map(|(name, digest)| Some((&**name, (*digest)?))))),
            status: device.status(tensors),
            first_difference: difference.clone(),
            error: backend.as_ref().err().map(|error| match error {
                Error::UnfitAdapter { reason, .. } => reason.clone(),
                error => error.to_string(),
            }),
            shown: info.to_string(),
        }
    }
}

impl Verification {
    /// Of a file with so many quantized tensors.
    fn new(devices: &[Device], tensors: usize, digest: Option<Digest>, file_difference: Option<String>) -> Self {
        let devices: Vec<_> = devices.iter().map(|device| Row::new(device, tensors)).collect();
        let number = |status| devices.iter().filter(|row| row.status == status).count() as u64;
        let (same, failed) = (number(Status::BitIdentical), number(Status::Failed));
        // Also one that failed later may have found a difference.
        let other =
            devices.iter().filter(|row| row.status == Status::Differs || row.first_difference.is_some()).count() as u64;
        let same = format!("bit-identical on {}", count(same, "device"));
        let (verdict, code) = if other > 0 {
            (format!("differs on {}, {same}", count(other, "device")), Code::Difference)
        } else if file_difference.is_some() {
            (format!("the file differs, its quantized tensors are {same}"), Code::Difference)
        } else if failed > 0 {
            (format!("failed on {}, {same}", count(failed, "device")), Code::Failed)
        } else {
            (same, Code::Done)
        };
        Self { version: 1, digest, verdict, devices, file_difference, code }
    }

    /// A line for each thing that is not as it should be.
    fn problems(&self) -> Vec<String> {
        let mut lines = vec![];
        lines.extend(self.file_difference.as_ref().map(|what| format!("difference in the file: {what}")));
        for row in &self.devices {
            let line = |difference| format!("first difference on {}: {difference}", row.shown);
            lines.extend(row.first_difference.as_ref().map(line));
            if let (Status::Failed, Some(error)) = (row.status, &row.error) {
                lines.push(format!("failed on {}: {error}", row.shown));
            }
        }
        lines
    }

    fn to_text(&self) -> String {
        let columns = [
            ("device", Align::Left),
            ("backend", Align::Left),
            ("driver", Align::Left),
            ("tensors", Align::Right),
            ("digest", Align::Left),
            ("result", Align::Left),
        ];
        let cells = |row: &Row| {
            let result = match (row.status, &row.error) {
                (Status::BitIdentical, _) => "bit-identical".to_owned(),
                (Status::Differs, _) => "differs".to_owned(),
                (Status::Failed, error) => format!("failed: {}", error.as_deref().unwrap_or_default()),
                (Status::Skipped, error) => format!("skipped: {}", error.as_deref().unwrap_or_default()),
            };
            let DeviceName { name, backend, driver, .. } = &row.name;
            // Enough to see which are the same; the JSON has all of it.
            let digest = row.digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()[..16].to_owned());
            [name, backend, driver, &row.tensors.to_string(), &digest, &result].map(|cell| printable(cell)).into()
        };
        let mut text = table::render(&columns, &self.devices.iter().map(cells).collect::<Vec<_>>()) + "\n";
        for line in self.problems() {
            text += &(printable(&line) + "\n");
        }
        if let Some(digest) = self.digest {
            text += &format!("digest: {digest}\n");
        }
        text + &self.verdict + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_quant::{Granularity, Scheme, Spec};

    const CODES: [u8; 2] = [0x7f, 0x81];
    const SCALE: [u8; 4] = 0x3c01_0204u32.to_le_bytes();

    /// The CPU path under another name, having quantized `[1, -1]` and compared with these parts.
    fn device(name: &str, codes: &[u8], scales: &[u8]) -> Device {
        let mut info = DeviceInfo::cpu();
        info.name = name.to_owned();
        let mut device = Device::new(info, Backend::open("cpu"));
        let source = Source {
            scheme: Scheme::INT8_ABSMAX,
            granularity: Granularity::Tensor,
            saturate: false,
            shape: vec![2],
            dtype: wgpu_quant::file::Dtype::F32,
            digest: None,
        };
        let stored = PartBytes { codes: codes.into(), scales: scales.into(), ..PartBytes::default() };
        device.check("q.safetensors".as_ref(), "x", Tensor::new(&[1.0, -1.0], &[2]).unwrap(), &source, &stored);
        device
    }

    fn good() -> Device {
        device("good", &CODES, &SCALE)
    }

    fn failed(mut device: Device) -> Device {
        device.backend = Err(Error::DeviceLost { message: "gone".to_owned() });
        device
    }

    fn unfit() -> Device {
        let (adapter, reason) = ("old".to_owned(), "no compute shaders".to_owned());
        Device::new(DeviceInfo::cpu(), Err(Error::UnfitAdapter { adapter, reason }))
    }

    #[test]
    fn a_device_that_fails_is_told_and_is_not_success() {
        let devices = [good(), failed(Device::new(DeviceInfo::cpu(), Backend::open("cpu"))), unfit()];
        let verification = Verification::new(&devices, 1, None, None);
        assert_eq!(verification.code, Code::Failed);
        assert_eq!(verification.verdict, "failed on 1 device, bit-identical on 1 device");
        let text = verification.to_text();
        assert!(text.contains("failed: the device was lost: gone") && text.contains("skipped: no compute"), "{text}");
        let json = serde_json::to_value(&verification).unwrap();
        let statuses: Vec<_> = json["devices"].as_array().unwrap().iter().map(|row| &row["status"]).collect();
        assert_eq!(statuses, ["bit-identical", "failed", "skipped"]);
        assert!(json["devices"][1]["digest"].is_null() && json["devices"][2]["digest"].is_null());
        assert_eq!(json["devices"][2]["error"], "no compute shaders");
    }

    #[test]
    fn an_adapter_that_is_skipped_takes_nothing_from_success() {
        let verification = Verification::new(&[good(), unfit()], 1, None, None);
        assert_eq!((verification.code, &*verification.verdict), (Code::Done, "bit-identical on 1 device"));
    }

    #[test]
    fn a_difference_outweighs_a_failure() {
        let other = || device("other", &[0x7f, 0x80], &SCALE);
        for devices in [vec![failed(good()), other()], vec![good(), failed(other())]] {
            let verification = Verification::new(&devices, 1, None, None);
            assert_eq!(verification.code, Code::Difference);
            assert!(verification.verdict.starts_with("differs on 1 device, bit-identical on "));
            let expected = "tensor \"x\": code of element 1: stored -128, recomputed -127";
            assert!(verification.problems().iter().any(|line| line.ends_with(expected)));
        }
    }

    #[test]
    fn a_tensor_that_was_not_recomputed_is_not_identical() {
        let verification = Verification::new(&[good()], 2, None, Some("tensor \"y\": unlike".to_owned()));
        assert_eq!((verification.devices[0].status, verification.devices[0].digest), (Status::Differs, None));
        assert_eq!(verification.code, Code::Difference);
    }

    #[test]
    fn another_scale_is_shown_before_other_codes() {
        let difference = device("other", &[1, 2], &[0, 0, 0x80, 0x3f]).difference.unwrap();
        let text = "tensor \"x\": scale of range unit 0: stored 0x3f800000, recomputed 0x3c010204";
        assert_eq!(difference.to_string(), text);
    }

    #[test]
    fn a_code_is_shown_as_a_number_of_its_scheme_with_its_element() {
        let shape = [2, 3];
        let x = [0.0, 1.0, 2.0, 3.0, 4.0, 15.0];
        let first = |scheme: Scheme, byte: usize, flip: u8| {
            let q = wgpu_quant::cpu::quantize(Tensor::new(&x, &shape).unwrap(), &Spec::new(scheme)).unwrap().tensor;
            let mut stored = PartBytes::of(&q);
            stored.codes.to_mut()[byte] ^= flip;
            Difference::first("x", &stored, &q).unwrap().to_string()
        };
        // A row takes two bytes, the second of which ends with the padding.
        for (scheme, byte, flip, expected) in [
            (Scheme::UINT4_AFFINE, 0, 0x10, "code of element 1: stored 0, recomputed 1"),
            (Scheme::UINT4_AFFINE, 2, 0x0f, "code of element 3: stored 12, recomputed 3"),
            (Scheme::UINT4_AFFINE, 3, 0xff, "code of element 5: stored 0, recomputed 15"),
            (Scheme::UINT4_AFFINE, 3, 0x10, "padding of row 1: stored 1, recomputed 0"),
            (Scheme::INT4_AFFINE, 0, 0x01, "code of element 0: stored -7, recomputed -8"),
            (Scheme::UINT8_AFFINE, 5, 0x01, "code of element 5: stored 254, recomputed 255"),
            (Scheme::INT16_AFFINE, 1, 0xff, "code of element 0: stored 32512, recomputed -32768"),
            (Scheme::UINT16_AFFINE, 11, 0x80, "code of element 5: stored 32767, recomputed 65535"),
            (Scheme::F16, 2, 0x01, "code of element 1: stored 0x3c01, recomputed 0x3c00"),
        ] {
            assert_eq!(first(scheme, byte, flip), format!("tensor \"x\": {expected}"), "{scheme}");
        }
    }
}
