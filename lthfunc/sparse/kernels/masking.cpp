// Masks held on whole tensors, in place: a product with a mask that is read as bits, a thirty-second of its floats.
#include "execution.h"
#include "parallel.h"

namespace lthfunc {
namespace {

constexpr i64 GRAIN = 4096;  // vectors a thread takes at least

// function(numbers, lanes pruned) of all numbers, 16 at a time. A vector without a pruned lane is left alone.
template <typename Function>
void on_pruned(float* numbers, i64 count, const i32* kept, Function function) {
  parallel_for(0, (count + LANES - 1) / LANES, GRAIN, [=](i64 from, i64 to) {
    const i64 whole = to * LANES <= count ? to : to - 1;
    const ivec bits = broadcast_int(1) << lane_numbers();
    const auto changed = [=](vec x, i32 word) { return function(x, (broadcast_int(word) & bits) == ivec{}); };
    float* at = numbers + from * LANES;
    for (i64 k = from; k < whole; ++k, at += LANES)
      if (kept[k] != (1 << LANES) - 1) store(at, changed(load(at), kept[k]));
    if (whole < to) store(at, changed(load(at, count - whole * LANES), kept[whole]), count - whole * LANES);
  });
}

}  // namespace

// As a product with floats has it: NaN stays, and a negative number becomes -0.
void mask_numbers(float* numbers, i64 count, const i32* kept) {
  on_pruned(numbers, count, kept, [](vec x, ivec pruned) { return where(pruned, x * 0.0f, x); });
}

void add_to_pruned(float* numbers, i64 count, const i32* kept, float summand) {
  on_pruned(numbers, count, kept, [=](vec x, ivec pruned) { return where(pruned, x + summand, x); });
}

}  // namespace lthfunc
