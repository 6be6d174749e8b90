#include "runtime/protocol/public/key_lists.h"

#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/key_list.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/limits.h"
#include "runtime/protocol/public/annulus.pb.h"

namespace annulus {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are sent as they lie");

constexpr size_t kListHandleBytes = sizeof(ListHandle);
static_assert(kListHandleBytes == 2 * sizeof(uint64_t));

template <typename Number>
absl::Span<const std::byte> BytesOf(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const std::byte*>(numbers.data()), numbers.size() * sizeof(Number)};
}

template <typename Number>
void Aim(std::vector<Number>* numbers, ListsRead* read) {
  const size_t bytes = numbers->size() * sizeof(Number);
  if (bytes == 0) return;
  read->missing.emplace_back(reinterpret_cast<std::byte*>(numbers->data()), bytes);
  read->missing_bytes += static_cast<int64_t>(bytes);
}

absl::Status Bad(int index, absl::string_view field, absl::string_view value,
                 absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("lists[", index, "].", field, ": ", value, "; expected ", expected));
}

// A list that is kept: its handle is all that comes.
bool IsByHandle(const v1::KeyList& message) {
  return !message.handle().empty() && message.unit().empty() && message.begin_count() == 0 &&
         message.key_count() == 0;
}

std::string BytesOf(const ListHandle& handle) {
  std::string bytes(kListHandleBytes, '\0');
  std::memcpy(bytes.data(), &handle.high, sizeof(handle.high));
  std::memcpy(bytes.data() + sizeof(handle.high), &handle.low, sizeof(handle.low));
  return bytes;
}

// REQUIRES: the handle is empty or has kListHandleBytes.
ListHandle HandleOf(const v1::KeyList& message) {
  ListHandle handle;
  if (message.handle().empty()) return handle;
  std::memcpy(&handle.high, message.handle().data(), sizeof(handle.high));
  std::memcpy(&handle.low, message.handle().data() + sizeof(handle.high), sizeof(handle.low));
  return handle;
}

// Fills `to` with the first bytes of `from`, which go.
template <typename T>
void TakeBytes(absl::string_view* from, std::vector<T>* to) {
  const size_t bytes = to->size() * sizeof(T);
  if (bytes > 0) std::memcpy(to->data(), from->data(), bytes);
  from->remove_prefix(bytes);
}

absl::Status CheckHandle(const v1::KeyList& message, int index) {
  if (message.handle().empty()) return absl::OkStatus();
  if (message.handle().size() == kListHandleBytes && HandleOf(message).given()) {
    return absl::OkStatus();
  }
  return Bad(index, "handle", absl::StrCat(message.handle().size(), " bytes"),
             absl::StrCat(kListHandleBytes, " random bytes, or none"));
}

absl::StatusOr<std::shared_ptr<KeyListData>> Declared(const v1::KeyList& message, int index) {
  ANNULUS_RETURN_IF_ERROR(CheckHandle(message, index));
  auto data = std::make_shared<KeyListData>();
  const std::optional<KeyListData::Unit> unit = ParseUnit(message.unit());
  if (!unit.has_value()) return Bad(index, "unit", Quoted(message.unit(), 40), "blocks or tokens");
  const std::optional<KeyListData::Rows> rows = ParseRows(message.rows());
  if (!rows.has_value())
    return Bad(index, "rows", Quoted(message.rows(), 40), "token, block, all or vertical-slash");
  data->unit = *unit;
  data->rows = *rows;
  data->block_tokens = message.block_tokens();
  data->heads = message.heads();
  data->q_begin = message.q_begin();
  if (message.begin_count() < 0 || message.begin_count() > kListRowsMax) {
    return Bad(index, "begin_count", absl::StrCat(message.begin_count()),
               absl::StrCat("0 to ", kListRowsMax, " (list_rows_max)"));
  }
  if (message.key_count() < 0 || message.key_count() > kListKeysMax) {
    return Bad(index, "key_count", absl::StrCat(message.key_count()),
               absl::StrCat("0 to ", kListKeysMax, " (list_keys_max)"));
  }
  return data;
}

// REQUIRES: the counts are within their bounds.
int64_t DeclaredBytes(const v1::KeyList& message) {
  return message.begin_count() * static_cast<int64_t>(sizeof(int64_t)) +
         message.key_count() * static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace

int64_t BytesOf(const std::vector<CallList>& lists) {
  int64_t bytes = 0;
  for (const CallList& list : lists) bytes += list.data == nullptr ? 0 : list.data->size_bytes();
  return bytes;
}

std::vector<absl::Span<const std::byte>> DataOf(const std::vector<CallList>& lists) {
  std::vector<absl::Span<const std::byte>> data;
  for (const CallList& list : lists) {
    if (list.data == nullptr) continue;
    data.push_back(BytesOf(list.data->begin));
    data.push_back(BytesOf(list.data->keys));
  }
  return data;
}

void ToProto(const std::vector<CallList>& lists, bool with_data, KeyListMessages* messages) {
  for (const CallList& list : lists) {
    v1::KeyList* message = messages->Add();
    message->set_name(list.name);
    if (list.handle.given()) message->set_handle(BytesOf(list.handle));
    if (list.data == nullptr) continue;
    const KeyListData& data = *list.data;
    message->set_unit(std::string(Name(data.unit)));
    message->set_rows(std::string(Name(data.rows)));
    message->set_block_tokens(data.block_tokens);
    message->set_heads(data.heads);
    message->set_q_begin(data.q_begin);
    message->set_begin_count(static_cast<int64_t>(data.begin.size()));
    message->set_key_count(static_cast<int64_t>(data.keys.size()));
    if (!with_data) continue;
    for (const absl::Span<const std::byte> bytes : {BytesOf(data.begin), BytesOf(data.keys)}) {
      message->mutable_data()->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
}

absl::StatusOr<int64_t> CheckLists(const KeyListMessages& messages, int64_t bytes_max) {
  if (static_cast<size_t>(messages.size()) > kListsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lists: ", messages.size(), "; expected at most ", kListsMax));
  }
  int64_t left = bytes_max;
  for (int i = 0; i < messages.size(); ++i) {
    if (IsByHandle(messages.Get(i))) {
      ANNULUS_RETURN_IF_ERROR(CheckHandle(messages.Get(i), i));
      continue;
    }
    ANNULUS_RETURN_IF_ERROR(Declared(messages.Get(i), i).status());
    const int64_t bytes = DeclaredBytes(messages.Get(i));
    if (bytes > left) {
      return Bad(i, "begin_count and key_count", absl::StrCat("data of ", bytes, " bytes"),
                 absl::StrCat("at most ", left, " (request_bytes_max)"));
    }
    left -= bytes;
  }
  return bytes_max - left;
}

absl::StatusOr<ListsRead> FromProto(const KeyListMessages& messages, bool with_data) {
  ListsRead read;
  for (int i = 0; i < messages.size(); ++i) {
    const v1::KeyList& message = messages.Get(i);
    if (IsByHandle(message)) {
      if (!message.data().empty()) {
        return Bad(i, "data", absl::StrCat(message.data().size(), " bytes"), "0");
      }
      read.lists.push_back({message.name(), nullptr, HandleOf(message)});
      continue;
    }
    ANNULUS_ASSIGN_OR_RETURN(const std::shared_ptr<KeyListData> data, Declared(message, i));
    const int64_t bytes = DeclaredBytes(message);
    const auto brought = static_cast<int64_t>(message.data().size());
    if (brought != (with_data ? bytes : 0)) {
      return Bad(i, "data", absl::StrCat(brought, " bytes"), absl::StrCat(with_data ? bytes : 0));
    }
    data->begin.resize(static_cast<size_t>(message.begin_count()));
    data->keys.resize(static_cast<size_t>(message.key_count()));
    if (with_data) {
      absl::string_view from = message.data();
      TakeBytes(&from, &data->begin);
      TakeBytes(&from, &data->keys);
    } else {
      Aim(&data->begin, &read);
      Aim(&data->keys, &read);
    }
    read.lists.push_back({message.name(), data, HandleOf(message)});
  }
  return read;
}

}  // namespace annulus
