// What the bounds of single fields cannot say.
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/layout.h"
#include "runtime/protocol/cluster/fields.h"

namespace annulus {
namespace {

absl::Status CheckAtMost(absl::string_view field, int64_t value, absl::string_view other,
                         int64_t most) {
  if (value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, "; expected at most ", other, ", ", most));
}

// Who holds a context. A Resume tells it to each of them alike.
template <typename T>
absl::Status CheckHolders(const T& m) {
  const auto ranks = static_cast<int64_t>(m.addresses.size());
  ANNULUS_RETURN_IF_ERROR(
      CheckAtMost("copies", static_cast<int64_t>(m.copies.size()), "the ranks", ranks));
  if constexpr (requires { m.rank; }) {
    ANNULUS_RETURN_IF_ERROR(CheckAtMost("rank", m.rank, "the last rank", ranks - 1));
  }
  for (const std::string& address : m.addresses) {
    ANNULUS_RETURN_IF_ERROR(CheckAtMost("bytes of addresses", static_cast<int64_t>(address.size()),
                                        "kTextBytesMax",
                                        static_cast<int64_t>(wire::kTextBytesMax)));
  }
  for (const wire::Copy& copy : m.copies) {
    ANNULUS_RETURN_IF_ERROR(CheckAtMost("copies.rank", copy.rank, "the last rank", ranks - 1));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckWhole(const TokenRange& range) {
  return CheckAtMost("begin", range.begin, "end", range.end);
}

absl::Status CheckWhole(const LayerState& layer) {
  return CheckAtMost("horizon", layer.horizon, "tokens", layer.tokens);
}

std::optional<KeyListData::Unit> TextForm<KeyListData::Unit>::Parse(absl::string_view text) {
  return ParseUnit(text);
}

std::optional<KeyListData::Rows> TextForm<KeyListData::Rows>::Parse(absl::string_view text) {
  return ParseRows(text);
}

namespace wire {

absl::Status CheckWhole(const Open& m) {
  ANNULUS_RETURN_IF_ERROR(CheckHolders(m));
  return ValidateSpec(m.spec);
}

absl::Status CheckWhole(const Read& m) {
  return CheckAtMost("tokens", m.tokens, "what a context may still have",
                     kContextTokensMax - m.start);
}

absl::Status CheckWhole(const List& m) {
  if (m.data.has_value() || m.number != 0) return absl::OkStatus();
  return absl::InvalidArgumentError("data: absent, number: 0; expected one of them");
}

absl::Status CheckWhole(const WorkItem& m) {
  if (m.horizon.has_value()) {
    ANNULUS_RETURN_IF_ERROR(CheckAtMost("horizon", *m.horizon, "start", m.start));
  }
  ANNULUS_RETURN_IF_ERROR(CheckAtMost("k_tokens", m.k_tokens, "what a context may still have",
                                      kContextTokensMax - m.start));
  if ((m.q_tokens == 0 || m.plan.has_value()) && (m.merges > 0 || m.merge_into.has_value())) {
    return absl::InvalidArgumentError("merges, merge_into: set; expected queries without a plan");
  }
  if (!m.select.empty() && (m.q_tokens == 0 || m.plan.has_value() || m.merges > 0 ||
                            m.merge_into.has_value() || !m.lists.empty())) {
    return absl::InvalidArgumentError("select: set; expected queries, no plan, merges or lists");
  }
  if (m.column_trip.has_value() &&
      (m.q_tokens == 0 || m.plan.has_value() || m.merges > 0 || m.merge_into.has_value() ||
       !m.select.empty() || m.lists.size() != (m.column_trip == ColumnTrip::kRows ? 1 : 0) ||
       (!m.lists.empty() && !m.lists[0].data.has_value()))) {
    return absl::InvalidArgumentError(
        "column_trip: set; expected queries, no plan, merges or select, and a list for rows alone");
  }
  if (m.chooses && (m.q_tokens == 0 || m.plan.has_value() || m.merges > 0 ||
                    m.merge_into.has_value() || !m.select.empty() || m.column_trip.has_value())) {
    return absl::InvalidArgumentError(
        "chooses: set; expected queries, no plan, merges, select or column_trip");
  }
  if (m.q_tokens == 0) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(CheckAtMost("q_start", m.q_start, "what leaves room for the queries",
                                      kContextTokensMax - m.q_tokens));
  ANNULUS_RETURN_IF_ERROR(CheckAtMost("keys.end", m.keys.end, "kv_tokens", m.kv_tokens));
  return CheckAtMost("keys.begin", m.keys.begin, "the last key", m.keys.end - 1);
}

absl::Status CheckWhole(const Work& m) {
  for (size_t i = 0; i < m.items.size(); ++i) {
    if (m.items[i].channel != 0 && m.items.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("items[", i, "].channel: not 0; expected an item alone in its message"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckWhole(const ExpectUpload& m) {
  if (m.work.items.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("work.items: ", m.work.items.size(), " elements; expected 1"));
  }
  const size_t bytes = m.work.items[0].append_bytes;
  if (bytes >= 1 && bytes <= kExpectBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("work.items[0].append_bytes: ", bytes, "; expected 1 to ", kExpectBytesMax));
}

absl::Status CheckWhole(const Inventory& m) {
  ANNULUS_RETURN_IF_ERROR(CheckHolders(m));
  const int layers = StoredLayers(m.spec);
  if (m.layers.size() != static_cast<size_t>(layers)) {
    return absl::InvalidArgumentError(absl::StrCat("layers: ", m.layers.size(), "; expected ",
                                                   layers, ", of spec and its tracks"));
  }
  return ValidateSpec(m.spec);
}

absl::Status CheckWhole(const Resume& m) {
  return CheckHolders(m);
}

}  // namespace wire
}  // namespace annulus
