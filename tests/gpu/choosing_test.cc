// Keys chosen on a GPU: the units that a CPU chooses, ties included, and attention over them.
#include "attention/cuda/choosing.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "attention/cuda/cuda_backend.h"
#include "attention/reference/reference.h"
#include "attention/select/choose.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"
#include "tests/gpu/hopper.h"

namespace annulus {
namespace {

constexpr int kKvHeads = 2;

struct Question {
  std::string word;
  int64_t kv_tokens = 0;
  int64_t q_begin = 0;
  int64_t q_tokens = 0;
  DType dtype = DType::kBF16;
  int group = 2;
  int dim = 128;
  bool ties = false;
  bool gathered = false;  // a list of these choices is attended by rows put together
  int64_t slot_bytes = int64_t{1} << 30;
};

// A problem in host memory and on the device.
struct Asked {
  Asked(const Question& of, MemorySpace& on, Tensor queries, Tensor keys, Tensor values)
      : space(on),
        q(std::move(queries)),
        k(std::move(keys)),
        v(std::move(values)),
        pattern(Pattern::Parse(of.word, kKvHeads).value()),
        blocks(BlockSet::Range(0, BlocksOf(of.kv_tokens))),
        table(KvTable::FromTensors(k, v)) {
    const auto moved = [&](const Tensor& tensor) {
      Buffer host(tensor.size_bytes());
      std::memcpy(host.data(), tensor.data(), host.size());
      own.push_back(MovedTo(space, std::move(host)).value());
      return TensorView::Contiguous(own.back().data(), tensor.dtype(), tensor.tokens(),
                                    tensor.heads(), tensor.dim());
    };
    args.q = moved(q);
    const TensorView own_k = moved(k), own_v = moved(v);
    own_table = KvTable::FromTensors(own_k, own_v);
    own_table.set_memory(space.kind());
    into = MakePartial(space, of.q_tokens, q.heads(), v.dim()).value();
    args.q_ranges = {{of.q_begin, of.q_begin + of.q_tokens}};
    args.heads = {0, static_cast<int>(q.heads())};
    args.kv_tokens = of.kv_tokens;
    args.group = of.group;
    args.kv = &own_table;
    args.pattern = &pattern;
    args.keys = &blocks;
    args.scale = 1 / std::sqrt(static_cast<float>(of.dim));
    args.into = into.view;
    args.memory = space.kind();
  }

  MemorySpace& space;
  Tensor q, k, v;
  Pattern pattern;
  BlockSet blocks;
  KvTable table, own_table;
  std::vector<Buffer> own;
  PartialBuffer into;
  AttendArgs args;
};

// Of each head and row, as a CPU has them.
std::vector<std::vector<Candidate>> BestOnCpu(const Question& of, const Asked& asked) {
  const SelectRows rows{.selector = asked.pattern.selectors()[0].get(),
                        .q = asked.q,
                        .q_begin = of.q_begin,
                        .heads = asked.args.heads,
                        .group = of.group,
                        .kv_tokens = of.kv_tokens};
  const PageSummary form(*rows.selector, of.dim);
  std::vector<int64_t> units;
  const int64_t end = rows.selector->OwnUnit(rows.queries().end - 1, of.kv_tokens);
  for (int64_t unit = 0; unit < end; ++unit) units.push_back(unit);
  std::vector<std::vector<Candidate>> best(static_cast<size_t>(rows.heads.count * of.q_tokens));
  for (int kv_head = 0; kv_head < kKvHeads; ++kv_head) {
    const ScoredBy scored =
        SummariesOf(form, {.kv = &asked.table}, kv_head, units, of.kv_tokens).value();
    BestOf(rows, kv_head, 0, of.q_tokens, scored, absl::MakeSpan(best));
  }
  return best;
}

Pattern Bound(const Question& of, const Asked& asked,
              const std::vector<std::vector<Candidate>>& best) {
  const Selector& word = *asked.pattern.selectors()[0];
  KeyListData data;
  data.rows = KeyListData::Rows::kToken;
  data.block_tokens = word.unit_tokens();
  data.heads = asked.args.heads.count;
  data.q_begin = of.q_begin;
  data.begin = {0};
  for (size_t i = 0; i < best.size(); ++i) {
    const auto first = static_cast<int64_t>(data.keys.size());
    for (const Candidate& candidate : best[i]) data.keys.push_back(candidate.unit);
    const int64_t position = of.q_begin + static_cast<int64_t>(i) % of.q_tokens;
    data.keys.push_back(static_cast<int32_t>(word.OwnUnit(position, of.kv_tokens)));
    std::sort(data.keys.begin() + first, data.keys.end());
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  const NamedList named{word.name(), KeyList::Make(std::move(data)).value()};
  return asked.pattern.Bind({&named, 1}, asked.args.heads.count).value();
}

void CheckChoices(const cuda::Chosen& chosen, const std::vector<std::vector<Candidate>>& best) {
  const auto length = static_cast<size_t>(chosen.picks - 1);
  std::vector<int2> got(best.size() * length);
  REQUIRE(cudaMemcpy(got.data(), chosen.best, got.size() * sizeof(int2), cudaMemcpyDeviceToHost) ==
          cudaSuccess);
  for (size_t i = 0; i < best.size(); ++i) {
    for (size_t j = 0; j < length; ++j) {
      CAPTURE(i, j);
      const int2 one = got[i * length + j];
      if (j >= best[i].size()) {
        REQUIRE(one.y == -1);
        continue;
      }
      float score = 0;
      std::memcpy(&score, &one.x, sizeof(score));
      REQUIRE(one.y == best[i][j].unit);
      REQUIRE(score == best[i][j].score);
    }
  }
}

void CheckRows(const Question& of, const Asked& asked, const Pattern& bound, Partial& got) {
  Partial expected(of.q_tokens, asked.q.heads(), asked.v.dim());
  AttendArgs args = asked.args;
  args.q = asked.q;
  args.kv = &asked.table;
  args.pattern = &bound;
  args.into = expected.view();
  args.memory = MemoryKind::kHost;
  REQUIRE(MakeReferenceBackend(2)->Attend(args).ok());
  const auto dim = static_cast<int64_t>(asked.v.dim());
  for (int64_t i = 0; i < of.q_tokens * asked.q.heads(); ++i) {
    CAPTURE(i);
    ReferenceAnswer answer;
    const float* out = expected.view().out + i * dim;
    answer.out.assign(out, out + dim);
    answer.lse = expected.view().lse[i];
    const RowError error = ErrorOf(got.view().out + i * dim, got.view().lse[i], answer);
    REQUIRE(error.out < 8e-3);
    REQUIRE(error.lse < 1e-3);
  }
}

bool Same(Partial& a, Partial& b) {
  const auto rows = static_cast<size_t>(a.view().rows * a.view().heads);
  const size_t floats = rows * static_cast<size_t>(a.view().v_head_dim);
  return std::memcmp(a.view().out, b.view().out, floats * sizeof(float)) == 0 &&
         std::memcmp(a.view().lse, b.view().lse, rows * sizeof(float)) == 0;
}

// The problem with its queries, which may have gaps, and its outputs in host memory.
AttendArgs OnHost(const Asked& asked, bool gaps, Tensor* q, Partial* into) {
  AttendArgs args = asked.args;
  args.q = asked.q;
  if (gaps) {
    *q = Tensor(asked.q.dtype(), asked.q.tokens(), 2 * asked.q.heads(), asked.q.dim());
    const size_t row_bytes = static_cast<size_t>(asked.q.dim()) * SizeOf(asked.q.dtype());
    for (int64_t i = 0; i < asked.q.tokens() * asked.q.heads(); ++i) {
      std::memcpy(q->data() + static_cast<size_t>(2 * i) * row_bytes,
                  asked.q.data() + static_cast<size_t>(i) * row_bytes, row_bytes);
    }
    args.q.data = q->data();
    args.q.head_stride *= 2;
    args.q.token_stride *= 2;
  }
  args.into = into->view();
  args.memory = MemoryKind::kHost;
  return args;
}

// That they give what those on the device do, into nothing and into what was seen before, and that
// a warm call allocates nothing.
void CheckHostRows(Backend& backend, const Asked& asked, Partial& expected) {
  Tensor spaced;
  const PartialView shape = expected.view();
  const int heads = static_cast<int>(shape.heads), dim = static_cast<int>(shape.v_head_dim);
  Partial got(shape.rows, heads, dim);
  const AttendArgs args = OnHost(asked, false, &spaced, &got);
  REQUIRE((backend.Chooses(args) || cuda::GatheredBy(args) != nullptr) ==
          (backend.Chooses(asked.args) || cuda::GatheredBy(asked.args) != nullptr));
  REQUIRE(backend.Attend(args).ok());
  REQUIRE(Same(got, expected));
  size_t free_before = 0, free_after = 0, bytes = 0;
  REQUIRE(cudaMemGetInfo(&free_before, &bytes) == cudaSuccess);
  REQUIRE(backend.Attend(args).ok());
  REQUIRE(cudaMemGetInfo(&free_after, &bytes) == cudaSuccess);
  REQUIRE(free_before == free_after);
  REQUIRE(asked.space.SetIdentity(asked.into.view).ok());
  REQUIRE(backend.Attend(asked.args).ok());
  REQUIRE(backend.Attend(asked.args).ok());
  Partial twice = ToHost(asked.space, asked.into).value();
  REQUIRE(Same(got, twice));
  Partial with_gaps(shape.rows, heads, dim);
  REQUIRE(backend.Attend(OnHost(asked, true, &spaced, &with_gaps)).ok());
  REQUIRE(Same(with_gaps, expected));
  std::atomic<bool> cancel = false;
  AttendArgs cancelled = OnHost(asked, false, &spaced, &with_gaps);
  cancelled.cancel = &cancel;
  SetIdentity(cancelled.into);
  REQUIRE(backend.Attend(cancelled).ok());
  REQUIRE(Same(with_gaps, expected));
  cancel = true;
  REQUIRE(absl::IsCancelled(backend.Attend(cancelled)));
}

TEST_CASE("a GPU chooses the units that a CPU chooses, and attends to them") {
  if (!test::HasGpu()) return;
  const auto backend = MakeCudaBackend(0, "").value();
  const cuda::Stream stream = cuda::MakeStream().value();
  Rng rng(2211);
  for (const Question& of : std::vector<Question>{
           {"moba(128,4)", 1500, 1300, 200},
           {"moba(64,3)", 700, 0, 700, DType::kF16, 4, 64},
           {"moba(192,2)", 1500, 1290, 70, DType::kBF16, 3, 64, true},
           {"moba(128,32)", 9000, 8900, 33, DType::kBF16, 1, 128, true},
           {"moba(128,8)", 20000, 19000, 150, DType::kBF16, 4},
           {"moba(64,1)", 300, 100, 200, DType::kF16},
           {"moba(128,5)", 1000, 970, 60, DType::kBF16, 2, 80},
           {"moba(64,4)", 900, 130, 770, DType::kBF16, 2, 64, true, false, 1 << 20},
           {"moba(64,3)", 6000, 5000, 700, DType::kBF16, 2, 64, false, true}}) {
    CAPTURE(of.word, of.kv_tokens, of.q_begin, of.q_tokens, of.ties, of.dim);
    const auto filled = [&](int64_t tokens, int heads) {
      return test::MaybeTied(rng, of.dtype, of.ties, tokens, heads, of.dim);
    };
    Tensor values(of.dtype, of.kv_tokens, kKvHeads, of.dim);
    values = test::MaybeTied(rng, of.dtype, false, of.kv_tokens, kKvHeads, of.dim);
    Asked asked(of, backend->memory(), filled(of.q_tokens, kKvHeads * of.group),
                filled(of.kv_tokens, kKvHeads), std::move(values));
    const Selector* word = cuda::ChosenBy(asked.args);
    REQUIRE(word != nullptr);
    REQUIRE(backend->Chooses(asked.args));
    const auto best = BestOnCpu(of, asked);
    cuda::Choosing choosing;
    REQUIRE(choosing.Place(asked.args, *word, nullptr, of.slot_bytes).ok());
    REQUIRE((of.slot_bytes < 1 << 30) == (choosing.chosen().chunks() > 1));
    REQUIRE(choosing.StartChoosing(asked.args, stream.get()).ok());
    REQUIRE(cudaStreamSynchronize(stream.get()) == cudaSuccess);
    CheckChoices(choosing.chosen(), best);
    REQUIRE(choosing.StartAttending(asked.args, stream.get()).ok());
    REQUIRE(choosing.Finish(asked.args, stream.get()).ok());
    Partial got = ToHost(asked.space, asked.into).value();
    const Pattern bound = Bound(of, asked, best);
    CheckRows(of, asked, bound, got);
    // The backend's own call, into what has seen nothing again.
    REQUIRE(asked.space.SetIdentity(asked.into.view).ok());
    REQUIRE(backend->Attend(asked.args).ok());
    Partial again = ToHost(asked.space, asked.into).value();
    REQUIRE(Same(again, got));
    CheckHostRows(*backend, asked, got);
    // The same choices as a list.
    asked.args.pattern = &bound;
    REQUIRE(cuda::ChosenBy(asked.args) == nullptr);
    REQUIRE((cuda::GatheredBy(asked.args) != nullptr) == of.gathered);
    REQUIRE(asked.space.SetIdentity(asked.into.view).ok());
    REQUIRE(backend->Attend(asked.args).ok());
    Partial listed = ToHost(asked.space, asked.into).value();
    CheckRows(of, asked, bound, listed);
    CheckHostRows(*backend, asked, listed);
  }
}

TEST_CASE("scores beyond f32 and pages that are not held end a GPU's choice as a CPU's") {
  if (!test::HasGpu()) return;
  const auto backend = MakeCudaBackend(0, "").value();
  const Question of{"moba(128,3)", 1000, 800, 100};
  Rng rng(5);
  const auto filled = [&](int64_t tokens, int heads) {
    return test::MaybeTied(rng, of.dtype, false, tokens, heads, of.dim);
  };
  const auto ask = [&](float large) {
    Tensor q = filled(of.q_tokens, kKvHeads * of.group);
    const std::vector<float> values(static_cast<size_t>(of.dim), large);
    // Query 7 of head 2.
    if (large != 0) {
      Convert(values.data(), DType::kF32,
              q.data() + static_cast<size_t>((7 * kKvHeads * of.group + 2) * of.dim) * 2, of.dtype,
              of.dim);
    }
    Tensor k = filled(of.kv_tokens, kKvHeads);
    if (large != 0) {
      const std::vector<float> row(static_cast<size_t>(kKvHeads * of.dim), large);
      for (int64_t t = 128; t < 256; ++t) {
        Convert(row.data(), DType::kF32, k.data() + static_cast<size_t>(t * kKvHeads * of.dim) * 2,
                of.dtype, kKvHeads * of.dim);
      }
    }
    return std::make_unique<Asked>(of, backend->memory(), std::move(q), std::move(k),
                                   filled(of.kv_tokens, kKvHeads));
  };
  const auto beyond = ask(1e30f);
  const absl::Status refused = backend->Attend(beyond->args);
  REQUIRE(absl::IsInvalidArgument(refused));
  REQUIRE(absl::StrContains(refused.message(), "row 7, head 2 scores a unit beyond what f32"));
  Tensor unused;
  Partial into(of.q_tokens, kKvHeads * of.group, of.dim);
  REQUIRE(backend->Attend(OnHost(*beyond, false, &unused, &into)).message() == refused.message());
  const auto lacking = ask(0);
  REQUIRE(backend->Attend(lacking->args).ok());
  lacking->own_table.Set(1, 4, {});
  REQUIRE(absl::IsInternal(backend->Attend(lacking->args)));
  REQUIRE(absl::IsInternal(backend->Attend(OnHost(*lacking, false, &unused, &into))));
}

TEST_CASE("a GPU's choice for many queries in host memory ends soon after it is cancelled") {
  if (!test::HasGpu()) return;
  const auto backend = MakeCudaBackend(0, "").value();
  const Question of{"moba(64,32)", 65536, 0, 65536, DType::kBF16, 4};
  Rng rng(6);
  const auto filled = [&](int64_t tokens, int heads) {
    return test::MaybeTied(rng, of.dtype, false, tokens, heads, of.dim);
  };
  Asked asked(of, backend->memory(), filled(of.q_tokens, kKvHeads * of.group),
              filled(of.kv_tokens, kKvHeads), filled(of.kv_tokens, kKvHeads));
  Tensor unused;
  Partial into(of.q_tokens, kKvHeads * of.group, of.dim);
  AttendArgs args = OnHost(asked, false, &unused, &into);
  std::atomic<bool> cancel = false;
  args.cancel = &cancel;
  REQUIRE(backend->Attend(args).ok());
  for (const int after_ms : {1, 20, 40, 60, 80}) {
    cancel = false;
    std::thread caller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(after_ms));
      cancel = true;
    });
    const auto begin = std::chrono::steady_clock::now();
    const absl::Status status = backend->Attend(args);
    const auto took = std::chrono::steady_clock::now() - begin;
    caller.join();
    CAPTURE(after_ms, status, std::chrono::duration<double>(took).count());
    REQUIRE((status.ok() || absl::IsCancelled(status)));
    REQUIRE((after_ms > 1 || absl::IsCancelled(status)));
    if (absl::IsCancelled(status)) REQUIRE(took < std::chrono::milliseconds(after_ms + 30));
  }
  // Nothing of it stays.
  cancel = false;
  SetIdentity(args.into);
  REQUIRE(backend->Attend(args).ok());
  Partial again(of.q_tokens, kKvHeads * of.group, of.dim);
  REQUIRE(backend->Attend(OnHost(asked, false, &unused, &again)).ok());
  REQUIRE(Same(into, again));
}

}  // namespace
}  // namespace annulus
