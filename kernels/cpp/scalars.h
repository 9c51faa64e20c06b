// Small scalar helpers, included inside every instruction set's own namespace so that they are compiled for it.

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
