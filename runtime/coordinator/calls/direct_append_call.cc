#include "runtime/coordinator/calls/direct_append_call.h"

#include <utility>

#include "base/secret.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/identity/peer_name.h"

namespace annulus {
namespace {

// From the system's generator: whoever guesses it may write into the context.
std::string NewSecret() {
  std::string secret(wire::kSecretBytes, '\0');
  FillRandom({reinterpret_cast<std::byte*>(secret.data()), secret.size()});
  return secret;
}

}  // namespace

request::Work DirectAppendCall::request() const {
  request::Work work;
  work.items = {{request_.context, request_.layer, request_.start, request_.tokens,
                 /*q_tokens=*/0, request_.key, request::WorkItem::Kind::kAppend}};
  work.direct = true;
  return work;
}

absl::StatusOr<PreparedCall> DirectAppendCall::Prepare(const action::Admit& admit) {
  const action::AdmittedItem& item = admit.items.front();
  const ShardMap& map = *item.map;
  const TokenRange tokens{request_.start, request_.start + request_.tokens};
  const ContextSpec& spec = map.SpecOf(request_.layer);
  const Layout layout = map.layout(request_.layer, tokens.end);
  AppendGrant grant{admit.call, NewSecret(), map.spec, map.world, admit.data_addresses, {}};
  wire::Work work;
  work.request = admit.call;
  work.traceparent = ToTraceparent(call_.trace);
  work.tenant = NumberOf(call_.caller);
  wire::WorkItem& append = work.items.emplace_back();
  append.epoch = map.epoch;
  append.storage_id = map.storage_id;
  append.layer = request_.layer;
  append.start = tokens.begin;
  append.k_tokens = tokens.size();
  append.mark = item.mark;
  PreparedCall prepared;
  for (size_t i = 0; i < map.holders.size(); ++i) {
    grant.ranks.push_back(map.holders[i].rank);
    append.append_bytes =
        static_cast<size_t>(AppendBytes(spec, layout, map.holders[i].rank, tokens));
    work.time_left = call_.deadline - clock_.Now();
    // One that stores nothing of it hears of it all the same, as of every append.
    Message message =
        append.append_bytes == 0
            ? wire::Encode(work)
            : wire::Encode(wire::ExpectUpload{work, grant.secret, spec.dtype, call_.caller.tenant});
    prepared.messages.push_back({static_cast<int>(i), std::move(message)});
  }
  ANNULUS_RETURN_IF_ERROR(request_.granted(grant));
  return prepared;
}

}  // namespace annulus
