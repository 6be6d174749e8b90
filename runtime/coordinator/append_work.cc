#include "runtime/coordinator/append_work.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/coordinator/check_tensor.h"
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

absl::Status CheckKv(const ContextSpec& spec, const TensorView& k, const TensorView& v) {
  ANNULUS_RETURN_IF_ERROR(CheckTensor("k", k, spec.kv_heads, spec.head_dim, spec.dtype));
  if (spec.v_is_k_prefix) {
    if (v.tokens == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("v.tokens: ", v.tokens, "; expected 0: in this context V is K's first dims"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckTensor("v", v, spec.kv_heads, spec.v_head_dim, spec.dtype));
  if (v.tokens == k.tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("v.tokens: ", v.tokens, "; expected k.tokens, ", k.tokens));
}

absl::StatusOr<PreparedWork> AppendWork::Prepare(const action::Admit& admit) {
  const action::AdmittedItem& item = admit.items.front();
  const ShardMap& map = *item.map;
  ANNULUS_RETURN_IF_ERROR(CheckKv(map.spec, request_.k, request_.v));

  // Every holder hears of every append, also where it stores nothing of it, so that each knows the
  // layer's length and a gap cannot go unnoticed.
  const TokenRange tokens{request_.start, request_.start + request_.k.tokens};
  const Layout layout = LayoutOf(map.spec, map.world, tokens.end);
  const wire::Append append{admit.call,   map.epoch,     map.storage, request_.layer,
                            tokens.begin, tokens.size(), item.mark};
  PreparedWork work;
  for (size_t i = 0; i < map.holders.size(); ++i) {
    const int rank = map.holders[i].rank;
    Buffer packed = PackAppend(map.spec, layout, rank, tokens, request_.k, request_.v);
    work.messages.push_back({static_cast<int>(i), wire::Encode(append, std::move(packed))});
  }
  return work;
}

absl::StatusOr<PreparedWork> GrantWork::Prepare(const action::Admit& admit) {
  const action::AdmittedItem& item = admit.items.front();
  const ShardMap& map = *item.map;
  const TokenRange tokens{request_.start, request_.start + request_.tokens};
  const Layout layout = LayoutOf(map.spec, map.world, tokens.end);
  AppendGrant grant{admit.call, NewSecret(), map.spec, map.world, admit.data_addresses, {}};
  const wire::Append append{admit.call,   map.epoch,     map.storage, request_.layer,
                            tokens.begin, tokens.size(), item.mark};
  PreparedWork work;
  for (size_t i = 0; i < map.holders.size(); ++i) {
    grant.ranks.push_back(map.holders[i].rank);
    const int64_t bytes = AppendBytes(map.spec, layout, map.holders[i].rank, tokens);
    // One that stores nothing of it hears of it all the same, as of every append.
    Message message =
        bytes == 0 ? wire::Encode(append)
                   : wire::Encode(wire::Expect{append, grant.secret, static_cast<uint64_t>(bytes),
                                               map.spec.dtype, deadline_ - clock_.Now()});
    work.messages.push_back({static_cast<int>(i), std::move(message)});
  }
  ANNULUS_RETURN_IF_ERROR(granted_(grant));
  return work;
}

}  // namespace annulus
