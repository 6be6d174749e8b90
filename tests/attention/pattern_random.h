// Random patterns with their meaning. The meaning is written straight from the definitions, pair by
// pair, so that it shares nothing with the code under test.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "tests/attention/random_list.h"

namespace annulus {

inline PairRule CausalRule() {
  return [](int64_t, int64_t q, int64_t k) { return q >= k; };
}

inline PairRule WindowRule(int64_t left, int64_t right) {
  return [=](int64_t, int64_t q, int64_t k) { return q - k < left && k - q <= right; };
}

inline PairRule SinkRule(int64_t n) {
  return [=](int64_t, int64_t, int64_t k) { return k < n; };
}

inline PairRule DocsRule(std::vector<int64_t> lengths) {
  return [lengths = std::move(lengths)](int64_t, int64_t q, int64_t k) {
    int64_t end = 0;
    for (size_t i = 0; i + 1 < lengths.size(); ++i) {
      end += lengths[i];
      if (q < end || k < end) return q < end && k < end;
    }
    return true;
  };
}

inline PairRule S2Rule(int64_t block, int64_t local, int64_t stride, int64_t dense_heads,
                       int64_t step, int64_t offset, int64_t kv_heads) {
  return [=](int64_t head, int64_t q, int64_t k) {
    if (q < k) return false;
    if (head >= kv_heads - dense_heads) return true;
    const int64_t i = q / block, j = k / block;
    return i - j < local || (j + head * step + offset) % stride == 0;
  };
}

inline PairRule PowerRule(int64_t block, int64_t window, int64_t sink) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t d = q / block - k / block;
    return q >= k && (d < window || (d & (d - 1)) == 0 || k / block < sink);
  };
}

struct RandomPattern {
  std::string text;
  PairRule allows;
};

class PatternMaker {
 public:
  PatternMaker(uint64_t seed, int kv_heads, int64_t tokens)
      : rng_(seed), kv_heads_(kv_heads), tokens_(tokens) {}

  // From now on patterns may have lists, which are these.
  PatternMaker& WithLists() {
    with_lists_ = true;
    return *this;
  }
  const std::vector<NamedList>& lists() const { return lists_; }

  RandomPattern Make(int depth) {
    const int64_t kind = depth == 0 ? 0 : rng_.Between(0, 6);
    if (kind <= 2) return MakeOne();
    if (kind <= 4) {
      RandomPattern a = Make(depth - 1), b = Make(depth - 1);
      return {a.text + Blank() + "|" + Blank() + b.text, [a, b](int64_t h, int64_t q, int64_t k) {
                return a.allows(h, q, k) || b.allows(h, q, k);
              }};
    }
    if (kind == 5) {
      RandomPattern a = Make(depth - 1), b = Make(depth - 1);
      return {"(" + a.text + ")" + Blank() + "&" + Blank() + "(" + b.text + ")",
              [a, b](int64_t h, int64_t q, int64_t k) {
                return a.allows(h, q, k) && b.allows(h, q, k);
              }};
    }
    return MakeHeads(depth - 1);
  }

 private:
  std::string Blank() { return std::string(rng_.Below(2), ' '); }
  std::string Number(int64_t n) { return std::to_string(n); }
  int64_t BlockTokens() {
    constexpr int64_t kBlocks[] = {1, 7, 16, 24, 32, 50, 64, 64, 64, 100, 128, 192, 200};
    return kBlocks[rng_.Below(std::size(kBlocks))];
  }

  RandomPattern MakeListed() {
    const int heads = rng_.Below(2) == 0 ? 1 : static_cast<int>(kv_heads_);
    RandomList list = MakeRandomList(rng_, heads, tokens_, tokens_ + 200);
    const std::string name = "l_" + Number(static_cast<int64_t>(lists_.size()));
    lists_.push_back({name, *KeyList::Make(std::move(list.data))});
    return {"list(" + Blank() + name + ")", list.allows};
  }

  RandomPattern MakeOne() {
    if (with_lists_ && rng_.Below(3) == 0) return MakeListed();
    switch (rng_.Below(9)) {
      case 0:
        return {"full", [](int64_t, int64_t, int64_t) { return true; }};
      case 1:
        return {"causal", CausalRule()};
      case 2: {
        const int64_t left = rng_.Between(0, tokens_), right = rng_.Between(0, 100);
        if (rng_.Below(2) == 0) return {"window(" + Number(left) + ")", WindowRule(left, 0)};
        return {"window( right=" + Number(right) + ",left = " + Number(left) + ")",
                WindowRule(left, right)};
      }
      case 3: {
        const int64_t n = rng_.Between(0, 200);
        return {"sink(" + Number(n) + ")", SinkRule(n)};
      }
      case 4:
        return MakeDocs();
      case 5: {
        const int64_t block = BlockTokens(), window = rng_.Between(0, 3);
        const int64_t sink = rng_.Between(0, 2);
        return {"power(" + Number(block) + "," + Number(window) + ",sink=" + Number(sink) + ")",
                PowerRule(block, window, sink)};
      }
      default:
        return MakeS2();
    }
  }

  RandomPattern MakeDocs() {
    std::vector<int64_t> lengths;
    std::string text;
    for (int64_t left = tokens_; left > 0;) {
      const int64_t length = std::min(left, rng_.Between(1, rng_.Below(2) == 0 ? 20 : 300));
      lengths.push_back(length);
      text += (text.empty() ? "docs(" : ",") + Number(length);
      left -= length;
    }
    return {text + ")", DocsRule(lengths)};
  }

  RandomPattern MakeS2() {
    const int64_t block = BlockTokens(), local = rng_.Between(1, 4), stride = rng_.Between(1, 9);
    std::string text = "s2(" + Number(block) + "," + Number(local) + "," + Number(stride);
    const int64_t dense_heads = rng_.Below(3) == 0 ? rng_.Between(0, kv_heads_) : 0;
    if (dense_heads > 0) text += "," + Number(dense_heads);
    int64_t step = std::max<int64_t>(1, stride / kv_heads_), offset = 0;
    if (rng_.Below(2) == 0) text += ",step=" + Number(step = rng_.Between(0, 5));
    if (rng_.Below(2) == 0) text += ",offset=" + Number(offset = rng_.Between(0, 11));
    return {text + ")", S2Rule(block, local, stride, dense_heads, step, offset, kv_heads_)};
  }

  RandomPattern MakeHeads(int depth) {
    std::string text = "heads(";
    std::vector<PairRule> rules(kv_heads_);
    for (int64_t first = 0; first < kv_heads_;) {
      const int64_t last = rng_.Between(first, kv_heads_ - 1);
      const RandomPattern part = Make(depth);
      text += (first > 0 ? "; " : "") + Number(first);
      if (last > first || rng_.Below(2) == 0) text += "-" + Number(last);
      text += ": " + part.text;
      for (int64_t h = first; h <= last; ++h) rules[h] = part.allows;
      first = last + 1;
    }
    return {text + ")", [rules](int64_t h, int64_t q, int64_t k) { return rules[h](h, q, k); }};
  }

  Rng rng_;
  const int64_t kv_heads_;
  const int64_t tokens_;
  bool with_lists_ = false;
  std::vector<NamedList> lists_;
};

}  // namespace annulus
