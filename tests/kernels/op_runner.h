#ifndef FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_
#define FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/bfloat16.h"
#include "tests/testing/random_tensor.h"

namespace flashsvd::testing {

// Host memory between guards. Everything outside the elements (guards, padding of a row's stride)
// is 0xff, a NaN in both dtypes: reading it spoils a result, writing it is seen by Intact().
class GuardedRows {
 public:
  GuardedRows(DType dtype, int64_t rows, int64_t cols, int64_t stride)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(stride) {
    bytes_.assign(2 * kGuard + rows * stride * DTypeBytes(dtype), 0xff);
  }
  GuardedRows(DType dtype, int64_t rows, int64_t cols, int64_t stride,
              const std::vector<float>& values)
      : GuardedRows(dtype, rows, cols, stride) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) Set(r, c, values[r * cols + c]);
    }
  }

  Rows view() { return {bytes_.data() + kGuard, rows_, cols_, stride_}; }

  std::vector<float> Values() const {
    std::vector<float> values;
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) values.push_back(Get(r, c));
    }
    return values;
  }

  bool Intact() const {
    std::vector<uint8_t> copy = bytes_;
    for (int64_t r = 0; r < rows_; ++r) {
      std::memset(copy.data() + Offset(r, 0), 0xff, cols_ * DTypeBytes(dtype_));
    }
    for (uint8_t byte : copy) {
      if (byte != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;

  size_t Offset(int64_t r, int64_t c) const {
    return kGuard + (r * stride_ + c) * DTypeBytes(dtype_);
  }
  void Set(int64_t r, int64_t c, float value) {
    const BFloat16Bits bits = ToBFloat16(value);
    if (dtype_ == DType::kF32) {
      std::memcpy(bytes_.data() + Offset(r, c), &value, sizeof(value));
    } else {
      std::memcpy(bytes_.data() + Offset(r, c), &bits, sizeof(bits));
    }
  }
  float Get(int64_t r, int64_t c) const {
    float value;
    BFloat16Bits bits;
    if (dtype_ == DType::kF32) {
      std::memcpy(&value, bytes_.data() + Offset(r, c), sizeof(value));
      return value;
    }
    std::memcpy(&bits, bytes_.data() + Offset(r, c), sizeof(bits));
    return FromBFloat16(bits);
  }

  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<uint8_t> bytes_;
};

// Scratch of exactly the promised size, full of NaN, between guards.
class GuardedScratch {
 public:
  explicit GuardedScratch(size_t bytes) : bytes_(bytes) {
    memory_.assign(bytes + 3 * kArenaAlignment, 0xff);
  }
  Scratch view() { return {Begin(), bytes_}; }
  bool Intact() {
    for (uint8_t* p = memory_.data(); p != memory_.data() + memory_.size(); ++p) {
      if ((p < Begin() || p >= Begin() + bytes_) && *p != 0xff) return false;
    }
    return true;
  }

 private:
  uint8_t* Begin() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data()) + kArenaAlignment;
    return memory_.data() + kArenaAlignment + (ArenaAlign(address) - address);
  }
  size_t bytes_;
  std::vector<uint8_t> memory_;
};

// Offsets of sequences of these lengths, the first at `begin`.
inline std::vector<int32_t> CuSeqlens(const std::vector<int>& lengths, int begin = 0) {
  std::vector<int32_t> cu = {begin};
  for (int length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

inline int MaxLength(const std::vector<int>& lengths) {
  int max = 0;
  for (int length : lengths) max = std::max(max, length);
  return max;
}

// Activations as the dtype can hold them, so that oracle and backend start from the same numbers.
inline std::vector<float> RandomActivations(DType dtype, size_t count, uint32_t seed) {
  std::vector<float> values = RandomNormal(count, seed);
  if (dtype == DType::kBF16) {
    for (float& v : values) v = RoundToBFloat16(v);
  }
  return values;
}

inline std::unique_ptr<Linear> PackOrDie(const Backend& backend, const RandomLinear& linear) {
  auto packed = backend.PackLinear(linear.source());
  EXPECT_TRUE(packed.ok()) << packed.status();
  return std::move(packed).value();
}

// LayerNorm parameters of width d. The norm of a narrow row divides by a variance that may be all
// but zero, and magnifies errors without bound; a large epsilon keeps those rows comparable.
struct RandomNorm {
  explicit RandomNorm(int d) : gamma(RandomNormal(d, 901, 0.2f)), beta(RandomNormal(d, 902, 0.3f)) {
    for (float& g : gamma) g += 1;
  }
  LayerNormParams params() const {
    return {gamma.data(), beta.data(), gamma.size() < 8 ? 0.1f : 1e-5f};
  }
  std::vector<float> gamma, beta;
};

// The bytes between rows, so that a kernel that assumes contiguous rows is caught.
inline constexpr int kRowPadding = 5;

struct ProjectCase {
  int rows, in, out, rank;
  Activation activation = Activation::kNone;
};

inline std::vector<float> RunOp(const Backend& backend, const ProjectCase& c,
                                const std::vector<float>& x) {
  const RandomLinear weights(c.in, c.out, c.rank, 11);
  const auto linear = PackOrDie(backend, weights);
  GuardedRows in(backend.dtype(), c.rows, c.in, c.in + kRowPadding, x);
  GuardedRows out(backend.dtype(), c.rows, c.out, c.out + kRowPadding);
  const ProjectArgs args = {
      .linear = linear.get(), .x = in.view(), .y = out.view(), .activation = c.activation};
  GuardedScratch scratch(backend.ScratchBytes(args));
  EXPECT_TRUE(backend.Project(args, scratch.view()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return out.Values();
}

struct ProjectAddNormCase {
  int rows, in, out, rank;
};

// x holds [rows, in] of y, then [rows, out] of the residual.
inline std::vector<float> RunOp(const Backend& backend, const ProjectAddNormCase& c,
                                const std::vector<float>& y, const std::vector<float>& x) {
  const RandomLinear weights(c.in, c.out, c.rank, 21);
  const auto linear = PackOrDie(backend, weights);
  const RandomNorm norm(c.out);
  GuardedRows in(backend.dtype(), c.rows, c.in, c.in + kRowPadding, y);
  GuardedRows out(backend.dtype(), c.rows, c.out, c.out + kRowPadding, x);
  const ProjectAddNormArgs args = {
      .linear = linear.get(), .y = in.view(), .x = out.view(), .norm = norm.params()};
  GuardedScratch scratch(backend.ScratchBytes(args));
  EXPECT_TRUE(backend.ProjectAddNorm(args, scratch.view()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return out.Values();
}

struct FeedForwardCase {
  int rows, d, hidden, up_rank, down_rank;
  Activation activation = Activation::kGelu;
};

inline std::vector<float> RunOp(const Backend& backend, const FeedForwardCase& c,
                                const std::vector<float>& x) {
  const RandomLinear up_weights(c.d, c.hidden, c.up_rank, 31);
  const RandomLinear down_weights(c.hidden, c.d, c.down_rank, 41);
  const auto up = PackOrDie(backend, up_weights);
  const auto down = PackOrDie(backend, down_weights);
  const RandomNorm norm(c.d);
  GuardedRows rows(backend.dtype(), c.rows, c.d, c.d + kRowPadding, x);
  const FeedForwardArgs args = {.up = up.get(),
                                .down = down.get(),
                                .activation = c.activation,
                                .x = rows.view(),
                                .norm = norm.params()};
  GuardedScratch scratch(backend.ScratchBytes(args));
  EXPECT_TRUE(backend.FeedForward(args, scratch.view()).ok());
  EXPECT_TRUE(rows.Intact() && scratch.Intact()) << "wrote out of bounds";
  return rows.Values();
}

struct AttentionCase {
  std::vector<int> lengths;
  int heads, d_qk, d_v;
  float scale = 0.25f;
  int first_token = 0;  // offset of the first sequence in the batch; always row 0 of qkv

  int tokens() const { return CuSeqlens(lengths).back(); }
  int columns() const { return heads * (2 * d_qk + d_v); }
};

inline std::vector<float> RunOp(const Backend& backend, const AttentionCase& c,
                                const std::vector<float>& qkv) {
  const std::vector<int32_t> cu = CuSeqlens(c.lengths, c.first_token);
  GuardedRows in(backend.dtype(), c.tokens(), c.columns(), c.columns() + kRowPadding, qkv);
  GuardedRows out(backend.dtype(), c.tokens(), c.heads * c.d_v, c.heads * c.d_v + kRowPadding);
  const AttentionArgs args = {.qkv = in.view(),
                              .context = out.view(),
                              .cu_seqlens = cu.data(),
                              .host_cu_seqlens = cu.data(),
                              .num_sequences = static_cast<int>(c.lengths.size()),
                              .max_seqlen = MaxLength(c.lengths),
                              .num_heads = c.heads,
                              .d_qk = c.d_qk,
                              .d_v = c.d_v,
                              .scale = c.scale};
  GuardedScratch scratch(backend.ScratchBytes(args));
  EXPECT_TRUE(backend.Attention(args, scratch.view()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return out.Values();
}

// A batch of sequences with made-up ids; owns what RaggedBatch points to.
struct TestBatch {
  explicit TestBatch(const std::vector<int>& lengths, int vocabulary = 11, int types = 2)
      : cu(CuSeqlens(lengths)), max_seqlen(MaxLength(lengths)) {
    for (int t = 0; t < cu.back(); ++t) {
      ids.push_back((t * 7 + 3) % vocabulary);
      type_ids.push_back(t / 3 % types);
    }
  }
  RaggedBatch view() const {
    return {.ids = ids.data(),
            .type_ids = type_ids.data(),
            .cu_seqlens = cu.data(),
            .host_cu_seqlens = cu.data(),
            .num_tokens = cu.back(),
            .num_sequences = static_cast<int>(cu.size()) - 1,
            .max_seqlen = max_seqlen};
  }
  std::vector<int32_t> ids, type_ids, cu;
  int max_seqlen;
};

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_
