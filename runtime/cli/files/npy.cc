// The .npy format (numpy.lib.format): magic, version, header length, a Python dict literal of the
// keys descr, fortran_order and shape, then the values.
#include <algorithm>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/files/tensor_file.h"
#include "runtime/cli/files/tensor_place.h"

namespace annulus {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kHeaderBytesMax = 10'000;  // as numpy.load without pickles

// What is often saved and not read, and what to save instead.
struct Hint {
  absl::string_view descr;
  absl::string_view text;
};
constexpr Hint kHints[] = {
    {">f4", "it is big-endian: save x.astype('<f4')"},
    {">f2", "it is big-endian: save x.astype('<f2')"},
    {">f8", "it is big-endian f64: save x.astype('<f4')"},
    {"<f8", "it is f64: save x.astype(np.float32)"},
    {"<V2", "bf16 of ml_dtypes: save x.astype(np.float32), or a .safetensors file"},
    {"|V2", "bf16 of ml_dtypes: save x.astype(np.float32), or a .safetensors file"},
    {"bfloat16", "bf16 of ml_dtypes: save x.astype(np.float32), or a .safetensors file"}};

// A cursor over the header's dict.
class Literal {
 public:
  explicit Literal(absl::string_view text) : text_(text) {}

  // Skips white space, then takes `c` if it is next.
  bool Take(char c) {
    SkipSpace();
    if (text_.empty() || text_[0] != c) return false;
    text_.remove_prefix(1);
    return true;
  }

  bool TakeWord(absl::string_view* word) {
    SkipSpace();
    size_t size = 0;
    while (size < text_.size() && absl::ascii_isalnum(static_cast<unsigned char>(text_[size]))) {
      ++size;
    }
    *word = text_.substr(0, size);
    text_.remove_prefix(size);
    return size > 0;
  }

  // 'x' or "x", without escapes.
  bool TakeString(absl::string_view* value) {
    SkipSpace();
    if (text_.empty() || (text_[0] != '\'' && text_[0] != '"')) return false;
    const size_t end = text_.find(text_[0], 1);
    if (end == absl::string_view::npos) return false;
    *value = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return true;
  }

  absl::string_view rest() const { return text_; }
  bool AtEnd() {
    SkipSpace();
    return text_.empty();
  }

 private:
  void SkipSpace() { text_ = absl::StripLeadingAsciiWhitespace(text_); }

  absl::string_view text_;
};

absl::Status Unexpected(absl::string_view field, absl::string_view found,
                        absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", Quoted(found, 40), "; expected ", expected));
}

struct Header {
  bool is_mask = false;  // of bool; else a tensor of f32 or f16
  bool has_descr = false;
  bool has_order = false;
  bool has_shape = false;
  DType dtype = DType::kF32;  // of a tensor
  std::vector<int64_t> shape;
  size_t data_begin = 0;
};

absl::Status ReadDescr(Literal& literal, Header* header) {
  absl::string_view descr;
  if (!literal.TakeString(&descr)) {
    return Unexpected("header field descr", literal.rest(),
                      header->is_mask ? "'|b1'" : "'<f4' or '<f2'");
  }
  if (header->is_mask && descr != "|b1") {
    return Unexpected("header field descr", descr, "'|b1' (bool); save x.astype(bool)");
  }
  if (!header->is_mask && descr != "<f4" && descr != "<f2") {
    std::string expected = "'<f4' (f32) or '<f2' (f16), little endian";
    for (const Hint& hint : kHints) {
      if (hint.descr == descr) absl::StrAppend(&expected, "; ", hint.text);
    }
    return Unexpected("header field descr", descr, expected);
  }
  header->dtype = descr == "<f2" ? DType::kF16 : DType::kF32;
  header->has_descr = true;
  return absl::OkStatus();
}

absl::Status ReadOrder(Literal& literal, Header* header) {
  absl::string_view word;
  if (!literal.TakeWord(&word) || word != "False") {
    return Unexpected(
        "header field fortran_order", word.empty() ? literal.rest() : word,
        word == "True" ? "False (C order); save np.ascontiguousarray(x)" : "False (C order)");
  }
  header->has_order = true;
  return absl::OkStatus();
}

absl::Status ReadShape(Literal& literal, Header* header) {
  const absl::string_view all = literal.rest();
  bool good = literal.Take('(');
  while (good && !literal.Take(')')) {
    absl::string_view digits;
    int64_t size = 0;
    good = literal.TakeWord(&digits) && absl::SimpleAtoi(digits, &size) &&
           (digits.size() == 1 || digits[0] != '0');  // Python has no 08
    header->shape.push_back(size);
    if (good && !literal.Take(',')) {
      good = literal.Take(')');
      break;
    }
  }
  if (!good) return Unexpected("header field shape", all, "a tuple of three sizes");
  header->has_shape = true;
  return absl::OkStatus();
}

absl::StatusOr<Header> ReadHeader(absl::string_view text, bool is_mask) {
  Literal literal(text);
  Header header;
  header.is_mask = is_mask;
  if (!literal.Take('{'))
    return Unexpected("header", text, "a dict of descr, fortran_order, shape");
  while (!literal.Take('}')) {
    absl::string_view key;
    if (!literal.TakeString(&key) || !literal.Take(':')) {
      return Unexpected("header", literal.rest(), "a quoted key and ':'");
    }
    if (key == "descr" && !header.has_descr) {
      ANNULUS_RETURN_IF_ERROR(ReadDescr(literal, &header));
    } else if (key == "fortran_order" && !header.has_order) {
      ANNULUS_RETURN_IF_ERROR(ReadOrder(literal, &header));
    } else if (key == "shape" && !header.has_shape) {
      ANNULUS_RETURN_IF_ERROR(ReadShape(literal, &header));
    } else {
      return Unexpected("header key", key, "descr, fortran_order and shape, each once");
    }
    if (!literal.Take(',')) {
      if (literal.Take('}')) break;
      return Unexpected("header", literal.rest(), "',' or '}'");
    }
  }
  if (!literal.AtEnd()) return Unexpected("header", literal.rest(), "nothing after '}'");
  if (!header.has_descr || !header.has_order || !header.has_shape) {
    return Unexpected("header", text, "all of descr, fortran_order and shape");
  }
  return header;
}

absl::StatusOr<Header> ReadFile(absl::Span<const std::byte> file, bool is_mask) {
  const absl::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.substr(0, kMagic.size()) != kMagic) {
    return Unexpected("magic", text.substr(0, kMagic.size()), "\"\\x93NUMPY\"");
  }
  const auto byte_at = [&](size_t i) { return static_cast<size_t>(file[i]); };
  if (file.size() < 10 || byte_at(6) < 1 || byte_at(6) > 3 || byte_at(7) != 0) {
    return Unexpected("version", text.substr(6, 2), "1.0, 2.0 or 3.0");
  }
  const size_t length_bytes = byte_at(6) == 1 ? 2 : 4;
  const size_t header_begin = 8 + length_bytes;
  size_t header_bytes = 0;
  if (file.size() >= header_begin) {
    for (size_t i = 0; i < length_bytes; ++i) header_bytes |= byte_at(8 + i) << (8 * i);
  }
  if (file.size() < header_begin || header_bytes > file.size() - header_begin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header length: ", header_bytes, "; expected at most the file's ", file.size(), " bytes"));
  }
  if (header_bytes > kHeaderBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("header length: ", header_bytes, "; expected at most ", kHeaderBytesMax));
  }
  ANNULUS_ASSIGN_OR_RETURN(Header header,
                           ReadHeader(text.substr(header_begin, header_bytes), is_mask));
  header.data_begin = header_begin + header_bytes;
  return header;
}

}  // namespace

absl::StatusOr<TensorPlace> ParseNpy(absl::Span<const std::byte> file) {
  ANNULUS_ASSIGN_OR_RETURN(const Header header, ReadFile(file, /*is_mask=*/false));
  return PlaceTensor(header.dtype, header.shape, header.data_begin,
                     file.size() - header.data_begin);
}

absl::StatusOr<MaskPlace> ParseNpyMask(absl::Span<const std::byte> file) {
  ANNULUS_ASSIGN_OR_RETURN(const Header header, ReadFile(file, /*is_mask=*/true));
  constexpr int64_t kSizeMax = int64_t{1} << 20;
  const std::vector<int64_t>& shape = header.shape;
  const bool good = shape.size() == 3 && std::all_of(shape.begin(), shape.end(), [](int64_t size) {
                      return size >= 1 && size <= kSizeMax;
                    });
  if (!good || shape[1] != shape[2]) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape: (", absl::StrJoin(absl::MakeConstSpan(shape).subspan(0, 8), ", "),
                     "); expected three sizes from 1 to ", kSizeMax,
                     ", the last two alike: heads, blocks of queries, blocks of keys"));
  }
  const size_t size_bytes = file.size() - header.data_begin;
  if (static_cast<uint64_t>(shape[0] * shape[1] * shape[2]) != size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data: ", size_bytes, " bytes; expected ",
                                                   shape[0] * shape[1] * shape[2], " for shape (",
                                                   absl::StrJoin(shape, ", "), ") of bool"));
  }
  return MaskPlace{shape[0], shape[1], header.data_begin};
}

}  // namespace annulus
