// A cluster of this program's own processes for the demo: `annulus up` as a child. Not thread-safe;
// the child dies with the thread that started it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace annulus {

class DemoCluster {
 public:
  // Returns once all workers have joined. UNAVAILABLE if the cluster ends before or takes longer
  // than a minute; what it said is on stderr.
  static absl::StatusOr<std::unique_ptr<DemoCluster>> Start(int workers, const std::string& backend,
                                                            int64_t kv_bytes_per_worker);

  // Ends the cluster and waits for it; after 10 s by force.
  ~DemoCluster();

  const std::string& endpoint() const { return endpoint_; }

 private:
  explicit DemoCluster(pid_t pid) : pid_(pid) {}

  const pid_t pid_;
  std::string endpoint_;
};

}  // namespace annulus
