// The operators lthfunc::… of PyTorch that find out which weights survive. Their results have memory already.
#include <algorithm>

#include "survivors.h"
#include "tensors.h"

namespace lthfunc {
namespace {

constexpr i64 MOST = i64{1} << 31;

void find_largest(const Tensor& scores, const Tensor& taken, const Tensor& found) {
  const i64 takens = taken.numel();
  const std::vector<i64> places =
      largest(data<float>("scores", scores, 0), scores.numel(), data<i64>("taken", taken, 0), takens, found.numel());
  std::copy(places.begin(), places.end(), data<i64>("found", found, 0));
}

void merge_places(const Tensor& remaining, const Tensor& numbers, const Tensor& coming, const Tensor& places,
                  const Tensor& sources) {
  const i64 count = remaining.numel(), comings = coming.numel();
  merge(data<i64>("remaining", remaining, 0), data<i64>("numbers", numbers, count), count,
        data<i64>("coming", coming, 0), comings, data<i64>("places", places, count + comings),
        data<i64>("sources", sources, count + comings));
}

void make_matrix_lists(const Tensor& places, i64 rows, i64 columns, bool transposed, const Tensor& addresses, i64 block,
                       const Tensor& starts, const Tensor& offsets, const Maybe& which) {
  require(rows > 0 && columns > 0 && block > 0 && rows < MOST && columns < MOST, "sizes out of range");
  const i64 count = places.numel(), read = transposed ? rows : columns, blocks = (read + block - 1) / block;
  const i64* const at = data<i64>("addresses", addresses, read);
  require(count < MOST && std::all_of(
                              at, at + read, [](i64 each) { return each >= 0 && each < MOST / BYTES; }),
          "a list reaches further than 32 bits count");
  matrix_lists({data<i64>("places", places, 0), count, rows, columns}, transposed, at, block, blocks,
               data<i32>("starts", starts, (transposed ? columns : rows) * blocks + 1),
               data<i32>("offsets", offsets, count), which ? data<i32>("which", *which, count) : nullptr);
}

}  // namespace
}  // namespace lthfunc

STABLE_TORCH_LIBRARY_FRAGMENT(lthfunc, library) {
  library.def("largest(Tensor scores, Tensor taken, Tensor(a!) found) -> ()");
  library.def(
      "merge_places(Tensor remaining, Tensor numbers, Tensor coming, Tensor(a!) places, Tensor(b!) sources) -> ()");
  library.def(
      "matrix_lists(Tensor places, int rows, int columns, bool transposed, Tensor addresses, int block, "
      "Tensor(a!) starts, Tensor(b!) offsets, Tensor(c!)? which) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("largest", TORCH_BOX(&lthfunc::find_largest));
  library.impl("merge_places", TORCH_BOX(&lthfunc::merge_places));
  library.impl("matrix_lists", TORCH_BOX(&lthfunc::make_matrix_lists));
}
