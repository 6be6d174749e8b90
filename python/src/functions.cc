#include "python/src/functions.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "annulus/partials.h"
#include "attention/backend.h"
#include "base/status.h"
#include "python/src/arrays.h"
#include "python/src/errors.h"
#include "python/src/gil.h"
#include "python/src/key_list.h"
#include "python/src/waiting.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/problem.h"
#include "runtime/context/check_tensor.h"
#include "runtime/engine/local_ranks.h"
#include "runtime/limits.h"
#include "sharding/planner.h"

namespace annulus::python {
namespace {

// K and V as they are stored: rounded to the problem's dtype.
TensorView Rounded(const TensorView& view, DType dtype, Tensor* held) {
  if (view.dtype == dtype) return view;
  *held = Tensor(dtype, view.tokens, view.heads, view.dim);
  for (int64_t token = 0; token < view.tokens; ++token) {
    for (int64_t head = 0; head < view.heads; ++head) {
      Convert(view.Row(token, head), view.dtype,
              held->data() +
                  static_cast<size_t>((token * view.heads + head) * view.dim) * SizeOf(dtype),
              dtype, view.dim);
    }
  }
  return *held;
}

struct Answer {
  Tensor out;
  Tensor lse;
};

absl::StatusOr<Answer> Run(ProblemFlags flags, const TensorView& q, const TensorView& k,
                           const TensorView& v, const std::optional<PlanKind>& plan, float scale,
                           const std::string& backend_name, int threads,
                           const std::atomic<bool>& cancel) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                           MakeBackend(backend_name, threads));
  Tensor held_q, held_k, held_v;
  const TensorView queries = Rounded(q, flags.dtype, &held_q);
  const TensorView keys = Rounded(k, flags.dtype, &held_k);
  ANNULUS_RETURN_IF_ERROR(SelectLists(queries, keys, scale, *backend, &flags, &cancel));
  ANNULUS_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(flags));
  ANNULUS_ASSIGN_OR_RETURN(const Decision decision, Choose(problem, ClusterModel{}, plan));
  ANNULUS_ASSIGN_OR_RETURN(
      const LocalRanks ranks,
      LocalRanks::Create(decision.plan, queries, keys, Rounded(v, flags.dtype, &held_v), *backend));
  const float default_scale = 1 / std::sqrt(static_cast<float>(q.dim));
  ANNULUS_ASSIGN_OR_RETURN(LocalRun run, ranks.Run(scale == 0 ? default_scale : scale, &cancel));
  Tensor lse = std::move(run.result).TakeLse();
  return Answer{std::move(run.result).TakeOut(), std::move(lse)};
}

absl::Status CheckTogether(const TensorView& q, const TensorView& k, const TensorView& v,
                           DType stored) {
  if (k.dim != q.dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("k: head_dim ", k.dim, "; expected that of q, ", q.dim));
  }
  if (v.tokens != 0 && (v.tokens != k.tokens || v.heads != k.heads)) {
    return absl::InvalidArgumentError(absl::StrCat("v: [", v.tokens, ", ", v.heads, ", ", v.dim,
                                                   "]; expected [", k.tokens, ", ", k.heads,
                                                   ", v_head_dim], as k"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", q, q.heads, q.dim, stored));
  ANNULUS_RETURN_IF_ERROR(CheckTensor("k", k, k.heads, k.dim, stored));
  return v.tokens == 0 ? absl::OkStatus() : CheckTensor("v", v, v.heads, v.dim, stored);
}

nb::tuple Attention(nb::handle q, nb::handle k, nb::handle v, const std::string& pattern,
                    const std::optional<std::string>& plan, int workers, float scale,
                    std::optional<int64_t> q_start,
                    const std::optional<std::pair<int64_t, std::optional<int64_t>>>& keys,
                    std::optional<int64_t> v_head_dim, const std::optional<std::string>& dtype,
                    const std::string& backend, int threads, const nb::dict& lists) {
  const Borrowed queries = Borrow(q, "q"), key_rows = Borrow(k, "k"), values = Borrow(v, "v");
  for (const auto& [name, tensor] : {std::pair("q", q), {"k", k}}) {
    if (!tensor.is_none()) continue;
    Raise(absl::InvalidArgumentError(absl::StrCat(name, ": None; expected an array")));
  }
  ProblemFlags flags;
  flags.q_tokens = queries.view.tokens;
  flags.q_start = q_start;
  flags.kv_tokens = key_rows.view.tokens;
  if (keys.has_value()) {
    flags.keys = TokenRange{keys->first, keys->second.value_or(key_rows.view.tokens)};
  }
  flags.heads = queries.view.heads;
  flags.kv_heads = key_rows.view.heads;
  flags.head_dim = queries.view.dim;
  flags.v_is_k_prefix = values.view.tokens == 0;
  flags.v_head_dim = flags.v_is_k_prefix ? v_head_dim.value_or(0) : values.view.dim;
  flags.dtype = dtype.has_value() ? ValueOrRaise(ParseDType(*dtype)) : key_rows.view.dtype;
  flags.workers = workers;
  flags.pattern = pattern;
  RaiseUnlessOk(WithoutGil(
      [&] { return CheckTogether(queries.view, key_rows.view, values.view, flags.dtype); }));
  for (const CallList& list : ListsOf(lists)) {
    flags.lists.push_back({list.name, ValueOrRaise(KeyList::Make(list.data))});
  }
  std::optional<PlanKind> kind;
  if (plan.has_value()) kind = ValueOrRaise(ParsePlanKind(*plan));
  if (workers < 1 || workers > kWorkersHereMax) {
    Raise(absl::InvalidArgumentError(
        absl::StrCat("workers: ", workers, "; expected 1 to ", kWorkersHereMax)));
  }
  std::atomic<bool> cancel = false;
  Answer done = ValueOrRaise(RunApart<Answer>(
      [&] {
        return Run(flags, queries.view, key_rows.view, values.view, kind, scale, backend, threads,
                   cancel);
      },
      [&] { cancel = true; }));
  return nb::make_tuple(ToNumpy(std::move(done.out), true), ToNumpy(std::move(done.lse), false));
}

// Of what Borrow takes.
nb::tuple Shape(nb::handle tensor, const std::string& field) {
  const TensorView view = Borrow(tensor, field.c_str()).view;
  return nb::make_tuple(view.tokens, view.heads, view.dim);
}

// What `annulus explain` prints. Its options are the arguments alone, not ANNULUS_ variables.
std::string Explain(const std::vector<std::string>& arguments) {
  std::ostringstream out, err;
  Console console;
  console.environment = [](const std::string& name) {
    return absl::StartsWith(name, "ANNULUS_") ? nullptr : std::getenv(name.c_str());
  };
  console.out = &out;
  console.err = &err;
  RaiseUnlessOk(WithoutGil([&] { return RunExplain(arguments, console); }));
  return out.str();
}

// The lse of a caller's rows: a sum may be none, and is never infinite.
Tensor CopySums(nb::handle lse) {
  Tensor sums = CopyF32(lse, "lse", true);
  for (int64_t at = 0; at < sums.tokens() * sums.heads() * sums.dim(); ++at) {
    if (sums.f32()[at] < std::numeric_limits<float>::infinity()) continue;
    Raise(absl::InvalidArgumentError(
        absl::StrCat("lse[", at / (sums.heads() * sums.dim()), ", ", at / sums.dim() % sums.heads(),
                     "]: ", sums.f32()[at], "; expected a finite number or -inf")));
  }
  return sums;
}

using Part = std::pair<nb::object, nb::object>;

nb::tuple MergeParts(const std::vector<Part>& parts) {
  if (parts.empty()) Raise(absl::InvalidArgumentError("parts: none; expected one or more"));
  Tensor out = CopyF32(parts[0].first, "out", false);
  Tensor lse = CopySums(parts[0].second);
  if (lse.tokens() != out.tokens() || lse.heads() != out.heads() || lse.dim() != 1) {
    Raise(absl::InvalidArgumentError(
        absl::StrCat("lse: [", lse.tokens(), ", ", lse.heads(),
                     lse.dim() == 1 ? "" : absl::StrCat(", ", lse.dim()), "]; expected [",
                     out.tokens(), ", ", out.heads(), "], as out")));
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    const Tensor more = CopyF32(parts[i].first, "out", false);
    const Tensor more_lse = CopySums(parts[i].second);
    RaiseUnlessOk(Merge(more, more_lse, &out, &lse));
  }
  return nb::make_tuple(ToNumpy(std::move(out), true), ToNumpy(std::move(lse), false));
}

nb::tuple AddSinks(nb::handle out, nb::handle lse, const std::vector<float>& logits) {
  Tensor rows = CopyF32(out, "out", false);
  Tensor sums = CopySums(lse);
  RaiseUnlessOk(WithSinks(logits, &rows, &sums));
  return nb::make_tuple(ToNumpy(std::move(rows), true), ToNumpy(std::move(sums), false));
}

nb::object ApplyGate(nb::handle out, nb::handle gate) {
  Tensor rows = CopyF32(out, "out", false);
  const Borrowed gates = Borrow(gate, "gate");
  RaiseUnlessOk(Gate(gates.view, &rows));
  return ToNumpy(std::move(rows), true);
}

nb::object BlendParts(const std::vector<nb::object>& parts,
                      const std::vector<nb::object>& weights) {
  if (parts.empty()) Raise(absl::InvalidArgumentError("parts: none; expected one or more"));
  std::vector<Tensor> outs;
  std::vector<Borrowed> borrowed;
  for (const nb::object& part : parts) outs.push_back(CopyF32(part, "parts", false));
  for (const nb::object& weight : weights) borrowed.push_back(Borrow(weight, "weights"));
  std::vector<TensorView> views, scales;
  for (const Tensor& out : outs) views.push_back(out);
  for (const Borrowed& weight : borrowed) scales.push_back(weight.view);
  Tensor sum(DType::kF32, outs[0].tokens(), outs[0].heads(), outs[0].dim());
  RaiseUnlessOk(Blend(views, scales, &sum));
  return ToNumpy(std::move(sum), true);
}

}  // namespace

void AddFunctions(nb::module_& module) {
  module.def("attention", Within(&Attention), nb::arg().none(), nb::arg().none(), nb::arg().none(),
             nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
             nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  module.def("shape_of", Within(&Shape));
  module.def("explain", Within(&Explain));
  module.def("merge", Within(&MergeParts));
  module.def("with_sinks", Within(&AddSinks));
  module.def("gate", Within(&ApplyGate));
  module.def("blend", Within(&BlendParts));
}

}  // namespace annulus::python
