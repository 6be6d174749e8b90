// A Service that remembers what it was asked and answers what can be checked: a stand-in for the
// coordinator. Append keeps the tokens' bytes as they came, contiguous; Attend answers
// out[t, h, c] = q[t, h, c % d] as f32 and lse[t, h] = t + h / 100.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/service/service.h"

namespace annulus {

inline std::string BytesOf(const TensorView& view) {
  std::string bytes;
  for (int64_t t = 0; t < view.tokens; ++t) {
    for (int64_t h = 0; h < view.heads; ++h) {
      bytes.append(reinterpret_cast<const char*>(view.Row(t, h)),
                   static_cast<size_t>(view.dim) * SizeOf(view.dtype));
    }
  }
  return bytes;
}

class FakeService : public Service {
 public:
  // Called first in every call; an error is the call's answer.
  std::function<absl::Status(const char* call, const CallContext&)> before;
  int64_t append_tokens_max = INT64_MAX;  // the piece that would exceed it is refused
  int v_head_dim = 16;

  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override {
    return AnswerAny(request, [&](const auto& typed) { return Do(typed, call); });
  }

  absl::StatusOr<ContextInfo> Do(const ContextSpec& spec, const CallContext& call) {
    if (absl::Status status = Enter("CreateContext", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    info_.id = 0xfedcba9876543210u;
    info_.epoch = 7;
    info_.spec = spec;
    info_.tokens.assign(static_cast<size_t>(spec.layers), 0);
    info_.kv_bytes = 12345;
    info_.dense_kv_bytes = 23456;
    info_.state = "ok";
    info_.idle_s = 1.5;
    return info_;
  }

  absl::StatusOr<AppendResult> Do(const AppendRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Append", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    if (request.start != tokens_) return absl::InternalError("pieces out of order");
    if (tokens_ + request.k.tokens > append_tokens_max) {
      return absl::ResourceExhaustedError("the cluster is full");
    }
    k_bytes += BytesOf(request.k);
    v_bytes += BytesOf(request.v);
    last_append = request;
    pieces.push_back(request.k.tokens);
    keys.push_back(request.key);
    tokens_ += request.k.tokens;
    return AppendResult{.epoch = 7, .tokens = tokens_};
  }

  // There are no workers to upload to.
  absl::StatusOr<AppendResult> Do(const DirectAppend&, const CallContext& call) {
    if (absl::Status status = Enter("AppendDirect", call); !status.ok()) return status;
    return absl::FailedPreconditionError("no data port");
  }

  absl::StatusOr<AttendResult> Do(const AttendRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Attend", call); !status.ok()) return status;
    const TensorView& q = request.q;
    AttendResult result;
    result.out = Tensor(DType::kF32, q.tokens, q.heads, v_head_dim);
    result.lse = Tensor(DType::kF32, q.tokens, q.heads, 1);
    std::vector<float> row(static_cast<size_t>(q.dim));
    for (int64_t t = 0; t < q.tokens; ++t) {
      for (int64_t h = 0; h < q.heads; ++h) {
        Convert(q.Row(t, h), q.dtype, row.data(), DType::kF32, q.dim);
        float* out = result.out.f32() + (t * q.heads + h) * v_head_dim;
        for (int c = 0; c < v_head_dim; ++c) out[c] = row[static_cast<size_t>(c % q.dim)];
        result.lse.f32()[t * q.heads + h] = static_cast<float>(t) + static_cast<float>(h) / 100;
      }
    }
    result.epoch = 9;
    result.stats = {.plan = "group-cast",
                    .visited_pairs = 11,
                    .work_pairs = 12,
                    .bytes_moved = 1000,
                    .planned_bytes = 900,
                    .elapsed_s = 0.25,
                    .workers = {{3, 4, 5, 6}, {7, 8, 9, 10}}};
    if (request.trace) result.trace = {{"coordinator", "attend", 1000, 5000}};
    std::lock_guard lock(mutex_);
    last_attend = request;
    last_attend.q = TensorView();  // borrowed for the call
    return result;
  }

  // One list, of a key for each query.
  absl::StatusOr<SelectResult> Do(const SelectRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Select", call); !status.ok()) return status;
    KeyListData list{.rows = KeyListData::Rows::kToken, .q_begin = request.q_start, .begin = {0}};
    for (int64_t t = 1; t <= request.q.tokens; ++t) {
      list.keys.push_back(static_cast<int32_t>(t));
      list.begin.push_back(t);
    }
    return SelectResult{9, {{request.pattern, std::make_shared<const KeyListData>(list)}}};
  }

  // Keeps the first keys.
  absl::StatusOr<CompressResult> Do(const CompressRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Compress", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    last_compress = request;
    last_compress.q = TensorView();  // borrowed for the call
    KeyListData list{.unit = KeyListData::Unit::kTokens, .begin = {0, request.rule.keep}};
    for (int64_t t = 0; t < request.rule.keep; ++t) list.keys.push_back(static_cast<int32_t>(t));
    return CompressResult{
        9, request.start + request.rule.keep, {"kept", std::make_shared<const KeyListData>(list)}};
  }

  // Each as its Append and then its Attend would be.
  absl::StatusOr<StepResults> Do(const StepsRequest& request, const CallContext& call) {
    StepResults results;
    for (const StepRequest& step : request.steps) results.push_back(StepOne(step, call));
    return results;
  }

  absl::StatusOr<ContextInfo> Do(const ForkRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Fork", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    last_fork = request;
    ContextInfo info = info_;
    ++info.id;
    return info;
  }

  absl::StatusOr<ContextInfo> Do(const TruncateRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Truncate", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    last_truncate = request;
    return info_;
  }

  absl::StatusOr<ContextList> Do(const ListRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("List", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    last_list = request;
    return ContextList{{info_}};
  }

  absl::StatusOr<ReleaseResult> Do(const ReleaseRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("Release", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    if (request.context == info_.id) return ReleaseResult();
    return absl::NotFoundError(absl::StrCat("context ", request.context, " is unknown"));
  }

  absl::StatusOr<ContextInfo> Do(const DescribeRequest& request, const CallContext& call) {
    const auto known = Do(ReleaseRequest{request.context}, call);
    if (!known.ok()) return known.status();
    std::lock_guard lock(mutex_);
    return info_;
  }

  absl::StatusOr<KeepAliveReply> Do(const KeepAliveRequest& request, const CallContext& call) {
    if (absl::Status status = Enter("KeepAlive", call); !status.ok()) return status;
    KeepAliveReply reply;
    for (size_t i = 0; i < request.contexts.size(); ++i) {
      if (request.contexts[i] != 404) continue;
      reply.failures.push_back(
          {static_cast<int>(i), absl::NotFoundError("context 404 does not exist")});
    }
    return reply;
  }

  absl::StatusOr<ClusterStatus> Do(const StatusRequest&, const CallContext& call) {
    if (absl::Status status = Enter("Status", call); !status.ok()) return status;
    std::lock_guard lock(mutex_);
    ClusterStatus status;
    status.epoch = 7;
    if (info_.id != 0) status.contexts = {info_};
    status.workers = {{1, "ready", "cpu (AVX2)", "a:1", 100, 1000},
                      {2, "lost", "cpu (AVX2)", "b:2", 70, 1000},
                      {3, "ready", "cpu (AVX2)", "c:3", 11, 1000, "", 0.25}};
    status.in_flight = 5;
    status.in_flight_bytes = 640;
    status.tenants = {{"lab", 2, 300, 1, 64}};
    status.contexts_expired = 3;
    status.contexts_evicted = 2;
    return status;
  }

  // What came. Read once the calls have ended.
  std::string k_bytes;
  std::string v_bytes;
  std::vector<int64_t> pieces;   // tokens of each
  std::vector<RequestKey> keys;  // of each piece
  AppendRequest last_append;
  AttendRequest last_attend;
  std::vector<StepRequest> steps;  // tensors are borrowed for the call
  CompressRequest last_compress;
  ForkRequest last_fork;
  TruncateRequest last_truncate;
  ListRequest last_list;
  std::atomic<int> calls{0};

  // Waits like a long computation that looks at its caller's patience.
  static absl::Status WaitForCaller(const CallContext& call) {
    const absl::Time begin = absl::Now();
    while (absl::Now() - begin < absl::Seconds(20)) {
      if (call.cancelled && call.cancelled()) return absl::CancelledError("cancelled");
      if (absl::Now() > call.deadline) return absl::DeadlineExceededError("late");
      absl::SleepFor(absl::Milliseconds(2));
    }
    return absl::InternalError("neither cancelled nor late");
  }

 private:
  absl::StatusOr<StepResult> StepOne(const StepRequest& request, const CallContext& call) {
    {
      std::lock_guard lock(mutex_);
      steps.push_back(request);
    }
    StepResult result;
    result.tokens = request.start;
    if (request.k.tokens > 0) {
      AppendRequest append;
      append.context = request.context;
      append.layer = request.layer;
      append.start = request.start;
      append.k = request.k;
      append.v = request.v;
      append.key = request.key;
      absl::StatusOr<AppendResult> appended = Do(append, call);
      if (!appended.ok()) return appended.status();
      result.epoch = appended->epoch;
      result.tokens = appended->tokens;
    }
    if (request.q.tokens > 0) {
      AttendRequest attend;
      attend.context = request.context;
      attend.layer = request.layer;
      attend.kv_len = result.tokens;
      attend.q_start = result.tokens - request.q.tokens;
      attend.q = request.q;
      attend.pattern = request.pattern;
      attend.scale = request.scale;
      absl::StatusOr<AttendResult> attended = Do(attend, call);
      if (!attended.ok()) return attended.status();
      result.epoch = attended->epoch;
      result.out = std::move(attended->out);
      result.lse = std::move(attended->lse);
    }
    return result;
  }

  absl::Status Enter(const char* name, const CallContext& call) {
    ++calls;
    return before ? before(name, call) : absl::OkStatus();
  }

  std::mutex mutex_;
  ContextInfo info_;
  int64_t tokens_ = 0;
};

}  // namespace annulus
