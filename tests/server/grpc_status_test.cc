#include "server/grpc_status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace flashsvd {
namespace {

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(details.message(), status.error_message());
  return details;
}

template <typename Message>
Message Find(const google::rpc::Status& details) {
  Message message;
  int found = 0;
  for (const google::protobuf::Any& any : details.details()) {
    if (any.Is<Message>()) found += any.UnpackTo(&message) ? 1 : 0;
  }
  EXPECT_EQ(found, 1);
  return message;
}

TEST(GrpcStatusTest, OkHasNoDetails) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).error_details().empty());
}

TEST(GrpcStatusTest, CodesAreTheSame) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status converted = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(converted.error_code()), code);
    EXPECT_EQ(converted.error_message(), "why");
    const auto info = Find<google::rpc::ErrorInfo>(Details(converted));
    EXPECT_FALSE(info.reason().empty());
    EXPECT_EQ(info.domain(), "flashsvd");
  }
}

TEST(GrpcStatusTest, InvalidFieldIsNamedForPeopleAndPrograms) {
  const grpc::Status status = ToGrpcStatus(InvalidField("text.texts[3]", "is empty"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "text.texts[3]: is empty");
  const auto info = Find<google::rpc::ErrorInfo>(Details(status));
  EXPECT_EQ(info.reason(), "INVALID_FIELD");
  EXPECT_EQ(info.metadata().at("field"), "text.texts[3]");
}

TEST(GrpcStatusTest, RetryDelayTravelsBesideReason) {
  const absl::Status full = WithRetryDelay(
      WithReason(absl::ResourceExhaustedError("full"), "QUEUE_FULL"), absl::Milliseconds(1250));
  EXPECT_EQ(RetryDelay(full), absl::Milliseconds(1250));
  const google::rpc::Status details = Details(ToGrpcStatus(full));
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(details).reason(), "QUEUE_FULL");
  const auto retry = Find<google::rpc::RetryInfo>(details);
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 250'000'000);
}

TEST(GrpcStatusTest, OtherErrorsHaveNoRetryDelay) {
  EXPECT_EQ(RetryDelay(absl::ResourceExhaustedError("message too large")), std::nullopt);
  EXPECT_EQ(RetryDelay(absl::OkStatus()), std::nullopt);
}

}  // namespace
}  // namespace flashsvd
