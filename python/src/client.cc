#include "python/src/client.h"

#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "annulus/client.h"
#include "python/src/answer.h"
#include "python/src/arrays.h"
#include "python/src/call_options.h"
#include "python/src/gil.h"
#include "python/src/key_list.h"
#include "python/src/values.h"
#include "python/src/waiting.h"
#include "runtime/service/calls.h"

namespace annulus::python {
namespace {

std::optional<PlanKind> PlanOf(const std::optional<std::string>& plan) {
  if (!plan.has_value()) return std::nullopt;
  return ValueOrRaise(ParsePlanKind(*plan));
}

// A step as annulus/steps.py hands it over: (context, layer, start, k, v, q, pattern, scale,
// lists, sinks, tokens, index), None for what it does not have. Its tensors are added to `tensors`.
StepRequest StepOf(const nb::tuple& step, std::vector<Borrowed>* tensors) {
  StepRequest request;
  request.context = nb::cast<ContextId>(step[0]);
  request.layer = nb::cast<int>(step[1]);
  request.start = nb::cast<int64_t>(step[2]);
  request.k = tensors->emplace_back(Borrow(step[3], "k")).view;
  request.v = tensors->emplace_back(Borrow(step[4], "v")).view;
  request.q = tensors->emplace_back(Borrow(step[5], "q")).view;
  request.pattern = CastOr<std::string>(step[6], {});
  request.scale = CastOr<float>(step[7], 0);
  request.lists = ListsOf(CastOr<nb::dict>(step[8], nb::dict()));
  request.sinks = CastOr<std::vector<float>>(step[9], {});
  if (!step[11].is_none()) request.index = IndexOf(step[11], &tensors->emplace_back());
  return request;
}

// What a step ended with, which also becomes known to its context: its list of committed tokens by
// layer is brought up to date, or emptied where nobody knows how much of the step went well.
nb::object EndOf(const nb::tuple& step, const StepRequest& request, nb::handle out_dtype,
                 absl::StatusOr<StepResult> result) {
  auto known = nb::cast<nb::list>(step[10]);
  if (!result.ok()) {
    known.clear();
    return ExceptionOf(WithStepsName(result.status()));
  }
  const nb::object tokens = nb::cast(result->tokens);
  if (static_cast<size_t>(request.layer) < known.size()) known[request.layer] = tokens;
  return AnswerOf(step[5], out_dtype, std::move(result->out), std::move(result->lse),
                  {.epoch = nb::cast(result->epoch), .tokens = tokens});
}

class PythonClient {
 private:
  // A call under way keeps the client, whoever closes it meanwhile.
  std::shared_ptr<Client> Open() const {
    if (client_ == nullptr) Raise(absl::FailedPreconditionError("the client is closed"));
    if (is_forked()) {
      Raise(absl::FailedPreconditionError(
          "client: opened before this process was forked; expected one of its own"));
    }
    return client_;
  }

  // The client's threads are its process's: a child that was forked has none of them.
  bool is_forked() const { return getpid() != process_; }

  // Raises what is wrong with the call, and returns what it ended with.
  template <typename Call>
  auto Ended(Call call, std::optional<double> timeout, const CancelToken* cancel = nullptr) {
    const CallOptions options =
        OptionsOf(timeout, cancel == nullptr ? CancelToken::New() : *cancel);
    const UnderWay under_way([&] { options.cancel.Cancel(); });
    return WithoutGil([&, client = Open()] { return call(*client, options); });
  }

  template <typename Call>
  auto Run(Call call, std::optional<double> timeout) {
    return ValueOrRaise(Ended(std::move(call), timeout));
  }

 public:
  static PythonClient* Connect(const ClientOptions& options) {
    return new PythonClient(ValueOrRaise(WithoutGil([&] { return Client::Connect(options); })));
  }

  static PythonClient* InProcess(const InProcessOptions& options) {
    return new PythonClient(ValueOrRaise(WithoutGil([&] { return Client::InProcess(options); })));
  }

  ~PythonClient() { Close(); }

  void Close() {
    const Inside inside;
    std::shared_ptr<Client> last = std::move(client_);
    if (is_forked()) {
      new std::shared_ptr<Client>(std::move(last));  // its end would wait for its threads
      return;
    }
    WithoutGil([last = std::move(last)]() mutable { last.reset(); });
  }

  nb::object Create(const nb::dict& keywords, std::optional<double> timeout) {
    ContextSpec spec;
    FromKeywords(keywords, &spec);
    return ToPython(Run(
        [&](Client& client, const CallOptions& call) { return client.CreateContext(spec, call); },
        timeout));
  }

  nb::tuple Append(ContextId context, int layer, int64_t start, nb::handle k, nb::handle v,
                   const std::pair<uint64_t, uint64_t>& key, nb::handle progress,
                   std::optional<double> timeout, const CancelToken& cancel) {
    const Borrowed keys = Borrow(k, "k"), values = Borrow(v, "v");
    AppendRequest request;
    request.context = context;
    request.layer = layer;
    request.start = start;
    request.k = keys.view;
    request.v = values.view;
    request.key = {key.first, key.second};
    CallOptions options = OptionsOf(timeout, cancel);
    options.progress = ProgressOf(progress);
    const AppendResult result = ValueOrRaise(
        RunLong<AppendResult>(Open(), request, options, &Client::Append, &Client::AppendAsync));
    return nb::make_tuple(result.epoch, result.tokens);
  }

  nb::object Attend(ContextId context, int layer, int64_t q_start, int64_t kv_len, nb::handle q,
                    const std::string& pattern, const std::optional<std::string>& plan, float scale,
                    int64_t keys_begin, std::optional<int64_t> keys_end,
                    const std::string& request_id, bool trace, const nb::dict& lists,
                    const std::vector<float>& sinks, nb::handle index, nb::handle out_dtype,
                    std::optional<double> timeout, const CancelToken& cancel) {
    const Borrowed queries = Borrow(q, "q");
    Borrowed index_queries;
    AttendRequest request;
    if (!index.is_none()) request.index = IndexOf(index, &index_queries);
    request.lists = ListsOf(lists);
    request.sinks = sinks;
    request.context = context;
    request.layer = layer;
    request.q_start = q_start;
    request.kv_len = kv_len;
    request.q = queries.view;
    request.pattern = pattern;
    request.plan = PlanOf(plan);
    request.scale = scale;
    request.request_id = request_id;
    request.trace = trace;
    request.keys_begin = keys_begin;
    request.keys_end = keys_end;
    AttendResult result = ValueOrRaise(RunLong<AttendResult>(
        Open(), request, OptionsOf(timeout, cancel), &Client::Attend, &Client::AttendAsync));
    return AnswerOf(q, out_dtype, std::move(result.out), std::move(result.lse),
                    {.epoch = nb::cast(result.epoch),
                     .stats = ToPython(result.stats),
                     .trace = ToPython(result.trace)});
  }

  // {word: KeyList}, and the epoch.
  nb::tuple Select(ContextId context, int layer, int64_t q_start, int64_t kv_len, nb::handle q,
                   const std::string& pattern, const std::vector<float>& weights, float scale,
                   std::optional<double> timeout, const CancelToken& cancel) {
    const Borrowed queries = Borrow(q, "q");
    const SelectRequest request{context,      layer,   q_start, kv_len,
                                queries.view, pattern, weights, scale};
    const SelectResult result = ValueOrRaise(
        RunApart<SelectResult>(Open(), request, OptionsOf(timeout, cancel), &Client::Select));
    return nb::make_tuple(ToPython(result.lists), result.epoch);
  }

  // The KeyList of what was kept, and the committed tokens of the layer of `into`.
  nb::tuple Compress(ContextId context, int layer, int64_t q_start, int64_t kv_len, nb::handle q,
                     float scale, const nb::dict& rule, ContextId into, int64_t start,
                     std::optional<double> timeout, const CancelToken& cancel) {
    const Borrowed queries = Borrow(q, "q");
    CompressRequest request;
    request.context = context;
    request.layer = layer;
    request.q_start = q_start;
    request.kv_len = kv_len;
    request.q = queries.view;
    request.scale = scale;
    FromKeywords(rule, &request.rule);
    request.into = into;
    request.start = start;
    const absl::StatusOr<CompressResult> result =
        RunApart<CompressResult>(Open(), request, OptionsOf(timeout, cancel), &Client::Compress);
    // What C++ calls rule.keep is Python's keyword keep.
    absl::string_view message = result.status().message();
    if (absl::ConsumePrefix(&message, "rule.")) Raise(absl::InvalidArgumentError(message));
    RaiseUnlessOk(result.status());
    return nb::make_tuple(ToPython(std::vector<CallList>{result->kept}), result->tokens);
  }

  // One for each step: its annulus.Answer, or its error.
  nb::list Step(const nb::list& steps, nb::handle out_dtype, std::optional<double> timeout,
                const CancelToken* cancel) {
    std::vector<Borrowed> tensors;
    std::vector<StepRequest> requests;
    tensors.reserve(4 * steps.size());
    requests.reserve(steps.size());
    for (size_t i = 0; i < steps.size(); ++i) {
      try {
        requests.push_back(StepOf(nb::cast<nb::tuple>(steps[i]), &tensors));
      } catch (nb::python_error& error) {
        RaiseWithin(absl::StrCat("steps[", i, "]."), error);
      }
    }
    const auto call = [&](Client& client, const CallOptions& options) {
      const Timer timer;
      return client.Step(requests, options);
    };
    StepResults results = Ended(call, timeout, cancel);
    nb::list ends;
    for (size_t i = 0; i < results.size(); ++i) {
      ends.append(
          EndOf(nb::cast<nb::tuple>(steps[i]), requests[i], out_dtype, std::move(results[i])));
    }
    return ends;
  }

  nb::object Fork(ContextId context, std::optional<int64_t> tokens, std::optional<double> timeout) {
    return ToPython(Run(
        [&](Client& client, const CallOptions& call) {
          return client.Fork({.context = context, .tokens = tokens}, call);
        },
        timeout));
  }

  nb::object Truncate(ContextId context, int64_t tokens, std::optional<double> timeout) {
    return ToPython(Run(
        [&](Client& client, const CallOptions& call) {
          return client.Truncate({.context = context, .tokens = tokens}, call);
        },
        timeout));
  }

  void Release(ContextId context, std::optional<double> timeout) {
    RaiseUnlessOk(Ended(
        [&](Client& client, const CallOptions& call) { return client.Release(context, call); },
        timeout));
  }

  // One for each context: None, or its error.
  nb::list KeepAlive(const std::vector<ContextId>& contexts, std::optional<double> timeout) {
    nb::list list;
    for (const absl::Status& status :
         Ended([&](Client&client, const auto&call) { return client.KeepAlive(contexts, call); },
               timeout)) {
      list.append(status.ok() ? nb::object(nb::none()) : ExceptionOf(status));
    }
    return list;
  }

  nb::object Describe(ContextId context, std::optional<double> timeout, const CancelToken* cancel) {
    const auto describe = [&](Client& client, const auto& call) {
      return client.Describe(context, call);
    };
    return ToPython(ValueOrRaise(Ended(describe, timeout, cancel)));
  }

  nb::object List(ContextId after, int limit, std::optional<double> timeout) {
    return ToPython(Run(
        [&](Client& client, const CallOptions& call) {
          return client.List({.after = after, .limit = limit}, call);
        },
        timeout));
  }

  nb::object Status(std::optional<double> timeout) {
    return ToPython(
        Run([&](Client& client, const CallOptions& call) { return client.Status(call); }, timeout));
  }

  const char* connection() const {
    switch (Open()->connection()) {
      case ConnectionState::kReady:
        return "ready";
      case ConnectionState::kConnecting:
        return "connecting";
      case ConnectionState::kDown:
        break;
    }
    return "down";
  }

 private:
  explicit PythonClient(std::unique_ptr<Client> client) : client_(std::move(client)) {}

  std::shared_ptr<Client> client_;
  const pid_t process_ = getpid();
};

RetryOptions RetryOf(int attempts_max, double backoff_min, double backoff_max, int budget) {
  return {.attempts_max = attempts_max,
          .backoff_min = SecondsOf("retry_backoff_min", backoff_min),
          .backoff_max = SecondsOf("retry_backoff_max", backoff_max),
          .budget = budget};
}

PythonClient* Connect(const std::string& endpoint, double connect_timeout, int64_t chunk_bytes,
                      int async_calls_max, const std::string& upload, int attempts_max,
                      double backoff_min, double backoff_max, int budget, const std::string& tls_ca,
                      const std::string& tls_cert, const std::string& tls_key,
                      const std::string& token_file) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.connect_timeout = SecondsOf("connect_timeout", connect_timeout);
  options.chunk_bytes = chunk_bytes;
  options.async_calls_max = async_calls_max;
  if (upload != "direct" && upload != "relay") {
    Raise(absl::InvalidArgumentError(
        absl::StrCat("upload: \"", upload, "\"; expected direct or relay")));
  }
  options.upload = upload == "direct" ? Upload::kDirect : Upload::kRelay;
  options.retry = RetryOf(attempts_max, backoff_min, backoff_max, budget);
  options.tls_ca = tls_ca;
  options.tls_cert = tls_cert;
  options.tls_key = tls_key;
  options.token_file = token_file;
  return PythonClient::Connect(options);
}

PythonClient* InProcess(int workers, const std::string& backend, int threads,
                        int64_t kv_bytes_limit, int async_calls_max, int attempts_max,
                        double backoff_min, double backoff_max, int budget) {
  InProcessOptions options;
  options.retry = RetryOf(attempts_max, backoff_min, backoff_max, budget);
  options.workers = workers;
  options.backend = backend;
  options.threads = threads;
  options.kv_bytes_limit = kv_bytes_limit;
  options.async_calls_max = async_calls_max;
  return PythonClient::InProcess(options);
}

nb::list SpecNames() {
  nb::list names;
  ForEachField<ContextSpec>([&](const auto& field, size_t) {
    names.append(nb::str(field.name.data(), field.name.size()));
  });
  return names;
}

}  // namespace

void AddClient(nb::module_& module) {
  nb::class_<CancelToken>(module, "CancelToken")
      .def_static("new", &CancelToken::New)
      .def("cancel", &CancelToken::Cancel)
      .def_prop_ro("cancelled", &CancelToken::cancelled);
  nb::class_<PythonClient>(module, "Client")
      .def("close", Within(&PythonClient::Close))
      .def("create", Within(&PythonClient::Create))
      .def("append", Within(&PythonClient::Append), nb::arg(), nb::arg(), nb::arg(),
           nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg().none(), nb::arg().none(),
           nb::arg())
      .def("attend", Within(&PythonClient::Attend), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg())
      .def("select", Within(&PythonClient::Select), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg())
      .def("compress", Within(&PythonClient::Compress), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg())
      .def("step", Within(&PythonClient::Step), nb::arg(), nb::arg().none(), nb::arg().none(),
           nb::arg().none())
      .def("fork", Within(&PythonClient::Fork))
      .def("truncate", Within(&PythonClient::Truncate))
      .def("release", Within(&PythonClient::Release))
      .def("keep_alive", Within(&PythonClient::KeepAlive))
      .def("describe", Within(&PythonClient::Describe), nb::arg(), nb::arg().none(),
           nb::arg().none())
      .def("list", Within(&PythonClient::List))
      .def("status", Within(&PythonClient::Status))
      .def_prop_ro("connection", Within(&PythonClient::connection));
  module.def("connect", Within(&Connect), nb::rv_policy::take_ownership);
  module.def("in_process", Within(&InProcess), nb::rv_policy::take_ownership);
  module.def("spec_names", Within(&SpecNames));
}

}  // namespace annulus::python
