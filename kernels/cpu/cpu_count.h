#ifndef FLASHSVD_KERNELS_CPU_CPU_COUNT_H_
#define FLASHSVD_KERNELS_CPU_CPU_COUNT_H_

#include <optional>
#include <string>

namespace flashsvd {

// CPUs that this process may use: those of its affinity mask, but no more than its cgroup's CPU
// quota rounded up. At least 1.
int AvailableCpus();

// The smallest CPU quota, in CPUs, on the path from the process's cgroup to the root, if any is
// set: version 2 (cpu.max) and 1 (cpu.cfs_quota_us). `proc_cgroup` is the text of
// /proc/self/cgroup, `mount` where the hierarchy is mounted (/sys/fs/cgroup).
std::optional<double> CgroupCpuQuota(const std::string& proc_cgroup, const std::string& mount);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_CPU_COUNT_H_
