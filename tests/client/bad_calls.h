// Calls that make no sense, over every way to the service: the network with direct and with relayed
// uploads, and the service in this process. None ends the caller's process, all are refused with
// the same code in the same words, and what is right goes on working.
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "annulus/client.h"

namespace annulus::test {

inline constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr int64_t kTokens = 6;  // of the context that is there

// The tensor of `tokens` tokens and heads that all of them use.
inline TensorView Rows(int64_t tokens = 1, int64_t heads = 2, int64_t dim = 16) {
  static const std::vector<float>& values = *new std::vector<float>(1 << 16, 0.5f);
  return TensorView::Contiguous(values.data(), DType::kF32, tokens, heads, dim);
}

inline ContextSpec Spec() {
  return {.layers = 2, .heads = 2, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16};
}

using BadCall = std::function<absl::Status(Client& client, ContextId context)>;

inline BadCall Create(std::function<void(ContextSpec&)> spoil) {
  return [spoil](Client& client, ContextId) {
    ContextSpec spec = Spec();
    spoil(spec);
    return client.CreateContext(spec).status();
  };
}

inline BadCall Append(std::function<void(AppendRequest&)> spoil) {
  return [spoil](Client& client, ContextId context) {
    AppendRequest request{.context = context, .start = kTokens, .k = Rows(3), .v = Rows(3)};
    spoil(request);
    return client.Append(request).status();
  };
}

inline BadCall Attend(std::function<void(AttendRequest&)> spoil) {
  return [spoil](Client& client, ContextId context) {
    AttendRequest request{
        .context = context, .q_start = kTokens - 2, .kv_len = kTokens, .q = Rows(2)};
    spoil(request);
    return client.Attend(request).status();
  };
}

inline BadCall Select(std::function<void(SelectRequest&)> spoil) {
  return [spoil](Client& client, ContextId context) {
    SelectRequest request{.context = context,
                          .q_start = kTokens - 2,
                          .kv_len = kTokens,
                          .q = Rows(2),
                          .pattern = "quest(1,1)"};
    spoil(request);
    return client.Select(request).status();
  };
}

inline BadCall Step(std::function<void(StepRequest&)> spoil) {
  return [spoil](Client& client, ContextId context) {
    StepRequest request{.context = context, .start = kTokens, .q = Rows(1), .pattern = {}};
    spoil(request);
    return client.Step({&request, 1}).at(0).status();
  };
}

template <typename Tensors>
void AddViews(const std::string& name, Tensors of, std::map<std::string, BadCall>* calls) {
  const auto add = [&](const std::string& what, std::function<void(TensorView&)> spoil) {
    (*calls)[absl::StrCat(name, " ", what)] = of(spoil);
  };
  add("of an unknown dtype", [](TensorView& view) { view.dtype = static_cast<DType>(7); });
  add("without data", [](TensorView& view) { view.data = nullptr; });
  add("of -1 tokens", [](TensorView& view) { view.tokens = -1; });
  add("of the fewest tokens", [](TensorView& view) { view.tokens = kMin; });
  add("of too many tokens", [](TensorView& view) { view.tokens = kMax; });
  add("of 2^40 tokens", [](TensorView& view) { view.tokens = int64_t{1} << 40; });
  add("of 0 heads", [](TensorView& view) { view.heads = 0; });
  add("of 3 heads", [](TensorView& view) { view = Rows(view.tokens, 3); });
  add("of 5000 heads", [](TensorView& view) { view.heads = 5000; });
  add("of 2^62 heads", [](TensorView& view) { view.heads = int64_t{1} << 62; });
  add("of dim 0", [](TensorView& view) { view.dim = 0; });
  add("of dim -16", [](TensorView& view) { view.dim = -16; });
  add("of dim 8", [](TensorView& view) { view = Rows(view.tokens, 2, 8); });
  add("of dim 1000", [](TensorView& view) { view = Rows(view.tokens, 1, 1000); });
  add("of dim 2^62", [](TensorView& view) { view.dim = int64_t{1} << 62; });
  add("with heads on each other", [](TensorView& view) { view.head_stride = 0; });
  add("with heads backwards", [](TensorView& view) { view.head_stride = -16; });
  add("with heads too far apart", [](TensorView& view) { view.head_stride = kMax / 2; });
  add("of a NaN", [](TensorView& view) {
    static const std::vector<float>& values = *new std::vector<float>(1 << 10, kNan);
    view.data = reinterpret_cast<const std::byte*>(values.data());
  });
}

using BadCalls = std::map<std::string, BadCall>;

inline void AddCreates(BadCalls* all) {
  BadCalls& calls = *all;
  const auto create = [&](const std::string& name, std::function<void(ContextSpec&)> spoil) {
    calls["create with " + name] = Create(spoil);
  };
  create("an unknown dtype", [](ContextSpec& s) { s.dtype = static_cast<DType>(9); });
  create("an unknown placement", [](ContextSpec& s) { s.placement = static_cast<Placement>(9); });
  create("an unknown partition",
         [](ContextSpec& s) { s.partition.kind = static_cast<PartitionKind>(9); });
  for (const int64_t unit : {int64_t{0}, int64_t{-1}, kMax, kMin}) {
    create(absl::StrCat("a unit of ", unit),
           [=](ContextSpec& s) { s.partition.unit_blocks = unit; });
  }
  for (const int layers : {0, -1, 1025, std::numeric_limits<int>::max()}) {
    create(absl::StrCat(layers, " layers"), [=](ContextSpec& s) { s.layers = layers; });
  }
  for (const int heads : {0, -2, 3, 4098, std::numeric_limits<int>::min()}) {
    create(absl::StrCat(heads, " heads"), [=](ContextSpec& s) { s.heads = heads; });
  }
  for (const int heads : {0, -2, 1025, 4096, 4097, std::numeric_limits<int>::max()}) {
    create(absl::StrCat(heads, " KV heads"), [=](ContextSpec& s) { s.heads = s.kv_heads = heads; });
  }
  for (const int dim : {0, -8, 7, 584, std::numeric_limits<int>::max()}) {
    create(absl::StrCat("dim ", dim), [=](ContextSpec& s) { s.head_dim = dim; });
    create(absl::StrCat("V dim ", dim), [=](ContextSpec& s) { s.v_head_dim = dim; });
  }
  for (const int replicas : {0, -1, 3}) {
    create(absl::StrCat(replicas, " replicas"), [=](ContextSpec& s) { s.replicas = replicas; });
  }
  for (const int64_t tokens : {int64_t{-1}, kMax, kMin}) {
    create(absl::StrCat(tokens, " tokens"), [=](ContextSpec& s) { s.tokens_expected = tokens; });
  }
  create("V wider than K", [](ContextSpec& s) { s.v_is_k_prefix = true, s.v_head_dim = 32; });
  create("zigzag without an end",
         [](ContextSpec& s) { s.partition.kind = PartitionKind::kZigzag; });
  create("too many patterns", [](ContextSpec& s) { s.patterns.assign(3, "causal"); });
  create("a bad pattern", [](ContextSpec& s) { s.patterns = {"causal", "windo(3)"}; });
  create("a pattern beyond ASCII", [](ContextSpec& s) { s.patterns = {"caus\xc3\xa4l"}; });
  create("a pattern of 10 MB", [](ContextSpec& s) { s.patterns = {std::string(10 << 20, ' ')}; });
  create("efficiency of nothing", [](ContextSpec& s) { s.kv_efficient = true; });
}

inline void AddAppends(BadCalls* all) {
  BadCalls& calls = *all;
  const auto append = [&](const std::string& name, std::function<void(AppendRequest&)> spoil) {
    calls["append " + name] = Append(spoil);
  };
  AddViews(
      "append k",
      [](std::function<void(TensorView&)> spoil) {
        return Append([spoil](AppendRequest& r) { spoil(r.k); });
      },
      &calls);
  AddViews(
      "append v",
      [](std::function<void(TensorView&)> spoil) {
        return Append([spoil](AppendRequest& r) { spoil(r.v); });
      },
      &calls);
  append("nothing", [](AppendRequest& r) { r.k = r.v = {}; });
  append("no k", [](AppendRequest& r) { r.k = {}; });
  append("no v", [](AppendRequest& r) { r.v = {}; });
  append("fewer rows of v", [](AppendRequest& r) { r.v.tokens = 2; });
  for (const int64_t start : {int64_t{0}, int64_t{7}, int64_t{-1}, kMax, kMin}) {
    append(absl::StrCat("at ", start), [=](AppendRequest& r) { r.start = start; });
  }
  for (const int layer : {-1, 2, std::numeric_limits<int>::max()}) {
    append(absl::StrCat("to layer ", layer), [=](AppendRequest& r) { r.layer = layer; });
  }
  append("to an unknown context", [](AppendRequest& r) { r.context += 1000; });
  append("twice under one key", [](AppendRequest& r) { r.key = {7, 7}, r.start = 0; });
}

inline void AddSelects(BadCalls* all) {
  BadCalls& calls = *all;
  const auto select = [&](const std::string& name, std::function<void(SelectRequest&)> spoil) {
    calls["select " + name] = Select(spoil);
  };
  AddViews(
      "select q",
      [](std::function<void(TensorView&)> spoil) {
        return Select([spoil](SelectRequest& r) { spoil(r.q); });
      },
      &calls);
  select("for nothing", [](SelectRequest& r) { r.q = {}; });
  select("beyond the end", [](SelectRequest& r) { r.q_start = 10, r.kv_len = 12; });
  select("at the last position", [](SelectRequest& r) { r.q_start = kMax, r.kv_len = kMin + 1; });
  select("by no word that chooses", [](SelectRequest& r) { r.pattern = ""; });
  select("pages of 0", [](SelectRequest& r) { r.pattern = "quest(1,0)"; });
  select("a pattern beyond ASCII", [](SelectRequest& r) { r.pattern = "\xff"; });
  select("of an unknown layer", [](SelectRequest& r) { r.layer = 2; });
  select("of an unknown context", [](SelectRequest& r) { r.context += 1000; });
}

// One for all queries: the first key.
inline CallList ListOf(std::function<void(KeyListData&)> spoil) {
  KeyListData data{.unit = KeyListData::Unit::kTokens, .begin = {0, 1}, .keys = {0}};
  spoil(data);
  return {.name = "x", .data = std::make_shared<const KeyListData>(std::move(data))};
}

inline void AddLists(BadCalls* all) {
  const auto add = [&](const std::string& what, std::function<void(KeyListData&)> spoil) {
    (*all)["attend with a list of " + what] =
        Attend([spoil](AttendRequest& r) { r.pattern = "list(x)", r.lists = {ListOf(spoil)}; });
    (*all)["step with a list of " + what] =
        Step([spoil](StepRequest& r) { r.pattern = "list(x)", r.lists = {ListOf(spoil)}; });
  };
  for (const int value : {9, -1}) {
    add(absl::StrCat("unit ", value),
        [=](KeyListData& l) { l.unit = static_cast<KeyListData::Unit>(value); });
    add(absl::StrCat("rows ", value),
        [=](KeyListData& l) { l.rows = static_cast<KeyListData::Rows>(value); });
  }
}

inline void AddAttends(BadCalls* all) {
  BadCalls& calls = *all;
  const auto attend = [&](const std::string& name, std::function<void(AttendRequest&)> spoil) {
    calls["attend " + name] = Attend(spoil);
  };
  AddViews(
      "attend q",
      [](std::function<void(TensorView&)> spoil) {
        return Attend([spoil](AttendRequest& r) { spoil(r.q); });
      },
      &calls);
  attend("nothing", [](AttendRequest& r) { r.q = {}; });
  attend("by an unknown plan", [](AttendRequest& r) { r.plan = static_cast<PlanKind>(99); });
  attend("no key", [](AttendRequest& r) { r.keys_begin = kTokens; });
  attend("keys in the wrong order", [](AttendRequest& r) { r.keys_begin = 5, r.keys_end = 4; });
  attend("keys beyond kv_len", [](AttendRequest& r) { r.keys_end = kTokens + 1; });
  attend("beyond the end", [](AttendRequest& r) { r.q_start = 10, r.kv_len = 12; });
  attend("at negative positions", [](AttendRequest& r) { r.q_start = -2, r.kv_len = 0; });
  attend("at the last position", [](AttendRequest& r) { r.q_start = kMax, r.kv_len = kMin + 1; });
  for (const float scale : {kNan, std::numeric_limits<float>::infinity()}) {
    attend(absl::StrCat("with scale ", scale), [=](AttendRequest& r) { r.scale = scale; });
  }
  attend("a bad pattern", [](AttendRequest& r) { r.pattern = "window(3"; });
  attend("a pattern beyond ASCII", [](AttendRequest& r) { r.pattern = "\xff"; });
  attend("a pattern with a NUL", [](AttendRequest& r) { r.pattern = std::string("full\0", 5); });
  attend("a pattern of 10 MB", [](AttendRequest& r) { r.pattern = std::string(10 << 20, ' '); });
  attend("a pattern that costs too much", [](AttendRequest& r) {
    r.pattern = "s2(1,1,1000)";
    for (int i = 1001; i < 2000; ++i) absl::StrAppend(&r.pattern, " | s2(1,1,", i, ")");
  });
  attend("under a long name", [](AttendRequest& r) { r.request_id = std::string(129, 'x'); });
  attend("under an odd name", [](AttendRequest& r) { r.request_id = "\xe2\x82\xac"; });
  attend("in layer 2", [](AttendRequest& r) { r.layer = 2; });
  attend("in layer -1", [](AttendRequest& r) { r.layer = -1; });
  attend("an unknown context", [](AttendRequest& r) { r.context += 1000; });
}

inline void AddSteps(BadCalls* all) {
  BadCalls& calls = *all;
  const auto step = [&](const std::string& name, std::function<void(StepRequest&)> spoil) {
    calls["step " + name] = Step(spoil);
  };
  AddViews(
      "step k",
      [](std::function<void(TensorView&)> spoil) {
        return Step([spoil](StepRequest& r) { r.k = r.v = Rows(), spoil(r.k); });
      },
      &calls);
  AddViews(
      "step q",
      [](std::function<void(TensorView&)> spoil) {
        return Step([spoil](StepRequest& r) { spoil(r.q); });
      },
      &calls);
  step("of nothing", [](StepRequest& r) { r.q = {}; });
  step("of v alone", [](StepRequest& r) { r.v = Rows(); });
  step("of k alone", [](StepRequest& r) { r.k = Rows(); });
  step("with more queries than k", [](StepRequest& r) { r.k = r.v = Rows(1), r.q = Rows(2); });
  step("of more queries than tokens", [](StepRequest& r) { r.q = Rows(7); });
  step("elsewhere", [](StepRequest& r) { r.start = 3; });
  step("at -1", [](StepRequest& r) { r.start = -1; });
  step("at the last position", [](StepRequest& r) { r.start = kMax; });
  step("in layer 5", [](StepRequest& r) { r.layer = 5; });
  step("an unknown context", [](StepRequest& r) { r.context += 1000; });
  step("with scale inf", [](StepRequest& r) { r.scale = -INFINITY; });
  step("a bad pattern", [](StepRequest& r) { r.pattern = "heads(0: full)"; });
  step("a pattern of 10 MB", [](StepRequest& r) { r.pattern = std::string(10 << 20, 'x'); });
  step("of more than a message", [](StepRequest& r) {
    static const std::vector<float>& values = *new std::vector<float>(2 << 20);
    r.q = TensorView::Contiguous(values.data(), DType::kF32, 1 << 16, 2, 16);
  });
}

inline BadCalls AllBadCalls() {
  BadCalls calls;
  AddCreates(&calls);
  AddAppends(&calls);
  AddAttends(&calls);
  AddSelects(&calls);
  AddLists(&calls);
  AddSteps(&calls);
  calls["fork of an unknown context"] = [](Client& client, ContextId context) {
    return client.Fork({.context = context + 1000, .tokens = {}}).status();
  };
  for (const int64_t tokens : {int64_t{-1}, int64_t{7}, kMax, kMin}) {
    calls[absl::StrCat("fork at ", tokens)] = [=](Client& client, ContextId context) {
      return client.Fork({.context = context, .tokens = tokens}).status();
    };
    calls[absl::StrCat("truncate to ", tokens)] = [=](Client& client, ContextId context) {
      return client.Truncate({.context = context, .tokens = tokens}).status();
    };
  }
  calls["truncate an unknown context"] = [](Client& client, ContextId context) {
    return client.Truncate({.context = context + 1000, .tokens = 0}).status();
  };
  calls["describe an unknown context"] = [](Client& client, ContextId context) {
    return client.Describe(context + 1000).status();
  };
  calls["release an unknown context"] = [](Client& client, ContextId context) {
    return client.Release(context + 1000);
  };
  for (const int limit : {0, -1, 1001, std::numeric_limits<int>::max()}) {
    calls[absl::StrCat("list ", limit)] = [=](Client& client, ContextId) {
      return client.List({.after = 0, .limit = limit}).status();
    };
  }
  calls["a call without patience"] = [](Client& client, ContextId context) {
    return client.Describe(context, {.timeout = -absl::InfiniteDuration()}).status();
  };
  calls["an asynchronous call without an end"] = [](Client& client, ContextId context) {
    return client.AttendAsync({.context = context}, {}, {});
  };
  calls["asynchronous steps without an end"] = [](Client& client, ContextId) {
    return client.StepAsync({}, {}, {});
  };
  return calls;
}

}  // namespace annulus::test
