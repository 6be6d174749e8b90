#include "runtime/coordinator/calls/index_item.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"

namespace annulus {
namespace {

using Kind = request::WorkItem::Kind;

void TakeIndex(const CallItem& of, CallItem* item) {
  item->q = of.index->q;
  item->weights = &of.index->weights;
  item->pattern = of.pattern;
  item->pattern_layer = of.ask.layer;
  item->lists = of.lists;
  item->selects_only = true;
  item->is_index = true;
  item->ask.q_tokens = of.index->q.tokens;
}

CallItem IndexItem(const CallItem& of) {
  CallItem item;
  item.ask.kind = Kind::kAttend;
  item.ask.context = of.ask.context;
  item.ask.layer = of.index->layer;
  item.ask.start = of.ask.kv_len();
  item.ask.q_start = of.ask.queries().begin;
  item.ask.keys = {0, of.ask.kv_len()};
  TakeIndex(of, &item);
  return item;
}

// A step's queries are as many as its rows, or it has none.
bool FitsIn(const CallItem& of, const CallItem& with) {
  const bool is_free = !with.is_index && with.q.tokens == 0;
  return is_free && with.ask.k_tokens == of.index->q.tokens && with.ask.kv_len() == of.ask.kv_len();
}

}  // namespace

std::vector<CallItem> ItemsOf(const AttendRequest& request) {
  std::vector<CallItem> items = {CallItem(request)};
  if (items[0].index == nullptr) return items;
  items[0].index_item = 1;
  items.push_back(IndexItem(items[0]));
  return items;
}

std::vector<CallItem> ItemsOf(absl::Span<const StepRequest> requests) {
  std::vector<CallItem> items(requests.begin(), requests.end());
  std::map<std::pair<ContextId, int>, size_t> by_layer;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (items[i].index == nullptr) continue;
    if (requests[i].q.tokens == 0) {
      items[i].index_refused = "given; expected none in a step without q";
      continue;
    }
    if (by_layer.empty()) {
      for (size_t j = 0; j < requests.size(); ++j) {
        by_layer.emplace(std::pair(requests[j].context, requests[j].layer), j);
      }
    }
    const std::pair<ContextId, int> layer(requests[i].context, items[i].index->layer);
    const auto [at, is_new] = by_layer.emplace(layer, items.size());
    if (is_new) {
      items.push_back(IndexItem(items[i]));
    } else if (CallItem& with = items[at->second]; FitsIn(items[i], with)) {
      TakeIndex(items[i], &with);
    } else {
      items[i].index_refused =
          "a step of the same call is in its layer; expected one that appends the track's rows of "
          "these tokens, for one index alone";
      continue;
    }
    items[i].index_item = at->second;
  }
  return items;
}

absl::Status CheckIndexQueries(const ShardMap& map, const IndexQueries& index, int64_t q_tokens) {
  const int first = map.spec.layers, end = first * static_cast<int>(1 + map.tracks.size());
  if (index.layer < first || index.layer >= end) {
    return absl::InvalidArgumentError(
        absl::StrCat("index.layer: ", index.layer, "; expected ",
                     end == first ? "no index: the context has no tracks"
                                  : absl::StrCat(first, " to ", end - 1, ", a track's")));
  }
  if (index.q.tokens != q_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokens of index.q: ", index.q.tokens,
                                                   "; expected ", q_tokens, ", those of q"));
  }
  const auto heads = std::clamp<int64_t>(index.q.heads, 1, kHeadsMax);
  return CheckShape("index.q", index.q, heads, map.SpecOf(index.layer).head_dim);
}

absl::Status OfIndex(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("index: ", status.message()));
}

}  // namespace annulus
