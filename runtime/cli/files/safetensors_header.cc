#include "runtime/cli/files/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

using Json = nlohmann::json;

constexpr size_t kDepthMax = 127;  // of lists and objects in one another, as the format's library
constexpr char kMetadata[] = "__metadata__";

struct KnownDType {
  absl::string_view name;
  uint64_t bits;
};
constexpr KnownDType kDTypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64}};

// 0 for a dtype that the format does not know.
uint64_t BitsOf(absl::string_view dtype) {
  for (const KnownDType& known : kDTypes) {
    if (known.name == dtype) return known.bits;
  }
  return 0;
}

absl::Status OfTensor(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", QuotedEnd(name), ": ", what));
}

// Takes the header as it is parsed. A tree of it would cost many times the memory, and keep the
// last of two equal keys without a word. Each call returns whether to go on; status() says why not.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(absl::string_view text) : text_(text) {}

  const absl::Status& status() const { return status_; }
  SafetensorsHeader Take() && { return {std::move(entries_), std::move(metadata_), 0}; }

  bool null() override { return (in_ == In::kHeader && is_metadata_) || Scalar("null"); }
  bool boolean(bool value) override { return Scalar(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return Scalar(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Scalar(text); }
  bool binary(binary_t&) override { return Scalar("binary"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (in_ != In::kList) return Scalar(absl::StrCat(value));
    list_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (in_ == In::kMetadata) {
      metadata_.back().second = std::move(value);
      return true;
    }
    if (in_ != In::kTensor || field_ != Field::kDType) return Scalar(Quoted(value, 40));
    if (BitsOf(value) == 0) return Unexpected(Quoted(value, 40));
    entries_.back().dtype = std::move(value);
    return true;
  }

  bool key(string_t& name) override {
    if (in_ == In::kHeader) {
      is_metadata_ = name == kMetadata;
      if (is_metadata_ && std::exchange(has_metadata_, true)) {
        return Fail(absl::StrCat(kMetadata, ": named twice; expected once"));
      }
      if (!is_metadata_) entries_.emplace_back().name = std::move(name);
    } else if (in_ == In::kMetadata) {
      metadata_.emplace_back().first = std::move(name);
    } else if (in_ == In::kTensor) {
      field_ = name == "dtype"          ? Field::kDType
               : name == "shape"        ? Field::kShape
               : name == "data_offsets" ? Field::kOffsets
                                        : Field::kUnknown;
      if (field_ != Field::kUnknown && std::exchange(has_[static_cast<int>(field_)], true)) {
        return FailTensor(absl::StrCat(FieldName(), ": given twice; expected once"));
      }
    }
    return true;
  }

  bool start_object(size_t) override { return Open("an object", /*is_object=*/true); }
  bool start_array(size_t) override { return Open("a list", /*is_object=*/false); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    const size_t at = std::min(position - std::min<size_t>(position, 1), text_.size());
    return Fail(absl::StrCat("header: ", Quoted(text_.substr(at), 40), " from byte ", at,
                             " on; expected JSON in UTF-8"));
  }

 private:
  enum class In { kFile, kHeader, kMetadata, kTensor, kList, kUnknown };
  enum class Field { kDType, kShape, kOffsets, kUnknown };

  bool Fail(absl::string_view what) {
    status_ = absl::InvalidArgumentError(what);
    return false;
  }
  bool FailTensor(absl::string_view what) {
    status_ = OfTensor(entries_.back().name, what);
    return false;
  }

  const char* FieldName() const {
    return field_ == Field::kDType ? "dtype" : field_ == Field::kShape ? "shape" : "data_offsets";
  }

  // Refuses `found` where the reader stands.
  bool Unexpected(absl::string_view found) {
    const auto what = [&](absl::string_view field, absl::string_view expected) {
      return absl::StrCat(field, ": ", found, "; expected ", expected);
    };
    if (in_ == In::kFile) return Fail(what("header", "a JSON object"));
    if (in_ == In::kMetadata || (in_ == In::kHeader && is_metadata_)) {
      return Fail(what(kMetadata, "an object of strings"));
    }
    if (in_ == In::kHeader) {
      return FailTensor(what("entry", "an object of dtype, shape and data_offsets"));
    }
    return FailTensor(what(FieldName(), field_ == Field::kDType   ? "a dtype of the format"
                                        : field_ == Field::kShape ? "a list of sizes"
                                                                  : "[begin, end]"));
  }

  bool Scalar(absl::string_view found) {
    if (in_ == In::kUnknown || (in_ == In::kTensor && field_ == Field::kUnknown)) return true;
    return Unexpected(in_ == In::kList ? absl::StrCat("a list with ", found) : std::string(found));
  }

  bool Open(absl::string_view found, bool is_object) {
    if (++depth_ > kDepthMax) {
      return Fail(absl::StrCat("header: too deep; expected at most ", kDepthMax,
                               " lists or objects in one another"));
    }
    if (in_ == In::kUnknown) return true;
    if (in_ == In::kTensor && field_ == Field::kUnknown) {
      in_ = In::kUnknown;
      unknown_depth_ = depth_;
    } else if (in_ == In::kFile && is_object) {
      in_ = In::kHeader;
    } else if (in_ == In::kHeader && is_object) {
      in_ = is_metadata_ ? In::kMetadata : In::kTensor;
      for (bool& has : has_) has = false;
    } else if (in_ == In::kTensor && field_ != Field::kDType && !is_object) {
      in_ = In::kList;
      list_ = field_ == Field::kShape ? &entries_.back().shape : &offsets_;
      list_->clear();
    } else {
      return Unexpected(found);
    }
    return true;
  }

  bool Close() {
    --depth_;
    if (in_ == In::kUnknown) {
      if (depth_ < unknown_depth_) in_ = In::kTensor;
    } else if (in_ == In::kList) {
      in_ = In::kTensor;
      if (field_ == Field::kOffsets && offsets_.size() != 2) {
        return Unexpected(absl::StrCat("[", absl::StrJoin(offsets_, ", "), "]"));
      }
    } else if (in_ == In::kTensor) {
      in_ = In::kHeader;
      for (int field = 0; field < 3; ++field) {
        field_ = static_cast<Field>(field);
        if (!has_[field]) return FailTensor(absl::StrCat(FieldName(), ": none; expected one"));
      }
      entries_.back().begin = offsets_[0];
      entries_.back().end = offsets_[1];
    } else if (in_ == In::kMetadata) {
      in_ = In::kHeader;
    }
    return true;
  }

  const absl::string_view text_;
  absl::Status status_;
  std::vector<SafetensorsEntry> entries_;
  std::vector<std::pair<std::string, std::string>> metadata_;
  In in_ = In::kFile;
  Field field_ = Field::kUnknown;
  bool has_[3] = {};          // fields of the tensor that is read
  bool is_metadata_ = false;  // the header's key that is read
  bool has_metadata_ = false;
  std::vector<uint64_t> offsets_;
  std::vector<uint64_t>* list_ = nullptr;
  size_t depth_ = 0;
  size_t unknown_depth_ = 0;
};

absl::Status CheckNames(const std::vector<SafetensorsEntry>& entries) {
  std::vector<absl::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return absl::OkStatus();
  return OfTensor(*twice, "named twice; expected once");
}

// The bytes that the entry's shape takes.
absl::StatusOr<uint64_t> BytesOf(const SafetensorsEntry& entry) {
  uint64_t bits = 1;
  bool good = true;
  for (const uint64_t size : entry.shape) good = good && !__builtin_mul_overflow(bits, size, &bits);
  good = good && !__builtin_mul_overflow(bits, BitsOf(entry.dtype), &bits);
  if (good && bits % 8 == 0) return bits / 8;
  return OfTensor(entry.name, absl::StrCat("shape: [", absl::StrJoin(entry.shape, ", "),
                                           "]; expected whole bytes of ", entry.dtype,
                                           good ? "" : ", fewer than 2^61"));
}

absl::Status CheckData(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : entries) {
    const auto offsets = absl::StrCat("data_offsets: [", entry.begin, ", ", entry.end, "]");
    if (entry.begin != at || entry.end < entry.begin) {
      return OfTensor(entry.name,
                      absl::StrCat(offsets, "; expected [", at,
                                   ", …]: data lie one after the other, without gaps or overlaps"));
    }
    ANNULUS_ASSIGN_OR_RETURN(const uint64_t bytes, BytesOf(entry));
    if (entry.end - entry.begin != bytes) {
      return OfTensor(entry.name,
                      absl::StrCat(offsets, "; expected the ", bytes, " bytes of shape [",
                                   absl::StrJoin(entry.shape, ", "), "] of ", entry.dtype));
    }
    at = entry.end;
  }
  if (at == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("data: ", data_bytes, " bytes; expected the ", at,
                                                 " that the header's data_offsets cover"));
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view text,
                                                         uint64_t data_bytes) {
  // The parser takes a NUL for the end of its input, and skips a byte order mark.
  const size_t nul = text.find('\0');
  if (nul != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("header: a NUL at byte ", nul, "; expected JSON padded by spaces alone"));
  }
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == absl::string_view::npos || text[begin] != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat("header: ", Quoted(text, 40), "; expected a JSON object"));
  }
  HeaderReader reader(text);
  if (!Json::sax_parse(text.begin(), text.end(), &reader)) return reader.status();
  SafetensorsHeader header = std::move(reader).Take();
  std::vector<SafetensorsEntry>& entries = header.entries;
  ANNULUS_RETURN_IF_ERROR(CheckNames(entries));
  // An empty tensor stands before one that begins at the same byte.
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  ANNULUS_RETURN_IF_ERROR(CheckData(entries, data_bytes));
  return header;
}

}  // namespace annulus
