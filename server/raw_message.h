#ifndef FLASHSVD_SERVER_RAW_MESSAGE_H_
#define FLASHSVD_SERVER_RAW_MESSAGE_H_

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"

// Messages between wire and protobuf. The service takes raw bytes from gRPC for two reasons: gRPC
// 1.51 answers a message that it cannot parse with UNIMPLEMENTED and no text, and it parses on its
// event threads, however large the message.
namespace flashsvd {

// Parses and frees `buffer`. InvalidArgument: a string that is not UTF-8, named by its path
// ("text.texts[3]") and byte, or bytes that are no such message.
absl::Status ParseMessage(grpc::ByteBuffer* buffer, google::protobuf::Message* message);

// Replaces what `buffer` holds. Internal: the message is over protobuf's 2 GiB.
absl::Status SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* buffer);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_RAW_MESSAGE_H_
