#include "kernels/backend.h"

#include "kernels/host_buffer.h"
#include "kernels/status_macros.h"

// What a backend does whose device is the host: one memory, no queue, nothing to record.

namespace flashsvd {

absl::StatusOr<Staging> Backend::AllocateStaging(size_t bytes) const {
  FSVD_ASSIGN_OR_RETURN(Buffer both, Allocate(bytes));
  return Staging(std::move(both), Buffer());
}

absl::StatusOr<Staging> Backend::AllocateOutput(size_t bytes) const {
  FSVD_ASSIGN_OR_RETURN(Buffer both, Allocate(bytes));
  return Staging(std::move(both), Buffer());
}

absl::StatusOr<std::unique_ptr<Stream>> Backend::MakeStream() const {
  return std::make_unique<Stream>();
}

absl::Status Backend::CopyToDevice(const Staging&, size_t, size_t, Stream&) const {
  return absl::OkStatus();
}

absl::Status Backend::CopyToHost(const Staging&, size_t, size_t, Stream&) const {
  return absl::OkStatus();
}

absl::Status Backend::AttentionAddNorm(const AttentionArgs& attention,
                                       const ProjectAddNormArgs& output, Scratch scratch,
                                       Stream& stream) const {
  FSVD_RETURN_IF_ERROR(Attention(attention, scratch, stream));
  return ProjectAddNorm(output, scratch, stream);
}

absl::StatusOr<std::unique_ptr<Graph>> Backend::Record(Stream&,
                                                       const std::function<absl::Status()>&) const {
  return absl::UnimplementedError("this device has no graphs");
}

absl::Status Backend::Replay(const Graph&, Stream&) const {
  return absl::UnimplementedError("this device has no graphs");
}

}  // namespace flashsvd
