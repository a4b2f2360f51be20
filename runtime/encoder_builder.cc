// Encoder::Create: reads one layer at a time from the weight source, folds it, packs it, and lets
// the float32 copy go, so that loading needs the packed model plus one layer.

#include <cmath>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/attention_fold.h"
#include "runtime/encoder.h"
#include "runtime/encoder_layer.h"

namespace flashsvd {

class EncoderBuilder {
 public:
  EncoderBuilder(const WeightSource& weights, Encoder* encoder)
      : weights_(weights), encoder_(*encoder), config_(encoder->config_) {}

  absl::Status Build() {
    FSVD_RETURN_IF_ERROR(BuildEmbeddings());
    encoder_.layers_.reserve(config_.layers);
    for (int i = 0; i < config_.layers; ++i) {
      FSVD_RETURN_IF_ERROR(BuildLayer(fmt::format("encoder.layer.{}.", i)));
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Buffer> Upload(const std::string& name, std::vector<int64_t> shape, DType as) {
    FSVD_ASSIGN_OR_RETURN(const std::vector<float> values, weights_.LoadTensor(name, shape));
    FSVD_ASSIGN_OR_RETURN(Buffer buffer,
                          encoder_.backend_.Upload(values.data(), values.size(), as));
    encoder_.weight_bytes_.resident += buffer.bytes();
    encoder_.weight_bytes_.dense_equivalent += values.size() * DTypeBytes(as);
    return buffer;
  }

  absl::StatusOr<OwnedLayerNorm> LoadLayerNorm(const std::string& name) {
    OwnedLayerNorm norm{.epsilon = config_.layer_norm_eps};
    FSVD_ASSIGN_OR_RETURN(norm.gamma, Upload(name + ".weight", {config_.hidden}, DType::kF32));
    FSVD_ASSIGN_OR_RETURN(norm.beta, Upload(name + ".bias", {config_.hidden}, DType::kF32));
    return norm;
  }

  absl::StatusOr<LinearWeights> LoadLinear(const std::string& name, int in, int out) {
    FSVD_ASSIGN_OR_RETURN(LinearWeights w, weights_.LoadLinear(name, in, out, config_.heads));
    WeightBytes& bytes = encoder_.weight_bytes_;
    bytes.dense_linear_parameters += w.dense_parameters();
    bytes.dense_equivalent += w.dense_parameters() * DTypeBytes(encoder_.backend_.dtype()) +
                              w.bias.size() * sizeof(float);
    // A shared basis is stored once, and counted with the query.
    const bool counted_before = w.layout == LinearLayout::kQkvShared && !name.ends_with(".query");
    bytes.linear_parameters += counted_before ? static_cast<int64_t>(w.b.size()) : w.parameters();
    return w;
  }

  absl::StatusOr<std::unique_ptr<Linear>> Pack(const HostLinear& linear) {
    FSVD_ASSIGN_OR_RETURN(std::unique_ptr<Linear> packed,
                          encoder_.backend_.PackLinear(linear.source()));
    encoder_.weight_bytes_.resident += packed->bytes();
    return packed;
  }

  absl::Status BuildEmbeddings() {
    const DType dtype = encoder_.backend_.dtype();
    const auto table = [&](const char* name, int rows) {
      return Upload(fmt::format("embeddings.{}_embeddings.weight", name), {rows, config_.hidden},
                    dtype);
    };
    FSVD_ASSIGN_OR_RETURN(encoder_.word_, table("word", config_.vocab));
    FSVD_ASSIGN_OR_RETURN(encoder_.position_, table("position", config_.max_positions));
    FSVD_ASSIGN_OR_RETURN(encoder_.type_, table("token_type", config_.type_vocab));
    FSVD_ASSIGN_OR_RETURN(OwnedLayerNorm norm, LoadLayerNorm("embeddings.LayerNorm"));
    encoder_.embedding_norm_ = std::make_unique<OwnedLayerNorm>(std::move(norm));
    return absl::OkStatus();
  }

  absl::Status BuildLayer(const std::string& prefix) {
    const int d = config_.hidden;
    Encoder::Layer layer;

    FSVD_ASSIGN_OR_RETURN(const LinearWeights q, LoadLinear(prefix + "attention.self.query", d, d));
    FSVD_ASSIGN_OR_RETURN(const LinearWeights k, LoadLinear(prefix + "attention.self.key", d, d));
    FSVD_ASSIGN_OR_RETURN(const LinearWeights v, LoadLinear(prefix + "attention.self.value", d, d));
    FSVD_ASSIGN_OR_RETURN(const LinearWeights o,
                          LoadLinear(prefix + "attention.output.dense", d, d));
    const FoldedAttention folded =
        GroupPairs(PadHeadDims(FoldAttention(q, k, v, o, config_.heads), config_.heads,
                               encoder_.backend_.width_multiple()));
    layer.d_qk = folded.d_qk;
    layer.d_v = folded.d_v;
    for (const FoldedAttention::Projection& p : folded.projections) {
      FSVD_ASSIGN_OR_RETURN(std::unique_ptr<Linear> packed, Pack(p.linear));
      layer.projections.push_back({std::move(packed), p.column});
    }
    FSVD_ASSIGN_OR_RETURN(layer.output, Pack(folded.output));
    FSVD_ASSIGN_OR_RETURN(layer.attention_norm,
                          LoadLayerNorm(prefix + "attention.output.LayerNorm"));

    FSVD_ASSIGN_OR_RETURN(LinearWeights up,
                          LoadLinear(prefix + "intermediate.dense", d, config_.ffn));
    FSVD_ASSIGN_OR_RETURN(layer.up, Pack(ToHostLinear(std::move(up))));
    FSVD_ASSIGN_OR_RETURN(LinearWeights down, LoadLinear(prefix + "output.dense", config_.ffn, d));
    FSVD_ASSIGN_OR_RETURN(layer.down, Pack(ToHostLinear(std::move(down))));
    FSVD_ASSIGN_OR_RETURN(layer.ffn_norm, LoadLayerNorm(prefix + "output.LayerNorm"));
    encoder_.layers_.push_back(std::move(layer));
    return absl::OkStatus();
  }

  const WeightSource& weights_;
  Encoder& encoder_;
  const ModelConfig& config_;
};

absl::StatusOr<std::unique_ptr<Encoder>> Encoder::Create(const WeightSource& weights,
                                                         const ModelConfig& config,
                                                         const Backend& backend,
                                                         const EncoderOptions& options) {
  if (options.chunk_tokens < 0) {
    return absl::InvalidArgumentError(
        fmt::format("chunk_tokens is {}, must not be negative", options.chunk_tokens));
  }
  EncoderOptions resolved = options;
  if (options.chunk_tokens == 0) resolved.chunk_tokens = backend.chunk_tokens();
  auto encoder = std::unique_ptr<Encoder>(new Encoder(config, backend, resolved));
  FSVD_RETURN_IF_ERROR(EncoderBuilder(weights, encoder.get()).Build());
  return encoder;
}

}  // namespace flashsvd
