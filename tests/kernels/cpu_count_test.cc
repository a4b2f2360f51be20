#include "kernels/cpu/cpu_count.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace flashsvd {
namespace {

// A made-up cgroup mount.
class CgroupTest : public ::testing::Test {
 protected:
  CgroupTest()
      : mount_(::testing::TempDir() + "cgroup_test_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(mount_);
  }
  ~CgroupTest() override { std::filesystem::remove_all(mount_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = mount_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  const std::string mount_;
};

TEST_F(CgroupTest, NoFileMeansNoQuota) {
  EXPECT_EQ(CgroupCpuQuota("0::/\n", mount_), std::nullopt);
  EXPECT_EQ(CgroupCpuQuota("", mount_), std::nullopt);
  EXPECT_EQ(CgroupCpuQuota("garbage\n:::\n", mount_), std::nullopt);
}

TEST_F(CgroupTest, MaxMeansNoQuota) {
  Write("cpu.max", "max 100000\n");
  EXPECT_EQ(CgroupCpuQuota("0::/\n", mount_), std::nullopt);
}

TEST_F(CgroupTest, SmallestQuotaOnThePathToTheRootCounts) {
  Write("cpu.max", "400000 100000\n");
  Write("a/cpu.max", "150000 100000\n");
  Write("a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(CgroupCpuQuota("0::/a/b\n", mount_), 1.5);
  EXPECT_EQ(CgroupCpuQuota("0::/\n", mount_), 4.0);
}

// In a container the path is the host's while the mount is the container's own group.
TEST_F(CgroupTest, MountRootCountsWhenThePathIsNotThere) {
  Write("cpu.max", "50000 100000\n");
  EXPECT_EQ(CgroupCpuQuota("0::/kubepods/pod1/x\n", mount_), 0.5);
}

TEST_F(CgroupTest, ReadsVersionOne) {
  Write("cpu/cpu.cfs_quota_us", "-1\n");
  Write("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota("4:cpu,cpuacct:/\n0::/\n", mount_), std::nullopt);
  Write("cpu/a/cpu.cfs_quota_us", "250000\n");
  Write("cpu/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuQuota("4:cpu,cpuacct:/a\n0::/\n", mount_), 2.5);
  EXPECT_EQ(CgroupCpuQuota("4:cpuset:/a\n", mount_), std::nullopt);
}

TEST(CpuCountTest, CountsNoMoreThanTheAffinityMask) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_GE(AvailableCpus(), 1);
  EXPECT_LE(AvailableCpus(), CPU_COUNT(&before));
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableCpus(), 1);
  sched_setaffinity(0, sizeof(before), &before);
}

}  // namespace
}  // namespace flashsvd
