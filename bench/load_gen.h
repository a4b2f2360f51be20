#ifndef FLASHSVD_BENCH_LOAD_GEN_H_
#define FLASHSVD_BENCH_LOAD_GEN_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace flashsvd {

struct LoadOptions {
  std::string address = "localhost:50051";
  std::string model;         // "": the server's only one
  std::string texts_file;    // one text a line; "": synthetic token ids
  int batch = 1;             // inputs of a request
  std::vector<int> lengths;  // of synthetic inputs, drawn evenly; {128} if empty
  int concurrency = 1;  // requests in flight: each client sends the next when it has its answer
  int connections = 0;  // that the clients share; 0: one for 16 clients, at most 16
  double warm_up_seconds = 1;  // not counted
  double seconds = 5;          // measured
  uint64_t seed = 1;
};

// Latencies are milliseconds as the client sees them.
struct LoadResult {
  int64_t requests = 0;
  std::map<std::string, int64_t> errors;  // by gRPC code
  double latency_p50 = 0;
  double latency_p90 = 0;
  double latency_p99 = 0;
  double compute_p50 = 0;  // of its batch, as the server reports it
  double queue_p50 = 0;
  double overhead_p50 = 0;  // latency - queue - compute: network, parsing, tokenising, formatting
  double requests_per_s = 0;
  double tokens_per_s = 0;
  uint64_t activation_bytes = 0;  // largest reported
};

// Runs a closed loop against a running server. Errors: the server cannot be reached, the model is
// unknown, the texts cannot be read. Requests that fail are counted.
absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options);

}  // namespace flashsvd

#endif  // FLASHSVD_BENCH_LOAD_GEN_H_
