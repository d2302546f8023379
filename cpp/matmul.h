// Calling a matmul kernel of a compiled library, without Python.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include <string>

#include "safetensors.h"

namespace nvfp4 {

// Loads a library with the TVM runtime and returns one of its functions, also from the modules it imports.
// Throws std::runtime_error if the library cannot be loaded or has no such function.
tvm::ffi::Function LoadFunction(const std::string& library, const std::string& name);

// Calls f(x [M, K], words, scales, global_scale[, bias [N]], out [M, N]) with the tensors of these names; see
// nvfp4_tvm/layout.py for the packed weight. `out` has N columns, and the dtype of x unless `out_dtype` names one;
// it is full of NaN before the call.
// Throws std::runtime_error if a tensor is missing or the kernel refuses one.
tvm::ffi::Tensor Matmul(const tvm::ffi::Function& kernel, const Tensors& tensors, int64_t N,
                        const std::string& out_dtype);

}  // namespace nvfp4
