#include "bench/service/spread.h"

#include <ctime>

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "bench/service/cluster.h"
#include "bench/service/parts.h"

namespace annulus {
namespace {

constexpr int kWarmUps = 10;

double ThreadSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

absl::StatusOr<Columns> MeasureSpread(int workers, int contexts, int rounds) {
  ServiceShape shape;
  shape.workers = workers;
  shape.contexts = contexts;
  shape.partition = {PartitionKind::kBlockCyclic, 1};
  shape.tokens = int64_t{kBlockTokens} * 4 * workers;
  ANNULUS_ASSIGN_OR_RETURN(const auto cluster, ServiceCluster::Start(shape));
  const auto bytes = [&] { return cluster->coordinator().fabric_counters().bytes_received; };
  absl::Status failed;
  std::vector<double> cpu_s;
  uint64_t before = 0;
  const auto step = [&] {
    if (cpu_s.size() == kWarmUps) before = bytes();
    std::vector<StepRequest> batch;
    for (int i = 0; i < contexts; ++i) batch.push_back(cluster->AppendAndQuery(i));
    const double begin = ThreadSeconds();
    const auto results =
        StepResultsOf(cluster->service().Call(StepsRequest{batch}, {}), batch.size());
    cpu_s.push_back(ThreadSeconds() - begin);
    for (const auto& result : results) failed.Update(result.status());
  };
  const Samples samples = Samples::Of(rounds, step, kWarmUps);
  ANNULUS_RETURN_IF_ERROR(failed);
  const Samples cpu(std::vector<double>(cpu_s.begin() + kWarmUps, cpu_s.end()));
  return Columns({{"workers", int64_t{workers}},
                  {"contexts", int64_t{contexts}},
                  {"p50_us", samples.p50() * 1e6},
                  {"p99_us", samples.p99() * 1e6},
                  {"coordinator_cpu_us", cpu.p50() * 1e6},
                  {"coordinator_bytes", static_cast<int64_t>(bytes() - before) / rounds}});
}

}  // namespace annulus
