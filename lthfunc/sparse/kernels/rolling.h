// Rows of an image that roll through a room of their own.
//
// A convolution reads each place of an image as often as survivors ask for it. The few rows that it reads at once are
// made one after the other, in the place of those that are not read any more, and between two of them it takes a row of
// outputs, some columns at a time: what these read, of all channels, stays in a first-level cache, which gives more
// than twice as many vectors as a second-level cache. What rows are made of comes from memory meanwhile.
#pragma once

#include "batch_sums.h"

namespace lthfunc {
namespace {

// The room: rows of all channels, with the halo around the image on both sides.
struct Rolling {
  vec* room;
  i64 channels, height, width, halo;

  i64 rows() const { return 2 * halo + 1; }
  i64 row() const { return width + 2 * halo; }
  i64 channel() const { return rows() * row(); }
  // Where row y of the image lies, up to `halo` rows above or below it.
  vec* at(i64 y) const { return room + (y + rows()) % rows() * row(); }
};

template <typename Row>
Rolling rolling_of(const Row& op, const Workspace& m, i64 tile) {
  return {m.activations + op.room + tile * op.room_tile, op.channels, op.height, op.width, op.halo};
}

// Neighbouring columns of a row of an image, of numbers of either kind.
struct PlacesOfRow {
  void* first;
  bool half;
  i64 y, height, row, tile;  // the row's number, and steps to the next row and the next tile

  PlacesOfRow moved(i64 by) const {
    PlacesOfRow other = *this;
    other.first = static_cast<char*>(first) + by * bytes();
    return other;
  }
  i64 bytes() const { return half ? BYTES / 2 : BYTES; }
};
#define LTHFUNC_PLACES(name)                                                                                     \
  places_at(m.activations, op.name##_half,                                                                       \
            op.name + tile * op.name##_tile + channel * op.name##_channel + y * op.name##_row + x, y, op.height, \
            op.name##_row, op.name##_tile)
inline PlacesOfRow places_at(vec* activations, i64 half, i64 at, i64 y, i64 height, i64 row, i64 tile) {
  return PlacesOfRow{activations, half != 0, y, height, row, tile}.moved(at);
}

template <int Count>
LTHFUNC_INLINE void read_places(const PlacesOfRow& places, vec (&to)[Count]) {
  const auto* const whole = static_cast<const vec*>(places.first);
  const auto* const half = static_cast<const halves*>(places.first);
  if (places.half) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Count; ++s) to[s] = read(half[s]);
  } else {
    LTHFUNC_UNROLL
    for (int s = 0; s < Count; ++s) to[s] = whole[s];
  }
}

// Numbers as they are held there.
template <int Count>
LTHFUNC_INLINE void write_places(const PlacesOfRow& places, const vec (&from)[Count], bool past_caches) {
  auto* const whole = static_cast<vec*>(places.first);
  auto* const half = static_cast<halves*>(places.first);
  if (places.half) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Count; ++s) past_caches ? stream(half[s], from[s]) : write(half[s], from[s]);
  } else if (past_caches) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Count; ++s) stream(whole[s], from[s]);
  } else {
    LTHFUNC_UNROLL
    for (int s = 0; s < Count; ++s) whole[s] = from[s];
  }
}

// Fetches the columns so many rows later: behind an image's last row comes the next tile's first. A few at a time
// between products, since a processor has few places for what it waits for.
template <int Count>
LTHFUNC_INLINE void fetch_later(const PlacesOfRow& places, i64 on) {
  const bool same = places.y + on < places.height;
  const auto later = places.moved(same ? on * places.row : (on - places.height) * places.row + places.tile);
  const char* const from = static_cast<const char*>(later.first);
  LTHFUNC_UNROLL
  for (int s = 0; s < Count; ++s) fetch(from + s * places.bytes());
}

// Makes row y: write(channel, its places).
template <typename Write>
void make_row(const Rolling& rolling, i64 y, Write write) {
  vec* to = rolling.at(y);
  const bool inside = y >= 0 && y < rolling.height;
  for (i64 channel = 0; channel < rolling.channels; ++channel, to += rolling.channel()) {
    if (!inside) {
      std::fill(to, to + rolling.row(), vec{});
      continue;
    }
    vec* const places = to + rolling.halo;
    std::fill(to, places, vec{});
    write(channel, places);
    std::fill(places + rolling.width, places + rolling.width + rolling.halo, vec{});
  }
}

// each(y) for every row of the image, once those around it are there, which make(y) makes.
template <typename Make, typename Each>
void roll(const Rolling& rolling, Make make, Each each) {
  for (i64 y = -rolling.halo; y < rolling.halo; ++y) make(y);
  for (i64 y = 0; y < rolling.height; ++y) {
    make(y + rolling.halo);
    each(y);
  }
}

// Rows of lists that run in turn over one block after the other, and keep their sums meanwhile.
constexpr i64 ROWS_IN_TURN = 16;

// each(row, block) for all rows of all lists.
template <typename Each>
LTHFUNC_INLINE void in_blocks(i64 rows, i64 blocks, Each each) {
  for (i64 from = 0; from < rows; from += ROWS_IN_TURN)
    for (i64 block = 0; block < blocks; ++block)
      for (i64 row = from; row < std::min(rows, from + ROWS_IN_TURN); ++row) each(row, block);
}

// each(x, a kernel for so many columns) for a row's columns, in nearly even parts.
template <typename Kernel, typename Each>
void in_columns(i64 width, const Kernel (&kernels)[ROLLING_COLUMNS], Each each) {
  const i64 pieces = (width + ROLLING_COLUMNS - 1) / ROLLING_COLUMNS;
  for (i64 piece = 0, x = 0; piece < pieces; ++piece) {
    const i64 columns = width / pieces + (piece < width % pieces);
    each(x, kernels[columns - 1]);
    x += columns;
  }
}
#define LTHFUNC_FOR_COLUMNS(function) \
  {function<1>, function<2>, function<3>, function<4>, function<5>, function<6>, function<7>, function<8>}

// The room and lists of `channels`, each with offsets for every row of the room; returns how many entries these have.
template <typename Row>
i64 verify_rolling(const Row& op, Verifier& v) {
  v.require(op.channels > 0 && op.height >= 0 && op.width >= 0, "channels, height and width: out of range");
  v.require(op.halo >= 1 && op.halo <= ROLLING_HALO, "halo: 1 to ROLLING_HALO");
  const i64 rows = 2 * op.halo + 1, row = op.width + 2 * op.halo;
  v.activations("room", op.room, {{v.tiles, op.room_tile}, {op.channels, rows * row}, {rows, row}, {row, 1}});
  v.require(op.blocks > 0 && op.rows * op.blocks < i64{1} << 32, "blocks: out of range");
  const i64 entries = v.starts("starts", op.starts, op.rows * op.blocks + 1);
  const Range reads = v.offsets("offsets", op.offsets, rows * entries);
  v.require(entries == 0 || op.width == 0 || (reads.low >= 0 && reads.high + op.width <= op.channels * rows * row),
            "offsets: outside the room");
  return entries;
}

}  // namespace
}  // namespace lthfunc
