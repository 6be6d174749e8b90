#include "runtime/coordinator/grant_work.h"

#include <random>
#include <utility>

#include "base/status.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

// From the system's generator: whoever guesses it may write into the context.
std::string NewSecret() {
  std::random_device device;
  std::string secret(wire::kSecretBytes, '\0');
  for (char& byte : secret) byte = static_cast<char>(device());
  return secret;
}

}  // namespace

absl::StatusOr<PreparedWork> GrantWork::Prepare(const action::Admit& admit) {
  const ShardMap& map = *admit.map;
  const TokenRange tokens{request_.start, request_.start + request_.tokens};
  const Layout layout = LayoutOf(map.spec, map.world, tokens.end);
  AppendGrant grant{admit.call, NewSecret(), map.spec, map.world, admit.data_addresses, {}};
  const wire::Append append{admit.call,   map.epoch,     map.storage, request_.layer,
                            tokens.begin, tokens.size(), admit.mark};
  PreparedWork work;
  for (size_t i = 0; i < map.holders.size(); ++i) {
    grant.ranks.push_back(map.holders[i].rank);
    const int64_t bytes = AppendBytes(map.spec, layout, map.holders[i].rank, tokens);
    // One that stores nothing of it hears of it all the same, as of every append.
    Message message =
        bytes == 0 ? wire::Encode(append)
                   : wire::Encode(wire::Expect{append, grant.secret, static_cast<uint64_t>(bytes),
                                               map.spec.dtype, deadline_ - clock_.Now()});
    work.messages.push_back({static_cast<int>(i), {std::move(message)}});
  }
  ANNULUS_RETURN_IF_ERROR(granted_(grant));
  return work;
}

}  // namespace annulus
