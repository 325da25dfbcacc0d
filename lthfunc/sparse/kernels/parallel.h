// Work divided among PyTorch's threads, by two functions of its stable C interface (no header of PyTorch is read).
#pragma once

#include <exception>
#include <mutex>
#include <stdexcept>

#include "registers.h"

extern "C" {
std::int32_t torch_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                void (*part)(std::int64_t, std::int64_t, void*), void* context);
std::int32_t torch_get_num_threads(std::uint32_t* count);
}

namespace lthfunc {

inline bool has_threads() {
  std::uint32_t count = 1;
  return torch_get_num_threads(&count) == 0 && count > 1;
}

// function(from, to) for parts of a range, of `grain` or more. What it throws is thrown here.
template <typename Function>
void parallel_for(i64 begin, i64 end, i64 grain, const Function& function) {
  struct Context {
    const Function& function;
    std::mutex guard;
    std::exception_ptr thrown;
  } context{function, {}, {}};
  const auto part = [](i64 from, i64 to, void* given) {
    auto& shared = *static_cast<Context*>(given);
    try {
      shared.function(from, to);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(shared.guard);
      if (!shared.thrown) shared.thrown = std::current_exception();
    }
  };
  const bool failed = torch_parallel_for(begin, end, grain, part, &context) != 0;
  if (context.thrown) std::rethrow_exception(context.thrown);
  if (failed) throw std::runtime_error("lthfunc: PyTorch's threads cannot be used");
}

}  // namespace lthfunc
