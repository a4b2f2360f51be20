#ifndef FLASHSVD_TOOLS_PROGRESS_BAR_H_
#define FLASHSVD_TOOLS_PROGRESS_BAR_H_

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <utility>

#include "fmt/format.h"

namespace flashsvd {

// "decompose [#########           ]  18/36  50%  0:03 left"; without a total (0): what is done and
// the rate. `seconds` is the time since the start.
inline std::string RenderProgress(const std::string& label, int64_t done, int64_t total,
                                  double seconds) {
  if (total <= 0) {
    const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
    return fmt::format("{} {}  {:.0f}/s", label, done, rate);
  }
  constexpr int kCells = 30;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const int filled = static_cast<int>(share * kCells);
  std::string line =
      fmt::format("{} [{:#<{}}{: <{}}] {:>{}}/{} {:3.0f}%", label, "", filled, "", kCells - filled,
                  done, fmt::formatted_size("{}", total), total, 100 * share);
  if (done > 0 && done < total) {
    const int64_t left = std::llround(seconds * (1 - share) / share);
    line += fmt::format("  {}:{:02} left", left / 60, left % 60);
  }
  return line;
}

// A progress bar. On a terminal it redraws one line, at most ten times a second; elsewhere it
// prints one line per 10% (without a total: one line at the end), so that a log stays short. Given
// a null stream it is silent. Thread-safe; the stream must outlive it.
class ProgressBar {
 public:
  // total: steps to do, 0 if unknown.
  ProgressBar(std::string label, int64_t total, std::FILE* out)
      : label_(std::move(label)),
        total_(total),
        out_(out),
        terminal_(out != nullptr && isatty(fileno(out)) == 1) {}
  ~ProgressBar() { Finish(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Advance(int64_t steps = 1) {
    std::lock_guard<std::mutex> lock(mutex_);
    done_ += steps;
    if (out_ == nullptr || finished_) return;
    if (terminal_) {
      const Clock::time_point now = Clock::now();
      if (done_ != total_ && now - drawn_ < std::chrono::milliseconds(100)) return;
      drawn_ = now;
      Draw();
    } else if (total_ > 0 && done_ * 10 / total_ > tenths_) {
      tenths_ = done_ * 10 / total_;
      fmt::print(out_, "{}: {}% ({}/{})\n", label_, done_ * 100 / total_, done_, total_);
      std::fflush(out_);
    }
  }

  // Ends the line; later calls draw nothing. The destructor calls it.
  void Finish() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (out_ == nullptr || finished_) return;
    finished_ = true;
    if (terminal_) {
      Draw();
      fmt::print(out_, "\n");
    } else if (total_ <= 0) {
      fmt::print(out_, "{}\n", RenderProgress(label_, done_, total_, Seconds()));
    }
    std::fflush(out_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  double Seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // \x1b[K clears what a longer earlier line left behind.
  void Draw() {
    fmt::print(out_, "\r{}\x1b[K", RenderProgress(label_, done_, total_, Seconds()));
    std::fflush(out_);
  }

  const std::string label_;
  const int64_t total_;
  std::FILE* const out_;
  const bool terminal_;
  const Clock::time_point start_ = Clock::now();
  std::mutex mutex_;
  Clock::time_point drawn_;
  int64_t done_ = 0;
  int64_t tenths_ = 0;
  bool finished_ = false;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_PROGRESS_BAR_H_
