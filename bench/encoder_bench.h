#ifndef FLASHSVD_BENCH_ENCODER_BENCH_H_
#define FLASHSVD_BENCH_ENCODER_BENCH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend_factory.h"
#include "runtime/weights.h"

namespace flashsvd {

struct EncoderBenchOptions {
  BackendOptions backend;
  // One of the two: a model directory, or a named shape with random weights.
  std::string model_dir;
  std::string shape;
  // "per_head", "full", "qkv_shared" for a shape; "dense" runs the same model uncompressed and
  // unfused: a directory's factors are multiplied out first.
  std::string layout;
  int rank_qkv = 0;
  int rank_ffn = 0;
  int rank_out = 0;
  uint64_t seed = 1;
  int batch = 1;
  int length = 128;
  int chunk_tokens = 0;  // 0: what the device likes best
  // File of raw little-endian int32 ids [batch * length]; empty: random ones.
  std::string ids_file;
  // File to write the pooled vectors to, raw float32 [batch, d], not normalised; empty: none.
  std::string output_file;
  double seconds = 2;  // measured time, after a warm-up; at least five passes
  // Also run the dense, unfused model in the same process, pass by pass in turn.
  bool compare_dense = false;
};

struct EncoderBenchResult {
  std::string name;  // "low-rank", "dense" or "dense unfused"
  std::string backend;
  std::string dtype;
  int threads = 0;
  int passes = 0;
  double latency_ms_p50 = 0;
  double latency_ms_p90 = 0;
  double tokens_per_s = 0;
  double gflops = 0;
  double peak_gflops = 0;  // this CPU's, register only, same dtype and threads; 0 on other devices
  size_t weight_bytes = 0;
  size_t activation_planned_bytes = 0;
  size_t activation_high_water_bytes = 0;
  size_t rss_above_loaded_bytes = 0;  // peak resident memory beyond that of the loaded model
};

// One result, or two with compare_dense. Shows progress on stderr when that is a terminal.
absl::StatusOr<std::vector<EncoderBenchResult>> RunEncoderBench(const EncoderBenchOptions& options);

}  // namespace flashsvd

#endif  // FLASHSVD_BENCH_ENCODER_BENCH_H_
