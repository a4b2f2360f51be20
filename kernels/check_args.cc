#include "kernels/check_args.h"

#include <string>

#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

void CheckRows(const Rows& rows, const char* name) {
  FSVD_CHECK(rows.rows >= 0 && rows.cols > 0 && rows.stride >= rows.cols,
             "%s is %lld x %lld with stride %lld", name, static_cast<long long>(rows.rows),
             static_cast<long long>(rows.cols), static_cast<long long>(rows.stride));
}

void CheckLinear(const Linear* linear, int64_t in, int64_t out, const char* name) {
  FSVD_CHECK(linear != nullptr && linear->in() == in && linear->out() == out,
             "%s maps %d -> %d where the rows need %lld -> %lld", name,
             linear == nullptr ? 0 : linear->in(), linear == nullptr ? 0 : linear->out(),
             static_cast<long long>(in), static_cast<long long>(out));
}

void CheckOneGroup(const Linear* linear, const char* name) {
  FSVD_CHECK(linear->groups() == 1, "%s has %d groups of factor pairs, only Project takes those",
             name, linear->groups());
}

void CheckNorm(const LayerNormParams& norm) {
  FSVD_CHECK(norm.gamma != nullptr && norm.beta != nullptr, "LayerNorm lacks gamma or beta");
}

void CheckBatch(const RaggedBatch& batch, int64_t rows) {
  FSVD_CHECK(batch.num_tokens == rows && batch.num_sequences >= 0,
             "a batch of %d tokens, %d sequences over %lld rows", batch.num_tokens,
             batch.num_sequences, static_cast<long long>(rows));
  const int last = batch.num_sequences > 0 ? batch.host_cu_seqlens[batch.num_sequences] : 0;
  FSVD_CHECK(last <= rows, "the sequences end at token %d of %lld", last,
             static_cast<long long>(rows));
}

}  // namespace

void CheckArgs(const EmbedArgs& args) {
  CheckRows(args.x, "x");
  CheckNorm(args.norm);
  CheckBatch(args.batch, args.x.rows);
}

void CheckArgs(const ProjectArgs& args) {
  CheckRows(args.x, "x");
  CheckRows(args.y, "y");
  CheckLinear(args.linear, args.x.cols, args.y.cols, "the projection");
  FSVD_CHECK(args.x.rows == args.y.rows, "%lld rows in, %lld out",
             static_cast<long long>(args.x.rows), static_cast<long long>(args.y.rows));
}

void CheckArgs(const AttentionArgs& args) {
  CheckRows(args.qkv, "qkv");
  CheckRows(args.context, "context");
  FSVD_CHECK(args.num_heads > 0 && args.d_qk > 0 && args.d_qk <= 256 && args.d_v > 0 &&
                 args.d_v <= 256 && args.num_sequences >= 0 && args.max_seqlen >= 0 &&
                 args.scale > 0,
             "%d heads, d_qk %d, d_v %d, %d sequences, max_seqlen %d, scale %g", args.num_heads,
             args.d_qk, args.d_v, args.num_sequences, args.max_seqlen, double{args.scale});
  const int64_t heads = args.num_heads;
  FSVD_CHECK(args.qkv.cols == heads * (2 * args.d_qk + args.d_v) &&
                 args.context.cols == heads * args.d_v && args.qkv.rows == args.context.rows,
             "qkv %lld x %lld, context %lld x %lld, %d heads, d_qk %d, d_v %d",
             static_cast<long long>(args.qkv.rows), static_cast<long long>(args.qkv.cols),
             static_cast<long long>(args.context.rows), static_cast<long long>(args.context.cols),
             args.num_heads, args.d_qk, args.d_v);
  const int32_t* cu = args.host_cu_seqlens;
  const int tokens = args.num_sequences > 0 ? cu[args.num_sequences] - cu[0] : 0;
  FSVD_CHECK(tokens <= args.qkv.rows, "sequences of %d tokens over %lld rows", tokens,
             static_cast<long long>(args.qkv.rows));
}

void CheckArgs(const ProjectAddNormArgs& args) {
  CheckRows(args.y, "y");
  CheckRows(args.x, "x");
  CheckNorm(args.norm);
  CheckLinear(args.linear, args.y.cols, args.x.cols, "the projection");
  CheckOneGroup(args.linear, "the projection");
  FSVD_CHECK(args.x.rows == args.y.rows, "%lld rows in, %lld out",
             static_cast<long long>(args.y.rows), static_cast<long long>(args.x.rows));
}

void CheckArgs(const FeedForwardArgs& args) {
  CheckRows(args.x, "x");
  CheckNorm(args.norm);
  FSVD_CHECK(args.up != nullptr && args.down != nullptr, "a feed-forward without weights");
  CheckLinear(args.up, args.x.cols, args.down->in(), "up");
  CheckLinear(args.down, args.up->out(), args.x.cols, "down");
  CheckOneGroup(args.up, "up");
  CheckOneGroup(args.down, "down");
}

void CheckArgs(const PoolArgs& args) {
  CheckRows(args.x, "x");
  CheckBatch(args.batch, args.x.rows);
}

absl::Status ValidateLinearSource(const LinearSource& source) {
  const bool dense = source.rank == 0;
  if (source.in <= 0 || source.out <= 0 || source.rank < 0 ||
      (dense ? source.weight == nullptr : source.a == nullptr || source.b == nullptr)) {
    return absl::InvalidArgumentError(
        "a linear map of in " + std::to_string(source.in) + ", out " + std::to_string(source.out) +
        ", rank " + std::to_string(source.rank) +
        (dense ? " needs a weight" : " needs its two factors") + " and positive sizes");
  }
  if (source.groups < 1 || source.out % source.groups != 0 || (dense && source.groups > 1)) {
    return absl::InvalidArgumentError("a linear map of out " + std::to_string(source.out) +
                                      ", rank " + std::to_string(source.rank) + " cannot have " +
                                      std::to_string(source.groups) + " groups of factor pairs");
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
