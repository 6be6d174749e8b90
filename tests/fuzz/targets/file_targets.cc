#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/cli/files/tensor_file.h"
#include "runtime/cli/options/config_file.h"
#include "runtime/cli/options/options.h"
#include "sharding/partition.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

bool CheckPlace(const absl::StatusOr<TensorPlace>& place, Bytes file) {
  if (!place.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(place.status()));
    ANNULUS_CHECK(place.status().message().find('\n') == absl::string_view::npos);
    return false;
  }
  ANNULUS_CHECK(place->tokens >= 1 && place->heads >= 1 && place->dim >= 1);
  const __int128 bytes = __int128{place->tokens} * place->heads * place->dim *
                         static_cast<__int128>(SizeOf(place->dtype));
  ANNULUS_CHECK(__int128{place->offset_bytes} + bytes <= __int128{file.size()});
  return true;
}

std::string Write(const std::vector<ConfigEntry>& entries) {
  std::string text, section;
  for (const ConfigEntry& entry : entries) {
    if (entry.section != section) absl::StrAppend(&text, "[", entry.section, "]\n");
    section = entry.section;
    absl::StrAppend(&text, entry.key, " = \"", entry.value, "\"\n");
  }
  return text;
}

}  // namespace

bool TryNpy(Bytes input) {
  return CheckPlace(ParseNpy(input), input);
}

bool TrySafetensors(Bytes input) {
  const size_t line_end = Text(input).find('\n');
  if (line_end == absl::string_view::npos) return false;
  const absl::string_view name = Text(TakeFront(&input, line_end));
  TakeByte(&input);
  return CheckPlace(ParseSafetensors(input, name), input);
}

bool TryConfig(Bytes input) {
  const absl::StatusOr<std::vector<ConfigEntry>> entries = ParseConfig(Text(input));
  if (!entries.ok()) return false;
  const absl::StatusOr<std::vector<ConfigEntry>> again = ParseConfig(Write(*entries));
  ANNULUS_CHECK(again.ok() && again->size() == entries->size());
  for (size_t i = 0; i < entries->size(); ++i) {
    const ConfigEntry& entry = (*entries)[i];
    ANNULUS_CHECK(entry.section == (*again)[i].section && entry.key == (*again)[i].key);
    ANNULUS_CHECK(entry.value == (*again)[i].value);
    // What options make of a value.
    const absl::StatusOr<int64_t> count = ParseCount(entry.value, 1, int64_t{1} << 40);
    ANNULUS_CHECK(!count.ok() || (*count >= 1 && *count <= int64_t{1} << 40));
    const absl::StatusOr<PartitionSpec> partition = PartitionSpec::Parse(entry.value);
    if (partition.ok()) ANNULUS_CHECK(PartitionSpec::Parse(partition->ToString()) == partition);
  }
  return true;
}

bool TryCluster(Bytes input) {
  const absl::StatusOr<ClusterFile> file = ParseCluster(Text(input));
  if (!file.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(file.status()));
    return false;
  }
  const absl::StatusOr<ClusterFile> again = ParseCluster(ToJson(*file));
  ANNULUS_CHECK(again.ok());
  ANNULUS_CHECK(again->machine == file->machine && again->shared == file->shared);
  (void)ModelFor(*file, 4).ok();
  return true;
}

}  // namespace annulus::fuzz
