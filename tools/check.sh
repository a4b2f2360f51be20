#!/usr/bin/env bash
# Checks every C++ source against .clang-format (clang-format 14); with --fix, formats instead.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v clang-format-14 >/dev/null || tools/install-deps.sh --check

mapfile -t sources < <(find bench kernels runtime server tests tools -type f \
  \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if [ ${#sources[@]} -eq 0 ]; then
  echo "$0: found no sources" >&2
  exit 1
fi
if [ "${1:-}" = --fix ]; then
  clang-format-14 -i "${sources[@]}"
else
  clang-format-14 --dry-run -Werror "${sources[@]}"
  echo "clang-format: ${#sources[@]} files are as .clang-format says"
fi
