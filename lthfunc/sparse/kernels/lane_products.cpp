// Products of two values and softmax, lane by lane: attention that is written by hand.
#include <algorithm>

#include "verify.h"

namespace lthfunc {
namespace {

// A block of I × J sums, which stay in registers.
template <int I, int J>
void product_block(const lane_products_row& op, const vec* a, const vec* b, vec* out) {
  vec sum[I][J] = {};
  for (i64 k = 0; k < op.count; ++k) {
    vec right[J];
    LTHFUNC_UNROLL
    for (int j = 0; j < J; ++j) right[j] = b[j * op.b_column + k * op.b_step];
    LTHFUNC_UNROLL
    for (int i = 0; i < I; ++i) {
      const vec left = a[i * op.a_row + k * op.a_step];
      LTHFUNC_UNROLL
      for (int j = 0; j < J; ++j) sum[i][j] += left * right[j];
    }
  }
  LTHFUNC_UNROLL
  for (int i = 0; i < I; ++i) {
    LTHFUNC_UNROLL
    for (int j = 0; j < J; ++j) {
      vec* const to = out + i * op.out_row + j * op.out_column;
      *to = op.accumulate ? *to + sum[i][j] : sum[i][j];
    }
  }
}

template <int I>
void product_rows(const lane_products_row& op, const vec* a, const vec* b, vec* out) {
  i64 j = 0;
  for (; j + 4 <= op.width; j += 4) product_block<I, 4>(op, a, b + j * op.b_column, out + j * op.out_column);
  for (; j < op.width; ++j) product_block<I, 1>(op, a, b + j * op.b_column, out + j * op.out_column);
}

}  // namespace

// a: (heads, height, count); b: (heads, count, width); out: (heads, height, width) of each tile, each with steps of its
// own; out is neither a nor b.
void verify(const lane_products_row& op, Verifier& v) {
  v.activations("a", op.a, {{v.tiles, op.a_tile}, {op.rows, op.a_head}, {op.height, op.a_row}, {op.count, op.a_step}});
  v.activations("b", op.b,
                {{v.tiles, op.b_tile}, {op.rows, op.b_head}, {op.width, op.b_column}, {op.count, op.b_step}});
  v.activations("out", op.out,
                {{v.tiles, op.out_tile}, {op.rows, op.out_head}, {op.height, op.out_row}, {op.width, op.out_column}});
}

void lane_products(const lane_products_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 head = part.row; head < part.rows; ++head) {
      const vec* const a = m.activations + op.a + tile * op.a_tile + head * op.a_head;
      const vec* const b = m.activations + op.b + tile * op.b_tile + head * op.b_head;
      vec* const out = m.activations + op.out + tile * op.out_tile + head * op.out_head;
      i64 i = 0;
      for (; i + 4 <= op.height; i += 4) product_rows<4>(op, a + i * op.a_row, b, out + i * op.out_row);
      for (; i < op.height; ++i) product_rows<1>(op, a + i * op.a_row, b, out + i * op.out_row);
    }
}

// in, out: (channels, height, width) of each tile, of which a row is made one of shares, or of their logarithms.
void verify(const row_softmax_row& op, Verifier& v) {
  v.require(op.width > 0, "width: positive");
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
}

void row_softmax(const row_softmax_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel)
      for (i64 y = 0; y < op.height; ++y) {
        const vec* const in = LTHFUNC_AT(in);
        vec* const out = LTHFUNC_AT(out);
        vec most = in[0], sum{};
        for (i64 x = 1; x < op.width; ++x) most = max_or_nan(in[x], most);
        for (i64 x = 0; x < op.width; ++x) sum += exponential(in[x] - most);
        if (op.logarithms) {
          for (int lane = 0; lane < LANES; ++lane) most[lane] += std::log(sum[lane]);
          for (i64 x = 0; x < op.width; ++x) out[x] = in[x] - most;
        } else {
          const vec share = 1.0f / sum;
          for (i64 x = 0; x < op.width; ++x) out[x] = exponential(in[x] - most) * share;
        }
      }
}

// out, grad, into: as above; into may be grad.
void verify(const row_softmax_gradient_row& op, Verifier& v) {
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(grad, op.rows, op.height, op.width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
}

void row_softmax_gradient(const row_softmax_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel)
      for (i64 y = 0; y < op.height; ++y) {
        const vec *const out = LTHFUNC_AT(out), *const grad = LTHFUNC_AT(grad);
        vec* const into = LTHFUNC_AT(into);
        const vec* const gate = gate_of(op.gate, op.into, into);
        vec sum{};
        for (i64 x = 0; x < op.width; ++x) sum += op.logarithms ? grad[x] : grad[x] * out[x];
        for (i64 x = 0; x < op.width; ++x) {
          vec value = op.logarithms ? grad[x] - exponential(out[x]) * sum : (grad[x] - sum) * out[x];
          if (op.accumulate) value += into[x];
          into[x] = gated(value, gate, x);
        }
      }
}

}  // namespace lthfunc
