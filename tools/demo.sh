#!/usr/bin/env bash
# FlashSVD from a fresh machine: installs, builds, fetches a real model, compresses it, serves it
# beside the original, sends sentences, and shows what comes back and what it took.
#
# Environment:
#   MODEL=DIR       a Hugging Face model directory instead of all-MiniLM-L6-v2
#   KEEP_SHARE=0.5  share of the encoder's linear parameters to keep
#   LAYOUT=per_head layout of query, key and value: per_head, full or qkv_shared
#   KEEP=1          leave the server running and say how to call it
set -euo pipefail
cd "$(dirname "$0")/.."

model=${MODEL:-models/all-MiniLM-L6-v2}
share=${KEEP_SHARE:-0.5}
layout=${LAYOUT:-per_head}
bin=build/cpu-release/bin
started=$SECONDS
server_pid=
work=

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

# Sends SIGTERM and waits; kills after 40 s, longer than any drain. The server's exit code.
stop_server() {
  local pid=$server_pid
  server_pid=
  kill -TERM "$pid" 2>/dev/null || true
  for _ in $(seq 400); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  if kill -KILL "$pid" 2>/dev/null; then
    echo "the server did not stop within 40 s and was killed" >&2
  fi
  wait "$pid"
}

clean_up() {
  if [ -n "$server_pid" ]; then stop_server || true; fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
  echo "demo: $1" >&2
  if [ -n "$work" ] && [ -s "$work/server.log" ]; then
    echo "the end of the server's log:" >&2
    tail -n 30 "$work/server.log" >&2
  fi
  exit 1
}

build() {
  tools/install-deps.sh
  [ -f build/cpu-release/build.ninja ] || cmake --preset cpu-release
  cmake --build --preset cpu-release --target flashsvd-server flashsvd-client flashsvd-compress
}

# Into $compressed, unless an earlier run with the same inputs left it there.
compress() {
  compressed=models/$(basename "$(realpath "$model")")-$layout-$share
  local inputs
  inputs=$(printf '%s %s %s\n' "$share" "$layout" "$(realpath "$model")"
    stat -Lc '%n %s %Y' "$model"/*.safetensors
    sha256sum "$bin/flashsvd-compress")
  if [ -f "$compressed/config.json" ] && [ "$(cat "$compressed.inputs" 2>/dev/null)" = "$inputs" ]
  then
    echo "$compressed is up to date"
    return
  fi
  mkdir -p models
  "$bin/flashsvd-compress" --model "$model" --out "$compressed" --keep "$share" \
    --layout "$layout" --dtype bf16 --force
  printf '%s\n' "$inputs" >"$compressed.inputs"
}

start_server() {
  mkdir -p build
  work=$(mktemp -d build/demo.XXXXXX)
  # A session of its own: Ctrl-C reaches this script, which then stops the server in order.
  setsid "$bin/flashsvd-server" --model "lowrank=$compressed" --model "dense=$model" \
    --listen 127.0.0.1 --port 0 --metrics-port 0 --port-file "$work/ports" \
    --drain-delay 0s >"$work/server.log" 2>&1 </dev/null &
  server_pid=$!
  for _ in $(seq 600); do
    [ -s "$work/ports" ] && break
    kill -0 "$server_pid" 2>/dev/null || fail 'the server ended before it listened'
    sleep 0.1
  done
  [ -s "$work/ports" ] || fail 'the server did not listen within 60 s'
  grpc_port=$(awk '$1 == "grpc" { print $2 }' "$work/ports")
  metrics_port=$(awk '$1 == "metrics" { print $2 }' "$work/ports")
  export FLASHSVD_ADDRESS=127.0.0.1:$grpc_port
  "$bin/flashsvd-client" health --wait 60 || fail 'the server does not serve'
  echo "gRPC on $FLASHSVD_ADDRESS, metrics on http://127.0.0.1:$metrics_port/metrics"
}

# 2,000 lines of one to three sentences, the same every time.
make_stream() {
  awk '{ line[NR - 1] = $0 }
       END {
         for (i = 0; i < 2000; ++i) {
           text = line[i % NR]
           if (i % 3 > 0) text = text " " line[(i * 7 + 3) % NR]
           if (i % 3 > 1) text = text " " line[(i * 5 + 1) % NR]
           print text
         }
       }' tools/demo/sentences.txt
}

# Texts that fill whole batches: every one is cut at the model's longest input.
make_long_texts() {
  awk '{ all = all " " $0 }
       END { for (i = 0; i < 64; ++i) { text = ""; for (j = 0; j < 8; ++j) text = text all; print text } }' \
    tools/demo/sentences.txt
}

embed_texts() {
  step 'Similarity of sentences, by the compressed model'
  "$bin/flashsvd-client" similarity --model lowrank --reference dense tools/demo/sentences.txt ||
    fail 'similarity failed'
  echo "The runtime is exact: what differs from the dense model is the compression's doing. Plain SVD"
  echo "at keep $share costs a small model much; a data-aware method (whitening) is what to use there."

  step 'Throughput: 2,000 texts through EmbedStream'
  make_stream >"$work/stream.txt"
  for name in dense lowrank; do
    printf '%-8s' "$name"
    "$bin/flashsvd-client" embed --model "$name" --batch 64 --no-progress \
      --output "$work/$name.npy" "$work/stream.txt" || fail "embed failed"
  done

  step 'Memory of a full batch: 64 texts of the longest input'
  make_long_texts >"$work/long.txt"
  "$bin/flashsvd-client" embed --model lowrank --batch 64 --no-progress \
    --output "$work/long.npy" "$work/long.txt" || fail "embed failed"
  "$bin/flashsvd-client" models || fail 'models failed'
  "$bin/flashsvd-client" models lowrank | sed -n '1,/^$/p' || fail 'models failed'
}

show_metrics() {
  step 'Memory metrics'
  curl --silent --show-error --fail --noproxy '*' --max-time 10 \
    "http://127.0.0.1:$metrics_port/metrics" >"$work/metrics" || fail 'no metrics'
  grep -E '^(flashsvd_(device_memory|weight|device_allocations)|process_resident_memory)' \
    "$work/metrics" || fail 'the metrics name no memory'
}

keep_running() {
  cat <<END

The server is left running (process $server_pid, log $work/server.log):
  $bin/flashsvd-client --address $FLASHSVD_ADDRESS embed --model lowrank tools/demo/sentences.txt
  grpcurl -plaintext -d '{"model": "lowrank", "text": {"texts": ["hello"]}}' $FLASHSVD_ADDRESS \\
    flashsvd.v1.EncoderService/Embed
  python3 tools/client/example.py $FLASHSVD_ADDRESS lowrank
  curl http://127.0.0.1:$metrics_port/metrics
Stop it with: kill $server_pid
END
  server_pid=
  work=
}

step 'Packages and build'
build
step 'Model'
if [ -z "${MODEL:-}" ]; then tools/fetch-model.sh; fi
[ -f "$model/config.json" ] || fail "$model has no config.json"
echo "$model"
step "Compression to $share of the encoder's linear parameters, $layout"
compress
step 'Server'
start_server
embed_texts
show_metrics
if [ -n "${KEEP:-}" ] && [ "$KEEP" != 0 ]; then
  keep_running
  exit 0
fi
step 'Stop'
if ! stop_server; then fail 'the server did not end with exit code 0'; fi
echo "the server drained and ended; $((SECONDS - started)) s in all"
