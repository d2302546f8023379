#include "safetensors.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/json.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace nvfp4 {
namespace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

// kAllocAlignment of tvm/runtime/base.h: compiled kernels load whole vectors.
constexpr size_t kAlignment = 64;
// The limit of the safetensors library itself; also keeps a corrupt length from being allocated.
constexpr uint64_t kMaxHeader = 100'000'000;

struct CPUAllocator {
  void AllocData(DLTensor* tensor) {
    size_t bytes = (ffi::GetDataSize(*tensor) + kAlignment - 1) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, bytes == 0 ? kAlignment : bytes);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

const std::vector<std::pair<std::string, DLDataType>>& Dtypes() {
  static const std::vector<std::pair<std::string, DLDataType>> dtypes = {
      {"F64", {kDLFloat, 64, 1}}, {"F32", {kDLFloat, 32, 1}}, {"F16", {kDLFloat, 16, 1}},
      {"BF16", {kDLBfloat, 16, 1}}, {"I64", {kDLInt, 64, 1}}, {"I32", {kDLInt, 32, 1}},
      {"U32", {kDLUInt, 32, 1}}, {"U8", {kDLUInt, 8, 1}}};
  return dtypes;
}

[[noreturn]] void Fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

std::vector<int64_t> Integers(const json::Array& array) {
  std::vector<int64_t> values;
  for (const ffi::Any& item : array) {
    std::optional<int64_t> value = item.as<int64_t>();
    if (!value || *value < 0) throw std::runtime_error("expected non-negative integers");
    values.push_back(*value);
  }
  return values;
}

ffi::Any Field(const json::Object& entry, const char* name) {
  auto found = entry.find(ffi::String(name));
  if (found == entry.end()) throw std::runtime_error(std::string("has no ") + name);
  return (*found).second;
}

ffi::Tensor ReadTensor(std::ifstream& file, const json::Object& entry, uint64_t data_start, uint64_t data_size) {
  std::vector<int64_t> shape = Integers(Field(entry, "shape").cast<json::Array>());
  DLDataType dtype = ParseDtype(Field(entry, "dtype").cast<ffi::String>());
  std::vector<int64_t> span = Integers(Field(entry, "data_offsets").cast<json::Array>());
  uint64_t bytes = dtype.bits / 8;
  for (int64_t extent : shape) {
    // Before multiplying, which could overflow, and before allocating.
    if (extent != 0 && bytes > data_size / static_cast<uint64_t>(extent)) {
      throw std::runtime_error("its shape is larger than the file");
    }
    bytes *= static_cast<uint64_t>(extent);
  }
  if (span.size() != 2 || span[0] > span[1] || static_cast<uint64_t>(span[1] - span[0]) != bytes ||
      static_cast<uint64_t>(span[1]) > data_size) {
    throw std::runtime_error("its data_offsets do not fit its shape or the file");
  }
  ffi::Tensor tensor = Allocate(shape, dtype);
  file.seekg(static_cast<std::streamoff>(data_start + static_cast<uint64_t>(span[0])));
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(bytes));
  if (!file) throw std::runtime_error("cannot be read");
  return tensor;
}

}  // namespace

ffi::Tensor Allocate(const std::vector<int64_t>& shape, DLDataType dtype) {
  return ffi::Tensor::FromNDAlloc(CPUAllocator(), ffi::ShapeView(shape.data(), shape.size()), dtype, DLDevice{kDLCPU, 0});
}

DLDataType ParseDtype(const std::string& name) {
  std::string known;
  for (const auto& [candidate, dtype] : Dtypes()) {
    if (candidate == name) return dtype;
    known += (known.empty() ? "" : ", ") + candidate;
  }
  throw std::runtime_error("dtype " + name + " is not one of " + known);
}

std::string DtypeName(DLDataType dtype) {
  for (const auto& [name, candidate] : Dtypes()) {
    if (candidate.code == dtype.code && candidate.bits == dtype.bits && dtype.lanes == 1) return name;
  }
  throw std::runtime_error("dtype " + std::string(ffi::DLDataTypeToString(dtype)) + " has no name in safetensors");
}

Tensors ReadSafetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) Fail(path, "cannot be opened; expected a safetensors file");
  uint64_t size = static_cast<uint64_t>(file.tellg());
  file.seekg(0);
  uint8_t prefix[8] = {};
  if (size < sizeof(prefix) || !file.read(reinterpret_cast<char*>(prefix), sizeof(prefix))) {
    Fail(path, "is too short for a safetensors file");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[i];
  if (length > kMaxHeader || length > size - sizeof(prefix)) {
    Fail(path, "is no safetensors file: its header would have " + std::to_string(length) + " bytes");
  }
  std::string header(length, '\0');
  file.read(header.data(), static_cast<std::streamsize>(length));
  ffi::String error;
  json::Value parsed = json::Parse(ffi::String(header), &error);
  std::optional<json::Object> entries = parsed.as<json::Object>();
  if (!entries) Fail(path, "is no safetensors file: its header is no JSON object");
  Tensors tensors;
  uint64_t start = sizeof(prefix) + length;
  for (const auto& [key, value] : *entries) {
    std::string name = key.cast<ffi::String>();
    if (name == "__metadata__") continue;
    std::string problem;
    try {
      tensors.emplace(name, ReadTensor(file, value.cast<json::Object>(), start, size - start));
      continue;
    } catch (const ffi::Error& e) {
      problem = e.message();
    } catch (const std::bad_alloc&) {
      problem = "there is not enough memory for it";
    } catch (const std::runtime_error& e) {
      problem = e.what();
    }
    Fail(path, "tensor " + name + ": " + problem);
  }
  return tensors;
}

void WriteSafetensors(const std::string& path, const std::string& name, const ffi::Tensor& tensor) {
  uint64_t bytes = ffi::GetDataSize(*tensor.GetDLTensorPtr());
  json::Array shape, span{int64_t{0}, static_cast<int64_t>(bytes)};
  for (int64_t extent : tensor.shape()) shape.push_back(extent);
  json::Object entry, entries;
  entry.Set("dtype", ffi::String(DtypeName(tensor.dtype())));
  entry.Set("shape", shape);
  entry.Set("data_offsets", span);
  entries.Set(ffi::String(name), entry);
  std::string header = json::Stringify(entries);
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data starts at a multiple of 8
  std::ofstream file(path, std::ios::binary);
  for (int i = 0; i < 8; ++i) file.put(static_cast<char>(header.size() >> (8 * i) & 0xFF));
  file << header;
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(bytes));
  file.close();
  if (!file) Fail(path, "cannot be written");
}

}  // namespace nvfp4
