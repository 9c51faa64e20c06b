// What needs no vectors, included inside every instruction set's own namespace so that it is compiled for it.

#define UNROLL _Pragma("GCC unroll 16")

constexpr int kPrefetchBytes = 4 * (kCodeBytes + kScaleBytes);

// What will be wanted four groups later.
inline void prefetch(const uint8_t* tile) {
  UNROLL for (int line = 0; line < kCodeBytes + kScaleBytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(tile) + kPrefetchBytes + line, _MM_HINT_T0);
  }
}

inline uint32_t bits(float value) {
  uint32_t result;
  std::memcpy(&result, &value, 4);
  return result;
}

inline float from_bits(uint32_t value) {
  float result;
  std::memcpy(&result, &value, 4);
  return result;
}

// Rounds half to even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  const uint32_t all = bits(value);
  if ((all & 0x7fffffffu) > 0x7f800000u) return uint16_t((all >> 16) | 0x40u);
  return uint16_t((all + 0x7fffu + ((all >> 16) & 1u)) >> 16);
}
