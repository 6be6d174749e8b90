// A toy transformer that decodes with Step: per token and layer one message with its query, key and
// value, and the attention's output back. The same model with attention computed here must give
// the same tokens' states. Usage: decode_loop [HOST:PORT …] (connect.h)
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <annulus/client.h>

#include "connect.h"

namespace {

constexpr int kLayers = 3, kHeads = 4, kKvHeads = 2, kDim = 16, kTokens = 100;
constexpr int kModel = kHeads * kDim, kKv = kKvHeads * kDim;
using Vector = std::vector<float>;

// One layer's weights: x → q, k, v, and attention's output → what is added to x.
struct Layer {
  explicit Layer(std::mt19937* random) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(kModel)));
    for (const auto& [matrix, rows] : {std::pair(&q, kModel), {&k, kKv}, {&v, kKv}, {&o, kModel}}) {
      matrix->resize(static_cast<size_t>(rows * kModel));
      for (float& weight : *matrix) weight = normal(*random);
    }
  }
  Vector q, k, v, o;
};

Vector Times(const Vector& matrix, const Vector& x) {
  Vector y(matrix.size() / x.size());
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += matrix[r * x.size() + c] * x[c];
  }
  return y;
}

// What attends: takes a token's q, k, v of a layer and gives [kHeads · kDim].
class Attention {
 public:
  virtual ~Attention() = default;
  virtual Vector Step(int layer, int token, const Vector& q, const Vector& k, const Vector& v) = 0;
};

class Remote final : public Attention {
 public:
  explicit Remote(annulus::Client* client) : client_(client) {
    annulus::ContextSpec spec{.layers = kLayers,
                              .heads = kHeads,
                              .kv_heads = kKvHeads,
                              .head_dim = kDim,
                              .v_head_dim = kDim,
                              .dtype = annulus::DType::kF32};
    context_ = client->CreateContext(spec).value().id;
  }
  ~Remote() override { client_->Release(context_).IgnoreError(); }

  Vector Step(int layer, int token, const Vector& q, const Vector& k, const Vector& v) override {
    const auto view = [](const Vector& values, int heads) {
      return annulus::TensorView::Contiguous(values.data(), annulus::DType::kF32, 1, heads, kDim);
    };
    annulus::StepRequest step;
    step.context = context_;
    step.layer = layer;
    step.start = token;
    step.k = view(k, kKvHeads);
    step.v = view(v, kKvHeads);
    step.q = view(q, kHeads);
    annulus::StepResults results = client_->Step({&step, 1});
    if (!results[0].ok()) {
      std::fprintf(stderr, "step: %s\n", results[0].status().ToString().c_str());
      std::exit(1);
    }
    const float* out = results[0]->out.f32();
    return Vector(out, out + kModel);
  }

 private:
  annulus::Client* const client_;
  annulus::ContextId context_;
};

class Here final : public Attention {
 public:
  Vector Step(int layer, int token, const Vector& q, const Vector& k, const Vector& v) override {
    k_[layer].push_back(k);
    v_[layer].push_back(v);
    Vector out(kModel);
    for (int head = 0; head < kHeads; ++head) {
      const int at = head / (kHeads / kKvHeads) * kDim;  // of its KV head
      double sum = 0;
      std::vector<double> row(kDim);
      for (int t = 0; t <= token; ++t) {
        double score = 0;
        for (int c = 0; c < kDim; ++c) score += q[head * kDim + c] * k_[layer][t][at + c];
        const double weight = std::exp(score / std::sqrt(kDim));
        sum += weight;
        for (int c = 0; c < kDim; ++c) row[c] += weight * v_[layer][t][at + c];
      }
      for (int c = 0; c < kDim; ++c) out[head * kDim + c] = static_cast<float>(row[c] / sum);
    }
    return out;
  }

 private:
  std::vector<Vector> k_[kLayers], v_[kLayers];
};

// The state after the last token, which each token hands to the next.
Vector Decode(const std::vector<Layer>& layers, Attention* attention) {
  Vector x(kModel);
  for (int token = 0; token < kTokens; ++token) {
    x[token % kModel] += 1;
    for (int layer = 0; layer < kLayers; ++layer) {
      const Layer& weights = layers[layer];
      const Vector out = attention->Step(layer, token, Times(weights.q, x), Times(weights.k, x),
                                         Times(weights.v, x));
      const Vector added = Times(weights.o, out);
      float norm = 0;
      for (int i = 0; i < kModel; ++i) norm += (x[i] += added[i]) * x[i];
      for (float& value : x) value *= std::sqrt(kModel / norm);
    }
  }
  return x;
}

}  // namespace

int main(int argc, char** argv) {
  auto client = ConnectByArguments(argc, argv, {.workers = 2});
  if (!client.ok()) {
    std::fprintf(stderr, "%s\n", client.status().ToString().c_str());
    return 1;
  }
  std::mt19937 random(7);
  const std::vector<Layer> layers(kLayers, Layer(&random));
  Remote remote(client->get());
  Here here;
  const Vector a = Decode(layers, &remote);
  const Vector b = Decode(layers, &here);
  float worst = 0;
  for (int i = 0; i < kModel; ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  std::printf("%d tokens, %d layers; states differ by %g at most\n", kTokens, kLayers, worst);
  return worst < 1e-2f ? 0 : 1;
}
