// Between a batch as a data set stores it and tiles of 16 examples.
#include <algorithm>

#include "verify.h"

namespace lthfunc {
namespace {

typedef std::uint8_t bytes __attribute__((vector_size(16)));

template <int... Index>
LTHFUNC_INLINE bytes mix(bytes a, bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index...);
#else
  return __builtin_shuffle(a, b, bytes{Index...});
#endif
}
LTHFUNC_INLINE bytes low(bytes a, bytes b) { return mix<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b); }
LTHFUNC_INLINE bytes high(bytes a, bytes b) {
  return mix<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
}

// Four rounds of interleaving transpose 16 × 16 bytes.
LTHFUNC_INLINE void transpose_bytes(bytes (&rows)[16]) {
  LTHFUNC_UNROLL
  for (int round = 0; round < 4; ++round) {
    bytes next[16];
    LTHFUNC_UNROLL
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = low(rows[i], rows[i + 8]);
      next[2 * i + 1] = high(rows[i], rows[i + 8]);
    }
    LTHFUNC_UNROLL
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

// 16 positions of 16 examples that lie `apart` elements from each other.
LTHFUNC_INLINE void load_block(const std::uint8_t* from, i64 apart, i64 examples, float gain, float shift, vec* out) {
  static const std::uint8_t nothing[16] = {};
  bytes block[16];
  LTHFUNC_UNROLL
  for (int lane = 0; lane < LANES; ++lane)
    std::memcpy(&block[lane], lane < examples ? from + lane * apart : nothing, 16);
  transpose_bytes(block);
  const ivec there = first_lanes(examples);
  LTHFUNC_UNROLL
  for (int p = 0; p < 16; ++p) {
    vec value;
    convert(reinterpret_cast<const std::uint8_t*>(&block[p]), value);
    value = value * gain - shift;
    out[p] = where(there, value, vec{});
  }
}

LTHFUNC_INLINE void load_block(const float* from, i64 apart, i64 examples, float gain, float shift, vec* out) {
  static const float nothing[16] = {};
  vec block[16];
  LTHFUNC_UNROLL
  for (int lane = 0; lane < LANES; ++lane) block[lane] = load(lane < examples ? from + lane * apart : nothing);
  transpose(block);
  const ivec there = first_lanes(examples);
  LTHFUNC_UNROLL
  for (int p = 0; p < 16; ++p) {
    const vec value = block[p] * gain - shift;
    out[p] = where(there, value, vec{});
  }
}

// One row of `width` positions; missing examples are zeros.
template <typename Number>
void load_row(const Number* from, i64 apart, i64 examples, i64 width, float gain, float shift, vec* out) {
  i64 x = 0;
  for (; x + 16 <= width; x += 16) load_block(from + x, apart, examples, gain, shift, out + x);
  if (x < width && width >= 16) return load_block(from + width - 16, apart, examples, gain, shift, out + width - 16);
  for (; x < width; ++x) {
    vec value{};
    for (i64 lane = 0; lane < examples; ++lane) value[lane] = static_cast<float>(from[lane * apart + x]) * gain - shift;
    out[x] = value;
  }
}

// A row of tokens; missing examples are zeros. Numbers that floats don't hold stay out of any vocabulary's range.
void load_tokens(const i64* from, i64 apart, i64 examples, i64 width, vec* out) {
  for (i64 x = 0; x < width; ++x) {
    vec value{};
    for (i64 lane = 0; lane < examples; ++lane) value[lane] = static_cast<float>(from[lane * apart + x]);
    out[x] = value;
  }
}

// rows: (examples, features) floats, C order. Features lie anywhere in a tile, by their addresses; where 16 of them lie
// side by side, as in the row of an image, they are transposed at once.
void verify_rows(const char* name, i64 place, i64 step, i64 addresses, i64 features, i64 first, const Verifier& v) {
  v.activations(name, place, {{v.tiles, step}}, v.list("addresses", addresses, features));
  v.require(first >= 0, "first: not negative");
}

LTHFUNC_INLINE bool side_by_side(const i32* addresses) {
  bool all = true;
  for (i32 k = 1; k < LANES; ++k) all &= addresses[k] - addresses[0] == k;
  return all;
}

void store_rows(const vec* tile, const i32* addresses, i64 features, i64 examples, float* rows) {
  for (i64 feature = 0; feature < features;) {
    if (feature + LANES <= features && side_by_side(addresses + feature)) {
      vec block[LANES];
      LTHFUNC_UNROLL
      for (int k = 0; k < LANES; ++k) block[k] = tile[addresses[feature] + k];
      transpose(block);
      for (i64 lane = 0; lane < examples; ++lane) store(rows + lane * features + feature, block[lane]);
      feature += LANES;
    } else {
      const vec value = tile[addresses[feature]];
      for (i64 lane = 0; lane < examples; ++lane) rows[lane * features + feature] = value[lane];
      ++feature;
    }
  }
}

void load_rows(const float* rows, const i32* addresses, i64 features, i64 examples, vec* tile) {
  for (i64 feature = 0; feature < features;) {
    if (feature + LANES <= features && side_by_side(addresses + feature)) {
      load_block(rows + feature, features, examples, 1.0f, 0.0f, tile + addresses[feature]);
      feature += LANES;
    } else {
      vec value{};
      for (i64 lane = 0; lane < examples; ++lane) value[lane] = rows[lane * features + feature];
      tile[addresses[feature]] = value;
      ++feature;
    }
  }
}

// Rows of tiles as numbers of examples, those of an instruction after those of the ones before it.
template <typename Row>
void store_tiles(const Row& op, const Workspace& m, Part part, float* to) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    store_rows(m.activations + op.in + tile * op.in_tile, m.lists + op.addresses, op.rows,
               std::min<i64>(LANES, m.examples - tile * LANES), to + op.first * m.examples + tile * LANES * op.rows);
}

}  // namespace

// in: examples, channels, height, width, C order, uint8, float32 or int64, any alignment. out: a row of a channel side
// by side, rows `out_row` apart. Lanes of missing examples become zero.
void verify(const load_inputs_row& op, Verifier& v) {
  LTHFUNC_INSIDE(out, op.channels, op.height, op.width);
  const i64 plane = op.height * op.width;
  v.require(plane < i64{1} << 31 && op.channels * plane < i64{1} << 31, "channels, height and width: out of range");
  v.require(op.first >= 0, "first: not negative");
  v.constants("constants", op.constants, 2 * op.channels);
  v.inputs(op.first + op.channels * plane, op.kind);
}

void load_inputs(const load_inputs_row& op, Workspace& m, Part part) {
  const i64 plane = op.height * op.width, apart = op.channels * plane;
  // Rows without a halo between them are one long row.
  const bool whole = op.out_row == op.width;
  const i64 rows = whole ? 1 : op.height, width = whole ? plane : op.width;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
    for (i64 channel = 0; channel < op.channels; ++channel) {
      const float gain = m.constants[op.constants + 2 * channel], shift = m.constants[op.constants + 2 * channel + 1];
      for (i64 y = 0; y < rows; ++y) {
        vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel + y * op.out_row;
        const i64 from = op.first * m.examples + tile * LANES * apart + channel * plane + y * width;
        if (op.kind == kind_uint8)
          load_row(static_cast<const std::uint8_t*>(m.inputs) + from, apart, examples, width, gain, shift, out);
        else if (op.kind == kind_int64)
          load_tokens(static_cast<const i64*>(m.inputs) + from, apart, examples, width, out);
        else
          load_row(static_cast<const float*>(m.inputs) + from, apart, examples, width, gain, shift, out);
      }
    }
  }
}

void verify(const store_outputs_row& op, Verifier& v) {
  verify_rows("in", op.in, op.in_tile, op.addresses, op.rows, op.first, v);
  v.outputs(op.first, op.rows);
}

void store_outputs(const store_outputs_row& op, Workspace& m, Part part) { store_tiles(op, m, part, m.outputs); }

void verify(const store_input_gradients_row& op, Verifier& v) {
  verify_rows("in", op.in, op.in_tile, op.addresses, op.rows, op.first, v);
  v.input_gradients(op.first + op.rows);
}

void store_input_gradients(const store_input_gradients_row& op, Workspace& m, Part part) {
  store_tiles(op, m, part, m.input_gradients);
}

void verify(const load_gradients_row& op, Verifier& v) {
  verify_rows("out", op.out, op.out_tile, op.addresses, op.rows, op.first, v);
  v.program.features = std::max(v.program.features, op.first + op.rows);
}

void load_gradients(const load_gradients_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    load_rows(m.outputs + op.first * m.examples + tile * LANES * op.rows, m.lists + op.addresses, op.rows,
              std::min<i64>(LANES, m.examples - tile * LANES), m.activations + op.out + tile * op.out_tile);
}

}  // namespace lthfunc
