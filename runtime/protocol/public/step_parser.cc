#include "runtime/protocol/public/step_parser.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "annulus/types.h"
#include "runtime/limits.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/field_count.h"

namespace annulus {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::ZeroCopyInputStream;

constexpr uint32_t kTimeLeftTag =
    WireFormatLite::MakeTag(v1::StepBatch::kTimeLeftUsFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kTraceparentTag = WireFormatLite::MakeTag(
    v1::StepBatch::kTraceparentFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr uint32_t kStepTag = WireFormatLite::MakeTag(v1::StepBatch::kStepsFieldNumber,
                                                      WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

// Of a batch, beside its steps.
struct BatchHead {
  int64_t time_left_us = 0;
  std::string traceparent;
};

// Walks the batch: `on_step` gets the bytes of each step as a limit of the stream, and may read as
// far. False if the bytes are no batch, or once on_step says so.
template <typename OnStep>
bool Walk(ZeroCopyInputStream* bytes, BatchHead* head, OnStep on_step) {
  CodedInputStream input(bytes);
  while (const uint32_t tag = input.ReadTag()) {
    if (tag == kStepTag) {
      int size = 0;
      if (!input.ReadVarintSizeAsInt(&size)) return false;
      const CodedInputStream::Limit end = input.PushLimit(size);
      if (!on_step(&input) || !input.Skip(input.BytesUntilLimit())) return false;
      input.PopLimit(end);
    } else if (tag == kTimeLeftTag) {
      uint64_t value = 0;
      if (!input.ReadVarint64(&value)) return false;
      head->time_left_us = static_cast<int64_t>(value);
    } else if (tag == kTraceparentTag) {
      int size = 0;
      if (!input.ReadVarintSizeAsInt(&size)) return false;
      // One that is too long is none.
      const bool fits = size <= static_cast<int>(kTraceparentBytesMax);
      if (fits ? !input.ReadString(&head->traceparent, size) : !input.Skip(size)) return false;
    } else if (!WireFormatLite::SkipField(&input, tag)) {
      return false;
    }
  }
  return input.ConsumedEntireMessage();
}

}  // namespace

absl::StatusOr<StepCount> CountSteps(ZeroCopyInputStream* bytes) {
  int64_t steps = 0;
  int64_t more_fields = 0;
  BatchHead head;
  const bool whole = Walk(bytes, &head, [&](CodedInputStream* input) {
    const int64_t fields_at_most = input->BytesUntilLimit() / 2;  // a tag and a length each
    const auto fields = CountFields(input, *v1::Step::descriptor(), fields_at_most);
    more_fields += std::max<int64_t>(0, fields.value_or(fields_at_most) - kStepFields);
    return ++steps <= kStepsMax && more_fields <= kMoreStepFieldsMax;
  });
  if (steps > kStepsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps: more than ", kStepsMax, "; expected at most ", kStepsMax));
  }
  if (more_fields > kMoreStepFieldsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("fields of steps: more than ", kMoreStepFieldsMax, " beyond ", kStepFields,
                     " of each; expected at most ", kMoreStepFieldsMax));
  }
  if (!whole) return absl::InvalidArgumentError("batch: malformed; expected a StepBatch");
  return StepCount{
      steps, steps * static_cast<int64_t>(kParsedStepBytes) + more_fields * kParsedFieldBytes};
}

std::vector<std::pair<size_t, absl::Status>> ParseSteps(ZeroCopyInputStream* bytes,
                                                        v1::StepBatch* batch) {
  batch->Clear();
  std::vector<std::pair<size_t, absl::Status>> failures;
  BatchHead head;
  Walk(bytes, &head, [&](CodedInputStream* input) {
    v1::Step* step = batch->add_steps();
    if (step->MergeFromCodedStream(input) && input->ConsumedEntireMessage()) return true;
    step->Clear();
    const auto index = static_cast<size_t>(batch->steps_size() - 1);
    failures.emplace_back(index, absl::InvalidArgumentError(absl::StrCat(
                                     "steps[", index, "]: malformed; expected a Step")));
    return true;
  });
  batch->set_time_left_us(head.time_left_us);
  batch->set_traceparent(std::move(head.traceparent));
  return failures;
}

}  // namespace annulus
