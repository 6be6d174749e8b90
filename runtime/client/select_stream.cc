#include "runtime/client/select_stream.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/client/read_reply.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/key_lists.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "runtime/protocol/public/unary.h"

namespace annulus {
namespace {

// What a service may answer: lists of more would not be taken by a call either.
constexpr int64_t kListBytesMax = int64_t{4} << 30;

absl::Status TakeLists(std::vector<CallList> lists, SelectResult* result) {
  result->lists = std::move(lists);
  return absl::OkStatus();
}

absl::Status TakeLists(std::vector<CallList> lists, CompressResult* result) {
  if (lists.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat("lists: ", lists.size(), "; expected 1"));
  }
  result->kept = std::move(lists[0]);
  return absl::OkStatus();
}

// The reply, part by part.
template <typename Result>
class Reader {
 public:
  absl::Status Add(const v1::AttendReplyPart& part) {
    if (!started_) {
      if (part.part_case() != v1::AttendReplyPart::kHeader) {
        return absl::InternalError("the reply has no header");
      }
      return Start(part.header());
    }
    absl::string_view data = part.data();
    filler_.Take(&data);
    return data.empty() ? absl::OkStatus()
                        : absl::InternalError("the reply has more bytes than it declared");
  }

  absl::StatusOr<Result> Finish() {
    if (!started_ || !filler_.full()) {
      return absl::InternalError("the reply ended before all of its bytes had come");
    }
    return std::move(result_);
  }

 private:
  absl::Status Start(const v1::AttendReplyHeader& header) {
    const auto read = [&]() -> absl::Status {
      ANNULUS_ASSIGN_OR_RETURN(result_, ReplyOf<Result>(header));
      ANNULUS_RETURN_IF_ERROR(CheckLists(header.lists(), kListBytesMax).status());
      ANNULUS_ASSIGN_OR_RETURN(ListsRead lists, FromProto(header.lists(), /*with_data=*/false));
      ANNULUS_RETURN_IF_ERROR(TakeLists(std::move(lists.lists), &result_));
      filler_.Aim(std::move(lists.missing));
      return absl::OkStatus();
    };
    const absl::Status status = read();
    started_ = status.ok();
    return status.ok() ? status
                       : absl::InternalError(absl::StrCat("the reply: ", status.message()));
  }

  bool started_ = false;
  Result result_;
  Filler filler_;
};

using Stub = v1::Annulus::Stub;
using Stream = grpc::ClientReaderWriter<v1::AttendPart, v1::AttendReplyPart>;

// `part` has the header but for q; `open` opens the call's stream.
template <typename Result, typename Open>
absl::StatusOr<Result> StreamCall(const std::shared_ptr<grpc::Channel>& channel, TokenFile* token,
                                  const TensorView& q, v1::AttendPart part, int64_t chunk_bytes,
                                  const Attempt& attempt, Open open) {
  ToProto(q, part.mutable_header()->mutable_q());
  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc, token);
  SetUpTrace(attempt.traceparent, &rpc);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  const auto stub = v1::Annulus::NewStub(channel);
  const std::unique_ptr<Stream> stream = open(stub.get(), &rpc);
  const bool is_open = stream->Write(part);
  ChunkWriter writer(chunk_bytes, [&](std::string* data) {
    part.mutable_data()->swap(*data);
    return stream->Write(part);
  });
  // The stream's end says what failed.
  (void)(is_open && writer.Write(q) && writer.Flush());
  stream->WritesDone();
  Reader<Result> reader;
  return ReadReply(stream.get(), &rpc, &reader);
}

}  // namespace

absl::StatusOr<SelectResult> StreamSelect(const std::shared_ptr<grpc::Channel>& channel,
                                          TokenFile* token, const SelectRequest& request,
                                          int64_t chunk_bytes, const Attempt& attempt) {
  ANNULUS_RETURN_IF_ERROR(Streamable(request.q, "q").status());
  v1::AttendPart part;
  ANNULUS_RETURN_IF_ERROR(ToProto(AttendOf(request), part.mutable_header()));
  part.mutable_header()->mutable_weights()->Add(request.weights.begin(), request.weights.end());
  return StreamCall<SelectResult>(
      channel, token, request.q, std::move(part), chunk_bytes, attempt,
      [](Stub* stub, grpc::ClientContext* rpc) { return stub->Select(rpc); });
}

absl::StatusOr<CompressResult> StreamCompress(const std::shared_ptr<grpc::Channel>& channel,
                                              TokenFile* token, const CompressRequest& request,
                                              int64_t chunk_bytes, const Attempt& attempt) {
  ANNULUS_RETURN_IF_ERROR(Streamable(request.q, "q").status());
  v1::AttendPart part;
  ANNULUS_RETURN_IF_ERROR(ToProto(AttendOf(request), part.mutable_header()));
  ANNULUS_RETURN_IF_ERROR(ToProto(request, part.mutable_header()->mutable_compress()));
  return StreamCall<CompressResult>(
      channel, token, request.q, std::move(part), chunk_bytes, attempt,
      [](Stub* stub, grpc::ClientContext* rpc) { return stub->Compress(rpc); });
}

}  // namespace annulus
