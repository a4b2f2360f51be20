#include "runtime/batch_runner.h"

#include <utility>

#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

class EncoderRunner : public BatchRunner {
 public:
  EncoderRunner(const Encoder& encoder, std::unique_ptr<ExecutionSlot> slot)
      : encoder_(encoder), slot_(std::move(slot)) {}

  absl::StatusOr<size_t> Run(const PackedBatch& batch) override {
    return encoder_.Forward(batch, *slot_);
  }
  std::span<const float> output() const override { return slot_->output(); }

 private:
  const Encoder& encoder_;
  const std::unique_ptr<ExecutionSlot> slot_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BatchRunner>> MakeEncoderRunner(const Encoder& encoder,
                                                               const BatchShape& limit) {
  FSVD_ASSIGN_OR_RETURN(std::unique_ptr<ExecutionSlot> slot, encoder.MakeSlot(limit));
  return std::make_unique<EncoderRunner>(encoder, std::move(slot));
}

}  // namespace flashsvd
