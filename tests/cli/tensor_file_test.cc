// Tensor files: what is read is what was written, and nothing malformed is.
#include "runtime/cli/files/tensor_file.h"

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using test::TestTensor;

absl::Span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

void CheckHolds(const FileTensor& read, const TestTensor& tensor) {
  const TensorView& view = read.view();
  CHECK(view.dtype == tensor.dtype);
  CHECK(std::vector<int64_t>{view.tokens, view.heads, view.dim} == tensor.shape);
  const std::string bytes = tensor.Bytes();
  CHECK(std::memcmp(view.data, bytes.data(), bytes.size()) == 0);
}

// A place that a parser accepted must lie within the file.
void CheckWithin(const TensorPlace& place, size_t file_bytes) {
  REQUIRE((place.tokens >= 1 && place.heads >= 1 && place.dim >= 1));
  const __int128 end = __int128{place.offset_bytes} +
                       __int128{place.tokens} * place.heads * place.dim * SizeOf(place.dtype);
  REQUIRE(end <= __int128{file_bytes});
}

void CheckOneLine(const absl::Status& status) {
  REQUIRE(absl::IsInvalidArgument(status));
  for (const char c : status.message()) {
    const auto byte = static_cast<unsigned char>(c);
    REQUIRE((byte >= 0x20 && byte != 0x7f));
  }
  REQUIRE(status.message().size() < 1000);
}

TEST_CASE("npy: every version and dtype reads back") {
  const test::TempFolder folder;
  Rng rng(1);
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int version : {1, 2, 3}) {
      CAPTURE(Name(dtype), version);
      const TestTensor tensor = TestTensor::Random(rng, dtype, {5, 3, 8});
      test::WriteBytes(folder / "t.npy", tensor.Npy(version));
      absl::StatusOr<FileTensor> read = FileTensor::Read(folder / "t.npy");
      REQUIRE(read.status().message() == "");
      CheckHolds(*read, tensor);
      read->RoundTo(DType::kBF16);
      CHECK(read->view().dtype == DType::kBF16);
      uint16_t first = 0;
      std::memcpy(&first, read->view().data, sizeof(first));
      CHECK(first == F32ToBF16(tensor.values[0]));
    }
  }
}

TEST_CASE("safetensors: tensors read back by name, also where they lie unaligned") {
  const test::TempFolder folder;
  Rng rng(2);
  std::map<std::string, TestTensor> tensors;
  tensors["a"] = TestTensor::Random(rng, DType::kF16, {1, 1, 1});
  tensors["b:c"] = TestTensor::Random(rng, DType::kF32, {4, 2, 8});
  tensors["d"] = TestTensor::Random(rng, DType::kBF16, {3, 5, 16});
  test::WriteBytes(folder / "t.safetensors", test::Safetensors(tensors));
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    const absl::StatusOr<FileTensor> read =
        FileTensor::Read(absl::StrCat(folder / "t.safetensors", ":", name));
    REQUIRE(read.status().message() == "");
    CheckHolds(*read, tensor);
  }
}

TEST_CASE("npy: what is written reads back") {
  const test::TempFolder folder;
  const std::vector<float> values = {1, -2, 0.5f, 3, 4, 5};
  REQUIRE(WriteNpy(folder / "w.npy", {2, 3}, values).ok());
  CHECK(test::ReadF32(folder / "w.npy", {2, 3}) == values);
  CHECK(CheckNpyName(folder / "w.npy").ok());
  CHECK(absl::IsInvalidArgument(CheckNpyName(folder / "w.txt")));
  CHECK(absl::IsInvalidArgument(CheckNpyName("")));
}

TEST_CASE("npy: malformed files are refused by field") {
  Rng rng(3);
  const std::string good = TestTensor::Random(rng, DType::kF32, {2, 3, 8}).Npy();
  REQUIRE(ParseNpy(AsBytes(good)).ok());
  const std::pair<std::string, std::string> cases[] = {
      {"", "magic"},
      {"PK\x03\x04 something else", "magic"},
      {good.substr(0, 9), "version"},
      {absl::StrReplaceAll(good, {{std::string("\x01\x00", 2), std::string("\x04\x00", 2)}}),
       "version"},
      {good.substr(0, 40), "header length"},
      {absl::StrReplaceAll(good, {{"<f4", ">f4"}}), "descr"},
      {absl::StrReplaceAll(good, {{"<f4", "<f8"}}), "descr"},
      {absl::StrReplaceAll(good, {{"<f4", "<i4"}}), "descr"},
      {absl::StrReplaceAll(good, {{"False", "True "}}), "fortran_order"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8)", "(2, 3, 9)"}}), "data: 192 bytes; expected 216"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8)", "(0, 3, 8)"}}), "shape"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8)", "(2, 24)  "}}), "three sizes"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8)", "(2, -3, 8"}}), "shape"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8), }   ", "(4294967296,)  "}}), "header"},
      {absl::StrReplaceAll(good, {{"'shape'", "'shapf'"}}), "header key"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8)", "(02, 3, 8"}}), "shape"},
      {good + "x", "data: 193 bytes"},
      {good.substr(0, good.size() - 1), "data: 191 bytes"},
      // What people save, and what to do about it.
      {absl::StrReplaceAll(good, {{"<f4", ">f4"}}), "x.astype('<f4')"},
      {absl::StrReplaceAll(good, {{"<f4", "<f8"}}), "x.astype(np.float32)"},
      {absl::StrReplaceAll(good, {{"<f4", "<V2"}}), "bf16"},
      {absl::StrReplaceAll(good, {{"False", "True "}}), "np.ascontiguousarray(x)"},
      {absl::StrReplaceAll(good, {{"(2, 3, 8), }   ", "(1, 2, 3, 8), }"}}), "save x[0]"},
  };
  for (const auto& [file, field] : cases) {
    const absl::Status status = ParseNpy(AsBytes(file)).status();
    INFO(status.message() << " should name " << field);
    CheckOneLine(status);
    CHECK(absl::StrContains(status.message(), field));
  }
}

TEST_CASE("tensor files: mutations never crash and never reach beyond the file") {
  const uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  const TestTensor tensor = TestTensor::Random(rng, DType::kF16, {2, 2, 8});
  const std::string npy = tensor.Npy();
  const std::string safetensors = test::Safetensors({{"x", tensor}, {"y", tensor}});
  int accepted = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::string a = test::Mutated(rng, npy);
    const absl::StatusOr<TensorPlace> from_npy = ParseNpy(AsBytes(a));
    const std::string b = test::Mutated(rng, safetensors);
    const absl::StatusOr<TensorPlace> from_safetensors = ParseSafetensors(AsBytes(b), "y");
    for (const auto& [place, size] :
         {std::pair(&from_npy, a.size()), std::pair(&from_safetensors, b.size())}) {
      if (place->ok()) {
        ++accepted;
        CheckWithin(**place, size);
      } else {
        CheckOneLine(place->status());
      }
    }
  }
  CHECK(accepted > 100);
}

}  // namespace
}  // namespace annulus
