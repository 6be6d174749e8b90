// The messages of streams with tensors, whose fields are counted before they are parsed.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <vector>

#include "runtime/server/stall_watch.h"

namespace google::protobuf {
class Message;
}  // namespace google::protobuf

namespace annulus {

// Replaces all of the part. One that is malformed, or that has more texts and messages in it than
// any call has a use for, becomes an empty one, which whoever reads it refuses.
void ParsePart(grpc::ByteBuffer* bytes, google::protobuf::Message* part);

// Waits for the stream's next message. Whether it has come, or has gone.
template <typename Stream>
bool ReadPart(ClientPace* pace, Stream* stream, google::protobuf::Message* part) {
  grpc::ByteBuffer bytes;
  if (!pace->Wait(bytes, [&] { return stream->Read(&bytes); })) return false;
  ParsePart(&bytes, part);
  return true;
}

// The bytes of `field` where they lie, of a message that has that field once and nothing else; none
// of any other message, and of an empty field.
std::vector<grpc::Slice> BytesOf(const grpc::ByteBuffer& message, int field);

}  // namespace annulus
