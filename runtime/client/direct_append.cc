#include "runtime/client/direct_append.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "runtime/client/append_pieces.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/client/put.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/check_tensor.h"
#include "runtime/context/layout.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/client_identity.h"
#include "runtime/protocol/public/convert.h"

namespace annulus {
namespace {

// Large enough for the round trips of a grant not to count, small enough for a worker to keep the
// uploads of many clients.
constexpr int64_t kDirectPieceBytes = int64_t{32} << 20;
constexpr int kPutsAtOnce = 4;  // of one append, to different workers

// A rank's part of an append, packed a few blocks at a time as it is asked for.
class PackedPart {
 public:
  PackedPart(const ContextSpec& spec, const Layout& layout, int rank, const AppendRequest& piece,
             int64_t chunk_bytes)
      : spec_(spec), layout_(layout), rank_(rank), piece_(piece), chunk_bytes_(chunk_bytes) {
    const TokenRange tokens{piece.start, piece.start + piece.k.tokens};
    ForEachOwnedBlock(layout, rank, tokens,
                      [this](int64_t, TokenRange rows) { blocks_.push_back(rows); });
  }

  // As NextBytes.
  grpc::Slice Next() {
    if (packed_at_ == packed_.size() && !PackMore()) return {};
    const size_t end = std::min(packed_.size(), packed_at_ + static_cast<size_t>(chunk_bytes_));
    return packed_.sub(std::exchange(packed_at_, end), end);
  }

 private:
  // Packs blocks up to a chunk, at least one. The packing of a range of whole blocks is that part
  // of the packing of all of them.
  bool PackMore() {
    if (next_ == blocks_.size()) return false;
    const int64_t row_bytes = CountOf(layout_.KvHeads(rank_)) * TokenBytes(spec_);
    const TokenRange& first = blocks_[next_];
    int64_t bytes = 0;
    TokenRange tokens = first;
    while (next_ < blocks_.size()) {
      const int64_t more = blocks_[next_].size() * row_bytes;
      if (bytes > 0 && bytes + more > chunk_bytes_) break;
      bytes += more;
      tokens.end = blocks_[next_++].end;
    }
    packed_ = grpc::Slice(static_cast<size_t>(bytes));  // not zeroed
    packed_at_ = 0;
    const int64_t at = tokens.begin - piece_.start;
    const TensorView v = piece_.v.tokens == 0 ? TensorView() : piece_.v.Tokens(at, tokens.size());
    PackAppend(spec_, layout_, rank_, tokens, piece_.k.Tokens(at, tokens.size()), v,
               reinterpret_cast<std::byte*>(const_cast<uint8_t*>(packed_.begin())));
    return true;
  }

  const ContextSpec& spec_;
  const Layout& layout_;
  const int rank_;
  const AppendRequest& piece_;
  const int64_t chunk_bytes_;
  std::vector<TokenRange> blocks_;  // the rows of each
  size_t next_ = 0;                 // of blocks_
  grpc::Slice packed_;
  size_t packed_at_ = 0;  // what has been handed out of it
};

}  // namespace

DirectAppends::DirectAppends(std::shared_ptr<grpc::Channel> coordinator,
                             const ClientIdentity* identity, int64_t chunk_bytes)
    : coordinator_(std::move(coordinator)), identity_(identity), chunk_bytes_(chunk_bytes) {}

// The service says whether a data port speaks TLS: it may leave the encryption of bulk to the
// network.
absl::StatusOr<std::shared_ptr<grpc::Channel>> DirectAppends::ChannelTo(
    const std::string& address) {
  const std::string endpoint(absl::StripPrefix(address, kTlsScheme));
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("a worker's data port", endpoint));
  const bool tls = endpoint.size() != address.size();
  if (tls && !identity_->tls()) {
    return absl::FailedPreconditionError(
        absl::StrCat("tls_ca: none; expected one, for the data port ", address, " speaks TLS"));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<grpc::Channel>& channel = workers_[address];
  if (channel == nullptr) channel = tls ? identity_->ChannelTo(endpoint) : MakeChannel(endpoint);
  return channel;
}

absl::Status DirectAppends::UploadPart(const AppendGrant& grant, const ContextSpec& spec,
                                       const Layout& layout, size_t holder,
                                       const AppendRequest& piece, const Attempt& attempt) {
  const std::string& address = grant.addresses[holder];
  ANNULUS_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, ChannelTo(address));
  // A token is told in plain text only where it has been already.
  const bool tells = absl::StartsWith(address, kTlsScheme) || !identity_->tls();
  PackedPart part(spec, layout, grant.ranks[holder], piece, chunk_bytes_);
  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc, tells ? identity_->token() : nullptr);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  const absl::Status status =
      PutUpload(channel, &rpc, grant.id, grant.secret, [&part] { return part.Next(); });
  if (absl::IsPermissionDenied(status)) {
    // The grant is ours and fresh: the coordinator's word to the worker is late, or lost.
    return absl::UnavailableError(absl::StrCat("worker at ", address, ": ", status.message()));
  }
  if (!absl::IsUnavailable(status)) return status;
  return absl::UnavailableError(absl::StrCat(
      "worker's data port ", address, ": ", status.message(),
      "; where clients cannot reach the workers, upload by relay (ClientOptions::upload)"));
}

absl::Status DirectAppends::Upload(const v1::AppendGrant& message, const AppendRequest& piece,
                                   const Attempt& attempt) {
  ANNULUS_ASSIGN_OR_RETURN(const AppendGrant grant, ReplyOf<AppendGrant>(message));
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(grant.spec));
  const std::vector<ContextSpec> tracks = TrackSpecs(grant.spec);
  if (piece.layer < 0 || piece.layer >= StoredLayers(grant.spec)) {
    return absl::InternalError("the service granted an append to a layer that is none");
  }
  const ContextSpec& spec = SpecOfLayer(grant.spec, tracks, piece.layer);
  ANNULUS_RETURN_IF_ERROR(CheckKv(spec, piece.k, piece.v));
  const TokenRange tokens{piece.start, piece.start + piece.k.tokens};
  const Layout layout = LayoutOfLayer(grant.spec, tracks, piece.layer, grant.world,
                                      HeadMapOf(grant.spec, grant.world), tokens.end);
  std::vector<size_t> holders;  // that get something
  for (size_t i = 0; i < grant.ranks.size(); ++i) {
    if (AppendBytes(spec, layout, grant.ranks[i], tokens) > 0) holders.push_back(i);
  }
  ThreadPool* pool = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pool_ == nullptr) pool_ = std::make_unique<ThreadPool>(kPutsAtOnce);
    pool = pool_.get();
  }
  std::mutex mutex;
  absl::Status failure;  // the first one
  std::atomic<bool> failed = false;
  const auto put = [&](int64_t i) {
    if (failed) return;
    const absl::Status status =
        UploadPart(grant, spec, layout, holders[static_cast<size_t>(i)], piece, attempt);
    // A worker that was told to let go of an upload cancels it: the coordinator says why.
    if (status.ok() || absl::IsCancelled(status) || absl::IsAborted(status)) return;
    if (attempt.cancel.cancelled()) return;  // the stream's end says so
    failed = true;
    const std::lock_guard<std::mutex> lock(mutex);
    failure.Update(status);
  };
  // An upload that stands still must not hold up those of other callers.
  pool->ParallelFor(static_cast<int64_t>(holders.size()), put, {.urgent = true});
  return failure;
}

absl::StatusOr<AppendResult> DirectAppends::Append(const AppendRequest& request,
                                                   const Attempt& attempt) {
  ANNULUS_ASSIGN_OR_RETURN(const AppendCut cut, CutAppend(request, kDirectPieceBytes));
  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc, identity_->token());
  SetUpTrace(attempt.traceparent, &rpc);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  const auto stub = v1::Annulus::NewStub(coordinator_);
  const auto stream = stub->AppendDirect(&rpc);
  AppendResult result;
  absl::Status failure;  // our own: then the stream's end has nothing to say
  bool open = true;
  int64_t& next = *attempt.pieces_done;
  while (open && next < cut.pieces()) {
    const AppendRequest piece = PieceOf(request, cut, next);
    v1::DirectReply reply;
    v1::DirectAppend message;
    ANNULUS_RETURN_IF_ERROR(ToProto(DirectAppend{.context = piece.context,
                                                 .layer = piece.layer,
                                                 .start = piece.start,
                                                 .tokens = piece.k.tokens,
                                                 .key = piece.key},
                                    &message));
    open = stream->Write(message) && stream->Read(&reply);
    if (open && reply.has_grant()) {
      failure = Upload(reply.grant(), piece, attempt);
      open = failure.ok() && stream->Read(&reply);
    }
    if (!open) break;
    ANNULUS_ASSIGN_OR_RETURN(result, ReplyOf<AppendResult>(reply.result()));
    ++next;
    if (attempt.progress) attempt.progress(cut.bytes * next / cut.pieces(), cut.bytes);
  }
  if (open) {
    stream->WritesDone();
  } else if (!failure.ok()) {
    rpc.TryCancel();  // the coordinator gives the piece up at once
  }
  const absl::Status end = FromGrpc(stream->Finish());
  failure.Update(end);
  ANNULUS_RETURN_IF_ERROR(WithCommitted(failure, cut, next));
  if (!open) return absl::InternalError("the service ended the upload without a word");
  return result;
}

}  // namespace annulus
