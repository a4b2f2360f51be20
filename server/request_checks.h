#ifndef FLASHSVD_SERVER_REQUEST_CHECKS_H_
#define FLASHSVD_SERVER_REQUEST_CHECKS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flashsvd/v1/encoder.pb.h"
#include "kernels/tensor.h"
#include "runtime/model_config.h"
#include "runtime/tokenizer.h"
#include "server/service_context.h"

// Every rule that a request must keep, apart from what parsing and tokenising find out. All errors
// are INVALID_ARGUMENT and name field, index and value.
namespace flashsvd {

absl::StatusOr<Truncation> CheckTruncation(v1::Truncation truncation);

// `field` is where the texts are: "text.texts". Empty texts are an error unless allowed.
absl::Status CheckTexts(const google::protobuf::RepeatedPtrField<std::string>& texts,
                        const std::string& field, bool allow_empty, const RequestLimits& limits);

absl::Status CheckTokens(const v1::TokenInputs& tokens, const ModelConfig& config,
                         const RequestLimits& limits);

// What an EmbedRequest asks of its vectors.
struct EmbedShape {
  int num_inputs = 0;
  int dimensions = 0;
  DType dtype = DType::kF32;
  Truncation truncation = Truncation::kRight;
};

// The inputs, and everything else that needs no tokenizer.
absl::StatusOr<EmbedShape> CheckEmbedRequest(const v1::EmbedRequest& request,
                                             const ModelConfig& config,
                                             const RequestLimits& limits);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_REQUEST_CHECKS_H_
