// Work lists that are kept from layer to layer; needs no GPU.
#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/cuda/work_list.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

cuda::Slots SomeSlots(bool hopper) {
  cuda::Slots slots;
  for (const int dim : {64, 128, 256}) {
    for (const cuda::Kernel kernel :
         {cuda::Kernel::kSimple, cuda::Kernel::kStream, cuda::Kernel::kPanel}) {
      slots.Set(kernel, dim, 264);
    }
    if (hopper) slots.Set(cuda::Kernel::kPanel90, dim, 132);
  }
  // Where the strides of keys and values agree, as they lie in one memory here.
  if (hopper) slots.Set(cuda::Kernel::kLatent90, 576, 132);
  slots.Set(cuda::Kernel::kWide, 576, 132);
  return slots;
}

std::string TextOf(const cuda::WorkList& list) {
  std::string text;
  const auto add = [&text](const auto& values) {
    using Value = std::decay_t<decltype(values[0])>;
    text.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Value));
    text += '|';
  };
  for (const cuda::Tile& tile : list.tiles()) {
    for (const int64_t value :
         {int64_t{tile.kv_head}, int64_t{tile.run_first}, int64_t{tile.run_end},
          int64_t{tile.masked}, int64_t{tile.segments}, tile.state_first}) {
      text += std::to_string(value) + ' ';
    }
    add(std::vector<cuda::Half>(std::begin(tile.half), std::end(tile.half)));
  }
  add(list.runs());
  add(list.ids());
  add(list.masks());
  for (const cuda::Segment& segment : list.segments()) {
    for (const int64_t value : {int64_t{segment.tile}, int64_t{segment.block_first},
                                int64_t{segment.blocks}, segment.state}) {
      text += std::to_string(value) + ' ';
    }
  }
  add(list.key_runs());
  add(list.split_tiles());
  add(list.row_strides());
  for (const cuda::Launch& launch : list.launches()) {
    for (const int64_t value :
         {static_cast<int64_t>(launch.kernel), static_cast<int64_t>(launch.format),
          int64_t{launch.dim}, int64_t{launch.first}, int64_t{launch.count}, int64_t{launch.slots},
          launch.blocks}) {
      text += std::to_string(value) + ' ';
    }
  }
  return text + std::to_string(list.state_floats());
}

TEST_CASE("a list that is kept is the one that would be made") {
  Rng rng(7);
  cuda::WorkList kept;
  const Pattern patterns[] = {*Pattern::Parse("causal", 2), *Pattern::Parse("window(300)", 2),
                              *Pattern::Parse("causal", 2), *Pattern::Parse("s2(64, 2, 3)", 2)};
  std::vector<BlockSet> keys = {BlockSet::Range(0, 40), BlockSet::Range(3, 30)};
  int same = 0;
  std::string last;
  // Each step changes little, often nothing.
  constexpr int dims[] = {64, 128, 256, 576};
  int pattern = 0, set = 0, dim = 128, stride = 0, hopper = 1;
  int64_t queries = 700, tokens = 2500;
  float scale = 1;
  bool host = false;
  for (int step = 0; step < 300; ++step) {
    switch (rng.Below(12)) {
      case 0:
        pattern = static_cast<int>(rng.Below(4));
        break;
      case 1:
        set = static_cast<int>(rng.Below(2));
        break;
      case 2:
        dim = dims[rng.Below(4)];
        break;
      case 3:
        stride = static_cast<int>(rng.Below(2)) * 8;
        break;
      case 4:
        hopper = static_cast<int>(rng.Below(2));
        break;
      case 5:
        queries = rng.Between(500, 530);
        break;
      case 6:
        tokens = rng.Between(2490, 2500);
        break;
      case 7:
        scale = rng.Below(2) == 0 ? 1.0f : -1.0f;
        break;
      case 8:
        host = rng.Below(2) == 0;
        break;
      default:
        break;
    }
    const int v_head_dim = std::min(dim, 512);
    KvTable table(DType::kBF16, 0, 2, dim, v_head_dim, 40);
    table.set_memory(MemoryKind::kDevice);
    static const std::byte page[1] = {};
    for (int64_t block = 0; block < 40; ++block) {
      for (int head = 0; head < 2; ++head) {
        table.Set(head, block, {page, page, dim + stride, dim});
      }
    }
    AttendArgs args;
    args.q = TensorView::Contiguous(nullptr, DType::kBF16, queries, 8, dim);
    args.q_ranges = {{tokens - queries, tokens}};
    args.heads = {0, 8};
    args.kv_tokens = tokens;
    args.group = 4;
    args.kv = &table;
    args.pattern = &patterns[pattern];
    args.keys = &keys[static_cast<size_t>(set)];
    args.scale = scale;
    args.memory = host ? MemoryKind::kHost : MemoryKind::kDevice;
    args.into = {nullptr, nullptr, queries, 8, v_head_dim};
    const bool keeps = kept.Keeps({&args, 1}, SomeSlots(hopper != 0));
    kept.Make({&args, 1}, SomeSlots(hopper != 0));
    CHECK(kept.Keeps({&args, 1}, SomeSlots(hopper != 0)) == (queries >= 512));
    CHECK(kept.may_keep() == (queries >= 512));
    cuda::WorkList fresh;
    CHECK_FALSE(fresh.may_keep());
    fresh.Make({&args, 1}, SomeSlots(hopper != 0));
    const std::string text = TextOf(kept);
    INFO("step " << step);
    REQUIRE(text == TextOf(fresh));
    if (keeps) REQUIRE(text == last);
    same += text == last ? 1 : 0;
    last = text;
  }
  CHECK(same > 50);
  CHECK(same < 250);
}

}  // namespace
}  // namespace annulus
