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

}  // namespace

// in: examples, channels, height, width, C order, uint8 or float32, any alignment. out: a row of a channel side by
// side, rows `out_row` apart. Lanes of missing examples become zero.
void verify(const load_inputs_row& op, Verifier& v) {
  LTHFUNC_INSIDE(out, op.channels, op.height, op.width);
  const i64 plane = op.height * op.width;
  v.require(plane < i64{1} << 31 && op.channels * plane < i64{1} << 31, "channels, height and width: out of range");
  v.require(op.kind >= 0 && op.kind < kinds && (v.program.kind == -1 || v.program.kind == op.kind),
            "kind: one known kind");
  v.constants("constants", op.constants, 2 * op.channels);
  v.program.kind = op.kind;
  v.program.stored = std::max(v.program.stored, op.channels * plane);
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
        const i64 from = tile * LANES * apart + channel * plane + y * width;
        if (op.kind == kind_uint8)
          load_row(static_cast<const std::uint8_t*>(m.inputs) + from, apart, examples, width, gain, shift, out);
        else
          load_row(static_cast<const float*>(m.inputs) + from, apart, examples, width, gain, shift, out);
      }
    }
  }
}

// out: (examples, features) floats, C order. in: features anywhere in a tile, by their addresses.
void verify(const store_outputs_row& op, Verifier& v) {
  v.activations("in", op.in, {{v.tiles, op.in_tile}}, v.list("addresses", op.addresses, op.rows));
  v.program.features = std::max(v.program.features, op.rows);
}

void store_outputs(const store_outputs_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
    for (i64 feature = 0; feature < op.rows; ++feature) {
      const vec value = m.activations[op.in + tile * op.in_tile + m.lists[op.addresses + feature]];
      for (i64 lane = 0; lane < examples; ++lane) m.outputs[(tile * LANES + lane) * op.rows + feature] = value[lane];
    }
  }
}

// The same the other way round.
void verify(const load_gradients_row& op, Verifier& v) {
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, v.list("addresses", op.addresses, op.rows));
  v.program.features = std::max(v.program.features, op.rows);
}

void load_gradients(const load_gradients_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
    for (i64 feature = 0; feature < op.rows; ++feature) {
      vec value{};
      for (i64 lane = 0; lane < examples; ++lane) value[lane] = m.outputs[(tile * LANES + lane) * op.rows + feature];
      m.activations[op.out + tile * op.out_tile + m.lists[op.addresses + feature]] = value;
    }
  }
}

}  // namespace lthfunc
