// Batches of steps as bytes that no client library makes: one bad step does not take the others
// along, and no message takes more memory than it should.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <malloc.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/step_batch.h"
#include "tests/rpc/loopback.h"

namespace annulus {
namespace {

// The bytes of a batch that no client library makes.
struct BytesOfSteps {
  explicit BytesOfSteps(const Loopback& loopback)
      : generic(MakeChannel(loopback.endpoint())),
        call(generic.PrepareCall(&context, "/annulus.v1.Annulus/Steps", &queue)) {
    call->StartCall(nullptr);
    CHECK(Wait());
  }
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  }
  // Nothing if the stream ends.
  std::optional<v1::StepsReply> Ask(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    if (!Wait()) return std::nullopt;
    return Read();
  }
  std::optional<v1::StepsReply> Read() {
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    if (!Wait()) return std::nullopt;
    v1::StepsReply reply;
    grpc::ProtoBufferReader reader(&answer);
    CHECK(reply.ParseFromZeroCopyStream(&reader));
    return reply;
  }
  grpc::Status Finish() {
    grpc::Status status;
    call->Finish(&status, nullptr);
    CHECK(Wait());
    return status;
  }

  grpc::GenericStub generic;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
};

TEST_CASE("a step whose bytes are none fails alone, and a batch that is none ends its stream") {
  const Loopback loopback;
  BytesOfSteps raw(loopback);
  const std::vector<float> values = Ramp(16);
  StepRequest step;
  step.q = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  v1::StepBatch good;
  ToProto(std::vector<StepRequest>{step}, &good);
  const std::string whole = good.SerializeAsString();
  // Field 2, a step: a pattern that is not UTF-8; a field that is cut off; a group that never ends.
  const std::string bad[] = {
      {"\x12\x03\x3a\x01\xff", 5}, {"\x12\x02\x3a\x09", 4}, {"\x12\x01\x0b", 3}};
  for (const std::string& none : bad) {
    const auto reply = raw.Ask(whole + none + whole);
    REQUIRE(reply.has_value());
    REQUIRE(reply->answers_size() == 3);
    CHECK_FALSE(reply->answers(0).has_failure());
    CHECK(reply->answers(1).failure().message() == "steps[1]: malformed; expected a Step");
    CHECK_FALSE(reply->answers(2).has_failure());
  }
  CHECK_FALSE(raw.Ask("\x12\x09").has_value());
  const grpc::Status status = raw.Finish();
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message() == "batch: malformed; expected a StepBatch");
}

TEST_CASE("a message of a million empty steps is counted before it takes memory") {
  const Loopback loopback;
  BytesOfSteps raw(loopback);
  std::string steps;
  while (steps.size() < (3 << 20)) steps += std::string("\x12\0", 2);
  CHECK_FALSE(raw.Ask(steps).has_value());
  const grpc::Status status = raw.Finish();
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message().find("steps: more than 65536") == 0);
}

// That malloc has given out in this process.
size_t BytesInUse() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST_CASE("a stream of steps that is idle keeps next to nothing of a large batch") {
  Loopback loopback;
  std::string empty;
  for (int i = 0; i < 60'000; ++i) empty += std::string("\x12\0", 2);
  v1::StepBatch lists;
  for (int i = 0; i < 4'000; ++i) {
    v1::Step* const step = lists.add_steps();
    while (step->lists_size() < 16) step->add_lists();
  }
  v1::StepBatch data;  // more than a tensor of its shape has
  data.add_steps()->mutable_k()->set_data(std::string(3 << 20, 'x'));
  const std::pair<std::string, int> batches[] = {
      {empty, 60'000}, {lists.SerializeAsString(), 4'000}, {data.SerializeAsString(), 1}};
  for (const auto& [batch, steps] : batches) {
    CAPTURE(steps);
    std::vector<std::unique_ptr<BytesOfSteps>> idle;
    for (int i = 0; i < 8; ++i) {
      idle.push_back(std::make_unique<BytesOfSteps>(loopback));
      REQUIRE(idle.back()->Ask(std::string("\x12\0", 2)).has_value());
    }
    const size_t before = BytesInUse();
    for (const auto& stream : idle) {
      int answers = 0;
      for (auto reply = stream->Ask(batch); reply.has_value(); reply = stream->Read()) {
        answers = reply->first() + reply->answers_size();
        if (answers == steps) break;
      }
      REQUIRE(answers == steps);
    }
    std::vector<StepRequest>().swap(loopback.service.steps);  // those that the fake has seen
    // The server tidies up after it has answered.
    const auto more = [&] { return std::max(BytesInUse(), before) - before; };
    for (int i = 0; i < 500 && more() > (8 << 20); ++i) absl::SleepFor(absl::Milliseconds(10));
    CHECK(more() <= (8 << 20));
  }
}

TEST_CASE("a step of a million empty lists is counted before it takes memory") {
  const Loopback loopback;
  BytesOfSteps raw(loopback);
  v1::StepBatch batch;
  v1::Step* step = batch.add_steps();
  while (step->lists_size() < (1 << 20)) step->add_lists();
  CHECK_FALSE(raw.Ask(batch.SerializeAsString()).has_value());
  const grpc::Status status = raw.Finish();
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(status.error_message() ==
        "fields of steps: more than 65536 beyond 16 of each; expected at most 65536");
}

}  // namespace
}  // namespace annulus
