#include "tools/compress/cli.h"

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "fmt/format.h"
#include "tools/compress/compressor.h"
#include "tools/compress/report.h"

namespace flashsvd {
namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;
constexpr int kCancelled = 130;  // as a shell reports SIGINT

constexpr char kDescription[] =
    R"(Compresses a BERT-family encoder: every linear module of its layers (query, key, value,
attention.output.dense, intermediate.dense, output.dense) is replaced by low-rank factors
W ~ B A from a truncated SVD. Writes a complete model directory that flashsvd-server loads.)";

constexpr char kFooter[] = R"(
Layouts of query, key and value (every other module is always full):
  per_head    a pair of factors per attention head, A [H, R, in], B [H, h, R]: attention then runs
              at head width R and never rebuilds Q, K or V
  full        one pair for the whole matrix, A [r, in], B [out, r]: more accurate at equal size
  qkv_shared  one A [r, in] for query, key and value, from the SVD of the three stacked

Ranks: with --keep K a module gets the largest rank that stores at most the share K of its
parameters, floor(K m n / (m + n)) for [m, n]; what the rounding leaves over is spent where it cost
most. The total never exceeds K. A module whose low-rank form would not be smaller stays dense.
--ranks sets them instead: R for query, key and value, r_ffn for intermediate.dense and
output.dense, r_out for attention.output.dense.

Stored: A = sqrt(S) V', B = U sqrt(S), balanced so that 16 bits lose least. --dtype applies to every
matrix, embeddings and heads included; vectors (biases, LayerNorms) are f32. Integer tensors
(position_ids) are left out. Tokenizer, pooling and all other files are copied; weights in other
formats (.bin, .onnx, ...) are not. The directory appears under its name only once it is complete.

Plain truncated SVD uses no data: expect clear losses at keep 0.5 unless the model is fine-tuned.

Examples:
  flashsvd-compress --model models/all-MiniLM-L6-v2 --out models/minilm-half --keep 0.5
  flashsvd-compress --model bert --out bert-lr --layout per_head --ranks 40,240,240
  flashsvd-compress --model bert --out bert-lr --layout full --keep 0.75 --dtype f32 --json)";

const std::map<std::string, LinearLayout> kLayouts = {{"per_head", LinearLayout::kPerHead},
                                                      {"full", LinearLayout::kFull},
                                                      {"qkv_shared", LinearLayout::kQkvShared}};
const std::map<std::string, DType> kDTypes = {
    {"bf16", DType::kBF16}, {"f16", DType::kF16}, {"f32", DType::kF32}};

template <typename Map>
std::vector<std::string> Keys(const Map& map) {
  std::vector<std::string> keys;
  keys.reserve(map.size());
  for (const auto& entry : map) keys.push_back(entry.first);
  return keys;
}

// What the flags hold before they are interpreted.
struct Flags {
  std::string model;
  std::string out;
  double keep = 0;
  std::vector<int> ranks;
  std::string layout = "per_head";
  std::string dtype = "bf16";
  bool force = false;
  bool json = false;
  int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 1024U));
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.footer(kFooter);
  app.add_option("--model", flags.model, "Directory of the dense model")
      ->required()
      ->type_name("DIR");
  app.add_option("--out", flags.out, "Directory to create")->required()->type_name("DIR");
  CLI::Option* keep = app.add_option("--keep", flags.keep,
                                     "Share of the encoder's linear parameters to keep, in (0, 1]")
                          ->type_name("SHARE");
  app.add_option("--ranks", flags.ranks, "The ranks themselves, instead of --keep")
      ->delimiter(',')
      ->excludes(keep)
      ->type_name("R,r_ffn,r_out");
  app.add_option("--layout", flags.layout, "Layout of query, key and value")
      ->check(CLI::IsMember(Keys(kLayouts)))
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--dtype", flags.dtype, "Type of the stored matrices")
      ->check(CLI::IsMember(Keys(kDTypes)))
      ->capture_default_str()
      ->type_name("TYPE");
  app.add_flag("--force", flags.force, "Replace --out if it is a model directory");
  app.add_option("--threads", flags.threads, "Modules decomposed at once (default: all cores)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  app.add_flag("--json", flags.json, "Print the report as JSON");
}

// Empty if the flags make sense together.
std::string CheckFlags(const CLI::App& app, const Flags& flags) {
  const bool has_keep = app.count("--keep") > 0;
  if (has_keep == (app.count("--ranks") > 0)) return "exactly one of --keep and --ranks is needed";
  if (has_keep && !(flags.keep > 0 && flags.keep <= 1)) {
    return fmt::format("--keep: {} is not in (0, 1]", flags.keep);
  }
  if (!has_keep && flags.ranks.size() != 3) {
    return fmt::format("--ranks: {} numbers, three are needed: R,r_ffn,r_out", flags.ranks.size());
  }
  for (const int rank : flags.ranks) {
    if (rank < 1) return fmt::format("--ranks: {} is not a positive rank", rank);
  }
  for (const auto& [name, value] : {std::pair{"--model", &flags.model}, {"--out", &flags.out}}) {
    if (value->empty()) return fmt::format("{}: the path is empty", name);
  }
  return "";
}

int Fail(std::FILE* err, const std::string& message, int code) {
  fmt::print(err, "flashsvd-compress: {}\n", message);
  return code;
}

}  // namespace

int RunCompress(int argc, const char* const* argv, std::FILE* out, std::FILE* err,
                const std::atomic<bool>* cancelled) {
  Flags flags;
  CLI::App app(kDescription, "flashsvd-compress");
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    fmt::print(out, "{}", app.help());
    return 0;
  } catch (const CLI::ParseError& e) {
    return Fail(err, fmt::format("{} (see --help)", e.what()), kUsage);
  }
  if (const std::string wrong = CheckFlags(app, flags); !wrong.empty()) {
    return Fail(err, wrong, kUsage);
  }

  CompressOptions options;
  options.model_dir = flags.model;
  options.out_dir = flags.out;
  options.keep = flags.keep;
  if (!flags.ranks.empty()) options.ranks = {flags.ranks[0], flags.ranks[1], flags.ranks[2]};
  options.layout = kLayouts.at(flags.layout);
  options.dtype = kDTypes.at(flags.dtype);
  options.force = flags.force;
  options.threads = flags.threads;
  options.progress = err;
  options.cancelled = cancelled;
  const absl::StatusOr<CompressReport> report = Compress(options);
  if (!report.ok()) {
    return Fail(err, std::string(report.status().message()),
                absl::IsCancelled(report.status()) ? kCancelled : kFailure);
  }
  fmt::print(out, "{}", flags.json ? ReportToJson(*report) : FormatReport(*report));
  return 0;
}

}  // namespace flashsvd
