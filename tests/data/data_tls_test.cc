// Uploads over TLS, and who may make them: the service says how each data port speaks.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "runtime/identity/authenticator.h"
#include "runtime/server/door.h"
#include "tests/catch.h"
#include "tests/certificates.h"
#include "tests/data/data_cluster.h"
#include "tests/identity/signer.h"
#include "tests/runtime/inputs.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using test::DataCluster;
using test::DataClusterOptions;

struct Files {
  Files() {
    const test::Authority authority;
    const test::Certificate server = authority.Issue();
    tls.cert = folder.Write("cert.pem", server.certificate);
    tls.key = folder.Write("key.pem", server.key);
    ca = folder.Write("ca.pem", authority.certificate());
    token = folder.Write("token", "secret");
    auth = folder.Write("auth.json",
                        absl::StrCat(R"({"tokens":[{"name":"t","tenant":"t","role":"tenant",)",
                                     R"("sha256":")", test::Sha256Hex("secret"), R"("}]})"));
  }

  test::TempFolder folder;
  ServerTls tls;
  std::string ca, token, auth;
};

absl::Status Upload(DataCluster& cluster) {
  Rng rng(1);
  const ContextSpec spec{.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16};
  const auto context = cluster.client().CreateContext(spec);
  if (!context.ok()) return context.status();
  const test::LayerKv kv(spec, 300, rng);
  return cluster.client().Append(kv.Append(context->id, 0, 0, 300)).status();
}

TEST_CASE("data ports speak TLS or plain text, as the service says of each") {
  const Files files;
  for (const bool data : {true, false}) {
    DataClusterOptions options{.workers = 2, .tls = files.tls, .tls_ca = files.ca};
    if (data) options.data_tls = files.tls;
    DataCluster cluster(options);
    const absl::Status uploaded = Upload(cluster);
    INFO(data << " " << uploaded);
    CHECK(uploaded.ok());
    CHECK(cluster.bytes_uploaded() > 0);
    CHECK(absl::StartsWith(cluster.data(0).address(), "tls://") == data);
  }
  DataCluster no_ca({.workers = 1, .data_tls = files.tls});
  const absl::Status refused = Upload(no_ca);
  INFO(refused);
  CHECK(absl::IsFailedPrecondition(refused));
  CHECK(absl::StrContains(refused.message(), "tls_ca: none; expected one"));
}

TEST_CASE("a data port that asks gets the token over TLS, and never in plain text beside it") {
  const Files files;
  const auto authenticator = Authenticator::Open(files.auth, absl::ZeroDuration()).value();
  Door door(authenticator.get());
  DataClusterOptions options{.workers = 1,
                             .tls = files.tls,
                             .data_tls = files.tls,
                             .data_door = &door,
                             .tls_ca = files.ca,
                             .token_file = files.token};
  DataCluster cluster(options);
  const absl::Status uploaded = Upload(cluster);
  INFO(uploaded);
  CHECK(uploaded.ok());
  options.token_file.clear();
  DataCluster without(options);
  CHECK(absl::IsUnauthenticated(Upload(without)));
  options.token_file = files.token;
  options.data_tls = {};
  DataCluster plain(options);
  CHECK(absl::IsUnauthenticated(Upload(plain)));
}

}  // namespace
}  // namespace annulus
