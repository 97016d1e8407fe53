//! Tensors streamed piece by piece equal the whole on the CPU.

use crate::corpus::{Rng, data};
use crate::{Cases, Test, another, assert_all_equal, bits};
use wgpu_quant::gpu::{Scales, Stream, Streamed};
use wgpu_quant::{
    Computed, Counts, ElemType, Error, Gpu, Granularity, Observer, Quantized, Scheme, Spec, Tensor, cpu, wgpu,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_streamed_tensor_agrees_with_the_whole", agrees),
    ("scales_of_buffers_and_observed_ranges_give_the_same", given),
    ("the_source_is_read_once_or_where_units_reach_over_pieces_twice", passes),
    ("an_error_of_either_side_comes_back_and_leaves_nothing", errors),
    ("a_budget_that_is_just_enough_is_kept_and_less_is_refused", budget),
    ("a_lost_device_ends_a_stream", lost),
];

/// A test that only a software Vulkan adapter can run: GL has no wait to cut short.
pub(crate) const SOFTWARE_VULKAN_TESTS: &[Test] = &[("a_stream_that_waits_too_long_ends_and_leaves_nothing", timeout)];

/// A source, and what was asked of it.
struct Source<'a> {
    bytes: &'a [u8],
    next: u64,
    reads: usize,
    passes: usize,
    largest: usize,
}

impl<'a> Source<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, reads: 0, passes: 0, largest: 0 }
    }

    /// Each pass goes from the begin to the end.
    fn read(&mut self, offset: u64, to: &mut [u8]) {
        if offset == 0 {
            assert!(self.passes == 0 || self.next == self.bytes.len() as u64, "a pass ended at byte {}", self.next);
            (self.passes, self.next) = (self.passes + 1, 0);
        }
        assert_eq!(offset, self.next);
        to.copy_from_slice(&self.bytes[offset as usize..offset as usize + to.len()]);
        self.next += to.len() as u64;
        self.reads += 1;
        self.largest = self.largest.max(to.len());
    }

    fn check_whole(&self) {
        assert_eq!(self.next, self.bytes.len() as u64);
    }
}

/// A small budget that will do, as the error about none says.
fn enough<T>(refused: Result<T, Error>) -> u64 {
    match refused.err() {
        Some(Error::TooSmall { what: "the budget in bytes", found: 0, enough }) => enough,
        other => panic!("{other:?}"),
    }
}

/// The same for quantizing.
fn least(stream: &Stream<'_>, elem_type: ElemType) -> u64 {
    enough(stream.clone().budget_bytes(0).quantize(elem_type, |_, _| panic!("read"), |_| panic!("written")))
}

type Read<'r> = &'r mut dyn FnMut(u64, &mut [u8]) -> Result<(), Error>;
type Write<'w> = &'w mut (dyn FnMut(&[u8]) -> Result<(), Error> + Send);

/// What a call writes when it reads these bytes, what it gives, and how it read.
fn streamed<'a, T>(bytes: &'a [u8], call: impl FnOnce(Read<'_>, Write<'_>) -> T) -> (Vec<u8>, T, Source<'a>) {
    let (mut source, mut written) = (Source::new(bytes), vec![]);
    let mut read = |offset, to: &mut [u8]| {
        source.read(offset, to);
        Ok(())
    };
    let mut write = |bytes: &[u8]| {
        written.extend_from_slice(bytes);
        Ok(())
    };
    let out = call(&mut read, &mut write);
    (written, out, source)
}

fn quantize<'a>(stream: &Stream<'_>, elem_type: ElemType, bytes: &'a [u8]) -> (Vec<u8>, Streamed, Source<'a>) {
    let (codes, out, source) = streamed(bytes, |read, write| stream.quantize(elem_type, read, write).unwrap().value);
    source.check_whole();
    (codes, out, source)
}

#[track_caller]
fn assert_streamed(case: &str, (codes, out): (&[u8], &Streamed), (q, counts): (&Quantized, Counts)) {
    assert_all_equal("scale bits", case, &bits(&out.scales), &bits(q.scales()));
    assert_all_equal("zero points", case, &out.zero_points, q.zero_points());
    assert_all_equal("codes", case, codes, q.codes());
    assert_eq!(out.counts, counts, "{case}: counts");
}

fn agrees(gpu: &Gpu) {
    let mut cases = Cases::of(gpu, 7);
    let tuning = gpu.tuning().chunk_elems(16).slab_units(24).workgroups_per_dimension(3);
    let cut = gpu.tuned(tuning).unwrap();
    let mut rng = Rng::new(61);
    let (mut twice, mut pieces) = (0, 0);
    for (shape, granularity) in [
        (&[601][..], Granularity::Tensor),
        (&[20, 31], Granularity::Tensor),
        (&[30, 21], Granularity::Channel(0)),
        (&[4, 203], Granularity::Channel(0)),
        (&[41, 20], Granularity::Channel(-1)),
        (&[3, 211], Granularity::Channel(1)),
        (&[40, 3, 5], Granularity::Channel(1)),
        (&[3, 40, 7], Granularity::Channel(1)),
        (&[2, 3, 101], Granularity::Channel(-2)),
        (&[10, 77], Granularity::Group(32)),
        (&[3, 211], Granularity::Group(4)),
        (&[2, 250], Granularity::Group(100)),
        (&[2, 99], Granularity::Group(7)),
        (&[3, 5, 7], Granularity::Group(1)),
        (&[], Granularity::Tensor),
        (&[1, 1], Granularity::Channel(1)),
        (&[3, 0], Granularity::Channel(0)),
        (&[0, 3], Granularity::Channel(0)),
        (&[0], Granularity::Tensor),
    ] {
        let values = data("mixed", shape.iter().product(), 62);
        for (i, &scheme) in Scheme::ALL.iter().enumerate() {
            let granularity = if scheme.is_cast() { Granularity::Tensor } else { granularity };
            let spec = Spec::new(scheme).per(granularity);
            let elem_type = ElemType::ALL[(i + cases.all / Scheme::ALL.len()) % 4];
            let (name, gpu) = if cases.all % 3 == 2 { ("cut", &cut) } else { ("whole", gpu) };
            let (ring, more) = (2 + cases.all % 3, 300 * (cases.all as u64 % 7));
            let case = format!("{shape:?} {elem_type:?} {spec:?} {name} ring of {ring}, {more} bytes more");
            if !cases.take() {
                continue;
            }
            let bytes = crate::equality::bytes_of(elem_type, &values, &mut rng);
            let x = Tensor::from_bytes(elem_type, &bytes, shape).unwrap();
            let whole = cpu::quantize(x, &spec).unwrap();
            let (q, counts) = (&whole.tensor, whole.counts);
            let none = gpu.stream(shape, &spec).ring(ring).budget_bytes(0);
            let stream = none.clone().budget_bytes(least(&none, elem_type) + more);
            let (codes, out, source) = quantize(&stream, elem_type, &bytes);
            assert_streamed(&case, (&codes, &out), (q, counts));
            assert!(source.passes <= 2, "{case}");
            twice += usize::from(source.passes == 2);
            pieces += source.reads;

            // Given the scales, codes and counts are the same again.
            let (s, z) = (q.scales(), q.zero_points());
            let host = Scales::Host(s, z);
            let budget = enough(none.quantize_with_scales(elem_type, host, |_, _| Ok(()), |_| Ok(()))) + more;
            let stream = none.clone().budget_bytes(budget);
            let call =
                |read: Read<'_>, write: Write<'_>| stream.quantize_with_scales(elem_type, host, read, write).unwrap();
            let (codes, out, source) = streamed(&bytes, call);
            assert_streamed(&case, (&codes, &out), (q, counts));
            assert!(source.passes <= 1, "{case}");

            // And back again.
            let budget = enough(none.dequantize(s, z, |_, _| Ok(()), |_| Ok(()))) + more;
            let stream = none.clone().budget_bytes(budget);
            let call = |read: Read<'_>, write: Write<'_>| stream.dequantize(s, z, read, write).unwrap();
            let (values, (), source) = streamed(q.codes(), call);
            let expected: Vec<u8> = cpu::dequantize(q).unwrap().iter().flat_map(|v| v.to_ne_bytes()).collect();
            assert_all_equal("values", &case, &values, &expected);
            assert!(source.passes <= 1, "{case}");
        }
    }
    cases.print();
    println!("{twice} read twice, {pieces} pieces read");
    assert!(twice > cases.taken / 8 && pieces > 10 * cases.taken);
}

fn given(gpu: &Gpu) {
    let values = data("gauss", 3000, 67);
    for (shape, granularity) in [
        ([60, 50], Granularity::Tensor),
        ([60, 50], Granularity::Channel(0)),
        ([4, 750], Granularity::Channel(1)),
        ([4, 750], Granularity::Group(25)),
    ] {
        let x = Tensor::new(&values, &shape).unwrap();
        for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE] {
            let case = format!("{shape:?} {scheme} {granularity}");
            let spec = Spec::new(scheme).per(granularity);
            let whole = cpu::quantize(x, &spec).unwrap();
            let none = gpu.stream(&shape, &spec).ring(2).budget_bytes(0);
            let streamed = |scales: Scales<'_>| -> Result<(Vec<u8>, Computed<Streamed>), Error> {
                let budget = enough(none.quantize_with_scales(ElemType::F32, scales, |_, _| Ok(()), |_| Ok(())));
                let stream = none.clone().budget_bytes(budget + 500);
                let call =
                    |read: Read<'_>, write: Write<'_>| stream.quantize_with_scales(ElemType::F32, scales, read, write);
                let (codes, out, source) = streamed(bytemuck::cast_slice(&values), call);
                let out = out?;
                assert!(source.passes == 1 && source.reads > 1, "{case}");
                Ok((codes, out))
            };
            let buffer = |words: &[u32]| {
                let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                let size = 4 * words.len().max(1) as u64;
                let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
                let buffer = gpu.device().create_buffer(&descriptor);
                gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(words));
                buffer
            };
            let (s, z) = (bits(whole.tensor.scales()), whole.tensor.zero_points());
            let (scales, zero_points) = (buffer(&s), buffer(bytemuck::cast_slice(z)));
            let of_buffers = |scales| Scales::Device(scales, scheme.has_zero_point().then_some(&zero_points));
            let (codes, out) = streamed(of_buffers(&scales)).unwrap();
            assert_streamed(&format!("{case}, buffers"), (&codes, &out), (&whole.tensor, whole.counts));

            let mut ranges = gpu.range_accumulator(&shape, granularity, Observer::MIN_MAX).unwrap();
            gpu.observe(&mut ranges, x).unwrap();
            let (codes, out) = streamed(Scales::Observed(&ranges)).unwrap();
            assert_streamed(&format!("{case}, observed"), (&codes, &out), (&whole.tensor, whole.counts));

            // What is no scale shows when it comes back.
            let unit = s.len() - 1;
            let wrong: Vec<u32> = s[..unit].iter().copied().chain([0]).collect();
            let error = streamed(of_buffers(&buffer(&wrong))).err().unwrap();
            assert!(matches!(error, Error::InvalidScale { unit: found, .. } if found == unit), "{case}: {error}");
        }
    }
}

fn passes(gpu: &Gpu) {
    let values = data("gauss", 6400, 63);
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    let read = |scheme, shape: [usize; 2], granularity, more| {
        let spec = Spec::new(scheme).per(granularity);
        let stream = gpu.stream(&shape, &spec).ring(2);
        let stream = stream.clone().budget_bytes(least(&stream, ElemType::F32) + more);
        let source = quantize(&stream, ElemType::F32, bytes).2;
        println!("{shape:?} {spec:?}: {} passes, {} reads", source.passes, source.reads);
        assert!(source.reads >= 2 * source.passes);
        source.passes
    };
    let absmax = Scheme::INT8_ABSMAX;
    assert_eq!(read(absmax, [64, 100], Granularity::Channel(0), 5000), 1);
    // A row in several pieces.
    assert_eq!(read(absmax, [4, 1600], Granularity::Channel(0), 1000), 2);
    assert_eq!(read(absmax, [64, 100], Granularity::Channel(1), 5000), 2);
    assert_eq!(read(absmax, [64, 100], Granularity::Tensor, 5000), 2);
    assert_eq!(read(absmax, [64, 100], Granularity::Group(8), 0), 1);
    assert_eq!(read(absmax, [4, 1600], Granularity::Group(25), 3000), 1);
    assert_eq!(read(absmax, [4, 1600], Granularity::Group(800), 0), 2);
    assert_eq!(read(Scheme::F16, [64, 100], Granularity::Tensor, 0), 1);
    // What fits is one piece.
    let source = quantize(&gpu.stream(&[6400], &Spec::new(absmax)), ElemType::F32, bytes).2;
    assert_eq!((source.passes, source.reads), (1, 1));
}

/// What the device still holds once all is done.
fn objects(gpu: &Gpu) -> [isize; 2] {
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let hal = gpu.device().get_internal_counters().hal;
    [hal.buffers.read(), hal.bind_groups.read()]
}

fn errors(gpu: &Gpu) {
    let gpu = another(gpu);
    let values = data("gauss", 3000, 64);
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    let x = Tensor::new(&values, &[60, 50]).unwrap();
    for granularity in [Granularity::Tensor, Granularity::Channel(0)] {
        let spec = Spec::new(Scheme::INT8_ABSMAX).per(granularity);
        let whole = cpu::quantize(x, &spec).unwrap();
        let stream = gpu.stream(&[60, 50], &spec).ring(3);
        let stream = stream.clone().budget_bytes(least(&stream, ElemType::F32) + 3000);
        let (codes, out, source) = quantize(&stream, ElemType::F32, bytes);
        assert_streamed("whole", (&codes, &out), (&whole.tensor, whole.counts));
        let before = objects(&gpu);
        let failure = |what: &str| Error::File { path: "stream".into(), message: what.to_owned() };
        let last_read = source.reads - 1;
        let last_write = last_read / source.passes - usize::from(source.passes == 2);
        for (read_fails, write_fails) in [
            (Some(0), None),
            (Some(last_read / 2), None),
            (Some(last_read), None),
            (None, Some(0)),
            (None, Some(last_write / 2)),
            (None, Some(last_write)),
            (Some(last_read), Some(last_write / 4)),
        ] {
            let case = format!("{granularity}: read fails at {read_fails:?}, write at {write_fails:?}");
            let (mut source, mut reads, mut writes, mut written) = (Source::new(bytes), 0, 0, vec![]);
            let read = |offset, to: &mut [u8]| {
                if read_fails == Some(reads) {
                    return Err(failure("read"));
                }
                reads += 1;
                source.read(offset, to);
                Ok(())
            };
            let write = |bytes: &[u8]| {
                if write_fails == Some(writes) {
                    return Err(failure("write"));
                }
                writes += 1;
                written.extend_from_slice(bytes);
                Ok(())
            };
            let error = stream.quantize(ElemType::F32, read, write).err().unwrap().to_string();
            let wanted = if write_fails.is_some() { "write" } else { "read" };
            assert_eq!(error, failure(wanted).to_string(), "{case}");
            // What was written is a beginning; nobody reads on for long.
            assert!(written.len() < codes.len() && codes.starts_with(&written), "{case}");
            if let (Some(write_fails), Granularity::Channel(0)) = (write_fails, granularity) {
                assert!(reads <= write_fails + 8, "{case}: {reads} reads");
            }
            assert_eq!(objects(&gpu), before, "{case}");
        }
        let (again, out, _) = quantize(&stream, ElemType::F32, bytes);
        assert_streamed("afterwards", (&again, &out), (&whole.tensor, whole.counts));
    }
}

fn budget(gpu: &Gpu) {
    let values = data("gauss", 40_000, 65);
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    for (scheme, granularity) in [
        (Scheme::INT8_ABSMAX, Granularity::Channel(0)),
        (Scheme::UINT4_AFFINE, Granularity::Group(32)),
        (Scheme::INT8_ABSMAX, Granularity::Tensor),
        (Scheme::BF16, Granularity::Tensor),
    ] {
        let spec = Spec::new(scheme).per(granularity);
        let stream = gpu.stream(&[200, 200], &spec).ring(2);
        let least = least(&stream, ElemType::F32);
        let refused = stream.clone().budget_bytes(least - 1).quantize(ElemType::F32, |_, _| Ok(()), |_| Ok(()));
        let error = refused.err().unwrap().to_string();
        assert_eq!(error, format!("the budget in bytes is {}, {least} will do", least - 1));
        // Pieces grow with the budget.
        let mut largest = 0;
        for budget in [least, least + 20_000, least + 80_000, 1 << 30] {
            let source = quantize(&stream.clone().budget_bytes(budget), ElemType::F32, bytes).2;
            println!("{spec:?}, {budget} bytes: {} reads of {} bytes at most", source.reads, source.largest);
            assert!(source.largest > largest || source.largest == bytes.len());
            largest = source.largest;
        }
        assert_eq!(largest, bytes.len());
    }
    // A pair of long groups of 4-bit codes cannot be cut.
    let spec = Spec::new(Scheme::INT4_ABSMAX).per(Granularity::Group(9_999));
    assert!(least(&gpu.stream(&[40_000], &spec), ElemType::F32) > 3 * 2 * 9_999 * 8);
    let ring = gpu.stream(&[4], &Spec::new(Scheme::F16)).ring(1);
    let error = ring.quantize(ElemType::F32, |_, _| Ok(()), |_| Ok(())).err().unwrap().to_string();
    assert_eq!(error, "the ring in slots is 1, 2 will do");
    // Shapes, granularities and scales are refused as by the CPU.
    let spec = Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(2));
    let error = gpu.stream(&[4, 4], &spec).quantize(ElemType::F32, |_, _| Ok(()), |_| Ok(())).err().unwrap();
    assert!(matches!(error, Error::AxisOutOfRange { axis: 2, rank: 2 }), "{error}");
    let stream = gpu.stream(&[4, 4], &Spec::new(Scheme::INT8_ABSMAX));
    let error =
        stream.quantize_with_scales(ElemType::F32, Scales::Host(&[0.0], &[]), |_, _| Ok(()), |_| Ok(())).err().unwrap();
    assert!(matches!(error, Error::InvalidScale { unit: 0, .. }), "{error}");
    let error = stream.dequantize(&[1.0, 1.0], &[], |_, _| Ok(()), |_| Ok(())).err().unwrap();
    assert!(matches!(error, Error::LengthMismatch { what: "scales", .. }), "{error}");
    let empty = gpu.stream(&[usize::MAX, 0], &Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0)));
    let error = empty.quantize(ElemType::F32, |_, _| Ok(()), |_| Ok(())).err().unwrap();
    assert!(matches!(error, Error::ShapeOverflow { .. }), "{error}");
    let huge = gpu.stream(&[usize::MAX / 4], &Spec::new(Scheme::INT16_ABSMAX));
    let error = huge.quantize(ElemType::F64, |_, _| Ok(()), |_| Ok(())).err().unwrap();
    assert!(matches!(error, Error::ShapeOverflow { .. }), "{error}");
}

fn lost(gpu: &Gpu) {
    // The source destroys the device before one of the pieces.
    let values = data("gauss", 3000, 66);
    for at in [0, 5] {
        let gpu = another(gpu);
        let stream = gpu.stream(&[60, 50], &Spec::new(Scheme::INT8_ABSMAX).per(Granularity::Channel(0))).ring(2);
        let stream = stream.clone().budget_bytes(least(&stream, ElemType::F32) + 3000);
        let (mut source, mut reads) = (Source::new(bytemuck::cast_slice(&values)), 0);
        let read = |offset, to: &mut [u8]| {
            if reads == at {
                gpu.device().destroy();
            }
            reads += 1;
            source.read(offset, to);
            Ok(())
        };
        let error = stream.quantize(ElemType::F32, read, |_| Ok(())).err().unwrap();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    }
}

fn timeout(gpu: &Gpu) {
    let gpu = another(gpu).with_tuning(gpu.tuning().timeout_seconds(0)).unwrap();
    let stream = gpu.stream(&[1 << 12, 1 << 12], &Spec::new(Scheme::INT8_ABSMAX)).budget_bytes(100 << 20).ring(2);
    // A new device has things of its own to send.
    gpu.queue().submit([]);
    let before = objects(&gpu);
    for _ in 0..2 {
        let error = stream.quantize(ElemType::F32, |_, _| Ok(()), |_| Ok(())).err().unwrap();
        assert!(matches!(error, Error::Timeout { seconds: 0 }), "{error:?}");
        assert_eq!(objects(&gpu), before);
    }
}
