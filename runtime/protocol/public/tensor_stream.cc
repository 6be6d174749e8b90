#include "runtime/protocol/public/tensor_stream.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/index_queries.h"
#include "runtime/protocol/public/key_lists.h"

namespace annulus {
namespace {

// Rows that are read one after the other must not lie on each other: a stride that was left 0 would
// silently give the first row for all.
absl::Status CheckStride(absl::string_view field, absl::string_view stride, int64_t value,
                         int64_t count, int64_t dim) {
  if (count == 1 || value >= dim) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".", stride, ": ", value, "; expected at least dim, ", dim));
}

absl::Span<std::byte> Bytes(Buffer& buffer, int64_t count) {
  return {buffer.data(), static_cast<size_t>(count)};
}

absl::Span<std::byte> Bytes(Tensor& tensor) {
  return {tensor.data(), tensor.size_bytes()};
}

absl::Status NoHeader() {
  return absl::InvalidArgumentError(
      "header: none; expected a stream whose first message is a well-formed header");
}

// What is wrong with a message that is not the data that was expected.
template <typename Part>
absl::Status CheckDataPart(const Part& part) {
  if (part.part_case() == Part::kHeader) {
    return absl::InvalidArgumentError("header: given twice; expected data after the first message");
  }
  if (part.data().empty()) {
    return absl::InvalidArgumentError("data: 0 bytes; expected at least 1 byte in a message");
  }
  return absl::OkStatus();
}

absl::Status CheckAtMost(absl::string_view field, const TensorShape& shape, int64_t bytes_max) {
  if (shape.bytes <= bytes_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": [", shape.tokens, ", ", shape.heads, ", ", shape.dim, "], ",
                   shape.bytes, " bytes; expected at most ", bytes_max, " (request_bytes_max)"));
}

absl::Status TooMuch(absl::string_view field, int64_t bytes) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": more bytes than declared; expected ", bytes));
}

}  // namespace

absl::StatusOr<TensorShape> Streamable(const TensorView& view, absl::string_view field) {
  ANNULUS_ASSIGN_OR_RETURN(TensorShape shape,
                           CheckedShape(view.dtype, view.tokens, view.heads, view.dim, field));
  if (view.data == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: null; expected ", shape.bytes, " bytes or their strided rows"));
  }
  ANNULUS_RETURN_IF_ERROR(
      CheckStride(field, "token_stride", view.token_stride, view.tokens, view.dim));
  ANNULUS_RETURN_IF_ERROR(
      CheckStride(field, "head_stride", view.head_stride, view.heads, view.dim));
  const __int128 last = static_cast<__int128>(view.tokens - 1) * view.token_stride +
                        static_cast<__int128>(view.heads - 1) * view.head_stride + view.dim;
  if (last > std::numeric_limits<int64_t>::max() / static_cast<int64_t>(SizeOf(view.dtype))) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".token_stride: ", view.token_stride,
                                                   " and head_stride ", view.head_stride,
                                                   "; expected rows within 2^63 bytes"));
  }
  return shape;
}

absl::Status CheckAscii(absl::string_view field, absl::string_view text) {
  const auto* odd = std::find_if(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
  if (odd == text.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": byte ", static_cast<unsigned char>(*odd),
                                                 " at position ", odd - text.begin(),
                                                 "; expected ASCII text"));
}

void Filler::Aim(std::vector<absl::Span<std::byte>> targets) {
  targets_ = std::move(targets);
  next_ = 0;
  taken_ = 0;
}

void Filler::Take(absl::string_view* data) {
  while (!full() && !data->empty()) {
    absl::Span<std::byte>& target = targets_[next_];
    const size_t count = std::min(target.size(), data->size());
    std::memcpy(target.data(), data->data(), count);
    target.remove_prefix(count);
    data->remove_prefix(count);
    taken_ += static_cast<int64_t>(count);
    if (target.empty()) ++next_;
  }
}

AppendReader::AppendReader(const StreamLimits& limits, Admit<AppendRequest> admit, Sink sink)
    : limits_(limits), admit_(std::move(admit)), sink_(std::move(sink)) {}

absl::Status AppendReader::Add(const v1::AppendPart& part) {
  if (!started_) {
    if (part.part_case() != v1::AppendPart::kHeader) return NoHeader();
    return Start(part.header());
  }
  if (absl::Status status = CheckDataPart(part); !status.ok()) return Fail(status);
  return AddData(part.data());
}

absl::Status AppendReader::Start(const v1::AppendHeader& header) {
  ANNULUS_ASSIGN_OR_RETURN(next_, FromProto<AppendRequest>(header));
  ANNULUS_ASSIGN_OR_RETURN(k_, FromProto(header.k(), "k"));
  int64_t v_row_bytes = 0;
  if (header.has_v()) {
    ANNULUS_ASSIGN_OR_RETURN(v_, FromProto(header.v(), "v"));
    if (v_.tokens != k_.tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("v.tokens: ", v_.tokens, "; expected k.tokens, ", k_.tokens, ", or 0"));
    }
    v_row_bytes = v_.row_bytes();
  }
  piece_tokens_ = header.piece_tokens();
  if (piece_tokens_ < 1 || piece_tokens_ > k_.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("piece_tokens: ", piece_tokens_, "; expected 1 to k.tokens, ", k_.tokens));
  }
  // Neither product exceeds its tensor's bytes; their sum may exceed int64.
  const uint64_t piece_bytes = static_cast<uint64_t>(piece_tokens_ * k_.row_bytes()) +
                               static_cast<uint64_t>(piece_tokens_ * v_row_bytes);
  if (piece_bytes > static_cast<uint64_t>(limits_.piece_bytes_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("piece_tokens: ", piece_tokens_, " of ", piece_bytes,
                     " bytes of k and v; expected at most ", limits_.piece_bytes_max,
                     " bytes (piece_bytes_max)"));
  }
  AppendRequest whole = next_;
  whole.k = k_.View(nullptr);
  if (v_.tokens > 0) whole.v = v_.View(nullptr);
  const absl::Status admitted = admit_(whole, static_cast<int64_t>(piece_bytes));
  if (!admitted.ok()) return Fail(admitted);
  k_piece_ = Buffer(static_cast<size_t>(piece_tokens_ * k_.row_bytes()));
  v_piece_ = Buffer(static_cast<size_t>(piece_tokens_ * v_row_bytes));
  AimAtNextPiece();
  started_ = true;
  return absl::OkStatus();
}

void AppendReader::AimAtNextPiece() {
  const int64_t count = std::min(piece_tokens_, k_.tokens - done_);
  std::vector<absl::Span<std::byte>> targets;
  if (count > 0) targets.push_back(Bytes(k_piece_, count * k_.row_bytes()));
  if (count > 0 && v_.tokens > 0) targets.push_back(Bytes(v_piece_, count * v_.row_bytes()));
  filler_.Aim(std::move(targets));
}

absl::Status AppendReader::AddData(absl::string_view data) {
  while (!data.empty()) {
    if (done_ == k_.tokens) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat("data: more bytes than k and v declare; expected the rows of ", k_.tokens,
                       " tokens and no more")));
    }
    filler_.Take(&data);
    if (!filler_.full()) break;
    if (absl::Status status = HandOn(); !status.ok()) return Fail(status);
    AimAtNextPiece();
  }
  return absl::OkStatus();
}

absl::Status AppendReader::HandOn() {
  const int64_t count = std::min(piece_tokens_, k_.tokens - done_);
  AppendRequest piece = next_;
  piece.k = TensorView::Contiguous(k_piece_.data(), k_.dtype, count, k_.heads, k_.dim);
  if (v_.tokens > 0) {
    piece.v = TensorView::Contiguous(v_piece_.data(), v_.dtype, count, v_.heads, v_.dim);
  }
  ANNULUS_RETURN_IF_ERROR(sink_(piece));
  done_ += count;
  next_.start += count;
  ++next_.key.sequence;
  return absl::OkStatus();
}

absl::Status AppendReader::Finish() const {
  if (!started_) return NoHeader();
  if (done_ == k_.tokens) return absl::OkStatus();
  return Fail(absl::InvalidArgumentError(
      absl::StrCat("data: ended early; expected the rows of ", k_.tokens, " tokens")));
}

absl::Status AppendReader::Fail(const absl::Status& status) const {
  absl::Status told(status.code(),
                    absl::StrCat(status.message(), " (", done_, " of this request's ", k_.tokens,
                                 " tokens are committed)"));
  status.ForEachPayload([&told](absl::string_view type, const absl::Cord& payload) {
    told.SetPayload(type, payload);
  });
  return told;
}

AttendReader::AttendReader(const StreamLimits& limits, Admit<AttendRequest> admit)
    : limits_(limits), admit_(std::move(admit)) {}

absl::Status AttendReader::Add(const v1::AttendPart& part) {
  if (!started_) {
    if (part.part_case() != v1::AttendPart::kHeader) return NoHeader();
    return Start(part.header());
  }
  ANNULUS_RETURN_IF_ERROR(CheckDataPart(part));
  return AddData(part.data());
}

absl::Status AttendReader::Start(const v1::AttendHeader& header) {
  ANNULUS_ASSIGN_OR_RETURN(request_, FromProto<AttendRequest>(header));
  weights_.assign(header.weights().begin(), header.weights().end());
  if (header.has_compress()) {
    ANNULUS_ASSIGN_OR_RETURN(compress_, FromProto<CompressRequest>(header.compress()));
  }
  ANNULUS_ASSIGN_OR_RETURN(q_, FromProto(header.q(), "q"));
  ANNULUS_RETURN_IF_ERROR(CheckAtMost("q", q_, limits_.request_bytes_max));
  request_.q = q_.View(nullptr);
  int64_t room = limits_.request_bytes_max - q_.bytes;
  IndexShape index;
  if (header.has_index()) {
    ANNULUS_ASSIGN_OR_RETURN(index, FromProto(header.index()));
    ANNULUS_RETURN_IF_ERROR(CheckAtMost("index.q", index.q, room));
    room -= index.q.bytes;
    request_.index = std::move(index.index);
  }
  ANNULUS_ASSIGN_OR_RETURN(const int64_t list_bytes, CheckLists(header.lists(), room));
  all_bytes_ = q_.bytes + index.q.bytes + list_bytes;
  ANNULUS_RETURN_IF_ERROR(admit_(request_, all_bytes_));
  ANNULUS_ASSIGN_OR_RETURN(ListsRead lists, FromProto(header.lists(), /*with_data=*/false));
  request_.lists = std::move(lists.lists);
  bytes_ = Buffer(static_cast<size_t>(q_.bytes));
  request_.q = q_.View(bytes_.data());
  std::vector<absl::Span<std::byte>> targets = std::move(lists.missing);
  if (index.q.bytes > 0) {
    index_bytes_ = Buffer(static_cast<size_t>(index.q.bytes));
    request_.index.q = index.q.View(index_bytes_.data());
    targets.insert(targets.begin(), Bytes(index_bytes_, index.q.bytes));
  }
  targets.insert(targets.begin(), Bytes(bytes_, q_.bytes));
  filler_.Aim(std::move(targets));
  started_ = true;
  return AddData(header.data());
}

absl::Status AttendReader::AddData(absl::string_view data) {
  filler_.Take(&data);
  return data.empty() ? absl::OkStatus() : TooMuch(Field(), all_bytes_);
}

absl::StatusOr<AttendRequest> AttendReader::Finish() const {
  if (!started_) return NoHeader();
  if (!filler_.full()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Field(), ": ", filler_.taken(), " bytes of data; expected ", all_bytes_));
  }
  return request_;
}

absl::Status AttendReplyReader::Add(const v1::AttendReplyPart& part) {
  if (!started_) {
    if (part.part_case() != v1::AttendReplyPart::kHeader) {
      return absl::InternalError("the reply has no header");
    }
    return Start(part.header());
  }
  if (part.part_case() != v1::AttendReplyPart::kData) {
    return absl::InternalError("the reply has a message without data");
  }
  return AddData(part.data());
}

absl::Status AttendReplyReader::AddData(absl::string_view data) {
  filler_.Take(&data);
  return data.empty() ? absl::OkStatus()
                      : absl::InternalError("the reply has more bytes than it declared");
}

absl::Status AttendReplyReader::Start(const v1::AttendReplyHeader& header) {
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape out, FromProto(header.out(), "out"));
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape lse, FromProto(header.lse(), "lse"));
  ANNULUS_RETURN_IF_ERROR(CheckAnswer(out, lse, q_tokens_, heads_));
  ANNULUS_ASSIGN_OR_RETURN(result_, ReplyOf<AttendResult>(header));
  result_.out = Tensor(out.dtype, out.tokens, out.heads, out.dim);
  result_.lse = Tensor(lse.dtype, lse.tokens, lse.heads, lse.dim);
  filler_.Aim({Bytes(result_.out), Bytes(result_.lse)});
  started_ = true;
  return AddData(header.data());
}

absl::StatusOr<AttendResult> AttendReplyReader::Finish() {
  if (!started_ || !filler_.full()) {
    return absl::InternalError("the reply ended before all of its bytes had come");
  }
  return std::move(result_);
}

ChunkWriter::ChunkWriter(int64_t chunk_bytes, Send send)
    : chunk_bytes_(static_cast<size_t>(chunk_bytes)), send_(std::move(send)) {}

bool ChunkWriter::Write(const TensorView& view) {
  const int64_t element_bytes = static_cast<int64_t>(SizeOf(view.dtype));
  const bool token_is_one_run = view.head_stride == view.dim || view.heads == 1;
  const int64_t token_elements = view.heads * view.dim;
  if (token_is_one_run && (view.token_stride == token_elements || view.tokens == 1)) {
    return WriteBytes(view.data, view.size() * element_bytes);
  }
  for (int64_t token = 0; token < view.tokens; ++token) {
    if (token_is_one_run) {
      if (!WriteBytes(view.Row(token, 0), token_elements * element_bytes)) return false;
      continue;
    }
    for (int64_t head = 0; head < view.heads; ++head) {
      if (!WriteBytes(view.Row(token, head), view.dim * element_bytes)) return false;
    }
  }
  return true;
}

bool ChunkWriter::Write(absl::Span<const std::byte> bytes) {
  return WriteBytes(bytes.data(), static_cast<int64_t>(bytes.size()));
}

bool ChunkWriter::WriteBytes(const std::byte* bytes, int64_t count) {
  const char* from = reinterpret_cast<const char*>(bytes);
  size_t left = static_cast<size_t>(count);
  while (left > 0) {
    const size_t part = std::min(left, chunk_bytes_ - chunk_.size());
    chunk_.append(from, part);
    from += part;
    left -= part;
    if (chunk_.size() == chunk_bytes_ && !Flush()) return false;
  }
  return true;
}

bool ChunkWriter::Flush() {
  if (chunk_.empty()) return true;
  const bool sent = send_(&chunk_);
  chunk_.clear();
  return sent;
}

}  // namespace annulus
