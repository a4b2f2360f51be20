#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "tools/client/retry.h"

namespace flashsvd {
namespace {

constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;
constexpr absl::StatusCode kExhausted = absl::StatusCode::kResourceExhausted;

std::string DetailsWithDelay(absl::Duration delay) {
  google::rpc::ErrorInfo reason;
  reason.set_reason("QUEUE");
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay) % 1'000'000'000));
  google::rpc::Status status;
  status.set_code(8);
  status.add_details()->PackFrom(reason);
  status.add_details()->PackFrom(info);
  return status.SerializeAsString();
}

TEST(ClientRetryTest, ReadsTheDelayOfRetryInfo) {
  const RetryAdvice advice =
      ParseRetryAdvice(std::nullopt, DetailsWithDelay(absl::Milliseconds(1250)));
  EXPECT_EQ(advice.delay, absl::Milliseconds(1250));
  EXPECT_FALSE(advice.forbidden);
}

TEST(ClientRetryTest, TakesTheLongerOfPushbackAndRetryInfo) {
  const std::string details = DetailsWithDelay(absl::Milliseconds(300));
  EXPECT_EQ(ParseRetryAdvice("200", details).delay, absl::Milliseconds(300));
  EXPECT_EQ(ParseRetryAdvice("400", details).delay, absl::Milliseconds(400));
  EXPECT_EQ(ParseRetryAdvice("400", "").delay, absl::Milliseconds(400));
}

TEST(ClientRetryTest, NegativeOrMalformedPushbackForbids) {
  for (const char* pushback : {"-1", "soon", "", "99999999999999"}) {
    const RetryAdvice advice = ParseRetryAdvice(pushback, DetailsWithDelay(absl::Seconds(1)));
    EXPECT_TRUE(advice.forbidden) << pushback;
    EXPECT_EQ(RetryDelay(kUnavailable, advice, 0, 0), std::nullopt) << pushback;
  }
}

TEST(ClientRetryTest, MalformedDetailsAreNoAdvice) {
  for (const std::string& details : {std::string("\x1a\x7f garbage"), std::string("\xff\xff"),
                                     DetailsWithDelay(absl::Seconds(1)).substr(0, 9)}) {
    const RetryAdvice advice = ParseRetryAdvice(std::nullopt, details);
    EXPECT_EQ(advice.delay, std::nullopt);
    EXPECT_FALSE(advice.forbidden);
  }
}

TEST(ClientRetryTest, BacksOffExponentiallyUpToFiveSeconds) {
  EXPECT_EQ(RetryDelay(kUnavailable, {}, 0, 0), absl::Milliseconds(100));
  EXPECT_EQ(RetryDelay(kUnavailable, {}, 3, 0), absl::Milliseconds(800));
  EXPECT_EQ(RetryDelay(kUnavailable, {}, 60, 0), absl::Seconds(5));
  EXPECT_EQ(RetryDelay(kUnavailable, {}, 60, 0.5), absl::Seconds(4.5));
}

TEST(ClientRetryTest, FollowsAdviceButNotBeyondThirtySeconds) {
  RetryAdvice advice;
  advice.delay = absl::Milliseconds(42);
  EXPECT_EQ(RetryDelay(kExhausted, advice, 5, 0.9), absl::Milliseconds(42));
  advice.delay = absl::Hours(1);
  EXPECT_EQ(RetryDelay(kUnavailable, advice, 0, 0), absl::Seconds(30));
}

TEST(ClientRetryTest, ExhaustedWithoutAdviceIsFinal) {
  EXPECT_EQ(RetryDelay(kExhausted, {}, 0, 0), std::nullopt);
}

TEST(ClientRetryTest, OtherCodesAreFinalEvenWithAdvice) {
  RetryAdvice advice;
  advice.delay = absl::Milliseconds(1);
  for (const absl::StatusCode code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kDeadlineExceeded,
        absl::StatusCode::kInternal, absl::StatusCode::kNotFound}) {
    EXPECT_EQ(RetryDelay(code, advice, 0, 0), std::nullopt);
  }
}

}  // namespace
}  // namespace flashsvd
