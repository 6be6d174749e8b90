// A GPU made of host memory: a memory space whose addresses are none of the host's, so that whoever
// reads or writes them without the space fails at once, and a backend that computes there. What is
// built on memory spaces is tested with it where there is no GPU.
#pragma once

#include <cstring>
#include <list>
#include <memory>
#include <vector>

#include "attention/backend.h"
#include "base/status.h"

namespace annulus::test {

class FakeDevice final : public MemorySpace {
 public:
  // Beyond any address that a process has.
  static constexpr uintptr_t kShift = uintptr_t{1} << 60;

  template <typename T>
  static T* Host(T* at) {
    return at == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(at) - kShift);
  }
  static PartialView Host(PartialView view) {
    view.out = Host(view.out);
    view.lse = Host(view.lse);
    return view;
  }

  MemoryKind kind() const override { return MemoryKind::kDevice; }
  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override {
    ANNULUS_ASSIGN_OR_RETURN(Buffer buffer, AllocateZeroed(size_bytes));
    std::memset(Host(buffer.data()), 0xFF, size_bytes);  // NaN
    return buffer;
  }
  absl::StatusOr<Buffer> AllocateZeroed(size_t size_bytes) override {
    ANNULUS_ASSIGN_OR_RETURN(Buffer host, HostMemory().AllocateZeroed(size_bytes + 1));
    auto* shifted = reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(host.data()) + kShift);
    return Buffer(std::shared_ptr<std::byte>(shifted, [host](std::byte*) {}), size_bytes);
  }
  absl::Status CopyIn(const void* from, std::byte* to, size_t size_bytes) override {
    return HostMemory().CopyIn(from, Host(to), size_bytes);
  }
  absl::Status CopyOut(const std::byte* from, void* to, size_t size_bytes) override {
    return HostMemory().CopyOut(Host(from), to, size_bytes);
  }
  absl::Status CopyRowsIn(absl::Span<const RowsCopy> copies) override {
    ++copies_in_;
    ANNULUS_RETURN_IF_ERROR(copies_in_error_);
    std::vector<RowsCopy> host(copies.begin(), copies.end());
    for (RowsCopy& copy : host) copy.to = Host(copy.to);
    return HostMemory().Copy(host);
  }
  absl::Status Copy(absl::Span<const RowsCopy> copies) override {
    std::vector<RowsCopy> host(copies.begin(), copies.end());
    for (RowsCopy& copy : host) {
      copy.from = Host(copy.from);
      copy.to = Host(copy.to);
    }
    return HostMemory().Copy(host);
  }
  absl::Status Zero(std::byte* at, size_t size_bytes) override {
    return HostMemory().Zero(Host(at), size_bytes);
  }
  absl::Status SetIdentity(PartialView partial) override {
    return HostMemory().SetIdentity(Host(partial));
  }
  absl::Status Merge(absl::Span<const RowsMerge> merges) override {
    std::vector<RowsMerge> host(merges.begin(), merges.end());
    for (RowsMerge& merge : host) {
      merge.into = Host(merge.into);
      merge.from = Host(merge.from);
    }
    return HostMemory().Merge(host);
  }
  absl::StatusOr<std::optional<Overflow>> EndRows(PartialView partial) override {
    return HostMemory().EndRows(Host(partial));
  }

  // How often CopyRowsIn was called, and what it fails with from now on.
  int copies_in() const { return copies_in_; }
  void FailCopiesIn(absl::Status error) { copies_in_error_ = std::move(error); }

 private:
  int copies_in_ = 0;
  absl::Status copies_in_error_;
};

// Computes with another backend on what lies in a FakeDevice.
class FakeDeviceBackend final : public Backend {
 public:
  explicit FakeDeviceBackend(std::unique_ptr<Backend> inner)
      : inner_(std::move(inner)), capabilities_(inner_->capabilities()) {
    capabilities_.name = "fake device";
    capabilities_.device_memory = true;
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }
  MemorySpace& memory() override { return device_; }
  ThreadPool* pool() override { return inner_->pool(); }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    std::list<KvTable> tables;
    std::vector<AttendArgs> host(batch.begin(), batch.end());
    for (AttendArgs& args : host) {
      if (args.memory == MemoryKind::kDevice) {
        args.q.data = FakeDevice::Host(args.q.data);
        args.into = FakeDevice::Host(args.into);
        args.memory = MemoryKind::kHost;
      }
      if (args.kv->memory() != MemoryKind::kDevice) continue;
      args.kv = &tables.emplace_back(OnHost(*args.kv));
    }
    return inner_->AttendBatch(host);
  }

 private:
  static KvTable OnHost(const KvTable& kv) {
    KvTable host(kv.dtype(), kv.kv_head_first(), kv.kv_heads(), kv.head_dim(), kv.v_head_dim(),
                 kv.blocks());
    for (int head = kv.kv_head_first(); head < kv.kv_head_first() + kv.kv_heads(); ++head) {
      for (int64_t block = 0; block < kv.blocks(); ++block) {
        KvPage page = kv.page(head, block);
        page.k = FakeDevice::Host(page.k);
        page.v = FakeDevice::Host(page.v);
        host.Set(head, block, page);
      }
    }
    return host;
  }

  const std::unique_ptr<Backend> inner_;
  FakeDevice device_;
  BackendCapabilities capabilities_;
};

}  // namespace annulus::test
