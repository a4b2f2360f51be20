#include <atomic>
#include <csignal>
#include <cstdio>

#include "tools/compress/cli.h"

namespace {

// A lock-free atomic may be stored to from a signal handler.
std::atomic<bool> cancelled = false;

void OnSignal(int signal) {
  cancelled = true;
  // A second signal ends the program at once.
  std::signal(signal, SIG_DFL);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  return flashsvd::RunCompress(argc, argv, stdout, stderr, &cancelled);
}
