#include "runtime/coordinator/core/tenants.h"

#include <algorithm>
#include <utility>

#include "annulus/retry_hint.h"
#include "runtime/coordinator/core/checks.h"

namespace annulus {
namespace {

// A tenant may make as many contexts at once as in this time.
constexpr absl::Duration kCreatesPeriod = absl::Seconds(1);
// So many tenants are remembered before it is looked for some that have nothing.
constexpr size_t kTidyMin = 64;

}  // namespace

// Its creates are all there again, too.
bool Tenants::Tenant::is_idle(absl::Time now) const {
  return contexts == 0 && calls == 0 && kv_bytes == 0 && kv_coming == 0 &&
         now - counted >= kCreatesPeriod;
}

const Tenants::Tenant& Tenants::Of(const std::string& tenant) const {
  static const Tenant kNothing;
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? kNothing : found->second;
}

Tenants::Tenant& Tenants::Get(const std::string& tenant) {
  if (const auto found = tenants_.find(tenant); found != tenants_.end()) return found->second;
  if (tenants_.size() >= std::max(kTidyMin, 2 * tidied_)) {
    std::erase_if(tenants_, [this](const auto& entry) { return entry.second.is_idle(out_.now()); });
    tidied_ = tenants_.size();
  }
  return tenants_[tenant];
}

absl::Status Tenants::CheckCreate(const Caller& caller, int64_t returning) {
  if (!HasQuotas(caller)) return absl::OkStatus();
  Tenant& tenant = Get(caller.tenant);
  const TenantQuotas& quotas = caller.quotas;
  const int64_t contexts = tenant.contexts + returning;
  if (contexts >= quotas.contexts_max) {
    return AboveQuota("contexts_max", quotas.contexts_max, caller.tenant, contexts, 1);
  }
  if (quotas.creates_per_s_max == kNoQuota) return absl::OkStatus();
  const absl::Status above = AboveQuota("creates_per_s_max", quotas.creates_per_s_max,
                                        caller.tenant, quotas.creates_per_s_max, 1);
  if (quotas.creates_per_s_max == 0) return above;
  const auto most = static_cast<double>(quotas.creates_per_s_max);
  const absl::Duration since = std::min(out_.now() - tenant.counted, kCreatesPeriod);
  tenant.creates =
      std::min(most, tenant.creates + most * absl::FDivDuration(since, kCreatesPeriod));
  tenant.counted = out_.now();
  if (tenant.creates < 1) {
    return WithRetryAfter(above, kCreatesPeriod * ((1 - tenant.creates) / most));
  }
  tenant.creates -= 1;
  return absl::OkStatus();
}

absl::Status Tenants::CheckCall(const Caller& caller) const {
  if (!HasQuotas(caller)) return absl::OkStatus();
  const int64_t calls = Of(caller.tenant).calls;
  const int64_t calls_max = caller.quotas.calls_in_flight_max;
  if (calls <= calls_max) return absl::OkStatus();
  return WithRetryAfter(AboveQuota("calls_in_flight_max", calls_max, caller.tenant, calls - 1, 1),
                        kRetryAfter);
}

absl::Status Tenants::CheckCallBytes(const Caller& caller, int64_t bytes) const {
  if (!HasQuotas(caller)) return absl::OkStatus();
  const int64_t has = Of(caller.tenant).call_bytes;
  const int64_t bytes_max = caller.quotas.bytes_in_flight_max;
  if (bytes <= bytes_max - has) return absl::OkStatus();
  const absl::Status refused =
      AboveQuota("bytes_in_flight_max", bytes_max, caller.tenant, has, bytes);
  return bytes <= bytes_max ? WithRetryAfter(refused, kRetryAfter) : refused;
}

absl::Status Tenants::CheckKv(const Caller& caller, int64_t bytes) const {
  const int64_t bytes_max = caller.quotas.kv_bytes_max;
  if (bytes == 0 || bytes_max == kNoQuota || !HasQuotas(caller)) return absl::OkStatus();
  const Tenant& tenant = Of(caller.tenant);
  const int64_t room = bytes_max - tenant.kv_held();
  if (bytes <= room - tenant.kv_coming) return absl::OkStatus();
  const absl::Status refused = AboveQuota("kv_bytes_max", bytes_max, caller.tenant,
                                          tenant.kv_held() + tenant.kv_coming, bytes);
  // What is in flight may come to nothing, or need no more than it has already.
  return bytes <= room ? WithRetryAfter(refused, kRetryAfter) : refused;
}

void Tenants::AddContexts(const std::string& owner, int contexts) {
  if (!owner.empty()) Get(owner).contexts += contexts;
}

void Tenants::AddCalls(const std::string& tenant, int calls, int64_t bytes) {
  if (tenant.empty()) return;
  Tenant& caller = Get(tenant);
  caller.calls += calls;
  caller.call_bytes += bytes;
}

void Tenants::AddKvComing(const std::string& owner, int64_t bytes) {
  if (!owner.empty() && bytes != 0) Get(owner).kv_coming += bytes;
}

void Tenants::SetKvMoving(const std::string& owner, int64_t bytes) {
  if (!owner.empty()) Get(owner).kv_moving = bytes;
}

void Tenants::NoteKv(const std::string& owner, WorkerId id, int64_t bytes) {
  if (owner.empty()) return;
  Tenant& tenant = Get(owner);
  if (bytes == 0) {
    const auto held = tenant.kv_by_worker.find(id);
    if (held == tenant.kv_by_worker.end()) return;
    tenant.kv_bytes -= held->second;
    tenant.kv_by_worker.erase(held);
    return;
  }
  tenant.kv_bytes += bytes - std::exchange(tenant.kv_by_worker[id], bytes);
}

void Tenants::LoseWorker(WorkerId id) {
  for (auto& [name, tenant] : tenants_) {
    const auto held = tenant.kv_by_worker.find(id);
    if (held == tenant.kv_by_worker.end()) continue;
    tenant.kv_bytes -= held->second;
    tenant.kv_by_worker.erase(held);
  }
}

std::vector<TenantStatus> Tenants::Status(const Caller& caller) const {
  std::vector<TenantStatus> all;
  for (const auto& [name, tenant] : tenants_) {
    if (!MayKnow(caller, name) || tenant.is_idle(out_.now())) continue;
    all.push_back({name, tenant.contexts, tenant.kv_held(), tenant.calls, tenant.call_bytes});
  }
  return all;
}

}  // namespace annulus
