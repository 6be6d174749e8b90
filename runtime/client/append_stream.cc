#include "runtime/client/append_stream.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "base/status.h"
#include "runtime/client/append_pieces.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/tensor_stream.h"

namespace annulus {

absl::StatusOr<AppendResult> StreamAppend(const std::shared_ptr<grpc::Channel>& channel,
                                          TokenFile* token, const AppendRequest& request,
                                          int64_t chunk_bytes, const Attempt& attempt) {
  ANNULUS_ASSIGN_OR_RETURN(const AppendCut cut, CutAppend(request));
  v1::AppendPart part;
  v1::AppendHeader* header = part.mutable_header();
  ANNULUS_RETURN_IF_ERROR(ToProto(request, header));
  ToProto(request.k, header->mutable_k());
  if (request.v.tokens != 0) ToProto(request.v, header->mutable_v());
  header->set_piece_tokens(cut.piece_tokens);

  v1::AppendResult reply;
  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc, token);
  SetUpTrace(attempt.traceparent, &rpc);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  const auto stub = v1::Annulus::NewStub(channel);
  const auto stream = stub->Append(&rpc, &reply);
  bool open = stream->Write(part);
  int64_t sent_bytes = 0;
  ChunkWriter writer(chunk_bytes, [&](std::string* data) {
    sent_bytes += static_cast<int64_t>(data->size());
    part.mutable_data()->swap(*data);
    if (!stream->Write(part)) return false;
    if (attempt.progress) attempt.progress(sent_bytes, cut.bytes);
    return true;
  });
  for (int64_t i = 0; open && i < cut.pieces(); ++i) {
    const AppendRequest piece = PieceOf(request, cut, i);
    open = writer.Write(piece.k) && (piece.v.tokens == 0 || writer.Write(piece.v));
  }
  if (open && writer.Flush()) stream->WritesDone();
  ANNULUS_RETURN_IF_ERROR(FromGrpc(stream->Finish()));
  return AppendResult{.epoch = reply.epoch(), .tokens = reply.tokens()};
}

}  // namespace annulus
