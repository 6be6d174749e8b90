#include "runtime/protocol/public/step_batch.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/index_queries.h"
#include "runtime/protocol/public/key_lists.h"
#include "runtime/protocol/public/tensor_stream.h"

namespace annulus {
namespace {

// What a step's message needs beside its tensors' bytes and its pattern.
constexpr int64_t kStepOverheadBytes = 256;

int64_t TensorBytes(const TensorView& view) {
  return view.size() * static_cast<int64_t>(SizeOf(view.dtype));
}

// An error that names a field of one step, with the step before it: steps[index].field.
absl::Status Of(absl::string_view steps, size_t index, const absl::Status& error) {
  return absl::Status(error.code(), absl::StrCat(steps, "[", index, "].", error.message()));
}

// The rows, one after the other.
void WriteRows(const TensorView& view, std::string* to) {
  ChunkWriter writer(TensorBytes(view), [&](std::string* data) {
    to->swap(*data);
    return true;
  });
  writer.Write(view);
  writer.Flush();
}

void WriteTensor(const TensorView& view, v1::InlineTensor* message) {
  ToProto(view, message->mutable_shape());
  WriteRows(view, message->mutable_data());
}

absl::StatusOr<TensorView> ViewOf(const TensorShape& shape, const std::string& data,
                                  absl::string_view field) {
  if (static_cast<int64_t>(data.size()) != shape.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: ", data.size(), " bytes; expected ", shape.bytes));
  }
  return shape.View(reinterpret_cast<const std::byte*>(data.data()));
}

// An absent tensor is one of no tokens.
absl::StatusOr<TensorView> TensorOf(bool present, const v1::InlineTensor& message,
                                    absl::string_view field) {
  if (!present) return TensorView();
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape shape, FromProto(message.shape(), field));
  return ViewOf(shape, message.data(), field);
}

absl::StatusOr<IndexQueries> IndexOf(const v1::IndexQueries& message) {
  ANNULUS_ASSIGN_OR_RETURN(IndexShape shape, FromProto(message));
  ANNULUS_ASSIGN_OR_RETURN(shape.index.q, ViewOf(shape.q, message.data(), "index"));
  return std::move(shape.index);
}

absl::StatusOr<StepRequest> RequestOf(const v1::Step& message) {
  StepRequest request;
  request.context = message.context();
  request.layer = message.layer();
  request.start = message.start();
  ANNULUS_RETURN_IF_ERROR(CheckPosition("start", request.start));
  ANNULUS_ASSIGN_OR_RETURN(request.k, TensorOf(message.has_k(), message.k(), "k"));
  ANNULUS_ASSIGN_OR_RETURN(request.v, TensorOf(message.has_v(), message.v(), "v"));
  ANNULUS_ASSIGN_OR_RETURN(request.q, TensorOf(message.has_q(), message.q(), "q"));
  request.pattern = message.pattern();
  request.scale = message.scale();
  request.key = {message.key().client(), message.key().sequence()};
  ANNULUS_RETURN_IF_ERROR(CheckLists(message.lists(), kStepBytesMax).status());
  ANNULUS_ASSIGN_OR_RETURN(ListsRead lists, FromProto(message.lists(), /*with_data=*/true));
  request.lists = std::move(lists.lists);
  request.sinks.assign(message.sinks().begin(), message.sinks().end());
  if (message.has_index()) {
    ANNULUS_ASSIGN_OR_RETURN(request.index, IndexOf(message.index()));
  }
  return request;
}

int64_t AnswerBytes(const absl::StatusOr<StepResult>& result) {
  if (!result.ok()) return static_cast<int64_t>(result.status().message().size());
  return static_cast<int64_t>(result->out.size_bytes() + result->lse.size_bytes());
}

void WriteAnswer(const absl::StatusOr<StepResult>& result, v1::StepAnswer* message) {
  if (!result.ok()) return ToProto(result.status(), message->mutable_failure());
  const int64_t bytes = AnswerBytes(result);
  if (bytes > kStepAnswerBytesMax) {
    // The tokens are committed and the answer is not: INVALID_ARGUMENT, so that nobody tries again.
    return ToProto(
        absl::InvalidArgumentError(absl::StrCat(
            "answer of the step: ", bytes, " bytes; expected at most ", kStepAnswerBytesMax,
            ": its tokens are appended, use Attend for its queries")),
        message->mutable_failure());
  }
  message->set_epoch(result->epoch);
  message->set_tokens(result->tokens);
  if (result->out.tokens() == 0) return;
  WriteTensor(result->out.view(), message->mutable_out());
  WriteTensor(result->lse.view(), message->mutable_lse());
}

absl::StatusOr<Tensor> OwnedTensorOf(const v1::InlineTensor& message, absl::string_view field) {
  ANNULUS_ASSIGN_OR_RETURN(const TensorView view, TensorOf(true, message, field));
  return Tensor(Buffer::Copy(view.data, message.data().size()), view.dtype, view.tokens, view.heads,
                view.dim);
}

absl::StatusOr<StepResult> ResultOf(const v1::StepAnswer& message, int64_t q_tokens,
                                    int64_t heads) {
  if (message.has_failure()) return FromProto(message.failure());
  StepResult result;
  result.epoch = message.epoch();
  result.tokens = message.tokens();
  if (q_tokens == 0) return result;
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape out, FromProto(message.out().shape(), "out"));
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape lse, FromProto(message.lse().shape(), "lse"));
  ANNULUS_RETURN_IF_ERROR(CheckAnswer(out, lse, q_tokens, heads));
  ANNULUS_ASSIGN_OR_RETURN(result.out, OwnedTensorOf(message.out(), "out"));
  ANNULUS_ASSIGN_OR_RETURN(result.lse, OwnedTensorOf(message.lse(), "lse"));
  return result;
}

}  // namespace

int64_t StepBytes(const StepRequest& request) {
  // In 128 bits, since three tensors that can each be read may be too many together.
  const __int128 bytes = static_cast<__int128>(kStepOverheadBytes) + request.pattern.size() +
                         TensorBytes(request.k) + TensorBytes(request.v) + TensorBytes(request.q) +
                         BytesOf(request.lists) + TensorBytes(request.index.q) +
                         (request.sinks.size() + request.index.weights.size()) * sizeof(float) +
                         static_cast<__int128>(request.lists.size()) * kStepOverheadBytes;
  return static_cast<int64_t>(std::min<__int128>(bytes, std::numeric_limits<int64_t>::max()));
}

std::vector<StepCut> CutSteps(absl::Span<const StepRequest> requests) {
  std::vector<StepCut> cuts;
  int64_t room = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const int64_t bytes = StepBytes(requests[i]);
    if (bytes > room || cuts.back().count == static_cast<size_t>(kStepsAtOnceMax)) {
      cuts.push_back({.first = i});
      room = kStepBytesMax;
    }
    ++cuts.back().count;
    room -= bytes;
  }
  return cuts;
}

void ToProto(absl::Span<const StepRequest> requests, v1::StepBatch* message) {
  for (const StepRequest& request : requests) {
    v1::Step* step = message->add_steps();
    step->set_context(request.context);
    step->set_layer(request.layer);
    step->set_start(request.start);
    if (request.k.tokens > 0) WriteTensor(request.k, step->mutable_k());
    if (request.v.tokens > 0) WriteTensor(request.v, step->mutable_v());
    if (request.q.tokens > 0) WriteTensor(request.q, step->mutable_q());
    step->set_pattern(request.pattern);
    step->set_scale(request.scale);
    if (request.key.given()) {
      step->mutable_key()->set_client(request.key.client);
      step->mutable_key()->set_sequence(request.key.sequence);
    }
    ToProto(request.lists, /*with_data=*/true, step->mutable_lists());
    step->mutable_sinks()->Add(request.sinks.begin(), request.sinks.end());
    if (request.index.q.tokens == 0) continue;
    ToProto(request.index, step->mutable_index());
    WriteRows(request.index.q, step->mutable_index()->mutable_data());
  }
}

std::vector<absl::StatusOr<StepRequest>> FromProto(const v1::StepBatch& message) {
  std::vector<absl::StatusOr<StepRequest>> requests;
  requests.reserve(static_cast<size_t>(message.steps_size()));
  for (int i = 0; i < message.steps_size(); ++i) {
    requests.push_back(RequestOf(message.steps(i)));
    if (requests.back().ok()) continue;
    requests.back() = Of("steps", static_cast<size_t>(i), requests.back().status());
  }
  return requests;
}

bool SendAnswers(absl::Span<const absl::StatusOr<StepResult>> results,
                 const std::function<bool(const v1::StepsReply&)>& send) {
  v1::StepsReply reply;
  int64_t room = kStepBytesMax;
  for (size_t i = 0; i < results.size(); ++i) {
    const int64_t bytes = kStepOverheadBytes + AnswerBytes(results[i]);
    if (bytes > room && reply.answers_size() > 0) {
      if (!send(reply)) return false;
      reply.clear_answers();
      reply.set_first(static_cast<int>(i));
      room = kStepBytesMax;
    }
    WriteAnswer(results[i], reply.add_answers());
    room -= bytes;
  }
  return send(reply);
}

StepAnswersReader::StepAnswersReader(absl::Span<const StepRequest> requests)
    : come_(requests.size(), false),
      missing_(requests.size()),
      results_(StepResultsOf(absl::InternalError("no answer has come"), requests.size())) {
  for (const StepRequest& request : requests) q_.push_back({request.q.tokens, request.q.heads});
}

absl::Status StepAnswersReader::Add(const v1::StepsReply& message) {
  for (int i = 0; i < message.answers_size(); ++i) {
    const int64_t at = int64_t{message.first()} + i;
    if (at < 0 || at >= static_cast<int64_t>(q_.size()) || come_[static_cast<size_t>(at)]) {
      return absl::InternalError(absl::StrCat("the reply answers step ", at, " of a batch of ",
                                              q_.size(), ", or answers it twice"));
    }
    const auto step = static_cast<size_t>(at);
    come_[step] = true;
    --missing_;
    results_[step] = ResultOf(message.answers(i), q_[step].tokens, q_[step].heads);
    // A malformed answer is no news of the step: the tensors alone name the client's own argument.
    if (!message.answers(i).has_failure() && absl::IsInvalidArgument(results_[step].status())) {
      results_[step] = absl::InternalError(
          absl::StrCat("the reply is malformed: ", results_[step].status().message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
