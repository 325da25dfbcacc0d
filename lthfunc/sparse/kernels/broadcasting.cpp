// Sums, products and choices of two values that are broadcast to one shape, and numbers that are the same for every
// example.
#include <algorithm>

#include "single.h"
#include "verify.h"

namespace lthfunc {
namespace {

enum Combined : i64 {
#define COMBINED(name) combined_##name,
#include "instructions.def"
  COMBINATIONS
};

// there: lanes of examples; in others nothing is chosen, since an infinite number would make NaN of their gradients.
LTHFUNC_INLINE vec combined(i64 kind, vec a, vec b, float number, ivec there) {
  switch (kind) {
    case combined_sum: return a + b * number;
    case combined_product: return a * b;
    case combined_maximum: return where(b == b, where(a < b, b, a), b);
    case combined_minimum: return where(b == b, where(b < a, b, a), b);
    case combined_share: return where(a < b, vec{}, where(a == b, broadcast(0.5f), broadcast(1.0f)));
    default: return where((b == vec{}) & there, broadcast(number), a);
  }
}

// Of a kind that is known when this is compiled: it would be asked for each vector.
template <i64 Kind>
void combine_as(const combine_row& op, Workspace& m, Part part) {
  const float number = m.constants[op.number];
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const ivec there = first_lanes(m.examples - tile * LANES);
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      for (i64 y = 0; y < op.height; ++y) {
        const vec *const a = LTHFUNC_AT(a), *const b = LTHFUNC_AT(b);
        vec* const out = LTHFUNC_AT(out);
        for (i64 x = 0; x < op.width; ++x)
          out[x] = combined(Kind, a[x * op.a_column], b[x * op.b_column], number, there);
      }
    }
  }
}
constexpr void (*combinations[])(const combine_row&, Workspace&, Part) = {
#define COMBINED(name) combine_as<combined_##name>,
#include "instructions.def"
};

}  // namespace

// a, b: broadcast to (channels, height, width) of each tile by steps of 0; out: none of them.
void verify(const combine_row& op, Verifier& v) {
  v.activations("a", op.a,
                {{v.tiles, op.a_tile}, {op.rows, op.a_channel}, {op.height, op.a_row}, {op.width, op.a_column}});
  v.activations("b", op.b,
                {{v.tiles, op.b_tile}, {op.rows, op.b_channel}, {op.height, op.b_row}, {op.width, op.b_column}});
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
  v.require(op.kind >= 0 && op.kind < COMBINATIONS, "kind: a known one");
  v.constants("number", op.number);
}

void combine(const combine_row& op, Workspace& m, Part part) { combinations[op.kind](op, m, part); }

void combine_single(const combine_row& op, Workspace& m) {
  const float number = m.constants[op.number];
  // Channels of one place are as good as a row, where they lie side by side or are repeated.
  const bool one = op.height * op.width == 1 && op.out_channel == 1 && op.a_channel <= 1 && op.b_channel <= 1;
  const i64 channels = one ? 1 : op.rows, width = one ? op.rows : op.width;
  const i64 a_step = one ? op.a_channel : op.a_column, b_step = one ? op.b_channel : op.b_column;
  for (i64 channel = 0; channel < channels; ++channel) {
    for (i64 y = 0; y < op.height; ++y) {
      const float* const a = place(m, op.a + channel * op.a_channel + y * op.a_row);
      const float* const b = place(m, op.b + channel * op.b_channel + y * op.b_row);
      float* const out = place(m, op.out + channel * op.out_channel + y * op.out_row);
      const auto side = [](const float* from, i64 step, i64 x, i64 count) {
        return step ? load(from + x, count) : broadcast(*from);
      };
      for (i64 x = 0; x < width; x += LANES) {
        const i64 count = std::min<i64>(LANES, width - x);
        const vec value =
            combined(op.kind, side(a, a_step, x, count), side(b, b_step, x, count), number, first_lanes(count));
        store(out + x, value, count);
      }
    }
  }
}

// grad: (rows · over_channels, height · over_height, width · over_width) of each tile, of which no axis has both
// factors; b: broadcast to that by steps of 0, or nothing. into and its gate: (rows, height, width), none of the
// others.
void verify(const combine_gradient_row& op, Verifier& v) {
  for (const i64 over : {op.over_channels, op.over_height, op.over_width})
    v.require(over > 0 && over < 1 << 24, "over: positive");
  v.require(op.height > 0 && op.height < 1 << 24 && op.width > 0 && op.width < 1 << 24, "sides: positive");
  const i64 channels = op.rows + op.over_channels - 1, height = op.height + op.over_height - 1,
            width = op.width + op.over_width - 1;
  LTHFUNC_INSIDE(grad, channels, height, width);
  if (op.b >= 0)
    v.activations("b", op.b,
                  {{v.tiles, op.b_tile}, {channels, op.b_channel}, {height, op.b_row}, {width, op.b_column}});
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
  v.constants("number", op.number);
}

void combine_gradient(const combine_gradient_row& op, Workspace& m, Part part) {
  const float number = m.constants[op.number];
  const bool plain = op.over_channels == 1 && op.over_height == 1 && op.over_width == 1;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      for (i64 y = 0; y < op.height; ++y) {
        const vec *const grad = LTHFUNC_AT(grad), *const b = op.b < 0 ? nullptr : LTHFUNC_AT(b);
        vec* const into = LTHFUNC_AT(into);
        const vec* const gate = gate_of(op.gate, op.into, into);
        for (i64 x = 0; x < op.width; ++x) {
          vec total{};
          if (plain) {
            total = b ? grad[x] * b[x * op.b_column] : grad[x];
          } else {
            for (i64 c = 0; c < op.over_channels; ++c) {
              for (i64 i = 0; i < op.over_height; ++i) {
                const vec* const from = grad + c * op.grad_channel + i * op.grad_row + x;
                const vec* const factor = b ? b + c * op.b_channel + i * op.b_row + x * op.b_column : nullptr;
                vec row{};
                for (i64 j = 0; j < op.over_width; ++j) row += factor ? from[j] * factor[j * op.b_column] : from[j];
                total += row;
              }
            }
          }
          total = total * number;
          if (op.accumulate) total += into[x];
          into[x] = gated(total, gate, x);
        }
      }
    }
  }
}

// addresses: vectors to each number's place in a tile. constant: whether they are constants, rather than values.
void verify(const load_numbers_row& op, Verifier& v) {
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, v.list("addresses", op.addresses, op.rows));
  if (op.constant)
    v.constants("first", op.first, op.rows);
  else
    v.values("first", op.first, {{op.rows, 1}});
}

void load_numbers(const load_numbers_row& op, Workspace& m, Part part) {
  const float* const from = (op.constant ? m.constants : m.values) + op.first;
  const i32* const addresses = m.lists + op.addresses;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    vec* const out = m.activations + op.out + tile * op.out_tile;
    for (i64 k = part.row; k < part.rows; ++k) out[addresses[k]] = broadcast(from[k]);
  }
}

void load_numbers_single(const load_numbers_row& op, Workspace& m) {
  const float* const from = (op.constant ? m.constants : m.values) + op.first;
  for (i64 k = 0; k < op.rows; ++k) place(m, op.out)[m.lists[op.addresses + k]] = from[k];
}

// gradients: one for each row, of what lies at its address in each tile and at ny × nx places from there.
void verify(const number_gradients_row& op, Verifier& v) {
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {op.ny, op.grad_y}, {op.nx, op.grad_x}},
                v.list("addresses", op.addresses, op.rows));
  v.gradients("gradients", op.gradients, op.rows);
}

void number_gradients(const number_gradients_row& op, Workspace& m, Part part) {
  const i32* const addresses = m.lists + op.addresses;
  for (i64 k = part.row; k < part.rows; ++k) {
    vec total{};
    for (i64 tile = part.tile; tile < part.tiles; ++tile) {
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + addresses[k];
      vec image{};
      for (i64 y = 0; y < op.ny; ++y) {
        vec row{};
        for (i64 x = 0; x < op.nx; ++x) row += grad[y * op.grad_y + x * op.grad_x];
        image += row;
      }
      total += image;
    }
    const float found = sum(total);
    m.gradients[op.gradients + k] = op.accumulate ? m.gradients[op.gradients + k] + found : found;
  }
}

}  // namespace lthfunc
