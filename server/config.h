#ifndef FLASHSVD_SERVER_CONFIG_H_
#define FLASHSVD_SERVER_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace flashsvd {

struct ModelSpec {
  std::string name;  // what requests call it; default: the directory's last component
  std::string dir;
};

// Everything that a server can be told. Keys of the YAML file are named as the members, flags the
// same with dashes; config_keys.cc says what each means and which values it takes.
struct ServerConfig {
  std::vector<ModelSpec> models;

  std::string listen = "0.0.0.0";
  int port = 50051;         // 0: any free one
  int metrics_port = 9090;  // 0: any free one; -1: none
  std::string port_file;

  std::string device = "auto";
  std::vector<int> devices = {0};
  std::string dtype = "auto";
  std::string cpu_isa = "auto";
  int threads = 0;            // 0: one per core
  int slots = 0;              // 0: 2 on CUDA devices, else 1
  int64_t memory_budget = 0;  // 0: none

  int max_batch_tokens = 16384;
  int max_batch_sequences = 512;
  int max_delay_us = 0;
  int max_queue_requests = 1024;
  int64_t max_queue_tokens = 0;  // 0: 16 max_batch_tokens
  int64_t max_queue_bytes = int64_t{64} << 20;

  int64_t max_message_bytes = int64_t{16} << 20;
  int max_inputs_per_request = 256;
  int64_t max_text_bytes = int64_t{1} << 20;
  int stream_window = 256;
  absl::Duration default_deadline = absl::Seconds(30);
  int tokenizer_threads = 0;  // 0: min(4, cores - 1), at least 1

  absl::Duration max_connection_age = absl::Minutes(10);  // 0: no limit
  absl::Duration max_connection_age_grace = absl::Minutes(5);
  absl::Duration min_ping_interval = absl::Seconds(10);

  absl::Duration drain_delay = absl::Seconds(5);
  absl::Duration drain_timeout = absl::Seconds(25);

  std::string log_format = "text";
  std::string log_level = "info";
};

// What a command line asks for.
struct CommandLine {
  enum class Mode : uint8_t {
    kServe,
    kCheck,        // --check
    kHealthcheck,  // --healthcheck
    kPrint,        // --help, --version: print `text` and leave
  };
  Mode mode = Mode::kServe;
  ServerConfig config;
  std::string text;
};

// Reads the flags, and the file that --config names; flags win. InvalidArgument, in one line: what
// is wrong with which flag, or with which key in which line of the file. Serving and checking need
// at least one model.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);

// Applies a YAML document to `config`. `file` is for messages: "FILE:LINE: key: what is wrong".
absl::Status ApplyYaml(const std::string& text, const std::string& file, ServerConfig* config);

// "512MiB", "1.5GB", "4096": KiB, MiB and GiB are powers of 1024, KB, MB and GB of 1000.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
// In the largest unit that is exact: "512MiB", "1000".
std::string FormatBytes(int64_t bytes);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_CONFIG_H_
