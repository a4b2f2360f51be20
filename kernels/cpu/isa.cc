#include "kernels/cpu/isa.h"

#include <cstdlib>

#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

struct Isa {
  std::string_view name;
  const KernelTable* f32;
  const KernelTable* bf16;
  bool (*available)();
  // Of those available the highest is the fastest.
  int (*preference)();
};

constexpr Isa kIsas[] = {
    {"portable", &portable::kF32Kernels, &portable::kBf16Kernels, [] { return true; },
     [] { return 0; }},
#if defined(__x86_64__)
    {"avx2", &avx2::kF32Kernels, &avx2::kBf16Kernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     [] { return 1; }},
    {"avx512", &avx512::kF32Kernels, &avx512::kBf16Kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     [] { return 3; }},
    // Not a ladder: vdpbf16ps does twice the float32 rate on AMD, half of it on Intel.
    {"avx512_bf16", &avx512_bf16::kF32Kernels, &avx512_bf16::kBf16Kernels,
     [] {
       return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
     },
     [] { return __builtin_cpu_is("intel") ? 2 : 4; }},
#endif
};

std::string Join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

}  // namespace

std::vector<std::string> CompiledIsas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.name);
  return names;
}

std::vector<std::string> AvailableIsas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.available()) names.emplace_back(isa.name);
  }
  return names;
}

absl::StatusOr<std::string> SelectIsa(std::string_view requested) {
  std::string wanted(requested);
  std::string origin = "cpu_isa";
  if (wanted.empty()) {
    const char* environment = std::getenv("FLASHSVD_CPU_ISA");
    if (environment != nullptr) wanted = environment;
    origin = "FLASHSVD_CPU_ISA";
  }
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) {
    if (!isa.available()) continue;
    if (isa.name == wanted) return wanted;
    if (best == nullptr || isa.preference() > best->preference()) best = &isa;
  }
  if (wanted.empty()) return std::string(best->name);
  return absl::InvalidArgumentError(origin + " is \"" + wanted + "\"; this CPU has " +
                                    Join(AvailableIsas()));
}

const KernelTable& KernelsFor(std::string_view isa, DType dtype) {
  FSVD_CHECK(dtype != DType::kF16, "no CPU kernels for f16");
  for (const Isa& each : kIsas) {
    if (each.name == isa) return dtype == DType::kF32 ? *each.f32 : *each.bf16;
  }
  FSVD_CHECK(false, "no instruction set %s", std::string(isa).c_str());
}

}  // namespace flashsvd
