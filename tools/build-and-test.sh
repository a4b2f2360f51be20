#!/usr/bin/env bash
# Configures and builds a preset and runs its tests: build-and-test.sh PRESET [--build-only]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:?preset}

[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset"
cmake --build --preset "$preset"
if [ "${2:-}" = --build-only ]; then
  exit 0
fi
# One test holds the real model against an independent forward pass; it skips without the model.
tools/fetch-model.sh || echo "no model: the test that needs it will be skipped" >&2
# Two at a time: tests start servers and thread pools of their own, and sanitizers need memory.
ctest --preset "$preset" --parallel 2 --no-tests=error
