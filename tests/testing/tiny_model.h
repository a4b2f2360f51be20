#ifndef FLASHSVD_TESTS_TESTING_TINY_MODEL_H_
#define FLASHSVD_TESTS_TESTING_TINY_MODEL_H_

#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/status_macros.h"
#include "runtime/model_config.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd::testing {

struct TinyTensor {
  std::vector<int64_t> shape;
  DType as = DType::kF32;
  std::vector<float> values;
};

// A valid model directory in memory, for tests that break one thing in it. Two BERT layers, d = 4,
// H = 2, F = 8; layer 0 has per_head and full modules, layer 1 qkv_shared and dense ones.
struct TinyModel {
  std::map<std::string, TinyTensor> tensors;
  std::map<std::string, std::string> metadata;
  // By path in the model directory; model.safetensors, if absent, is made from the tensors, unless
  // the weights are in no single file.
  std::map<std::string, std::string> files;
  bool without_single_file = false;

  TinyModel() {
    files["config.json"] =
        R"({"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 2,
 "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 5, "max_position_embeddings": 6,
 "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
 "position_embedding_type": "absolute"})";
    files["sentence_bert_config.json"] = R"({"max_seq_length": 5, "do_lower_case": false})";
    files["modules.json"] =
        R"([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
 {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
 {"idx": 2, "name": "2", "path": "2_Norm", "type": "sentence_transformers.models.Normalize"}])";
    files["1_Pooling/config.json"] =
        R"({"word_embedding_dimension": 4, "pooling_mode_cls_token": false,
 "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false, "include_prompt": true})";
    Add("embeddings.word_embeddings.weight", {5, 4});
    Add("embeddings.position_embeddings.weight", {6, 4});
    Add("embeddings.token_type_embeddings.weight", {2, 4});
    AddNorm("embeddings.LayerNorm");
    std::string modules;
    const auto low_rank = [&](const std::string& name, int rank, const std::string& layout) {
      modules += (modules.empty() ? "" : ",") + ("\"bert." + name) +
                 "\":{\"rank\":" + std::to_string(rank) + ",\"layout\":\"" + layout +
                 "\",\"method\":\"svd\"}";
    };
    const std::string l0 = "encoder.layer.0.", l1 = "encoder.layer.1.";
    for (const std::string name : {"query", "key", "value"}) {
      AddPair(l0 + "attention.self." + name, {2, 1, 4}, {2, 2, 1}, 4, DType::kF32);
      low_rank(l0 + "attention.self." + name, 1, "per_head");
      Add(l1 + "attention.self." + name + ".lowrank.B", {4, 1}, DType::kF16);
      Add(l1 + "attention.self." + name + ".bias", {4});
      low_rank(l1 + "attention.self." + name, 1, "qkv_shared");
    }
    Add(l1 + "attention.self.shared.A", {1, 4});
    AddPair(l0 + "attention.output.dense", {1, 4}, {4, 1}, 4, DType::kBF16);
    low_rank(l0 + "attention.output.dense", 1, "full");
    AddPair(l0 + "intermediate.dense", {2, 4}, {8, 2}, 8, DType::kF16);
    low_rank(l0 + "intermediate.dense", 2, "full");
    AddDense(l0 + "output.dense", {4, 8});
    AddDense(l1 + "attention.output.dense", {4, 4});
    AddDense(l1 + "intermediate.dense", {8, 4});
    AddDense(l1 + "output.dense", {4, 8});
    for (const std::string& layer : {l0, l1}) {
      AddNorm(layer + "attention.output.LayerNorm");
      AddNorm(layer + "output.LayerNorm");
    }
    metadata = {
        {"format", "pt"}, {"lowrank.format", "1"}, {"lowrank.modules", "{" + modules + "}"}};
  }

  TinyTensor& tensor(const std::string& name) { return tensors.at("bert." + name); }

  // Writes the directory anew.
  void WriteTo(const TempDir& dir) const {
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      std::filesystem::remove_all(entry.path());
    }
    for (const auto& [name, content] : files) dir.Write(name, content);
    if (files.contains("model.safetensors") || without_single_file) return;
    WriteTensors(dir.File("model.safetensors"));
  }

  // Puts the word embeddings and the rest into two shards with an index.
  void Shard() {
    const std::string word = "bert.embeddings.word_embeddings.weight";
    const TempDir scratch;
    TinyModel first = *this, second = *this;
    first.tensors = {{word, tensors.at(word)}};
    first.metadata = {{"format", "pt"}};
    second.tensors.erase(word);
    first.WriteTensors(scratch.File("1"));
    second.WriteTensors(scratch.File("2"));
    files["1.safetensors"] = scratch.Read("1");
    files["2.safetensors"] = scratch.Read("2");
    std::string& index = files["model.safetensors.index.json"];
    index = "{\"weight_map\": {";
    for (const auto& [name, unused] : tensors) {
      index += "\"" + name + "\": \"" + (name == word ? "1" : "2") + ".safetensors\",";
    }
    index.back() = '}';
    index += "}";
    without_single_file = true;
  }

  void WriteTensors(const std::string& path) const {
    std::vector<TensorToWrite> list;
    for (const auto& [name, t] : tensors) list.push_back({name, t.shape, t.as, t.values});
    const absl::Status status = WriteSafetensors(path, list, metadata);
    EXPECT_TRUE(status.ok()) << status;
  }

 private:
  void Add(const std::string& name, const std::vector<int64_t>& shape, DType as = DType::kF32) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7) / 8;
    tensors["bert." + name] = {shape, as, values};
  }
  void AddNorm(const std::string& name) {
    Add(name + ".weight", {4});
    Add(name + ".bias", {4});
  }
  void AddDense(const std::string& name, const std::vector<int64_t>& shape) {
    Add(name + ".weight", shape);
    Add(name + ".bias", {shape[0]});
  }
  void AddPair(const std::string& name, const std::vector<int64_t>& a,
               const std::vector<int64_t>& b, int64_t out, DType as) {
    Add(name + ".lowrank.A", a, as);
    Add(name + ".lowrank.B", b, as);
    Add(name + ".bias", {out});
  }
};

// Reads all that an encoder reads of a model directory.
inline absl::Status LoadModelDir(const std::string& dir) {
  FSVD_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(dir));
  FSVD_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir));
  const int d = config.hidden, f = config.ffn;
  const auto tensor = [&](const std::string& name, std::vector<int64_t> shape) {
    return checkpoint->LoadTensor(name, std::move(shape)).status();
  };
  const auto norm = [&](const std::string& name) {
    FSVD_RETURN_IF_ERROR(tensor(name + ".LayerNorm.weight", {d}));
    return tensor(name + ".LayerNorm.bias", {d});
  };
  const auto linear = [&](const std::string& name, int in, int out) {
    return checkpoint->LoadLinear(name, in, out, config.heads).status();
  };
  FSVD_RETURN_IF_ERROR(tensor("embeddings.word_embeddings.weight", {config.vocab, d}));
  FSVD_RETURN_IF_ERROR(tensor("embeddings.position_embeddings.weight", {config.max_positions, d}));
  FSVD_RETURN_IF_ERROR(tensor("embeddings.token_type_embeddings.weight", {config.type_vocab, d}));
  FSVD_RETURN_IF_ERROR(norm("embeddings"));
  for (int i = 0; i < config.layers; ++i) {
    const std::string layer = "encoder.layer." + std::to_string(i) + ".";
    for (const char* name : {"query", "key", "value"}) {
      FSVD_RETURN_IF_ERROR(linear(layer + "attention.self." + name, d, d));
    }
    FSVD_RETURN_IF_ERROR(linear(layer + "attention.output.dense", d, d));
    FSVD_RETURN_IF_ERROR(norm(layer + "attention.output"));
    FSVD_RETURN_IF_ERROR(linear(layer + "intermediate.dense", d, f));
    FSVD_RETURN_IF_ERROR(linear(layer + "output.dense", f, d));
    FSVD_RETURN_IF_ERROR(norm(layer + "output"));
  }
  checkpoint->Warnings();
  return absl::OkStatus();
}

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_TINY_MODEL_H_
