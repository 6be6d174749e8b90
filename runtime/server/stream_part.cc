#include "runtime/server/stream_part.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

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

}  // namespace annulus
