// Counts what an encoded message would make in memory, before it is parsed. A message of 4 MiB can
// hold two million empty ones, which would take 300 MB once parsed. Pure function.
#pragma once

#include <cstdint>
#include <optional>

namespace google::protobuf {
class Descriptor;
namespace io {
class CodedInputStream;
}  // namespace io
}  // namespace google::protobuf

namespace annulus {

// Of a text, of bytes or of a message within a message, in memory, beside its own bytes.
inline constexpr int64_t kParsedFieldBytes = 160;

// How many texts, bytes and messages an encoded message of this type holds, those of its messages
// included, and how many fields that the type does not have; more than `max` is max + 1. Numbers
// of fields that it has do not count: they take no more in memory than eight times their bytes.
// nullopt: the bytes are no message, or hold a group, which no message here does. Reads to the
// message's end or to the fault; limits that it pushes are popped.
std::optional<int64_t> CountFields(google::protobuf::io::CodedInputStream* input,
                                   const google::protobuf::Descriptor& type, int64_t max);

}  // namespace annulus
