#include "runtime/cli/files/tensor_file.h"

#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/files/tensor_place.h"

namespace annulus {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read as they lie");

constexpr absl::string_view kSafetensors = ".safetensors";

absl::Status InFile(absl::string_view where, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("file ", QuotedEnd(where), ": ", status.message()));
}

}  // namespace

absl::StatusOr<TensorPlace> PlaceTensor(DType dtype, absl::Span<const int64_t> shape,
                                        size_t offset_bytes, size_t size_bytes) {
  // Above this no product of a size and an element overflows; no file is as long.
  constexpr int64_t kElementsMax = INT64_MAX / 8;
  int64_t elements = 1;
  bool good = shape.size() == 3;
  for (size_t i = 0; good && i < 3; ++i) {
    good = shape[i] >= 1 && shape[i] <= kElementsMax / elements;
    if (good) elements *= shape[i];
  }
  if (!good) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape: (", absl::StrJoin(shape.subspan(0, 8), ", "),
                     "); expected three sizes, each at least 1: tokens, heads, dim",
                     shape.size() == 4 && shape[0] == 1 ? "; of a batch of one save x[0]" : ""));
  }
  const uint64_t needed_bytes = static_cast<uint64_t>(elements) * SizeOf(dtype);
  if (needed_bytes != size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data: ", size_bytes, " bytes; expected ", needed_bytes, " for shape (",
                     absl::StrJoin(shape, ", "), ") of ", Name(dtype)));
  }
  return TensorPlace{dtype, shape[0], shape[1], shape[2], offset_bytes};
}

FileTensor::FileTensor(MappedFile file, TensorPlace place)
    : file_(std::make_unique<MappedFile>(std::move(file))) {
  const std::byte* data = file_->bytes().data() + place.offset_bytes;
  view_ = TensorView::Contiguous(data, place.dtype, place.tokens, place.heads, place.dim);
  if (reinterpret_cast<uintptr_t>(data) % SizeOf(place.dtype) != 0) {
    tensor_ = Tensor(place.dtype, place.tokens, place.heads, place.dim);
    std::memcpy(tensor_.data(), data, tensor_.size_bytes());
    view_ = tensor_;
    file_.reset();
  }
}

std::string FileTensor::PathOf(absl::string_view where) {
  const size_t name_at = where.find(absl::StrCat(kSafetensors, ":"));
  return std::string(where.substr(
      0, name_at == absl::string_view::npos ? name_at : name_at + kSafetensors.size()));
}

absl::StatusOr<FileTensor> FileTensor::Read(absl::string_view where) {
  const std::string path = PathOf(where);
  const bool is_safetensors = path.size() < where.size();
  if (!is_safetensors && !absl::EndsWith(where, ".npy")) {
    return absl::InvalidArgumentError(
        absl::StrCat("file: ", QuotedEnd(where), "; expected F.npy or F.safetensors:name"));
  }
  ANNULUS_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<TensorPlace> place =
      is_safetensors ? ParseSafetensors(file.bytes(), where.substr(path.size() + 1))
                     : ParseNpy(file.bytes());
  if (!place.ok()) return InFile(where, place.status());
  return FileTensor(std::move(file), *place);
}

void FileTensor::RoundTo(DType dtype) {
  if (view_.dtype == dtype) return;
  Tensor rounded(dtype, view_.tokens, view_.heads, view_.dim);
  Convert(view_.data, view_.dtype, rounded.data(), dtype, view_.size());
  tensor_ = std::move(rounded);
  view_ = tensor_;
  file_.reset();
}

absl::Status CheckNpyName(const std::string& path) {
  if (absl::EndsWith(path, ".npy")) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("file: ", QuotedEnd(path), "; expected a name that ends in .npy"));
}

absl::Status WriteNpy(const std::string& path, absl::Span<const int64_t> shape,
                      absl::Span<const float> values) {
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (",
                   absl::StrJoin(shape, ", "), shape.size() == 1 ? ",), }" : "), }");
  // The values begin at a multiple of 64 bytes, after the newline that ends the header.
  constexpr size_t kPreludeBytes = 10;
  header.append(63 - (kPreludeBytes + header.size()) % 64, ' ').push_back('\n');
  ANNULUS_CHECK(header.size() < 65536);
  std::string prelude("\x93NUMPY\x01\x00", kPreludeBytes - 2);
  prelude.push_back(static_cast<char>(header.size() & 0xff));
  prelude.push_back(static_cast<char>(header.size() >> 8));
  return WriteFile(path, {prelude, header,
                          absl::string_view(reinterpret_cast<const char*>(values.data()),
                                            values.size() * sizeof(float))});
}

}  // namespace annulus
