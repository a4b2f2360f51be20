#ifndef FLASHSVD_KERNELS_CHECK_ARGS_H_
#define FLASHSVD_KERNELS_CHECK_ARGS_H_

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace flashsvd {

// What every backend demands of its arguments. A violation of the first group is a bug in the
// caller and aborts with the values.
void CheckArgs(const EmbedArgs& args);
void CheckArgs(const ProjectArgs& args);
void CheckArgs(const AttentionArgs& args);
void CheckArgs(const ProjectAddNormArgs& args);
void CheckArgs(const FeedForwardArgs& args);
void CheckArgs(const PoolArgs& args);

// Weights come from files, so a wrong shape here is InvalidArgument.
absl::Status ValidateLinearSource(const LinearSource& source);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CHECK_ARGS_H_
