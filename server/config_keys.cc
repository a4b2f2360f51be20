#include "server/config_keys.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "fmt/format.h"
#include "fmt/ranges.h"
#include "kernels/status_macros.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

constexpr int64_t kMany = int64_t{1} << 40;

template <typename Int>
ConfigKey IntKey(std::string name, Int ServerConfig::*member, int64_t least, int64_t most,
                 std::string help) {
  ConfigKey key{.name = std::move(name), .type = "N", .help = std::move(help)};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end) {
      return absl::InvalidArgumentError(fmt::format("{} is not an integer", Quoted(text)));
    }
    if (value < least || value > most) {
      return absl::InvalidArgumentError(
          fmt::format("{} is not within {} to {}", value, least, most));
    }
    config->*member = static_cast<Int>(value);
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) { return fmt::format("{}", config.*member); };
  return key;
}

ConfigKey BytesKey(std::string name, int64_t ServerConfig::*member, int64_t least, int64_t most,
                   std::string help) {
  ConfigKey key{.name = std::move(name), .type = "BYTES", .help = std::move(help)};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    FSVD_ASSIGN_OR_RETURN(const int64_t value, ParseBytes(text));
    if (value < least || value > most) {
      return absl::InvalidArgumentError(
          fmt::format("{} is not within {} to {}", text, FormatBytes(least), FormatBytes(most)));
    }
    config->*member = value;
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) { return FormatBytes(config.*member); };
  return key;
}

ConfigKey DurationKey(std::string name, absl::Duration ServerConfig::*member, absl::Duration least,
                      absl::Duration most, std::string help) {
  ConfigKey key{.name = std::move(name), .type = "TIME", .help = std::move(help)};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    absl::Duration value;
    if (!absl::ParseDuration(text, &value)) {
      return absl::InvalidArgumentError(
          fmt::format("{} is not a time such as 30s, 5m or 250ms", Quoted(text)));
    }
    if (value < least || value > most) {
      return absl::InvalidArgumentError(fmt::format("{} is not within {} to {}", text,
                                                    absl::FormatDuration(least),
                                                    absl::FormatDuration(most)));
    }
    config->*member = value;
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) { return absl::FormatDuration(config.*member); };
  return key;
}

ConfigKey ChoiceKey(std::string name, std::string ServerConfig::*member,
                    std::vector<std::string> choices, std::string help) {
  ConfigKey key{.name = std::move(name),
                .type = fmt::format("{}", fmt::join(choices, "|")),
                .help = std::move(help)};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      return absl::InvalidArgumentError(
          fmt::format("{} is not one of {}", Quoted(text), fmt::join(choices, ", ")));
    }
    config->*member = text;
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) { return config.*member; };
  return key;
}

ConfigKey TextKey(std::string name, std::string ServerConfig::*member, std::string type,
                  std::string help) {
  ConfigKey key{.name = std::move(name), .type = std::move(type), .help = std::move(help)};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    if (text.empty()) return absl::InvalidArgumentError("is empty");
    config->*member = text;
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) { return config.*member; };
  return key;
}

// "0" or "0,1"; in YAML also [0, 1].
ConfigKey IndexListKey(std::string name, std::vector<int> ServerConfig::*member, int most,
                       std::string help) {
  ConfigKey key{.name = std::move(name), .type = "N,N", .help = std::move(help), .is_list = true};
  key.set = [=](const std::string& text, ServerConfig* config) -> absl::Status {
    std::vector<int> values;
    for (const absl::string_view item : absl::StrSplit(text, ',')) {
      int value = 0;
      if (!absl::SimpleAtoi(item, &value)) {
        return absl::InvalidArgumentError(
            fmt::format("{} is not a list of integers such as 0,1", Quoted(text)));
      }
      if (value < 0 || value > most) {
        return absl::InvalidArgumentError(fmt::format("{} is not within 0 to {}", value, most));
      }
      values.push_back(value);
    }
    config->*member = std::move(values);
    return absl::OkStatus();
  };
  key.show = [=](const ServerConfig& config) {
    return fmt::format("{}", fmt::join(config.*member, ","));
  };
  return key;
}

using C = ServerConfig;

std::vector<ConfigKey> NetworkKeys() {
  return {
      TextKey("listen", &C::listen, "ADDRESS", "address to listen on, of both ports"),
      IntKey("port", &C::port, 0, 65535, "gRPC port; 0: any free one"),
      IntKey("metrics_port", &C::metrics_port, -1, 65535,
             "port of Prometheus' /metrics; 0: any free one, -1: none"),
      TextKey("port_file", &C::port_file, "FILE",
              "write the ports there once they listen, as lines \"grpc N\" and \"metrics N\""),
      BytesKey("max_message_bytes", &C::max_message_bytes, 1 << 10, int64_t{1} << 30,
               "largest request, and largest answer, of one call"),
      DurationKey("max_connection_age", &C::max_connection_age, absl::ZeroDuration(),
                  absl::Hours(24 * 365),
                  "connections older than this are asked to reconnect, so that clients find new "
                  "replicas; 0: never"),
      DurationKey("max_connection_age_grace", &C::max_connection_age_grace, absl::ZeroDuration(),
                  absl::Hours(24 * 365), "how long calls on such a connection may still take"),
      DurationKey("min_ping_interval", &C::min_ping_interval, absl::Milliseconds(1),
                  absl::Hours(24), "clients that send keepalive pings more often are disconnected"),
  };
}

std::vector<ConfigKey> DeviceKeys() {
  return {
      ChoiceKey("device", &C::device, {"auto", "cpu", "cuda", "reference"},
                "where to compute; auto: a CUDA device of compute capability 8.0 or newer when "
                "there is one, else the CPU"),
      IndexListKey("devices", &C::devices, 255,
                   "CUDA devices to compute on, each with its own copy of the weights and its own "
                   "slots, fed from one queue"),
      ChoiceKey("dtype", &C::dtype, {"auto", "f32", "f16", "bf16"},
                "precision of weights and activations: f32 and bf16 on a CPU, f16 and bf16 on CUDA "
                "devices; auto: bf16 on CUDA devices and on a CPU that multiplies it natively "
                "(AVX-512 BF16, AMX), else f32"),
      TextKey("cpu_isa", &C::cpu_isa, "NAME",
              "CPU instruction set: portable, avx2, avx512 or avx512_bf16; auto: environment "
              "FLASHSVD_CPU_ISA, else the fastest"),
      IntKey("threads", &C::threads, 0, 1024,
             "CPU threads that share one batch; 0: one per available core"),
      IntKey(
          "slots", &C::slots, 0, 256,
          "batches computed at once on each device, each with its own arena; 0: 2 on CUDA devices, "
          "so that one batch is copied while another computes, else 1"),
      BytesKey("memory_budget", &C::memory_budget, 0, kMany,
               "most that weights, activations and I/O of all models may take; batch limits and "
               "slots shrink to fit. On several devices, of each. Models are loaded in order, each "
               "gets what is left. 0: no "
               "limit"),
  };
}

std::vector<ConfigKey> BatchKeys() {
  constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
  return {
      IntKey("max_batch_tokens", &C::max_batch_tokens, 1, 1 << 24, "tokens of one batch"),
      IntKey("max_batch_sequences", &C::max_batch_sequences, 1, 1 << 20, "sequences of one batch"),
      IntKey("max_delay_us", &C::max_delay_us, 0, 2000,
             "microseconds that a free slot waits for a batch to fill up; 0: not at all"),
      IntKey("max_queue_requests", &C::max_queue_requests, 1, kMaxInt,
             "requests that may wait, per model; more are refused with RESOURCE_EXHAUSTED"),
      IntKey("max_queue_tokens", &C::max_queue_tokens, 0, kMany,
             "tokens that may wait; 0: 16 times max_batch_tokens"),
      BytesKey("max_queue_bytes", &C::max_queue_bytes, 1 << 10, kMany,
               "memory that waiting requests may hold"),
  };
}

std::vector<ConfigKey> RequestKeys() {
  return {
      IntKey("max_inputs_per_request", &C::max_inputs_per_request, 1, 1 << 20,
             "texts or token sequences of one request"),
      BytesKey("max_text_bytes", &C::max_text_bytes, 1, int64_t{1} << 30, "bytes of one text"),
      DurationKey("default_deadline", &C::default_deadline, absl::Milliseconds(1), absl::Hours(24),
                  "for calls whose client sets no deadline"),
      IntKey("stream_window", &C::stream_window, 1, 65536,
             "requests of one stream in flight, and at most about two batches of tokens; reading "
             "stops "
             "while it is full"),
      IntKey("tokenizer_threads", &C::tokenizer_threads, 0, 1024,
             "threads that parse and tokenise requests too large for gRPC's event threads; 0: "
             "min(4, cores - 1), at least 1"),
  };
}

std::vector<ConfigKey> OperationKeys() {
  return {
      DurationKey("drain_delay", &C::drain_delay, absl::ZeroDuration(), absl::Hours(1),
                  "after SIGTERM: report NOT_SERVING but keep serving this long, until load "
                  "balancers have noticed"),
      DurationKey("drain_timeout", &C::drain_timeout, absl::ZeroDuration(), absl::Hours(24),
                  "then: longest wait for accepted requests"),
      ChoiceKey("log_format", &C::log_format, {"text", "json"}, "one line per event, on stderr"),
      ChoiceKey("log_level", &C::log_level, {"debug", "info", "warn", "error"},
                "least severe level that is logged"),
  };
}

void Append(const char* group, std::vector<ConfigKey> keys, std::vector<ConfigKey>* all) {
  for (ConfigKey& key : keys) {
    key.group = group;
    all->push_back(std::move(key));
  }
}

std::vector<ConfigKey> MakeKeys() {
  std::vector<ConfigKey> all;
  Append("Network", NetworkKeys(), &all);
  Append("Device and memory", DeviceKeys(), &all);
  Append("Batches and queue", BatchKeys(), &all);
  Append("Requests", RequestKeys(), &all);
  Append("Operation", OperationKeys(), &all);
  return all;
}

}  // namespace

std::string ConfigKey::flag() const {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

const std::vector<ConfigKey>& ConfigKeys() {
  static const auto& keys = *new std::vector<ConfigKey>(MakeKeys());
  return keys;
}

const ConfigKey* FindConfigKey(std::string_view name) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

}  // namespace flashsvd
