#ifndef FLASHSVD_KERNELS_CPU_PEAK_H_
#define FLASHSVD_KERNELS_CPU_PEAK_H_

#include "kernels/tensor.h"

namespace flashsvd {

// GFLOP/s of multiply-adds on registers alone with the instruction set that SelectIsa("") picks:
// what no kernel of this dtype can exceed here. Best of several rounds of some milliseconds on
// num_threads threads at once; 0 for a dtype without CPU kernels or an unusable FLASHSVD_CPU_ISA.
double MeasurePeakGflops(DType dtype, int num_threads);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_PEAK_H_
