#include "server/raw_message.h"

#include <map>
#include <utility>

#include "fmt/format.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/unknown_field_set.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "runtime/unicode.h"
#include "server/grpc_status.h"

namespace flashsvd {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// Messages of this API nest three deep; hostile bytes may look deeper.
constexpr int kMaxDepth = 8;

// OK if `bytes`, which have the shape of a `type`, hold no string that is not UTF-8. Protobuf
// itself does not say which string it was.
absl::Status FindBadString(const std::string& bytes, const Descriptor& type,
                           const std::string& path, int depth) {
  UnknownFieldSet fields;
  if (depth > kMaxDepth || !fields.ParseFromString(bytes)) return absl::OkStatus();
  std::map<int, int> counts;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    std::string name = path.empty() ? known->name() : path + "." + known->name();
    if (known->is_repeated()) name += fmt::format("[{}]", counts[field.number()]++);
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      const size_t bad = FindInvalidUtf8(field.length_delimited());
      if (bad != std::string_view::npos) {
        return InvalidField(name, fmt::format("not UTF-8 at byte {}", bad));
      }
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      const absl::Status status =
          FindBadString(field.length_delimited(), *known->message_type(), name, depth + 1);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

std::string Flatten(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok()) return "";
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}

}  // namespace

absl::Status ParseMessage(grpc::ByteBuffer* buffer, google::protobuf::Message* message) {
  // Parsing consumes a buffer; this one shares its slices, in case they must be looked at again.
  grpc::ByteBuffer consumed = *buffer;
  const grpc::Status parsed =
      grpc::GenericDeserialize<grpc::ProtoBufferReader, google::protobuf::Message>(&consumed,
                                                                                   message);
  absl::Status status;
  if (!parsed.ok()) {
    status = FindBadString(Flatten(*buffer), *message->GetDescriptor(), "", 0);
    if (status.ok()) {
      status = WithReason(
          absl::InvalidArgumentError(fmt::format("the bytes of the message are not a valid {}",
                                                 message->GetDescriptor()->full_name())),
          "MALFORMED_MESSAGE");
    }
  }
  buffer->Clear();
  return status;
}

absl::Status SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* buffer) {
  buffer->Clear();  // gRPC insists
  bool own = false;
  const grpc::Status status =
      grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, buffer,
                                                                                 &own);
  if (status.ok()) return absl::OkStatus();
  return absl::InternalError("the answer cannot be serialised: " + status.error_message());
}

}  // namespace flashsvd
