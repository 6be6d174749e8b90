#include "comm/nccl/size_agreement.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

// Sizes that go with the counts; what is more goes in a second round.
constexpr size_t kInline = 14;

struct Head {
  uint32_t sends = 0;
  uint32_t receives = 0;
  uint64_t sizes[kInline] = {};
};

std::vector<uint64_t> Joined(const PeerSizes& sizes) {
  std::vector<uint64_t> all = sizes.sends;
  all.insert(all.end(), sizes.receives.begin(), sizes.receives.end());
  return all;
}

PeerSizes Parted(const uint64_t* sizes, size_t sends, size_t receives) {
  return {{sizes, sizes + sends}, {sizes + sends, sizes + sends + receives}};
}

absl::Status OtherOperations(int rank, const PeerSizes& mine, int peer, const Head& theirs) {
  return absl::InternalError(
      absl::StrCat("in one group rank ", rank, " posts ", mine.sends.size(), " sends to and ",
                   mine.receives.size(), " receives from rank ", peer, ", which posts ",
                   theirs.receives, " receives and ", theirs.sends, " sends; expected as many"));
}

}  // namespace

SizesByPeer SizesOf(absl::Span<const SendOp> sends, absl::Span<const RecvOp> receives) {
  SizesByPeer sizes;
  for (const SendOp& op : sends) sizes[op.peer].sends.push_back(op.size_bytes);
  for (const RecvOp& op : receives) sizes[op.peer].receives.push_back(op.size_bytes);
  return sizes;
}

absl::StatusOr<SizesByPeer> Agree(Exchange& control, const SizesByPeer& mine,
                                  const ControlWait& wait) {
  std::map<int, Head> out, in;
  std::vector<SendOp> sends;
  std::vector<RecvOp> receives;
  for (const auto& [peer, sizes] : mine) {
    if (peer == control.rank()) continue;
    Head& head = out[peer];
    head.sends = static_cast<uint32_t>(sizes.sends.size());
    head.receives = static_cast<uint32_t>(sizes.receives.size());
    const std::vector<uint64_t> all = Joined(sizes);
    std::copy_n(all.begin(), std::min(kInline, all.size()), head.sizes);
    sends.push_back({peer, &head, sizeof head});
    receives.push_back({peer, &in[peer], sizeof(Head)});
  }
  if (sends.empty()) return SizesByPeer();
  ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket heads, control.Post(sends, receives));
  ANNULUS_RETURN_IF_ERROR(wait(heads));

  SizesByPeer theirs;
  std::map<int, std::vector<uint64_t>> long_out, long_in;
  sends.clear();
  receives.clear();
  for (const auto& [peer, head] : in) {
    const PeerSizes& sizes = mine.at(peer);
    if (head.receives != sizes.sends.size() || head.sends != sizes.receives.size()) {
      return OtherOperations(control.rank(), sizes, peer, head);
    }
    if (head.sends + head.receives <= kInline) {
      theirs[peer] = Parted(head.sizes, head.sends, head.receives);
      continue;
    }
    std::vector<uint64_t>& all = long_out[peer] = Joined(sizes);
    std::vector<uint64_t>& other = long_in[peer];
    other.resize(all.size());
    sends.push_back({peer, all.data(), all.size() * sizeof(uint64_t)});
    receives.push_back({peer, other.data(), other.size() * sizeof(uint64_t)});
  }
  if (sends.empty()) return theirs;
  ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket rest, control.Post(sends, receives));
  ANNULUS_RETURN_IF_ERROR(wait(rest));
  for (const auto& [peer, sizes] : long_in) {
    theirs[peer] = Parted(sizes.data(), in[peer].sends, in[peer].receives);
  }
  return theirs;
}

}  // namespace annulus
