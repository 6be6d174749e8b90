#include "runtime/server/stream_part.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "runtime/protocol/public/field_count.h"

namespace annulus {
namespace {

constexpr int64_t kPartFieldsMax = 4096;

}  // namespace

void ParsePart(grpc::ByteBuffer* bytes, google::protobuf::Message* part) {
  std::optional<int64_t> fields;
  {
    grpc::ProtoBufferReader reader(bytes);
    google::protobuf::io::CodedInputStream input(&reader);
    fields = CountFields(&input, *part->GetDescriptor(), kPartFieldsMax);
  }
  grpc::ProtoBufferReader reader(bytes);
  if (!fields.has_value() || *fields > kPartFieldsMax || !part->ParseFromZeroCopyStream(&reader)) {
    part->Clear();
  }
  bytes->Clear();
}

std::vector<grpc::Slice> BytesOf(const grpc::ByteBuffer& message, int field) {
  using google::protobuf::internal::WireFormatLite;
  size_t head = 0;
  {
    grpc::ByteBuffer shared = message;  // the reader wants one that it may change
    grpc::ProtoBufferReader reader(&shared);
    google::protobuf::io::CodedInputStream input(&reader);
    uint32_t size = 0;
    if (input.ReadTag() !=
            WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED) ||
        !input.ReadVarint32(&size)) {
      return {};
    }
    head = static_cast<size_t>(input.CurrentPosition());
    if (message.Length() - head != size) return {};
  }
  std::vector<grpc::Slice> all, bytes;
  if (!message.Dump(&all).ok()) return {};
  for (const grpc::Slice& slice : all) {
    const size_t before = std::min(head, slice.size());
    head -= before;
    if (before < slice.size()) bytes.push_back(slice.sub(before, slice.size()));
  }
  return bytes;
}

}  // namespace annulus
