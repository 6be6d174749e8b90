// What NCCL alone would wait for without end: a rank that never comes, that gives up in the middle,
// that dies. Every wait ends within seconds. Cases with more ranks than GPUs are skipped by name.
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/cuda/handles.h"
#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "comm/nccl/nccl_exchange.h"
#include "comm/progress_thread.h"
#include "comm/ucx/ucx_fabric.h"
#include "tests/catch.h"
#include "tests/comm/killed_processes.h"

namespace annulus {
namespace {

constexpr size_t kBytes = size_t{256} << 20;

bool HasGpus(int ranks) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess) gpus = 0;
  if (gpus >= ranks) return true;
  WARN("skipped: " << ranks << " ranks need as many GPUs, " << gpus << " are found");
  return false;
}

absl::Time In(int seconds) {
  return absl::Now() + absl::Seconds(seconds);
}

// A rank's exchange and some memory of its GPU.
struct Rank {
  std::unique_ptr<Exchange> exchange;
  cuda::DeviceRoom memory;
};

absl::StatusOr<Rank> Open(int rank, std::unique_ptr<Exchange> control) {
  Rank opened;
  ANNULUS_RETURN_IF_ERROR(cuda::StatusOf(cudaSetDevice(rank), "cudaSetDevice"));
  ANNULUS_RETURN_IF_ERROR(opened.memory.Reserve(kBytes));
  ANNULUS_ASSIGN_OR_RETURN(opened.exchange, OpenNcclExchange(std::move(control), In(60)));
  return opened;
}

// Runs a body for each rank of a world that has opened an exchange.
template <typename Body>
void RunRanks(int world, LocalExchangeGroup& group, Body body) {
  std::vector<absl::Status> statuses(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      absl::StatusOr<Rank> opened = Open(rank, group.Open(rank));
      statuses[rank] = opened.ok() ? body(rank, *opened) : opened.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < world; ++rank) {
    INFO("rank " << rank << ": " << statuses[rank]);
    CHECK(statuses[rank].ok());
  }
}

template <typename Body>
void RunBoth(LocalExchangeGroup& group, Body body) {
  RunRanks(2, group, body);
}

absl::Status ExpectCode(const absl::Status& status, absl::StatusCode code) {
  if (status.code() == code) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("got ", status.ToString(), ", expected ", absl::StatusCodeToString(code)));
}

TEST_CASE("a rank that never posts ends at the deadline, and its peer learns of the abort") {
  if (!HasGpus(2)) return;
  const auto group = LocalExchangeGroup::Create(2);
  RunBoth(*group, [](int rank, Rank& own) -> absl::Status {
    if (rank == 1) {
      absl::SleepFor(absl::Milliseconds(600));
      ANNULUS_ASSIGN_OR_RETURN(const auto late,
                               own.exchange->Post({}, {{0, own.memory.data(), kBytes}}));
      return ExpectCode(own.exchange->Wait(late, In(10)), absl::StatusCode::kUnavailable);
    }
    ANNULUS_ASSIGN_OR_RETURN(const auto ticket,
                             own.exchange->Post({{1, own.memory.data(), kBytes}}, {}));
    ANNULUS_RETURN_IF_ERROR(
        ExpectCode(own.exchange->Wait(ticket, absl::Now() + absl::Milliseconds(300)),
                   absl::StatusCode::kDeadlineExceeded));
    const absl::Time begin = absl::Now();
    own.exchange->Abort(absl::CancelledError("no longer"));
    if (absl::Now() - begin > absl::Seconds(5)) return absl::InternalError("Abort took long");
    return ExpectCode(own.exchange->Wait(ticket, In(10)), absl::StatusCode::kCancelled);
  });
}

TEST_CASE("a rank that gives up while bytes are on their way") {
  if (!HasGpus(2)) return;
  for (int round = 0; round < 6; ++round) {
    const auto group = LocalExchangeGroup::Create(2);
    RunBoth(*group, [&](int rank, Rank& own) -> absl::Status {
      const int peer = 1 - rank;
      std::vector<SendOp> sends(16, {peer, own.memory.data(), kBytes / 2});
      std::vector<RecvOp> receives(16, {peer, own.memory.data() + kBytes / 2, kBytes / 2});
      ANNULUS_ASSIGN_OR_RETURN(const auto ticket, own.exchange->Post(sends, receives));
      if (rank == 0) {
        absl::SleepFor(absl::Microseconds(700 * round));
        own.exchange->Abort(absl::DataLossError("page 7 is bad"));
        const absl::Status status = own.exchange->Wait(ticket, In(10));
        return status.ok() ? status : ExpectCode(status, absl::StatusCode::kDataLoss);
      }
      const absl::Status status = own.exchange->Wait(ticket, In(10));
      return status.ok() ? status : ExpectCode(status, absl::StatusCode::kUnavailable);
    });
  }
}

TEST_CASE("a rank that dies fails the other's tickets") {
  if (!HasGpus(2)) return;
  const auto group = LocalExchangeGroup::Create(2);
  RunBoth(*group, [&](int rank, Rank& own) -> absl::Status {
    if (rank == 1) {
      absl::SleepFor(absl::Milliseconds(100));
      group->FailRank(1, absl::UnavailableError("killed"));
      return absl::OkStatus();
    }
    ANNULUS_ASSIGN_OR_RETURN(const auto ticket,
                             own.exchange->Post({}, {{1, own.memory.data(), kBytes}}));
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(
        ExpectCode(own.exchange->Wait(ticket, In(10)), absl::StatusCode::kUnavailable));
    if (absl::Now() - begin > absl::Seconds(2)) return absl::InternalError("it took long");
    return ExpectCode(own.exchange->Post({}, {}).status(), absl::StatusCode::kUnavailable);
  });
}

TEST_CASE("ranks that post other operations in a group are told so") {
  if (!HasGpus(2)) return;
  const auto group = LocalExchangeGroup::Create(2);
  RunBoth(*group, [](int rank, Rank& own) -> absl::Status {
    std::vector<SendOp> sends(rank == 0 ? 2 : 0, {1, own.memory.data(), 100});
    std::vector<RecvOp> receives(rank == 0 ? 0 : 1, {0, own.memory.data(), 100});
    ANNULUS_ASSIGN_OR_RETURN(const auto ticket, own.exchange->Post(sends, receives));
    const absl::Status status = own.exchange->Wait(ticket, In(10));
    if (absl::IsUnavailable(status)) return absl::OkStatus();  // the other one said it first
    return ExpectCode(status, absl::StatusCode::kInternal);
  });
}

TEST_CASE("more operations with one peer than one message of sizes holds") {
  if (!HasGpus(2)) return;
  const auto group = LocalExchangeGroup::Create(2);
  RunBoth(*group, [](int rank, Rank& own) -> absl::Status {
    const int peer = 1 - rank;
    constexpr size_t kPart = 4096;
    std::vector<uint8_t> out(40 * kPart);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(i / kPart + 100 * rank);
    std::byte* in = own.memory.data() + kBytes / 2;
    ANNULUS_RETURN_IF_ERROR(cuda::StatusOf(
        cudaMemcpy(own.memory.data(), out.data(), out.size(), cudaMemcpyHostToDevice), "to"));
    std::vector<SendOp> sends;
    std::vector<RecvOp> receives;
    for (size_t i = 0; i < 40; ++i) {
      const size_t size = kPart - 16 * i;
      sends.push_back({peer, own.memory.data() + i * kPart, size});
      receives.push_back({peer, in + i * kPart, size});
    }
    ANNULUS_ASSIGN_OR_RETURN(const auto ticket, own.exchange->Post(sends, receives));
    ANNULUS_RETURN_IF_ERROR(own.exchange->Wait(ticket, In(10)));
    std::vector<uint8_t> got(out.size());
    ANNULUS_RETURN_IF_ERROR(
        cuda::StatusOf(cudaMemcpy(got.data(), in, got.size(), cudaMemcpyDeviceToHost), "from"));
    for (size_t i = 0; i < 40; ++i) {
      for (size_t at = i * kPart; at < (i + 1) * kPart - 16 * i; ++at) {
        if (got[at] != static_cast<uint8_t>(i + 100 * peer)) {
          return absl::InternalError(absl::StrCat("part ", i, " has other bytes"));
        }
      }
    }
    return absl::OkStatus();
  });
}

TEST_CASE("a rank that dies at any step of a ring ends it for the others, by an error") {
  const int world = GENERATE(2, 3, 4, 5, 8);
  if (!HasGpus(world)) return;
  for (int step = 1; step < world; ++step) {
    const KilledInRing ring = {step, /*posts=*/step % 2 == 0, /*victim=*/step % world, kBytes / 2};
    CAPTURE(world, step);
    const auto group = LocalExchangeGroup::Create(world);
    RunRanks(world, *group, [&](int rank, Rank& own) {
      return RunKilledInRing(ring, *own.exchange, own.memory.data(),
                             [&] { group->FailRank(rank, absl::UnavailableError("killed")); });
    });
  }
}

// The control exchange goes over UCX.
TEST_CASE("child: a rank of a ring", "[.child]") {
  UcxOptions options;
  options.transports = kKilledTransports;
  std::unique_ptr<UcxFabric> fabric = *UcxFabric::Create(options);
  fabric->messenger().SetHandlers({[](PeerId, Message) {}, [](PeerId, absl::Status) {}});
  const ProgressThread progress(fabric->messenger());
  KilledPart part = ReadKilledPart(fabric->messenger().address());
  part.ring.size_bytes = kBytes / 2;
  absl::StatusOr<std::unique_ptr<Exchange>> control =
      fabric->OpenExchange(1, part.rank, part.addresses);
  REQUIRE(control.ok());
  absl::StatusOr<Rank> own = Open(part.rank, *std::move(control));
  if (!own.ok()) return TellSeen(own.status());
  TellSeen(RunKilledInRing(part.ring, *own->exchange, own->memory.data(), [] { raise(SIGKILL); }));
}

TEST_CASE("a process killed at any step of a ring ends it for the others, by an error") {
  const int world = GENERATE(2, 4, 8);
  if (HasGpus(world)) KillProcessesInRings("child: a rank of a ring", world);
}

}  // namespace
}  // namespace annulus
