#include "runtime/attention_fold.h"

#include <cmath>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/host_matrix.h"

namespace flashsvd {
namespace {

constexpr int kWidth = 24, kHeads = 3, kHeadDim = 8, kTokens = 11;

class Generator {
 public:
  explicit Generator(uint64_t seed) : generator_(seed) {}

  std::vector<float> Values(int count, double deviation) {
    std::normal_distribution<float> normal(0, static_cast<float>(deviation));
    std::vector<float> values(count);
    for (float& v : values) v = normal(generator_);
    return values;
  }

  LinearWeights Module(LinearLayout layout, int rank) {
    LinearWeights w{.name = "m", .layout = layout, .in = kWidth, .out = kWidth};
    const double in_scale = 1 / std::sqrt(kWidth);
    w.bias = Values(kWidth, 0.7);
    if (layout == LinearLayout::kDense) {
      w.weight = Values(kWidth * kWidth, in_scale);
      return w;
    }
    w.rank = rank;
    w.heads = layout == LinearLayout::kPerHead ? kHeads : 1;
    w.a = Values(w.heads * rank * kWidth, in_scale);
    w.b = Values(kWidth * rank, 1 / std::sqrt(rank));
    return w;
  }

 private:
  std::mt19937_64 generator_;
};

// W [out, in] of a module, straight from the definition of its layout.
HostMatrix DenseWeight(const LinearWeights& w) {
  HostMatrix dense(w.out, w.in);
  for (int i = 0; i < w.out; ++i) {
    const int head = w.layout == LinearLayout::kPerHead ? i / (w.out / w.heads) : 0;
    for (int j = 0; j < w.in; ++j) {
      if (w.layout == LinearLayout::kDense) {
        dense.row(i)[j] = w.weight[i * w.in + j];
        continue;
      }
      for (int r = 0; r < w.rank; ++r) {
        dense.row(i)[j] +=
            static_cast<double>(w.b[i * w.rank + r]) * w.a[(head * w.rank + r) * w.in + j];
      }
    }
  }
  return dense;
}

HostMatrix Apply(const HostMatrix& weight, const std::vector<float>& bias, const HostMatrix& x) {
  HostMatrix y = Multiply(x, Transpose(weight));
  for (int i = 0; i < y.rows && !bias.empty(); ++i) {
    for (int j = 0; j < y.cols; ++j) y.row(i)[j] += bias[j];
  }
  return y;
}

HostMatrix Apply(const HostLinear& linear, const HostMatrix& x) {
  if (linear.rank == 0) {
    return Apply(FromFloat(linear.weight, linear.out, linear.in, linear.in), linear.bias, x);
  }
  // Several factor pairs, written as one whose up-factor is zero off the groups' blocks.
  const int middle_cols = linear.groups * linear.rank;
  const HostMatrix middle = Apply(FromFloat(linear.a, middle_cols, linear.in, linear.in), {}, x);
  HostMatrix b(linear.out, middle_cols);
  for (int i = 0; i < linear.out; ++i) {
    const int group = i / (linear.out / linear.groups);
    for (int r = 0; r < linear.rank; ++r) {
      b.row(i)[group * linear.rank + r] = linear.b[i * linear.rank + r];
    }
  }
  return Apply(b, linear.bias, middle);
}

// Softmax attention in float64; q, k [M, H d_qk], v [M, H d_v].
HostMatrix Attend(const HostMatrix& q, const HostMatrix& k, const HostMatrix& v, int d_qk,
                  int d_v) {
  const double scale = 1 / std::sqrt(kHeadDim);
  HostMatrix out(q.rows, kHeads * d_v);
  for (int head = 0; head < kHeads; ++head) {
    for (int t = 0; t < q.rows; ++t) {
      std::vector<double> p(k.rows);
      double sum = 0;
      for (int u = 0; u < k.rows; ++u) {
        double score = 0;
        for (int i = 0; i < d_qk; ++i) {
          score += q.row(t)[head * d_qk + i] * k.row(u)[head * d_qk + i];
        }
        sum += p[u] = std::exp(scale * score);
      }
      for (int u = 0; u < k.rows; ++u) {
        for (int i = 0; i < d_v; ++i) {
          out.row(t)[head * d_v + i] += p[u] / sum * v.row(u)[head * d_v + i];
        }
      }
    }
  }
  return out;
}

HostMatrix Columns(const HostMatrix& m, int first, int count) {
  HostMatrix out(m.rows, count);
  for (int i = 0; i < m.rows; ++i) {
    std::copy(m.row(i) + first, m.row(i) + first + count, out.row(i));
  }
  return out;
}

HostMatrix RunFolded(const FoldedAttention& folded, const HostMatrix& x) {
  HostMatrix qkv(x.rows, kHeads * (2 * folded.d_qk + folded.d_v));
  for (const FoldedAttention::Projection& p : folded.projections) {
    const HostMatrix y = Apply(p.linear, x);
    for (int i = 0; i < x.rows; ++i) {
      std::copy(y.row(i), y.row(i) + y.cols, qkv.row(i) + p.column);
    }
  }
  const int qk = kHeads * folded.d_qk;
  return Apply(folded.output,
               Attend(Columns(qkv, 0, qk), Columns(qkv, qk, qk),
                      Columns(qkv, 2 * qk, kHeads * folded.d_v), folded.d_qk, folded.d_v));
}

HostMatrix RunPlain(const LinearWeights& q, const LinearWeights& k, const LinearWeights& v,
                    const LinearWeights& o, const HostMatrix& x) {
  const HostMatrix context =
      Attend(Apply(DenseWeight(q), q.bias, x), Apply(DenseWeight(k), k.bias, x),
             Apply(DenseWeight(v), v.bias, x), kHeadDim, kHeadDim);
  return Apply(DenseWeight(o), o.bias, context);
}

double RelativeError(const HostMatrix& got, const HostMatrix& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.values.size(); ++i) {
    difference += std::pow(got.values[i] - want.values[i], 2);
    norm += want.values[i] * want.values[i];
  }
  return std::sqrt(difference / norm);
}

// Folded weights are rounded to float32 once, 6e-8 relative; a chain of four such maps with a
// softmax between amplifies that by less than 16.
constexpr double kTolerance = 1e-6;

TEST(AttentionFoldTest, EveryMixOfLayoutsEqualsThePlainProduct) {
  Generator generator(1);
  HostMatrix x(kTokens, kWidth);
  const std::vector<float> values = generator.Values(kTokens * kWidth, 1);
  x.values.assign(values.begin(), values.end());
  const std::pair<LinearLayout, int> kinds[] = {{LinearLayout::kDense, 0},
                                                {LinearLayout::kFull, 5},
                                                {LinearLayout::kPerHead, 3},
                                                {LinearLayout::kPerHead, kHeadDim}};
  for (const auto& [ql, qr] : kinds) {
    for (const auto& [kl, kr] : kinds) {
      for (const auto& [vl, vr] : kinds) {
        for (const auto& [ol, orank] : {kinds[0], kinds[1]}) {
          const LinearWeights q = generator.Module(ql, qr), k = generator.Module(kl, kr),
                              v = generator.Module(vl, vr), o = generator.Module(ol, orank);
          const FoldedAttention folded = FoldAttention(q, k, v, o, kHeads);
          // As it is, and with head dims rounded up, which changes nothing: 3 and 8 to 5 and 10;
          // pair by pair and grouped.
          for (const int multiple : {1, 5}) {
            const FoldedAttention padded = PadHeadDims(folded, kHeads, multiple);
            EXPECT_EQ(padded.d_qk % multiple, 0);
            EXPECT_EQ(padded.d_v % multiple, 0);
            for (const FoldedAttention& f : {padded, GroupPairs(padded)}) {
              EXPECT_LE(RelativeError(RunFolded(f, x), RunPlain(q, k, v, o, x)), kTolerance)
                  << LinearLayoutName(ql) << qr << " " << LinearLayoutName(kl) << kr << " "
                  << LinearLayoutName(vl) << vr << " " << LinearLayoutName(ol) << " multiple "
                  << multiple << ", " << f.projections.size() << " projections";
            }
          }
        }
      }
    }
  }
}

TEST(AttentionFoldTest, PerHeadFactorsBecomeOneProjectionInRankSpace) {
  Generator generator(2);
  const FoldedAttention folded = FoldAttention(generator.Module(LinearLayout::kPerHead, 5),
                                               generator.Module(LinearLayout::kPerHead, 3),
                                               generator.Module(LinearLayout::kPerHead, 4),
                                               generator.Module(LinearLayout::kFull, 6), kHeads);
  EXPECT_EQ(folded.d_qk, 3);
  EXPECT_EQ(folded.d_v, 4);
  ASSERT_EQ(folded.projections.size(), 1u);
  EXPECT_EQ(folded.projections[0].linear.rank, 0);
  EXPECT_EQ(folded.projections[0].linear.out, kHeads * (2 * 3 + 4));
  EXPECT_EQ(folded.output.in, kHeads * 4);
  EXPECT_EQ(folded.output.rank, 6);
}

TEST(AttentionFoldTest, NeighbouringFactorPairsOfOneRankBecomeOneProjection) {
  Generator generator(6);
  const LinearWeights four = generator.Module(LinearLayout::kFull, 4);
  const LinearWeights five = generator.Module(LinearLayout::kFull, 5);
  const LinearWeights o = generator.Module(LinearLayout::kDense, 0);
  const auto groups = [&](const LinearWeights& q, const LinearWeights& k, const LinearWeights& v) {
    std::vector<int> groups;
    for (const auto& p : GroupPairs(FoldAttention(q, k, v, o, kHeads)).projections) {
      groups.push_back(p.linear.groups);
    }
    return groups;
  };
  EXPECT_THAT(groups(four, four, four), testing::ElementsAre(3));
  EXPECT_THAT(groups(four, four, five), testing::ElementsAre(2, 1));
  EXPECT_THAT(groups(four, five, four), testing::ElementsAre(1, 1, 1));
}

TEST(AttentionFoldTest, KeysOfRankSpaceAreReadThroughAnOrthonormalBasis) {
  Generator generator(3);
  // An up-factor whose columns differ by 1e4 in size: folded as it stands, the query would too.
  LinearWeights k = generator.Module(LinearLayout::kPerHead, 3);
  for (size_t i = 0; i < k.b.size(); ++i) k.b[i] *= i % 3 == 0 ? 100.0f : i % 3 == 1 ? 1.0f : 0.01f;
  LinearWeights q = generator.Module(LinearLayout::kDense, 0);
  const FoldedAttention folded = FoldAttention(q, k, generator.Module(LinearLayout::kDense, 0),
                                               generator.Module(LinearLayout::kDense, 0), kHeads);
  // |Q' w| <= |w| for orthonormal Q: the folded query is no larger than the query.
  double folded_norm = 0, query_norm = 0;
  for (int i = 0; i < kHeads * 3 * kWidth; ++i) {
    folded_norm += std::pow(folded.projections[0].linear.weight[i], 2);
  }
  for (const float w : q.weight) query_norm += w * w;
  EXPECT_LE(folded_norm, query_norm * (1 + 1e-6));
}

TEST(AttentionFoldTest, SharedBasisBecomesOneFactorPair) {
  Generator generator(4);
  LinearWeights q = generator.Module(LinearLayout::kQkvShared, 7);
  LinearWeights k = generator.Module(LinearLayout::kQkvShared, 7);
  LinearWeights v = generator.Module(LinearLayout::kQkvShared, 7);
  k.a = v.a = q.a;
  const LinearWeights o = generator.Module(LinearLayout::kDense, 0);
  const FoldedAttention folded = FoldAttention(q, k, v, o, kHeads);
  ASSERT_EQ(folded.projections.size(), 1u);
  EXPECT_EQ(folded.projections[0].linear.rank, 7);
  EXPECT_EQ(folded.projections[0].linear.out, 3 * kWidth);

  HostMatrix x(kTokens, kWidth);
  const std::vector<float> values = generator.Values(kTokens * kWidth, 1);
  x.values.assign(values.begin(), values.end());
  EXPECT_LE(RelativeError(RunFolded(folded, x), RunPlain(q, k, v, o, x)), kTolerance);
}

TEST(AttentionFoldTest, KeyBiasIsDroppedAndValueBiasMovesIntoTheOutput) {
  Generator generator(5);
  const LinearWeights q = generator.Module(LinearLayout::kFull, 4);
  const LinearWeights k = generator.Module(LinearLayout::kFull, 4);
  const LinearWeights v = generator.Module(LinearLayout::kFull, 4);
  const FoldedAttention folded =
      FoldAttention(q, k, v, generator.Module(LinearLayout::kDense, 0), kHeads);
  ASSERT_EQ(folded.projections.size(), 3u);
  EXPECT_EQ(folded.projections[0].linear.bias, q.bias);
  EXPECT_THAT(folded.projections[1].linear.bias, testing::IsEmpty());
  EXPECT_THAT(folded.projections[2].linear.bias, testing::IsEmpty());
}

}  // namespace
}  // namespace flashsvd
