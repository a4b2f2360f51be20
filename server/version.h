#ifndef FLASHSVD_SERVER_VERSION_H_
#define FLASHSVD_SERVER_VERSION_H_

namespace flashsvd {

// FSVD_VERSION is the CMake project's; FSVD_CUDA_VERSION is defined when the CUDA backend is built.
inline constexpr char kVersion[] = FSVD_VERSION;
#ifdef FSVD_CUDA_VERSION
inline constexpr char kCudaVersion[] = FSVD_CUDA_VERSION;
#else
inline constexpr char kCudaVersion[] = "none";
#endif

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_VERSION_H_
