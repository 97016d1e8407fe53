//! Futures: who polls the device, that nobody is blocked, and what a dropped one leaves behind.

use crate::corpus::data;
use crate::device::own_device;
use crate::record::objects;
use crate::{Test, another, assert_same};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use wgpu_quant::gpu::Scales;
use wgpu_quant::{Gpu, Granularity, LossDetail, Observer, Scheme, Spec, Tensor, cpu, wgpu};

pub(crate) const TESTS: &[Test] = &[
    ("futures_of_our_device_wake_and_never_block", own),
    ("futures_of_a_callers_device_wait_for_the_caller_to_poll_it", borrowed),
    ("dropped_futures_leave_nothing_behind", dropped),
    ("ten_futures_take_turns", interleaved),
    ("batches_are_observed_without_blocking", observing),
];

/// Set when a future wants to be polled.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A future, polled only when it is woken.
struct Task<'a> {
    future: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
    flag: Arc<Flag>,
    polls: usize,
    longest: Duration,
    is_done: bool,
}

impl<'a> Task<'a> {
    fn new(future: impl Future<Output = ()> + Send + 'a) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self { future: Box::pin(future), flag, polls: 0, longest: Duration::ZERO, is_done: false }
    }

    fn is_woken(&self) -> bool {
        self.flag.0.load(SeqCst)
    }

    /// Polls it if it was woken.
    fn turn(&mut self) {
        if self.is_done || !self.flag.0.swap(false, SeqCst) {
            return;
        }
        let started = Instant::now();
        let waker = Waker::from(Arc::clone(&self.flag));
        self.is_done = self.future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(());
        self.longest = self.longest.max(started.elapsed());
        self.polls += 1;
    }
}

/// An executor that does nothing by itself: what it does between the polls is `idle`.
fn run(tasks: &mut [Task<'_>], idle: impl Fn()) {
    while tasks.iter().any(|task| !task.is_done) {
        idle();
        tasks.iter_mut().for_each(Task::turn);
    }
}

fn callers(gpu: &Gpu) -> Gpu {
    let (device, queue) = own_device(gpu);
    Gpu::from_device(device, queue)
}

/// Many sums over few elements.
fn slow() -> Spec {
    Spec::new(Scheme::INT8_ABSMAX).loss(LossDetail::Summary)
}

fn own(gpu: &Gpu) {
    let gpu = another(gpu);
    let x = data("mixed", 1 << 21, 81);
    let x = Tensor::new(&x, &[1 << 21]).unwrap();
    let reference = cpu::quantize(x, &slow()).unwrap();
    gpu.quantize(x, &slow()).unwrap();
    let started = Instant::now();
    let mut tasks = [Task::new(async {
        assert_same("own", &gpu.quantize_async(x, &slow()).await.unwrap(), &reference);
    })];
    run(&mut tasks, || std::thread::sleep(Duration::from_micros(100)));
    let whole = started.elapsed();
    let [task] = tasks;
    println!("{} polls of at most {:?} in {whole:?}", task.polls, task.longest);
    assert!(task.polls > 1);
    if gpu.info().backend == "gl" && gpu.info().name.contains("llvmpipe") {
        println!("this driver computes while work is submitted, whoever does it");
    } else {
        // Uploading and reading back is all that the polls do.
        assert!(task.longest < whole / 2, "a poll of {:?}", task.longest);
    }
}

fn borrowed(gpu: &Gpu) {
    let gpu = callers(gpu);
    let x = data("mixed", 10_000, 82);
    let x = Tensor::new(&x, &[10_000]).unwrap();
    let reference = cpu::quantize(x, &slow()).unwrap();
    gpu.quantize(x, &slow()).unwrap();
    let by_the_caller = || {
        let _ = gpu.device().poll(wgpu::PollType::Poll);
    };
    let by_the_gpu = || {
        gpu.poll();
    };
    for idle in [&by_the_caller as &dyn Fn(), &by_the_gpu] {
        let mut tasks = [Task::new(async {
            assert_same("borrowed", &gpu.quantize_async(x, &slow()).await.unwrap(), &reference);
        })];
        tasks[0].turn();
        // Long enough for the device, and nobody asks it.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!tasks[0].is_woken(), "somebody polled a caller's device");
        run(&mut tasks, idle);
        assert!(gpu.poll(), "the device has nothing left to do");
    }
}

fn dropped(gpu: &Gpu) {
    let x = data("mixed", 50_000, 83);
    let x = Tensor::new(&x, &[500, 100]).unwrap();
    let spec = slow().per(Granularity::Channel(0));
    let reference = cpu::quantize(x, &spec).unwrap();
    for gpu in [another(gpu), callers(gpu)] {
        let works = || assert_same("works", &gpu.quantize(x, &spec).unwrap(), &reference);
        let left = || {
            gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
            objects(&gpu)
        };
        works();
        gpu.dequantize(&reference.tensor).unwrap();
        let mut ranges = gpu.range_accumulator(x.shape(), spec.granularity, Observer::MIN_MAX).unwrap();
        gpu.observe(&mut ranges, x).unwrap();
        gpu.observed(&ranges).unwrap();
        let before = left();
        for polls in [0, 1, 2] {
            for call in 0..3 {
                let mut task = Task::new(async {
                    match call {
                        0 => drop(gpu.quantize_async(x, &spec).await.unwrap()),
                        1 => drop(gpu.dequantize_async(&reference.tensor).await.unwrap()),
                        _ => drop(gpu.observed_async(&ranges).await.unwrap()),
                    }
                });
                // Never polled; polled once; polled once, and the device done with its work.
                (0..polls.min(1)).for_each(|_| task.turn());
                if polls == 2 {
                    left();
                }
                drop(task);
                assert_eq!(left(), before, "call {call} dropped at stage {polls}");
                works();
                assert_eq!(left(), before, "after call {call} dropped at stage {polls}");
            }
        }
    }
}

fn interleaved(gpu: &Gpu) {
    let x = data("mixed", 12_000, 84);
    let x = Tensor::new(&x, &[100, 120]).unwrap();
    for gpu in [another(gpu), callers(gpu)] {
        let specs = [(Scheme::INT8_ABSMAX, 0), (Scheme::UINT4_AFFINE, 1), (Scheme::INT16_MINMAX, 0)]
            .map(|(scheme, axis)| Spec::new(scheme).per(Granularity::Channel(axis)).loss(LossDetail::Summary));
        let mut ranges = gpu.range_accumulator(x.shape(), Granularity::Channel(0), Observer::MIN_MAX).unwrap();
        gpu.observe(&mut ranges, x).unwrap();
        let (gpu, ranges) = (&gpu, &ranges);
        let mut tasks: Vec<_> = (0..10)
            .map(|i| {
                let spec = specs[i % 3];
                Task::new(async move {
                    let reference = cpu::quantize(x, &spec).unwrap();
                    let q = &reference.tensor;
                    let (scales, zero_points) = (q.scales(), q.zero_points());
                    match i % 6 {
                        0 => assert_same("quantize", &gpu.quantize_async(x, &spec).await.unwrap(), &reference),
                        1 => {
                            let given = Scales::Host(scales, zero_points);
                            let ours = gpu.quantize_with_scales_async(x, &spec, given).await.unwrap();
                            let reference = cpu::quantize_with_scales(x, &spec, scales, zero_points).unwrap();
                            assert_same("with scales", &ours, &reference);
                        }
                        2 => {
                            let ours = gpu.fake_quantize_async(x, &spec).await.unwrap();
                            assert_eq!(ours.value, cpu::fake_quantize(x, &spec).unwrap());
                        }
                        3 => {
                            let ours = gpu.dequantize_async(q).await.unwrap();
                            assert_eq!(crate::bits(&ours), crate::bits(&cpu::dequantize(q).unwrap()));
                        }
                        4 => {
                            let ours = gpu.loss_async(x, q, false).await.unwrap();
                            assert_eq!(Some(ours.value), reference.loss);
                        }
                        _ => {
                            let reference = cpu::observe(x, Granularity::Channel(0)).unwrap();
                            assert_eq!(gpu.observed_async(ranges).await.unwrap().value, reference);
                        }
                    }
                })
            })
            .collect();
        run(&mut tasks, || {
            gpu.poll();
        });
        println!("{:?} polls", tasks.iter().map(|task| task.polls).collect::<Vec<_>>());
    }
}

fn observing(gpu: &Gpu) {
    let x = data("mixed", 40_000, 85);
    let x = Tensor::new(&x, &[200, 200]).unwrap();
    let batch = cpu::observe(x, Granularity::Channel(0)).unwrap();
    for (gpu, idles) in [(another(gpu), false), (callers(gpu), true)] {
        let mut ranges = gpu.range_accumulator(x.shape(), Granularity::Channel(0), Observer::MIN_MAX).unwrap();
        let mut reference = wgpu_quant::ObservedRanges::new(200);
        let mut tasks = [Task::new(async {
            for _ in 0..20 {
                gpu.observe_async(&mut ranges, x).await.unwrap();
                reference = cpu::merge_ranges(&reference, &batch, Observer::MIN_MAX).unwrap();
            }
        })];
        run(&mut tasks, || {
            if idles {
                gpu.poll();
            }
        });
        println!("20 batches in {} polls of at most {:?}", tasks[0].polls, tasks[0].longest);
        drop(tasks);
        assert_eq!(gpu.observed(&ranges).unwrap().value, reference);
        assert_eq!(ranges.batches(), 20);
    }
}
