// What dropout draws: a function of the run's seed, the step, the instruction and the place.
#pragma once

#include "machine.h"

namespace lthfunc {

// The finaliser of MurmurHash3.
LTHFUNC_INLINE uvec scrambled(uvec h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// 32 random bits of counters of 64: seed and step, the instruction's number and a counter's upper half are scrambled
// first, which is `stream`, then its lower half with it.
LTHFUNC_INLINE uvec drawn(const Workspace& m, i64 number, uvec upper, uvec lower) {
  const uvec stream =
      scrambled(upper * 0xc2b2ae35u + (m.seed ^ (m.step * 0x9e3779b9u)) + static_cast<std::uint32_t>(number));
  return scrambled(stream ^ lower);
}

LTHFUNC_INLINE uvec unsigned_lanes() {
  const ivec numbers = lane_numbers();
  uvec lanes;
  std::memcpy(&lanes, &numbers, sizeof lanes);
  return lanes;
}

// Lanes whose random bits are no less than a threshold: of the examples of a tile, at a place among its vectors. A
// counter is 16 times the place, and the example's number in the tile.
LTHFUNC_INLINE ivec kept_lanes(const Workspace& m, i64 number, i64 threshold, i64 place) {
  const std::uint64_t first = static_cast<std::uint64_t>(place) * LANES;
  const uvec upper = uvec{} + static_cast<std::uint32_t>(first >> 32);
  const uvec lower = unsigned_lanes() + static_cast<std::uint32_t>(first);
  return drawn(m, number, upper, lower) >= uvec{} + static_cast<std::uint32_t>(threshold);
}

// The same where lanes are tokens of the example of this number, of which each has its place `step` behind the last.
LTHFUNC_INLINE ivec kept_tokens(const Workspace& m, i64 number, i64 threshold, i64 example, i64 place, i64 step) {
  const std::uint64_t first = static_cast<std::uint64_t>(place) * LANES + static_cast<std::uint64_t>(example);
  const uvec begin = uvec{} + static_cast<std::uint32_t>(first),
             upper = uvec{} + static_cast<std::uint32_t>(first >> 32);
  const uvec lower = begin + unsigned_lanes() * static_cast<std::uint32_t>(step * LANES);
  return drawn(m, number, where(lower < begin, upper + 1u, upper), lower) >=
         uvec{} + static_cast<std::uint32_t>(threshold);
}

}  // namespace lthfunc
