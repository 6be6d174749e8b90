// What of the exchange over MPI the contract does not ask for: large operations, and that a rank
// that waits leaves its core to others.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "base/status.h"
#include "tests/mpi/mpi_group.h"

namespace annulus {
namespace {

absl::Duration CpuTime() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

TEST_CASE("a rank that waits takes no core", "[mpi]") {
  const auto group = MakeExchangeGroup("mpi", 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    const absl::Duration before = CpuTime();
    char byte = 0;
    if (exchange.rank() == 0) absl::SleepFor(absl::Seconds(2));
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                             exchange.rank() == 0 ? exchange.Post({{1, &byte, 1}}, {})
                                                  : exchange.Post({}, {{0, &byte, 1}}));
    ANNULUS_RETURN_IF_ERROR(exchange.Wait(ticket, absl::Now() + absl::Seconds(20)));
    const absl::Duration used = CpuTime() - before;
    if (exchange.rank() == 0) WARN("of 2 s: " << absl::FormatDuration(used));
    return Expect(used < absl::Milliseconds(200), "more than a tenth of a core");
  });
}

// Memory that takes no room until it is written.
class Pages {
 public:
  explicit Pages(size_t size_bytes)
      : size_bytes_(size_bytes),
        data_(static_cast<char*>(mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
  ~Pages() { munmap(data_, size_bytes_); }

  char* data() { return data_; }

 private:
  const size_t size_bytes_;
  char* const data_;
};

TEST_CASE("an operation of more than 2 GiB arrives whole", "[mpi]") {
  const size_t size_bytes = (size_t{2} << 30) + 12'345;
  const int64_t free_bytes = int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (TheMpiSession().world() < 2) return;
  // All ranks must decide alike, and any of them may see the least.
  Rendezvous& rendezvous = TheMpiSession().rendezvous();
  if (TheMpiSession().rank() == 0) {
    (void)rendezvous.Put("room", free_bytes > int64_t{4} << 30 ? "yes" : "no");
  }
  if (rendezvous.Get("room", absl::Now() + absl::Seconds(60)).value() == "no") {
    WARN("skipped: this machine has less than 4 GiB to spare");
    return;
  }
  const auto group = MakeExchangeGroup("mpi", 2);
  const size_t places[] = {0, (size_t{1} << 31) - 1, size_t{1} << 31, size_bytes - 1};
  group->Run([&](Exchange& exchange) -> absl::Status {
    Pages pages(size_bytes);
    const bool sends = exchange.rank() == 0;
    if (sends) {
      for (const size_t place : places) pages.data()[place] = static_cast<char>(1 + place % 100);
    }
    const absl::Time begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                             sends ? exchange.Post({{1, pages.data(), size_bytes}}, {})
                                   : exchange.Post({}, {{0, pages.data(), size_bytes}}));
    ANNULUS_RETURN_IF_ERROR(exchange.Wait(ticket, absl::Now() + absl::Seconds(60)));
    if (sends) {
      WARN("2 GiB at " << 1e-9 * static_cast<double>(size_bytes) /
                              absl::ToDoubleSeconds(absl::Now() - begin)
                       << " GB/s");
      return Expect(exchange.counters().bytes_sent == size_bytes, "bytes_sent");
    }
    for (const size_t place : places) {
      ANNULUS_RETURN_IF_ERROR(
          Expect(pages.data()[place] == static_cast<char>(1 + place % 100), "a byte is wrong"));
    }
    return Expect(exchange.counters().bytes_received == size_bytes, "bytes_received");
  });
}

TEST_CASE("members beyond the job, or without this rank, are refused", "[mpi]") {
  MpiSession& session = TheMpiSession();
  CHECK(absl::IsInvalidArgument(session.OpenExchange(1, session.world() + 1).status()));
  CHECK(absl::IsInvalidArgument(session.OpenExchange(1, session.rank()).status()));
  CHECK(absl::IsUnavailable(MpiSession::Start().status()));
}

}  // namespace
}  // namespace annulus
