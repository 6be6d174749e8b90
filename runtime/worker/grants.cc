#include "runtime/worker/grants.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "annulus/dtype.h"
#include "annulus/retry_hint.h"
#include "base/peer_address.h"
#include "base/secret.h"
#include "base/status.h"

namespace annulus {

GrantTable::GrantTable(int64_t upload_bytes_max, const Clock& clock)
    : clock_(clock),
      bytes_(new Bytes{{},
                       {{.name = "upload_bytes_max", .taker = "this upload"}, upload_bytes_max}}) {}

int64_t GrantTable::upload_bytes() const {
  const std::lock_guard<std::mutex> lock(bytes_->mutex);
  return bytes_->bound.in_use();
}

void GrantTable::SetTake(std::function<bool(WorkerTask& task)> take) {
  const std::lock_guard<std::mutex> lock(mutex_);
  take_ = std::move(take);
}

template <typename Over>
void GrantTable::End(Over over) {
  for (auto next = grants_.begin(); next != grants_.end();) {
    const auto grant = next++;
    if (!over(grant->second)) continue;
    if (Upload* upload = grant->second.upload; upload != nullptr) {
      upload->revoked_ = true;
      upload->on_revoked_();
    }
    grants_.erase(grant);
  }
}

void GrantTable::Add(wire::ExpectUpload expect) {
  const uint64_t id = expect.work.request;
  const absl::Time now = clock_.Now();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    End([now](const Grant& grant) { return now >= grant.deadline; });
    const absl::Time deadline = now + expect.work.time_left;
    grants_[id] = {std::move(expect), deadline};
  }
  added_.notify_all();
}

void GrantTable::Revoke(ContextId context, std::optional<int> layer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  End([&](const Grant& grant) {
    const wire::WorkItem& append = grant.expect.work.items[0];
    return append.storage_id == context && (!layer.has_value() || append.layer == *layer);
  });
}

void GrantTable::RevokeAll() {
  const std::lock_guard<std::mutex> lock(mutex_);
  End([](const Grant&) { return true; });
}

absl::StatusOr<std::shared_ptr<const void>> GrantTable::Reserve(const std::string& peer,
                                                                uint64_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  const std::lock_guard<std::mutex> lock(bytes_->mutex);
  const absl::Status room = bytes_->bound.Check(peer, wanted);
  if (!room.ok()) return WithRetryAfter(room, absl::Milliseconds(20));
  bytes_->bound.Add(peer, wanted);
  return std::shared_ptr<const void>(bytes_.get(), [held = bytes_, peer, wanted](const void*) {
    const std::lock_guard<std::mutex> lock(held->mutex);
    held->bound.Add(peer, -wanted);
  });
}

absl::StatusOr<std::unique_ptr<GrantTable::Upload>> GrantTable::Claim(
    uint64_t id, absl::string_view secret, const std::string& peer, absl::Duration wait,
    std::function<void()> on_revoked) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto found = grants_.end();
  const bool granted = added_.wait_for(lock, absl::ToChronoNanoseconds(wait), [&] {
    found = grants_.find(id);
    return found != grants_.end() && SameSecret(found->second.expect.secret, secret);
  });
  if (!granted || found->second.upload != nullptr || clock_.Now() >= found->second.deadline) {
    return absl::PermissionDeniedError(absl::StrCat(
        "no such grant as ", id, ": it is unknown, used or over, or has another secret"));
  }
  const wire::ExpectUpload& expect = found->second.expect;
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<const void> reserved,
                           Reserve(expect.tenant.empty() ? peer : TenantPeer(expect.tenant),
                                   expect.work.items[0].append_bytes));
  auto upload =
      std::unique_ptr<Upload>(new Upload(this, expect, std::move(reserved), std::move(on_revoked)));
  found->second.upload = upload.get();
  return upload;
}

GrantTable::Upload::Upload(GrantTable* table, wire::ExpectUpload expect,
                           std::shared_ptr<const void> reserved, std::function<void()> on_revoked)
    : table_(table),
      expect_(std::move(expect)),
      on_revoked_(std::move(on_revoked)),
      reserved_(std::move(reserved)),
      payload_(expect_.work.items[0].append_bytes) {}

GrantTable::Upload::~Upload() {
  const std::lock_guard<std::mutex> lock(table_->mutex_);
  if (!revoked_) table_->grants_.erase(expect_.work.request);
}

absl::Status GrantTable::Upload::Add(absl::string_view data) {
  if (data.size() > payload_.size() - received_) {
    return absl::InvalidArgumentError(
        absl::StrCat("data: more bytes than the grant says; expected ", payload_.size()));
  }
  std::memcpy(payload_.data() + received_, data.data(), data.size());
  received_ += data.size();
  // While they are in the cache.
  const size_t values = (received_ - checked_) / SizeOf(expect_.dtype);
  if (!AllFinite(payload_.data() + checked_, expect_.dtype, static_cast<int64_t>(values))) {
    const wire::WorkItem& append = expect_.work.items[0];
    return absl::InvalidArgumentError(absl::StrCat(
        "k, v: not finite in tokens [", append.start, ", ", append.start + append.k_tokens,
        "); expected finite values (in ", Name(expect_.dtype), ")"));
  }
  checked_ += values * SizeOf(expect_.dtype);
  return absl::OkStatus();
}

absl::Status GrantTable::Upload::Finish() {
  if (received_ != payload_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data: ", received_, " bytes; expected ", payload_.size()));
  }
  // Whoever revokes the grant does so before or after all of this. Before: nothing is stored.
  // After: the order to forget what was stored is queued behind it.
  const std::lock_guard<std::mutex> lock(table_->mutex_);
  if (revoked_) return absl::AbortedError("the upload's grant was revoked");
  if (!table_->take_) return absl::UnavailableError("the worker is shutting down");
  table_->grants_.erase(expect_.work.request);  // it is used, however this ends
  WorkerTask task;
  task.body = expect_.work;
  task.payload = std::move(payload_);
  task.reserved = std::move(reserved_);
  if (!table_->take_(task)) {
    return WithRetryAfter(absl::ResourceExhaustedError("the worker's task queue is full; back off"),
                          absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

}  // namespace annulus
