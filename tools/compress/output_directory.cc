#include "tools/compress/output_directory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightsIndexSuffix = ".index.json";

// PyTorch, TensorFlow, Flax, Rust, Core ML, ONNX, OpenVINO, GGUF and safetensors weights.
constexpr std::array<std::string_view, 17> kWeightExtensions = {
    ".safetensors", ".bin", ".pt",   ".pth",     ".ckpt",      ".h5",
    ".msgpack",     ".ot",  ".npz",  ".mlmodel", ".mlpackage", ".onnx",
    ".onnx_data",   ".xml", ".gguf", ".tflite",  ".pb"};

bool IsWeights(const fs::path& relative) {
  const std::string name = relative.filename().string();
  if (name.ends_with(kWeightsIndexSuffix)) return true;
  const std::string extension = relative.extension().string();
  if (extension == ".safetensors" && relative.has_parent_path()) return false;
  return std::find(kWeightExtensions.begin(), kWeightExtensions.end(), extension) !=
         kWeightExtensions.end();
}

// Absolute, symbolic links resolved, no trailing slash; need not exist.
fs::path Canonical(const std::string& dir) {
  const fs::path path = fs::weakly_canonical(fs::absolute(dir));
  return path.has_filename() ? path : path.parent_path();
}

// Whether `inner` is `outer` or lies below it. REQUIRES: both canonical.
bool Contains(const fs::path& outer, const fs::path& inner) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

// A hidden sibling of `target` that did not exist: ".NAME.KIND-PID" or, if a run that was killed
// left that behind, with a number.
std::string SiblingName(const fs::path& target, std::string_view kind, int attempt) {
  const std::string name =
      fmt::format(".{}.{}-{}.{}", target.filename().string(), kind, getpid(), attempt);
  return (target.parent_path() / name).string();
}

constexpr int kNameAttempts = 1000;

absl::Status CheckTarget(const fs::path& model, const fs::path& target, bool force) {
  if (model == target) {
    return absl::InvalidArgumentError(
        fmt::format("--out: {} is the --model directory itself", target.string()));
  }
  if (Contains(model, target) || Contains(target, model)) {
    return absl::InvalidArgumentError(fmt::format("--out: {} and --model {} lie inside one another",
                                                  target.string(), model.string()));
  }
  if (!fs::exists(target)) return absl::OkStatus();
  if (!force) {
    return absl::AlreadyExistsError(
        fmt::format("--out: {} exists; --force replaces it", target.string()));
  }
  if (!fs::is_directory(target) || (!fs::is_empty(target) && !fs::exists(target / "config.json"))) {
    return absl::InvalidArgumentError(fmt::format(
        "--out: {} is not a model directory (no config.json); --force does not replace it",
        target.string()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputDirectory>> OutputDirectory::Create(
    const std::string& model_dir, const std::string& out_dir, bool force) try {
  const fs::path target = Canonical(out_dir);
  FSVD_RETURN_IF_ERROR(CheckTarget(Canonical(model_dir), target, force));
  fs::create_directories(target.parent_path());
  for (int attempt = 0; attempt < kNameAttempts; ++attempt) {
    const std::string path = SiblingName(target, "partial", attempt);
    if (fs::create_directory(path)) {
      return std::unique_ptr<OutputDirectory>(new OutputDirectory(path, target.string()));
    }
  }
  return absl::UnavailableError(fmt::format("--out: {} is full of partial directories of {}",
                                            target.parent_path().string(),
                                            target.filename().string()));
} catch (const fs::filesystem_error& e) {
  return absl::InvalidArgumentError(fmt::format("--out: {}: {}", out_dir, e.code().message()));
}

OutputDirectory::~OutputDirectory() {
  if (path_.empty()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

absl::Status OutputDirectory::CopyModelFiles(const std::string& model_dir) {
  const fs::path model(model_dir);
  fs::path current = model;
  try {
    for (auto it = fs::recursive_directory_iterator(model); it != fs::end(it); ++it) {
      current = it->path();
      if (current.filename().string().starts_with('.')) {
        it.disable_recursion_pending();
        continue;
      }
      const fs::path relative = current.lexically_relative(model);
      // Hugging Face caches hold links to files: what they point to is copied.
      if (!it->is_regular_file() || IsWeights(relative)) continue;
      const fs::path to = fs::path(path_) / relative;
      fs::create_directories(to.parent_path());
      fs::copy_file(current, to);
    }
  } catch (const fs::filesystem_error& e) {
    return absl::UnavailableError(
        fmt::format("cannot copy {}: {}", current.string(), e.code().message()));
  }
  return absl::OkStatus();
}

absl::Status OutputDirectory::Commit() {
  std::string replaced;
  std::error_code error;
  if (fs::exists(target_, error)) {
    for (int attempt = 0; attempt < kNameAttempts && replaced.empty(); ++attempt) {
      const std::string name = SiblingName(target_, "replaced", attempt);
      if (!fs::exists(name, error)) replaced = name;
    }
    fs::rename(target_, replaced, error);
    if (error) {
      return absl::UnavailableError(
          fmt::format("--out: cannot replace {}: {}", target_, error.message()));
    }
  }
  fs::rename(path_, target_, error);
  if (error) {
    std::error_code ignored;
    if (!replaced.empty()) fs::rename(replaced, target_, ignored);
    return absl::UnavailableError(
        fmt::format("--out: cannot rename {} to {}: {}", path_, target_, error.message()));
  }
  path_.clear();
  if (!replaced.empty()) fs::remove_all(replaced, error);
  return absl::OkStatus();
}

}  // namespace flashsvd
