#!/usr/bin/env python3
"""What does quantization cost a real model? Prints a Markdown table, one row for each scheme and granularity.

    scripts/fetch_minilm.sh
    cargo build --release
    python3 -m venv target/accuracy && target/accuracy/bin/pip install --no-deps numpy tokenizers
    target/accuracy/bin/python scripts/accuracy.py

    --only int8-absmax:tensor,f16     these pairs of scheme and granularity, in place of all
    --tool FILE                       the tool, target/release/wgpu-quant by default
    --minilm FOLDER                   where fetch_minilm.sh put the model, target/minilm by default

Two models, each quantized and de-quantized by the tool and then run here in f32:

- all-MiniLM-L6-v2, a sentence encoder. Of each sentence in scripts/sentences.txt, the cosine between its embedding
  by the original weights and by the de-quantized ones. 1 means the same direction.
- The classifier of digits in tests/data (see scripts/train_digits.py): how many of the images that it never saw it
  classifies rightly.

The tool is asked for what it quantizes by default: tensors of rank 2 and more, MiniLM's embeddings among them.
A pair that the tool refuses, even for one tensor, ends the script with exit code 1.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = ROOT / "tests" / "data" / "digits.safetensors"
DIGITS_TEST = ROOT / "tests" / "data" / "digits_test.safetensors"
SENTENCES = ROOT / "scripts" / "sentences.txt"

# SCHEME:GRANULARITY, or SCHEME alone for a cast, which has no scales.
PAIRS = [
    "int8-absmax:tensor",
    "int8-absmax:channel=0",
    "int8-absmax:group=128",
    "int4-absmax:group=32",
    "int4-affine:group=32",
    "f16",
    "bf16",
]

# By safetensors' names. The tool de-quantizes to F32; MiniLM's positions are I64, the digits' labels U8.
DTYPES = {"F32": "<f4", "I64": "<i8", "U8": "u1"}

# The example of the model's own library, and the similarities that it gives there, to four places.
KNOWN_SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
KNOWN_SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]


# Files.


def read_header(data):
    """Of a safetensors file: what it says of its tensors, and where their bytes begin."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return header, start


def read_tensors(path):
    data = path.read_bytes()
    header, start = read_header(data)
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def bits_per_weight(path, weights):
    """All that the file at `path` holds but its header, shared among the original's `weights`."""
    data = path.read_bytes()
    return 8 * (len(data) - read_header(data)[1]) / sum(tensor.size for tensor in weights.values())


# MiniLM: BERT's encoder, and the mean over a sentence's tokens.


def erf(x):
    """numpy has none. Formula 7.1.26 of Abramowitz and Stegun is within 1.5e-7, hardly more than f32's own rounding."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))


def gelu(x):
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class MiniLm:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.epsilon = config["layer_norm_eps"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # One sentence at a time and no padding, so that no mask is needed.
        self.tokenizer.no_padding()

    def embed(self, weights, sentences):
        """A row of length 1 for each sentence."""
        return np.stack([self.embed_one(weights, self.tokenizer.encode(sentence).ids) for sentence in sentences])

    def embed_one(self, weights, tokens):
        def linear(name, x):
            return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def norm(name, x):
            centred = x - x.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            unit = centred / np.sqrt(variance + np.float32(self.epsilon))
            return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

        def heads(x):  # [tokens, hidden] to [heads, tokens, hidden / heads]
            return x.reshape(len(x), self.heads, -1).swapaxes(0, 1)

        x = weights["embeddings.word_embeddings.weight"][tokens]
        x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
        x = norm("embeddings.LayerNorm", x)
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            query, key, value = (heads(linear(f"{layer}.attention.self.{n}", x)) for n in ("query", "key", "value"))
            attention = softmax(query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1]))
            context = (attention @ value).swapaxes(0, 1).reshape(x.shape)
            x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", context))
            inner = gelu(linear(f"{layer}.intermediate.dense", x))
            x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
        mean = x.mean(axis=0)
        assert mean.dtype == np.float32, "something widened the computation"
        return mean / np.linalg.norm(mean)

    def check(self, weights):
        """Is this the model that others know? Else the cosines below would mean nothing."""
        known = {"[CLS]": 101, "[SEP]": 102}
        found = {token: self.tokenizer.token_to_id(token) for token in known}
        encoding = self.tokenizer.encode(KNOWN_SENTENCES[0])
        words = "[CLS] the weather is lovely today . [SEP]".split()
        if found != known or encoding.tokens != words:
            sys.exit(f"the tokenizer is not MiniLM's: {found}, {encoding.tokens}")
        embeddings = self.embed(weights, KNOWN_SENTENCES)
        similarities = embeddings @ embeddings.T
        if np.abs(similarities - KNOWN_SIMILARITIES).max() > 1e-4:
            sys.exit(f"the forward pass is not MiniLM's: its similarities are\n{similarities}")


def cosines(a, b):
    """Row by row. In f64, since f32's own rounding would show in the table's last place."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


# The digits.


def digits_accuracy(weights, test):
    x = test["images"]
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], 0)
    x = x @ weights["fc3.weight"].T + weights["fc3.bias"]
    return (x.argmax(axis=1) == test["labels"]).mean()


# The tool.


def run_tool(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")


def there_and_back(tool, pair, original, folder):
    """The paths of the quantized file and of the de-quantized one."""
    scheme, _, per = pair.partition(":")
    quantized, back = folder / f"{original.stem}.q.safetensors", folder / f"{original.stem}.d.safetensors"
    # --strict: a tensor that the tool would rather copy is no measurement of the scheme.
    choice = ["--scheme", scheme, *(["--per", per] if per else []), "--strict"]
    run_tool(tool, "quantize", original, "-o", quantized, *choice, "--force", "-q")
    run_tool(tool, "dequantize", quantized, "-o", back, "--force", "-q")
    return quantized, back


def print_row(scheme, per, bits, size, cosine, accuracy):
    cells = f"{bits:.2f}", f"{size / 1e6:.1f} MB", f"{cosine.mean():.6f}", f"{cosine.min():.6f}", f"{accuracy:.2%}"
    print(f"| {scheme} | {per or '-'} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="SCHEME:PER,...", default=",".join(PAIRS))
    parser.add_argument("--tool", metavar="FILE", type=pathlib.Path, default=ROOT / "target" / "release" / "wgpu-quant")
    parser.add_argument("--minilm", metavar="FOLDER", type=pathlib.Path, default=ROOT / "target" / "minilm")
    args = parser.parse_args()

    # resolve(): a bare name would be looked up in PATH.
    tool, minilm = args.tool.resolve(), args.minilm / "model.safetensors"
    needed = [tool, minilm, args.minilm / "config.json", args.minilm / "tokenizer.json"]
    if missing := [str(path) for path in needed if not path.is_file()]:
        sys.exit(f"missing: {', '.join(missing)}; the head of this script says how to get them")

    start = time.monotonic()
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    model, weights = MiniLm(args.minilm), read_tensors(minilm)
    model.check(weights)
    embeddings = model.embed(weights, sentences)
    test = read_tensors(DIGITS_TEST)

    print("| scheme | per | bits per weight | MiniLM file | mean cosine | least cosine | digits accuracy |")
    print("|---|---|--:|--:|--:|--:|--:|")
    same, accuracy = cosines(embeddings, embeddings), digits_accuracy(read_tensors(DIGITS), test)
    print_row("f32", "", bits_per_weight(minilm, weights), minilm.stat().st_size, same, accuracy)
    with tempfile.TemporaryDirectory(prefix="wgpu-quant-") as folder:
        folder = pathlib.Path(folder)
        for pair in args.only.split(","):
            quantized, back = there_and_back(tool, pair, minilm, folder)
            cosine = cosines(embeddings, model.embed(read_tensors(back), sentences))
            _, digits = there_and_back(tool, pair, DIGITS, folder)
            accuracy = digits_accuracy(read_tensors(digits), test)
            scheme, _, per = pair.partition(":")
            print_row(scheme, per, bits_per_weight(quantized, weights), quantized.stat().st_size, cosine, accuracy)
    count = f"{len(sentences)} sentences, {len(test['labels'])} images"
    print(f"{count}, {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
