#include "runtime/protocol/public/tensor_stream.h"

#include <vector>

#include "base/check.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/step_batch.h"
#include "tests/fuzz/targets/parse.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

constexpr StreamLimits kLimits{.request_bytes_max = 1 << 16, .piece_bytes_max = 1 << 14};

// Hands the input's messages to `add` until it wants no more.
template <typename Part, typename Add>
void ReadStream(Bytes input, Add add) {
  while (!input.empty()) {
    const size_t low = TakeByte(&input);
    const size_t size = low | size_t{TakeByte(&input)} << 8;
    Part part;
    if (!Parse(TakeFront(&input, size), &part) || !add(part).ok()) return;
  }
}

bool TryAppendStream(Bytes input) {
  int64_t reserved = 0, next = 0;
  const auto admit = [&](const AppendRequest& header, int64_t bytes) {
    ANNULUS_CHECK(header.k.tokens >= 1 && header.k.data == nullptr);
    ANNULUS_CHECK(reserved == 0 && bytes >= 1 && bytes <= kLimits.piece_bytes_max);
    reserved = bytes;
    return absl::OkStatus();
  };
  const auto sink = [&](const AppendRequest& piece) {
    ANNULUS_CHECK(next == 0 || piece.start == next);
    ANNULUS_CHECK(piece.k.tokens >= 1 && (piece.v.tokens == 0 || piece.v.tokens == piece.k.tokens));
    next = piece.start + piece.k.tokens;
    (void)(Sum(piece.k) + Sum(piece.v));
    return absl::OkStatus();
  };
  AppendReader reader(kLimits, admit, sink);
  ReadStream<v1::AppendPart>(input, [&](const v1::AppendPart& part) { return reader.Add(part); });
  return reader.Finish().ok();
}

bool TryAttendStream(Bytes input) {
  int64_t reserved = 0;
  AttendReader reader(kLimits, [&](const AttendRequest& header, int64_t bytes) {
    ANNULUS_CHECK(header.q.tokens >= 1 && header.q.data == nullptr);
    ANNULUS_CHECK(reserved == 0 && bytes >= 1 && bytes <= kLimits.request_bytes_max);
    reserved = bytes;
    return absl::OkStatus();
  });
  ReadStream<v1::AttendPart>(input, [&](const v1::AttendPart& part) { return reader.Add(part); });
  const absl::StatusOr<AttendRequest> request = reader.Finish();
  if (!request.ok()) return false;
  ANNULUS_CHECK(reserved == request->q.size() * static_cast<int64_t>(SizeOf(request->q.dtype)));
  (void)Sum(request->q);
  return true;
}

// As an answer to 2 queries of 3 heads.
bool TryAttendReply(Bytes input) {
  AttendReplyReader reader(2, 3);
  ReadStream<v1::AttendReplyPart>(
      input, [&](const v1::AttendReplyPart& part) { return reader.Add(part); });
  const absl::StatusOr<AttendResult> result = reader.Finish();
  if (!result.ok()) return false;
  ANNULUS_CHECK(result->out.tokens() == 2 && result->out.heads() == 3);
  ANNULUS_CHECK(result->lse.tokens() == 2 && result->lse.heads() == 3);
  (void)(Sum(result->out.view()) + Sum(result->lse.view()));
  return true;
}

// As the answers to three steps: queries of one token, of two, and none.
bool TryStepAnswers(Bytes input) {
  const std::byte data[64] = {};
  std::vector<StepRequest> requests(3);
  requests[0].q = TensorView::Contiguous(data, DType::kF32, 1, 2, 8);
  requests[1].q = TensorView::Contiguous(data, DType::kF16, 2, 2, 8);
  StepAnswersReader reader(requests);
  ReadStream<v1::StepsReply>(input, [&](const v1::StepsReply& part) { return reader.Add(part); });
  if (!reader.complete()) return false;
  const std::vector<absl::StatusOr<StepResult>> results = reader.Take();
  ANNULUS_CHECK(results.size() == requests.size());
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].ok()) continue;
    ANNULUS_CHECK(results[i]->out.tokens() == requests[i].q.tokens);
    (void)(Sum(results[i]->out.view()) + Sum(results[i]->lse.view()));
  }
  return true;
}

constexpr bool (*kKinds[])(Bytes) = {TryAppendStream, TryAttendStream, TryAttendReply,
                                     TryStepAnswers};

}  // namespace

bool TryStreams(Bytes input) {
  const unsigned kind = TakeByte(&input);
  return kind < std::size(kKinds) && kKinds[kind](input);
}

}  // namespace annulus::fuzz
