#ifndef FLASHSVD_TOOLS_COMPRESS_CLI_H_
#define FLASHSVD_TOOLS_COMPRESS_CLI_H_

#include <atomic>
#include <cstdio>

namespace flashsvd {

// flashsvd-compress: parses the flags, compresses, prints the report to `out`; the progress bar and
// errors (one line) go to `err`. Setting *cancelled (may be null) stops it. Returns the exit code:
// 0, 1 if the work failed, 2 if the command line is wrong, 130 if it was cancelled.
int RunCompress(int argc, const char* const* argv, std::FILE* out, std::FILE* err,
                const std::atomic<bool>* cancelled);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_CLI_H_
