#include "runtime/encoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/encoder_layer.h"

namespace flashsvd {
namespace {

// Rows over `rows` x `cols` contiguous elements.
Rows Contiguous(void* data, int64_t rows, int64_t cols) { return {data, rows, cols, cols}; }

// `count` rows from row `first`.
Rows RowSlice(const Rows& r, int64_t first, int64_t count, size_t element_bytes) {
  return {static_cast<std::byte*>(r.data) + first * r.stride * element_bytes, count, r.cols,
          r.stride};
}

Rows ColumnSlice(const Rows& r, int64_t first, int64_t count, size_t element_bytes) {
  return {static_cast<std::byte*>(r.data) + first * element_bytes, r.rows, count, r.stride};
}

// Spans handed out one behind the other.
class SpanAllocator {
 public:
  explicit SpanAllocator(size_t begin) : end_(begin) {}
  ArenaSpan Take(size_t bytes) {
    const ArenaSpan span{end_, bytes};
    end_ = ArenaAlign(span.end());
    return span;
  }
  size_t end() const { return end_; }

 private:
  size_t end_;
};

Scratch ScratchAt(Arena& arena, ArenaSpan span) { return {arena.At(span), span.bytes}; }

}  // namespace

Encoder::Encoder(const ModelConfig& config, const Backend& backend, const EncoderOptions& options)
    : config_(config), backend_(backend), options_(options) {}

Encoder::~Encoder() = default;

BatchShape Encoder::Limit(int max_tokens, int max_sequences, int max_seqlen) const {
  return ShapeLimit(max_tokens, max_sequences, max_seqlen, ChunkTarget(max_tokens));
}

// The baseline attends over the whole batch at once.
int Encoder::ChunkTarget(int num_tokens) const {
  return options_.streaming ? options_.chunk_tokens : num_tokens;
}

ActivationPlan Encoder::Plan(const BatchShape& shape) const {
  const size_t element = DTypeBytes(backend_.dtype());
  const int64_t heads = config_.heads;
  const auto rows = [](int64_t n, int64_t cols) { return Contiguous(nullptr, n, cols); };

  int64_t qkv_cols = 0, context_cols = 0;
  size_t attention_scratch = 0, ffn_scratch = 0;
  for (const Layer& layer : layers_) {
    const int64_t layer_qkv = heads * (2 * layer.d_qk + layer.d_v);
    const int64_t layer_context = heads * layer.d_v;
    qkv_cols = std::max(qkv_cols, layer_qkv);
    context_cols = std::max(context_cols, layer_context);

    const int64_t c = shape.chunk_tokens;
    for (const Layer::Projection& p : layer.projections) {
      attention_scratch = std::max(
          attention_scratch, backend_.ScratchBytes(ProjectArgs{.linear = p.linear.get(),
                                                               .x = rows(c, config_.hidden),
                                                               .y = rows(c, p.linear->out())}));
    }
    attention_scratch =
        std::max({attention_scratch,
                  backend_.ScratchBytes(AttentionArgs{.qkv = rows(c, layer_qkv),
                                                      .context = rows(c, layer_context),
                                                      .num_sequences = shape.chunk_sequences,
                                                      .max_seqlen = shape.max_seqlen,
                                                      .num_heads = config_.heads,
                                                      .d_qk = layer.d_qk,
                                                      .d_v = layer.d_v}),
                  backend_.ScratchBytes(ProjectAddNormArgs{.linear = layer.output.get(),
                                                           .y = rows(c, layer_context),
                                                           .x = rows(c, config_.hidden)})});

    const Rows x = rows(shape.tokens, config_.hidden);
    const Rows hidden = rows(shape.tokens, config_.ffn);
    ffn_scratch =
        options_.streaming
            ? std::max(ffn_scratch, backend_.ScratchBytes(FeedForwardArgs{
                                        .up = layer.up.get(), .down = layer.down.get(), .x = x}))
            : std::max({ffn_scratch,
                        backend_.ScratchBytes(
                            ProjectArgs{.linear = layer.up.get(), .x = x, .y = hidden}),
                        backend_.ScratchBytes(
                            ProjectAddNormArgs{.linear = layer.down.get(), .y = hidden, .x = x})});
  }

  ActivationPlan plan;
  SpanAllocator resident(0);
  plan.x = resident.Take(shape.tokens * config_.hidden * element);
  SpanAllocator attention(resident.end());
  plan.qkv = attention.Take(shape.chunk_tokens * qkv_cols * element);
  plan.context = attention.Take(shape.chunk_tokens * context_cols * element);
  plan.attention_scratch = attention.Take(attention_scratch);
  SpanAllocator ffn(resident.end());
  if (!options_.streaming) plan.hidden = ffn.Take(shape.tokens * config_.ffn * element);
  plan.ffn_scratch = ffn.Take(ffn_scratch);
  plan.total_bytes = std::max(plan.attention_scratch.end(), plan.ffn_scratch.end());
  return plan;
}

absl::StatusOr<std::unique_ptr<ExecutionSlot>> Encoder::MakeSlot(const BatchShape& limit) const {
  FSVD_ASSIGN_OR_RETURN(Buffer memory, backend_.Allocate(Plan(limit).total_bytes));
  auto slot = std::unique_ptr<ExecutionSlot>(new ExecutionSlot(Arena(std::move(memory)), limit));
  slot->output_.reserve(static_cast<size_t>(limit.sequences) * config_.hidden);
  return slot;
}

double Encoder::Flops(const PackedBatch& batch) const {
  double pairs = 0;  // (query, key) pairs of all sequences
  for (int s = 0; s < batch.num_sequences(); ++s) {
    const double length = batch.cu_seqlens[s + 1] - batch.cu_seqlens[s];
    pairs += length * length;
  }
  const auto parameters = [](const Linear& linear) {
    const double in = linear.in(), out = linear.out();
    return linear.rank() > 0 ? linear.rank() * (in + out) : in * out;
  };
  double flops = 0;
  for (const Layer& layer : layers_) {
    double linear = parameters(*layer.output) + parameters(*layer.up) + parameters(*layer.down);
    for (const Layer::Projection& p : layer.projections) linear += parameters(*p.linear);
    flops += 2 * linear * batch.num_tokens() + 2 * pairs * config_.heads * (layer.d_qk + layer.d_v);
  }
  return flops;
}

absl::Status Encoder::Validate(const PackedBatch& batch) const {
  for (int s = 0; s < batch.num_sequences(); ++s) {
    const int begin = batch.cu_seqlens[s];
    const int length = batch.cu_seqlens[s + 1] - begin;
    if (length > config_.max_positions) {
      return absl::InvalidArgumentError(
          fmt::format("sequence {} has {} tokens, the model has {} positions", s, length,
                      config_.max_positions));
    }
    for (int t = begin; t < begin + length; ++t) {
      if (batch.ids[t] < 0 || batch.ids[t] >= config_.vocab) {
        return absl::InvalidArgumentError(
            fmt::format("sequence {}: token {} has id {}, the vocabulary has {} entries", s,
                        t - begin, batch.ids[t], config_.vocab));
      }
      if (batch.type_ids[t] < 0 || batch.type_ids[t] >= config_.type_vocab) {
        return absl::InvalidArgumentError(
            fmt::format("sequence {}: token {} has type {}, the model has {} types", s, t - begin,
                        batch.type_ids[t], config_.type_vocab));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Encoder::Forward(const PackedBatch& batch, ExecutionSlot& slot) const {
  FSVD_RETURN_IF_ERROR(Validate(batch));
  const BatchShape& limit = slot.limit_;
  FSVD_CHECK(batch.num_tokens() > 0 && batch.num_tokens() <= limit.tokens &&
                 batch.num_sequences() <= limit.sequences && batch.max_seqlen <= limit.max_seqlen,
             "batch of %d tokens, %d sequences, longest %d in a slot for %d, %d, %d",
             batch.num_tokens(), batch.num_sequences(), batch.max_seqlen, limit.tokens,
             limit.sequences, limit.max_seqlen);

  const ActivationPlan plan = Plan(ShapeOf(batch, ChunkTarget(batch.num_tokens())));
  const RaggedBatch ragged{.ids = batch.ids.data(),
                           .type_ids = batch.type_ids.data(),
                           .cu_seqlens = batch.cu_seqlens.data(),
                           .host_cu_seqlens = batch.cu_seqlens.data(),
                           .num_tokens = batch.num_tokens(),
                           .num_sequences = batch.num_sequences(),
                           .max_seqlen = batch.max_seqlen};
  Arena& arena = slot.arena_;
  arena.ResetHighWater();
  const Rows x = Contiguous(arena.At(plan.x), ragged.num_tokens, config_.hidden);
  slot.output_.resize(static_cast<size_t>(ragged.num_sequences) * config_.hidden);

  FSVD_RETURN_IF_ERROR(backend_.Embed({.batch = ragged,
                                       .word = word_.data(),
                                       .position = position_.data(),
                                       .type = type_.data(),
                                       .norm = embedding_norm_->params(),
                                       .x = x}));
  for (const Layer& layer : layers_) {
    FSVD_RETURN_IF_ERROR(Attention(layer, ragged, x, plan, arena));
    FSVD_RETURN_IF_ERROR(FeedForward(layer, x, plan, arena));
  }
  FSVD_RETURN_IF_ERROR(backend_.Pool(
      {.batch = ragged, .x = x, .pooling = config_.pooling, .out = slot.output_.data()}));
  FSVD_RETURN_IF_ERROR(backend_.Synchronize());
  return arena.high_water();
}

// Chunk by chunk: project, attend, project back into X. A chunk is whole sequences, so no chunk
// reads a row of X that another has replaced.
absl::Status Encoder::Attention(const Layer& layer, const RaggedBatch& batch, const Rows& x,
                                const ActivationPlan& plan, Arena& arena) const {
  const size_t element = DTypeBytes(backend_.dtype());
  const std::span<const int32_t> cu_seqlens(batch.host_cu_seqlens, batch.num_sequences + 1);
  const Scratch scratch = ScratchAt(arena, plan.attention_scratch);
  const int chunk_target = ChunkTarget(batch.num_tokens);

  for (int begin = 0, end; begin < batch.num_sequences; begin = end) {
    end = ChunkEnd(cu_seqlens, begin, chunk_target);
    const int first = cu_seqlens[begin];
    const int count = cu_seqlens[end] - first;
    if (count == 0) continue;
    const Rows x_chunk = RowSlice(x, first, count, element);
    const Rows qkv =
        Contiguous(arena.At(plan.qkv), count, config_.heads * (2 * layer.d_qk + layer.d_v));
    const Rows context = Contiguous(arena.At(plan.context), count, config_.heads * layer.d_v);

    for (const Layer::Projection& p : layer.projections) {
      FSVD_RETURN_IF_ERROR(
          backend_.Project({.linear = p.linear.get(),
                            .x = x_chunk,
                            .y = ColumnSlice(qkv, p.column, p.linear->out(), element)},
                           scratch));
    }
    FSVD_RETURN_IF_ERROR(
        backend_.Attention({.qkv = qkv,
                            .context = context,
                            .cu_seqlens = batch.cu_seqlens + begin,
                            .host_cu_seqlens = batch.host_cu_seqlens + begin,
                            .num_sequences = end - begin,
                            .max_seqlen = batch.max_seqlen,
                            .num_heads = config_.heads,
                            .d_qk = layer.d_qk,
                            .d_v = layer.d_v,
                            .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim()))},
                           scratch));
    FSVD_RETURN_IF_ERROR(backend_.ProjectAddNorm({.linear = layer.output.get(),
                                                  .y = context,
                                                  .x = x_chunk,
                                                  .norm = layer.attention_norm.params()},
                                                 scratch));
  }
  return absl::OkStatus();
}

absl::Status Encoder::FeedForward(const Layer& layer, const Rows& x, const ActivationPlan& plan,
                                  Arena& arena) const {
  const Scratch scratch = ScratchAt(arena, plan.ffn_scratch);
  if (options_.streaming) {
    return backend_.FeedForward({.up = layer.up.get(),
                                 .down = layer.down.get(),
                                 .activation = config_.activation,
                                 .x = x,
                                 .norm = layer.ffn_norm.params()},
                                scratch);
  }
  const Rows hidden = Contiguous(arena.At(plan.hidden), x.rows, config_.ffn);
  FSVD_RETURN_IF_ERROR(backend_.Project(
      {.linear = layer.up.get(), .x = x, .y = hidden, .activation = config_.activation}, scratch));
  return backend_.ProjectAddNorm(
      {.linear = layer.down.get(), .y = hidden, .x = x, .norm = layer.ffn_norm.params()}, scratch);
}

}  // namespace flashsvd
