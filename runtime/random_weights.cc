#include "runtime/random_weights.h"

#include <cmath>
#include <functional>
#include <random>

#include "fmt/format.h"

namespace flashsvd {
namespace {

uint64_t HashName(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

}  // namespace

std::vector<float> RandomWeights::Gaussian(const std::string& name, int64_t count, double deviation,
                                           double mean) const {
  std::mt19937_64 generator(options_.seed ^ HashName(name));
  std::normal_distribution<float> normal(static_cast<float>(mean), static_cast<float>(deviation));
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

absl::StatusOr<LinearWeights> RandomWeights::LoadLinear(const std::string& name, int in, int out,
                                                        int heads) const {
  LinearWeights w{.name = name, .in = in, .out = out};
  w.bias = Gaussian(name + ".bias", out, 0.1);
  const double deviation = 1 / std::sqrt(in);
  const bool qkv = name.find("attention.self.") != std::string::npos;
  if (options_.layout == LinearLayout::kDense) {
    w.weight = Gaussian(name + ".weight", static_cast<int64_t>(in) * out, deviation);
    return w;
  }
  w.layout = qkv ? options_.layout : LinearLayout::kFull;
  const bool attention_output = name.find("attention.output.") != std::string::npos;
  w.rank = qkv ? options_.rank_qkv : attention_output ? options_.rank_out : options_.rank_ffn;
  if (w.rank < 1) {
    return absl::InvalidArgumentError(fmt::format("{}: rank {} is not positive", name, w.rank));
  }
  w.heads = w.layout == LinearLayout::kPerHead ? heads : 1;
  const std::string a = w.layout == LinearLayout::kQkvShared
                            ? name.substr(0, name.rfind('.')) + ".shared.A"
                            : name + ".lowrank.A";
  w.a = Gaussian(a, static_cast<int64_t>(w.heads) * w.rank * in, deviation);
  w.b = Gaussian(name + ".lowrank.B", static_cast<int64_t>(out) * w.rank, 1 / std::sqrt(w.rank));
  return w;
}

absl::StatusOr<std::vector<float>> RandomWeights::LoadTensor(const std::string& name,
                                                             std::vector<int64_t> shape) const {
  int64_t count = 1;
  for (const int64_t n : shape) count *= n;
  const bool gamma = name.ends_with("LayerNorm.weight");
  return Gaussian(name, count, gamma || name.ends_with(".bias") ? 0.1 : 1.0, gamma ? 1.0 : 0.0);
}

absl::StatusOr<ModelConfig> NamedShape(const std::string& name) {
  ModelConfig config{.model_type = "bert",
                     .vocab = 30522,
                     .max_positions = 512,
                     .type_vocab = 2,
                     .layer_norm_eps = 1e-12f,
                     .max_seq_length = 512,
                     .normalize = true};
  const auto sized = [&](int layers, int hidden, int heads, int ffn) {
    config.layers = layers;
    config.hidden = hidden;
    config.heads = heads;
    config.ffn = ffn;
    return config;
  };
  if (name == "minilm") return sized(6, 384, 12, 1536);
  if (name == "bert-base") return sized(12, 768, 12, 3072);
  if (name == "bert-large") return sized(24, 1024, 16, 4096);
  return absl::InvalidArgumentError(
      fmt::format("unknown shape \"{}\"; known: minilm, bert-base, bert-large", name));
}

}  // namespace flashsvd
