// --list NAME=FILE: the data of list(NAME) in a pattern, from a file.
//   F.npy[:BLOCK]     bool [1 | kv_heads | heads, nb, nb]: which blocks of BLOCK tokens (64) a
//                     block of queries sees, all of absolute numbers; nb is ⌈tokens/BLOCK⌉
//   F.safetensors     begin and keys, I32 or I64 (attention/key_list.h), and in __metadata__
//                     unit (blocks, tokens), rows (token, block, all) and block_tokens (64); heads,
//                     without which it follows from begin; and q_begin, where the rows begin:
//                     without it at the call's first query, or the block that holds it
// Thread-safe functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/key_list.h"

namespace annulus {

struct ListFile {
  std::string name;
  std::string path;
  int64_t block_tokens = 64;  // of a mask
};

// INVALID_ARGUMENT unless it is NAME=F.npy, NAME=F.npy:BLOCK or NAME=F.safetensors.
absl::StatusOr<ListFile> ParseListFile(absl::string_view text);

// What the lists of a call are for.
struct ListedCall {
  TokenRange q;  // the queries
  int64_t kv_tokens = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
};

// INVALID_ARGUMENT names the file, the field, its value and what was expected.
absl::StatusOr<NamedList> ReadList(const ListFile& file, const ListedCall& call);

}  // namespace annulus
