#include "kernels/cpu/isa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "kernels/backend_factory.h"
#include "kernels/cpu/peak.h"

namespace flashsvd {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

// The environment variable for the length of a test.
class ScopedIsaVariable {
 public:
  explicit ScopedIsaVariable(const char* value) { setenv("FLASHSVD_CPU_ISA", value, 1); }
  ~ScopedIsaVariable() { unsetenv("FLASHSVD_CPU_ISA"); }
};

std::string NameWith(const BackendOptions& options) {
  const auto backend = MakeBackend(options);
  return backend.ok() ? std::string((*backend)->name()) : backend.status().ToString();
}

TEST(IsaTest, EveryCpuHasThePortableKernels) {
  EXPECT_THAT(AvailableIsas(), Contains("portable"));
  for (const std::string& isa : AvailableIsas()) EXPECT_THAT(CompiledIsas(), Contains(isa));
}

TEST(IsaTest, ChoosesAnAvailableOneByItself) {
  const auto isa = SelectIsa("");
  ASSERT_TRUE(isa.ok()) << isa.status();
  EXPECT_THAT(AvailableIsas(), Contains(*isa));
  if (AvailableIsas().size() > 1) {
    EXPECT_NE(*isa, "portable");
  }
}

TEST(IsaTest, EnvironmentChoosesAndTheOptionWins) {
  const ScopedIsaVariable variable("portable");
  EXPECT_EQ(NameWith({.device = "cpu", .num_threads = 1}), "cpu/portable");
  for (const std::string& isa : AvailableIsas()) {
    EXPECT_EQ(NameWith({.device = "cpu", .num_threads = 1, .cpu_isa = isa}), "cpu/" + isa);
  }
}

TEST(IsaTest, EmptyEnvironmentIsNoChoice) {
  const std::string by_itself = *SelectIsa("");
  const ScopedIsaVariable variable("");
  EXPECT_EQ(*SelectIsa(""), by_itself);
}

TEST(IsaTest, RefusalNamesTheChoiceItsOriginAndWhatThereIs) {
  const absl::Status option = SelectIsa("sse9").status();
  EXPECT_EQ(option.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(option.message()), HasSubstr("cpu_isa is \"sse9\""));
  for (const std::string& isa : AvailableIsas()) {
    EXPECT_THAT(std::string(option.message()), HasSubstr(isa));
  }
  const ScopedIsaVariable variable("sse9");
  EXPECT_THAT(std::string(SelectIsa("").status().message()), HasSubstr("FLASHSVD_CPU_ISA"));
}

TEST(BackendFactoryTest, RefusesWhatThisBuildLacks) {
  const auto code = [](const BackendOptions& options) {
    return MakeBackend(options).status().code();
  };
  EXPECT_EQ(code({.device = "tpu"}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cpu", .dtype = DType::kF16}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cuda", .dtype = DType::kF32}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cuda", .device_index = 99, .dtype = DType::kF16}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cuda", .dtype = DType::kF16, .cuda_path = "sm70"}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cpu", .num_threads = -1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "cpu", .num_threads = 1 << 20}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "auto"}), absl::StatusCode::kOk);
}

TEST(PeakTest, IsPositiveForCpuTypesAndZeroForOthers) {
  EXPECT_GT(MeasurePeakGflops(DType::kF32, 1), 0);
  EXPECT_GT(MeasurePeakGflops(DType::kBF16, 1), 0);
  EXPECT_EQ(MeasurePeakGflops(DType::kF16, 1), 0);
}

}  // namespace
}  // namespace flashsvd
