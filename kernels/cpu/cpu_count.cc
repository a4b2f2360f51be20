#include "kernels/cpu/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

namespace flashsvd {
namespace {

// Affinity masks of machines with more CPUs than CPU_SETSIZE need a larger set.
constexpr int kMaxCpus = 8192;

int AffinityCpus() {
  cpu_set_t* set = CPU_ALLOC(kMaxCpus);
  if (set == nullptr) return 1;
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 1;
  CPU_FREE(set);
  return std::max(count, 1);
}

// "max 100000" or "150000 100000".
std::optional<double> QuotaV2(const std::string& directory) {
  std::ifstream file(directory + "/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) return quota / period;
  return std::nullopt;
}

std::optional<double> QuotaV1(const std::string& directory) {
  std::ifstream quota_file(directory + "/cpu.cfs_quota_us");
  std::ifstream period_file(directory + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return quota / period;
  }
  return std::nullopt;
}

bool HasCpuController(const std::string& controllers) {
  std::stringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

// `path` and every directory above it, "" last: inside a container the path may not exist while
// the mount itself is the container's cgroup.
std::vector<std::string> PathToRoot(std::string path) {
  std::vector<std::string> paths;
  while (!path.empty() && path != "/") {
    paths.push_back(path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  paths.emplace_back();
  return paths;
}

}  // namespace

std::optional<double> CgroupCpuQuota(const std::string& proc_cgroup, const std::string& mount) {
  std::optional<double> smallest;
  std::stringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !HasCpuController(controllers)) continue;
    for (const std::string& path : PathToRoot(line.substr(second + 1))) {
      const std::optional<double> quota =
          v2 ? QuotaV2(mount + path) : QuotaV1(mount + "/cpu" + path);
      if (quota && (!smallest || *quota < *smallest)) smallest = quota;
    }
  }
  return smallest;
}

int AvailableCpus() {
  int cpus = AffinityCpus();
  std::ifstream file("/proc/self/cgroup");
  std::stringstream text;
  text << file.rdbuf();
  if (const auto quota = CgroupCpuQuota(text.str(), "/sys/fs/cgroup")) {
    cpus = std::min<double>(cpus, std::ceil(*quota));
  }
  return std::max(cpus, 1);
}

}  // namespace flashsvd
