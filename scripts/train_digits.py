"""Trains the small classifier of `examples/digits.rs` and writes its weights and a held-out slice.

    python3 -m venv /tmp/digits && /tmp/digits/bin/pip install numpy scikit-learn safetensors
    /tmp/digits/bin/python scripts/train_digits.py

The data is scikit-learn's bundled digits set: 1,797 images of 8 x 8 pixels of 0..16. The model is a
perceptron 64-256-256-10 with ReLU between the layers, its tensors named and laid out as torch would.
The seed is fixed: the same versions on the same kind of machine give the same bytes. The committed files
come from Python 3.11.7, numpy 2.4.6, scikit-learn 1.9.1 and safetensors 0.8.0 on x86-64.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 1
HELD_OUT = 450
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"

digits = load_digits()
images = (digits.data / 16.0).astype(np.float32)  # pixels are 0..16: exact in f32
train_images, test_images, train_labels, test_labels = train_test_split(
    images, digits.target, test_size=HELD_OUT, random_state=SEED, stratify=digits.target
)

model = MLPClassifier(hidden_layer_sizes=(256, 256), alpha=1e-3, random_state=SEED)
model.fit(train_images, train_labels)

weights = {}
for layer, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_), start=1):
    # scikit-learn keeps [in, out]; torch and this project's channel=0 want [out, in].
    weights[f"fc{layer}.weight"] = np.ascontiguousarray(weight.T, dtype=np.float32)
    weights[f"fc{layer}.bias"] = bias.astype(np.float32)

OUT.mkdir(parents=True, exist_ok=True)
save_file(weights, OUT / "digits.safetensors")
save_file({"images": test_images, "labels": test_labels.astype(np.uint8)}, OUT / "digits_test.safetensors")
print(f"held-out accuracy: {model.score(test_images, test_labels):.4f} of {HELD_OUT} images")
