// Tenants: what each tenant has of the cluster, and whether it may have more (identity/quotas.h).
//
// A call brings its caller's quotas, so that those of the file of --auth hold from the next call on
// after it has changed. Contexts count for their owners, calls for their callers' tenants. Admins
// are held to no quota, and what is nobody's (an empty name) is not counted.
//
// KV is what the workers say that they hold of a tenant's contexts, where blocks that forks share
// count once, copies count each, and what a move holds twice counts once; with it goes what appends
// in flight may add, copies of blocks that forks share among it. Of forks that a predecessor of the
// coordinator made it is not known what they share: a tenant may be above its quota by a block for
// each of their layers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "annulus/types.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/identity/caller.h"

namespace annulus {

class Tenants {
 public:
  explicit Tenants(const Outbox& out) : out_(out) {}

  // These take nothing, except that a create that is allowed counts against those to come.
  // RESOURCE_EXHAUSTED names the quota, its value and the tenant's use, with a hint where waiting
  // helps.
  // `returning`: contexts of the tenant that are being recovered.
  absl::Status CheckCreate(const Caller& caller, int64_t returning);
  absl::Status CheckCall(const Caller& caller) const;  // of a call that has been added
  absl::Status CheckCallBytes(const Caller& caller, int64_t bytes) const;
  absl::Status CheckKv(const Caller& caller, int64_t bytes) const;

  // What a tenant has from now on, more or less.
  void AddContexts(const std::string& owner, int contexts);
  void AddCalls(const std::string& tenant, int calls, int64_t bytes);
  void AddKvComing(const std::string& owner, int64_t bytes);
  void SetKvMoving(const std::string& owner, int64_t bytes);
  // Whether it has anything, as far as is known.
  bool Has(const std::string& tenant) const { return tenants_.contains(tenant); }
  // What a worker holds of an owner's contexts.
  void NoteKv(const std::string& owner, WorkerId id, int64_t bytes);
  void LoseWorker(WorkerId id);

  // Of those that the caller may know.
  std::vector<TenantStatus> Status(const Caller& caller) const;

 private:
  struct Tenant {
    int64_t contexts = 0;
    int64_t calls = 0;
    int64_t call_bytes = 0;
    std::map<WorkerId, int64_t> kv_by_worker;
    int64_t kv_bytes = 0;   // their sum
    int64_t kv_moving = 0;  // of these, what a move holds a second time
    int64_t kv_coming = 0;
    double creates = 0;  // that it might make at once, at `counted`
    absl::Time counted = absl::InfinitePast();

    int64_t kv_held() const { return kv_bytes > kv_moving ? kv_bytes - kv_moving : 0; }
    bool is_idle(absl::Time now) const;
  };

  const Tenant& Of(const std::string& tenant) const;
  Tenant& Get(const std::string& tenant);

  const Outbox& out_;
  std::map<std::string, Tenant> tenants_;
  size_t tidied_ = 0;  // how many there were after those that have nothing were forgotten, last
};

}  // namespace annulus
