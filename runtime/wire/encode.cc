// Bodies to bytes.
#include <cstring>
#include <utility>

#include "runtime/wire/body_type.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire.pb.h"

namespace annulus::wire {
namespace {

constexpr size_t kErrorBytesMax = 1024;

// To protobuf, one overload per message.

std::string Text(absl::string_view text) {
  return std::string(text);
}

pb::Hello ToProto(const Hello& m) {
  pb::Hello p;
  p.set_protocol(m.protocol);
  p.set_name(m.name);
  p.set_backend(m.backend);
  p.set_address(m.address);
  p.set_kv_bytes_limit(m.kv_bytes_limit);
  p.set_coordinator(m.coordinator);
  p.set_contexts(m.contexts);
  p.set_data_address(m.data_address);
  return p;
}

pb::Welcome ToProto(const Welcome& m) {
  pb::Welcome p;
  p.set_worker(m.worker);
  p.set_coordinator(m.coordinator);
  return p;
}

pb::Heartbeat ToProto(const Heartbeat& m) {
  pb::Heartbeat p;
  p.set_kv_bytes(m.kv_bytes);
  p.set_leaves(m.leaves);
  return p;
}

pb::HeartbeatSeen ToProto(const HeartbeatSeen& m) {
  pb::HeartbeatSeen p;
  p.set_may_leave(m.may_leave);
  return p;
}

pb::Fenced ToProto(const Fenced&) {
  return {};
}

void SetSpec(const ContextSpec& m, pb::Spec& spec) {
  spec.set_layers(m.layers);
  spec.set_heads(m.heads);
  spec.set_kv_heads(m.kv_heads);
  spec.set_head_dim(m.head_dim);
  spec.set_v_head_dim(m.v_head_dim);
  spec.set_v_is_k_prefix(m.v_is_k_prefix);
  spec.set_dtype(static_cast<uint32_t>(m.dtype));
  spec.set_placement(static_cast<uint32_t>(m.placement));
  spec.set_partition_kind(static_cast<uint32_t>(m.partition.kind));
  spec.set_partition_unit(m.partition.unit_blocks);
  spec.set_tokens_expected(m.tokens_expected);
  for (const std::string& pattern : m.patterns) spec.add_patterns(pattern);
  spec.set_kv_efficient(m.kv_efficient);
  spec.set_replicas(m.replicas);
  spec.set_lease(m.lease);
  spec.set_evictable(m.evictable);
}

template <typename Proto>
void SetHolders(const std::vector<std::string>& addresses, const std::vector<Copy>& copies,
                Proto& p) {
  for (const std::string& address : addresses) p.add_addresses(address);
  for (const Copy& copy : copies) {
    pb::Copy& to = *p.add_copies();
    to.set_rank(copy.rank);
    to.set_address(copy.address);
  }
}

pb::Open ToProto(const Open& m) {
  pb::Open p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  SetSpec(m.spec, *p.mutable_spec());
  p.set_rank(m.rank);
  SetHolders(m.addresses, m.copies, p);
  p.set_serves(m.serves);
  return p;
}

void SetMark(const AppendMark& m, pb::AppendMark& mark) {
  mark.set_turn(m.turn);
  mark.set_client(m.key.client);
  mark.set_sequence(m.key.sequence);
}

pb::Append ToProto(const Append& m) {
  pb::Append p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_start(m.start);
  p.set_tokens(m.tokens);
  SetMark(m.mark, *p.mutable_mark());
  if (m.horizon.has_value()) p.set_horizon(*m.horizon);
  return p;
}

pb::Read ToProto(const Read& m) {
  pb::Read p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_start(m.start);
  p.set_tokens(m.tokens);
  return p;
}

pb::Expect ToProto(const Expect& m) {
  pb::Expect p;
  *p.mutable_append() = ToProto(m.append);
  p.set_secret(m.secret);
  p.set_bytes(m.bytes);
  p.set_dtype(static_cast<uint32_t>(m.dtype));
  p.set_time_left_ns(absl::ToInt64Nanoseconds(m.time_left));
  return p;
}

pb::Trim ToProto(const Trim& m) {
  pb::Trim p;
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_tokens(m.tokens);
  return p;
}

pb::Truncate ToProto(const Truncate& m) {
  pb::Truncate p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_tokens(m.tokens);
  return p;
}

pb::Fork ToProto(const Fork& m) {
  pb::Fork p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_parent(m.parent);
  for (const int64_t tokens : m.tokens) p.add_tokens(tokens);
  return p;
}

pb::LongPattern ToProto(const LongPattern& m) {
  pb::LongPattern p;
  p.set_text(m.text);
  return p;
}

pb::Attend ToProto(const Attend& m) {
  pb::Attend p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_plan(static_cast<uint32_t>(m.plan));
  p.set_q_tokens(m.q_tokens);
  p.set_kv_tokens(m.kv_tokens);
  p.set_pattern(m.pattern);
  p.set_pattern_apart(m.pattern_apart);
  p.set_scale(m.scale);
  p.set_time_left_ns(absl::ToInt64Nanoseconds(m.time_left));  // saturates: infinite is the largest
  p.set_trace(m.trace);
  p.set_stages(static_cast<uint32_t>(m.stages));
  p.set_q_start(m.q_start);
  p.set_keys_begin(m.keys.begin);
  p.set_keys_end(m.keys.end);
  return p;
}

pb::Step ToProto(const Step& m) {
  pb::Step p;
  p.set_request(m.request);
  p.set_time_left_ns(absl::ToInt64Nanoseconds(m.time_left));
  p.mutable_items()->Reserve(static_cast<int>(m.items.size()));
  for (const StepItem& item : m.items) {
    pb::StepItem& to = *p.add_items();
    to.set_epoch(item.epoch);
    to.set_context(item.context);
    to.set_layer(item.layer);
    to.set_start(item.start);
    to.set_k_tokens(item.k_tokens);
    to.set_q_tokens(item.q_tokens);
    to.set_scale(item.scale);
    to.set_pattern(item.pattern);
    to.set_append_bytes(item.append_bytes);
    to.set_query_bytes(item.query_bytes);
    SetMark(item.mark, *to.mutable_mark());
  }
  return p;
}

pb::Cancel ToProto(const Cancel& m) {
  pb::Cancel p;
  p.set_request(m.request);
  return p;
}

pb::Release ToProto(const Release& m) {
  pb::Release p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  return p;
}

pb::Done ToProto(const Done& m) {
  pb::Done p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_code(static_cast<uint32_t>(m.status.code()));
  p.set_message(Text(m.status.message().substr(0, kErrorBytesMax)));
  p.set_context_kv_bytes(m.context_kv_bytes);
  p.set_bytes_sent(m.bytes_sent);
  p.set_bytes_received(m.bytes_received);
  return p;
}

pb::StepDone ToProto(const StepDone& m) {
  pb::StepDone p;
  p.set_request(m.request);
  p.mutable_items()->Reserve(static_cast<int>(m.items.size()));
  for (const StepItemDone& item : m.items) {
    pb::StepItemDone& to = *p.add_items();
    to.set_code(static_cast<uint32_t>(item.status.code()));
    to.set_message(Text(item.status.message().substr(0, kErrorBytesMax)));
    to.set_context_kv_bytes(item.context_kv_bytes);
  }
  return p;
}

pb::Spans ToProto(const Spans& m) {
  pb::Spans p;
  p.set_request(m.request);
  for (const TraceSpan& span : m.spans) {
    pb::Span& to = *p.add_spans();
    to.set_name(span.name);
    to.set_begin_ns(span.begin_ns);
    to.set_end_ns(span.end_ns);
  }
  return p;
}

void SetLayer(const LayerState& layer, pb::Layer& p) {
  p.set_tokens(layer.tokens);
  p.set_horizon(layer.horizon);
  SetMark(layer.last, *p.mutable_last());
  p.set_last_begin(layer.last_tokens.begin);
  p.set_last_end(layer.last_tokens.end);
}

pb::Inventory ToProto(const Inventory& m) {
  pb::Inventory p;
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  SetSpec(m.spec, *p.mutable_spec());
  p.set_rank(m.rank);
  SetHolders(m.addresses, m.copies, p);
  p.set_serves(m.serves);
  p.set_tentative(m.tentative);
  for (const LayerState& layer : m.layers) SetLayer(layer, *p.add_layers());
  p.set_kv_bytes(m.kv_bytes);
  return p;
}

pb::Resume ToProto(const Resume& m) {
  pb::Resume p;
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  SetHolders(m.addresses, m.copies, p);
  p.set_request(m.request);
  p.set_serves(m.serves);
  p.set_tentative(m.tentative);
  for (const LayerState& layer : m.layers) SetLayer(layer, *p.add_layers());
  return p;
}

// The body behind the tensors, and behind it where they end.
Buffer Together(const Buffer& tensors, absl::string_view body) {
  const uint64_t tensor_bytes = tensors.size();
  Buffer payload(tensors.size() + body.size() + sizeof tensor_bytes);
  std::byte* at = payload.data();
  if (!tensors.empty()) std::memcpy(at, tensors.data(), tensors.size());
  at += tensors.size();
  std::memcpy(at, body.data(), body.size());
  std::memcpy(at + body.size(), &tensor_bytes, sizeof tensor_bytes);
  return payload;
}

}  // namespace

Message Encode(const Body& body, Buffer tensors) {
  Message message;
  message.payload = std::move(tensors);
  std::visit(
      [&message]<typename T>(const T& m) {
        message.type = TypeOf<T>();
        message.header = ToProto(m).SerializeAsString();
      },
      body);
  // An empty header says that the body is not there.
  if (message.header.size() > kHeaderBytesMax ||
      (message.header.empty() && !message.payload.empty())) {
    message.payload = Together(message.payload, message.header);
    message.header.clear();
  }
  return message;
}

}  // namespace annulus::wire
