// nvfp4_runner: runs a matmul from a compiled library with the TVM runtime, without Python.

#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "compare.h"
#include "matmul.h"
#include "safetensors.h"

namespace {

constexpr char kUsage[] =
    "usage: nvfp4_runner LIBRARY FUNCTION INPUTS.safetensors [--n N] [--out-dtype F32|F16|BF16]\n"
    "                    [--tolerance R] [--output OUT.safetensors]\n"
    "\n"
    "Calls FUNCTION(x, words, scales, global_scale[, bias], out) of a library compiled by nvfp4_tvm with the tensors\n"
    "of these names in INPUTS. N, the columns of out, is that of `expected` or `bias`, or is given by --n; out has the\n"
    "dtype of x unless --out-dtype names one.\n"
    "\n"
    "If INPUTS has a tensor `expected` [M, N], prints the differences from it and fails if the relative Frobenius\n"
    "error exceeds R (default 1e-5). --output writes out as the tensor `out`.\n"
    "\n"
    "Exit codes: 0 done, 1 the numbers disagree, 2 wrong usage or input.\n";

struct Options {
  std::string library, function, inputs, out_dtype, output;
  int64_t N = 0;
  double tolerance = 1e-5;
};

double Positive(const std::string& option, const std::string& text) {
  size_t end = 0;
  double value = -1;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end != text.size() || !(value > 0) || value > 1e15) {
    throw std::runtime_error(option + " takes a positive number, got '" + text + "'");
  }
  return value;
}

Options Parse(const std::vector<std::string>& words) {
  Options options;
  std::vector<std::string> positional;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.rfind("--", 0) != 0) {
      positional.push_back(word);
      continue;
    }
    bool known = word == "--n" || word == "--out-dtype" || word == "--tolerance" || word == "--output";
    if (!known) throw std::runtime_error("unknown option " + word + "; see --help");
    if (++i == words.size()) throw std::runtime_error("option " + word + " needs a value");
    if (word == "--out-dtype") options.out_dtype = words[i];
    if (word == "--output") options.output = words[i];
    if (word == "--tolerance") options.tolerance = Positive(word, words[i]);
    if (word == "--n") {
      double N = Positive(word, words[i]);
      options.N = static_cast<int64_t>(N);
      if (static_cast<double>(options.N) != N) throw std::runtime_error("--n takes an integer, got '" + words[i] + "'");
    }
  }
  if (positional.size() != 3) {
    throw std::runtime_error("found " + std::to_string(positional.size()) +
                             " arguments, expected LIBRARY FUNCTION INPUTS.safetensors; see --help");
  }
  options.library = positional[0];
  options.function = positional[1];
  options.inputs = positional[2];
  return options;
}

int64_t Columns(const Options& options, const nvfp4::Tensors& tensors) {
  if (options.N > 0) return options.N;
  for (const char* name : {"expected", "bias"}) {
    auto found = tensors.find(name);
    if (found != tensors.end() && found->second.ndim() > 0) return found->second.size(-1);
  }
  throw std::runtime_error(options.inputs + ": has neither `expected` nor `bias`; give the columns of out with --n");
}

int Run(const Options& options) {
  nvfp4::Tensors tensors = nvfp4::ReadSafetensors(options.inputs);
  tvm::ffi::Function kernel = nvfp4::LoadFunction(options.library, options.function);
  tvm::ffi::Tensor out = nvfp4::Matmul(kernel, tensors, Columns(options, tensors), options.out_dtype);
  std::printf("%s: out %s[%lld, %lld]\n", options.function.c_str(), nvfp4::DtypeName(out.dtype()).c_str(),
              static_cast<long long>(out.size(0)), static_cast<long long>(out.size(1)));
  if (!options.output.empty()) nvfp4::WriteSafetensors(options.output, "out", out);
  auto expected = tensors.find("expected");
  if (expected == tensors.end()) return 0;
  nvfp4::Difference difference = nvfp4::Compare(out, expected->second);
  bool agrees = difference.relative <= options.tolerance;  // false for NaN
  std::printf("max absolute error %.3e, relative error %.3e, tolerance %.3e: %s\n", difference.max_absolute,
              difference.relative, options.tolerance, agrees ? "agrees" : "DISAGREES");
  return agrees ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") {
      std::fputs(kUsage, stdout);
      return 0;
    }
  }
  try {
    return Run(Parse(words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvfp4_runner: %s\n", error.what());
    return 2;
  }
}
