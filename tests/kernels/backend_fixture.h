#ifndef FLASHSVD_TESTS_KERNELS_BACKEND_FIXTURE_H_
#define FLASHSVD_TESTS_KERNELS_BACKEND_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/backend_factory.h"
#include "kernels/cpu/isa.h"
#include "tests/kernels/op_runner.h"
#include "tests/testing/tensor_matchers.h"

namespace flashsvd::testing {

struct BackendParam {
  std::string device;
  std::string isa;  // of a CPU; of a CUDA device, the family of kernels
  DType dtype;
};

inline std::string NameOf(const BackendParam& param) {
  return param.device + (param.isa.empty() ? "" : "_" + param.isa) + "_" +
         std::string(DTypeName(param.dtype));
}

inline void PrintTo(const BackendParam& param, std::ostream* out) { *out << NameOf(param); }

inline std::unique_ptr<Backend> Make(const std::string& device, DType dtype,
                                     const std::string& isa = "", int threads = 2) {
  BackendOptions options = {.device = device, .dtype = dtype, .num_threads = threads};
  (device == "cuda" ? options.cuda_path : options.cpu_isa) = isa;
  auto backend = MakeBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(backend).value();
}

// One backend, dtype and instruction set, with what to compare it to.
class BackendTest : public ::testing::TestWithParam<BackendParam> {
 protected:
  void SetUp() override {
    const BackendParam& param = GetParam();
    if (param.device == "cuda") {
      if (!HasCuda()) GTEST_SKIP() << "no CUDA device, or a build without CUDA";
      const auto made =
          MakeBackend({.device = param.device, .dtype = param.dtype, .cuda_path = param.isa});
      if (!made.ok()) GTEST_SKIP() << made.status();
    }
    const std::vector<std::string> available = AvailableIsas();
    if (param.device == "cpu" &&
        std::find(available.begin(), available.end(), param.isa) == available.end()) {
      GTEST_SKIP() << "this CPU lacks " << param.isa;
    }
    backend_ = Make(param.device, param.dtype, param.isa);
    oracle_ = Make("reference", DType::kF32);
    naive_ = Make("reference", f32() ? DType::kBF16 : param.dtype);
  }

  bool f32() const { return GetParam().dtype == DType::kF32; }
  bool cuda() const { return GetParam().device == "cuda"; }
  std::vector<float> Activations(size_t count, uint32_t seed = 1) const {
    return RandomActivations(GetParam().dtype, count, seed);
  }

  // From here on the backend chooses its kernels as for a device of so many multiprocessors, so
  // that few rows get the kernels of many: few enough for an oracle and for compute-sanitizer.
  // 0: as many as there are. Of no consequence but on a GPU.
  void UseMultiprocessors(int count) {
    if (!cuda()) return;
    auto made = MakeBackend({.device = "cuda",
                             .dtype = GetParam().dtype,
                             .cuda_path = GetParam().isa,
                             .cuda_num_sms = count});
    ASSERT_TRUE(made.ok()) << made.status();
    backend_ = *std::move(made);
  }

  // run(backend) -> result; `terms` as in NearOracleF32.
  template <class RunOn>
  ::testing::AssertionResult Matches(const RunOn& run, double terms, bool activation = false) {
    const auto start = [&run](const Backend& backend) {  // the slow ones side by side
      return std::async(std::launch::async, [&] { return run(backend); });
    };
    auto oracle = start(*oracle_);
    std::future<std::vector<float>> naive;
    if (!f32()) naive = start(*naive_);
    const std::vector<float> actual = run(*backend_);
    if (f32()) return NearOracleF32(actual, oracle.get(), terms, activation);
    return WithinTwiceNaive(actual, naive.get(), oracle.get(), RoundoffOf(GetParam().dtype));
  }

  // The same numbers, computed as part of different batches: to the bit, where the backend promises
  // so; on a GPU each may err as much as its last rounding.
  ::testing::AssertionResult Same(const std::vector<float>& a, const std::vector<float>& b) const {
    if (!cuda()) return BitEqual(a, b);
    if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes differ";
    const double bound = 4 * RoundoffOf(GetParam().dtype) * Magnitude(b).max_abs;
    const TensorError error = ErrorOf(a, b);
    if (error.max_abs <= bound) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "max error " << error.max_abs << " above " << bound;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> oracle_;
  std::unique_ptr<Backend> naive_;
};

// Also instruction sets and devices that this machine lacks: those tests skip and say so.
inline std::vector<BackendParam> AllBackends() {
  std::vector<BackendParam> params = {{"reference", "", DType::kF32},
                                      {"reference", "", DType::kBF16},
                                      {"reference", "", DType::kF16}};
  for (const std::string& isa : CompiledIsas()) {
    params.push_back({"cpu", isa, DType::kF32});
    params.push_back({"cpu", isa, DType::kBF16});
  }
  for (const char* path : {"sm80", "sm90"}) {
    params.push_back({"cuda", path, DType::kBF16});
    params.push_back({"cuda", path, DType::kF16});
  }
  return params;
}

#define FSVD_INSTANTIATE_BACKEND_TESTS(Suite)                              \
  INSTANTIATE_TEST_SUITE_P(All, Suite, ::testing::ValuesIn(AllBackends()), \
                           [](const auto& info) { return NameOf(info.param); })

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_KERNELS_BACKEND_FIXTURE_H_
