// AVX-512 with VNNI: Intel since Cascade Lake, AMD since Zen 4.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "experts.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")

namespace expertfleet {
namespace {

constexpr int kMostRows = 4;
constexpr int kProductRows = 4, kProductOutputs = 6, kSingleOutputs = 12;  // as the registers allow

#include "scalars.h"
#include "zmm.inc"
#include "products.inc"

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}
void nothing() {}

}  // namespace

const InstructionSet kAvx512 = {"avx512_vnni", supported, nothing, nothing, read_row, gate_up, down, products, read};

}  // namespace expertfleet

TARGET_END

#endif
