// AVX2 with FMA: Intel since Haswell, AMD since Zen.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "experts.h"
#include "target.h"

TARGET_BEGIN("avx2,fma")

namespace expertfleet {
namespace {

constexpr int kMostRows = 4;
constexpr int kProductRows = 4, kProductOutputs = 3, kSingleOutputs = 6;  // as the registers allow

struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};

inline Ints all(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Ints load(const void* from) {
  const __m256i* halves = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline __m256i low_codes(__m256i words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
inline Ints low_codes(Ints words) { return {low_codes(words.a), low_codes(words.b)}; }
inline Ints high_codes(Ints words) {
  return {low_codes(_mm256_srli_epi32(words.a, 4)), low_codes(_mm256_srli_epi32(words.b, 4))};
}
inline Ints four_digits(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return all(four);
}
// A pair's sum is at most 2 * 15 * 128 in magnitude, so 16 bits never saturate.
inline __m256i dot(__m256i sum, __m256i codes, __m256i digits) {
  const __m256i pairs = _mm256_maddubs_epi16(codes, digits);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot(Ints sum, Ints codes, Ints digits) {
  return {dot(sum.a, codes.a, digits.a), dot(sum.b, codes.b, digits.b)};
}
inline Ints shift_left_8(Ints x) { return {_mm256_slli_epi32(x.a, 8), _mm256_slli_epi32(x.b, 8)}; }
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Floats to_float(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline __m256 widened(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline Floats load_bf16(const void* from) {
  const __m128i* halves = static_cast<const __m128i*>(from);
  return {widened(_mm_loadu_si128(halves)), widened(_mm_loadu_si128(halves + 1))};
}
inline Floats load_floats(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats negative(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
inline __m256 add_exponent(__m256 x, __m256 shifted) {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n));
}
// x * 2^n, where the low bits of `shifted` are n (see exponential).
inline Floats add_exponent(Floats x, Floats shifted) {
  return {add_exponent(x.a, shifted.a), add_exponent(x.b, shifted.b)};
}

constexpr int kLanes = 8;
using Lanes = __m256;
inline Lanes no_lanes() { return _mm256_setzero_ps(); }
inline Lanes load_lanes(const float* from) { return _mm256_loadu_ps(from); }
inline Lanes load_lanes(const uint16_t* from) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline void store_lanes(float* to, Lanes x) { _mm256_storeu_ps(to, x); }
inline Lanes fma(Lanes x, Lanes y, Lanes z) { return _mm256_fmadd_ps(x, y, z); }

#include "scalars.h"
#include "products.inc"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
void nothing() {}

}  // namespace

const InstructionSet kAvx2 = {"avx2", supported, nothing, nothing, read_row, gate_up, down, products, read};

}  // namespace expertfleet

TARGET_END

#endif
