#ifndef FLASHSVD_TESTS_TOOLS_TINY_BERT_H_
#define FLASHSVD_TESTS_TOOLS_TINY_BERT_H_

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace flashsvd {

// A tensor as raw bytes, so that tests can write what the library's writer does not: integers, F64.
struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using RawTensors = std::map<std::string, RawTensor>;

inline RawTensor RawFloats(std::vector<int64_t> shape, const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return {"F32", std::move(shape), std::move(bytes)};
}

inline std::vector<float> Floats(const RawTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

inline void WriteText(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void WriteRaw(const std::filesystem::path& path, const RawTensors& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  WriteText(path, file + text + data);
}

// The smallest model with every kind of tensor: d 24, H 4 (h 6), F 40, two layers.
struct TinyBert {
  static constexpr int kLayers = 2;
  static constexpr int kHidden = 24;
  static constexpr int kHeads = 4;
  static constexpr int kFfn = 40;

  RawTensors tensors;
  nlohmann::json config = {{"model_type", "bert"},
                           {"architectures", {"BertModel"}},
                           {"hidden_size", kHidden},
                           {"num_hidden_layers", kLayers},
                           {"num_attention_heads", kHeads},
                           {"intermediate_size", kFfn},
                           {"vocab_size", 30},
                           {"max_position_embeddings", 16},
                           {"type_vocab_size", 2},
                           {"layer_norm_eps", 1e-12},
                           {"hidden_act", "gelu"}};

  // Every tensor name starts with `prefix`; values are normal with the given seed.
  explicit TinyBert(const std::string& prefix = "", unsigned seed = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      int64_t size = 1;
      for (const int64_t dim : shape) size *= dim;
      std::vector<float> values(size);
      for (float& value : values) value = normal(generator);
      tensors[prefix + name] = RawFloats(std::move(shape), values);
    };
    const auto linear = [&](const std::string& name, int in, int out) {
      add(name + ".weight", {out, in});
      add(name + ".bias", {out});
    };
    const auto norm = [&](const std::string& name) {
      add(name + ".weight", {kHidden});
      add(name + ".bias", {kHidden});
    };
    add("embeddings.word_embeddings.weight", {30, kHidden});
    add("embeddings.position_embeddings.weight", {16, kHidden});
    add("embeddings.token_type_embeddings.weight", {2, kHidden});
    norm("embeddings.LayerNorm");
    tensors[prefix + "embeddings.position_ids"] = {"I64", {1, 2}, std::string(16, '\0')};
    for (int i = 0; i < kLayers; ++i) {
      const std::string layer = "encoder.layer." + std::to_string(i) + ".";
      for (const char* name : {"query", "key", "value"}) {
        linear(layer + "attention.self." + name, kHidden, kHidden);
      }
      linear(layer + "attention.output.dense", kHidden, kHidden);
      norm(layer + "attention.output.LayerNorm");
      linear(layer + "intermediate.dense", kHidden, kFfn);
      linear(layer + "output.dense", kFfn, kHidden);
      norm(layer + "output.LayerNorm");
    }
    linear("pooler.dense", kHidden, kHidden);
  }

  // A model directory with one weight file and the files that surround it.
  void Write(const std::filesystem::path& dir) const {
    WriteRaw(dir / "model.safetensors", tensors);
    WriteText(dir / "config.json", config.dump(2));
    WriteText(dir / "vocab.txt", "[PAD]\n[UNK]\n");
    WriteText(dir / "1_Pooling/config.json",
              R"({"word_embedding_dimension": 24, "pooling_mode_mean_tokens": true})");
  }

  // The same weights as two shards with an index.
  void WriteSharded(const std::filesystem::path& dir) const {
    Write(dir);
    std::filesystem::remove(dir / "model.safetensors");
    const char* const files[] = {"model-00001-of-00002.safetensors",
                                 "model-00002-of-00002.safetensors"};
    RawTensors shards[2];
    nlohmann::json index = {{"metadata", {{"total_size", 0}}}};
    size_t at = 0;
    for (const auto& [name, tensor] : tensors) {
      const int shard = at++ < tensors.size() / 2 ? 0 : 1;
      shards[shard][name] = tensor;
      index["weight_map"][name] = files[shard];
    }
    for (int i = 0; i < 2; ++i) WriteRaw(dir / files[i], shards[i]);
    WriteText(dir / "model.safetensors.index.json", index.dump());
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TOOLS_TINY_BERT_H_
