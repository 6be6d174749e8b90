// The admission of calls' items: what each wants is checked against what is committed, and an
// append holds its layer from here on.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/retention.h"
#include "runtime/coordinator/core/calls.h"
#include "runtime/coordinator/core/checks.h"
#include "runtime/coordinator/core/placement.h"

namespace annulus {
namespace {

// Whether the tokens are an earlier piece of the request whose last piece was the layer's last
// append. A long upload's pieces have one size, but for the last, and sequence numbers one after
// the other.
bool IsEarlierPiece(const Layer& layer, TokenRange tokens, RequestKey key) {
  if (!key.given() || key.client != layer.last_key.client) return false;
  if (key.sequence >= layer.last_key.sequence || tokens.size() < 1) return false;
  const int64_t between = layer.last_tokens.begin - tokens.begin;
  return between > 0 && between % tokens.size() == 0 &&
         static_cast<uint64_t>(between / tokens.size()) == layer.last_key.sequence - key.sequence;
}

// Whether the tokens are to be appended: not if they were, by the same request.
absl::StatusOr<bool> CheckAppend(const Context& context, const Layer& layer,
                                 const ContextSpec& of_layer, TokenRange tokens, RequestKey key) {
  if (layer.appending != 0) {
    return absl::UnavailableError(
        "another append to this layer, or an earlier try of this one, is in flight; retry after "
        "it");
  }
  if (key.given() && key == layer.last_key) {
    if (tokens != layer.last_tokens) {
      return Bad("sequence of the request's key", static_cast<int64_t>(key.sequence),
                 absl::StrCat("a new one: it appended tokens [", layer.last_tokens.begin, ", ",
                              layer.last_tokens.end, ")"));
    }
    if (layer.tokens >= tokens.end) return false;
    return absl::AbortedError("what this request appended has been truncated since");
  }
  if (IsEarlierPiece(layer, tokens, key) && layer.tokens >= tokens.end) return false;
  if (context.moving >= Moving::kHoldsOff) {
    return absl::UnavailableError("the context is being moved; retry");
  }
  if (tokens.begin != layer.tokens) {
    return Bad("start", tokens.begin, absl::StrCat(layer.tokens, ", the layer's committed tokens"));
  }
  const int64_t expected = of_layer.tokens_expected;
  const int64_t tokens_max = expected > 0 ? expected : kContextTokensMax;
  if (tokens.size() > tokens_max - tokens.begin) {
    return Bad("tokens of k", tokens.size(),
               absl::StrCat("at most ", tokens_max - tokens.begin, ", since the context ends at ",
                            tokens_max));
  }
  return true;
}

absl::Status CheckAttend(const ContextSpec& spec, const Layer& layer,
                         const request::WorkItem& ask) {
  const int64_t kv_len = ask.kv_len(), ratio = RatioOf(spec, ask.layer);
  if (ask.q_tokens < 1 || ask.q_tokens > kContextTokensMax) {
    return Bad("tokens of q", ask.q_tokens, absl::StrCat("1 to ", kContextTokensMax));
  }
  if (layer.tokens == 0) {
    return Bad("kv_len", kv_len,
               absl::StrCat("tokens to attend to: ", LayerName(spec, ask.layer), " has none yet"));
  }
  if (kv_len < 1 || kv_len / ratio > layer.tokens) {
    return Bad("kv_len", kv_len,
               absl::StrCat("1 to ", (layer.tokens + 1) * ratio - 1, ", the committed tokens of ",
                            LayerName(spec, ask.layer)));
  }
  if (ask.q_start < 0 || ask.q_start > kContextTokensMax - ask.q_tokens) {
    return Bad("q_start", ask.q_start,
               absl::StrCat("0 to ", kContextTokensMax - ask.q_tokens, " with ", ask.q_tokens,
                            " queries"));
  }
  if (ask.keys.begin < 0 || ask.keys.end > kv_len || ask.keys.begin >= ask.keys.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: [", ask.keys.begin, ", ", ask.keys.end,
                     "); expected at least one of the tokens from 0 to kv_len ", kv_len));
  }
  return absl::OkStatus();
}

// Of a Step, whose queries are the last tokens that the layer has after it.
absl::Status CheckStep(const Layer& layer, const request::WorkItem& ask) {
  if (ask.k_tokens < 0 || ask.k_tokens > kContextTokensMax) {
    return Bad("tokens of k", ask.k_tokens, absl::StrCat("0 to ", kContextTokensMax));
  }
  if (ask.q_tokens < 0 ||
      (ask.q_tokens != ask.k_tokens && ask.q_tokens != 0 && ask.k_tokens != 0)) {
    return Bad("tokens of q", ask.q_tokens, absl::StrCat(ask.k_tokens, ", those of k, or none"));
  }
  if (ask.q_tokens == 0 && ask.k_tokens == 0) {
    return Bad("tokens of q", 0, "at least 1 in a step that appends nothing");
  }
  if (ask.appended_before && ask.start <= layer.tokens) return absl::OkStatus();
  if (ask.k_tokens == 0 && ask.start != layer.tokens) {
    return Bad("start", ask.start, absl::StrCat(layer.tokens, ", the layer's committed tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckAsk(const Context& context, const Layer& layer, const request::WorkItem& ask) {
  using Kind = request::WorkItem::Kind;
  if (ask.kind == Kind::kAttend) return CheckAttend(context.map->spec, layer, ask);
  if (ask.kind == Kind::kStep) return CheckStep(layer, ask);
  if (ask.k_tokens >= 1 && ask.k_tokens <= kContextTokensMax) return absl::OkStatus();
  return Bad("tokens of k", ask.k_tokens, absl::StrCat("1 to ", kContextTokensMax));
}

}  // namespace

absl::StatusOr<Context*> Calls::FindUsable(ContextId id, const Caller& caller) const {
  ANNULUS_ASSIGN_OR_RETURN(Context * context, recovery_.Find(caller, id));
  contexts_.Use(*context);
  ANNULUS_RETURN_IF_ERROR(context->CheckUsable());
  return context;
}

// Of all holders of the context, for a direct append.
absl::StatusOr<std::vector<std::string>> Calls::DataAddresses(const request::WorkItem& append,
                                                              const Caller& caller) const {
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindUsable(append.context, caller));
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, context->FindLayer(append.layer));
  ANNULUS_RETURN_IF_ERROR(CheckAsk(*context, *layer, append));
  std::vector<std::string> addresses;
  for (const Holder& holder : context->map->holders) {
    const Member& member = members_.at(holder.worker);
    if (member.status.data_address.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(member.label, " has no data port; upload by relay (ClientOptions::upload)"));
    }
    addresses.push_back(member.status.data_address);
  }
  return addresses;
}

absl::Status Calls::Start(Entry entry, const request::Work& work, const Caller& caller) {
  if (work.items.empty() || work.items.size() > static_cast<size_t>(kStepsAtOnceMax)) {
    return Bad("steps of one batch", std::ssize(work.items),
               absl::StrCat("1 to ", kStepsAtOnceMax));
  }
  action::Admit admit;
  if (work.direct) {
    ANNULUS_ASSIGN_OR_RETURN(admit.data_addresses, DataAddresses(work.items[0], caller));
  }
  Call& call = entry->second;
  call.kind = Kind::kItems;
  admit.call = entry->first;
  std::map<WorkerId, size_t> receivers;
  int64_t bytes = 0;
  bool any_live = false;
  for (const request::WorkItem& ask : work.items) {
    Item& item = call.items.emplace_back();
    item.ask = ask;
    item.status = AdmitItem(item, admit.call, caller);
    admit.items.push_back({item.status,
                           item.map,
                           item.appends,
                           item.attends,
                           item.horizon,
                           {item.append_number, ask.key}});
    if (!admit.items.back().live()) {
      item.ended = true;
      continue;
    }
    any_live = true;
    // Once the sum is too large it grows no further, and so cannot overflow.
    if (bytes <= limits_.request_bytes_max) bytes += BytesOf(item);
    for (const Holder& holder : item.map->Receivers(item.appends)) {
      if (receivers.emplace(holder.worker, call.workers.size()).second) {
        call.workers.push_back(holder.worker);
      }
    }
  }
  absl::Status status = any_live ? Reserve(bytes, work.direct, call, caller) : absl::OkStatus();
  if (!status.ok()) {
    for (Item& item : call.items) {
      EndItem(admit.call, item, status);
      StopUsing(item);
    }
    return status;
  }
  if (!any_live) return absl::OkStatus();
  admit.workers = call.workers;
  out_.Emit(std::move(admit));
  return absl::OkStatus();
}

// While contexts of the tenant are being recovered, it is not known what KV they have.
absl::Status Calls::CheckKv(const Caller& caller, int64_t bytes) const {
  if (bytes > 0 && HasQuotas(caller) && caller.quotas.kv_bytes_max != kNoQuota) {
    if (const int64_t pending = recovery_.Pending(caller); pending > 0) {
      return absl::UnavailableError(absl::StrCat("kv_bytes_max: ", pending,
                                                 " contexts of the tenant are being recovered "
                                                 "after a restart; retry"));
    }
  }
  return tenants_.CheckKv(caller, bytes);
}

absl::Status Calls::AdmitItem(Item& item, CallId call, const Caller& caller) {
  const request::WorkItem& ask = item.ask;
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindUsable(ask.context, caller));
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, context->FindLayer(ask.layer));
  item.truncations = layer->truncations;
  if (ask.truncations.value_or(item.truncations) != item.truncations) {
    return WasTruncated(context->map->spec, ask);
  }
  ANNULUS_RETURN_IF_ERROR(CheckAsk(*context, *layer, ask));
  if (ask.k_tokens > 0) {
    ANNULUS_ASSIGN_OR_RETURN(item.appends,
                             CheckAppend(*context, *layer, context->map->SpecOf(ask.layer),
                                         RangeOf(ask.start, ask.k_tokens), ask.key));
  }
  if (ask.kind == request::WorkItem::Kind::kStep && ask.q_tokens > ask.kv_len()) {
    item.appends = false;
    return Bad("tokens of q", ask.q_tokens,
               absl::StrCat("at most ", item.ask.kv_len(), ", those of the context"));
  }
  if (item.appends && !context->owner().empty()) {
    item.copies = layer->AppendCopies();
    const int64_t kv_bytes =
        NewBlockBytes(*context->map, ask.layer, {ask.start, ask.kv_len()}, item.copies);
    if (absl::Status status = CheckKv(caller, kv_bytes); !status.ok()) {
      item.appends = false;
      return status;
    }
    item.kv_bytes = kv_bytes;
    tenants_.AddKvComing(context->owner(), kv_bytes);
  }
  item.map = context->map;
  item.attends = ask.q_tokens > 0;
  item.horizon = item.appends ? std::max(layer->horizon, HorizonOf(ask.start)) : layer->horizon;
  contexts_.Use(*context, 1);
  if (!item.appends) return absl::OkStatus();
  layer->appending = call;
  item.append_number = ++layer->append_number;
  return absl::OkStatus();
}

// Of its tensors, with the answer.
int64_t Calls::BytesOf(const Item& item) {
  int64_t bytes = 0;
  const ContextSpec& spec = item.map->SpecOf(item.ask.layer);
  if (item.appends) bytes += AppendBytesOf(spec, item.ask.k_tokens);
  if (item.attends) bytes += AttendBytesOf(spec, item.ask.q_tokens);
  return bytes;
}

}  // namespace annulus
