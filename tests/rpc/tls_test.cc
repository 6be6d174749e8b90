// TLS between clients and the server: who is refused, and certificates that are replaced while
// clients call.
#include <grpcpp/channel.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/quoted.h"
#include "runtime/identity/authenticator.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/client_identity.h"
#include "runtime/protocol/public/tls_files.h"
#include "runtime/server/door.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/certificates.h"
#include "tests/rpc/fake_service.h"
#include "tests/rpc/quiet.h"
#include "tests/rpc/scrape.h"
#include "tests/stderr_into.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using test::Authority;
using test::Certificate;
using test::CertificateSpec;
using test::Quiet;

struct Secured {
  explicit Secured(const CertificateSpec& spec = {}, bool asks_clients = false,
                   absl::string_view auth = "", absl::Duration handshake_max = absl::Seconds(10)) {
    Install(authority.Issue(spec));
    folder.Write("ca.pem", authority.certificate());
    RpcServerOptions options;
    options.service = &service;
    options.counts = &counts;
    options.limits.connections.handshake_max = handshake_max;
    options.tls = {.cert = folder / "server.pem",
                   .key = folder / "server.key",
                   .client_ca = asks_clients ? folder / "ca.pem" : "",
                   .reload_period = absl::Seconds(1)};
    if (!auth.empty()) {
      authenticator =
          Authenticator::Open(folder.Write("auth.json", auth), absl::ZeroDuration()).value();
      door = std::make_unique<Door>(authenticator.get());
      options.door = door.get();
    }
    server = RpcServer::Start(options).value();
  }
  void Install(const Certificate& certificate) const {
    folder.Write("server.pem", certificate.certificate);
    folder.Write("server.key", certificate.key);
  }

  ClientOptions Options() const {
    return {.endpoint = absl::StrCat("127.0.0.1:", server->port()),
            .connect_timeout = absl::Seconds(30),
            .upload = Upload::kRelay,
            .tls_ca = folder / "ca.pem"};
  }
  // With a certificate of the client's.
  ClientOptions Options(const Certificate& certificate) const {
    ClientOptions options = Options();
    options.tls_cert = folder.Write("client.pem", certificate.certificate);
    options.tls_key = folder.Write("client.key", certificate.key);
    return options;
  }

  test::TempFolder folder;
  Authority authority;
  std::unique_ptr<Authenticator> authenticator;
  std::unique_ptr<Door> door;
  FakeService service;
  ConnectionCounts counts;
  std::unique_ptr<RpcServer> server;
};

absl::Status StatusBy(ClientOptions options) {
  const auto client = Client::Connect(options);
  return client.ok() ? (*client)->Status().status() : client.status();
}

// Soon enough for what never connects.
absl::Status RefusalBy(ClientOptions options) {
  options.connect_timeout = absl::Seconds(3);
  return StatusBy(options);
}

TEST_CASE("calls over TLS are served, and by a server that proves who it is alone") {
  const Quiet quiet;
  const Secured secured;
  const absl::Status good = StatusBy(secured.Options());
  INFO(good);
  CHECK(good.ok());
  std::vector<float> values(64, 1.0f);
  const auto client = Client::Connect(secured.Options()).value();
  StepRequest step;
  step.q = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  for (int i = 0; i < 3; ++i) CHECK(client->Step({step})[0].ok());

  ClientOptions plain = secured.Options();
  plain.tls_ca.clear();
  CHECK(absl::IsUnavailable(RefusalBy(plain)));
  ClientOptions other = secured.Options();
  other.tls_ca = secured.folder.Write("other.pem", Authority().certificate());
  const absl::Status refused = RefusalBy(other);
  CHECK(absl::IsUnavailable(refused));
  INFO(refused);
  CHECK(absl::StrContains(refused.message(), "handshake failed"));
}

TEST_CASE("a server's certificate must be valid now and name its host") {
  const Quiet quiet;
  const CertificateSpec bad[] = {
      {.names = "DNS:elsewhere.example,IP:10.1.2.3"},
      {.from = -absl::Hours(2), .until = -absl::Hours(1)},
      {.from = absl::Hours(1), .until = absl::Hours(2)},
  };
  for (const CertificateSpec& spec : bad) {
    const Secured secured(spec);
    const absl::Status refused = RefusalBy(secured.Options());
    INFO(refused);
    CHECK(absl::IsUnavailable(refused));
    CHECK(absl::StrContains(absl::AsciiStrToLower(refused.message()), "verif"));
  }
}

TEST_CASE("mTLS: no certificate, one of another authority and an expired one are refused") {
  const Quiet quiet;
  const Secured secured({}, /*asks_clients=*/true);
  const CertificateSpec of_client{.common_name = "ann", .names = ""};
  const absl::Status good = StatusBy(secured.Options(secured.authority.Issue(of_client)));
  INFO(good);
  CHECK(good.ok());
  const auto check = [](const absl::Status& refused) {
    INFO(refused);
    CHECK(absl::IsUnavailable(refused));
    CHECK(absl::StrContains(refused.message(), "a certificate of this client"));
  };
  check(RefusalBy(secured.Options()));
  check(RefusalBy(secured.Options(Authority().Issue(of_client))));
  CertificateSpec expired = of_client;
  expired.from = -absl::Hours(2);
  expired.until = -absl::Hours(1);
  check(RefusalBy(secured.Options(secured.authority.Issue(expired))));
  CHECK(secured.service.calls == 1);
}

TEST_CASE("handshakes of TLS that fail are counted, and those that do not are not") {
  const Quiet quiet;
  const Secured secured({}, /*asks_clients=*/true, /*auth=*/"", /*handshake_max=*/absl::Seconds(1));
  const CertificateSpec of_client{.common_name = "ann", .names = ""};
  const auto client = Client::Connect(secured.Options(secured.authority.Issue(of_client))).value();
  const auto counted = [&](uint64_t least) {
    for (int i = 0; i < 250 && secured.counts.handshakes_failed < least; ++i) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    return secured.counts.handshakes_failed.load();
  };
  for (const absl::string_view bytes : {"", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", "PRI *"}) {
    const int fd = test::ConnectToLoopback(secured.server->port());
    (void)!write(fd, bytes.data(), bytes.size());
    close(fd);
  }
  const int silent = test::ConnectToLoopback(secured.server->port());  // until it is cut
  CHECK(counted(5) == 5);
  close(silent);
  ClientOptions stranger = secured.Options(Authority().Issue(of_client));
  stranger.connect_timeout = absl::Seconds(1);
  CHECK(absl::IsUnavailable(StatusBy(stranger)));
  const absl::Duration all_over = absl::Seconds(1.8);
  absl::SleepFor(all_over);
  const uint64_t failed = secured.counts.handshakes_failed;
  CHECK(failed > 5);
  for (int i = 0; i < 3; ++i) {
    CHECK(StatusBy(secured.Options(secured.authority.Issue(of_client))).ok());
  }
  CHECK(client->Status().ok());
  absl::SleepFor(all_over);
  CHECK(secured.counts.handshakes_failed == failed);
}

TEST_CASE("a certificate is a caller with a role, by its alternative or its common name") {
  const Quiet quiet;
  const Secured secured({}, /*asks_clients=*/true,
                        R"({"certificates":[{"name":"ann","tenant":"lab","role":"reader"},
                                            {"name":"w1.example","role":"worker"}]})");
  const auto as = [&](const CertificateSpec& spec) {
    return RefusalBy(secured.Options(secured.authority.Issue(spec)));
  };
  CHECK(as({.common_name = "ann", .names = ""}).ok());
  CHECK(absl::IsPermissionDenied(as({.common_name = "x", .names = "DNS:w1.example"})));
  CHECK(absl::IsUnauthenticated(as({.common_name = "bob", .names = "DNS:w2.example"})));
}

TEST_CASE("certificates are replaced under clients without a call that fails") {
  const Quiet quiet;
  const Secured secured;
  const auto client = Client::Connect(secured.Options()).value();
  std::atomic<bool> stop = false;
  std::atomic<int> calls = 0, failed = 0;
  std::thread caller([&] {
    while (!stop) {
      failed += client->Status().ok() ? 0 : 1;
      ++calls;
    }
  });
  // Who trusts the new authority alone is served once the new certificate is.
  const Authority fresh("the new authority");
  const absl::Time begin = absl::Now();
  secured.Install(fresh.Issue());
  ClientOptions options = secured.Options();
  options.tls_ca = secured.folder.Write("fresh.pem", fresh.certificate());
  const absl::Status served = StatusBy(options);
  INFO(served << " after " << absl::Now() - begin);
  CHECK(served.ok());
  CHECK(absl::Now() - begin < absl::Seconds(30));
  stop = true;
  caller.join();
  CHECK(calls > 0);
  CHECK(failed == 0);
}

TEST_CASE("a server whose files of TLS are spoilt goes on with what it had") {
  const Quiet quiet;
  const Secured secured;
  const Certificate other = secured.authority.Issue();
  secured.folder.Write("server.key", other.key);  // of another certificate
  absl::SleepFor(absl::Seconds(2.5));
  CHECK(StatusBy(secured.Options()).ok());
  CHECK(secured.server->tls().reloads_failed == 1);
  CHECK(secured.server->tls().bad);
  secured.folder.Write("server.pem", other.certificate);
  for (int i = 0; i < 100 && secured.server->tls().reloads == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(100));
  }
  CHECK(secured.server->tls().reloads == 1);
  CHECK_FALSE(secured.server->tls().bad);
  CHECK(StatusBy(secured.Options()).ok());
}

TEST_CASE("a client whose files of TLS are spoilt goes on with what it had") {
  const Quiet quiet;
  const Secured secured({}, /*asks_clients=*/true);
  const CertificateSpec of_client{.common_name = "ann", .names = ""};
  const Certificate one = secured.authority.Issue(of_client);
  const ClientOptions options = secured.Options(one);
  const auto identity = ClientIdentity::Open({.tls = {.ca = options.tls_ca,
                                                      .cert = options.tls_cert,
                                                      .key = options.tls_key,
                                                      .reload_period = absl::Milliseconds(50)}})
                            .value();
  // Over a connection of its own.
  const auto answers = [&] {
    const auto channel = identity->ChannelTo(options.endpoint);
    return channel->WaitForConnected(absl::ToChronoTime(absl::Now() + absl::Seconds(2)));
  };
  const auto reads = [&](uint64_t TlsFiles::Reading::*count, uint64_t expected) {
    for (int i = 0; i < 100 && identity->tls_files().*count < expected; ++i) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    CHECK(identity->tls_files().*count == expected);
  };
  CHECK(answers());
  const Certificate two = secured.authority.Issue(of_client);
  secured.folder.Write("client.key", two.key);  // of another certificate
  reads(&TlsFiles::Reading::reloads_failed, 1);
  secured.folder.Write("ca.pem", "spoilt");
  reads(&TlsFiles::Reading::reloads_failed, 2);
  absl::SleepFor(absl::Seconds(1.2));  // gRPC has looked at what it is given
  CHECK(answers());
  secured.folder.Write("client.pem", two.certificate);
  secured.folder.Write("ca.pem", secured.authority.certificate());
  reads(&TlsFiles::Reading::reloads, 1);
  CHECK(answers());
}

TEST_CASE("files of TLS tell when a chain ends, and how often they changed, well or not") {
  const Authority authority;
  const test::TempFolder folder;
  const auto install = [&](const Certificate& certificate, const std::string& chain) {
    folder.Write("cert", certificate.certificate + chain);
    folder.Write("key", certificate.key);
  };
  const absl::Time begin = absl::Now();
  const auto ends = [&](const TlsFiles::Reading& reading, absl::Duration after) {
    REQUIRE(reading.expiry.has_value());
    CHECK(absl::AbsDuration(*reading.expiry - begin - after) < absl::Minutes(1));
  };
  install(authority.Issue({.until = absl::Hours(5)}), "");
  const auto files = TlsFiles::Open(ServerTls{.cert = folder / "cert",
                                              .key = folder / "key",
                                              .reload_period = absl::Hours(1)})
                         .value();
  ends(files->reading(), absl::Hours(5));
  CHECK(files->Reload().reloads == 0);
  // The chain ends with the first of its certificates.
  install(authority.Issue({.until = absl::Hours(5)}),
          authority.Issue({.until = absl::Hours(2)}).certificate);
  ends(files->Reload(), absl::Hours(2));
  CHECK(files->Reload().reloads == 1);
  folder.Write("key", "spoilt");
  ends(files->Reload(), absl::Hours(2));  // the server goes on with what it has
  std::filesystem::remove(folder / "cert");
  CHECK(files->Reload().reloads_failed == 2);
  CHECK(files->Reload().reloads_failed == 2);
  install(authority.Issue({.until = absl::Hours(9)}), "");
  ends(files->Reload(), absl::Hours(9));
  CHECK(files->Reload().reloads == 2);
  // One that has ended takes the place of none that has not.
  install(authority.Issue({.until = -absl::Hours(1)}), "");
  CHECK(files->Reload().reloads_failed == 3);
  ends(files->reading(), absl::Hours(9));
  CHECK(!TlsFiles::Open(ServerTls()).value()->reading().expiry.has_value());
}

TEST_CASE("a certificate that has ended is told of, once") {
  const Authority authority;
  const test::TempFolder folder;
  const Certificate ended = authority.Issue({.from = -absl::Hours(2), .until = -absl::Hours(1)});
  folder.Write("cert", ended.certificate);
  folder.Write("key", ended.key);
  {
    const test::StderrInto file(folder / "stderr");
    const auto files = TlsFiles::Open(
        ServerTls{.cert = folder / "cert", .key = folder / "key", .reload_period = absl::Hours(1)});
    REQUIRE(files.ok());
    CHECK_FALSE((*files)->Reload().bad);
  }
  std::stringstream told;
  told << std::ifstream(folder / "stderr").rdbuf();
  const std::string words = "the TLS certificate has ended";
  CHECK(absl::StrContains(told.str(), words));
  CHECK(told.str().find(words) == told.str().rfind(words));
}

TEST_CASE("files of TLS that are missing or spoilt are refused by name") {
  const Quiet quiet;
  const test::TempFolder folder;
  const Authority authority;
  const Certificate one = authority.Issue(), two = authority.Issue();
  const std::string cert = folder.Write("cert", one.certificate);
  const std::string key = folder.Write("key", one.key);
  const std::string other_key = folder.Write("other", two.key);
  const std::string rubbish = folder.Write("rubbish", "-----BEGIN");
  const auto refused = [](const absl::Status& status, absl::string_view begin) {
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StartsWith(status.message(), begin));
  };
  const auto server = [](const ServerTls& tls) { return TlsFiles::Open(tls).status(); };
  CHECK(server({}).ok());
  CHECK(server({.cert = cert, .key = key, .client_ca = cert}).ok());
  refused(server({.cert = cert}), "tls_key: none");
  refused(server({.key = key}), "tls_cert: none");
  refused(server({.client_ca = cert}), "tls_cert: none");
  refused(server({.cert = folder / "no", .key = key}), "tls_cert: file");
  refused(server({.cert = rubbish, .key = key}), "tls_cert: file");
  refused(server({.cert = cert, .key = rubbish}), "tls_key: file");
  refused(server({.cert = cert, .key = other_key}), "tls_key: file");
  refused(server({.cert = cert, .key = key, .client_ca = rubbish}), "tls_client_ca: file");
  const auto client = [](const ClientTls& tls) { return TlsFiles::Open(tls).status(); };
  CHECK(client({}).ok());
  refused(client({.cert = cert, .key = key}), "tls_ca: none");
  refused(client({.ca = rubbish}), "tls_ca: file");
  refused(client({.ca = cert, .cert = cert}), "tls_key: none");
  // gRPC takes what comes before a spoilt certificate of a bundle, and says nothing.
  const std::string spoilt = absl::StrReplaceAll(two.certificate, {{"M", "*"}});
  const std::string halved = two.certificate.substr(0, two.certificate.size() / 2);
  for (const std::string& second : {spoilt, halved}) {
    const std::string bundle = folder.Write("bundle", absl::StrCat(one.certificate, second));
    const std::string why = absl::StrCat("file ", QuotedEnd(bundle),
                                         "; expected certificates in PEM, and number 2 is none");
    refused(client({.ca = bundle}), absl::StrCat("tls_ca: ", why));
    refused(server({.cert = cert, .key = key, .client_ca = bundle}),
            absl::StrCat("tls_client_ca: ", why));
    refused(server({.cert = bundle, .key = key}), absl::StrCat("tls_cert: ", why));
  }
  const std::string commented =
      absl::StrCat("# one\n", one.certificate, "# two\n", two.certificate, "# no more\n");
  CHECK(client({.ca = folder.Write("commented", commented)}).ok());
  refused(Client::Connect({.endpoint = "127.0.0.1:1", .tls_ca = folder / "no"}).status(),
          "tls_ca: file");
}

}  // namespace
}  // namespace annulus
