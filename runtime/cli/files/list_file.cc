#include "runtime/cli/files/list_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mapped_file.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/files/safetensors_header.h"
#include "runtime/cli/files/tensor_file.h"

namespace annulus {
namespace {

constexpr absl::string_view kNpy = ".npy";

absl::StatusOr<KeyListData> ReadMask(const ListFile& from, absl::Span<const std::byte> file,
                                     const ListedCall& call) {
  ANNULUS_ASSIGN_OR_RETURN(const MaskPlace mask, ParseNpyMask(file));
  const int64_t blocks = (call.kv_tokens + from.block_tokens - 1) / from.block_tokens;
  if (mask.blocks != blocks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shape: ", mask.blocks, " blocks; expected ", blocks, " for ", call.kv_tokens,
        " tokens in blocks of ", from.block_tokens, " (NAME=F.npy:BLOCK for another size)"));
  }
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.block_tokens = from.block_tokens;
  data.heads = static_cast<int>(mask.heads);
  data.begin = {0};
  const std::byte* at = file.data() + mask.offset_bytes;
  for (int64_t row = 0; row < mask.heads * blocks; ++row) {
    for (int64_t key = 0; key < blocks; ++key) {
      if (*at++ != std::byte{0}) data.keys.push_back(static_cast<int32_t>(key));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  return data;
}

template <typename From, typename To>
absl::StatusOr<std::vector<To>> Values(absl::string_view name, const std::byte* at, size_t count) {
  std::vector<To> values(count);
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, at + i * sizeof(From), sizeof(From));
    values[i] = static_cast<To>(value);
    if (value == static_cast<From>(values[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(name, "[", i, "]: ", value, "; expected 0 to ",
                                                   std::numeric_limits<To>::max()));
  }
  return values;
}

template <typename To>
absl::StatusOr<std::vector<To>> ReadNumbers(const SafetensorsHeader& header,
                                            absl::Span<const std::byte> file,
                                            absl::string_view name) {
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.name != name) continue;
    const std::byte* at = file.data() + header.data_begin + entry.begin;
    const size_t bytes = entry.end - entry.begin;
    if (entry.shape.size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat("shape of tensor ", name, ": [",
                                                     absl::StrJoin(entry.shape, ", "),
                                                     "]; expected one size"));
    }
    if (entry.dtype == "I32") return Values<int32_t, To>(name, at, bytes / 4);
    if (entry.dtype == "I64") return Values<int64_t, To>(name, at, bytes / 8);
    return absl::InvalidArgumentError(
        absl::StrCat("dtype of tensor ", name, ": ", entry.dtype, "; expected I32 or I64"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", name, ": none in the file; expected begin and keys"));
}

// `format` is what libraries for such files write by themselves.
constexpr absl::string_view kFields[] = {"unit",  "rows",    "block_tokens",
                                         "heads", "q_begin", "format"};

// Takes what __metadata__ says; which of the numbers it says is left to `has`.
class Metadata {
 public:
  explicit Metadata(const SafetensorsHeader& header) : all_(header.metadata) {}

  absl::Status CheckKnown() const {
    for (size_t i = 0; i < all_.size(); ++i) {
      if (std::find(std::begin(kFields), std::end(kFields), all_[i].first) == std::end(kFields)) {
        return Refuse(all_[i], absl::StrCat("no field but ", absl::StrJoin(kFields, ", ")));
      }
      for (size_t j = 0; j < i; ++j) {
        if (all_[i].first == all_[j].first) return Refuse(all_[i], "each field once");
      }
    }
    return absl::OkStatus();
  }

  template <typename Value, size_t N>
  absl::Status Choose(absl::string_view field, const std::pair<absl::string_view, Value> (&of)[N],
                      Value* value) const {
    std::string known;
    for (const auto& [name, meaning] : of) absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    const auto* said = Find(field);
    if (said == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("__metadata__ ", field, ": none; expected one of ", known));
    }
    for (const auto& [name, meaning] : of) {
      if (said->second == name) return *value = meaning, absl::OkStatus();
    }
    return Refuse(*said, absl::StrCat("one of ", known));
  }

  // Leaves the value as it is where the field is not there, and says whether it is.
  absl::StatusOr<bool> Number(absl::string_view field, int64_t* value) const {
    const auto* said = Find(field);
    if (said == nullptr) return false;
    if (absl::SimpleAtoi(said->second, value) && *value >= 0) return true;
    return Refuse(*said, "a number");
  }

 private:
  using Field = std::pair<std::string, std::string>;

  const Field* Find(absl::string_view name) const {
    for (const Field& field : all_) {
      if (field.first == name) return &field;
    }
    return nullptr;
  }
  static absl::Status Refuse(const Field& field, absl::string_view expected) {
    return absl::InvalidArgumentError(absl::StrCat("__metadata__ ", Quoted(field.first, 40), ": ",
                                                   Quoted(field.second, 40), "; expected ",
                                                   expected));
  }

  const std::vector<Field>& all_;
};

// How many heads have `rows` rows each in `begin`; 0 if no number of heads that a call has.
int64_t HeadsOf(int64_t all_rows, int64_t rows, const ListedCall& call) {
  for (const int64_t heads : {int64_t{1}, call.kv_heads, call.heads}) {
    if (all_rows == heads * rows) return heads;
  }
  return 0;
}

absl::StatusOr<KeyListData> ReadLists(absl::Span<const std::byte> file, const ListedCall& call) {
  using Unit = KeyListData::Unit;
  using Rows = KeyListData::Rows;
  ANNULUS_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
  const Metadata metadata(header);
  KeyListData data;
  ANNULUS_RETURN_IF_ERROR(metadata.CheckKnown());
  ANNULUS_RETURN_IF_ERROR(metadata.Choose<Unit>(
      "unit", {{"blocks", Unit::kBlocks}, {"tokens", Unit::kTokens}}, &data.unit));
  ANNULUS_RETURN_IF_ERROR(metadata.Choose<Rows>("rows",
                                                {{"token", Rows::kToken},
                                                 {"block", Rows::kBlock},
                                                 {"all", Rows::kAll},
                                                 {"vertical-slash", Rows::kVerticalSlash}},
                                                &data.rows));
  ANNULUS_RETURN_IF_ERROR(metadata.Number("block_tokens", &data.block_tokens).status());
  const int64_t block = data.block_tokens;
  if (block < 1 || block > kListBlockTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("__metadata__ block_tokens: ", block,
                                                   "; expected 1 to ", kListBlockTokensMax));
  }
  ANNULUS_ASSIGN_OR_RETURN(data.begin, ReadNumbers<int64_t>(header, file, "begin"));
  ANNULUS_ASSIGN_OR_RETURN(data.keys, ReadNumbers<int32_t>(header, file, "keys"));
  const TokenRange q_blocks{call.q.begin / block, (call.q.end + block - 1) / block};
  const bool for_all = data.rows == Rows::kAll || data.rows == Rows::kVerticalSlash;
  if (!for_all) {
    data.q_begin = data.rows == Rows::kToken ? call.q.begin : q_blocks.begin * block;
  }
  ANNULUS_RETURN_IF_ERROR(metadata.Number("q_begin", &data.q_begin).status());
  int64_t heads = 0;
  ANNULUS_ASSIGN_OR_RETURN(const bool has_heads, metadata.Number("heads", &heads));
  if (!has_heads) {
    const int64_t rows = for_all                     ? (data.rows == Rows::kAll ? 1 : 2)
                         : data.rows == Rows::kToken ? call.q.size()
                                                     : q_blocks.size();
    const auto all_rows = static_cast<int64_t>(data.begin.size()) - 1;
    heads = HeadsOf(all_rows, rows, call);
    if (heads == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor begin: ", all_rows, " rows; expected ", rows, " for each of 1, ",
                       call.kv_heads, " or ", call.heads, " heads, or heads in __metadata__"));
    }
  }
  data.heads = static_cast<int>(std::min<int64_t>(heads, INT32_MAX));
  return data;
}

}  // namespace

absl::StatusOr<ListFile> ParseListFile(absl::string_view text) {
  const auto refuse = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        Quoted(text), "; expected NAME=F.npy, NAME=F.npy:BLOCK or NAME=F.safetensors"));
  };
  const size_t equals = text.find('=');
  if (equals == 0 || equals == absl::string_view::npos) return refuse();
  ListFile file;
  file.name = std::string(text.substr(0, equals));
  absl::string_view path = text.substr(equals + 1);
  if (const size_t colon = path.rfind(absl::StrCat(kNpy, ":")); colon != path.npos) {
    const absl::string_view block = path.substr(colon + kNpy.size() + 1);
    if (!absl::SimpleAtoi(block, &file.block_tokens) || file.block_tokens < 1 ||
        file.block_tokens > kListBlockTokensMax) {
      return absl::InvalidArgumentError(absl::StrCat("BLOCK of ", Quoted(text), ": ", Quoted(block),
                                                     "; expected 1 to ", kListBlockTokensMax));
    }
    path = path.substr(0, colon + kNpy.size());
  }
  if (!absl::EndsWith(path, kNpy) && !absl::EndsWith(path, ".safetensors")) return refuse();
  file.path = std::string(path);
  return file;
}

absl::StatusOr<NamedList> ReadList(const ListFile& file, const ListedCall& call) {
  ANNULUS_ASSIGN_OR_RETURN(const MappedFile mapped, MappedFile::Open(file.path));
  const auto in_file = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat("list ", file.name, ": file ",
                                                    QuotedEnd(file.path), ": ", status.message()));
  };
  absl::StatusOr<KeyListData> data = absl::EndsWith(file.path, kNpy)
                                         ? ReadMask(file, mapped.bytes(), call)
                                         : ReadLists(mapped.bytes(), call);
  if (!data.ok()) return in_file(data.status());
  absl::StatusOr<std::shared_ptr<const KeyList>> list = KeyList::Make(*std::move(data));
  if (!list.ok()) return in_file(list.status());
  return NamedList{file.name, *std::move(list)};
}

}  // namespace annulus
