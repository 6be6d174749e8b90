#include "comm/exchange_checks.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

absl::Status CheckOp(absl::string_view field, int peer, const void* data, size_t size_bytes,
                     int world) {
  if (peer < 0 || peer >= world) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".peer: ", peer, "; expected a rank below ", world));
  }
  if (data == nullptr && size_bytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: null; expected memory of ", size_bytes, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckOps(absl::Span<const SendOp> sends, absl::Span<const RecvOp> receives,
                      int world) {
  for (const SendOp& op : sends) {
    ANNULUS_RETURN_IF_ERROR(CheckOp("send", op.peer, op.data, op.size_bytes, world));
  }
  for (const RecvOp& op : receives) {
    ANNULUS_RETURN_IF_ERROR(CheckOp("receive", op.peer, op.data, op.size_bytes, world));
  }
  return absl::OkStatus();
}

absl::Status CheckMembers(int rank, absl::Span<const std::string> addresses,
                          absl::string_view own) {
  if (rank < 0 || static_cast<size_t>(rank) >= addresses.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank: ", rank, "; expected one of ", addresses.size(), " addresses"));
  }
  if (addresses[rank] != own) {
    return absl::InvalidArgumentError(
        absl::StrCat("addresses[", rank, "]: ", absl::CHexEscape(addresses[rank].substr(0, 80)),
                     "; expected this fabric's own address"));
  }
  return absl::OkStatus();
}

absl::Status SizeMismatch(int source, size_t sent_bytes, int dest, size_t received_bytes) {
  return absl::InternalError(absl::StrCat("rank ", source, " sends ", sent_bytes, " bytes, rank ",
                                          dest, " receives ", received_bytes,
                                          " bytes: paired operations must be of equal size"));
}

absl::Status AbortedByRank(int rank, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("rank ", rank, " aborted the exchange: ", why));
}

absl::Status RankIsDown(int rank, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("rank ", rank, " is down: ", why));
}

}  // namespace annulus
