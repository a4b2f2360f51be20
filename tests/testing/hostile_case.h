#ifndef FLASHSVD_TESTS_TESTING_HOSTILE_CASE_H_
#define FLASHSVD_TESTS_TESTING_HOSTILE_CASE_H_

#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace flashsvd::testing {

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kLost = absl::StatusCode::kDataLoss;
constexpr absl::StatusCode kMissing = absl::StatusCode::kNotFound;

// A way to spoil a valid model directory, and how it must be refused.
struct HostileCase {
  std::string name;
  absl::StatusCode code;
  std::vector<std::string> message;  // substrings, all required
  std::function<void(TinyModel&)> spoil;
};

inline void PrintTo(const HostileCase& c, std::ostream* out) { *out << c.name; }

inline std::string HostileCaseName(const ::testing::TestParamInfo<HostileCase>& info) {
  return info.param.name;
}

// `file` of the model directory holds `content` instead.
inline HostileCase File(std::string name, const std::string& file, const std::string& content,
                        std::vector<std::string> message, absl::StatusCode code = kInvalid) {
  message.push_back(file + ": ");
  return {std::move(name), code, std::move(message),
          [=](TinyModel& model) { model.files[file] = content; }};
}

// The first `from` in `file` becomes `to`.
inline HostileCase Edit(std::string name, const std::string& file, const std::string& from,
                        const std::string& to, std::vector<std::string> message) {
  message.push_back(file + ": ");
  return {std::move(name), kInvalid, std::move(message), [=](TinyModel& model) {
            std::string& content = model.files.at(file);
            const size_t position = content.find(from);
            ASSERT_NE(position, std::string::npos) << from;
            content.replace(position, from.size(), to);
          }};
}

// The directory loads before it is spoilt and is refused, by name and in one line, afterwards.
inline void ExpectRefused(const HostileCase& c) {
  const TempDir dir;
  TinyModel model;
  model.WriteTo(dir);
  const absl::Status before = LoadModelDir(dir.path());
  ASSERT_TRUE(before.ok()) << before;
  c.spoil(model);
  model.WriteTo(dir);
  const absl::Status status = LoadModelDir(dir.path());
  EXPECT_EQ(status.code(), c.code) << status;
  const std::string message(status.message());
  for (const std::string& text : c.message) EXPECT_THAT(message, ::testing::HasSubstr(text));
  EXPECT_THAT(message, ::testing::HasSubstr(dir.path()));
  EXPECT_THAT(message, ::testing::Not(::testing::HasSubstr("\n")));
  EXPECT_LT(message.size(), 1000u);
}

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_HOSTILE_CASE_H_
