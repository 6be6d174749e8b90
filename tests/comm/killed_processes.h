// A ring of processes in which one is killed (tests/comm/killed_in_ring.h): what parent and child
// share. The children are a hidden case of the same program, and reach each other over UCX: over
// shared memory, as UCX 1.13 at times ends a process by an assertion of its own when a peer that it
// reached over tcp is killed.
#pragma once

#include <csignal>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "tests/child.h"
#include "tests/comm/killed_in_ring.h"

namespace annulus {

inline constexpr char kKilledTransports[] = "shm,tcp";

// What a child is told: its rank, the addresses of all, and how it goes on; but for size_bytes.
struct KilledPart {
  int rank = 0;
  std::vector<std::string> addresses;
  KilledInRing ring;
};

// Child: tells its address, learns its part.
inline KilledPart ReadKilledPart(const std::string& address) {
  std::cout << "\naddress " << address << std::endl;
  KilledPart part;
  std::string joined;
  std::cin >> part.rank >> part.ring.step >> part.ring.posts >> part.ring.victim >> joined;
  part.addresses = absl::StrSplit(joined, ',');
  return part;
}

// Child: its end.
inline void TellSeen(const absl::Status& status) {
  std::cout << "\nsaw " << status << std::endl;
}

// Parent: a ring for each step in which a rank may die.
inline void KillProcessesInRings(const char* child, int world) {
  for (int step = 1; step < world; ++step) {
    const int victim = step % world;
    CAPTURE(world, step);
    std::vector<std::unique_ptr<Child>> ranks;
    for (int rank = 0; rank < world; ++rank) ranks.push_back(std::make_unique<Child>(child));
    std::vector<std::string> addresses;
    for (const auto& rank : ranks) addresses.push_back(rank->ReadLine("address "));
    const std::string joined = absl::StrJoin(addresses, ",");
    for (int rank = 0; rank < world; ++rank) {
      ranks[rank]->WriteLine(
          absl::StrCat(rank, " ", step, " ", step % 2 == 0, " ", victim, " ", joined));
    }
    // The victim first: over shared memory UCX takes a process for alive until it is reaped.
    CHECK(WTERMSIG(ranks[victim]->Join()) == SIGKILL);
    for (int rank = 0; rank < world; ++rank) {
      CAPTURE(rank);
      if (rank != victim) CHECK(ranks[rank]->ReadLine("saw ") == "OK");
    }
  }
}

}  // namespace annulus
