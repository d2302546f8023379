// The 16-bit floating-point types of CUDA on a CPU: exact conversions to double, one rounding back.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

inline double widened_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline double widen_f16(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                 : exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits >> 15 ? -value : value;
}
inline double widened_f16(uint16_t bits) {
  static const auto all = [] {
    static double values[1 << 16];
    for (int i = 0; i < 1 << 16; ++i) values[i] = widen_f16(i);
    return values;
  }();
  return all[bits];
}

// Rounds to `digits` significant bits, fewer below 2^lowest, to the nearest, ties to even.
inline double rounded(double value, int digits, int lowest) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = std::max(std::ilogb(value), lowest) - (digits - 1);
  return std::ldexp(std::nearbyint(std::ldexp(value, -exponent)), exponent);
}

inline uint16_t bits_bf16(double value) {
  if (std::isnan(value)) return 0x7FFF;
  float narrow = rounded(value, 8, -126);  // infinite from 2^128
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  return bits >> 16;
}

inline uint16_t bits_f16(double value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7FFF;
  double magnitude = rounded(std::fabs(value), 11, -14);
  if (magnitude >= 65536) return sign | 0x7C00;
  if (magnitude < std::ldexp(1, -14)) return sign | (uint16_t)std::ldexp(magnitude, 24);
  int exponent = std::ilogb(magnitude);
  return sign | (exponent + 15) << 10 | ((uint16_t)std::ldexp(magnitude, 10 - exponent) & 1023);
}

template <double (*widen)(uint16_t), uint16_t (*narrow)(double)>
struct Number {
  uint16_t bits;
  Number() = default;
  Number(float value) : bits(narrow(value)) {}
  operator float() const { return widen(bits); }
  static double value(uint32_t pair, int half) { return widen(pair >> 16 * half & 0xFFFF); }
  static uint32_t pair(double low, double high) { return narrow(low) | (uint32_t)narrow(high) << 16; }
};
using nv_bfloat16 = Number<widened_bf16, bits_bf16>;
using half = Number<widened_f16, bits_f16>;
