// The machine: takes the instructions of a program in turn.
//
// Instructions next to each other that never mix examples run tile by tile, so that what one has written is still in
// a cache when the next reads it; threads share the tiles. The others are split by rows. Sums over tiles are added up
// in one order, so results don't depend on the number of threads. Local buffers hold one tile at a time and so stay in
// a cache; each thread has the copy of its first tile.
#include <stdexcept>
#include <unordered_map>

#include "execution.h"
#include "parallel.h"

namespace lthfunc {
namespace {

using Kernel = void (*)(const i64*, Workspace&, Part);

constexpr Kernel kernels[] = {
#define INSTRUCTION(name, ...)                                        \
  [](const i64* row, Workspace& workspace, Part part) {               \
    name(*reinterpret_cast<const name##_row*>(row), workspace, part); \
  },
#include "instructions.def"
};

// Vectors from which a second thread is worth waking: some 10 µs of work.
constexpr i64 WORTH_A_THREAD = 30'000;

void execute(const i64* row, Workspace& workspace, Part part) { kernels[head(row).opcode](row, workspace, part); }

void run_rows(const i64* row, Workspace& workspace, bool threads) {
  const i64 rows = head(row).rows;
  if (!threads || head(row).split == split_whole || head(row).work < WORTH_A_THREAD)
    return execute(row, workspace, {0, workspace.tiles, 0, rows});
  parallel_for(0, rows, 1, [&](i64 from, i64 to) { execute(row, workspace, {0, workspace.tiles, from, to}); });
}

// The tiles' own sums, added up in the order of the tiles: what one thread would have done, tile after tile.
void add_up(const i64* row, const Workspace& workspace) {
  const auto add = [&](i64 first, i64 count) {
    parallel_for(0, count, 4096, [&](i64 from, i64 to) {
      float* const total = workspace.gradients + first;
      for (i64 tile = 0; tile < workspace.tiles; ++tile) {
        const float* const part = workspace.partials + tile * workspace.numbers + first;
        for (i64 k = from; k < to; ++k) total[k] = tile ? total[k] + part[k] : part[k];
      }
    });
  };
  if (head(row).opcode == op_weight_gradients) {
    const auto& op = *reinterpret_cast<const weight_gradients_row*>(row);
    add(op.gradients, workspace.lists[op.starts + op.rows * op.blocks]);
    if (op.bias >= 0) add(op.bias, op.rows);
  } else if (head(row).opcode == op_dense_convolution_gradients) {
    const auto& op = *reinterpret_cast<const dense_convolution_gradients_row*>(row);
    add(op.gradients, workspace.lists[op.starts + op.rows]);
    if (op.bias >= 0) add(op.bias, op.rows);
  } else if (head(row).opcode == op_rolling_gradients) {
    const auto& op = *reinterpret_cast<const rolling_gradients_row*>(row);
    add(op.gradients, workspace.lists[op.starts + op.rows * op.blocks]);
  } else if (head(row).opcode == op_token_normalise_gradient) {
    const auto& op = *reinterpret_cast<const token_normalise_gradient_row*>(row);
    if (op.weight_gradient >= 0) add(op.weight_gradient, op.channels);
    if (op.bias_gradient >= 0) add(op.bias_gradient, op.channels);
  } else {
    const auto& op = *reinterpret_cast<const group_normalise_gradient_row*>(row);
    if (op.weight_gradient >= 0) add(op.weight_gradient, op.rows * op.channels);
    if (op.bias_gradient >= 0) add(op.bias_gradient, op.rows * op.channels);
  }
}

// Instructions that find local buffers in a copy of them.
std::vector<i64> moved(const Program& program, i64 begin, i64 end, i64 copy) {
  std::vector<i64> rows(program.row(begin), program.row(end));
  for (const auto& place : program.local_places)
    if (begin <= place.row && place.row < end)
      rows[static_cast<std::size_t>((place.row - begin) * program.width + place.column)] += copy * program.local;
  return rows;
}

void run_tiles(const Program& program, i64 begin, i64 end, Workspace& workspace, bool threads) {
  i64 work = 0;
  for (i64 k = begin; k < end; ++k) work += head(program.row(k)).work;
  threads = threads && work >= WORTH_A_THREAD;
  const auto tiles = [&](i64 from, i64 to) {
    Workspace mine = workspace;
    if (!threads) mine.partials = nullptr;
    const bool elsewhere = from > 0 && program.local > 0;
    const std::vector<i64> copy = elsewhere ? moved(program, begin, end, from) : std::vector<i64>();
    const i64* const rows = elsewhere ? copy.data() : program.row(begin);
    for (i64 tile = from; tile < to; ++tile) {
      if (threads) mine.gradients = workspace.partials + tile * workspace.numbers;
      for (i64 k = 0; k < end - begin; ++k) {
        const i64* const row = rows + k * program.width;
        execute(row, mine, {tile, tile + 1, 0, head(row).rows});
      }
    }
  };
  if (!threads) return tiles(0, workspace.tiles);
  parallel_for(0, workspace.tiles, 1, tiles);
  for (i64 k = begin; k < end; ++k)
    if (head(program.row(k)).split == split_sums) add_up(program.row(k), workspace);
}

std::mutex guard;
std::unordered_map<i64, std::shared_ptr<const Program>> programs;

}  // namespace

void run_step(const Program& program, i64 begin, i64 end, Workspace& workspace, bool threads) {
  const auto tilewise = [&](i64 k) {
    const i64 split = head(program.row(k)).split;
    return split == split_by_tiles || split == split_sums;
  };
  for (i64 k = begin; k < end;) {
    if (!tilewise(k)) {
      run_rows(program.row(k++), workspace, threads);
      continue;
    }
    const i64 first = k;
    while (k < end && tilewise(k)) ++k;
    run_tiles(program, first, k, workspace, threads);
  }
}

i64 keep_program(const std::shared_ptr<Program>& program) {
  static i64 made = 0;
  Verifier(*program).check();
  const std::lock_guard<std::mutex> lock(guard);
  programs[++made] = program;
  return made;
}

void free_program(i64 number) {
  const std::lock_guard<std::mutex> lock(guard);
  programs.erase(number);
}

std::shared_ptr<const Program> program_of(i64 number) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = programs.find(number);
  if (found == programs.end()) throw std::invalid_argument("lthfunc: no program " + std::to_string(number));
  return found->second;
}

}  // namespace lthfunc
