#!/usr/bin/env python3
"""What other tools take on the same CPU for what wgpu-quant does, all in one process.

    pip install numpy torch onnxruntime onnx gguf
    for peer in ours candle; do cargo build --release --manifest-path benches/peers/$peer/Cargo.toml; done
    python benches/peers/cpu_peers.py --sizes 16,64 --json cpu_peers.json

Every case runs once a round, in a random order, so that a slow moment of the machine falls on all alike; time is divided by
that of the copy in the same round. What is not installed is left out and named. `--ggml` is a folder with ggml's shared
libraries (those in the wheel of pywhispercpp do). All take as many threads as `--threads` says, candle one, as it has no
more. None spins while it waits, for that takes a core from whoever comes next; `OMP_WAIT_POLICY=active` lets PyTorch. With
`--outputs reused` (the default) freed memory stays in the process, for every library that takes its memory from malloc; with
`--outputs fresh` each output is new to the process, as it is where nothing is set. Codes are compared before anything is
timed: `off` counts those that differ from `rne(x / s)`.
"""

import argparse
import ctypes as C
import glob
import json
import os
import platform
import random
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--sizes", default="16,64", help="Mi elements, separated by commas")
parser.add_argument("--rounds", type=int, default=9)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--seconds", type=float, default=600, help="rounds end where this is over, but not before the third")
parser.add_argument("--outputs", choices=["reused", "fresh"], default="reused")
parser.add_argument("--only", default="", help="only cases whose name holds one of these, separated by commas")
parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
parser.add_argument("--ours", default=HERE / "ours/target/release/libours.so")
parser.add_argument("--candle", default=HERE / "candle/target/release/libcandle_peer.so")
parser.add_argument("--ggml", help="a folder with libggml-base and libggml-cpu")
parser.add_argument("--json", help="write the results to this file")
args = parser.parse_args()
STARTED = time.perf_counter()

for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]:
    os.environ[variable] = str(args.threads)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if args.outputs == "reused":
    # glibc's: one arena, no mappings, nothing given back.
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
    for option, value in [(M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)]:
        C.CDLL(None).mallopt(option, value)

import numpy as np

COLUMNS, GROUP = 4096, 32
versions = {"python": platform.python_version(), "numpy": np.__version__}


def pointer(array):
    return C.c_void_p(array.ctypes.data)


class Bench:
    def __init__(self, n):
        self.n, self.rows = n, n // COLUMNS
        self.x = np.random.default_rng(1).standard_normal(n, dtype=np.float32)
        self.x[:: 1 << 20] *= 6  # a few outliers
        self.x2 = self.x.reshape(self.rows, COLUMNS)
        self.y = np.zeros_like(self.x)
        self.cases, self.left_out, self.held = {}, {}, []
        f32 = np.float32
        amax = lambda axis, x: np.abs(x).max(axis, keepdims=True)
        scales = [amax(None, self.x) / f32(127), amax(1, self.x2) / f32(127), amax(1, self.x.reshape(-1, GROUP)) / f32(127)]
        names = ["tensor", "row", "group"]
        shapes = [(1, n), (self.rows, COLUMNS), (n // GROUP, GROUP)]
        self.expected = {
            name: np.rint(self.x.reshape(shape) / scale.reshape(-1, 1)).astype(np.int8).reshape(-1)
            for name, shape, scale in zip(names, shapes, scales)
        }

    def add(self, name, bytes_per_elem, run, codes=None, kind=None, free=None):
        """A case; `codes` gives what `run` made, to be compared with the expected codes of `kind`."""
        wanted = not args.only or any(text in name for text in args.only.split(",")) or name.startswith("memcpy")
        if not wanted:
            return
        try:
            result = run()
            off = None
            if kind:
                got = np.asarray(codes(result)).reshape(-1)
                distance = np.abs(got.astype(np.int16) - self.expected[kind])
                off = int((distance > 0).sum())
                if off > self.n // 1000 or distance.max() > 1:
                    raise ValueError(f"wrong: {off} codes are off, by up to {distance.max()}")
            if free:
                free(result)
            self.cases[name] = (run, bytes_per_elem, off, free)
        except Exception as error:  # a peer that does not work here is left out, and named
            self.left_out[name] = f"{type(error).__name__}: {str(error)[:160]}"

    def add_all(self):
        for add in [self.add_copies, self.add_ours, self.add_numpy, self.add_torch, self.add_onnx, self.add_ggml, self.add_candle]:
            try:
                add()
            except (ImportError, OSError) as error:
                self.left_out[add.__name__.removeprefix("add_")] = str(error).splitlines()[0][:160]

    def add_copies(self):
        pool, part = ThreadPoolExecutor(args.threads), -(-4 * self.n // args.threads)

        def copy(i):
            start = i * part
            C.memmove(self.y.ctypes.data + start, self.x.ctypes.data + start, min(part, 4 * self.n - start))

        self.add("memcpy, all threads", 8, lambda: list(pool.map(copy, range(args.threads))))
        self.add("memcpy, one thread", 8, lambda: C.memmove(self.y.ctypes.data, self.x.ctypes.data, 4 * self.n))

    def add_ours(self):
        ours = C.CDLL(str(args.ours))
        ours.ours_quantize.restype = ours.ours_codes.restype = C.c_void_p
        ours.ours_codes.argtypes, ours.ours_free.argtypes = [C.c_void_p, C.c_void_p], [C.c_void_p]
        rows, columns = C.c_size_t(self.rows), C.c_size_t(COLUMNS)

        def codes(output):
            count = C.c_size_t()
            at = ours.ours_codes(output, C.byref(count))
            return np.ctypeslib.as_array(C.cast(at, C.POINTER(C.c_int8)), (count.value,))

        self.add("ours: ranges per tensor", 4, lambda: ours.ours_ranges(pointer(self.x), rows, columns, 0))
        for name, scheme, per, bytes_per_elem, kind in [
            ("int8-absmax per tensor", 0, 0, 9, "tensor"),
            ("int8-absmax per row", 0, 1, 5, "row"),
            ("int8-absmax per group of 32", 0, 2, 5.125, "group"),
            ("uint8-affine per tensor", 1, 0, 9, None),
            ("int4-absmax per group of 32", 2, 2, 4.625, None),
        ]:
            given = pointer(self.x), rows, columns, scheme, per
            if args.outputs == "fresh":
                run = lambda given=given: ours.ours_quantize(*given)
                self.add(f"ours: {name}", bytes_per_elem, run, codes, kind, ours.ours_free)
            else:
                held = C.c_void_p(ours.ours_quantize(*given))
                self.held.append(lambda held=held: ours.ours_free(held))

                def run_into(given=given, held=held):
                    ours.ours_quantize_into(*given, held)
                    return held

                self.add(f"ours: {name}", bytes_per_elem, run_into, codes, kind)

    def add_numpy(self):
        def plain(x, axis):
            s = np.abs(x).max(axis, keepdims=True) / np.float32(127)
            return np.rint(x / s).astype(np.int8)

        self.add("numpy: plain, int8 absmax per tensor", 9, lambda: plain(self.x, None), np.asarray, "tensor")
        self.add("numpy: plain, int8 absmax per row", 5, lambda: plain(self.x2, 1), np.asarray, "row")

    def add_torch(self):
        import torch

        versions["torch"] = torch.__version__
        torch.set_num_threads(args.threads)
        x, x2 = torch.from_numpy(self.x), torch.from_numpy(self.x2)
        x32 = x.view(-1, GROUP)
        zeros = torch.zeros(self.rows, dtype=torch.int64)
        codes, first = (lambda r: r.int_repr().numpy()), (lambda r: r[0].numpy())

        def per_tensor():
            lo, hi = torch.aminmax(x)
            return torch.quantize_per_tensor(x, max(-float(lo), float(hi)) / 127, 0, torch.qint8)

        def per_tensor_affine():
            lo, hi = torch.aminmax(x)
            lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
            s = (hi - lo) / 255
            return torch.quantize_per_tensor(x, s, max(0, min(255, round(-lo / s))), torch.quint8)

        def per_channel():
            lo, hi = torch.aminmax(x2, dim=1)
            return torch.quantize_per_channel(x2, (torch.maximum(-lo, hi) / 127).double(), zeros, 0, torch.qint8)

        def plain(x):
            s = x.abs().amax() / 127
            return torch.clamp(torch.round(x / s), -128, 127).to(torch.int8), s

        def plain_rows(x):
            s = x.abs().amax(1, keepdim=True) / 127
            return torch.clamp(torch.round(x / s), -128, 127).to(torch.int8), s

        self.add("torch: aminmax", 4, lambda: torch.aminmax(x))
        self.add("torch: aminmax + quantize_per_tensor int8", 9, per_tensor, codes, "tensor")
        self.add("torch: aminmax + quantize_per_tensor uint8", 9, per_tensor_affine)
        self.add("torch: aminmax + quantize_per_channel int8", 5, per_channel, codes, "row")
        self.add("torch: plain ops, int8 absmax per tensor", 9, lambda: plain(x), first, "tensor")
        self.add("torch: plain ops, int8 absmax per row", 5, lambda: plain_rows(x2), first, "row")
        self.add("torch: plain ops, int8 absmax per group of 32", 5.125, lambda: plain_rows(x32), first, "group")
        if not args.no_compile:
            for name, function, given, bytes_per_elem, kind in [
                ("tensor", plain, x, 9, "tensor"),
                ("row", plain_rows, x2, 5, "row"),
                ("group of 32", plain_rows, x32, 5.125, "group"),
            ]:
                fresh = torch.compile(function, dynamic=False)
                run = lambda fresh=fresh, given=given: fresh(given)
                self.add(f"torch.compile: int8 absmax per {name}", bytes_per_elem, run, first, kind)

    def add_onnx(self):
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        versions["onnxruntime"] = ort.__version__
        info = helper.make_tensor_value_info

        def case(name, bytes_per_elem, node, outputs, constants, shape):
            graph = helper.make_graph([node], "g", [info("x", TensorProto.FLOAT, shape)], outputs, constants)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
            model.ir_version = 9
            options = ort.SessionOptions()
            options.intra_op_num_threads = args.threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(self.x.reshape(shape)))
            for output in outputs:
                binding.bind_output(output.name, "cpu")
            self.add(name, bytes_per_elem, lambda: session.run_with_iobinding(binding))

        node, n = helper.make_node, self.n
        case(
            "ONNX Runtime: DynamicQuantizeLinear uint8",
            9,
            node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]),
            [info("y", TensorProto.UINT8, [n]), info("s", TensorProto.FLOAT, []), info("z", TensorProto.UINT8, [])],
            [],
            [n],
        )
        scale = numpy_helper.from_array(np.array(0.04, np.float32), "s")
        zero = numpy_helper.from_array(np.array(0, np.int8), "z")
        case(
            "ONNX Runtime: QuantizeLinear int8 per tensor, scale given",
            5,
            node("QuantizeLinear", ["x", "s", "z"], ["y"]),
            [info("y", TensorProto.INT8, [n])],
            [scale, zero],
            [n],
        )
        scales = numpy_helper.from_array(np.full(self.rows, 0.04, np.float32), "s")
        zeros = numpy_helper.from_array(np.zeros(self.rows, np.int8), "z")
        case(
            "ONNX Runtime: QuantizeLinear int8 per row, scales given",
            5,
            node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=0),
            [info("y", TensorProto.INT8, [self.rows, COLUMNS])],
            [scales, zeros],
            [self.rows, COLUMNS],
        )

    def add_ggml(self):
        try:
            import gguf

            versions["gguf"] = __import__("importlib.metadata", fromlist=["version"]).version("gguf")
            for name in ["Q8_0", "Q4_0"]:
                kind = gguf.GGMLQuantizationType[name]
                bytes_per_elem = 4 + (34 if name == "Q8_0" else 18) / 32
                self.add(f"gguf (numpy): {name}", bytes_per_elem, lambda kind=kind: gguf.quants.quantize(self.x2, kind))
        except ImportError as error:
            self.left_out["gguf"] = str(error)
        if not args.ggml:
            self.left_out["ggml"] = "no --ggml"
            return
        for library in glob.glob(f"{args.ggml}/libgomp*"):
            C.CDLL(library, C.RTLD_GLOBAL)
        base = C.CDLL(glob.glob(f"{args.ggml}/libggml-base*")[0], C.RTLD_GLOBAL)
        cpu = C.CDLL(glob.glob(f"{args.ggml}/libggml-cpu*")[0])
        cpu.ggml_cpu_init()
        try:
            base.ggml_version.restype = C.c_char_p
            versions["ggml"] = base.ggml_version().decode()
        except AttributeError:
            pass
        blocks = np.zeros(self.n // 32 * 34 + 64, np.uint8)
        pool = ThreadPoolExecutor(args.threads)

        def threaded(function, block_bytes, threads):
            part = self.n // 32 // threads * 32

            def run_part(i):
                count = part if i + 1 < threads else self.n - i * part
                out = blocks.ctypes.data + i * part // 32 * block_bytes
                function(C.c_void_p(self.x.ctypes.data + 4 * i * part), C.c_void_p(out), C.c_int64(count))

            return lambda: list(pool.map(run_part, range(threads)))

        for name, function, block_bytes in [
            ("Q8_0, reference (its file quantizer)", base.quantize_row_q8_0_ref, 34),
            ("Q8_0, SIMD (its activations)", cpu.quantize_row_q8_0, 34),
            ("Q4_0, reference (its file quantizer)", base.quantize_row_q4_0_ref, 18),
        ]:
            self.add(f"ggml: {name}", 4 + block_bytes / 32, threaded(function, block_bytes, args.threads))

    def add_candle(self):
        candle = C.CDLL(str(args.candle))
        versions["candle-core"] = "0.11.1"
        candle.candle_set(pointer(self.x), C.c_size_t(self.rows), C.c_size_t(COLUMNS))
        for kind, name in enumerate(["Q8_0", "Q4_0"]):
            bytes_per_elem = 4 + (34 if name == "Q8_0" else 18) / 32
            self.add(f"candle: {name}, one thread", bytes_per_elem, lambda kind=kind: candle.candle_quantize(kind))

    def run(self, until):
        # What takes long needs fewer rounds.
        slow = set()
        seconds = {name: {} for name in self.cases}
        for number in range(args.rounds):
            order = list(self.cases)
            random.Random(number).shuffle(order)
            for name in order:
                if name in slow and number >= 5:
                    continue
                run, _, _, free = self.cases[name]
                time.sleep(0.003)
                started = time.perf_counter()
                result = run()
                seconds[name][number] = time.perf_counter() - started
                if free:
                    free(result)
                del result
                if seconds[name][number] > 0.1:
                    slow.add(name)
            if number >= 2 and time.perf_counter() - STARTED > until:
                break
        return seconds


def cpu_name():
    for line in open("/proc/cpuinfo", encoding="utf-8") if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    report = {"version": 1, "cpu": cpu_name(), "threads": args.threads, "outputs": args.outputs}
    report |= {"date": time.strftime("%Y-%m-%d %H:%M"), "versions": versions, "sizes": []}
    sizes = [float(size) for size in args.sizes.split(",")]
    print(f"{report['cpu']}, {args.threads} threads, outputs {args.outputs}, {report['date']}")
    for i, size in enumerate(sizes):
        n = int(size * (1 << 20)) // COLUMNS * COLUMNS
        bench = Bench(n)
        bench.add_all()
        seconds = bench.run(args.seconds * (i + 1) / len(sizes))
        copies = seconds["memcpy, all threads"]
        spread = max(copies.values()) / min(copies.values()) - 1
        print(f"\n{size:g} Mi elements of f32 in rows of {COLUMNS}, {len(copies)} rounds")
        if spread > 0.2:
            print(f"unreliable: the copy varies by {spread * 100:.0f} %")
        print("| case | ms, median | best | GB/s moved | time / copy | floor | codes off |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        rows = []
        for name, times in seconds.items():
            _, bytes_per_elem, off, _ = bench.cases[name]
            median = statistics.median(times.values())
            row = {
                "case": name,
                "seconds": list(times.values()),
                "median_seconds": median,
                "best_seconds": min(times.values()),
                "bytes_per_second": bytes_per_elem * n / median,
                "time_by_copy": statistics.median(t / copies[number] for number, t in times.items()),
                "floor_by_copy": bytes_per_elem / 8,
                "codes_off": off,
            }
            rows.append(row)
            print(
                f"| {name} | {median * 1e3:.1f} | {row['best_seconds'] * 1e3:.1f} | {row['bytes_per_second'] / 1e9:.1f} "
                f"| {row['time_by_copy']:.2f} | {row['floor_by_copy']:.2f} | {'' if off is None else off} |"
            )
        for name, why in bench.left_out.items():
            print(f"left out: {name}: {why}")
        report["sizes"].append({"elements": n, "copy_spread": spread, "cases": rows, "left_out": bench.left_out})
        for free in bench.held:
            free()
        del bench
    print(f"\nversions: {versions}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


main()
