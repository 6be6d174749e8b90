#include "attention/select/score_rows.h"

#include <algorithm>

#include "attention/select/scores.h"

namespace annulus {
namespace {

struct Group {
  int head;
  int64_t row;
  int64_t group;
  size_t units;  // that it is scored by
};

// Some groups, whose expanded queries and scores lie one after the other.
class Batch {
 public:
  Batch(const SelectRows& rows, const ScoredBy& units, TakeScores take)
      : rows_(rows),
        of_(rows),
        units_(units),
        take_(take),
        dim_(static_cast<int>(rows.q.dim)),
        width_(rows.selector->Width(dim_)),
        expanded_(kRowsAtOnce * static_cast<size_t>(width_)) {}

  void Add(int head, int64_t row, int64_t group) {
    int64_t missing = 0;
    const TokenRange queries = of_.Group(row, group, &missing);
    q_.resize(static_cast<size_t>(queries.size() * dim_));
    for (int64_t i = 0; i < queries.size(); ++i) {
      Convert(rows_.q.Row(queries.begin - rows_.q_begin + i, head), rows_.q.dtype,
              q_.data() + i * dim_, DType::kF32, dim_);
    }
    of_.selector().ExpandGroup(q_, missing, dim_,
                               expanded_.data() + groups_.size() * static_cast<size_t>(width_));
    const auto end = std::lower_bound(units_.units.begin(), units_.units.end(), of_.Units(row));
    groups_.push_back({head, row, group, static_cast<size_t>(end - units_.units.begin())});
    if (groups_.size() == kRowsAtOnce) Score();
  }

  void Score() {
    size_t end = 0;
    for (const Group& group : groups_) end = std::max(end, group.units);
    by_group_.resize(groups_.size() * end);
    const auto keep = [&](size_t u, size_t count, const float* scores) {
      for (size_t g = 0; g < groups_.size(); ++g) {
        for (size_t s = 0; s < count; ++s) {
          by_group_[g * end + u + s] = scores[s * groups_.size() + g];
        }
      }
    };
    scores_.Score(expanded_.data(), groups_.size(), width_, {units_.summaries.data(), end}, keep);
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      take_(group.head, group.row, group.group, {by_group_.data() + g * end, group.units});
    }
    groups_.clear();
  }

 private:
  const SelectRows& rows_;
  const ListRows of_;
  const ScoredBy& units_;
  const TakeScores take_;
  const int dim_;
  const int width_;
  std::vector<Group> groups_;
  std::vector<float> q_;
  std::vector<double> expanded_;  // [groups, width]
  PiecewiseScores scores_;
  std::vector<float> by_group_;  // [groups, units]
};

}  // namespace

void ScoreRows(const SelectRows& rows, int kv_head, const ScoredBy& units, TakeScores take) {
  const ListRows of(rows);
  const HeadRange heads = Intersect(rows.heads, {kv_head * rows.group, rows.group});
  Batch batch(rows, units, take);
  for (int64_t row = 0; row < of.count(); ++row) {
    for (int64_t group = 0; group < of.Groups(row); ++group) {
      for (int head = heads.first; head < heads.end(); ++head) {
        batch.Add(head - rows.heads.first, row, group);
      }
    }
  }
  batch.Score();
}

}  // namespace annulus
