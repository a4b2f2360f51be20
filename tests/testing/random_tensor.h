#ifndef FLASHSVD_TESTS_TESTING_RANDOM_TENSOR_H_
#define FLASHSVD_TESTS_TESTING_RANDOM_TENSOR_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/backend.h"

namespace flashsvd::testing {

// `count` samples of N(0, stddev^2), the same for the same seed.
inline std::vector<float> RandomNormal(size_t count, uint32_t seed, float stddev = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, stddev);
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

// A random linear map whose outputs have about unit variance for inputs of unit variance.
// rank 0 is dense.
class RandomLinear {
 public:
  RandomLinear(int in, int out, int rank, uint32_t seed, int groups = 1) {
    const auto deviation = [](int terms) { return 1.0f / std::sqrt(static_cast<float>(terms)); };
    if (rank == 0) {
      weight_ = RandomNormal(size_t(in) * out, seed, deviation(in));
    } else {
      a_ = RandomNormal(size_t(groups) * rank * in, seed, deviation(in));
      b_ = RandomNormal(size_t(out) * rank, seed + 1, deviation(rank));
    }
    bias_ = RandomNormal(out, seed + 2, 0.5f);
    source_ = {.in = in,
               .out = out,
               .rank = rank,
               .groups = groups,
               .weight = weight_.empty() ? nullptr : weight_.data(),
               .a = a_.empty() ? nullptr : a_.data(),
               .b = b_.empty() ? nullptr : b_.data(),
               .bias = bias_.data()};
  }
  RandomLinear(const RandomLinear&) = delete;
  RandomLinear& operator=(const RandomLinear&) = delete;

  // Points into this object.
  const LinearSource& source() const { return source_; }

 private:
  std::vector<float> weight_, a_, b_, bias_;
  LinearSource source_;
};

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_RANDOM_TENSOR_H_
