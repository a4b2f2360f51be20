#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check_args.h"
#include "kernels/float_convert.h"
#include "kernels/host_buffer.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// Matrices column after column, values already rounded to the backend's dtype.
class ReferenceLinear : public Linear {
 public:
  ReferenceLinear(const LinearSource& source, size_t bytes)
      : Linear(source.in, source.out, source.rank, source.groups, bytes) {}

  std::vector<float> first;   // [in][out] of the weight, or [in][groups * rank] of A
  std::vector<float> second;  // [rank][out] of B
  std::vector<float> bias;    // [out]
};

std::vector<float> RoundedColumns(const float* matrix, size_t rows, size_t cols, DType dtype) {
  std::vector<float> columns(rows * cols);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) columns[c * rows + r] = RoundTo(dtype, matrix[r * cols + c]);
  }
  return columns;
}

// Rows of a matrix that lie in `groups` equal runs, each times its own of the equal parts of x.
std::vector<double> MatVec(const std::vector<float>& columns, const std::vector<double>& x,
                           size_t groups = 1) {
  const size_t in = x.size() / groups;
  std::vector<double> y(columns.size() / in);
  const size_t run = y.size() / groups;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t first = i / in * run;  // of this group's rows
    const float* column = columns.data() + i % in * y.size() + first;
    for (size_t o = 0; o < run; ++o) y[first + o] += double{column[o]} * x[i];
  }
  return y;
}

double ActivationOf(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
  }
  return x;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReferenceBackend>> ReferenceBackend::Create(DType dtype) {
  return std::unique_ptr<ReferenceBackend>(new ReferenceBackend(dtype));
}

absl::StatusOr<std::unique_ptr<Linear>> ReferenceBackend::PackLinear(
    const LinearSource& source) const {
  FSVD_RETURN_IF_ERROR(ValidateLinearSource(source));
  CountAllocation();
  const size_t in = source.in, out = source.out, rank = source.rank, groups = source.groups;
  const size_t elements = rank == 0 ? in * out : rank * (groups * in + out);
  auto linear = std::make_unique<ReferenceLinear>(
      source, elements * DTypeBytes(dtype_) + out * sizeof(float));
  linear->bias.resize(out);
  if (source.bias != nullptr) std::copy_n(source.bias, out, linear->bias.begin());
  if (rank == 0) {
    linear->first = RoundedColumns(source.weight, out, in, dtype_);
  } else {
    linear->first = RoundedColumns(source.a, groups * rank, in, dtype_);
    linear->second = RoundedColumns(source.b, out, rank, dtype_);
  }
  return linear;
}

absl::StatusOr<Buffer> ReferenceBackend::Upload(const float* values, size_t count, DType as) const {
  CountAllocation();
  return UploadToHost(values, count, as);
}

absl::StatusOr<Buffer> ReferenceBackend::Allocate(size_t bytes) const {
  CountAllocation();
  return AllocateHostBuffer(bytes);
}

double ReferenceBackend::Round(double value) const {
  return dtype_ == DType::kF32 ? value : RoundTo(dtype_, static_cast<float>(value));
}

double ReferenceBackend::Element(const void* data, int64_t index) const {
  if (dtype_ == DType::kF32) return static_cast<const float*>(data)[index];
  return WidenFloat(dtype_, static_cast<const uint16_t*>(data)[index]);
}

ReferenceBackend::Row ReferenceBackend::Load(const Rows& rows, int64_t row) const {
  Row values(rows.cols);
  for (int64_t c = 0; c < rows.cols; ++c) values[c] = Element(rows.data, row * rows.stride + c);
  return values;
}

void ReferenceBackend::Store(const Row& values, const Rows& rows, int64_t row) const {
  for (int64_t c = 0; c < rows.cols; ++c) {
    const auto value = static_cast<float>(values[c]);
    const int64_t index = row * rows.stride + c;
    if (dtype_ == DType::kF32) {
      static_cast<float*>(rows.data)[index] = value;
    } else {
      static_cast<uint16_t*>(rows.data)[index] = NarrowFloat(dtype_, value);
    }
  }
}

ReferenceBackend::Row ReferenceBackend::Apply(const Linear& linear, const Row& x) const {
  const auto& matrices = static_cast<const ReferenceLinear&>(linear);
  Row y = MatVec(matrices.first, x);
  if (linear.rank() > 0) {
    for (double& v : y) v = Round(v);
    y = MatVec(matrices.second, y, linear.groups());
  }
  for (size_t o = 0; o < y.size(); ++o) y[o] = Round(y[o] + matrices.bias[o]);
  return y;
}

ReferenceBackend::Row ReferenceBackend::Activate(Activation activation, Row x) const {
  for (double& v : x) v = Round(ActivationOf(activation, v));
  return x;
}

ReferenceBackend::Row ReferenceBackend::Norm(const Row& x, const LayerNormParams& norm) const {
  double mean = 0;
  for (double v : x) mean += v;
  mean /= x.size();
  double variance = 0;
  for (double v : x) variance += (v - mean) * (v - mean);
  variance /= x.size();
  const double scale = 1 / std::sqrt(variance + norm.epsilon);
  Row y(x.size());
  for (size_t c = 0; c < x.size(); ++c) {
    y[c] = (x[c] - mean) * scale * norm.gamma[c] + norm.beta[c];
  }
  return y;
}

ReferenceBackend::Row ReferenceBackend::AddNorm(const Row& x, const Row& y,
                                                const LayerNormParams& norm) const {
  Row sum(x.size());
  for (size_t c = 0; c < x.size(); ++c) sum[c] = Round(x[c] + y[c]);
  return Norm(sum, norm);
}

absl::Status ReferenceBackend::Embed(const EmbedArgs& args, Stream&) const {
  CheckArgs(args);
  const int64_t d = args.x.cols;
  for (int s = 0; s < args.batch.num_sequences; ++s) {
    const int64_t begin = args.batch.host_cu_seqlens[s];
    for (int64_t t = begin; t < args.batch.host_cu_seqlens[s + 1]; ++t) {
      Row sum(d);
      for (int64_t c = 0; c < d; ++c) {
        sum[c] = Round(Element(args.word, args.batch.ids[t] * d + c) +
                       Element(args.position, (t - begin) * d + c));
        sum[c] = Round(sum[c] + Element(args.type, args.batch.type_ids[t] * d + c));
      }
      Store(Norm(sum, args.norm), args.x, t);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Project(const ProjectArgs& args, Scratch, Stream&) const {
  CheckArgs(args);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    Store(Activate(args.activation, Apply(*args.linear, Load(args.x, t))), args.y, t);
  }
  return absl::OkStatus();
}

ReferenceBackend::Row ReferenceBackend::Attend(const Row& q, const std::vector<Row>& key_columns,
                                               const std::vector<Row>& values, float scale) const {
  Row p(values.size());
  for (size_t c = 0; c < q.size(); ++c) {
    for (size_t u = 0; u < p.size(); ++u) p[u] += q[c] * key_columns[c][u];
  }
  for (double& v : p) v = Round(v * scale);
  const double max = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (double& v : p) {
    v = std::exp(v - max);
    sum += v;
  }
  Row o(values[0].size());
  for (size_t u = 0; u < p.size(); ++u) {
    const double weight = Round(p[u] / sum);
    for (size_t c = 0; c < o.size(); ++c) o[c] += weight * values[u][c];
  }
  return o;
}

absl::Status ReferenceBackend::Attention(const AttentionArgs& args, Scratch, Stream&) const {
  CheckArgs(args);
  const auto columns = [&](const Rows& x, int64_t first, int64_t count) {
    return Rows{static_cast<std::byte*>(x.data) + first * DTypeBytes(dtype_), x.rows, count,
                x.stride};
  };
  const int64_t heads = args.num_heads;
  for (int s = 0; s < args.num_sequences; ++s) {
    // Offsets count from the first token of the batch, rows from the first of this chunk.
    const int64_t begin = args.host_cu_seqlens[s] - args.host_cu_seqlens[0];
    const int64_t end = args.host_cu_seqlens[s + 1] - args.host_cu_seqlens[0];
    for (int64_t head = 0; head < heads; ++head) {
      const Rows q = columns(args.qkv, head * args.d_qk, args.d_qk);
      const Rows k = columns(args.qkv, (heads + head) * args.d_qk, args.d_qk);
      const Rows v = columns(args.qkv, 2 * heads * args.d_qk + head * args.d_v, args.d_v);
      const Rows o = columns(args.context, head * args.d_v, args.d_v);
      std::vector<Row> key_columns(args.d_qk), values;
      for (int64_t u = begin; u < end; ++u) {
        const Row key = Load(k, u);
        for (size_t c = 0; c < key.size(); ++c) key_columns[c].push_back(key[c]);
        values.push_back(Load(v, u));
      }
      for (int64_t t = begin; t < end; ++t) {
        Store(Attend(Load(q, t), key_columns, values, args.scale), o, t);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::ProjectAddNorm(const ProjectAddNormArgs& args, Scratch,
                                              Stream&) const {
  CheckArgs(args);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const Row y = Apply(*args.linear, Load(args.y, t));
    Store(AddNorm(Load(args.x, t), y, args.norm), args.x, t);
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::FeedForward(const FeedForwardArgs& args, Scratch, Stream&) const {
  CheckArgs(args);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const Row x = Load(args.x, t);
    const Row hidden = Activate(args.activation, Apply(*args.up, x));
    Store(AddNorm(x, Apply(*args.down, hidden), args.norm), args.x, t);
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Pool(const PoolArgs& args, Stream&) const {
  CheckArgs(args);
  const int64_t d = args.x.cols;
  for (int s = 0; s < args.batch.num_sequences; ++s) {
    const int64_t begin = args.batch.host_cu_seqlens[s], end = args.batch.host_cu_seqlens[s + 1];
    Row pooled(d);
    if (begin < end) {
      const int64_t first = args.pooling == Pooling::kLast ? end - 1 : begin;
      const int64_t last = args.pooling == Pooling::kCls ? begin + 1 : end;
      for (int64_t t = first; t < last; ++t) {
        const Row row = Load(args.x, t);
        for (int64_t c = 0; c < d; ++c) pooled[c] += row[c] / static_cast<double>(last - first);
      }
    }
    double squares = 0;
    for (double v : pooled) squares += v * v;
    const double scale = args.normalize ? 1 / std::max(std::sqrt(squares), 1e-12) : 1;
    for (int64_t c = 0; c < d; ++c) args.out[s * d + c] = static_cast<float>(pooled[c] * scale);
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
