#ifndef FLASHSVD_TESTS_TESTING_PAINTED_BACKEND_H_
#define FLASHSVD_TESTS_TESTING_PAINTED_BACKEND_H_

#include <cstring>
#include <memory>
#include <utility>

#include "kernels/backend.h"

namespace flashsvd::testing {

// Forwards to a host backend, but paints what Allocate returns and puts a painted guard behind it,
// so that a test can see which bytes of an arena were really written. One allocation at a time.
class PaintedBackend : public Backend {
 public:
  static constexpr size_t kGuardBytes = 4096;
  static constexpr std::byte kPaint{0xA5};

  explicit PaintedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // Of the last allocation: one past the highest byte written within it.
  size_t TouchedBytes() const {
    size_t end = bytes_;
    while (end > 0 && memory_[end - 1] == kPaint) --end;
    return end;
  }
  bool GuardIntact() const {
    for (size_t i = bytes_; i < bytes_ + kGuardBytes; ++i) {
      if (memory_[i] != kPaint) return false;
    }
    return true;
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes) const override {
    auto whole = inner_->Allocate(bytes + kGuardBytes);
    if (!whole.ok()) return whole;
    std::memset(whole->data(), static_cast<int>(kPaint), whole->bytes());
    memory_ = static_cast<const std::byte*>(whole->data());
    bytes_ = bytes;
    auto owner = std::make_shared<Buffer>(*std::move(whole));
    return Buffer(owner->data(), bytes, [owner](void*) mutable { owner.reset(); });
  }

  absl::StatusOr<Staging> AllocateStaging(size_t bytes) const override {
    return inner_->AllocateStaging(bytes);
  }
  absl::StatusOr<Staging> AllocateOutput(size_t bytes) const override {
    return inner_->AllocateOutput(bytes);
  }

  std::string_view name() const override { return inner_->name(); }
  DType dtype() const override { return inner_->dtype(); }
  int num_threads() const override { return inner_->num_threads(); }
  absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const override {
    return inner_->PackLinear(source);
  }
  absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const override {
    return inner_->Upload(values, count, as);
  }
  size_t ScratchBytes(const ProjectArgs& args) const override { return inner_->ScratchBytes(args); }
  size_t ScratchBytes(const AttentionArgs& args) const override {
    return inner_->ScratchBytes(args);
  }
  size_t ScratchBytes(const ProjectAddNormArgs& args) const override {
    return inner_->ScratchBytes(args);
  }
  size_t ScratchBytes(const FeedForwardArgs& args) const override {
    return inner_->ScratchBytes(args);
  }
  absl::Status Embed(const EmbedArgs& args, Stream& stream) const override {
    return inner_->Embed(args, stream);
  }
  absl::Status Project(const ProjectArgs& args, Scratch scratch, Stream& stream) const override {
    return inner_->Project(args, scratch, stream);
  }
  absl::Status Attention(const AttentionArgs& args, Scratch scratch,
                         Stream& stream) const override {
    return inner_->Attention(args, scratch, stream);
  }
  absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                              Stream& stream) const override {
    return inner_->ProjectAddNorm(args, scratch, stream);
  }
  absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch,
                           Stream& stream) const override {
    return inner_->FeedForward(args, scratch, stream);
  }
  absl::Status Pool(const PoolArgs& args, Stream& stream) const override {
    return inner_->Pool(args, stream);
  }
  absl::Status Synchronize(Stream& stream) const override { return inner_->Synchronize(stream); }

 private:
  std::unique_ptr<Backend> inner_;
  mutable const std::byte* memory_ = nullptr;
  mutable size_t bytes_ = 0;
};

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_PAINTED_BACKEND_H_
