// Random patterns with their meaning.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "tests/attention/grid_rules.h"
#include "tests/attention/pattern_rules.h"
#include "tests/attention/random_list.h"

namespace annulus {

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
    switch (rng_.Below(19)) {
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
      case 6:
        return MakePositions();
      case 7: {
        const int64_t tokens = rng_.Between(1, 150), shift = rng_.Between(0, 200);
        if (rng_.Below(2) == 0) {
          return {"segments(" + Number(tokens) + ")", SegmentsRule(tokens, 0)};
        }
        return {"segments(" + Number(tokens) + ",shift=" + Number(shift) + ")",
                SegmentsRule(tokens, shift)};
      }
      case 8: {
        const int64_t block = BlockTokens(), n = rng_.Between(1, 5);
        return {"band(" + Number(block) + "," + Number(n) + ")", BandRule(block, n)};
      }
      case 9: {
        const int64_t block = BlockTokens();
        std::vector<int64_t> distances(rng_.Between(1, 4));
        std::string text = "slash(" + Number(block);
        for (int64_t& d : distances) text += "," + Number(d = rng_.Between(0, 7));
        return {text + ")", SlashRule(block, distances)};
      }
      case 10: {
        const int64_t block = BlockTokens(), left = rng_.Between(1, 4);
        const int64_t right = rng_.Between(1, 4), stride = rng_.Between(1, 6);
        return {"s2r(" + Number(block) + "," + Number(left) + "," + Number(right) +
                    ",stride=" + Number(stride) + ")",
                RelativeS2Rule(block, left, right, stride)};
      }
      case 11:
        return MakeNa();
      case 12: {
        const int64_t n = rng_.Between(1, 5), height = n * rng_.Between(1, 5);
        const int64_t width = n * rng_.Between(1, 20);
        return {"grid(" + By({height, width}) + "," + Number(n) + ")", GridRule(height, width, n)};
      }
      case 13: {
        const int64_t height = rng_.Between(1, 20), width = rng_.Between(1, 150);
        const int64_t stripe = rng_.Between(1, rng_.Below(2) == 0 ? 5 : 100);
        return {"cross(" + By({height, width}) + ",width=" + Number(stripe) + ")",
                CrossRule(height, width, stripe, kv_heads_)};
      }
      case 14: {
        const int64_t height = rng_.Between(1, 20), width = rng_.Between(1, 90);
        const int64_t radius = rng_.Between(1, 9), text = rng_.Below(2) * rng_.Between(0, 100);
        return {"disk(" + By({height, width}) + "," + Number(radius) +
                    (text > 0 ? ",text=" + Number(text) : "") + ")",
                DiskRule(height, width, radius, text)};
      }
      case 15:
        return MakeOrder();
      default:
        return MakeS2();
    }
  }

  std::string By(const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : "x") + Number(number);
    return text;
  }

  RandomPattern MakeNa() {
    std::vector<NaAxis> axes(rng_.Between(1, 3));
    std::vector<int64_t> lengths, windows, strides, dilations, causal;
    for (NaAxis& axis : axes) {
      axis.length = rng_.Between(1, axes.size() == 1 ? 400 : axes.size() == 2 ? 30 : 9);
      axis.dilation = rng_.Below(3) == 0 ? rng_.Between(1, std::min<int64_t>(4, axis.length)) : 1;
      axis.window = rng_.Between(1, std::min<int64_t>(12, axis.length / axis.dilation));
      axis.stride = rng_.Below(2) == 0 ? 1 : rng_.Between(1, axis.window);
      axis.causal = rng_.Below(3) == 0;
      lengths.push_back(axis.length);
      windows.push_back(axis.window);
      strides.push_back(axis.stride);
      dilations.push_back(axis.dilation);
      causal.push_back(axis.causal);
    }
    const int64_t extra = rng_.Below(3) == 0 ? rng_.Between(0, 100) : 0;
    return {"na(" + By(lengths) + ",window=" + By(windows) + ",causal=" + By(causal) +
                ",stride=" + By(strides) + ",dilation=" + By(dilations) +
                (extra > 0 ? ",extra=" + Number(extra) : "") + ")",
            NaRule(axes, extra)};
  }

  RandomPattern MakeOrder() {
    std::vector<int64_t> extents(rng_.Between(2, 3)), axes;
    for (int64_t& extent : extents) extent = rng_.Between(1, 9);
    for (size_t i = 0; i < extents.size(); ++i) {
      axes.insert(axes.begin() + static_cast<int64_t>(rng_.Below(i + 1)), static_cast<int64_t>(i));
    }
    const int64_t left = rng_.Between(0, 20), right = rng_.Between(0, 20);
    return {"order(" + By(extents) + "," + By(axes) + ",window(" + Number(left) + "," +
                Number(right) + "))",
            OrderRule(extents, axes, WindowRule(left, right))};
  }

  RandomPattern MakePositions() {
    const bool rows = rng_.Below(2) == 0, open = rng_.Below(3) == 0;
    const int64_t from = rng_.Between(0, tokens_),
                  to = open ? tokens_ * 4 : rng_.Between(from, 2 * tokens_);
    const std::string text =
        (rows ? "rows(" : "keys(") + Number(from) + (open ? "" : ",to=" + Number(to)) + ")";
    constexpr int64_t kEnd = int64_t{1} << 60;
    const int64_t end = open ? kEnd : to;
    return {text, rows ? BoxRule(from, end, 0, kEnd) : BoxRule(0, kEnd, from, end)};
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
