#include "runtime/wire/wire.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/store/context_layout.h"
#include "runtime/wire/wire.pb.h"

namespace annulus::wire {
namespace {

constexpr size_t kErrorBytesMax = 1024;
constexpr int kAddressesMax = 1 << 16;
constexpr int kSpansMax = 1 << 16;

// Type numbers of messages are the places in Body.
template <typename T, size_t kIndex = 0>
constexpr uint32_t TypeOf() {
  if constexpr (std::is_same_v<T, std::variant_alternative_t<kIndex, Body>>) {
    return kIndex + 1;
  } else {
    return TypeOf<T, kIndex + 1>();
  }
}

std::string Text(absl::string_view text) {
  return std::string(text);
}

// To protobuf, one overload per message.

pb::Hello ToProto(const Hello& m) {
  pb::Hello p;
  p.set_protocol(m.protocol);
  p.set_name(m.name);
  p.set_backend(m.backend);
  p.set_address(m.address);
  p.set_kv_bytes_limit(m.kv_bytes_limit);
  return p;
}

pb::Welcome ToProto(const Welcome& m) {
  pb::Welcome p;
  p.set_worker(m.worker);
  return p;
}

pb::Heartbeat ToProto(const Heartbeat& m) {
  pb::Heartbeat p;
  p.set_kv_bytes(m.kv_bytes);
  return p;
}

pb::HeartbeatSeen ToProto(const HeartbeatSeen&) {
  return {};
}

pb::Open ToProto(const Open& m) {
  pb::Open p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  pb::Spec& spec = *p.mutable_spec();
  spec.set_layers(m.spec.layers);
  spec.set_heads(m.spec.heads);
  spec.set_kv_heads(m.spec.kv_heads);
  spec.set_head_dim(m.spec.head_dim);
  spec.set_v_head_dim(m.spec.v_head_dim);
  spec.set_v_is_k_prefix(m.spec.v_is_k_prefix);
  spec.set_dtype(static_cast<uint32_t>(m.spec.dtype));
  spec.set_placement(static_cast<uint32_t>(m.spec.placement));
  spec.set_partition_kind(static_cast<uint32_t>(m.spec.partition.kind));
  spec.set_partition_unit(m.spec.partition.unit_blocks);
  spec.set_tokens_expected(m.spec.tokens_expected);
  p.set_rank(m.rank);
  for (const std::string& address : m.addresses) p.add_addresses(address);
  return p;
}

pb::Append ToProto(const Append& m) {
  pb::Append p;
  p.set_request(m.request);
  p.set_epoch(m.epoch);
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_start(m.start);
  p.set_tokens(m.tokens);
  return p;
}

pb::Trim ToProto(const Trim& m) {
  pb::Trim p;
  p.set_context(m.context);
  p.set_layer(m.layer);
  p.set_tokens(m.tokens);
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

absl::Status BadField(absl::string_view message, absl::string_view field, int64_t value) {
  return absl::InvalidArgumentError(
      absl::StrCat("wire message ", message, ": ", field, " is ", value, ", out of range"));
}

template <typename Proto>
absl::StatusOr<Proto> Parse(absl::string_view name, const Message& message) {
  Proto proto;
  const bool in_payload = message.header.empty() && !message.payload.empty();
  const void* bytes = in_payload ? static_cast<const void*>(message.payload.data())
                                 : static_cast<const void*>(message.header.data());
  const size_t size = in_payload ? message.payload.size() : message.header.size();
  if (size > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !proto.ParseFromArray(bytes, static_cast<int>(size))) {
    return absl::InvalidArgumentError(absl::StrCat("wire message ", name, " does not parse"));
  }
  return proto;
}

absl::StatusOr<Hello> FromProto(const pb::Hello& p) {
  for (const std::string* text : {&p.name(), &p.backend(), &p.address()}) {
    if (text->size() > kHeaderBytesMax) return BadField("Hello", "size of a text", text->size());
  }
  if (p.kv_bytes_limit() < 0) return BadField("Hello", "kv_bytes_limit", p.kv_bytes_limit());
  return Hello{p.protocol(), p.name(), p.backend(), p.address(), p.kv_bytes_limit()};
}

absl::StatusOr<Welcome> FromProto(const pb::Welcome& p) {
  if (p.worker() == 0) return BadField("Welcome", "worker", 0);
  return Welcome{p.worker()};
}

absl::StatusOr<Heartbeat> FromProto(const pb::Heartbeat& p) {
  return Heartbeat{p.kv_bytes()};
}

absl::StatusOr<HeartbeatSeen> FromProto(const pb::HeartbeatSeen&) {
  return HeartbeatSeen{};
}

absl::StatusOr<Open> FromProto(const pb::Open& p) {
  Open m{p.request(), p.epoch(), p.context(), {}, p.rank(), {}};
  const pb::Spec& spec = p.spec();
  if (spec.dtype() > static_cast<uint32_t>(DType::kBF16)) {
    return BadField("Open", "dtype", spec.dtype());
  }
  if (spec.placement() > static_cast<uint32_t>(Placement::kMesh)) {
    return BadField("Open", "placement", spec.placement());
  }
  if (spec.partition_kind() > static_cast<uint32_t>(PartitionKind::kBlockCyclic)) {
    return BadField("Open", "partition", spec.partition_kind());
  }
  m.spec.layers = spec.layers();
  m.spec.heads = spec.heads();
  m.spec.kv_heads = spec.kv_heads();
  m.spec.head_dim = spec.head_dim();
  m.spec.v_head_dim = spec.v_head_dim();
  m.spec.v_is_k_prefix = spec.v_is_k_prefix();
  m.spec.dtype = static_cast<DType>(spec.dtype());
  m.spec.placement = static_cast<Placement>(spec.placement());
  m.spec.partition = {static_cast<PartitionKind>(spec.partition_kind()), spec.partition_unit()};
  m.spec.tokens_expected = spec.tokens_expected();
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(m.spec));
  if (p.addresses_size() < 1 || p.addresses_size() > kAddressesMax) {
    return BadField("Open", "addresses", p.addresses_size());
  }
  if (p.rank() < 0 || p.rank() >= p.addresses_size()) return BadField("Open", "rank", p.rank());
  m.addresses.assign(p.addresses().begin(), p.addresses().end());
  return m;
}

absl::StatusOr<Append> FromProto(const pb::Append& p) {
  if (p.layer() < 0) return BadField("Append", "layer", p.layer());
  if (p.start() < 0 || p.start() > kContextTokensMax) return BadField("Append", "start", p.start());
  if (p.tokens() < 1 || p.tokens() > kContextTokensMax - p.start()) {
    return BadField("Append", "tokens", p.tokens());
  }
  return Append{p.request(), p.epoch(), p.context(), p.layer(), p.start(), p.tokens()};
}

absl::StatusOr<Trim> FromProto(const pb::Trim& p) {
  if (p.layer() < 0) return BadField("Trim", "layer", p.layer());
  if (p.tokens() < 0) return BadField("Trim", "tokens", p.tokens());
  return Trim{p.context(), p.layer(), p.tokens()};
}

absl::StatusOr<LongPattern> FromProto(const pb::LongPattern& p) {
  return LongPattern{p.text()};
}

absl::StatusOr<Attend> FromProto(const pb::Attend& p) {
  if (p.plan() > static_cast<uint32_t>(PlanKind::kPassQ))
    return BadField("Attend", "plan", p.plan());
  if (p.stages() > uint32_t{kStagesMax}) return BadField("Attend", "stages", p.stages());
  if (p.layer() < 0) return BadField("Attend", "layer", p.layer());
  if (p.kv_tokens() < 1 || p.kv_tokens() > kContextTokensMax) {
    return BadField("Attend", "kv_tokens", p.kv_tokens());
  }
  if (p.q_tokens() < 1 || p.q_tokens() > p.kv_tokens()) {
    return BadField("Attend", "q_tokens", p.q_tokens());
  }
  const int64_t ns = p.time_left_ns();
  Attend m{
      p.request(),
      p.epoch(),
      p.context(),
      p.layer(),
      static_cast<PlanKind>(p.plan()),
      p.q_tokens(),
      p.kv_tokens(),
      p.pattern(),
      p.pattern_apart(),
      p.scale(),
      ns == std::numeric_limits<int64_t>::max() ? absl::InfiniteDuration() : absl::Nanoseconds(ns),
      p.trace(),
      static_cast<int>(p.stages())};
  return m;
}

absl::StatusOr<Cancel> FromProto(const pb::Cancel& p) {
  return Cancel{p.request()};
}

absl::StatusOr<Release> FromProto(const pb::Release& p) {
  return Release{p.request(), p.epoch(), p.context()};
}

absl::StatusOr<Done> FromProto(const pb::Done& p) {
  if (p.code() > static_cast<uint32_t>(absl::StatusCode::kUnauthenticated)) {
    return BadField("Done", "code", p.code());
  }
  return Done{p.request(),
              p.epoch(),
              absl::Status(static_cast<absl::StatusCode>(p.code()), p.message()),
              p.context_kv_bytes(),
              p.bytes_sent(),
              p.bytes_received()};
}

absl::StatusOr<Spans> FromProto(const pb::Spans& p) {
  if (p.spans_size() > kSpansMax) return BadField("Spans", "spans", p.spans_size());
  Spans m{p.request(), {}};
  for (const pb::Span& span : p.spans()) {
    m.spans.push_back({"", span.name(), span.begin_ns(), span.end_ns()});
  }
  return m;
}

template <typename Proto>
absl::StatusOr<Body> DecodeAs(absl::string_view name, const Message& message) {
  ANNULUS_ASSIGN_OR_RETURN(const Proto proto, Parse<Proto>(name, message));
  ANNULUS_ASSIGN_OR_RETURN(Body body, FromProto(proto));
  return body;
}

}  // namespace

Message Encode(const Body& body, Buffer payload) {
  Message message;
  std::visit(
      [&message](const auto& m) {
        message.type = TypeOf<std::decay_t<decltype(m)>>();
        message.header = ToProto(m).SerializeAsString();
      },
      body);
  message.payload = std::move(payload);
  if (message.header.size() > kHeaderBytesMax) {
    ANNULUS_CHECK(message.payload.empty());
    message.payload = Buffer::Copy(message.header.data(), message.header.size());
    message.header.clear();
  }
  return message;
}

absl::StatusOr<Body> Decode(const Message& message) {
  switch (message.type) {
    case TypeOf<Hello>():
      return DecodeAs<pb::Hello>("Hello", message);
    case TypeOf<Welcome>():
      return DecodeAs<pb::Welcome>("Welcome", message);
    case TypeOf<Heartbeat>():
      return DecodeAs<pb::Heartbeat>("Heartbeat", message);
    case TypeOf<HeartbeatSeen>():
      return DecodeAs<pb::HeartbeatSeen>("HeartbeatSeen", message);
    case TypeOf<Open>():
      return DecodeAs<pb::Open>("Open", message);
    case TypeOf<Append>():
      return DecodeAs<pb::Append>("Append", message);
    case TypeOf<Trim>():
      return DecodeAs<pb::Trim>("Trim", message);
    case TypeOf<LongPattern>():
      return DecodeAs<pb::LongPattern>("LongPattern", message);
    case TypeOf<Attend>():
      return DecodeAs<pb::Attend>("Attend", message);
    case TypeOf<Cancel>():
      return DecodeAs<pb::Cancel>("Cancel", message);
    case TypeOf<Release>():
      return DecodeAs<pb::Release>("Release", message);
    case TypeOf<Done>():
      return DecodeAs<pb::Done>("Done", message);
    case TypeOf<Spans>():
      return DecodeAs<pb::Spans>("Spans", message);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("wire message of unknown type ", message.type));
  }
}

}  // namespace annulus::wire
