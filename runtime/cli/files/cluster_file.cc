#include "runtime/cli/files/cluster_file.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/identity/json_fields.h"

namespace annulus {
namespace {

constexpr int64_t kCountMax = 1 << 20;

struct Number {
  const char* name;
  double ClusterModel::*value;
  double unit;
  bool may_be_zero;
};
constexpr Number kNumbers[] = {{"inside_gb_per_s", &ClusterModel::inside_bytes_per_s, 1e9, false},
                               {"inside_us", &ClusterModel::inside_latency_s, 1e-6, true},
                               {"between_gb_per_s", &ClusterModel::between_bytes_per_s, 1e9, false},
                               {"between_us", &ClusterModel::between_latency_s, 1e-6, true},
                               {"flops", &ClusterModel::flops, 1, false},
                               {"flops_f32", &ClusterModel::flops_f32, 1, false},
                               {"read_gb_per_s", &ClusterModel::read_bytes_per_s, 1e9, false},
                               {"launch_us", &ClusterModel::launch_s, 1e-6, true}};

absl::Status ReadNumber(const std::string& key, const Json& value, ClusterModel* model) {
  std::string known = "nodes, workers_per_node, shared, machine, others_share";
  for (const Number& number : kNumbers) {
    if (key != number.name) {
      absl::StrAppend(&known, ", ", number.name);
      continue;
    }
    const double given = value.is_number() ? value.get<double>() * number.unit : NAN;
    if (!std::isfinite(given) || given < 0 || (given == 0 && !number.may_be_zero)) {
      return UnexpectedName(key, value, "a positive number");
    }
    model->*number.value = given;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("field ", Quoted(key), ": unknown; expected one of ", known));
}

absl::StatusOr<int64_t> ReadCount(const std::string& key, const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 ||
      value.get<uint64_t>() > uint64_t{kCountMax}) {
    return UnexpectedName(key, value, absl::StrCat("an integer from 1 to ", kCountMax));
  }
  return static_cast<int64_t>(value.get<uint64_t>());
}

}  // namespace

absl::StatusOr<ClusterFile> ParseCluster(absl::string_view json) {
  ANNULUS_ASSIGN_OR_RETURN(const Json object, ParseObject("content", json));
  ClusterFile file;
  int64_t nodes = 1, workers_per_node = file.model.workers_per_node;
  for (const auto& [key, value] : object.items()) {
    if (key == "nodes") {
      ANNULUS_ASSIGN_OR_RETURN(nodes, ReadCount(key, value));
    } else if (key == "workers_per_node") {
      ANNULUS_ASSIGN_OR_RETURN(workers_per_node, ReadCount(key, value));
    } else if (key == "shared") {
      if (!value.is_boolean()) return UnexpectedName(key, value, "true or false");
      file.shared = value.get<bool>();
    } else if (key == "machine") {
      if (!value.is_string()) return UnexpectedName(key, value, "a text");
      file.machine = value.get<std::string>();
    } else if (key == "others_share") {
      file.others_share = value.is_number() ? value.get<double>() : -1;
      if (!(*file.others_share >= 0 && *file.others_share <= 1)) {
        return UnexpectedName(key, value, "a number from 0 to 1");
      }
    } else {
      ANNULUS_RETURN_IF_ERROR(ReadNumber(key, value, &file.model));
    }
  }
  if (!object.contains("flops_f32")) file.model.flops_f32 = file.model.flops;
  file.model.workers_per_node = static_cast<int>(workers_per_node);
  if (object.contains("nodes") || object.contains("workers_per_node")) {
    file.workers_max = nodes * workers_per_node;
  }
  return file;
}

ClusterModel BestOf(const ClusterModel& a, const ClusterModel& b) {
  ClusterModel best = a;
  for (const Number& number : kNumbers) {
    const double one = a.*number.value, other = b.*number.value;
    const bool is_time = number.may_be_zero;
    best.*number.value = is_time ? std::min(one, other) : std::max(one, other);
  }
  return best;
}

std::string ToJson(const ClusterFile& file) {
  nlohmann::ordered_json object = {{"machine", file.machine}, {"shared", file.shared}};
  if (file.others_share.has_value()) object["others_share"] = *file.others_share;
  for (const Number& number : kNumbers) {
    object[number.name] = file.model.*number.value / number.unit;
  }
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<ClusterModel> ModelFor(const ClusterFile& file, int workers) {
  if (workers > file.workers_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("--workers: ", workers, "; expected at most the cluster's ", file.workers_max,
                     " (nodes x workers_per_node)"));
  }
  if (!file.shared) return file.model;
  return SharedBy(file.model, std::min(workers, file.model.workers_per_node));
}

absl::StatusOr<ClusterFile> ReadCluster(const std::string& path) {
  ANNULUS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  absl::StatusOr<ClusterFile> cluster = ParseCluster(
      absl::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()));
  if (cluster.ok()) return cluster;
  return absl::InvalidArgumentError(
      absl::StrCat("file ", QuotedEnd(path), ": ", cluster.status().message()));
}

}  // namespace annulus
