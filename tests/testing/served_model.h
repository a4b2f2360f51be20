#ifndef FLASHSVD_TESTS_TESTING_SERVED_MODEL_H_
#define FLASHSVD_TESTS_TESTING_SERVED_MODEL_H_

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/safetensors.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd::testing {

// Writes a model directory that a server can load: two dense BERT layers with random weights,
// d = 32, H = 2, F = 64, 32 tokens at most, mean pooling, normalised; a lower-casing WordPiece
// tokenizer with kServedVocab.
inline const std::vector<std::string> kServedVocab = {
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s",
    "a",     "b",     "c",     "cat",   "sat",    "on",    "the",   "mat"};
inline constexpr int kServedHidden = 32;
inline constexpr int kServedMaxTokens = 32;

class ServedModelWriter {
 public:
  void WriteTo(const TempDir& dir, const std::string& subdirectory) {
    const std::string at = subdirectory + "/";
    dir.Write(at + "config.json",
              R"({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
 "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 16,
 "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
 "hidden_act": "gelu", "position_embedding_type": "absolute"})");
    dir.Write(
        at + "modules.json",
        R"([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
 {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
 {"idx": 2, "name": "2", "path": "2_Norm", "type": "sentence_transformers.models.Normalize"}])");
    dir.Write(at + "1_Pooling/config.json",
              R"({"word_embedding_dimension": 32, "pooling_mode_cls_token": false,
 "pooling_mode_mean_tokens": true})");
    dir.Write(at + "tokenizer_config.json",
              R"({"tokenizer_class": "BertTokenizer", "do_lower_case": true})");
    std::string vocab;
    for (const std::string& token : kServedVocab) vocab += token + "\n";
    dir.Write(at + "vocab.txt", vocab);
    WriteWeights(dir.File(at + "model.safetensors"));
  }

 private:
  void WriteWeights(const std::string& path) {
    Add("embeddings.word_embeddings.weight", {16, 32});
    Add("embeddings.position_embeddings.weight", {32, 32});
    Add("embeddings.token_type_embeddings.weight", {2, 32});
    AddNorm("embeddings.LayerNorm");
    for (const std::string layer : {"encoder.layer.0.", "encoder.layer.1."}) {
      for (const std::string name : {"query", "key", "value"}) {
        AddLinear(layer + "attention.self." + name, 32, 32);
      }
      AddLinear(layer + "attention.output.dense", 32, 32);
      AddNorm(layer + "attention.output.LayerNorm");
      AddLinear(layer + "intermediate.dense", 64, 32);
      AddLinear(layer + "output.dense", 32, 64);
      AddNorm(layer + "output.LayerNorm");
    }
    std::vector<TensorToWrite> list;
    for (const Tensor& t : tensors_) list.push_back({t.name, t.shape, DType::kF32, t.values});
    const absl::Status status = WriteSafetensors(path, list, {{"format", "pt"}});
    EXPECT_TRUE(status.ok()) << status;
  }

  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };

  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    std::uniform_real_distribution<float> uniform(-0.5, 0.5);
    for (float& value : values) value = uniform(random_);
    tensors_.push_back({name, shape, std::move(values)});
  }
  void AddLinear(const std::string& name, int64_t out, int64_t in) {
    Add(name + ".weight", {out, in});
    Add(name + ".bias", {out});
  }
  void AddNorm(const std::string& name) {
    Add(name + ".weight", {32});
    Add(name + ".bias", {32});
  }

  std::mt19937 random_{20241124};
  std::vector<Tensor> tensors_;
};

inline void WriteServedModel(const TempDir& dir, const std::string& subdirectory) {
  ServedModelWriter().WriteTo(dir, subdirectory);
}

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_SERVED_MODEL_H_
