#include "tools/progress_bar.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

TEST(RenderProgressTest, ShowsShareAndTimeLeft) {
  EXPECT_EQ(RenderProgress("decompose", 18, 36, 3.0),
            "decompose [###############               ] 18/36  50%  0:03 left");
  EXPECT_EQ(RenderProgress("x", 0, 5, 0.0), "x [                              ] 0/5   0%");
  EXPECT_EQ(RenderProgress("x", 100, 100, 9.0), "x [##############################] 100/100 100%");
  EXPECT_THAT(RenderProgress("x", 1, 100, 2.0), HasSubstr("3:18 left"));
}

TEST(RenderProgressTest, ShowsARateWithoutTotal) {
  EXPECT_EQ(RenderProgress("embed", 300, 0, 2.0), "embed 300  150/s");
}

// What a program prints into a file or a pipe.
std::string Log(int64_t total, int64_t steps, int64_t step) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  {
    ProgressBar bar("embed", total, out);
    for (int64_t i = 0; i < steps; ++i) bar.Advance(step);
  }
  std::fclose(out);
  std::string result(text, size);
  free(text);
  return result;
}

TEST(ProgressBarTest, PrintsOneLinePerTenthWhereThereIsNoTerminal) {
  const std::string log = Log(1000, 1000, 1);
  EXPECT_THAT(log, HasSubstr("embed: 10% (100/1000)\nembed: 20% (200/1000)\n"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 10);
  EXPECT_EQ(Log(3, 3, 1), "embed: 33% (1/3)\nembed: 66% (2/3)\nembed: 100% (3/3)\n");
}

TEST(ProgressBarTest, PrintsOneLineAtTheEndWithoutTotal) {
  const std::string log = Log(0, 5, 2);
  EXPECT_THAT(log, testing::StartsWith("embed 10  "));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1);
}

TEST(ProgressBarTest, IsSilentWithoutAStream) {
  ProgressBar bar("x", 2, nullptr);
  bar.Advance(2);
  bar.Finish();
}

TEST(ProgressBarTest, CountsStepsOfSeveralThreads) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  {
    ProgressBar bar("x", 4000, out);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) bar.Advance();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::fclose(out);
  EXPECT_THAT(std::string(text, size), HasSubstr("x: 100% (4000/4000)\n"));
  free(text);
}

TEST(ProgressBarTest, RedrawsOneLineOnATerminal) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) {
    GTEST_SKIP() << "no pseudo terminals on this machine";
  }
  std::FILE* terminal = fopen(ptsname(master), "w");
  ASSERT_NE(terminal, nullptr);
  {
    ProgressBar bar("embed", 1000, terminal);
    for (int i = 0; i < 1000; ++i) bar.Advance();
  }
  std::fclose(terminal);
  std::string drawn;
  char part[4096];
  // A read returns what has come through so far, and fails once all has and the terminal is closed.
  for (ssize_t n; (n = read(master, part, sizeof(part))) > 0;) drawn.append(part, n);
  close(master);
  EXPECT_THAT(drawn, testing::StartsWith("\rembed [ "));
  EXPECT_THAT(drawn, testing::EndsWith("1000/1000 100%\x1b[K\r\n"));
  EXPECT_EQ(std::count(drawn.begin(), drawn.end(), '\n'), 1);
}

}  // namespace
}  // namespace flashsvd
