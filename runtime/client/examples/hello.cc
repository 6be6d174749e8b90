// The smallest use: a context, its keys and values, one query. Usage: hello [HOST:PORT …]
// (connect.h), without it with a service inside this process.
#include <cstdio>
#include <vector>

#include <annulus/client.h>

#include "connect.h"

int main(int argc, char** argv) {
  const int64_t tokens = 1000, heads = 4, dim = 64;
  auto client = ConnectByArguments(argc, argv, {.workers = 2});
  if (!client.ok()) return std::fprintf(stderr, "%s\n", client.status().ToString().c_str()), 1;
  annulus::ContextSpec spec{.heads = heads, .kv_heads = heads, .head_dim = dim, .v_head_dim = dim};
  const auto context = (*client)->CreateContext(spec);
  const std::vector<float> ones(tokens * heads * dim, 1.0f);
  const auto all =
      annulus::TensorView::Contiguous(ones.data(), annulus::DType::kF32, tokens, heads, dim);
  const auto appended = (*client)->Append({.context = context->id, .k = all, .v = all});
  const auto answer = (*client)->Attend({.context = context->id,
                                         .q_start = tokens - 1,
                                         .kv_len = tokens,
                                         .q = all.Tokens(tokens - 1, 1)});
  if (!answer.ok()) return std::fprintf(stderr, "%s\n", answer.status().ToString().c_str()), 1;
  std::printf("%ld tokens; out[0] %g, lse[0] %g\n", static_cast<long>(appended->tokens),
              answer->out.f32()[0], answer->lse.f32()[0]);
}
