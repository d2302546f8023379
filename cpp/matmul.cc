#include "matmul.h"

#include <tvm/ffi/extra/module.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "compare.h"

namespace nvfp4 {

namespace ffi = tvm::ffi;

namespace {

// TVM's messages span lines; ours are one.
std::string OneLine(std::string text) {
  for (size_t at = 0; (at = text.find_first_of("\n\r", at)) != std::string::npos;) text[at] = ' ';
  return text;
}

}  // namespace

ffi::Function LoadFunction(const std::string& library, const std::string& name) {
  if (!std::ifstream(library)) throw std::runtime_error(library + ": cannot be opened; expected a compiled library");
  try {
    // Absolute: the loader searches the system for a name without a slash.
    ffi::Module module = ffi::Module::LoadFromFile(std::filesystem::absolute(library).string());
    ffi::Optional<ffi::Function> function = module->GetFunction(name, true);
    if (function.has_value()) return *function;
  } catch (const ffi::Error& error) {
    throw std::runtime_error(library + ": cannot be loaded: " + OneLine(error.message()));
  }
  throw std::runtime_error(library + ": has no function " + name);
}

ffi::Tensor Matmul(const ffi::Function& kernel, const Tensors& tensors, int64_t N, const std::string& out_dtype) {
  std::vector<ffi::AnyView> arguments;
  for (const char* name : {"x", "words", "scales", "global_scale"}) {
    auto found = tensors.find(name);
    if (found == tensors.end()) throw std::runtime_error(std::string("there is no tensor ") + name);
    arguments.emplace_back(found->second);
  }
  auto bias = tensors.find("bias");
  if (bias != tensors.end()) arguments.emplace_back(bias->second);
  const ffi::Tensor& x = tensors.at("x");
  if (x.ndim() != 2) throw std::runtime_error("x has " + std::to_string(x.ndim()) + " axes, expected [M, K]");
  ffi::Tensor out = Allocate({x.size(0), N}, out_dtype.empty() ? x.dtype() : ParseDtype(out_dtype));
  FillNaN(out);
  arguments.emplace_back(out);
  ffi::Any result;
  try {
    kernel.CallPacked(ffi::PackedArgs(arguments.data(), static_cast<int32_t>(arguments.size())), &result);
  } catch (const ffi::Error& error) {
    throw std::runtime_error("the kernel refuses its arguments: " + OneLine(error.message()));
  }
  return out;
}

}  // namespace nvfp4
