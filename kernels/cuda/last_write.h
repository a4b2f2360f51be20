#ifndef FLASHSVD_KERNELS_CUDA_LAST_WRITE_H_
#define FLASHSVD_KERNELS_CUDA_LAST_WRITE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

namespace flashsvd {

// What a kernel about to be enqueued need not wait for. Programmatic launches let its blocks start
// while the kernel ahead still runs, and a wait for that one then costs its end, the flush of its
// writes and the first loads behind them. Rows that were complete before the kernel ahead began may
// be read without the wait; only writes need it.
//
// Which rows these are is known after a kernel that lets its successor start only once all kernels
// before it are done, and writes nothing but `rows`: everything else is settled then.
class LastWrite {
 public:
  // After the enqueueing of such a kernel. Rows of 16-bit elements.
  void Set(const Rows& rows) {
    begin_ = static_cast<const std::byte*>(rows.data);
    end_ = begin_ + rows.rows * RowBytes(rows);
    known_ = true;
  }
  // After any other.
  void Forget() { known_ = false; }

  // How many rows of x, counted from its first, are settled.
  int64_t SettledRows(const Rows& x) const {
    if (!known_) return 0;
    const auto* first = static_cast<const std::byte*>(x.data);
    const std::byte* end = first + x.rows * RowBytes(x);
    if (end <= begin_ || end_ <= first) return x.rows;
    return std::max<int64_t>(begin_ - first, 0) / RowBytes(x);
  }

 private:
  static int64_t RowBytes(const Rows& rows) { return rows.stride * 2; }

  const std::byte* begin_ = nullptr;
  const std::byte* end_ = nullptr;
  bool known_ = false;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_LAST_WRITE_H_
