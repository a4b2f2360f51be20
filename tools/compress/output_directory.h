#ifndef FLASHSVD_TOOLS_COMPRESS_OUTPUT_DIRECTORY_H_
#define FLASHSVD_TOOLS_COMPRESS_OUTPUT_DIRECTORY_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flashsvd {

// A model directory under construction: a hidden sibling of --out that Commit renames to it, so
// that
// --out is always a complete model. The destructor removes what was not committed.
class OutputDirectory {
 public:
  // Checks --out against --model and creates the sibling. Errors name the flag: --out equals
  // --model, lies inside or contains it; exists without `force`; exists and is not a model
  // directory (a --force with the wrong path must not delete somebody's files); cannot be created.
  static absl::StatusOr<std::unique_ptr<OutputDirectory>> Create(const std::string& model_dir,
                                                                 const std::string& out_dir,
                                                                 bool force);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  // Where to write until Commit.
  const std::string& path() const { return path_; }
  // The final, absolute path.
  const std::string& target() const { return target_; }

  // Copies every file of `model_dir` but the weights, in any format, and hidden files. A
  // .safetensors file in a subdirectory belongs to another module (as in 2_Dense) and is copied.
  absl::Status CopyModelFiles(const std::string& model_dir);

  // Renames path() to target(), replacing what is there. After an error what was there still is.
  // REQUIRES: called once.
  absl::Status Commit();

 private:
  OutputDirectory(std::string path, std::string target)
      : path_(std::move(path)), target_(std::move(target)) {}

  std::string path_;
  std::string target_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_OUTPUT_DIRECTORY_H_
