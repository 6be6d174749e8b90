// The messages of streams with tensors, whose fields are counted before they are parsed.
#pragma once

namespace google::protobuf {
class Message;
}  // namespace google::protobuf
namespace grpc {
class ByteBuffer;
}  // namespace grpc

namespace annulus {

// Replaces all of the part. One that is malformed, or that has more texts and messages in it than
// any call has a use for, becomes an empty one, which whoever reads it refuses.
void ParsePart(grpc::ByteBuffer* bytes, google::protobuf::Message* part);

}  // namespace annulus
