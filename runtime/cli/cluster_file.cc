#include "runtime/cli/cluster_file.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

using Json = nlohmann::json;

constexpr int64_t kCountMax = 1 << 20;

absl::Status Unexpected(absl::string_view field, const Json& found, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("field ", Quoted(field), " is ",
                   Quoted(found.dump(-1, ' ', false, Json::error_handler_t::replace), 60),
                   ", expected ", expected));
}

}  // namespace

absl::StatusOr<ClusterFile> ParseCluster(absl::string_view json) {
  const Json object = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("content is ", Quoted(json, 40), ", expected a JSON object"));
  }
  ClusterFile file;
  ClusterModel& model = file.model;
  int64_t nodes = 1;
  struct Number {
    const char* name;
    double* value;
    double unit;
    bool may_be_zero;
  };
  const Number numbers[] = {{"inside_gb_per_s", &model.inside_bytes_per_s, 1e9, false},
                            {"inside_us", &model.inside_latency_s, 1e-6, true},
                            {"between_gb_per_s", &model.between_bytes_per_s, 1e9, false},
                            {"between_us", &model.between_latency_s, 1e-6, true},
                            {"flops", &model.flops, 1, false},
                            {"read_gb_per_s", &model.read_bytes_per_s, 1e9, false}};
  for (const auto& [key, value] : object.items()) {
    if (key == "nodes" || key == "workers_per_node") {
      if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 ||
          value.get<uint64_t>() > uint64_t{kCountMax}) {
        return Unexpected(key, value, absl::StrCat("an integer from 1 to ", kCountMax));
      }
      const auto count = static_cast<int64_t>(value.get<uint64_t>());
      if (key == "nodes") {
        nodes = count;
      } else {
        model.workers_per_node = static_cast<int>(count);
      }
      continue;
    }
    const Number* number = nullptr;
    for (const Number& candidate : numbers) {
      if (key == candidate.name) number = &candidate;
    }
    if (number == nullptr) {
      return Unexpected(key, value,
                        "one of nodes, workers_per_node, inside_gb_per_s, inside_us, "
                        "between_gb_per_s, between_us, flops, read_gb_per_s");
    }
    const double given = value.is_number() ? value.get<double>() * number->unit : NAN;
    if (!std::isfinite(given) || given < 0 || (given == 0 && !number->may_be_zero)) {
      return Unexpected(key, value, "a positive number");
    }
    *number->value = given;
  }
  if (object.contains("nodes") || object.contains("workers_per_node")) {
    file.workers_max = nodes * model.workers_per_node;
  }
  return file;
}

absl::StatusOr<ClusterFile> ReadCluster(const std::string& path) {
  ANNULUS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  absl::StatusOr<ClusterFile> cluster = ParseCluster(
      absl::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()));
  if (cluster.ok()) return cluster;
  return absl::InvalidArgumentError(
      absl::StrCat("file ", Quoted(path), ": ", cluster.status().message()));
}

}  // namespace annulus
