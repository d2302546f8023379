// Reading and writing safetensors: 8 bytes of header length, a JSON header, then the data.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nvfp4 {

using Tensors = std::map<std::string, tvm::ffi::Tensor>;

// Returns all tensors of a file, in memory of their own on the CPU.
// Throws std::runtime_error if the file is missing, truncated or inconsistent, or holds an unknown dtype.
Tensors ReadSafetensors(const std::string& path);

// Writes one contiguous tensor of the CPU. Throws std::runtime_error if the file cannot be written.
void WriteSafetensors(const std::string& path, const std::string& name, const tvm::ffi::Tensor& tensor);

// Returns uninitialised memory on the CPU, aligned as TVM's kernels expect.
tvm::ffi::Tensor Allocate(const std::vector<int64_t>& shape, DLDataType dtype);

// Turns a dtype as safetensors spells it ("F32", "BF16", "U32", ...) into TVM's, and back.
// Throws std::runtime_error for others.
DLDataType ParseDtype(const std::string& name);
std::string DtypeName(DLDataType dtype);

}  // namespace nvfp4
