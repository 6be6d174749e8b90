#include "tests/attention/contenders.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hwy/targets.h"
#include "tests/attention/in_own_memory.h"
#include "tests/catch.h"

namespace annulus {
namespace {

struct Contender {
  std::string name;
  int64_t simd_target;  // 0: leave the choice alone
  std::unique_ptr<Backend> backend;
};

void ChooseTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// All backends; the CPU one once per instruction set.
std::vector<Contender> Contenders() {
  std::vector<Contender> all;
  all.push_back({"reference", 0, *MakeBackend("reference", 2)});
  absl::StatusOr<std::unique_ptr<Backend>> cuda = MakeBackend("cuda", 0);
  if (cuda.ok()) {
    all.push_back({"cuda", 0, *std::move(cuda)});
    all.push_back(
        {"cuda, on the device", 0, std::make_unique<InOwnMemory>(*MakeBackend("cuda", 0))});
    all.push_back({"cuda, portable kernels", 0, *MakeBackend("cuda:sm_80", 0)});
  }
  ForEachSimdTarget([&all] {
    std::unique_ptr<Backend> backend = *MakeBackend("cpu", 2);
    const std::string name = "cpu " + backend->capabilities().detail;
    // Sets for which nothing was compiled fall back on another: test that once.
    const bool known =
        std::any_of(all.begin(), all.end(), [&](const Contender& c) { return c.name == name; });
    if (!known) all.push_back({name, hwy::SupportedTargets(), std::move(backend)});
  });
  return all;
}

}  // namespace

void ForEachSimdTarget(const std::function<void()>& test) {
  ChooseTarget(0);
  const int64_t have = hwy::SupportedTargets();
  for (int64_t left = have; left != 0; left &= left - 1) {
    ChooseTarget(left & ~(left - 1));
    test();
  }
  ChooseTarget(0);
}

void ForEachBackend(const std::function<void(Backend*)>& test) {
  for (Contender& contender : Contenders()) {
    ChooseTarget(contender.simd_target);
    INFO("backend " << contender.name);
    test(contender.backend.get());
    ChooseTarget(0);
  }
}

}  // namespace annulus
