#include "tests/testing/device_fault.h"

namespace flashsvd::testing {
namespace {

__global__ void TrapKernel() { asm volatile("trap;"); }

}  // namespace

void BreakCudaDevice() {
  TrapKernel<<<1, 1>>>();
  (void)cudaDeviceSynchronize();
}

}  // namespace flashsvd::testing
