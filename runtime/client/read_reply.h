// Reads what a stream of tensors answers. Private to the client library.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include "absl/status/status.h"
#include "base/status.h"
#include "runtime/protocol/public/convert.h"

namespace annulus {

// What `reader` makes of the stream's parts, or the first error: of a part, else the stream's own.
// The stream is read to its end even after a bad part, and cancelled then: its status comes last.
template <typename Reader, typename Part, typename Reply>
auto ReadReply(grpc::ClientReaderWriter<Part, Reply>* stream, grpc::ClientContext* rpc,
               Reader* reader) -> decltype(reader->Finish()) {
  absl::Status read;
  Reply reply;
  while (stream->Read(&reply)) {
    if (!read.ok()) continue;
    read = reader->Add(reply);
    if (!read.ok()) rpc->TryCancel();
  }
  const grpc::Status finish = stream->Finish();
  ANNULUS_RETURN_IF_ERROR(read);
  ANNULUS_RETURN_IF_ERROR(FromGrpc(finish));
  return reader->Finish();
}

}  // namespace annulus
