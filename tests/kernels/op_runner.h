#ifndef FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_
#define FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/float_convert.h"
#include "tests/testing/random_tensor.h"

namespace flashsvd::testing {

// A backend with a stream of its own, and the memory that a test shares with it.
class Session {
 public:
  explicit Session(const Backend& backend) : backend_(backend) {
    auto stream = backend.MakeStream();
    EXPECT_TRUE(stream.ok()) << stream.status();
    stream_ = std::move(stream).value();
  }
  const Backend& backend() const { return backend_; }
  Stream& stream() { return *stream_; }

  Staging Allocate(size_t bytes) {
    auto staging = backend_.AllocateStaging(bytes);
    EXPECT_TRUE(staging.ok()) << staging.status();
    return std::move(staging).value();
  }
  void Push(const Staging& memory) {
    EXPECT_TRUE(backend_.CopyToDevice(memory, 0, memory.bytes(), stream()).ok());
  }
  void Pull(const Staging& memory) {
    EXPECT_TRUE(backend_.CopyToHost(memory, 0, memory.bytes(), stream()).ok());
    const absl::Status status = backend_.Synchronize(stream());
    EXPECT_TRUE(status.ok()) << status;
  }
  // A copy in backend memory that lives as long as the session.
  template <class T>
  const T* Upload(const std::vector<T>& values) {
    Staging memory = Allocate(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(memory.host(), values.data(), values.size() * sizeof(T));
    Push(memory);
    uploads_.push_back(std::move(memory));
    return static_cast<const T*>(uploads_.back().device());
  }
  // The same of weights: not by way of the stream, since operations may read them before what the
  // stream has ahead of them is done.
  const float* UploadWeights(const std::vector<float>& values) {
    weights_.push_back(backend_.Upload(values.data(), values.size(), DType::kF32).value());
    return static_cast<const float*>(weights_.back().data());
  }

 private:
  const Backend& backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<Staging> uploads_;
  std::vector<Buffer> weights_;
};

// The bytes between rows, so that a kernel that assumes contiguous rows is caught.
inline constexpr int kRowPadding = 5;

// Backend memory between guards, in the backend's dtype unless told otherwise. Everything outside
// the elements (guards, padding of a row's stride) is 0xff, a NaN in every dtype: reading it spoils
// a result, writing it is seen by Intact().
class GuardedRows {
 public:
  GuardedRows(Session& session, int64_t rows, int64_t cols, const std::vector<float>& values = {})
      : GuardedRows(session, session.backend().dtype(), rows, cols,
                    PaddedStride(session, cols + kRowPadding), values) {}
  GuardedRows(Session& session, DType dtype, int64_t rows, int64_t cols, int64_t stride,
              const std::vector<float>& values = {})
      : session_(session), dtype_(dtype), rows_(rows), cols_(cols), stride_(stride) {
    memory_ = session.Allocate(2 * kGuard + rows * stride * DTypeBytes(dtype));
    std::memset(memory_.host(), 0xff, memory_.bytes());
    if (!values.empty()) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) Set(r, c, values[r * cols + c]);
      }
    }
    session.Push(memory_);
  }

  static int64_t PaddedStride(const Session& session, int64_t cols) {
    const int64_t multiple = session.backend().width_multiple();
    return (cols + multiple - 1) / multiple * multiple;
  }

  Rows view() const {
    return {static_cast<std::byte*>(memory_.device()) + kGuard, rows_, cols_, stride_};
  }

  std::vector<float> Values() const {
    session_.Pull(memory_);
    std::vector<float> values;
    values.reserve(rows_ * cols_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) values.push_back(Get(r, c));
    }
    return values;
  }

  bool Intact() const {
    session_.Pull(memory_);
    std::vector<uint8_t> copy(Bytes(), Bytes() + memory_.bytes());
    for (int64_t r = 0; r < rows_; ++r) {
      std::memset(copy.data() + Offset(r, 0), 0xff, cols_ * DTypeBytes(dtype_));
    }
    return std::all_of(copy.begin(), copy.end(), [](uint8_t byte) { return byte == 0xff; });
  }

 private:
  static constexpr size_t kGuard = 256;

  uint8_t* Bytes() const { return static_cast<uint8_t*>(memory_.host()); }
  size_t Offset(int64_t r, int64_t c) const {
    return kGuard + (r * stride_ + c) * DTypeBytes(dtype_);
  }
  void Set(int64_t r, int64_t c, float value) {
    if (dtype_ == DType::kF32) {
      std::memcpy(Bytes() + Offset(r, c), &value, sizeof(value));
    } else {
      const uint16_t bits = NarrowFloat(dtype_, value);
      std::memcpy(Bytes() + Offset(r, c), &bits, sizeof(bits));
    }
  }
  float Get(int64_t r, int64_t c) const {
    if (dtype_ == DType::kF32) {
      float value;
      std::memcpy(&value, Bytes() + Offset(r, c), sizeof(value));
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, Bytes() + Offset(r, c), sizeof(bits));
    return WidenFloat(dtype_, bits);
  }

  Session& session_;
  DType dtype_;
  int64_t rows_, cols_, stride_;
  Staging memory_;
};

// Scratch of exactly the promised size, full of NaN, between guards.
class GuardedScratch {
 public:
  GuardedScratch(Session& session, size_t bytes) : session_(session), bytes_(bytes) {
    memory_ = session.Allocate(bytes + 2 * kArenaAlignment);
    std::memset(memory_.host(), 0xff, memory_.bytes());
    session.Push(memory_);
  }
  Scratch view() const {
    return {static_cast<std::byte*>(memory_.device()) + kArenaAlignment, bytes_};
  }
  bool Intact() const {
    session_.Pull(memory_);
    const auto* bytes = static_cast<const uint8_t*>(memory_.host());
    const auto untouched = [](uint8_t byte) { return byte == 0xff; };
    return std::all_of(bytes, bytes + kArenaAlignment, untouched) &&
           std::all_of(bytes + kArenaAlignment + bytes_, bytes + memory_.bytes(), untouched);
  }

 private:
  Session& session_;
  size_t bytes_;
  Staging memory_;
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
  for (float& v : values) v = RoundTo(dtype, v);
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
  LayerNormParams params(Session& session) const {
    return {session.UploadWeights(gamma), session.UploadWeights(beta),
            gamma.size() < 8 ? 0.1f : 1e-5f};
  }
  std::vector<float> gamma, beta;
};

struct ProjectCase {
  int rows, in, out, rank;
  Activation activation = Activation::kNone;
  int groups = 1;
};

inline std::vector<float> RunOp(const Backend& backend, const ProjectCase& c,
                                const std::vector<float>& x) {
  Session session(backend);
  const RandomLinear weights(c.in, c.out, c.rank, 11, c.groups);
  const auto linear = PackOrDie(backend, weights);
  const GuardedRows in(session, c.rows, c.in, x), out(session, c.rows, c.out);
  const ProjectArgs args = {
      .linear = linear.get(), .x = in.view(), .y = out.view(), .activation = c.activation};
  const GuardedScratch scratch(session, backend.ScratchBytes(args));
  EXPECT_TRUE(backend.Project(args, scratch.view(), session.stream()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return out.Values();
}

struct ProjectAddNormCase {
  int rows, in, out, rank;
};

// x holds [rows, in] of y, then [rows, out] of the residual.
inline std::vector<float> RunOp(const Backend& backend, const ProjectAddNormCase& c,
                                const std::vector<float>& y, const std::vector<float>& x) {
  Session session(backend);
  const RandomLinear weights(c.in, c.out, c.rank, 21);
  const auto linear = PackOrDie(backend, weights);
  const RandomNorm norm(c.out);
  const GuardedRows in(session, c.rows, c.in, y), out(session, c.rows, c.out, x);
  const ProjectAddNormArgs args = {
      .linear = linear.get(), .y = in.view(), .x = out.view(), .norm = norm.params(session)};
  const GuardedScratch scratch(session, backend.ScratchBytes(args));
  EXPECT_TRUE(backend.ProjectAddNorm(args, scratch.view(), session.stream()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return out.Values();
}

struct FeedForwardCase {
  int rows, d, hidden, up_rank, down_rank;
  Activation activation = Activation::kGelu;
};

inline std::vector<float> RunOp(const Backend& backend, const FeedForwardCase& c,
                                const std::vector<float>& x) {
  Session session(backend);
  const RandomLinear up_weights(c.d, c.hidden, c.up_rank, 31);
  const RandomLinear down_weights(c.hidden, c.d, c.down_rank, 41);
  const auto up = PackOrDie(backend, up_weights);
  const auto down = PackOrDie(backend, down_weights);
  const RandomNorm norm(c.d);
  const GuardedRows rows(session, c.rows, c.d, x);
  const FeedForwardArgs args = {.up = up.get(),
                                .down = down.get(),
                                .activation = c.activation,
                                .x = rows.view(),
                                .norm = norm.params(session)};
  const GuardedScratch scratch(session, backend.ScratchBytes(args));
  EXPECT_TRUE(backend.FeedForward(args, scratch.view(), session.stream()).ok());
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

// `values` [rows, heads * from] with each head's columns cut or filled with zeros to `to`.
inline std::vector<float> ResizeHeads(const std::vector<float>& values, int heads, int from,
                                      int to) {
  const size_t groups = values.size() / from;
  std::vector<float> resized(groups * to, 0.0f);
  for (size_t g = 0; g < groups; ++g) {
    std::copy_n(values.begin() + g * from, std::min(from, to), resized.begin() + g * to);
  }
  EXPECT_EQ(groups % heads, 0u);
  return resized;
}

// qkv with head dims rounded up to what the backend takes, as zero columns.
inline std::vector<float> PadQkv(const AttentionCase& c, int d_qk, int d_v,
                                 const std::vector<float>& qkv) {
  const int columns = c.heads * (2 * d_qk + d_v);
  std::vector<float> padded(size_t(c.tokens()) * columns, 0.0f);
  for (int t = 0; t < c.tokens(); ++t) {
    const float* from = qkv.data() + size_t(t) * c.columns();
    float* to = padded.data() + size_t(t) * columns;
    for (int h = 0; h < 2 * c.heads; ++h, from += c.d_qk, to += d_qk) std::copy_n(from, c.d_qk, to);
    for (int h = 0; h < c.heads; ++h, from += c.d_v, to += d_v) std::copy_n(from, c.d_v, to);
  }
  return padded;
}

// What a batch of these sequences reads beside qkv: offsets and the backend's schedule.
inline void SetSequences(Session& session, const std::vector<int32_t>& cu, AttentionArgs* args) {
  const Backend& backend = session.backend();
  const int num_sequences = static_cast<int>(cu.size()) - 1;
  const int num_tokens = static_cast<int>(args->qkv.rows);
  std::vector<std::byte> schedule(backend.AttentionScheduleBytes(num_tokens, num_sequences));
  backend.WriteAttentionSchedule(cu.data(), num_sequences, num_tokens, schedule.data());
  args->host_cu_seqlens = cu.data();
  args->schedule = session.Upload(schedule);
  args->num_sequences = num_sequences;
}

inline std::vector<float> RunOp(const Backend& backend, const AttentionCase& c,
                                const std::vector<float>& qkv) {
  Session session(backend);
  const std::vector<int32_t> cu = CuSeqlens(c.lengths, c.first_token);
  const int d_qk = static_cast<int>(GuardedRows::PaddedStride(session, c.d_qk));
  const int d_v = static_cast<int>(GuardedRows::PaddedStride(session, c.d_v));
  const GuardedRows in(session, c.tokens(), c.heads * (2 * d_qk + d_v), PadQkv(c, d_qk, d_v, qkv));
  const GuardedRows out(session, c.tokens(), c.heads * d_v);
  AttentionArgs args = {.qkv = in.view(),
                        .context = out.view(),
                        .max_seqlen = MaxLength(c.lengths),
                        .num_heads = c.heads,
                        .d_qk = d_qk,
                        .d_v = d_v,
                        .scale = c.scale};
  SetSequences(session, cu, &args);
  const GuardedScratch scratch(session, backend.ScratchBytes(args));
  EXPECT_TRUE(backend.Attention(args, scratch.view(), session.stream()).ok());
  EXPECT_TRUE(in.Intact() && out.Intact() && scratch.Intact()) << "wrote out of bounds";
  return ResizeHeads(out.Values(), c.heads, d_v, c.d_v);
}

// Attention and the projection of its context into x, [tokens, out], with the norm. qkv holds heads
// that the backend takes as they are.
inline std::vector<float> RunAttentionAddNorm(const Backend& backend, const AttentionCase& c,
                                              int out, const std::vector<float>& qkv,
                                              const std::vector<float>& x) {
  Session session(backend);
  const std::vector<int32_t> cu = CuSeqlens(c.lengths, c.first_token);
  const RandomLinear weights(c.heads * c.d_v, out, 0, 61);
  const auto linear = PackOrDie(backend, weights);
  const RandomNorm norm(out);
  const GuardedRows in(session, c.tokens(), c.columns(), qkv);
  const GuardedRows context(session, c.tokens(), c.heads * c.d_v);
  const GuardedRows rows(session, c.tokens(), out, x);
  AttentionArgs attention = {.qkv = in.view(),
                             .context = context.view(),
                             .max_seqlen = MaxLength(c.lengths),
                             .num_heads = c.heads,
                             .d_qk = c.d_qk,
                             .d_v = c.d_v,
                             .scale = c.scale};
  SetSequences(session, cu, &attention);
  const ProjectAddNormArgs output = {
      .linear = linear.get(), .y = context.view(), .x = rows.view(), .norm = norm.params(session)};
  const GuardedScratch scratch(
      session, std::max(backend.ScratchBytes(attention), backend.ScratchBytes(output)));
  EXPECT_TRUE(backend.AttentionAddNorm(attention, output, scratch.view(), session.stream()).ok());
  EXPECT_TRUE(context.Intact() && rows.Intact() && scratch.Intact()) << "wrote out of bounds";
  return rows.Values();
}

// A batch of sequences with made-up ids; owns what RaggedBatch points to.
struct TestBatch {
  explicit TestBatch(const std::vector<int>& lengths, int vocabulary = 11, int types = 2)
      : cu(CuSeqlens(lengths)), max_seqlen(MaxLength(lengths)) {
    for (int t = 0; t < cu.back(); ++t) {
      ids.push_back((t * 7 + 3) % vocabulary);
      type_ids.push_back(t / 3 % types);
    }
    for (int length : lengths) {
      for (int p = 0; p < length; ++p) positions.push_back(p);
    }
  }
  RaggedBatch view(Session& session) const {
    return {.ids = session.Upload(ids),
            .type_ids = session.Upload(type_ids),
            .positions = session.Upload(positions),
            .cu_seqlens = session.Upload(cu),
            .host_cu_seqlens = cu.data(),
            .num_tokens = cu.back(),
            .num_sequences = static_cast<int>(cu.size()) - 1,
            .max_seqlen = max_seqlen};
  }
  std::vector<int32_t> ids, type_ids, positions, cu;
  int max_seqlen;
};

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_KERNELS_OP_RUNNER_H_
