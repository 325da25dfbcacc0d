// Mean cross entropy over a batch (Goodfellow et al. 2016, eq. 6.30, in its stable form), with its gradient.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "verify.h"

namespace lthfunc {

namespace {

// Of targets that count for nothing, as PyTorch has it.
constexpr i64 IGNORED = -100;

i64 counted(const Workspace& m, i64 places) {
  i64 count = 0;
  for (i64 k = 0; k < m.examples * places; ++k) count += m.targets[k] != IGNORED;
  return count;
}

}  // namespace

// in, grad: one vector for each class and place, anywhere in a tile; grad may be in. Targets: int64, one for each place
// of an example, place after place.
void verify(const cross_entropy_row& op, Verifier& v) {
  v.require(op.classes > 0 && op.places > 0, "classes and places: positive");
  const auto listed = [&](const char* name, i64 first, i64 tile, i64 list) {
    const Range classes = v.list(name, list, op.classes), places = v.list(name, list + op.classes, op.places);
    v.activations(name, first, {{v.tiles, tile}}, {classes.low + places.low, classes.high + places.high});
  };
  listed("in", op.in, op.in_tile, op.addresses);
  if (op.grad >= 0) listed("grad", op.grad, op.grad_tile, op.gradients);
  v.program.targets = std::max(v.program.targets, op.places);
}

void cross_entropy(const cross_entropy_row& op, Workspace& m, Part) {
  const i32 *const addresses = m.lists + op.addresses, *const places = addresses + op.classes;
  const i32 *const into = m.lists + op.gradients, *const into_places = into + op.classes;
  const float share = 1.0f / static_cast<float>(counted(m, op.places));
  double total = 0;
  for (i64 tile = 0; tile < m.tiles; ++tile) {
    const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
    for (i64 place = 0; place < op.places; ++place) {
      const vec* const logits = m.activations + op.in + tile * op.in_tile + places[place];
      const i64* const targets = m.targets + tile * LANES * op.places + place;
      vec most = logits[addresses[0]];
      ivec winner{};
      for (i64 c = 1; c < op.classes; ++c) {
        const vec logit = logits[addresses[c]];
        // NaN counts as the largest, as it does to argmax.
        const ivec higher = (most == most) & ((logit <= most) == broadcast_int(0));
        most = where(higher, logit, most);
        winner = where(higher, broadcast_int(static_cast<i32>(c)), winner);
      }
      vec sum{};
      for (i64 c = 0; c < op.classes; ++c) sum += exponential(logits[addresses[c]] - most);
      ivec there{};
      for (i64 lane = 0; lane < examples; ++lane) {
        const i64 target = targets[lane * op.places];
        if (target == IGNORED) continue;
        if (target < 0 || target >= op.classes)
          throw std::out_of_range("target " + std::to_string(target) + " is none of " + std::to_string(op.classes) +
                                  " classes");
        there[lane] = -1;
        total += static_cast<double>(std::log(sum[lane]) + most[lane] - logits[addresses[target]][lane]);
        m.totals[1] += winner[lane] == target;
      }
      if (op.grad < 0) continue;
      vec* const grads = m.activations + op.grad + tile * op.grad_tile + into_places[place];
      const vec scale = share / sum;
      for (i64 c = 0; c < op.classes; ++c)
        grads[into[c]] = where(there, exponential(logits[addresses[c]] - most) * scale, vec{});
      for (i64 lane = 0; lane < examples; ++lane)
        if (there[lane]) grads[into[targets[lane * op.places]]][lane] -= share;
    }
  }
  m.totals[0] += total * static_cast<double>(share);
}

// in, out: one vector for each feature, anywhere in a tile; out is not in.
void verify(const log_softmax_row& op, Verifier& v) {
  v.activations("in", op.in, {{v.tiles, op.in_tile}}, v.list("addresses", op.addresses, op.rows));
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, v.list("out_addresses", op.out_addresses, op.rows));
}

void log_softmax(const log_softmax_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const vec* const in = m.activations + op.in + tile * op.in_tile;
    vec* const out = m.activations + op.out + tile * op.out_tile;
    const i32 *const from = m.lists + op.addresses, *const to = m.lists + op.out_addresses;
    vec most = in[from[0]], sum{};
    for (i64 c = 1; c < op.rows; ++c) most = max(in[from[c]], most);
    for (i64 c = 0; c < op.rows; ++c) sum += exponential(in[from[c]] - most);
    vec shift = most;
    for (int lane = 0; lane < LANES; ++lane) shift[lane] += std::log(sum[lane]);
    for (i64 c = 0; c < op.rows; ++c) out[to[c]] = in[from[c]] - shift;
  }
}

// out and grad share addresses; into has its own, and is none of them.
void verify(const log_softmax_gradient_row& op, Verifier& v) {
  const Range addresses = v.list("addresses", op.addresses, op.rows);
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, addresses);
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}}, addresses);
  v.activations("into", op.into, {{v.tiles, op.into_tile}}, v.list("into_addresses", op.into_addresses, op.rows));
}

void log_softmax_gradient(const log_softmax_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const vec* const out = m.activations + op.out + tile * op.out_tile;
    const vec* const grad = m.activations + op.grad + tile * op.grad_tile;
    vec* const into = m.activations + op.into + tile * op.into_tile;
    const i32 *const at = m.lists + op.addresses, *const to = m.lists + op.into_addresses;
    vec sum{};
    for (i64 c = 0; c < op.rows; ++c) sum += grad[at[c]];
    for (i64 c = 0; c < op.rows; ++c) {
      const vec value = grad[at[c]] - exponential(out[at[c]]) * sum;
      into[to[c]] = op.accumulate ? into[to[c]] + value : value;
    }
  }
}

}  // namespace lthfunc
