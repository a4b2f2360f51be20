#!/usr/bin/env bash
# Installs the Debian 12 packages that building, testing and the demo need; only what is missing.
#   tools/install-deps.sh          to build, test and run the demo
#   tools/install-deps.sh --check  also what tools/check.sh needs
set -euo pipefail

packages=(
  # build
  ccache cmake g++ ninja-build pkg-config protobuf-compiler protobuf-compiler-grpc
  # libraries
  libabsl-dev libcivetweb-dev libcli11-dev libfmt-dev libgrpc++-dev liblapacke-dev libopenblas-dev libprotobuf-dev
  libspdlog-dev libutf8proc-dev libyaml-cpp-dev nlohmann-json3-dev prometheus-cpp-dev
  # tests and benchmarks
  libbenchmark-dev libgmock-dev libgtest-dev
  # fetching the model, reading the metrics, end-to-end tests
  ca-certificates curl python3 python3-pip unzip
)
case "${1:-}" in
  '') ;;
  --check) packages+=(clang-format-14) ;;
  *) echo "usage: $0 [--check]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "$0: run as root, or install sudo; missing: ${missing[*]}" >&2
    exit 1
  fi
  sudo=(sudo)
fi
echo "installing ${#missing[@]} packages: ${missing[*]}"
apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
