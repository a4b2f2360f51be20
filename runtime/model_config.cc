#include "runtime/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/status_macros.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;

// Far above any published encoder. Within them the product of hidden and any other size but vocab
// fits an int, and the product of any three sizes an int64_t, whatever a config file says.
constexpr int kMaxHidden = 16384;
constexpr int kMaxLayers = 512;
constexpr int kMaxFfn = 65536;
constexpr int kMaxVocab = 4'000'000;
constexpr int kMaxPositions = 65536;
constexpr int kMaxTypes = 1024;
// [CLS] and [SEP] must fit.
constexpr int kMinPositions = 2;
constexpr double kMinEpsilon = 1e-20;
constexpr double kMaxEpsilon = 0.1;

// "a string", or the value itself where it is short and plain.
std::string Describe(const Json& value) {
  if (value.is_string()) return Quoted(value.get<std::string>());
  if (value.is_structured()) return std::string(JsonTypeName(value));
  return value.dump();
}

// A JSON object of one file. Errors name file and field.
class Fields {
 public:
  // `where` leads to the object inside the file: "" or "[1].".
  Fields(const std::string& path, std::string where, const Json& object)
      : path_(path), where_(std::move(where)), object_(object) {}

  absl::Status Invalid(std::string_view field, std::string_view what) const {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}{}: {}", path_, where_, Escaped(field), what));
  }

  bool Has(const std::string& field) const { return object_.contains(field); }

  absl::StatusOr<int> Int(const std::string& field, int min, int max) const {
    FSVD_ASSIGN_OR_RETURN(const Json* value, Get(field));
    if (!value->is_number_integer()) {
      return Invalid(field, fmt::format("{} is not an integer", Describe(*value)));
    }
    const bool too_large =
        value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(max);
    if (too_large || value->get<int64_t>() < min) {
      return Invalid(field, fmt::format("{} is not from {} to {}", Describe(*value), min, max));
    }
    return value->get<int>();
  }

  absl::StatusOr<double> Number(const std::string& field, double min, double max) const {
    FSVD_ASSIGN_OR_RETURN(const Json* value, Get(field));
    if (!value->is_number()) {
      return Invalid(field, fmt::format("{} is not a number", Describe(*value)));
    }
    const double number = value->get<double>();
    if (!(number >= min && number <= max)) {
      return Invalid(field, fmt::format("{} is not from {} to {}", Describe(*value), min, max));
    }
    return number;
  }

  absl::StatusOr<std::string> String(const std::string& field) const {
    FSVD_ASSIGN_OR_RETURN(const Json* value, Get(field));
    if (!value->is_string()) {
      return Invalid(field, fmt::format("{} is not a string", Describe(*value)));
    }
    return value->get<std::string>();
  }

  // False where there is no such field.
  absl::StatusOr<bool> Flag(const std::string& field) const {
    if (!Has(field)) return false;
    const Json& value = object_[field];
    if (!value.is_boolean()) {
      return Invalid(field, fmt::format("{} is not true or false", Describe(value)));
    }
    return value.get<bool>();
  }

 private:
  absl::StatusOr<const Json*> Get(const std::string& field) const {
    const auto it = object_.find(field);
    if (it == object_.end()) return Invalid(field, "missing");
    return &*it;
  }

  const std::string& path_;
  const std::string where_;
  const Json& object_;
};

// Reads a file whose root is an object; null where there is no such file.
absl::StatusOr<std::optional<Json>> ReadOptional(const std::string& path, Json::value_t root) {
  absl::StatusOr<Json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return std::nullopt;
  if (!json.ok()) return json.status();
  if (json->type() != root) {
    return absl::InvalidArgumentError(fmt::format("{}: the root is {} instead of {}", path,
                                                  JsonTypeName(*json), JsonTypeName(Json(root))));
  }
  return *std::move(json);
}

// A BERT encoder, by model_type or, in files from before there was one, by class name.
absl::StatusOr<std::string> ReadModelType(const Json& json, const Fields& fields) {
  if (fields.Has("model_type")) {
    FSVD_ASSIGN_OR_RETURN(std::string type, fields.String("model_type"));
    if (type != "bert") {
      return fields.Invalid("model_type",
                            fmt::format("{} is not supported, only \"bert\"", Quoted(type)));
    }
    return type;
  }
  const auto it = json.find("architectures");
  if (it == json.end()) return fields.Invalid("model_type", "missing");
  if (!it->is_array() || it->empty() || !it->front().is_string()) {
    return fields.Invalid("architectures", "not an array of class names");
  }
  const auto& name = it->front().get_ref<const std::string&>();
  if (!name.starts_with("Bert")) {
    return fields.Invalid("architectures", fmt::format("{} is not a BERT model", Quoted(name)));
  }
  return std::string("bert");
}

absl::StatusOr<Activation> ReadActivation(const Fields& fields) {
  static constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"gelu", Activation::kGelu},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh},
      {"relu", Activation::kRelu},
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu}};
  FSVD_ASSIGN_OR_RETURN(const std::string name, fields.String("hidden_act"));
  for (const auto& [known, activation] : kNames) {
    if (name == known) return activation;
  }
  return fields.Invalid("hidden_act", fmt::format("{} is not supported", Quoted(name)));
}

// Options of the architecture that would change the result.
absl::Status CheckVariant(const Json& json, const Fields& fields) {
  if (const auto it = json.find("position_embedding_type"); it != json.end() && *it != "absolute") {
    return fields.Invalid("position_embedding_type",
                          fmt::format("{} is not supported, only \"absolute\"", Describe(*it)));
  }
  for (const char* field : {"is_decoder", "add_cross_attention"}) {
    FSVD_ASSIGN_OR_RETURN(const bool set, fields.Flag(field));
    if (set) return fields.Invalid(field, "true is not supported: the runtime serves encoders");
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(const auto json, ReadOptional(path, Json::value_t::object));
  if (!json.has_value()) return absl::NotFoundError(fmt::format("{}: no such file", path));
  const Fields fields(path, "", *json);
  ModelConfig config;
  FSVD_ASSIGN_OR_RETURN(config.model_type, ReadModelType(*json, fields));
  FSVD_ASSIGN_OR_RETURN(config.hidden, fields.Int("hidden_size", 1, kMaxHidden));
  FSVD_ASSIGN_OR_RETURN(config.layers, fields.Int("num_hidden_layers", 1, kMaxLayers));
  FSVD_ASSIGN_OR_RETURN(config.heads, fields.Int("num_attention_heads", 1, kMaxHidden));
  if (config.hidden % config.heads != 0) {
    return fields.Invalid(
        "hidden_size",
        fmt::format("{} is not a multiple of num_attention_heads {}", config.hidden, config.heads));
  }
  FSVD_ASSIGN_OR_RETURN(config.ffn, fields.Int("intermediate_size", 1, kMaxFfn));
  FSVD_ASSIGN_OR_RETURN(config.vocab, fields.Int("vocab_size", 1, kMaxVocab));
  FSVD_ASSIGN_OR_RETURN(config.max_positions,
                        fields.Int("max_position_embeddings", kMinPositions, kMaxPositions));
  FSVD_ASSIGN_OR_RETURN(config.type_vocab, fields.Int("type_vocab_size", 1, kMaxTypes));
  FSVD_ASSIGN_OR_RETURN(const double epsilon,
                        fields.Number("layer_norm_eps", kMinEpsilon, kMaxEpsilon));
  config.layer_norm_eps = static_cast<float>(epsilon);
  FSVD_ASSIGN_OR_RETURN(config.activation, ReadActivation(fields));
  FSVD_RETURN_IF_ERROR(CheckVariant(*json, fields));
  config.max_seq_length = config.max_positions;
  return config;
}

absl::Status ReadMaxSeqLength(const std::string& path, ModelConfig* config) {
  FSVD_ASSIGN_OR_RETURN(const auto json, ReadOptional(path, Json::value_t::object));
  // sentence-transformers writes null for "as long as the model allows".
  if (!json.has_value() || !json->contains("max_seq_length") ||
      (*json)["max_seq_length"].is_null()) {
    return absl::OkStatus();
  }
  const Fields fields(path, "", *json);
  FSVD_ASSIGN_OR_RETURN(const int length, fields.Int("max_seq_length", kMinPositions, INT32_MAX));
  config->max_seq_length = std::min(length, config->max_positions);
  return absl::OkStatus();
}

struct PoolingMode {
  std::string_view name;  // value of pooling_mode
  std::string_view flag;  // the boolean that older files have instead
  Pooling pooling;
};
constexpr PoolingMode kPoolingModes[] = {{"mean", "pooling_mode_mean_tokens", Pooling::kMean},
                                         {"cls", "pooling_mode_cls_token", Pooling::kCls},
                                         {"lasttoken", "pooling_mode_lasttoken", Pooling::kLast}};
constexpr std::string_view kUnsupportedPooling =
    "{} is not supported, only one of mean, cls and lasttoken";

// sentence-transformers 5 and later: "pooling_mode": "mean".
absl::StatusOr<Pooling> ReadNamedPooling(const Fields& fields) {
  FSVD_ASSIGN_OR_RETURN(const std::string name, fields.String("pooling_mode"));
  for (const PoolingMode& mode : kPoolingModes) {
    if (name == mode.name) return mode.pooling;
  }
  return fields.Invalid("pooling_mode", fmt::format(kUnsupportedPooling, Quoted(name)));
}

// Before: one boolean for each mode, any number of them true.
absl::StatusOr<Pooling> ReadFlaggedPooling(const Json& json, const Fields& fields) {
  const PoolingMode* chosen = nullptr;
  for (const auto& [field, value] : json.items()) {
    if (!field.starts_with("pooling_mode_")) continue;
    FSVD_ASSIGN_OR_RETURN(const bool set, fields.Flag(field));
    if (!set) continue;
    const auto mode =
        std::find_if(std::begin(kPoolingModes), std::end(kPoolingModes),
                     [&field = field](const PoolingMode& known) { return field == known.flag; });
    if (mode == std::end(kPoolingModes)) {
      return fields.Invalid(field, fmt::format(kUnsupportedPooling, "true"));
    }
    if (chosen != nullptr) {
      return fields.Invalid(
          field, fmt::format("true beside {}: only one pooling is supported", chosen->flag));
    }
    chosen = mode;
  }
  if (chosen == nullptr) {
    return fields.Invalid("pooling_mode_mean_tokens", "missing or false, as every other mode");
  }
  return chosen->pooling;
}

absl::Status ReadPooling(const std::string& path, ModelConfig* config) {
  FSVD_ASSIGN_OR_RETURN(const auto json, ReadOptional(path, Json::value_t::object));
  if (!json.has_value()) return absl::NotFoundError(fmt::format("{}: no such file", path));
  const Fields fields(path, "", *json);
  if (fields.Has("pooling_mode")) {
    FSVD_ASSIGN_OR_RETURN(config->pooling, ReadNamedPooling(fields));
  } else {
    FSVD_ASSIGN_OR_RETURN(config->pooling, ReadFlaggedPooling(*json, fields));
  }
  for (const char* field : {"word_embedding_dimension", "embedding_dimension"}) {
    if (!fields.Has(field)) continue;
    FSVD_ASSIGN_OR_RETURN(const int width, fields.Int(field, 1, kMaxHidden));
    if (width != config->hidden) {
      return fields.Invalid(field, fmt::format("{}, but hidden_size is {}", width, config->hidden));
    }
  }
  return absl::OkStatus();
}

// A module directory must lie inside the model directory.
bool IsInsidePath(std::string_view path) {
  const bool odd = std::any_of(path.begin(), path.end(),
                               [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; });
  if (odd || path.starts_with('/')) return false;
  while (true) {
    const size_t slash = path.find('/');
    if (path.substr(0, slash) == "..") return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

enum class Stage : int8_t { kNone = -1, kTransformer, kPooling, kNormalize };

// The stage of one entry of modules.json, which follows `previous`. A module of any other kind,
// left out, would change the vectors, so it is refused.
absl::StatusOr<Stage> ReadStage(const Fields& fields, Stage previous) {
  static constexpr std::pair<std::string_view, Stage> kStages[] = {
      {".Transformer", Stage::kTransformer},
      {".Pooling", Stage::kPooling},
      {".Normalize", Stage::kNormalize}};
  FSVD_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  for (const auto& [suffix, stage] : kStages) {
    if (!type.ends_with(suffix)) continue;
    if (stage <= previous || (previous == Stage::kNone && stage != Stage::kTransformer)) {
      return fields.Invalid("type", fmt::format("{} is out of order: Transformer, then Pooling, "
                                                "then Normalize, each once",
                                                Quoted(type)));
    }
    return stage;
  }
  return fields.Invalid("type", fmt::format("{} is not supported, only Transformer, Pooling and "
                                            "Normalize",
                                            Quoted(type)));
}

absl::Status ReadModules(const std::string& dir, ModelConfig* config) {
  const std::string path = dir + "/modules.json";
  FSVD_ASSIGN_OR_RETURN(const auto json, ReadOptional(path, Json::value_t::array));
  if (!json.has_value()) return absl::OkStatus();
  if (json->empty()) return absl::InvalidArgumentError(fmt::format("{}: no modules", path));
  Stage stage = Stage::kNone;
  for (size_t i = 0; i < json->size(); ++i) {
    const Json& module = (*json)[i];
    if (!module.is_object()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: [{}]: {} instead of an object", path, i, JsonTypeName(module)));
    }
    const Fields fields(path, fmt::format("[{}].", i), module);
    FSVD_ASSIGN_OR_RETURN(stage, ReadStage(fields, stage));
    FSVD_ASSIGN_OR_RETURN(const std::string where, fields.String("path"));
    if (!IsInsidePath(where)) {
      return fields.Invalid("path",
                            fmt::format("{} is not inside the model directory", Quoted(where)));
    }
    // config.json in the root is the transformer's, so no other module can lie there.
    if ((stage == Stage::kTransformer) != where.empty()) {
      return fields.Invalid("path",
                            fmt::format("{}: the transformer, and it alone, must lie in the "
                                        "model directory itself",
                                        Quoted(where)));
    }
    if (stage == Stage::kPooling) {
      const absl::Status status = ReadPooling(fmt::format("{}/{}/config.json", dir, where), config);
      if (absl::IsNotFound(status)) return fields.Invalid("path", std::string(status.message()));
      FSVD_RETURN_IF_ERROR(status);
    }
    config->normalize = stage == Stage::kNormalize;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  FSVD_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(model_dir + "/config.json"));
  FSVD_RETURN_IF_ERROR(ReadMaxSeqLength(model_dir + "/sentence_bert_config.json", &config));
  FSVD_RETURN_IF_ERROR(ReadModules(model_dir, &config));
  return config;
}

}  // namespace flashsvd
