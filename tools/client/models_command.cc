#include <string>
#include <vector>

#include "fmt/format.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/status_macros.h"
#include "tools/client/commands.h"
#include "tools/client/table.h"

namespace flashsvd {
namespace {

std::string Mib(uint64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

absl::Status PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  options.add_whitespace = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) {
    return absl::InternalError(fmt::format("{} cannot be written as JSON", message.GetTypeName()));
  }
  fmt::print("{}", json);
  return absl::OkStatus();
}

std::string Percent(double share) { return fmt::format("{:.0f}%", 100 * share); }

void PrintTable(const v1::ListModelsResponse& models) {
  Table table({"MODEL", "ARCH", "LAYERS", "DIM", "MAX TOKENS", "KEPT", "BACKEND", "DTYPE",
               "WEIGHTS", "(DENSE)", "ACTIVATIONS", "(DENSE)", "HIGH WATER"});
  for (const v1::Model& model : models.models()) {
    const v1::MemoryPlan& memory = model.memory();
    table.AddRow({model.name(), model.architecture(), fmt::format("{}", model.layers()),
                  fmt::format("{}", model.hidden_size()),
                  fmt::format("{}", model.max_input_tokens()), Percent(model.parameters_kept()),
                  model.backend(), model.dtype(), Mib(memory.weight_bytes()),
                  Mib(memory.weight_dense_equivalent_bytes()), Mib(memory.activation_bytes()),
                  Mib(memory.activation_dense_equivalent_bytes()),
                  Mib(memory.activation_high_water_bytes())});
  }
  fmt::print("{}", table.Render());
}

void PrintModel(const v1::Model& model) {
  const v1::MemoryPlan& memory = model.memory();
  fmt::print("{}: {}, {} layers, {} heads, width {}, FFN {}, vocabulary {}\n", model.name(),
             model.architecture(), model.layers(), model.heads(), model.hidden_size(),
             model.ffn_size(), model.vocab_size());
  fmt::print("  embeds     up to {} tokens, {} pooling{}\n", model.max_input_tokens(),
             model.pooling(), model.normalize() ? ", normalised" : "");
  fmt::print("  runs on    {} in {}, {} slot{} of up to {} tokens, {} inputs per request\n",
             model.backend(), model.dtype(), model.slots(), model.slots() == 1 ? "" : "s",
             model.max_batch_tokens(), model.max_inputs_per_request());
  fmt::print("  keeps      {} of the encoder's linear parameters\n",
             Percent(model.parameters_kept()));
  fmt::print("  weights    {} (dense {})\n", Mib(memory.weight_bytes()),
             Mib(memory.weight_dense_equivalent_bytes()));
  fmt::print("  activations planned {}, high water {} (dense and unfused {})\n",
             Mib(memory.activation_bytes()), Mib(memory.activation_high_water_bytes()),
             Mib(memory.activation_dense_equivalent_bytes()));
  fmt::print("  I/O buffers {}, budget {}\n\n", Mib(memory.io_bytes()),
             memory.budget_bytes() > 0 ? Mib(memory.budget_bytes()) : "none");
  Table table({"MODULE", "LAYOUT", "RANK", "PARAMETERS", "(DENSE)"});
  for (const v1::Module& module : model.modules()) {
    table.AddRow(
        {module.name(), module.layout(), module.rank() > 0 ? fmt::format("{}", module.rank()) : "-",
         fmt::format("{}", module.parameters()), fmt::format("{}", module.dense_parameters())});
  }
  fmt::print("{}", table.Render());
}

}  // namespace

absl::Status RunModels(Connection& connection, const ModelsFlags& flags) {
  if (!flags.model.empty()) {
    v1::GetModelRequest request;
    request.set_model(flags.model);
    v1::Model model;
    FSVD_RETURN_IF_ERROR(connection.Call([&](grpc::ClientContext* context) {
      return connection.stub().GetModel(context, request, &model);
    }));
    if (flags.json) return PrintJson(model);
    PrintModel(model);
    return absl::OkStatus();
  }
  v1::ListModelsResponse models;
  FSVD_RETURN_IF_ERROR(connection.Call([&](grpc::ClientContext* context) {
    return connection.stub().ListModels(context, v1::ListModelsRequest(), &models);
  }));
  if (flags.json) return PrintJson(models);
  PrintTable(models);
  return absl::OkStatus();
}

}  // namespace flashsvd
