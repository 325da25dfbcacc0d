// The memory of PyTorch's tensors, checked before it is used. Only this file reads PyTorch's headers.
#pragma once

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))  // the lowest that pyproject.toml declares
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "vectors.h"

namespace lthfunc {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Throws what is a ValueError in Python.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << "lthfunc: " << ... << parts);
  throw std::invalid_argument(message.str());
}

template <typename T>
constexpr ScalarType type_of = std::is_same_v<T, float>    ? ScalarType::Float
                               : std::is_same_v<T, double> ? ScalarType::Double
                               : std::is_same_v<T, i32>    ? ScalarType::Int
                                                           : ScalarType::Long;

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "uint8";
  }
}

// A tensor's memory, where it holds `needed` elements or more; nullptr where it is empty.
template <typename T>
T* data(const char* name, const Tensor& tensor, i64 needed) {
  const i64 count = tensor.numel();
  require(tensor.is_contiguous() && count >= needed, name, " takes ", needed, " contiguous elements or more");
  require(tensor.scalar_type() == type_of<T>, name, " must be ", name_of(type_of<T>));
  return count ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

vec* vectors(const char* name, const Tensor& tensor, i64 needed) {
  float* const memory = data<float>(name, tensor, needed * LANES);
  require(reinterpret_cast<std::uintptr_t>(memory) % sizeof(vec) == 0, name, " are not aligned");
  return reinterpret_cast<vec*>(memory);
}

template <typename T>
std::vector<T> copied(const char* name, const Tensor& tensor) {
  const T* const first = data<T>(name, tensor, 0);
  return {first, first + tensor.numel()};
}

// Contiguous floats. By the shim itself: torch::stable::empty looks its operator up by name, in a microsecond.
template <std::size_t Count>
Tensor empty(const i64 (&sizes)[Count]) {
  i64 strides[Count];
  i64 step = 1;
  for (std::size_t k = Count; k-- > 0; step *= sizes[k]) strides[k] = step;
  AtenTensorHandle made = nullptr;
  const auto failed = aoti_torch_empty_strided(Count, sizes, strides, aoti_torch_dtype_float32(),
                                               aoti_torch_device_type_cpu(), 0, &made);
  if (failed) throw std::runtime_error("lthfunc: no memory for the outputs");
  return Tensor(made);
}

}  // namespace
}  // namespace lthfunc
