#include "runtime/cli/tensor_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/tensor_place.h"

namespace annulus {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read as they lie");

constexpr absl::string_view kSafetensors = ".safetensors";

absl::Status InFile(absl::string_view where, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("file ", Quoted(where), ": ", status.message()));
}

absl::Status PathRefused(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("file ", Quoted(path), ": ", why, ", expected a path to write a .npy file to"));
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
        absl::StrCat("shape is (", absl::StrJoin(shape.subspan(0, 8), ", "),
                     "), expected three sizes, each at least 1: tokens, heads, dim"));
  }
  const uint64_t needed_bytes = static_cast<uint64_t>(elements) * SizeOf(dtype);
  if (needed_bytes != size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data has ", size_bytes, " bytes, expected ", needed_bytes, " for shape (",
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

absl::StatusOr<FileTensor> FileTensor::Read(absl::string_view where) {
  const size_t name_at = where.find(absl::StrCat(kSafetensors, ":"));
  const bool is_safetensors = name_at != absl::string_view::npos;
  if (!is_safetensors && !absl::EndsWith(where, ".npy")) {
    return absl::InvalidArgumentError(
        absl::StrCat("file ", Quoted(where), ": expected F.npy or F.safetensors:name"));
  }
  const std::string path(is_safetensors ? where.substr(0, name_at + kSafetensors.size()) : where);
  ANNULUS_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<TensorPlace> place =
      is_safetensors
          ? ParseSafetensors(file.bytes(), where.substr(name_at + kSafetensors.size() + 1))
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

absl::Status CheckNpyPath(const std::string& path) {
  if (!absl::EndsWith(path, ".npy")) return PathRefused(path, "the name does not end in .npy");
  if (path.find('\0') != std::string::npos) return PathRefused(path, "its name holds a NUL");
  struct stat info;
  if (stat(path.c_str(), &info) == 0) {
    if (!S_ISREG(info.st_mode)) return PathRefused(path, "not a regular file");
    return access(path.c_str(), W_OK) == 0 ? absl::OkStatus() : PathRefused(path, strerror(errno));
  }
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  return access(folder.c_str(), W_OK | X_OK) == 0 ? absl::OkStatus()
                                                  : PathRefused(path, strerror(errno));
}

absl::Status WriteNpy(const std::string& path, absl::Span<const int64_t> shape,
                      absl::Span<const float> values) {
  ANNULUS_RETURN_IF_ERROR(CheckNpyPath(path));
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (",
                   absl::StrJoin(shape, ", "), shape.size() == 1 ? ",), }" : "), }");
  // The values begin at a multiple of 64 bytes, after the newline that ends the header.
  header.append(63 - (10 + header.size()) % 64, ' ').push_back('\n');
  ANNULUS_CHECK(header.size() < 65536);
  std::string head("\x93NUMPY\x01\x00", 8);
  head.push_back(static_cast<char>(header.size() & 0xff));
  head.push_back(static_cast<char>(header.size() >> 8));
  head += header;

  // Written beside the target and then renamed, so that what stands there is always whole.
  const std::string partial = absl::StrCat(path, ".partial");
  std::FILE* file = std::fopen(partial.c_str(), "wb");
  if (file == nullptr) return PathRefused(path, strerror(errno));
  bool good = std::fwrite(head.data(), 1, head.size(), file) == head.size() &&
              std::fwrite(values.data(), sizeof(float), values.size(), file) == values.size();
  good = std::fclose(file) == 0 && good;
  good = good && std::rename(partial.c_str(), path.c_str()) == 0;
  if (good) return absl::OkStatus();
  const std::string why = strerror(errno);
  std::remove(partial.c_str());
  return absl::UnavailableError(absl::StrCat("file ", Quoted(path), ": ", why));
}

}  // namespace annulus
