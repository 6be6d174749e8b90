// The safetensors reader refuses what the format's own library (0.8) refuses, and reads the rest.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "runtime/cli/files/safetensors_header.h"
#include "runtime/cli/files/tensor_file.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using test::TestTensor;

std::string File(absl::string_view header, size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return absl::StrCat(file, header, std::string(data_bytes, 'a'));
}

absl::StatusOr<TensorPlace> Parse(absl::string_view file, absl::string_view name = "x") {
  return ParseSafetensors({reinterpret_cast<const std::byte*>(file.data()), file.size()}, name);
}

void CheckRefused(const std::string& file, absl::string_view field) {
  const absl::Status status = Parse(file).status();
  INFO(status.message() << " should name " << std::string(field.data(), field.size()));
  CHECK(absl::IsInvalidArgument(status));
  CHECK(absl::StrContains(status.message(), field));
  CHECK(status.message().find('\n') == absl::string_view::npos);
}

std::string Entry(absl::string_view name, absl::string_view dtype, absl::string_view shape,
                  absl::string_view offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

const char kX[] = R"("x":{"dtype":"F32","shape":[1,1,8],"data_offsets":[0,32]})";

TEST_CASE("safetensors: malformed files are refused by field") {
  Rng rng(4);
  const std::string good =
      test::Safetensors({{"x", TestTensor::Random(rng, DType::kF32, {2, 3, 8})}});
  REQUIRE(Parse(good).ok());
  CheckRefused("short", "size");
  CheckRefused(std::string(7, '\xff') + "\x7f" + good.substr(8), "header length");
  const std::pair<std::string, std::string> cases[] = {
      {"{\"__", "[\"__"},         {"F32", "F33"},
      {"\"F32\"", "[1,2]"},       {"[2, 3, 8]", "[2, 3, 7]"},
      {"[2, 3, 8]", "[2, -3,8]"}, {"[2, 3, 8]", "\"2,3,8\"  "},
      {"[0, 192]", "[9, 192]"},   {"[0, 192]", "[0, 999]"},
      {"[0, 192]", "[192, 0]"},   {"__metadata__", "x\", \"_____"},
  };
  const char* const fields[] = {"header", "dtype",        "dtype",        "data_offsets", "shape",
                                "shape",  "data_offsets", "data_offsets", "data_offsets", "header"};
  for (size_t i = 0; i < std::size(cases); ++i) {
    CheckRefused(absl::StrReplaceAll(good, {{cases[i].first, cases[i].second}}), fields[i]);
  }
  CheckRefused(absl::StrReplaceAll(good, {{"F32", "I32"}}), "expected F32, F16 or BF16");
  CHECK(absl::StrContains(Parse(good, "y").status().message(), "\"x\""));
  CHECK(!Parse(good, "__metadata__").ok());
}

TEST_CASE("safetensors: data that are shared, overlap, leave holes or trail are refused") {
  const auto two = [](absl::string_view of_y) {
    return absl::StrCat("{", kX, ",", Entry("y", "F32", "[1,1,8]", of_y), "}");
  };
  REQUIRE(Parse(File(two("[32,64]"), 64)).ok());
  CheckRefused(File(two("[0,32]"), 32), "tensor \"y\": data_offsets");   // k and v alike
  CheckRefused(File(two("[16,48]"), 48), "tensor \"y\": data_offsets");  // overlapping
  CheckRefused(File(two("[36,68]"), 68), "tensor \"y\": data_offsets");  // a hole
  CheckRefused(File(two("[32,64]"), 65), "data: 65 bytes");              // behind the last
  CheckRefused(File(two("[32,64]"), 63), "data: 63 bytes");
  CheckRefused(File(two("[32,64]") + std::string(4, '\0'), 64), "header: a NUL");
  // What another tensor says wrongly is no less wrong.
  CheckRefused(File(two("[32,60]"), 60), "tensor \"y\": data_offsets");
}

TEST_CASE("safetensors: the header is what the format says") {
  const auto with = [](absl::string_view more) { return absl::StrCat("{", kX, more, "}"); };
  const std::string deep = std::string(125, '[') + std::string(125, ']');
  for (const std::string& header : {
           with(""),
           with("") + "   ",
           " " + with("") + " \n",
           with(R"(,"__metadata__":{"a":"b","c":""})"),
           with(R"(,"__metadata__":null)"),
           with(absl::StrCat(",", Entry("empty", "BOOL", "[0]", "[0,0]"))),
           with(absl::StrCat(",", Entry("empty", "U64", "[0,9223372036854775808]", "[32,32]"))),
           absl::StrReplaceAll(with(""), {{"\"shape\"", "\"more\":{\"a\":[1,{}]},\"shape\""}}),
           absl::StrReplaceAll(with(""), {{"\"shape\"", "\"more\":" + deep + ",\"shape\""}}),
       }) {
    INFO(header);
    CHECK(Parse(File(header, 32)).status().message() == "");
  }
  for (const auto& [header, field] : {
           std::pair(with(R"(,"__metadata__":{"a":1})"), "__metadata__"),
           {with(R"(,"__metadata__":{"a":{}})"), "__metadata__"},
           {with(R"(,"__metadata__":[])"), "__metadata__"},
           {with(R"(,"__metadata__":{},"__metadata__":{})"), "__metadata__"},
           {with(absl::StrCat(",", kX)), "named twice"},
           {with(R"(,"y":{"dtype":"F32"})"), "tensor \"y\": shape: none; expected"},
           {with(R"(,"y":null)"), "tensor \"y\""},
           {with(R"(,"y":[])"), "tensor \"y\""},
           {with(absl::StrCat(",", Entry("y", "F32", "[1.0]", "[32,36]"))), "shape"},
           {with(absl::StrCat(",", Entry("y", "F32", "[[1]]", "[32,36]"))), "shape"},
           {with(absl::StrCat(",", Entry("y", "F32", "[true]", "[32,36]"))), "shape"},
           {with(absl::StrCat(",", Entry("y", "F32", "[0]", "[32,32,32]"))), "data_offsets"},
           {with(absl::StrCat(",", Entry("y", "F4", "[3]", "[32,33]"))), "whole bytes"},
           {with(absl::StrCat(",", Entry("y", "U8", "[9223372036854775808,2,0]", "[32,32]"))),
            "shape"},
           {with(absl::StrCat(",", Entry("y", "U8", "[-0]", "[32,32]"))), "shape"},
           {with(absl::StrCat(",", Entry("y\\ud800", "U8", "[0]", "[32,32]"))), "header"},
           {with(",\"y\xff\":{}"), "header"},
           {absl::StrReplaceAll(with(""), {{"\"shape\"", "\"dtype\":\"F32\",\"shape\""}}), "dtype"},
           {absl::StrReplaceAll(with(""), {{"\"shape\"", "\"more\":[" + deep + "],\"shape\""}}),
            "deep"},
           {"\xef\xbb\xbf" + with(""), "header"},
           {with("") + "}", "header"},
           {std::string(), "header"},
       }) {
    CheckRefused(File(header, 32), field);
  }
  CHECK(Parse(File(with(absl::StrCat(",", Entry("y", "F4", "[3,2]", "[32,35]"))), 35)).ok());
  CHECK(Parse(File(with(absl::StrCat(",", Entry("y", "F6_E2M3", "[4]", "[32,35]"))), 35)).ok());
}

TEST_CASE("safetensors: 150,000 tensors are read at once") {
  std::string header = "{";
  for (int i = 0; i < 150'000; ++i) {
    absl::StrAppend(&header,
                    Entry(i == 75'000 ? "x" : absl::StrCat("t", i), "F32", "[1,1,8]",
                          absl::StrCat("[", 32 * i, ",", 32 * i + 32, "]")),
                    i + 1 < 150'000 ? "," : "}");
  }
  const std::string file = File(header, size_t{32} * 150'000);
  const absl::Time begin = absl::Now();
  REQUIRE(Parse(file).status().message() == "");
  // A tenth of a second; more under sanitizers. It was minutes when time grew with the square.
  CHECK(absl::Now() - begin < absl::Seconds(5));
  CHECK(!Parse(file, "y").ok());
}

// A file of random tensors in random order of names, whose header says `defect` wrong things.
std::string RandomFile(Rng& rng, int64_t defect) {
  const auto count = static_cast<int64_t>(1 + rng.Below(5));
  const int64_t spoilt = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(count)));
  std::vector<std::string> entries;
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto tokens = static_cast<int64_t>(1 + rng.Below(4));
    int64_t begin = at, end = at + tokens * 2 * 4 * 2;
    at = end;
    if (i == spoilt) {
      if (defect == 1) begin += 2;
      if (defect == 2) end -= 2;
      if (defect == 3) begin += 1, end += 1;
      if (defect == 4) end += int64_t{1} << 62;
      if (defect == 5) begin = 0, end = i == 0 ? 0 : end - begin;
    }
    entries.push_back(Entry(i == 0 ? "x" : absl::StrCat("t", i), "BF16",
                            absl::StrCat("[", tokens, ",2,4]"),
                            absl::StrCat("[", begin, ",", end, "]")));
    if (i == spoilt && defect == 6) entries.push_back(entries.back());
  }
  for (size_t i = entries.size(); i > 1; --i) std::swap(entries[i - 1], entries[rng.Below(i)]);
  std::string header = "{";
  for (const std::string& entry : entries) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", entry);
  }
  return File(header + "}", static_cast<size_t>(at + (defect == 7) - (defect == 8)));
}

TEST_CASE("safetensors: random files are read, with one defect refused") {
  const uint64_t seed = GENERATE(1, 2, 3);
  CAPTURE(seed);
  Rng rng(seed);
  for (int i = 0; i < 500; ++i) {
    const int64_t defect = i % 9;
    const std::string file = RandomFile(rng, defect);
    CAPTURE(defect, file);
    CHECK(Parse(file).ok() == (defect == 0));
  }
}

}  // namespace
}  // namespace annulus
