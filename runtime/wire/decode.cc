// Bytes to bodies: nothing that a peer sends is believed unchecked.
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/store/context_layout.h"
#include "runtime/wire/body_type.h"
#include "runtime/wire/decode_parts.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire.pb.h"

namespace annulus::wire {
namespace {

constexpr int kSpansMax = 1 << 16;

template <typename Proto>
absl::StatusOr<Proto> Parse(absl::string_view name, const void* bytes, size_t size) {
  Proto proto;
  if (size > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !proto.ParseFromArray(bytes, static_cast<int>(size))) {
    return absl::InvalidArgumentError(absl::StrCat("wire message ", name, " does not parse"));
  }
  return proto;
}

absl::Duration TimeLeft(int64_t ns) {
  return ns == std::numeric_limits<int64_t>::max() ? absl::InfiniteDuration()
                                                   : absl::Nanoseconds(ns);
}

bool IsStatusCode(uint32_t code) {
  return code <= static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
}

absl::StatusOr<Hello> FromProto(const pb::Hello& p) {
  for (const std::string* text : {&p.name(), &p.backend(), &p.address(), &p.data_address()}) {
    if (text->size() > kHeaderBytesMax) return BadField("Hello", "size of a text", text->size());
  }
  if (p.kv_bytes_limit() < 0) return BadField("Hello", "kv_bytes_limit", p.kv_bytes_limit());
  return Hello{p.protocol(),       p.name(),        p.backend(),  p.address(),
               p.kv_bytes_limit(), p.coordinator(), p.contexts(), p.data_address()};
}

absl::StatusOr<Welcome> FromProto(const pb::Welcome& p) {
  if (p.worker() == 0) return BadField("Welcome", "worker", 0);
  return Welcome{p.worker(), p.coordinator()};
}

absl::StatusOr<Heartbeat> FromProto(const pb::Heartbeat& p) {
  return Heartbeat{p.kv_bytes(), p.leaves()};
}

absl::StatusOr<HeartbeatSeen> FromProto(const pb::HeartbeatSeen& p) {
  return HeartbeatSeen{p.may_leave()};
}

absl::StatusOr<Fenced> FromProto(const pb::Fenced&) {
  return Fenced{};
}

absl::StatusOr<Open> FromProto(const pb::Open& p) {
  Open m{p.request(), p.epoch(), p.context(), {}, p.rank(), {}};
  ANNULUS_RETURN_IF_ERROR(SetHolders("Open", p, m));
  ANNULUS_ASSIGN_OR_RETURN(m.spec, SpecOf("Open", p.spec()));
  m.serves = p.serves();
  return m;
}

absl::StatusOr<Read> FromProto(const pb::Read& p) {
  ANNULUS_RETURN_IF_ERROR(CheckTokens("Read", p));
  return Read{p.request(), p.epoch(), p.context(), p.layer(), p.start(), p.tokens()};
}

absl::StatusOr<Append> FromProto(const pb::Append& p) {
  ANNULUS_RETURN_IF_ERROR(CheckTokens("Append", p));
  std::optional<int64_t> horizon;
  if (p.has_horizon()) horizon = p.horizon();
  if (horizon.has_value() && (*horizon < 0 || *horizon > p.start())) {
    return BadField("Append", "horizon", *horizon);
  }
  return Append{p.request(), p.epoch(),  p.context(),      p.layer(),
                p.start(),   p.tokens(), MarkOf(p.mark()), horizon};
}

absl::StatusOr<Expect> FromProto(const pb::Expect& p) {
  Expect m;
  ANNULUS_ASSIGN_OR_RETURN(m.append, FromProto(p.append()));
  if (p.secret().size() != kSecretBytes) {
    return BadField("Expect", "size of secret", static_cast<int64_t>(p.secret().size()));
  }
  if (p.bytes() < 1 || p.bytes() > kExpectBytesMax) {
    return BadField("Expect", "bytes", static_cast<int64_t>(p.bytes()));
  }
  if (p.dtype() > static_cast<uint32_t>(DType::kBF16)) {
    return BadField("Expect", "dtype", p.dtype());
  }
  m.secret = p.secret();
  m.bytes = p.bytes();
  m.dtype = static_cast<DType>(p.dtype());
  m.time_left = TimeLeft(p.time_left_ns());
  return m;
}

absl::StatusOr<Trim> FromProto(const pb::Trim& p) {
  if (p.layer() < 0) return BadField("Trim", "layer", p.layer());
  if (p.tokens() < 0) return BadField("Trim", "tokens", p.tokens());
  return Trim{p.context(), p.layer(), p.tokens()};
}

absl::StatusOr<Truncate> FromProto(const pb::Truncate& p) {
  if (p.tokens() < 0) return BadField("Truncate", "tokens", p.tokens());
  return Truncate{p.request(), p.epoch(), p.context(), p.tokens()};
}

absl::StatusOr<Fork> FromProto(const pb::Fork& p) {
  for (const int64_t tokens : p.tokens()) {
    if (tokens < 0) return BadField("Fork", "tokens", tokens);
  }
  return Fork{
      p.request(), p.epoch(), p.context(), p.parent(), {p.tokens().begin(), p.tokens().end()}};
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
  if (p.q_tokens() < 1 || p.q_tokens() > kContextTokensMax) {
    return BadField("Attend", "q_tokens", p.q_tokens());
  }
  if (p.q_start() < 0 || p.q_start() > kContextTokensMax - p.q_tokens()) {
    return BadField("Attend", "q_start", p.q_start());
  }
  if (p.keys_end() < 1 || p.keys_end() > p.kv_tokens()) {
    return BadField("Attend", "keys_end", p.keys_end());
  }
  if (p.keys_begin() < 0 || p.keys_begin() >= p.keys_end()) {
    return BadField("Attend", "keys_begin", p.keys_begin());
  }
  return Attend{p.request(),
                p.epoch(),
                p.context(),
                p.layer(),
                static_cast<PlanKind>(p.plan()),
                p.q_tokens(),
                p.kv_tokens(),
                p.pattern(),
                p.pattern_apart(),
                p.scale(),
                TimeLeft(p.time_left_ns()),
                p.trace(),
                static_cast<int>(p.stages()),
                p.q_start(),
                {p.keys_begin(), p.keys_end()}};
}

absl::StatusOr<Step> FromProto(const pb::Step& p) {
  if (p.items_size() > kStepsAtOnceMax) {
    return BadField("Step", "items", p.items_size());
  }
  Step m{p.request(), TimeLeft(p.time_left_ns()), {}};
  m.items.reserve(static_cast<size_t>(p.items_size()));
  for (const pb::StepItem& item : p.items()) {
    if (item.layer() < 0) return BadField("Step", "layer", item.layer());
    if (item.start() < 0 || item.start() > kContextTokensMax) {
      return BadField("Step", "start", item.start());
    }
    if (item.k_tokens() < 0 || item.k_tokens() > kContextTokensMax - item.start()) {
      return BadField("Step", "k_tokens", item.k_tokens());
    }
    if (item.q_tokens() < 0 || item.q_tokens() > item.start() + item.k_tokens()) {
      return BadField("Step", "q_tokens", item.q_tokens());
    }
    m.items.push_back({item.epoch(), item.context(), item.layer(), item.start(), item.k_tokens(),
                       item.q_tokens(), item.scale(), item.pattern(), item.append_bytes(),
                       item.query_bytes(), MarkOf(item.mark())});
  }
  return m;
}

absl::StatusOr<Cancel> FromProto(const pb::Cancel& p) {
  return Cancel{p.request()};
}

absl::StatusOr<Release> FromProto(const pb::Release& p) {
  return Release{p.request(), p.epoch(), p.context()};
}

absl::StatusOr<Done> FromProto(const pb::Done& p) {
  if (!IsStatusCode(p.code())) return BadField("Done", "code", p.code());
  return Done{p.request(),
              p.epoch(),
              absl::Status(static_cast<absl::StatusCode>(p.code()), p.message()),
              p.context_kv_bytes(),
              p.bytes_sent(),
              p.bytes_received()};
}

absl::StatusOr<StepDone> FromProto(const pb::StepDone& p) {
  if (p.items_size() > kStepsAtOnceMax) {
    return BadField("StepDone", "items", p.items_size());
  }
  StepDone m;
  m.request = p.request();
  m.items.reserve(static_cast<size_t>(p.items_size()));
  for (const pb::StepItemDone& item : p.items()) {
    if (!IsStatusCode(item.code())) return BadField("StepDone", "code", item.code());
    m.items.push_back({absl::Status(static_cast<absl::StatusCode>(item.code()), item.message()),
                       item.context_kv_bytes()});
  }
  return m;
}

absl::StatusOr<Spans> FromProto(const pb::Spans& p) {
  if (p.spans_size() > kSpansMax) return BadField("Spans", "spans", p.spans_size());
  Spans m{p.request(), {}};
  for (const pb::Span& span : p.spans()) {
    m.spans.push_back({"", span.name(), span.begin_ns(), span.end_ns()});
  }
  return m;
}

absl::StatusOr<Inventory> FromProto(const pb::Inventory& p) {
  Inventory m{p.epoch(), p.context(), {}, p.rank(), {}, {}, p.kv_bytes()};
  ANNULUS_RETURN_IF_ERROR(SetHolders("Inventory", p, m));
  ANNULUS_ASSIGN_OR_RETURN(m.spec, SpecOf("Inventory", p.spec()));
  if (p.layers_size() != m.spec.layers) return BadField("Inventory", "layers", p.layers_size());
  m.serves = p.serves();
  m.tentative = p.tentative();
  ANNULUS_RETURN_IF_ERROR(SetLayers("Inventory", p, m));
  return m;
}

absl::StatusOr<Resume> FromProto(const pb::Resume& p) {
  Resume m{p.epoch(), p.context(), {}, {}};
  ANNULUS_RETURN_IF_ERROR(SetHolders("Resume", p, m));
  ANNULUS_RETURN_IF_ERROR(SetLayers("Resume", p, m));
  m.request = p.request();
  m.serves = p.serves();
  m.tentative = p.tentative();
  return m;
}

absl::Status CheckTensorBytes(const Step& m) {
  size_t left = m.tensor_bytes;
  for (const StepItem& item : m.items) {
    for (const size_t bytes : {item.append_bytes, item.query_bytes}) {
      if (bytes > left) return BadField("Step", "tensor bytes of an item", bytes);
      left -= bytes;
    }
  }
  if (left != 0) return BadField("Step", "tensor bytes of no item", left);
  return absl::OkStatus();
}

absl::Status CheckTensorBytes(const StepDone&) {
  return absl::OkStatus();
}

// Where a message's body lies, and how much of the payload comes before it.
struct Parts {
  const void* body = nullptr;
  size_t body_bytes = 0;
  size_t tensor_bytes = 0;
};

absl::StatusOr<Parts> Split(absl::string_view name, const Message& message) {
  const Buffer& payload = message.payload;
  if (!message.header.empty() || payload.empty()) {
    return Parts{message.header.data(), message.header.size(), payload.size()};
  }
  uint64_t tensor_bytes = 0;
  if (payload.size() < sizeof tensor_bytes) {
    return BadField(name, "size of the payload", static_cast<int64_t>(payload.size()));
  }
  const size_t end = payload.size() - sizeof tensor_bytes;
  std::memcpy(&tensor_bytes, payload.data() + end, sizeof tensor_bytes);
  if (tensor_bytes > end) {
    return BadField(name, "tensor_bytes", static_cast<int64_t>(tensor_bytes));
  }
  return Parts{payload.data() + tensor_bytes, end - tensor_bytes, tensor_bytes};
}

template <typename Proto>
absl::StatusOr<Body> DecodeAs(absl::string_view name, const Message& message) {
  ANNULUS_ASSIGN_OR_RETURN(const Parts parts, Split(name, message));
  ANNULUS_ASSIGN_OR_RETURN(const Proto proto, Parse<Proto>(name, parts.body, parts.body_bytes));
  ANNULUS_ASSIGN_OR_RETURN(auto body, FromProto(proto));
  if constexpr (requires { body.tensor_bytes; }) {
    body.tensor_bytes = parts.tensor_bytes;
    ANNULUS_RETURN_IF_ERROR(CheckTensorBytes(body));
  }
  return body;
}

}  // namespace

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
    case TypeOf<Truncate>():
      return DecodeAs<pb::Truncate>("Truncate", message);
    case TypeOf<Fork>():
      return DecodeAs<pb::Fork>("Fork", message);
    case TypeOf<Step>():
      return DecodeAs<pb::Step>("Step", message);
    case TypeOf<StepDone>():
      return DecodeAs<pb::StepDone>("StepDone", message);
    case TypeOf<Fenced>():
      return DecodeAs<pb::Fenced>("Fenced", message);
    case TypeOf<Inventory>():
      return DecodeAs<pb::Inventory>("Inventory", message);
    case TypeOf<Resume>():
      return DecodeAs<pb::Resume>("Resume", message);
    case TypeOf<Read>():
      return DecodeAs<pb::Read>("Read", message);
    case TypeOf<Expect>():
      return DecodeAs<pb::Expect>("Expect", message);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("wire message of unknown type ", message.type));
  }
}

}  // namespace annulus::wire
