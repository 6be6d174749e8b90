#include "bench/service/security.h"

#include <algorithm>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "bench/service/cluster.h"
#include "bench/service/upload.h"
#include "runtime/identity/authenticator.h"
#include "runtime/server/door.h"
#include "runtime/server/server.h"
#include "tests/certificates.h"
#include "tests/identity/signer.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

// The files of a server, and of those who call it.
struct Files {
  Files() {
    const test::Authority authority;
    const test::Certificate server = authority.Issue();
    tls.cert = folder.Write("cert.pem", server.certificate);
    tls.key = folder.Write("key.pem", server.key);
    ca = folder.Write("ca.pem", authority.certificate());
    const test::Signer signer = test::Signer::Es256();
    folder.Write("keys.json", test::JwksOf(signer.Jwk(R"("kid":"a",)")));
    // Admins: the contexts are those of the client that shows nothing.
    auth = folder.Write(
        "auth.json",
        absl::StrCat(R"({"tokens":[{"name":"t","tenant":"t","role":"admin","sha256":")",
                     test::Sha256Hex("secret"),
                     R"("}],"jwt":{"jwks":"keys.json","issuer":"i","audience":"a",)",
                     R"("claims":{"role":"role"}}})"));
    token = folder.Write("token", "secret");
    signed_token = folder.Write(
        "signed",
        signer.SignAs("a", absl::StrCat(R"({"iss":"i","aud":"a","sub":"s","role":"admin","exp":)",
                                        absl::ToUnixSeconds(absl::Now() + absl::Hours(1)), "}")));
  }

  test::TempFolder folder;
  ServerTls tls;
  std::string ca, auth, token, signed_token;
};

absl::Status MeasureSteps(int rounds) {
  const Files files;
  ANNULUS_ASSIGN_OR_RETURN(const auto cluster, ServiceCluster::Start({}));
  ANNULUS_ASSIGN_OR_RETURN(const auto authenticator,
                           Authenticator::Open(files.auth, absl::ZeroDuration()));
  Door door(authenticator.get());
  RpcServerOptions options;
  options.service = &cluster->service();
  options.door = &door;
  ANNULUS_ASSIGN_OR_RETURN(const auto asking, RpcServer::Start(options));
  options.door = nullptr;
  options.tls = files.tls;
  ANNULUS_ASSIGN_OR_RETURN(const auto secure, RpcServer::Start(options));
  const auto connect = [](int port, const std::string& ca, const std::string& token) {
    return Client::Connect(
        {.endpoint = absl::StrCat("127.0.0.1:", port), .tls_ca = ca, .token_file = token});
  };
  ANNULUS_ASSIGN_OR_RETURN(const auto token, connect(asking->port(), "", files.token));
  ANNULUS_ASSIGN_OR_RETURN(const auto signed_token,
                           connect(asking->port(), "", files.signed_token));
  ANNULUS_ASSIGN_OR_RETURN(const auto tls, connect(secure->port(), files.ca, ""));
  absl::Status failed;
  const auto step = [&](Client& client) {
    return [&] { failed.Update(client.Step({cluster->Query(0)})[0].status()); };
  };
  std::vector<Samples> samples = Samples::InTurn(
      rounds, {step(cluster->client()), step(*token), step(*signed_token), step(*tls)});
  ANNULUS_RETURN_IF_ERROR(failed);
  const double plain_us = samples[0].p50() * 1e6;
  std::cout << absl::StrFormat("step, p50 us: plain %.0f", plain_us);
  for (const auto& [name, i] : {std::pair("token", 1), {"signed token", 2}, {"TLS", 3}}) {
    std::cout << absl::StrFormat(", %s %.0f (%.3f of plain, %+.0f)", name, samples[i].p50() * 1e6,
                                 samples[i].MedianBeside(samples[0]),
                                 samples[i].p50() * 1e6 - plain_us);
  }
  std::cout << std::endl;
  return absl::OkStatus();
}

absl::Status ShowUploads(int64_t bytes, int rounds) {
  const Files files;
  ServiceShape shape;
  shape.tls = files.tls;
  shape.tls_ca = files.ca;
  ANNULUS_ASSIGN_OR_RETURN(const auto cluster, ServiceCluster::Start(shape));
  ANNULUS_ASSIGN_OR_RETURN(
      const std::vector<Samples> samples,
      MeasureUploads({&cluster->client()}, bytes, rounds, files.tls, files.ca));
  const auto rate = [bytes](const Samples& of) {
    return static_cast<double>(bytes) / of.p50() / 1e9;
  };
  std::cout << absl::StrFormat("upload over TLS, GB/s: %.2f, gRPC alone %.2f, ratio %.2f\n",
                               rate(samples[1]), rate(samples[0]),
                               1 / samples[1].MedianBeside(samples[0]));
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureSecurity(int rounds, int64_t upload_bytes) {
  ANNULUS_RETURN_IF_ERROR(MeasureSteps(rounds));
  if (upload_bytes == 0) return absl::OkStatus();
  return ShowUploads(upload_bytes, std::max(5, rounds / 100));
}

}  // namespace annulus
