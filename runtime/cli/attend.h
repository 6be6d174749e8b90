// `annulus attend` in its parts: what was asked for, the tensors, and the two places where it can
// be computed: ranks in this process, or a service. Not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "attention/partial.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/files/tensor_file.h"
#include "runtime/cli/machines.h"
#include "runtime/cli/problem.h"
#include "runtime/cli/report/report.h"
#include "runtime/protocol/public/client_identity.h"

namespace annulus {

struct AttendFlags {
  std::string q;
  std::string k;
  std::optional<std::string> v;
  std::optional<int64_t> v_head_dim;
  std::string out;
  std::optional<std::string> lse;
  std::string pattern;
  ProblemFlags positions;  // q_start, keys and lists alone
  std::optional<std::string> endpoint;
  int workers = 1;
  std::optional<PlanKind> plan;  // absent: auto
  PartitionSpec placement;
  Placement kv_placement = Placement::kTokens;
  Upload upload = Upload::kDirect;
  ClientSecurity security;  // towards the endpoint
  std::optional<float> scale;
  std::vector<float> sinks;  // [heads], or none
  std::optional<DType> dtype;
  std::string backend = "auto";
  int repeat = 1;
  MachineFlags machines;  // that the plan is weighed for; not with an endpoint
  bool json = false;
};

struct AttendInputs {
  FileTensor q;
  FileTensor k;
  std::optional<FileTensor> v;  // absent: V is K's first dims
  ProblemFlags problem;         // workers is AttendFlags'
  float scale = 0;

  TensorView v_view() const { return v.has_value() ? v->view() : TensorView{}; }
};

// Reads and checks the files. INVALID_ARGUMENT names the file or field, its value and what was
// expected.
absl::StatusOr<AttendInputs> ReadAttendInputs(const AttendFlags& flags);

struct AttendOutcome {
  Tensor out;  // f32 [tokens, heads, v_head_dim]
  Tensor lse;  // f32 [tokens, heads, 1]
  AttendReport report;
};

// With `flags.workers` ranks in this process, over the local transport, sharing the cores.
absl::StatusOr<AttendOutcome> AttendLocally(const AttendFlags& flags, AttendInputs inputs,
                                            const Console& console);

// In a context made for this at `flags.endpoint`, and released afterwards.
absl::StatusOr<AttendOutcome> AttendRemotely(const AttendFlags& flags, const AttendInputs& inputs,
                                             const Console& console);

// What both report alike.
AttendReport ReportOf(const AttendFlags& flags, const AttendInputs& inputs);
double MedianOf(std::vector<double> values);

}  // namespace annulus
