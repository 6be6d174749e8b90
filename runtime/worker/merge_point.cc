#include "runtime/worker/merge_point.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

using Lock = std::lock_guard<std::mutex>;

constexpr char kFailedElsewhere[] = "the item failed at another rank";

}  // namespace

std::shared_ptr<MergePoint> MergePoint::Of(const wire::Work& work) {
  const bool merges = std::any_of(
      work.items.begin(), work.items.end(),
      [](const wire::WorkItem& item) { return item.merges > 0 || item.merge_into.has_value(); });
  return merges ? std::shared_ptr<MergePoint>(new MergePoint(work)) : nullptr;
}

MergePoint::MergePoint(const wire::Work& work) {
  items_.reserve(work.items.size());
  for (const wire::WorkItem& item : work.items) {
    items_.push_back({{item.storage_id, item.layer}, item.merge_into.has_value(), item.merges});
  }
}

TaskOutcome MergePoint::AddOwn(OwnPartials own) {
  const Lock lock(mutex_);
  computed_ = true;
  own_ = std::move(own);
  for (size_t i = 0; i < items_.size(); ++i) {
    if (!own_.done.items[i].status.ok()) {
      items_[i].failed = true;
    } else if (items_[i].failed) {
      Fail(&items_[i], kFailedElsewhere);
    }
  }
  for (const Others& others : std::exchange(early_, {})) Merge(others);
  return Go();
}

TaskOutcome MergePoint::AddOthers(wire::Partials partials, Buffer payload) {
  const Lock lock(mutex_);
  if (answered_) return {};
  Others others(std::move(partials), std::move(payload));
  if (!computed_) {
    early_.push_back(std::move(others));
    return {};
  }
  Merge(others);
  return Go();
}

TaskOutcome MergePoint::Drop(absl::Span<const wire::ItemName> names) {
  const Lock lock(mutex_);
  if (answered_) return {};
  if (names.empty()) {
    for (Item& item : items_) Fail(&item, kFailedElsewhere);
  }
  size_t hint = 0;
  for (const wire::ItemName& name : names) Fail(Find(name, &hint), kFailedElsewhere);
  return Go();
}

// Of its own partial, and so of any other rank's.
size_t MergePoint::BytesOf(const Item& item) const {
  size_t bytes = 0;
  for (const PartialView& view : own_.views[IndexOf(item)]) {
    bytes += PartialBytes(view.rows, view.heads, view.v_head_dim);
  }
  return bytes;
}

// Without a copy if they follow each other.
Buffer MergePoint::PartialsOf(const std::vector<const Item*>& items) const {
  std::vector<Buffer> parts;
  bool joined = true;
  size_t bytes = 0;
  for (const Item* item : items) {
    const std::vector<PartialView>& views = own_.views[IndexOf(*item)];
    if (views.empty()) continue;
    auto* begin = reinterpret_cast<std::byte*>(views[0].out);
    const auto at = static_cast<size_t>(begin - own_.bytes.data());
    parts.push_back(own_.bytes.Part(at, BytesOf(*item)));
    joined &= parts.back().data() == parts[0].data() + bytes;
    bytes += parts.back().size();
  }
  if (parts.empty()) return {};
  if (!joined) return Join(parts);
  return own_.bytes.Part(static_cast<size_t>(parts[0].data() - own_.bytes.data()), bytes);
}

// Mostly names come in the order of the items: the search begins where the last one ended.
MergePoint::Item* MergePoint::Find(const wire::ItemName& name, size_t* hint) {
  for (size_t i = 0; i < items_.size(); ++i) {
    Item& item = items_[*hint];
    *hint = (*hint + 1) % items_.size();
    if (item.name == name) return &item;
  }
  return nullptr;
}

void MergePoint::Fail(Item* item, const char* why) {
  if (item == nullptr) return;
  item->failed = true;
  absl::Status* status = nullptr;
  if (computed_) status = &own_.done.items[IndexOf(*item)].status;
  if (status != nullptr && status->ok()) *status = absl::AbortedError(why);
}

void MergePoint::Merge(const Others& others) {
  Buffer bytes = others.second;  // the same bytes; only read
  size_t at = 0;
  size_t hint = 0;
  for (const wire::ItemPartial& partial : others.first.items) {
    std::byte* const from = bytes.data() + at;
    at += partial.bytes;
    Item* item = Find(partial.item, &hint);
    if (item == nullptr || item->failed || item->awaited == 0) continue;
    if (partial.bytes != BytesOf(*item)) {
      Fail(item, partial.bytes == 0 ? kFailedElsewhere
                                    : "another rank's partial has another size than this one's");
      continue;
    }
    std::byte* range = from;
    for (const PartialView& own : own_.views[IndexOf(*item)]) {
      annulus::Merge(own, PartialIn(range, own.rows, own.heads, own.v_head_dim));
      range += PartialBytes(own.rows, own.heads, own.v_head_dim);
    }
    --item->awaited;
  }
}

TaskOutcome MergePoint::Go() {
  TaskOutcome outcome;
  if (!computed_) return outcome;
  TellNext(&outcome);
  if (!std::all_of(items_.begin(), items_.end(), [](const Item& item) { return item.whole(); })) {
    return outcome;
  }
  answered_ = true;
  std::vector<const Item*> answers;
  for (const Item& item : items_) {
    if (!item.goes_on && !item.failed && BytesOf(item) > 0) answers.push_back(&item);
  }
  outcome.request = own_.done.request;
  outcome.messages.push_back(wire::Encode(std::move(own_.done), PartialsOf(answers)));
  own_.bytes = {};
  return outcome;
}

// One message for each rank that gets something.
void MergePoint::TellNext(TaskOutcome* outcome) {
  const auto goes = [](const Item& item) { return item.goes_on && !item.told && item.whole(); };
  for (size_t first = 0; first < items_.size(); ++first) {
    const std::string address = own_.next[first];
    if (!goes(items_[first]) || address.empty()) continue;
    wire::Partials partials{own_.done.request, {}};
    std::vector<const Item*> parts;
    for (size_t i = first; i < items_.size(); ++i) {
      Item& item = items_[i];
      if (!goes(item) || own_.next[i] != address) continue;
      item.told = true;
      partials.items.push_back({item.name, item.failed ? 0 : BytesOf(item)});
      if (!item.failed) parts.push_back(&item);
    }
    outcome->to_peers.push_back({address, wire::Encode(partials, PartialsOf(parts))});
  }
}

}  // namespace annulus
