// One attention problem as the command line describes it. Pure functions but for ReadLists.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "runtime/cli/files/list_file.h"
#include "runtime/cli/options/options.h"
#include "sharding/plan.h"

namespace annulus {

struct ProblemFlags {
  int64_t q_tokens = 0;
  std::optional<int64_t> q_start = {};  // absent: queries are the context's last
  int64_t kv_tokens = 0;
  std::optional<TokenRange> keys = {};  // absent: all
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  bool v_is_k_prefix = false;
  DType dtype = DType::kBF16;
  int workers = 1;
  PartitionSpec placement;
  std::string pattern;
  std::vector<ListFile> list_files = {};
  std::vector<NamedList> lists = {};  // of list_files, once ReadLists has read them
};

inline constexpr int kPlanWorkersMax = 4096;

// --q-start and --keys.
void AddPositions(Options* options, ProblemFlags* problem);

// --list.
void AddLists(Options* options, ProblemFlags* problem);
// Reads the lists of the problem, whose shape is known. Errors as ReadList.
absl::Status ReadLists(ProblemFlags* problem);

// INVALID_ARGUMENT unless values v have the tokens and heads of keys k.
absl::Status CheckValuesFit(const TensorView& k, const TensorView& v);

// What the files' tensors are rounded to: what was asked for, or the dtype that they have in
// common.
absl::StatusOr<DType> CommonDType(std::optional<DType> asked, absl::Span<const TensorView> tensors);

// Whether MakeProblem will accept it once SelectLists has made the lists that are missing.
absl::Status CheckBeforeSelection(ProblemFlags flags);

// Makes the lists of the words of the pattern that choose keys by data, from q [tokens, heads,
// head_dim] and k [kv_tokens, kv_heads, head_dim], rounded to the problem's dtype, with the
// backend's threads; `scale` and `cancel` as SelectLocally. Errors as MakeProblem.
absl::Status SelectLists(const TensorView& q, const TensorView& k, float scale, Backend& backend,
                         ProblemFlags* problem, const std::atomic<bool>* cancel = nullptr);

// Makes lists for the words that choose as many keys whatever the data are, without data
// (attention/stand_in.h), and adds their names to `stand_ins`. INVALID_ARGUMENT names list_keys_max
// where they would have more keys.
absl::Status StandInLists(ProblemFlags* problem, std::vector<std::string>* stand_ins);

// INVALID_ARGUMENT names the field, its value and what was expected.
absl::StatusOr<Problem> MakeProblem(const ProblemFlags& flags);

}  // namespace annulus
