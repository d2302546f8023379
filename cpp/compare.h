// Comparing a computed tensor with the exact one.
#pragma once

#include <tvm/ffi/container/tensor.h>

namespace nvfp4 {

struct Difference {
  double max_absolute = 0;  // largest |got - expected|
  double relative = 0;      // Frobenius norm of got - expected over that of expected
};

// Compares two contiguous CPU tensors of one shape, float64, float32, float16 or bfloat16.
// A NaN in either makes both numbers NaN. Throws std::runtime_error if shapes or dtypes do not fit.
Difference Compare(const tvm::ffi::Tensor& got, const tvm::ffi::Tensor& expected);

// Fills a float64, float32, float16 or bfloat16 tensor with NaN.
void FillNaN(const tvm::ffi::Tensor& tensor);

}  // namespace nvfp4
