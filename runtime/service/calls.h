// The calls of the service: what each is asked with, what it answers, and the fields of both as
// annulus.proto has them. The table is all that the client library, gRPC at both ends, the metrics
// and tests know of a call (CONTRIBUTING, "Adding a call"). Plain values.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/fields/values.h"
#include "runtime/identity/caller.h"

namespace annulus {

// What carries tensors is described without them: they follow the message as a stream.
constexpr auto DescriptionOf(const AppendRequest*) {
  using T = AppendRequest;
  return Describe("AppendHeader", Field(1, "context", &T::context), Field(2, "layer", &T::layer),
                  Field(3, "start", &T::start, Between(0, kPositionMax)), Field(7, "key", &T::key));
}

constexpr auto DescriptionOf(const AttendRequest*) {
  using T = AttendRequest;
  return Describe("AttendHeader", Field(1, "context", &T::context), Field(2, "layer", &T::layer),
                  Field(3, "q_start", &T::q_start, Between(0, kPositionMax)),
                  Field(4, "kv_len", &T::kv_len, Between(0, kPositionMax)),
                  Field(6, "pattern", &T::pattern), Field(7, "plan", &T::plan),
                  Field(8, "scale", &T::scale),
                  Field(9, "request_id", &T::request_id, SizeAtMost(kRequestIdBytesMax)),
                  Field(10, "trace", &T::trace),
                  Field(12, "keys_begin", &T::keys_begin, Between(0, kPositionMax)),
                  Field(13, "keys_end", &T::keys_end, Between(0, kPositionMax)),
                  Field(15, "sinks", &T::sinks, SizeAtMost(kHeadsMax)));
}

constexpr auto DescriptionOf(const AttendResult*) {
  using T = AttendResult;
  return Describe("AttendReplyHeader", Field(1, "epoch", &T::epoch), Field(4, "stats", &T::stats),
                  Field(5, "trace", &T::trace));
}

// Gives one call the queries of another, and what they are about.
template <typename From, typename To>
void CopyQueries(const From& from, To* to) {
  to->context = from.context;
  to->layer = from.layer;
  to->q_start = from.q_start;
  to->kv_len = from.kv_len;
  to->q = from.q;
}

// What a selection needs of a call, as an Attend has it.
inline AttendRequest AttendOf(const SelectRequest& request) {
  AttendRequest attend;
  CopyQueries(request, &attend);
  attend.pattern = request.pattern;
  attend.scale = request.scale;
  return attend;
}

constexpr auto DescriptionOf(const SelectResult*) {
  return Describe("AttendReplyHeader", Field(1, "epoch", &SelectResult::epoch));
}

// The same of a compression.
inline AttendRequest AttendOf(const CompressRequest& request) {
  AttendRequest attend;
  CopyQueries(request, &attend);
  attend.scale = request.scale;
  return attend;
}

template <>
struct TextForm<VotePool> {
  static std::string Write(VotePool pool) {
    return pool == VotePool::kMax ? "max" : pool == VotePool::kMean ? "mean" : "unknown";
  }
  static std::optional<VotePool> Parse(absl::string_view text) {
    if (text == "max" || text == "mean") return text == "max" ? VotePool::kMax : VotePool::kMean;
    return std::nullopt;
  }
  static bool Known(VotePool pool) { return pool == VotePool::kMax || pool == VotePool::kMean; }
  static std::string Expected() { return "max or mean"; }
};

// Votes that are pooled together at most.
inline constexpr int kPoolWidthMax = 1023;

constexpr auto DescriptionOf(const KeepRule*) {
  using T = KeepRule;
  return Describe("KeepRule", Field(1, "keep", &T::keep, Between(1, kContextTokensMax)),
                  Field(2, "recent", &T::recent, Between(0, kContextTokensMax)),
                  Field(3, "pool", &T::pool),
                  Field(4, "pool_width", &T::pool_width, Between(1, kPoolWidthMax)));
}
absl::Status CheckWhole(const KeepRule& rule);

// What a compression asks beside its queries, which travel as an Attend's.
constexpr auto DescriptionOf(const CompressRequest*) {
  using T = CompressRequest;
  return Describe("CompressHeader", Field(1, "rule", &T::rule), Field(2, "into", &T::into),
                  Field(3, "start", &T::start, Between(0, kPositionMax)), Field(4, "key", &T::key));
}

constexpr auto DescriptionOf(const CompressResult*) {
  using T = CompressResult;
  return Describe("AttendReplyHeader", Field(1, "epoch", &T::epoch),
                  Field(8, "tokens", &T::tokens));
}

constexpr auto DescriptionOf(const AppendResult*) {
  using T = AppendResult;
  return Describe("AppendResult", Field(1, "epoch", &T::epoch), Field(2, "tokens", &T::tokens));
}

// Leave to upload one DirectAppend, once, within a minute or less. What each rank gets follows from
// the spec and the number of ranks (context/append_cut.h); those that hold the same get the same.
struct AppendGrant {
  uint64_t id = 0;
  std::string secret;  // whoever knows it may write: to be kept from logs
  ContextSpec spec;
  int world = 0;                       // ranks
  std::vector<std::string> addresses;  // the data port of each holder, "host:port"
  std::vector<int> ranks;              // that they hold
};
constexpr auto DescriptionOf(const AppendGrant*) {
  using T = AppendGrant;
  return Describe("AppendGrant", Field(1, "id", &T::id), Field(2, "secret", &T::secret),
                  Field(3, "spec", &T::spec), Field(4, "addresses", &T::addresses),
                  Field(5, "ranks", &T::ranks, AtLeast(0)),
                  Field(6, "world", &T::world, Between(1, kWorkersMax)));
}
absl::Status CheckWhole(const AppendGrant& grant);

using GrantSink = std::function<absl::Status(const AppendGrant& grant)>;  // an error ends the call

// Appends what the caller uploads to the workers that own it, once `granted` has got the grant, on
// the call's thread and at most once: not for a repetition of what is already there. Answered when
// all of it is committed. FAILED_PRECONDITION if some worker has no data port.
struct DirectAppend {
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;   // must equal the layer's committed tokens
  int64_t tokens = 0;  // ≥ 1
  RequestKey key = {};
  GrantSink granted = {};
};
constexpr auto DescriptionOf(const DirectAppend*) {
  using T = DirectAppend;
  return Describe("DirectAppend", Field(1, "context", &T::context), Field(2, "layer", &T::layer),
                  Field(3, "start", &T::start, Between(0, kPositionMax)),
                  Field(4, "tokens", &T::tokens), Field(5, "key", &T::key));
}

// The steps of many contexts together: each worker gets one message, however many there are. One
// result for each; one that fails leaves the others alone.
struct StepsRequest {
  absl::Span<const StepRequest> steps;
};

constexpr auto DescriptionOf(const ForkRequest*) {
  using T = ForkRequest;
  return Describe("ForkRequest", Field(1, "context", &T::context), Field(2, "tokens", &T::tokens));
}

constexpr auto DescriptionOf(const TruncateRequest*) {
  using T = TruncateRequest;
  return Describe("TruncateRequest", Field(1, "context", &T::context),
                  Field(2, "tokens", &T::tokens));
}

struct ReleaseRequest {
  ContextId context = 0;
};
constexpr auto DescriptionOf(const ReleaseRequest*) {
  return Describe("ContextRef", Field(1, "context", &ReleaseRequest::context));
}
struct ReleaseResult {};
constexpr auto DescriptionOf(const ReleaseResult*) {
  return Describe("ReleaseResult");
}

// Contexts that one call renews at most.
inline constexpr int kRenewedMax = 16384;

// Renews the contexts' leases, as any other call on them. Those that it does not renew fail each
// for itself: NOT_FOUND, or UNAVAILABLE while a context is being recovered.
struct KeepAliveRequest {
  std::vector<ContextId> contexts;
};
constexpr auto DescriptionOf(const KeepAliveRequest*) {
  return Describe("KeepAliveRequest",
                  Field(1, "contexts", &KeepAliveRequest::contexts, SizeAtMost(kRenewedMax)));
}
struct NotRenewed {
  int index = 0;  // in the request's contexts
  absl::Status failure;
};
constexpr auto DescriptionOf(const NotRenewed*) {
  return Describe("NotRenewed", Field(1, "index", &NotRenewed::index, AtLeast(0)),
                  Field(2, "failure", &NotRenewed::failure));
}
struct KeepAliveReply {
  std::vector<NotRenewed> failures;  // all others are renewed
};
constexpr auto DescriptionOf(const KeepAliveReply*) {
  return Describe("KeepAliveReply", Field(1, "failures", &KeepAliveReply::failures));
}

struct DescribeRequest {
  ContextId context = 0;
};
constexpr auto DescriptionOf(const DescribeRequest*) {
  return Describe("ContextRef", Field(1, "context", &DescribeRequest::context));
}

constexpr auto DescriptionOf(const ListRequest*) {
  using T = ListRequest;
  return Describe("ListRequest", Field(1, "after", &T::after), Field(2, "limit", &T::limit));
}
struct ContextList {
  std::vector<ContextInfo> contexts;
};
constexpr auto DescriptionOf(const ContextList*) {
  return Describe("ContextList", Field(1, "contexts", &ContextList::contexts));
}

struct StatusRequest {};
constexpr auto DescriptionOf(const StatusRequest*) {
  return Describe("StatusRequest");
}

// How a call travels.
enum class Form {
  kUnary,   // one message each way, which are the request and the answer
  kStream,  // with tensors, or on a stream that stays open: both ends have code of their own
};

template <typename RequestType, typename AnswerType, Form kFormOf>
struct CallEntry {
  using Request = RequestType;
  using Answer = AnswerType;
  static constexpr Form kForm = kFormOf;

  const char* name;  // as in annulus.proto, and the label of metrics
  Access access;     // that its caller's role must have
};
template <typename Request, typename Answer>
using Unary = CallEntry<Request, Answer, Form::kUnary>;
template <typename Request, typename Answer>
using Stream = CallEntry<Request, Answer, Form::kStream>;

// Each request belongs to one call. A step that appends needs kWrite, which is seen to step by
// step.
inline constexpr std::tuple kCalls{
    Unary<ContextSpec, ContextInfo>{"CreateContext", Access::kWrite},
    Stream<AppendRequest, AppendResult>{"Append", Access::kWrite},
    Stream<DirectAppend, AppendResult>{"AppendDirect", Access::kWrite},
    Stream<AttendRequest, AttendResult>{"Attend", Access::kRead},
    Stream<SelectRequest, SelectResult>{"Select", Access::kRead},
    Stream<CompressRequest, CompressResult>{"Compress", Access::kWrite},
    Stream<StepsRequest, StepResults>{"Step", Access::kRead},
    Unary<ForkRequest, ContextInfo>{"Fork", Access::kWrite},
    Unary<TruncateRequest, ContextInfo>{"Truncate", Access::kWrite},
    Unary<ReleaseRequest, ReleaseResult>{"Release", Access::kWrite},
    Unary<KeepAliveRequest, KeepAliveReply>{"KeepAlive", Access::kWrite},
    Unary<DescribeRequest, ContextInfo>{"Describe", Access::kRead},
    Unary<ListRequest, ContextList>{"List", Access::kRead},
    Unary<StatusRequest, ClusterStatus>{"Status", Access::kRead},
};
using AnyAnswer =
    std::variant<ContextInfo, AppendResult, AttendResult, SelectResult, CompressResult, StepResults,
                 ReleaseResult, KeepAliveReply, ContextList, ClusterStatus>;

// The entry of a request.
template <typename Request, size_t kIndex = 0>
constexpr const auto& CallOf() {
  const auto& call = std::get<kIndex>(kCalls);
  if constexpr (std::is_same_v<typename std::decay_t<decltype(call)>::Request, Request>) {
    return call;
  } else {
    return CallOf<Request, kIndex + 1>();
  }
}
template <typename Request>
using AnswerTo = typename std::decay_t<decltype(CallOf<Request>())>::Answer;

template <typename... Call>
std::variant<const typename Call::Request*...> AnyRequestOf(const std::tuple<Call...>& calls);
using AnyRequest = decltype(AnyRequestOf(kCalls));  // borrowed

template <typename Visit>
void ForEachCall(Visit visit) {
  std::apply([&](const auto&... call) { (visit(call), ...); }, kCalls);
}

// What `answer` says of the request, whichever it is.
template <typename Answer>
absl::StatusOr<AnyAnswer> AnswerAny(const AnyRequest& request, Answer answer) {
  return std::visit([&](const auto* typed) -> absl::StatusOr<AnyAnswer> { return answer(*typed); },
                    request);
}

// Somebody who answers calls; `Context` comes with each.
template <typename Context>
class Answerer {
 public:
  virtual ~Answerer() = default;

  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Call(const Request& request, const Context& context) {
    absl::StatusOr<AnyAnswer> answer = Answer(&request, context);
    if (!answer.ok()) return std::move(answer).status();
    return std::get<AnswerTo<Request>>(*std::move(answer));
  }

 private:
  // The answer is the request's.
  virtual absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const Context& context) = 0;
};

// The answers to parts of a call: where all of it failed, each of them did.
StepResults StepResultsOf(absl::StatusOr<StepResults> answer, size_t steps);
inline std::vector<absl::Status> RenewedOf(const absl::StatusOr<KeepAliveReply>& answer,
                                           size_t contexts) {
  std::vector<absl::Status> renewed(contexts, answer.status());
  if (!answer.ok()) return renewed;
  for (const NotRenewed& failure : answer->failures) {
    const auto index = static_cast<size_t>(failure.index);
    if (index < contexts) renewed[index] = failure.failure;
  }
  return renewed;
}

// The code of an answer; where it has parts, that of the first that failed.
template <typename Answer>
absl::StatusCode CodeOf(const Answer& answer) {
  return absl::StatusCode::kOk;
}
inline absl::StatusCode CodeOf(const StepResults& answer) {
  for (const absl::StatusOr<StepResult>& step : answer) {
    if (!step.ok()) return step.status().code();
  }
  return absl::StatusCode::kOk;
}
inline absl::StatusCode CodeOf(const KeepAliveReply& answer) {
  return answer.failures.empty() ? absl::StatusCode::kOk : answer.failures[0].failure.code();
}

}  // namespace annulus
