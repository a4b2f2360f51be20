#include "runtime/attention_fold.h"

#include <algorithm>
#include <span>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/host_matrix.h"

namespace flashsvd {
namespace {

std::vector<float> ToFloats(const HostMatrix& m) {
  return std::vector<float>(m.values.begin(), m.values.end());
}

// Rows [first, first + rows) of a row-major float32 matrix of `cols` columns.
HostMatrix Slice(const std::vector<float>& source, int first, int rows, int cols) {
  return FromFloat(std::span(source).subspan(static_cast<size_t>(first) * cols), rows, cols, cols);
}

// Factors of one head of a per-head module: A [R, in], B [h, R].
HostMatrix HeadA(const LinearWeights& w, int head) {
  return Slice(w.a, head * w.rank, w.rank, w.in);
}
HostMatrix HeadB(const LinearWeights& w, int head) {
  const int h = w.out / w.heads;
  return Slice(w.b, head * h, h, w.rank);
}

// The rows of the module's W that belong to one head, [h, in].
HostMatrix HeadWeight(const LinearWeights& w, int head, int h) {
  switch (w.layout) {
    case LinearLayout::kDense:
      return Slice(w.weight, head * h, h, w.in);
    case LinearLayout::kPerHead:
      return Multiply(HeadB(w, head), HeadA(w, head));
    case LinearLayout::kFull:
    case LinearLayout::kQkvShared:
      return Multiply(Slice(w.b, head * h, h, w.rank), Slice(w.a, 0, w.rank, w.in));
  }
  return {};
}

void AppendRows(const HostMatrix& m, std::vector<float>* out) {
  out->insert(out->end(), m.values.begin(), m.values.end());
}

bool RankSpacePays(const LinearWeights& w, int h) {
  return w.layout == LinearLayout::kPerHead && w.rank < h;
}

// Query and key in rank space: Wq~ [H R, d] with its bias, and A_k [H R, d], head by head.
void FoldQueryKey(const LinearWeights& q, const LinearWeights& k, int heads, HostLinear* query,
                  HostLinear* key) {
  const int h = q.out / heads;
  *query = {.in = q.in, .out = heads * k.rank};
  *key = {.in = k.in, .out = heads * k.rank};
  for (int head = 0; head < heads; ++head) {
    const ThinQr b = FactorQr(HeadB(k, head));
    AppendRows(Multiply(b.r, HeadA(k, head)), &key->weight);
    const HostMatrix bt = Transpose(b.q);
    AppendRows(Multiply(bt, HeadWeight(q, head, h)), &query->weight);
    AppendRows(Multiply(bt, FromFloat(std::span(q.bias).subspan(head * h), h, 1, 1)), &query->bias);
  }
}

// Values in rank space: A_v [H R, d], and the output projection behind them with B_v folded in.
void FoldValueOutput(const LinearWeights& v, const HostLinear& o, int heads, HostLinear* value,
                     HostLinear* output) {
  const int h = v.out / heads;
  *value = {.in = v.in, .out = heads * v.rank};
  *output = {.in = heads * v.rank, .out = o.out, .rank = o.rank, .b = o.b, .bias = o.bias};
  // The side of the output projection that reads the context: W_o, or A_o of a factor pair.
  const int rows = o.rank > 0 ? o.rank : o.out;
  const std::vector<float>& reads = o.rank > 0 ? o.a : o.weight;
  HostMatrix folded(rows, heads * v.rank);
  for (int head = 0; head < heads; ++head) {
    const ThinQr b = FactorQr(HeadB(v, head));
    AppendRows(Multiply(b.r, HeadA(v, head)), &value->weight);
    const HostMatrix side = Multiply(
        FromFloat(std::span(reads).subspan(static_cast<size_t>(head) * h), rows, h, o.in), b.q);
    for (int i = 0; i < rows; ++i) {
      std::copy(side.row(i), side.row(i) + v.rank, folded.row(i) + head * v.rank);
    }
  }
  (o.rank > 0 ? output->a : output->weight) = ToFloats(folded);
}

// bo~ = bo + W_o bv.
void FoldValueBias(const std::vector<float>& bv, HostLinear* o) {
  const HostMatrix bias = FromFloat(bv, static_cast<int>(bv.size()), 1, 1);
  const HostMatrix shift = o->rank > 0 ? Multiply(Slice(o->b, 0, o->out, o->rank),
                                                  Multiply(Slice(o->a, 0, o->rank, o->in), bias))
                                       : Multiply(Slice(o->weight, 0, o->out, o->in), bias);
  for (int i = 0; i < o->out; ++i) {
    o->bias[i] = static_cast<float>(o->bias[i] + shift.values[i]);
  }
}

// Stacks the outputs of `next` under those of `first`: both dense, or both factor pairs, whose A is
// left alone.
void Stack(const HostLinear& next, HostLinear* first) {
  if (!first->bias.empty() || !next.bias.empty()) {
    first->bias.resize(first->out);
    first->bias.insert(first->bias.end(), next.bias.begin(), next.bias.end());
    first->bias.resize(first->out + next.out);
  }
  first->weight.insert(first->weight.end(), next.weight.begin(), next.weight.end());
  first->b.insert(first->b.end(), next.b.begin(), next.b.end());
  first->out += next.out;
}

int RoundUp(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Blocks of `from` consecutive floats, each made `to` long with zeros behind.
std::vector<float> WidenBlocks(const std::vector<float>& values, size_t from, size_t to) {
  std::vector<float> wide(values.size() / from * to, 0.0f);
  for (size_t block = 0; block < values.size() / from; ++block) {
    std::copy_n(values.begin() + block * from, from, wide.begin() + block * to);
  }
  return wide;
}

// Rows [first, first + count) of a matrix of `cols` columns.
std::vector<float> RowsOf(const std::vector<float>& values, size_t first, size_t count,
                          size_t cols) {
  return {values.begin() + first * cols, values.begin() + (first + count) * cols};
}

// The outputs of `linear` are consecutive heads' dims: `num_heads[i]` heads of `from[i]` outputs
// each, made `to[i]`.
void WidenOutputs(const std::vector<int>& num_heads, const std::vector<int>& from,
                  const std::vector<int>& to, HostLinear* linear) {
  HostLinear wide = *linear;
  wide.out = 0;
  wide.weight.clear();
  wide.b.clear();
  wide.bias.clear();
  size_t row = 0;
  for (size_t i = 0; i < num_heads.size(); ++i) {
    const size_t rows = static_cast<size_t>(num_heads[i]) * from[i];
    const auto widen = [&](const std::vector<float>& values, size_t cols, std::vector<float>* out) {
      if (values.empty()) return;
      const std::vector<float> part =
          WidenBlocks(RowsOf(values, row, rows, cols), from[i] * cols, to[i] * cols);
      out->insert(out->end(), part.begin(), part.end());
    };
    widen(linear->weight, linear->in, &wide.weight);
    widen(linear->b, linear->rank, &wide.b);
    widen(linear->bias, 1, &wide.bias);
    wide.out += num_heads[i] * to[i];
    row += rows;
  }
  *linear = std::move(wide);
}

}  // namespace

LinearSource HostLinear::source() const {
  LinearSource s{.in = in, .out = out, .rank = rank, .groups = groups};
  if (rank > 0) {
    s.a = a.data();
    s.b = b.data();
  } else {
    s.weight = weight.data();
  }
  if (!bias.empty()) s.bias = bias.data();
  return s;
}

HostLinear ToHostLinear(LinearWeights w) {
  HostLinear linear{.in = w.in, .out = w.out, .bias = std::move(w.bias)};
  switch (w.layout) {
    case LinearLayout::kDense:
      linear.weight = std::move(w.weight);
      break;
    case LinearLayout::kFull:
    case LinearLayout::kQkvShared:
      linear.rank = w.rank;
      linear.a = std::move(w.a);
      linear.b = std::move(w.b);
      break;
    case LinearLayout::kPerHead:
      for (int head = 0; head < w.heads; ++head) {
        AppendRows(Multiply(HeadB(w, head), HeadA(w, head)), &linear.weight);
      }
      break;
  }
  return linear;
}

FoldedAttention FoldAttention(const LinearWeights& q, const LinearWeights& k,
                              const LinearWeights& v, const LinearWeights& o, int heads) {
  FSVD_CHECK(q.out % heads == 0, "%d heads of width %d", heads, q.out);
  const int h = q.out / heads;
  FoldedAttention folded;
  folded.d_qk = folded.d_v = h;

  HostLinear query, key, value;
  if (RankSpacePays(k, h)) {
    folded.d_qk = k.rank;
    FoldQueryKey(q, k, heads, &query, &key);
  } else {
    query = ToHostLinear(q);
    key = ToHostLinear(k);
    key.bias.clear();
  }

  folded.output = ToHostLinear(o);
  FoldValueBias(v.bias, &folded.output);
  if (RankSpacePays(v, h)) {
    folded.d_v = v.rank;
    const HostLinear output = std::move(folded.output);
    FoldValueOutput(v, output, heads, &value, &folded.output);
  } else {
    value = ToHostLinear(v);
    value.bias.clear();
  }

  int column = 0;
  const bool shared = query.rank > 0 && q.layout == LinearLayout::kQkvShared &&
                      k.layout == LinearLayout::kQkvShared && v.layout == LinearLayout::kQkvShared;
  for (HostLinear* linear : {&query, &key, &value}) {
    const int out = linear->out;
    HostLinear* last = column > 0 ? &folded.projections.back().linear : nullptr;
    if (last != nullptr && (shared || (last->rank == 0 && linear->rank == 0))) {
      Stack(*linear, last);
    } else {
      folded.projections.push_back({std::move(*linear), column});
    }
    column += out;
  }
  return folded;
}

FoldedAttention PadHeadDims(FoldedAttention folded, int heads, int multiple) {
  const int d_qk = RoundUp(folded.d_qk, multiple), d_v = RoundUp(folded.d_v, multiple);
  if (d_qk == folded.d_qk && d_v == folded.d_v) return folded;
  // Columns of qkv: heads of Q, of K, of V. A projection fills one, two or all three.
  const int from[] = {folded.d_qk, folded.d_qk, folded.d_v}, to[] = {d_qk, d_qk, d_v};
  int part = 0, column = 0;
  for (FoldedAttention::Projection& p : folded.projections) {
    std::vector<int> num_heads, narrow, wide;
    for (int out = 0; out < p.linear.out; ++part) {
      num_heads.push_back(heads);
      narrow.push_back(from[part]);
      wide.push_back(to[part]);
      out += heads * from[part];
    }
    WidenOutputs(num_heads, narrow, wide, &p.linear);
    p.column = column;
    column += p.linear.out;
  }
  HostLinear& o = folded.output;
  o.in = heads * d_v;
  std::vector<float>& reads = o.rank > 0 ? o.a : o.weight;
  reads = WidenBlocks(reads, folded.d_v, d_v);
  folded.d_qk = d_qk;
  folded.d_v = d_v;
  return folded;
}

FoldedAttention GroupPairs(FoldedAttention folded) {
  std::vector<FoldedAttention::Projection> grouped;
  for (FoldedAttention::Projection& p : folded.projections) {
    HostLinear* last = grouped.empty() ? nullptr : &grouped.back().linear;
    if (last != nullptr && p.linear.rank > 0 && last->rank == p.linear.rank &&
        last->out / last->groups == p.linear.out) {
      Stack(p.linear, last);
      last->a.insert(last->a.end(), p.linear.a.begin(), p.linear.a.end());
      ++last->groups;
    } else {
      grouped.push_back(std::move(p));
    }
  }
  folded.projections = std::move(grouped);
  return folded;
}

}  // namespace flashsvd
