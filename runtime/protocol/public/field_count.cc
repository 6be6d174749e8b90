#include "runtime/protocol/public/field_count.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

namespace annulus {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

class Counter {
 public:
  Counter(CodedInputStream* input, int64_t max) : input_(input), max_(max) {}

  int64_t count() const { return count_; }

  // Walks one message, up to the limit that its caller has pushed. False: it is none.
  bool Walk(const Descriptor& type) {
    while (count_ <= max_) {
      const uint32_t tag = input_->ReadTag();
      if (tag == 0) return input_->ConsumedEntireMessage();
      if (!Field(tag, type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag)))) return false;
    }
    return true;
  }

 private:
  bool Field(uint32_t tag, const FieldDescriptor* field) {
    const WireFormatLite::WireType wire = WireFormatLite::GetTagWireType(tag);
    if (wire == WireFormatLite::WIRETYPE_START_GROUP) return false;
    const bool delimited = wire == WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
    const bool packed = delimited && field != nullptr && field->is_packable();
    if ((delimited && !packed) || field == nullptr) ++count_;
    if (!delimited || field == nullptr || field->type() != FieldDescriptor::TYPE_MESSAGE) {
      return WireFormatLite::SkipField(input_, tag);
    }
    int size = 0;
    if (!input_->ReadVarintSizeAsInt(&size)) return false;
    const CodedInputStream::Limit end = input_->PushLimit(size);
    const bool whole = Walk(*field->message_type());
    input_->PopLimit(end);
    return whole;
  }

  CodedInputStream* const input_;
  const int64_t max_;
  int64_t count_ = 0;
};

}  // namespace

std::optional<int64_t> CountFields(CodedInputStream* input, const Descriptor& type, int64_t max) {
  Counter counter(input, max);
  if (!counter.Walk(type)) return std::nullopt;
  return counter.count();
}

}  // namespace annulus
