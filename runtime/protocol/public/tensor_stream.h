// Streams: tensors cut into messages, and messages put together again (annulus.proto: a header,
// then raw bytes cut anywhere). The readers take one message at a time and know no network, so that
// any sequence of messages can be tried on them. What a header declares is checked and reserved
// before memory is taken for it. Not thread-safe: one reader or writer per call.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "annulus/types.h"
#include "runtime/protocol/public/convert.h"

namespace annulus {
namespace v1 {
class AppendHeader;
class AppendPart;
class AttendHeader;
class AttendPart;
class AttendReplyHeader;
class AttendReplyPart;
}  // namespace v1

struct StreamLimits {
  int64_t request_bytes_max = int64_t{1} << 30;  // of the tensor and lists that an Attend brings
  int64_t piece_bytes_max = int64_t{16} << 20;   // of one piece of an Append, K and V together
};

// Client: the shape of a view that can be read and sent. INVALID_ARGUMENT names `field` for one
// that cannot; what it must be for the service, the service says.
absl::StatusOr<TensorShape> Streamable(const TensorView& view, absl::string_view field);

// Client: proto3 text is UTF-8, and a message with anything else never arrives; what this project
// sends is ASCII. INVALID_ARGUMENT names `field`.
absl::Status CheckAscii(absl::string_view field, absl::string_view text);

// Asked before memory is taken for a request, of which the header has come, so that its tensors
// have shapes and no data: keeps that many bytes for it or says why not.
template <typename Request>
using Admit = std::function<absl::Status(const Request& header, int64_t bytes)>;

// Fills a few memory areas, one after the other, from bytes that come cut anywhere.
class Filler {
 public:
  void Aim(std::vector<absl::Span<std::byte>> targets);
  // Copies what still fits from the front of *data and takes it off.
  void Take(absl::string_view* data);
  bool full() const { return next_ == targets_.size(); }
  int64_t taken() const { return taken_; }  // bytes since Aim

 private:
  std::vector<absl::Span<std::byte>> targets_;
  size_t next_ = 0;
  int64_t taken_ = 0;
};

// The server's side of Append: hands on whole pieces in order, keeping no more than one.
class AppendReader {
 public:
  // Gets one piece (its tensors borrowed for the call). An error ends the stream.
  using Sink = std::function<absl::Status(const AppendRequest& piece)>;

  AppendReader(const StreamLimits& limits, Admit<AppendRequest> admit, Sink sink);

  // INVALID_ARGUMENT, what `admit` or the sink says; the message says how many of the request's
  // tokens are committed.
  absl::Status Add(const v1::AppendPart& part);
  // Whether everything declared has come.
  absl::Status Finish() const;

 private:
  absl::Status Start(const v1::AppendHeader& header);
  absl::Status AddData(absl::string_view data);
  absl::Status HandOn();
  void AimAtNextPiece();
  absl::Status Fail(const absl::Status& status) const;

  const StreamLimits limits_;
  const Admit<AppendRequest> admit_;
  const Sink sink_;
  bool started_ = false;
  AppendRequest next_;  // piece, but for its tensors
  TensorShape k_;
  TensorShape v_;  // tokens 0: none
  int64_t piece_tokens_ = 0;
  int64_t done_ = 0;  // tokens handed on
  Buffer k_piece_;
  Buffer v_piece_;
  Filler filler_;
};

// The server's side of Attend's request.
class AttendReader {
 public:
  AttendReader(const StreamLimits& limits, Admit<AttendRequest> admit);

  absl::Status Add(const v1::AttendPart& part);
  // The whole request; its q borrows from the reader.
  absl::StatusOr<AttendRequest> Finish() const;
  // Of a Select alone.
  const std::vector<float>& weights() const { return weights_; }
  // Of a Compress alone: what it asks beside its queries.
  const std::optional<CompressRequest>& compress() const { return compress_; }

 private:
  absl::Status Start(const v1::AttendHeader& header);
  absl::Status AddData(absl::string_view data);
  const char* Field() const {
    return request_.lists.empty() && index_bytes_.size() == 0 ? "q" : "q, index and lists";
  }

  const StreamLimits limits_;
  const Admit<AttendRequest> admit_;
  bool started_ = false;
  AttendRequest request_;
  std::vector<float> weights_;
  std::optional<CompressRequest> compress_;
  TensorShape q_;
  int64_t all_bytes_ = 0;  // of q, the index's and lists
  Buffer bytes_;
  Buffer index_bytes_;
  Filler filler_;
};

// The client's side of Attend's reply to queries [q_tokens, heads, ·]. INTERNAL for a reply that
// is none.
class AttendReplyReader {
 public:
  AttendReplyReader(int64_t q_tokens, int64_t heads) : q_tokens_(q_tokens), heads_(heads) {}

  absl::Status Add(const v1::AttendReplyPart& part);
  absl::StatusOr<AttendResult> Finish();

 private:
  absl::Status Start(const v1::AttendReplyHeader& header);
  absl::Status AddData(absl::string_view data);

  const int64_t q_tokens_;
  const int64_t heads_;
  bool started_ = false;
  AttendResult result_;
  Filler filler_;
};

// A tensor of at most this size, or a reply's together, travels in its stream's header.
inline constexpr int64_t kHeaderDataBytesMax = 64 << 10;

// Gathers the rows of views, strided or not, into messages of at most chunk_bytes.
class ChunkWriter {
 public:
  // Sends one message's bytes and may take the string; false once the stream is broken.
  using Send = std::function<bool(std::string* data)>;

  ChunkWriter(int64_t chunk_bytes, Send send);

  // All return false once the stream is broken.
  bool Write(const TensorView& view);
  bool Write(absl::Span<const std::byte> bytes);
  bool Flush();

 private:
  bool WriteBytes(const std::byte* bytes, int64_t count);

  const size_t chunk_bytes_;
  const Send send_;
  std::string chunk_;
};

}  // namespace annulus
