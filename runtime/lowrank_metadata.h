#ifndef FLASHSVD_RUNTIME_LOWRANK_METADATA_H_
#define FLASHSVD_RUNTIME_LOWRANK_METADATA_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/safetensors.h"
#include "runtime/weights.h"

namespace flashsvd {

// Names of a file's tensors as the encoder knows them: without the model prefix.
class TensorNames {
 public:
  // Takes what stands before "embeddings.word_embeddings.weight" for the prefix, "" where no
  // tensor has that name. InvalidArgument: two tensors do.
  static absl::StatusOr<TensorNames> Detect(const SafetensorsFile& file);

  TensorNames(const SafetensorsFile& file, std::string prefix)
      : file_(file), prefix_(std::move(prefix)) {}

  // The name in the file: with the prefix if there is such a tensor, else as given, which is how
  // heads outside the encoder are stored.
  std::string InFile(const std::string& name) const;
  // Null if there is none.
  const TensorEntry* Find(const std::string& name) const { return file_.Find(InFile(name)); }
  std::string Strip(const std::string& name_in_file) const;

  const SafetensorsFile& file() const { return file_; }
  const std::string& prefix() const { return prefix_; }

 private:
  const SafetensorsFile& file_;
  std::string prefix_;
};

// The low-rank modules by name without prefix: as lowrank.modules declares them or, where the file
// has no lowrank metadata, as the dimensions of the tensors imply. Checks that every module has
// its tensors, in fitting shapes, and that no low-rank tensor is left over.
absl::StatusOr<std::map<std::string, LowRankModule>> ReadLowRankModules(const TensorNames& names);

// The tensor that holds A: "<module>.lowrank.A", or the parent's "shared.A".
std::string LowRankAName(const std::string& module, LinearLayout layout);
std::string LowRankBName(const std::string& module);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_LOWRANK_METADATA_H_
