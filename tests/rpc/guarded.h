// A real server that asks who calls, in front of a fake service, and clients with tokens.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "runtime/identity/authenticator.h"
#include "runtime/server/door.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/identity/signer.h"
#include "tests/rpc/fake_service.h"
#include "tests/temp_folder.h"

namespace annulus {

inline std::string TokenEntry(absl::string_view token, absl::string_view role) {
  return absl::StrCat(R"({"name":"n-)", token, R"(","sha256":")", test::Sha256Hex(token),
                      R"(","tenant":"t-)", token, R"(","role":")", role, R"("})");
}

// Known are the tokens "admin", "tenant", "reader" and "worker", and what `issuer` signs.
struct Guarded {
  explicit Guarded(const RpcLimits& limits = {}) {
    folder.Write("keys.json", test::JwksOf(issuer.Jwk()));
    Know(absl::StrCat(TokenEntry("admin", "admin"), ",", TokenEntry("tenant", "tenant"), ",",
                      TokenEntry("reader", "reader"), ",", TokenEntry("worker", "worker")));
    authenticator = Authenticator::Open(folder / "auth.json", absl::ZeroDuration()).value();
    door = std::make_unique<Door>(authenticator.get());
    RpcServerOptions options;
    options.service = &service;
    options.join = JoinOptions{[](const auto&...) { return Admittance{"fabric", {}}; }};
    options.door = door.get();
    options.limits = limits;
    options.reflection = true;
    server = RpcServer::Start(options).value();
  }

  std::string endpoint() const { return absl::StrCat("127.0.0.1:", server->port()); }

  // From the next Reload on.
  void Know(absl::string_view tokens, absl::string_view quotas = "{}") const {
    folder.Write("auth.json",
                 absl::StrCat(R"({"tokens":[)", tokens, R"(],"jwt":{"jwks":"keys.json",)",
                              R"("issuer":"i","audience":"a","claims":{"role":"role"}},"quotas":)",
                              quotas, "}"));
  }

  // Valid until `expires`, the server's leeway not counted.
  std::string SignedToken(absl::Time expires, absl::string_view role = "tenant") const {
    const std::string claims = absl::StrCat(R"({"iss":"i","aud":"a","sub":"s","role":")", role,
                                            R"(","exp":)", absl::ToUnixMillis(expires), "e-3}");
    return issuer.Sign(R"({"alg":"EdDSA"})", claims);
  }

  absl::StatusOr<std::unique_ptr<Client>> Connect(absl::string_view token) const {
    return Client::Connect({.endpoint = endpoint(),
                            .upload = Upload::kRelay,
                            .token_file = folder.Write("token", token)});
  }

  test::TempFolder folder;
  test::Signer issuer = test::Signer::EdDsa();
  std::unique_ptr<Authenticator> authenticator;
  std::unique_ptr<Door> door;
  FakeService service;
  std::unique_ptr<RpcServer> server;
};

}  // namespace annulus
