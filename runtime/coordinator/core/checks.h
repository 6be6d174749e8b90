// Small pure functions that the files of CoordinatorCore share; private to them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "annulus/types.h"
#include "attention/pattern.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/identity/caller.h"

namespace annulus {

// A call's time, about: then some of what is in flight has ended.
inline constexpr absl::Duration kRetryAfter = absl::Milliseconds(20);

inline absl::Status Bad(absl::string_view field, int64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

// Tokens [start, start + tokens), with tokens ≤ kContextTokensMax. Whatever a caller named as
// start: the sum wraps instead of overflowing, and cannot equal a layer's length then.
inline TokenRange RangeOf(int64_t start, int64_t tokens) {
  return {start,
          static_cast<int64_t>(static_cast<uint64_t>(start) + static_cast<uint64_t>(tokens))};
}

// Whose a context is that the caller makes for `owner`.
inline absl::StatusOr<std::string> OwnerFor(const Caller& caller, const std::string& owner) {
  if (owner.empty() || owner == caller.tenant) return caller.tenant;
  if (caller.role == Role::kAdmin) return owner;
  return absl::PermissionDeniedError(absl::StrCat("owner: \"", absl::CHexEscape(owner),
                                                  "\"; expected none, or \"", caller.tenant,
                                                  "\", the caller's tenant"));
}

// What an item read, or was to read, is gone.
inline absl::Status WasTruncated(const ContextSpec& spec, const request::WorkItem& ask) {
  return absl::AbortedError(absl::StrCat("context ", ask.context, ", ", LayerName(spec, ask.layer),
                                         ": was truncated during the call"));
}

// Tensor bytes of an append, and of an attention call with its answer.
inline int64_t AppendBytesOf(const ContextSpec& spec, int64_t tokens) {
  return tokens * spec.kv_heads * TokenBytes(spec);
}
inline int64_t AttendBytesOf(const ContextSpec& spec, int64_t tokens) {
  const int64_t q_row = spec.head_dim * static_cast<int64_t>(SizeOf(spec.dtype));
  const int64_t answer_row = (spec.v_head_dim + 1) * static_cast<int64_t>(sizeof(float));
  return tokens * spec.heads * (q_row + answer_row);
}

}  // namespace annulus
