#ifndef FLASHSVD_TESTS_TESTING_DEVICE_FAULT_H_
#define FLASHSVD_TESTS_TESTING_DEVICE_FAULT_H_

namespace flashsvd::testing {

// Makes a kernel of this process trap on the current CUDA device: from then on every CUDA call of
// the process fails with the same error, as after a fault of the hardware.
void BreakCudaDevice();

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_DEVICE_FAULT_H_
