#include "compare.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace nvfp4 {
namespace {

namespace ffi = tvm::ffi;

// IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
double FromHalf(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                     : exponent == 31 ? (fraction == 0 ? std::numeric_limits<double>::infinity()
                                                       : std::numeric_limits<double>::quiet_NaN())
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

// The upper half of a binary32.
double FromBfloat(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

double Element(const ffi::Tensor& tensor, int64_t i) {
  DLDataType dtype = tensor.dtype();
  if (dtype.code == kDLFloat && dtype.bits == 64) return static_cast<const double*>(tensor.data_ptr())[i];
  if (dtype.code == kDLFloat && dtype.bits == 32) return static_cast<const float*>(tensor.data_ptr())[i];
  uint16_t bits = static_cast<const uint16_t*>(tensor.data_ptr())[i];
  return dtype.code == kDLBfloat ? FromBfloat(bits) : FromHalf(bits);
}

std::string Extents(const ffi::Tensor& tensor) {
  std::string text;
  for (int64_t extent : tensor.shape()) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

void CheckFloat(const ffi::Tensor& tensor) {
  DLDataType dtype = tensor.dtype();
  bool known = dtype.lanes == 1 && ((dtype.code == kDLFloat && (dtype.bits == 64 || dtype.bits == 32 || dtype.bits == 16)) ||
                                    (dtype.code == kDLBfloat && dtype.bits == 16));
  if (!known) {
    throw std::runtime_error("dtype " + std::string(ffi::DLDataTypeToString(dtype)) +
                             " is not float64, float32, float16 or bfloat16");
  }
}

}  // namespace

Difference Compare(const ffi::Tensor& got, const ffi::Tensor& expected) {
  CheckFloat(got);
  CheckFloat(expected);
  if (Extents(got) != Extents(expected)) {
    throw std::runtime_error("out is " + Extents(got) + " and expected is " + Extents(expected) + ": not one shape");
  }
  Difference difference;
  double error = 0, norm = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    double want = Element(expected, i), delta = std::abs(Element(got, i) - want);
    // Written so that a NaN stays.
    if (!(delta <= difference.max_absolute) && !std::isnan(difference.max_absolute)) difference.max_absolute = delta;
    error += delta * delta;
    norm += want * want;
  }
  difference.relative = error == 0 ? 0 : std::sqrt(error / norm);
  return difference;
}

void FillNaN(const ffi::Tensor& tensor) {
  CheckFloat(tensor);
  // All bits set is a NaN in each of the four formats.
  std::memset(tensor.data_ptr(), 0xFF, ffi::GetDataSize(*tensor.GetDLTensorPtr()));
}

}  // namespace nvfp4
