// What patterns are judged by: made-up attention inputs, and words to be found in them. All rows
// are functions of the shape and the seed. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"

namespace annulus {

struct TaskShape {
  int64_t tokens = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // of keys and of values
  DType dtype = DType::kF32;
};

// Scores are q·k / sqrt(head_dim) in all tasks.
struct KeysAndValues {
  Tensor k;  // [tokens, kv_heads, head_dim]
  Tensor v;  // likewise
};

struct MassTask {
  Tensor q;  // [q_tokens, heads, head_dim], the context's last queries
  KeysAndValues kv;
};

// Rows whose scores have what language models' have: the first keys draw a large share (sinks,
// 2309.17453), some keys anywhere draw every query ("heavy hitters", 2306.14048), and scores fall
// with the distance as rotary positions make them (2104.09864), in each KV head over a length of
// its own.
MassTask MakeMassTask(const TaskShape& shape, int64_t q_tokens, uint64_t seed);

// A query that asks for a word.
struct Question {
  int64_t row = 0;       // of the queries it is among
  int64_t position = 0;  // of the one key that has the word
  int word = 0;
};

// Queries that are computed together.
struct Asking {
  Tensor q;  // [q_tokens, heads, head_dim], the context's last queries
  std::vector<Question> questions;
};

// Keys are names and values words, alike in all heads: what a head that looks one token back gives
// the next one.
struct RecallTask {
  KeysAndValues kv;
  std::vector<Asking> asking;
};

inline constexpr int kWords = 8192;

// The value that stands for a word: ±1 in each dim.
std::vector<float> WordValue(int word, int head_dim, uint64_t seed);

// Needle in a haystack: one word at each of `depths` places, evenly spread, and for each the last
// query asks for it. The other words differ from these.
RecallTask MakeNeedleTask(const TaskShape& shape, int depths, uint64_t seed);

// Multi-query associative recall (Zoology, 2312.04927 §4 and its reference code): a quarter of the
// context is pairs of a key and a value, of a vocabulary of 8,192; each key comes once more later,
// where its value is asked for, after gaps drawn by p ∝ g^-0.99. The rest is fillers.
RecallTask MakeMqarTask(const TaskShape& shape, uint64_t seed);

}  // namespace annulus
