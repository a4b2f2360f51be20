#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "server/state_collector.h"

namespace flashsvd {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

void AddSingle(std::vector<MetricFamily>* out, const char* name, const char* help, double value,
               MetricType type = MetricType::Gauge) {
  out->push_back(MakeFamily(name, help, type));
  AddSample(&out->back(), {}, value);
}

// The first number of a file; nullopt without a file, or if it says "max".
std::optional<double> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// Fields of /proc/self/stat from the third on: the second, a name in parentheses, may hold spaces.
std::vector<std::string> StatFields() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t end_of_name = line.rfind(')');
  std::vector<std::string> fields;
  if (end_of_name == std::string::npos) return fields;
  std::istringstream rest(line.substr(end_of_name + 1));
  for (std::string field; rest >> field;) fields.push_back(field);
  return fields;
}

double BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("btime ", 0) == 0) return std::strtod(line.c_str() + 6, nullptr);
  }
  return 0;
}

double CountOpenFiles() {
  std::error_code error;
  double count = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; it != end && !error;
       it.increment(error)) {
    ++count;
  }
  return std::max(count - 1, 0.0);  // one of them is the listing's own
}

void CollectProc(std::vector<MetricFamily>* out) {
  const std::vector<std::string> stat = StatFields();
  const auto field = [&](size_t number) {  // as numbered in proc(5)
    return number - 3 < stat.size() ? std::strtod(stat[number - 3].c_str(), nullptr) : 0.0;
  };
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
  AddSingle(out, "process_cpu_seconds_total", "User and system CPU time spent.",
            (field(14) + field(15)) / ticks, MetricType::Counter);
  AddSingle(out, "process_resident_memory_bytes", "Resident memory.", field(24) * page);
  AddSingle(out, "process_virtual_memory_bytes", "Virtual memory.", field(23));
  AddSingle(out, "process_threads", "Threads of the process.", field(20));
  AddSingle(out, "process_start_time_seconds", "Start of the process, in Unix time.",
            BootTime() + field(22) / ticks);
  AddSingle(out, "process_open_fds", "Open file descriptors.", CountOpenFiles());
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  AddSingle(out, "process_max_fds", "Most file descriptors that may be open.",
            static_cast<double>(limit.rlim_cur));
}

void CollectHeap(std::vector<MetricFamily>* out) {
  const struct mallinfo2 heap = mallinfo2();
  MetricFamily family = MakeFamily(
      "flashsvd_host_heap_bytes",
      "The C library's heap: allocated by the program, retained by the allocator although free, "
      "and resident, both together.");
  const auto allocated = static_cast<double>(heap.uordblks + heap.hblkhd);
  const auto retained = static_cast<double>(heap.fordblks);
  AddSample(&family, {{"state", "allocated"}}, allocated);
  AddSample(&family, {{"state", "retained"}}, retained);
  AddSample(&family, {{"state", "resident"}}, allocated + retained);
  out->push_back(std::move(family));
}

// The process's own control group, version 2 before version 1. Inside a container the group is
// mounted at the root; without a namespace it lies below, where /proc/self/cgroup says.
struct CgroupFiles {
  std::string usage;
  std::string limit;
};

std::vector<CgroupFiles> CgroupCandidates() {
  std::vector<CgroupFiles> candidates;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      const std::string dir = "/sys/fs/cgroup" + path;
      candidates.push_back({dir + "/memory.current", dir + "/memory.max"});
    } else if (controllers.find("memory") != std::string::npos) {
      const std::string dir = "/sys/fs/cgroup/memory" + path;
      candidates.push_back({dir + "/memory.usage_in_bytes", dir + "/memory.limit_in_bytes"});
    }
  }
  candidates.push_back({"/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.max"});
  candidates.push_back({"/sys/fs/cgroup/memory/memory.usage_in_bytes",
                        "/sys/fs/cgroup/memory/memory.limit_in_bytes"});
  return candidates;
}

void CollectCgroup(std::vector<MetricFamily>* out) {
  // What there is without a limit, so that the ratio to it always means something.
  double limit =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  double usage = 0;
  for (const CgroupFiles& files : CgroupCandidates()) {
    const std::optional<double> bytes = ReadNumber(files.usage);
    if (!bytes) continue;
    usage = *bytes;
    limit = std::min(limit, ReadNumber(files.limit).value_or(limit));
    break;
  }
  AddSingle(out, "flashsvd_cgroup_memory_bytes",
            "Memory of the control group (the container); 0 if there is none.", usage);
  AddSingle(out, "flashsvd_cgroup_memory_limit_bytes",
            "Its limit, or the machine's memory where that is less.", limit);
}

}  // namespace

void CollectProcess(std::vector<MetricFamily>* out) {
  CollectProc(out);
  CollectHeap(out);
  CollectCgroup(out);
}

}  // namespace flashsvd
