#include "server/model_message.h"

#include <string>

namespace flashsvd {
namespace {

const char* PoolingName(Pooling pooling) {
  switch (pooling) {
    case Pooling::kMean:
      return "mean";
    case Pooling::kCls:
      return "cls";
    case Pooling::kLast:
      return "last";
  }
  return "";
}

void FillMemory(Model& model, v1::MemoryPlan* plan) {
  const MemoryInfo& memory = model.memory();
  plan->set_weight_bytes(memory.weights);
  plan->set_weight_dense_equivalent_bytes(memory.weights_dense_equivalent);
  plan->set_activation_bytes(memory.arenas);
  plan->set_activation_dense_equivalent_bytes(memory.activation_dense_unfused);
  plan->set_io_bytes(memory.io);
  plan->set_budget_bytes(memory.budget);
  plan->set_activation_high_water_bytes(model.engine().activation_high_water_bytes());
}

}  // namespace

void FillModelMessage(Model& model, const RequestLimits& limits, bool with_modules,
                      v1::Model* message) {
  const ModelConfig& config = model.config();
  const EngineOptions& engine = model.options().engine;
  message->set_name(model.name());
  message->set_architecture(config.model_type);
  message->set_hidden_size(config.hidden);
  message->set_layers(config.layers);
  message->set_heads(config.heads);
  message->set_ffn_size(config.ffn);
  message->set_vocab_size(config.vocab);
  message->set_max_input_tokens(config.max_seq_length);
  message->set_max_batch_tokens(engine.batcher.max_batch_tokens);
  message->set_max_inputs_per_request(limits.max_inputs_per_request);
  message->set_pooling(PoolingName(config.pooling));
  message->set_normalize(config.normalize);
  message->set_backend(std::string(model.backend().name()));
  message->set_dtype(std::string(DTypeName(model.backend().dtype())));
  message->set_slots(engine.num_slots);
  FillMemory(model, message->mutable_memory());
  const WeightBytes& weights = model.encoder().weight_bytes();
  message->set_parameters_kept(weights.dense_linear_parameters == 0
                                   ? 1
                                   : static_cast<double>(weights.linear_parameters) /
                                         static_cast<double>(weights.dense_linear_parameters));
  if (!with_modules) return;
  for (const ModuleInfo& info : model.modules()) {
    v1::Module* module = message->add_modules();
    module->set_name(info.name);
    module->set_layout(std::string(LinearLayoutName(info.layout)));
    module->set_rank(info.rank);
    module->set_parameters(info.parameters);
    module->set_dense_parameters(info.dense_parameters);
  }
}

}  // namespace flashsvd
