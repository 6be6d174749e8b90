// The lists of a call as the public protocol has them (KeyList in annulus.proto): what they are,
// and their bytes, `begin` and then `keys`, one list after the other. Pure functions.
#pragma once

#include <google/protobuf/repeated_field.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "annulus/types.h"

namespace annulus {
namespace v1 {
class KeyList;
}  // namespace v1

using KeyListMessages = google::protobuf::RepeatedPtrField<v1::KeyList>;

// Of the data that they bring: one may bring its handle alone.
int64_t BytesOf(const std::vector<CallList>& lists);

// Client: `with_data` in a step, whose message brings all.
void ToProto(const std::vector<CallList>& lists, bool with_data, KeyListMessages* messages);
// Their bytes, in the order in which they follow a header.
std::vector<absl::Span<const std::byte>> DataOf(const std::vector<CallList>& lists);

// Lists whose data may still have to come.
struct ListsRead {
  std::vector<CallList> lists;                 // without data where the handle is all that came
  std::vector<absl::Span<std::byte>> missing;  // where the bytes go; none is empty
  int64_t missing_bytes = 0;
};

// Server: what the lists' data takes, before memory is taken for it. INVALID_ARGUMENT names the
// field that makes no sense, or `bytes_max`.
absl::StatusOr<int64_t> CheckLists(const KeyListMessages& messages, int64_t bytes_max);

// Server: the lists of messages that have been checked. INVALID_ARGUMENT names the field unless
// each has all of its data with it or, with_data false, none.
absl::StatusOr<ListsRead> FromProto(const KeyListMessages& messages, bool with_data);

}  // namespace annulus
