#include "server/request_checks.h"

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "server/grpc_status.h"

namespace flashsvd {
namespace {

absl::Status CheckCount(int count, const std::string& field, const RequestLimits& limits) {
  if (count == 0) return InvalidField(field, "is empty");
  if (count > limits.max_inputs_per_request) {
    return InvalidField(field, fmt::format("has {} entries; at most {} are allowed in one request",
                                           count, limits.max_inputs_per_request));
  }
  return absl::OkStatus();
}

absl::StatusOr<DType> CheckDataType(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_UNSPECIFIED:
    case v1::DATA_TYPE_FLOAT32:
      return DType::kF32;
    case v1::DATA_TYPE_FLOAT16:
      return DType::kF16;
    case v1::DATA_TYPE_BFLOAT16:
      return DType::kBF16;
    default:
      return InvalidField("output_dtype",
                          fmt::format("{} is not a value of DataType", static_cast<int>(type)));
  }
}

absl::StatusOr<int> CheckDimensions(uint32_t dimensions, int hidden) {
  if (dimensions == 0) return hidden;
  if (dimensions > static_cast<uint32_t>(hidden)) {
    return InvalidField("dimensions", fmt::format("{} exceeds the model's {}", dimensions, hidden));
  }
  return static_cast<int>(dimensions);
}

// `sequence` is "tokens.sequences[3]".
absl::Status CheckSequence(const v1::TokenIds& ids, const std::string& sequence,
                           const ModelConfig& config) {
  if (ids.ids_size() == 0) return InvalidField(sequence + ".ids", "is empty");
  if (ids.ids_size() > config.max_seq_length) {
    return InvalidField(sequence + ".ids",
                        fmt::format("has {} ids; the model takes at most {}, and ids are not "
                                    "truncated",
                                    ids.ids_size(), config.max_seq_length));
  }
  for (int i = 0; i < ids.ids_size(); ++i) {
    if (ids.ids(i) < 0 || ids.ids(i) >= config.vocab) {
      return InvalidField(
          fmt::format("{}.ids[{}]", sequence, i),
          fmt::format("{} is not within the vocabulary, 0 to {}", ids.ids(i), config.vocab - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Truncation> CheckTruncation(v1::Truncation truncation) {
  switch (truncation) {
    case v1::TRUNCATION_UNSPECIFIED:
    case v1::TRUNCATION_RIGHT:
      return Truncation::kRight;
    case v1::TRUNCATION_LEFT:
      return Truncation::kLeft;
    case v1::TRUNCATION_NONE:
      return Truncation::kNone;
    default:
      return InvalidField("truncation", fmt::format("{} is not a value of Truncation",
                                                    static_cast<int>(truncation)));
  }
}

absl::Status CheckTexts(const google::protobuf::RepeatedPtrField<std::string>& texts,
                        const std::string& field, bool allow_empty, const RequestLimits& limits) {
  FSVD_RETURN_IF_ERROR(CheckCount(texts.size(), field, limits));
  for (int i = 0; i < texts.size(); ++i) {
    const std::string& text = texts[i];
    if (text.empty() && !allow_empty)
      return InvalidField(fmt::format("{}[{}]", field, i), "is empty");
    if (static_cast<int64_t>(text.size()) > limits.max_text_bytes) {
      return InvalidField(
          fmt::format("{}[{}]", field, i),
          fmt::format("has {} bytes; at most {} are allowed", text.size(), limits.max_text_bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const v1::TokenInputs& tokens, const ModelConfig& config,
                         const RequestLimits& limits) {
  FSVD_RETURN_IF_ERROR(CheckCount(tokens.sequences_size(), "tokens.sequences", limits));
  for (int s = 0; s < tokens.sequences_size(); ++s) {
    FSVD_RETURN_IF_ERROR(
        CheckSequence(tokens.sequences(s), fmt::format("tokens.sequences[{}]", s), config));
  }
  return absl::OkStatus();
}

absl::StatusOr<EmbedShape> CheckEmbedRequest(const v1::EmbedRequest& request,
                                             const ModelConfig& config,
                                             const RequestLimits& limits) {
  EmbedShape shape;
  FSVD_ASSIGN_OR_RETURN(shape.truncation, CheckTruncation(request.truncation()));
  FSVD_ASSIGN_OR_RETURN(shape.dtype, CheckDataType(request.output_dtype()));
  FSVD_ASSIGN_OR_RETURN(shape.dimensions, CheckDimensions(request.dimensions(), config.hidden));
  switch (request.inputs_case()) {
    case v1::EmbedRequest::kText:
      FSVD_RETURN_IF_ERROR(CheckTexts(request.text().texts(), "text.texts", false, limits));
      shape.num_inputs = request.text().texts_size();
      break;
    case v1::EmbedRequest::kTokens:
      FSVD_RETURN_IF_ERROR(CheckTokens(request.tokens(), config, limits));
      shape.num_inputs = request.tokens().sequences_size();
      break;
    case v1::EmbedRequest::INPUTS_NOT_SET:
      return InvalidField("inputs", "neither text nor tokens is set");
  }
  const int64_t bytes =
      static_cast<int64_t>(DTypeBytes(shape.dtype)) * shape.num_inputs * shape.dimensions;
  if (bytes > limits.max_response_bytes) {
    return InvalidField("inputs",
                        fmt::format("{} inputs give {} bytes of vectors; an answer has at most {}. "
                                    "Send fewer at a time, or ask for fewer dimensions or 16-bit "
                                    "vectors",
                                    shape.num_inputs, bytes, limits.max_response_bytes));
  }
  return shape;
}

}  // namespace flashsvd
