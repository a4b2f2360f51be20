#ifndef FLASHSVD_TESTS_TESTING_TEMP_DIR_H_
#define FLASHSVD_TESTS_TESTING_TEMP_DIR_H_

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

namespace flashsvd::testing {

// Makes the directories in front of `path`, too. Replaces a file instead of truncating it, which
// some file systems answer with a flush to disk. A failure fails the test.
inline void WriteFile(const std::string& path, const std::string& content) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  std::filesystem::remove(path, error);
  std::ofstream out(path, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  if (!out) ADD_FAILURE() << path << " cannot be written";
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) ADD_FAILURE() << path << " cannot be read";
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// A directory of its own, removed with all it holds when the object goes.
class TempDir {
 public:
  TempDir() : path_(::testing::TempDir() + "flashsvd-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) {
      ADD_FAILURE() << path_ << ": " << std::strerror(errno);
    }
  }
  ~TempDir() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  void Write(const std::string& name, const std::string& content) const {
    WriteFile(File(name), content);
  }
  std::string Read(const std::string& name) const { return ReadFile(File(name)); }

 private:
  std::string path_;
};

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_TEMP_DIR_H_
