// Tensors of the user's own in files: .npy (v1 to v3, C order, little endian, f32 or f16) and
// .safetensors, named "file.safetensors:name" (F32, F16, BF16); three dimensions [tokens, heads,
// dim]. Every malformed file is refused with one line that names the file, the field, its value and
// what was expected. Pure functions but for the files; thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "base/mapped_file.h"

namespace annulus {

// Where a tensor lies in a file's bytes, checked against their length.
struct TensorPlace {
  DType dtype = DType::kF32;
  int64_t tokens = 0;  // ≥ 1, as are the others
  int64_t heads = 0;
  int64_t dim = 0;
  size_t offset_bytes = 0;
};

// A mask of blocks [heads, blocks, blocks], a byte 0 or 1 each, in a file's bytes.
struct MaskPlace {
  int64_t heads = 0;
  int64_t blocks = 0;
  size_t offset_bytes = 0;
};

// The parsers, over the whole file. INVALID_ARGUMENT without the file's name.
absl::StatusOr<TensorPlace> ParseNpy(absl::Span<const std::byte> file);
absl::StatusOr<MaskPlace> ParseNpyMask(absl::Span<const std::byte> file);
absl::StatusOr<TensorPlace> ParseSafetensors(absl::Span<const std::byte> file,
                                             absl::string_view name);

// A tensor read from a file, in the file's own memory where it can stay there.
class FileTensor {
 public:
  // `where` is "F.npy" or "F.safetensors:name".
  static absl::StatusOr<FileTensor> Read(absl::string_view where);
  // The file that it reads.
  static std::string PathOf(absl::string_view where);

  const TensorView& view() const { return view_; }

  // From now on the view is of `dtype`, rounded to nearest even where that is narrower.
  void RoundTo(DType dtype);

 private:
  FileTensor(MappedFile file, TensorPlace place);

  std::unique_ptr<MappedFile> file_;  // null once the view is of tensor_
  Tensor tensor_;
  TensorView view_;
};

// INVALID_ARGUMENT unless the name ends in .npy.
absl::Status CheckNpyName(const std::string& path);

// Writes f32 `values` of `shape`, C order, whose product is their number. Errors as WriteFile.
absl::Status WriteNpy(const std::string& path, absl::Span<const int64_t> shape,
                      absl::Span<const float> values);

}  // namespace annulus
