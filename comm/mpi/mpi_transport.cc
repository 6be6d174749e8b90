#include "comm/mpi/mpi_transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int kHeadTag = 1;
constexpr int kBodyTag = 2;

// What a head begins with. `body_bytes` of data follow it under kBodyTag.
struct MpiHead {
  enum Kind : uint64_t { kPiece, kText };

  uint64_t kind = kPiece;
  uint64_t body_bytes = 0;
};

// Enough pieces for the fabric to be busy while the thread looks away.
constexpr size_t kWindowPieces = 4;

// Messages read before others get the lock.
constexpr int kHeadsMax = 64;

// How the thread waits: it looks again and again for a moment, then naps; shortly while messages
// are on the way, since MPI moves long ones a part at each look.
constexpr absl::Duration kSpin = absl::Microseconds(50);
constexpr absl::Duration kNapMin = absl::Microseconds(20);
constexpr absl::Duration kNapMax = absl::Milliseconds(2);
constexpr int64_t kNapShare = 8;

template <typename T>
void Append(std::string* text, const T& fields) {
  text->append(reinterpret_cast<const char*>(&fields), sizeof fields);
}

template <typename T>
T Take(absl::string_view* text) {
  ANNULUS_CHECK(text->size() >= sizeof(T));
  T fields;
  std::memcpy(&fields, text->data(), sizeof fields);
  text->remove_prefix(sizeof fields);
  return fields;
}

}  // namespace

absl::Status MpiError(const char* call, int code) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = "an error without a text";
  int length = 0;
  (void)MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat(call, ": ", text));
}

void MpiLink::Send(Piece piece) {
  if (!transport_.broken_.ok()) {
    if (piece.done) piece.done(false);
    return;
  }
  queue_.push_back(std::move(piece));
  Pump();
}

void MpiLink::Pump() {
  const size_t window_bytes = kWindowPieces * transport_.piece_bytes_max();
  while (transport_.broken_.ok() && !queue_.empty() && in_flight_bytes_ < window_bytes) {
    Piece piece = std::move(queue_.front());
    queue_.pop_front();
    std::string head;
    Append(&head, MpiHead{MpiHead::kPiece, piece.size_bytes});
    Append(&head, piece.header);
    head += piece.text;
    transport_.SendHead(peer_, std::move(head));
    if (piece.size_bytes == 0) {
      if (piece.done) piece.done(true);
      continue;
    }
    in_flight_bytes_ += piece.size_bytes;
    transport_.SendBody(peer_, piece.data, piece.size_bytes,
                        [this, size_bytes = piece.size_bytes, done = std::move(piece.done)] {
                          in_flight_bytes_ -= size_bytes;
                          if (done) done(true);
                          Pump();
                        });
  }
}

void MpiLink::DropUnsent(const void* owner) {
  std::deque<Piece> kept, dropped;
  for (Piece& piece : queue_) (piece.owner == owner ? dropped : kept).push_back(std::move(piece));
  queue_ = std::move(kept);
  for (Piece& piece : dropped) {
    if (piece.done) piece.done(false);
  }
}

absl::StatusOr<std::unique_ptr<MpiTransport>> MpiTransport::Create(const MpiOptions& options) {
  int started = 0;
  ANNULUS_RETURN_IF_ERROR(MpiError("MPI_Initialized", MPI_Initialized(&started)));
  if (started != 0) return absl::UnavailableError("MPI: started already; expected once");
  int provided = MPI_THREAD_SINGLE;
  ANNULUS_RETURN_IF_ERROR(MpiError(
      "MPI_Init_thread", MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided)));
  if (provided < MPI_THREAD_SERIALIZED) {
    return absl::UnavailableError(
        "MPI: no MPI_THREAD_SERIALIZED; expected one that lets threads take turns");
  }
  // A communicator of our own: nobody else's messages, and errors that come back.
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int world = 1;
  ANNULUS_RETURN_IF_ERROR(MpiError("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &comm)));
  ANNULUS_RETURN_IF_ERROR(
      MpiError("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN)));
  ANNULUS_RETURN_IF_ERROR(MpiError("MPI_Comm_rank", MPI_Comm_rank(comm, &rank)));
  ANNULUS_RETURN_IF_ERROR(MpiError("MPI_Comm_size", MPI_Comm_size(comm, &world)));
  return std::unique_ptr<MpiTransport>(new MpiTransport(options, comm, rank, world));
}

MpiTransport::MpiTransport(const MpiOptions& options, MPI_Comm comm, int rank, int world)
    : options_(options), comm_(comm), rank_(rank), hub_(*this) {
  for (int peer = 0; peer < world; ++peer) links_.push_back(std::make_shared<MpiLink>(*this, peer));
}

void MpiTransport::StartThread(TextReceiver on_text) {
  on_text_ = std::move(on_text);
  thread_ = std::thread([this] { Run(); });
}

// First what this rank has sent, then, all ranks having sent everything, the end.
MpiTransport::~MpiTransport() {
  AwaitIdle();
  {
    const auto lock = Lock();
    MPI_Request barrier = MPI_REQUEST_NULL;
    const absl::Status status = MpiError("MPI_Ibarrier", MPI_Ibarrier(comm_, &barrier));
    if (status.ok()) Keep(barrier, std::make_unique<Operation>());
  }
  AwaitIdle();
  {
    const std::lock_guard<std::mutex> lock(nap_mutex_);
    stop_ = true;
  }
  WakeIfAsleep();
  thread_.join();
  MPI_Comm comm = comm_;
  (void)MPI_Comm_free(&comm);
  (void)MPI_Finalize();
}

void MpiTransport::AwaitIdle() {
  absl::Duration nap = kNapMin;
  for (;;) {
    {
      const auto lock = Lock();
      if (requests_.empty()) return;
    }
    absl::SleepFor(nap);
    nap = std::min(2 * nap, kNapMax);
  }
}

void MpiTransport::SendText(int peer, absl::string_view text) {
  std::string head;
  Append(&head, MpiHead{MpiHead::kText, 0});
  head.append(text.data(), text.size());
  SendHead(peer, std::move(head));
}

void MpiTransport::SendHead(int peer, std::string head) {
  if (!broken_.ok()) return;
  auto operation = std::make_unique<Operation>();
  operation->head = std::move(head);
  MPI_Request request = MPI_REQUEST_NULL;
  const absl::Status status = MpiError(
      "MPI_Isend", MPI_Isend(operation->head.data(), static_cast<int>(operation->head.size()),
                             MPI_BYTE, peer, kHeadTag, comm_, &request));
  if (!status.ok()) return Fail(status);
  Keep(request, std::move(operation));
}

void MpiTransport::SendBody(int peer, const void* data, size_t size_bytes,
                            std::function<void()> done) {
  auto operation = std::make_unique<Operation>();
  operation->done = std::move(done);
  MPI_Request request = MPI_REQUEST_NULL;
  const absl::Status status = MpiError(
      "MPI_Isend",
      MPI_Isend(data, static_cast<int>(size_bytes), MPI_BYTE, peer, kBodyTag, comm_, &request));
  Keep(request, std::move(operation));
  if (!status.ok()) Fail(status);
}

void MpiTransport::Keep(MPI_Request request, std::unique_ptr<Operation> operation) {
  requests_.push_back(request);
  operations_.push_back(std::move(operation));
}

int MpiTransport::Progress() {
  if (!broken_.ok()) return 0;
  return ReadHeads() + FinishOperations();
}

int MpiTransport::ReadHeads() {
  int count = 0;
  for (; count < kHeadsMax && broken_.ok(); ++count) {
    int found = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status from;
    absl::Status status = MpiError(
        "MPI_Improbe", MPI_Improbe(MPI_ANY_SOURCE, kHeadTag, comm_, &found, &message, &from));
    if (status.ok() && found == 0) return count;
    int size_bytes = 0;
    std::string head;
    if (status.ok()) {
      status = MpiError("MPI_Get_count", MPI_Get_count(&from, MPI_BYTE, &size_bytes));
      head.resize(static_cast<size_t>(size_bytes));
    }
    if (status.ok()) {
      // Heads are small, and their senders' threads are there: this does not wait.
      status = MpiError("MPI_Mrecv",
                        MPI_Mrecv(head.data(), size_bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE));
    }
    if (!status.ok()) {
      Fail(status);
    } else {
      OnHead(from.MPI_SOURCE, head);
    }
  }
  return count;
}

void MpiTransport::OnHead(int source, absl::string_view head) {
  const MpiHead fields = Take<MpiHead>(&head);
  if (fields.kind == MpiHead::kText) {
    on_text_(head);
    return;
  }
  const PieceHeader header = Take<PieceHeader>(&head);
  if (header.kind == PieceHeader::kData) {
    ReceiveBody(source, header, static_cast<size_t>(fields.body_bytes));
  } else {
    hub_.OnMessage(header, head);
  }
}

void MpiTransport::ReceiveBody(int source, const PieceHeader& header, size_t size_bytes) {
  const std::optional<std::byte*> place = hub_.Place(header, size_bytes);
  if (size_bytes == 0) {
    if (place.has_value()) hub_.OnArrived(header, 0);
    return;
  }
  auto operation = std::make_unique<Operation>();
  std::byte* into = nullptr;
  if (place.has_value()) {
    into = *place;
    operation->done = [this, header, size_bytes] { hub_.OnArrived(header, size_bytes); };
  } else {
    operation->scratch = Buffer(size_bytes);
    into = operation->scratch.data();
  }
  MPI_Request request = MPI_REQUEST_NULL;
  const absl::Status status = MpiError(
      "MPI_Irecv",
      MPI_Irecv(into, static_cast<int>(size_bytes), MPI_BYTE, source, kBodyTag, comm_, &request));
  Keep(request, std::move(operation));
  if (!status.ok()) Fail(status);
}

int MpiTransport::FinishOperations() {
  if (requests_.empty()) return 0;
  finished_.resize(requests_.size());
  int count = 0;
  const absl::Status status =
      MpiError("MPI_Testsome", MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(),
                                            &count, finished_.data(), MPI_STATUSES_IGNORE));
  if (!status.ok()) {
    Fail(status);
    return 0;
  }
  if (count == MPI_UNDEFINED || count == 0) return 0;
  std::vector<std::unique_ptr<Operation>> done;
  for (int i = 0; i < count; ++i) {
    done.push_back(std::move(operations_[static_cast<size_t>(finished_[static_cast<size_t>(i)])]));
  }
  // What is left keeps its order; MPI has nulled the requests that are over.
  std::erase(requests_, MPI_REQUEST_NULL);
  std::erase(operations_, nullptr);
  for (const auto& operation : done) {
    if (operation->done) operation->done();
  }
  return count;
}

// What MPI does after an error is undefined: nothing more is asked of it, and everybody who waits
// is told.
void MpiTransport::Fail(const absl::Status& why) {
  if (!broken_.ok()) return;
  broken_ = why;
  hub_.FailAll(why);
  requests_.clear();
  for (const auto& operation : std::exchange(operations_, {})) {
    if (operation->done) operation->done();
  }
}

void MpiTransport::WakeIfAsleep() {
  {
    const std::lock_guard<std::mutex> lock(nap_mutex_);
    woken_ = true;
  }
  nap_changed_.notify_one();
}

void MpiTransport::Run() {
  absl::Time active = absl::Now();  // when something moved last
  for (;;) {
    int moved = 0;
    bool on_the_way = false;
    {
      const auto lock = Lock();
      moved = Progress();
      on_the_way = !requests_.empty();
    }
    lock_.LetOthersIn();
    const absl::Time now = absl::Now();
    if (moved > 0) active = now;
    std::unique_lock<std::mutex> lock(nap_mutex_);
    if (stop_) return;
    if (now - active < kSpin) {
      lock.unlock();
      std::this_thread::yield();
      continue;
    }
    const absl::Duration nap =
        on_the_way ? kNapMin : std::clamp((now - active) / kNapShare, kNapMin, kNapMax);
    const bool woken =
        nap_changed_.wait_for(lock, absl::ToChronoNanoseconds(nap), [this] { return woken_; });
    if (woken) active = absl::Now();
    woken_ = false;
  }
}

}  // namespace annulus
