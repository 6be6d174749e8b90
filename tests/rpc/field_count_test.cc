// Messages that would take much more memory than their bytes are counted before they are parsed.
#include "runtime/protocol/public/field_count.h"

#include <google/protobuf/io/coded_stream.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/server/stream_part.h"
#include "tests/catch.h"
#include "tests/rpc/raw_server.h"

namespace annulus {
namespace {

std::optional<int64_t> Count(const std::string& bytes, int64_t max) {
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()),
                                               static_cast<int>(bytes.size()));
  return CountFields(&input, *v1::AttendPart::descriptor(), max);
}

int64_t PeakBytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} << 10;
}

TEST_CASE("texts, messages and what a type does not have are counted, numbers are not") {
  v1::AttendPart part;
  CHECK(Count(part.SerializeAsString(), 10) == 0);
  v1::AttendHeader& header = *part.mutable_header();
  header.set_context(7);
  for (int i = 0; i < 1000; ++i) header.add_sinks(1);  // packed: one field of numbers
  CHECK(Count(part.SerializeAsString(), 10) == 1);
  header.mutable_q()->set_dtype("f32");
  header.set_pattern("causal");
  header.set_data(std::string(100, '\x0b'));
  CHECK(Count(part.SerializeAsString(), 10) == 5);
  header.add_lists()->set_name("x");
  CHECK(Count(part.SerializeAsString(), 10) == 7);
  CHECK(Count(part.SerializeAsString(), 3) == 4);
  // A number under a field that there is none of, and a packed field with a tag for each number.
  CHECK(Count(std::string("\xf8\x07\x01", 3), 10) == 1);
  CHECK(Count(std::string("\x0a\x0a\x7d\0\0\0\0\x7d\0\0\0\0", 12), 10) == 1);
}

TEST_CASE("bytes that are no message, and groups, are not counted") {
  CHECK(Count("\x0a\x05\x08", 10) == std::nullopt);  // cut off
  CHECK(Count("\xff", 10) == std::nullopt);
  CHECK(Count(std::string("\x0b\x0c", 2), 10) == std::nullopt);          // a group
  CHECK(Count(std::string("\x0a\x02\x0b\x0c", 4), 10) == std::nullopt);  // within a header
}

TEST_CASE("a header of two million empty lists takes no memory and is refused") {
  const RawServer raw;
  CHECK_FALSE(raw.Attend({Header("f32", 1, 1, 1)}).ok());  // what a first call makes is there
  std::vector<v1::AttendPart> parts(1);
  v1::AttendHeader& header = *parts[0].mutable_header();
  while (header.lists_size() < 2'000'000) header.add_lists();
  const int64_t before = PeakBytes();
  const grpc::Status status = raw.Attend(parts);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(PeakBytes() - before < int64_t{64} << 20);  // 300 MB if it is parsed
  CHECK(raw.service.calls == 0);
}

}  // namespace
}  // namespace annulus
