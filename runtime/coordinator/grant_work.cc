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
  const int world = static_cast<int>(map.workers.size());
  const Layout layout = LayoutOf(map.spec, world, tokens.end);
  AppendGrant grant{admit.call, NewSecret(), map.spec, admit.data_addresses};
  const wire::Append append{admit.call,   map.epoch,     map.context, request_.layer,
                            tokens.begin, tokens.size(), admit.mark};
  PreparedWork work;
  for (int rank = 0; rank < world; ++rank) {
    const int64_t bytes = AppendBytes(map.spec, layout, rank, tokens);
    // A rank that stores nothing of it hears of it all the same, as of every append.
    Message message =
        bytes == 0 ? wire::Encode(append)
                   : wire::Encode(wire::Expect{append, grant.secret, static_cast<uint64_t>(bytes),
                                               map.spec.dtype, deadline_ - clock_.Now()});
    work.messages.push_back({rank, {std::move(message)}});
  }
  ANNULUS_RETURN_IF_ERROR(granted_(grant));
  return work;
}

}  // namespace annulus
