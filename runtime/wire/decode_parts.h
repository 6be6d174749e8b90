// Bytes to what several bodies have in common; private to decode.cc. Pure functions.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/store/context_layout.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire.pb.h"

namespace annulus::wire {

inline constexpr int kAddressesMax = 1 << 16;

inline absl::Status BadField(absl::string_view message, absl::string_view field, int64_t value) {
  return absl::InvalidArgumentError(
      absl::StrCat("wire message ", message, ": ", field, " is ", value, ", out of range"));
}

inline AppendMark MarkOf(const pb::AppendMark& p) {
  return {p.turn(), {p.client(), p.sequence()}};
}

inline absl::StatusOr<ContextSpec> SpecOf(absl::string_view name, const pb::Spec& p) {
  if (p.dtype() > static_cast<uint32_t>(DType::kBF16)) return BadField(name, "dtype", p.dtype());
  if (p.placement() > static_cast<uint32_t>(Placement::kMesh)) {
    return BadField(name, "placement", p.placement());
  }
  if (p.partition_kind() > static_cast<uint32_t>(PartitionKind::kBlockCyclic)) {
    return BadField(name, "partition", p.partition_kind());
  }
  ContextSpec spec;
  spec.layers = p.layers();
  spec.heads = p.heads();
  spec.kv_heads = p.kv_heads();
  spec.head_dim = p.head_dim();
  spec.v_head_dim = p.v_head_dim();
  spec.v_is_k_prefix = p.v_is_k_prefix();
  spec.dtype = static_cast<DType>(p.dtype());
  spec.placement = static_cast<Placement>(p.placement());
  spec.partition = {static_cast<PartitionKind>(p.partition_kind()), p.partition_unit()};
  spec.tokens_expected = p.tokens_expected();
  spec.patterns.assign(p.patterns().begin(), p.patterns().end());
  spec.kv_efficient = p.kv_efficient();
  spec.replicas = p.replicas();
  spec.lease = p.lease();
  spec.evictable = p.evictable();
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(spec));
  return spec;
}

// Of an Open, an Inventory or a Resume: who holds the context.
template <typename Proto, typename T>
absl::Status SetHolders(absl::string_view name, const Proto& p, T& m) {
  if (p.addresses_size() < 1 || p.addresses_size() > kAddressesMax) {
    return BadField(name, "addresses", p.addresses_size());
  }
  if (p.copies_size() > p.addresses_size()) return BadField(name, "copies", p.copies_size());
  if constexpr (requires { p.rank(); }) {
    if (p.rank() < 0 || p.rank() >= p.addresses_size()) return BadField(name, "rank", p.rank());
  }
  m.addresses.assign(p.addresses().begin(), p.addresses().end());
  for (const pb::Copy& copy : p.copies()) {
    if (copy.rank() < 0 || copy.rank() >= p.addresses_size()) {
      return BadField(name, "rank of a copy", copy.rank());
    }
    m.copies.push_back({copy.rank(), copy.address()});
  }
  return absl::OkStatus();
}

// Of an Append or a Read: which tokens of which layer.
template <typename Proto>
absl::Status CheckTokens(absl::string_view name, const Proto& p) {
  if (p.layer() < 0) return BadField(name, "layer", p.layer());
  if (p.start() < 0 || p.start() > kContextTokensMax) return BadField(name, "start", p.start());
  if (p.tokens() < 1 || p.tokens() > kContextTokensMax - p.start()) {
    return BadField(name, "tokens", p.tokens());
  }
  return absl::OkStatus();
}

// Of an Inventory or a Resume.
template <typename From, typename To>
absl::Status SetLayers(absl::string_view name, const From& p, To& to) {
  for (const pb::Layer& layer : p.layers()) {
    const TokenRange last{layer.last_begin(), layer.last_end()};
    if (layer.tokens() < 0 || layer.tokens() > kContextTokensMax) {
      return BadField(name, "tokens", layer.tokens());
    }
    if (layer.horizon() < 0 || layer.horizon() > layer.tokens()) {
      return BadField(name, "horizon", layer.horizon());
    }
    if (last.begin < 0 || last.begin > last.end || last.end > kContextTokensMax) {
      return BadField(name, "last_end", last.end);
    }
    to.layers.push_back({layer.tokens(), layer.horizon(), MarkOf(layer.last()), last});
  }
  return absl::OkStatus();
}

}  // namespace annulus::wire
