// The contract of Rendezvous. Compiled into every program that has implementations.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "tests/comm/exchange_group.h"

namespace annulus {
namespace {

TEST_CASE("rendezvous: the first value of a key is everybody's, and is waited for",
          "[rendezvous]") {
  const int world = 3;
  const auto group = MakeExchangeGroup(ExchangeKinds().front(), world);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    Rendezvous& rendezvous = group->rendezvous();
    const absl::Time soon = absl::Now() + absl::Seconds(20);
    const int rank = exchange.rank();
    const absl::Status absent =
        rendezvous.Get("absent", absl::Now() + absl::Milliseconds(10)).status();
    ANNULUS_RETURN_IF_ERROR(
        Expect(absl::IsDeadlineExceeded(absent) && absl::StrContains(absent.message(), "absent"),
               "Get did not name the key that nobody has put"));

    if (rank == 1) {
      absl::SleepFor(absl::Milliseconds(20));
      ANNULUS_RETURN_IF_ERROR(rendezvous.Put("one", "1"));
    }
    ANNULUS_RETURN_IF_ERROR(
        Expect(rendezvous.Get("one", soon).value_or("") == "1", "another value than rank 1's"));
    ANNULUS_RETURN_IF_ERROR(rendezvous.Put("one", "1"));
    ANNULUS_RETURN_IF_ERROR(
        Expect(absl::IsAlreadyExists(rendezvous.Put("one", "2")), "a value was replaced"));

    const auto bulky = [](int of) { return std::string(20'000 + of, static_cast<char>(of)); };
    ANNULUS_RETURN_IF_ERROR(rendezvous.Put(absl::StrCat("of ", rank), bulky(rank)));
    for (int other = 0; other < world; ++other) {
      ANNULUS_ASSIGN_OR_RETURN(const std::string value,
                               rendezvous.Get(absl::StrCat("of ", other), soon));
      ANNULUS_RETURN_IF_ERROR(Expect(value == bulky(other), "another value than was put"));
    }

    const absl::Status raced = rendezvous.Put("race", absl::StrCat(rank));
    ANNULUS_ASSIGN_OR_RETURN(const std::string winner, rendezvous.Get("race", soon));
    return Expect(raced.ok() == (winner == absl::StrCat(rank)), "a race without one winner");
  });
}

}  // namespace
}  // namespace annulus
