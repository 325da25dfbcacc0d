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

// Lanes whose 32 random bits are no less than a threshold. A counter, scrambled twice: seed and step first, and what a
// number of 32 bits has no room for of the place, then the rest of the place.
LTHFUNC_INLINE ivec kept_lanes(const Workspace& m, i64 number, i64 threshold, i64 place) {
  const ivec numbers = lane_numbers();
  uvec lane;
  std::memcpy(&lane, &numbers, sizeof lane);
  const std::uint64_t first = static_cast<std::uint64_t>(place) * LANES;
  const std::uint32_t beyond = static_cast<std::uint32_t>(first >> 32) * 0xc2b2ae35u;
  const uvec stream =
      scrambled(uvec{} + (m.seed ^ (m.step * 0x9e3779b9u)) + static_cast<std::uint32_t>(number) + beyond);
  const uvec drawn = scrambled(stream ^ (lane + static_cast<std::uint32_t>(first)));
  return drawn >= uvec{} + static_cast<std::uint32_t>(threshold);
}

}  // namespace lthfunc
