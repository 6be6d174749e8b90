#include "runtime/cli/options/shared_options.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/memory.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/options/service_options.h"

namespace annulus {
namespace {

constexpr int kThreadsMax = 4096;

absl::StatusOr<std::string> ParseKvMemory(absl::string_view text) {
  if (text == "auto" || text == "host") return std::string(text);
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected auto or host"));
}

}  // namespace

absl::StatusOr<std::string> ParseEndpoint(absl::string_view text) {
  constexpr int kPortMax = 65535;
  const size_t colon = text.rfind(':');
  int port = -1;
  bool good = colon != absl::string_view::npos && colon > 0 &&
              absl::ascii_isdigit(static_cast<unsigned char>(text.back())) &&
              absl::ascii_isdigit(static_cast<unsigned char>(text[colon + 1])) &&
              absl::SimpleAtoi(text.substr(colon + 1), &port) && port <= kPortMax;
  for (const char c : text.substr(0, colon)) good = good && c > ' ' && c < 0x7f && c != '/';
  if (good) return std::string(text);
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected HOST:PORT"));
}

std::string PlanWords(absl::string_view between) {
  std::string words = "auto";
  for (const PlanKind kind : kPlanKinds) absl::StrAppend(&words, between, Name(kind));
  return words;
}

absl::StatusOr<std::optional<PlanKind>> ParsePlan(absl::string_view text) {
  if (text == "auto") return std::nullopt;
  const absl::StatusOr<PlanKind> kind = ParsePlanKind(text);
  if (kind.ok()) return *kind;
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(text), "; expected one of ", PlanWords(", ")));
}

void AddPlan(Options* options, std::optional<PlanKind>* plan) {
  options->Add("plan", PlanWords("|"), "how the work is cut (auto: the cheapest)",
               SetParsed(plan, ParsePlan));
}

void AddPlacement(Options* options, PartitionSpec* placement) {
  options->Add("placement", "zigzag|contiguous|block-cyclic:N|striped",
               "where tokens lie before the plan (zigzag)",
               SetParsed(placement, PartitionSpec::Parse));
}

void AddComputeOptions(Options* options, ComputeFlags* flags) {
  options->Add("backend", "auto|cpu|cuda|reference", "what a worker computes with (auto)",
               SetText(&flags->backend));
  options->Add("threads", "N", "a worker's compute threads (its share of the cores)",
               SetCount(&flags->threads, 0, kThreadsMax));
  options->Add("kv-memory", "auto|host",
               "where KV lies: where the backend computes, or in host memory, copied for each call",
               SetParsed(&flags->kv_memory, ParseKvMemory));
  options->Add("kv-bytes-limit", "N", "bytes of KV a worker holds at most (a share of the memory)",
               SetCount(&flags->kv_bytes_limit, 1, INT64_MAX));
}

int64_t KvBytesLimit(const ComputeFlags& flags, const BackendCapabilities& backend, int workers) {
  if (flags.kv_bytes_limit != 0) return flags.kv_bytes_limit;
  if (backend.gpu_bytes == 0 || flags.kv_in_host_memory()) return MemoryBytes() / 2 / workers;
  const int sharing = (workers + backend.gpus - 1) / backend.gpus;
  return backend.gpu_bytes / 4 * 3 / sharing;
}

size_t KeptBytes(int64_t kv_bytes_limit) {
  return std::clamp(static_cast<size_t>(kv_bytes_limit / 8), kKeptBytesDefault, size_t{1} << 30);
}

}  // namespace annulus
