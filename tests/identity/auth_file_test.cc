// The file of --auth, and who is known by it while it changes.
#include "runtime/identity/auth_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "runtime/identity/authenticator.h"
#include "tests/catch.h"
#include "tests/identity/signer.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

namespace fs = std::filesystem;
using test::Sha256Hex;
using test::TempFolder;

std::string TokenEntry(absl::string_view token, absl::string_view tenant, absl::string_view role) {
  return absl::StrCat(R"({"name":"n-)", tenant, R"(","sha256":")", Sha256Hex(token),
                      R"(","tenant":")", tenant, R"(","role":")", role, R"("})");
}

std::string Tokens(absl::string_view entries) {
  return absl::StrCat(R"({"tokens":[)", entries, "]}");
}

TEST_CASE("an auth file with everything is read as it is written") {
  const auto file =
      ParseAuthFile(absl::StrCat(R"({"tokens":[)", TokenEntry("t", "lab", "tenant"), R"(],
        "certificates":[{"name":"w1.example","role":"worker"}],
        "jwt":{"jwks":"keys.json","issuer":"https://i","audience":"annulus",
               "claims":{"tenant":"/kubernetes.io/namespace",
                         "role":{"claim":"sub","map":{"x":"reader"},"default":"tenant"}}},
        "quotas":{"default":{"contexts_max":7,"streams_max":2},"lab":{"contexts_max":9}}})"));
  INFO(file.status());
  REQUIRE(file.ok());
  REQUIRE(file->tokens.size() == 1);
  CHECK(SameDigest(file->tokens[0].digest, Sha256("t")));
  CHECK(file->tokens[0].caller.tenant == "lab");
  CHECK(file->tokens[0].caller.role == Role::kTenant);
  REQUIRE(file->certificates.size() == 1);
  CHECK(file->certificates[0].role == Role::kWorker);
  REQUIRE(file->jwt.has_value());
  CHECK(file->jwt->jwks == "keys.json");
  CHECK(file->jwt->rules.tenant.claim == "/kubernetes.io/namespace");
  CHECK(file->jwt->rules.role.map.at("x") == "reader");
  CHECK(file->quotas.Of("lab").contexts_max == 9);
  CHECK(file->quotas.Of("lab").streams_max == 2);
  CHECK(file->quotas.Of("other").contexts_max == 7);
  CHECK(file->quotas.Of("other").kv_bytes_max == kNoQuota);
}

TEST_CASE("a spoilt auth file is refused by the name of its field") {
  const auto why = [](const std::string& text) {
    const auto file = ParseAuthFile(text);
    CHECK(absl::IsInvalidArgument(file.status()));
    return std::string(file.status().message());
  };
  const std::string good = TokenEntry("t", "lab", "tenant");
  const std::string jwt = R"({"jwt":{"jwks":"k","issuer":"i","audience":"a","claims":)";
  const std::pair<std::string, const char*> cases[] = {
      {"", "content: the end at line 1, column 1; expected JSON"},
      {"{\"tokens\": [\n  {]}", "content: \"]\" at line 2, column 4; expected JSON"},
      {"{\"tokens\": [],\n \n}\n", "content: \"}\" at line 3, column 1; expected JSON"},
      {"{\"tokens\": [\n", "content: the end at line 2, column 1; expected JSON"},
      {"{} x", "content: \"x\" at line 1, column 4; expected JSON"},
      {"{\"quotas\": 1e999}", "content: a number beyond what a float64 holds"},
      {"[]", "content: a list of 0; expected a JSON object"},
      {"{}", "content: nobody is known"},
      {R"({"tokens":[]})", "content: nobody is known"},
      {R"({"token":[]})", "field \"token\" of the file: unknown"},
      {R"({"tokens":{}})", "tokens: an object of 0 fields"},
      {R"({"tokens":[7]})", "tokens[0]: a number"},
      {Tokens(good + "," + good), "tokens[1].sha256: that of another entry"},
      {Tokens(TokenEntry("t", "lab", "king")), "tokens[0].role: \"king\""},
      {Tokens(TokenEntry("t", "", "tenant")), "tokens[0].tenant: none"},
      {Tokens(TokenEntry("t", std::string(129, 'x'), "tenant")), "tokens[0].tenant: "},
      {Tokens(R"({"name":"n","role":"admin"})"), "tokens[0].sha256: none"},
      {Tokens(R"({"name":"n","role":"admin","sha256":"ab"})"),
       "tokens[0].sha256: a text of 2 bytes"},
      {Tokens(R"({"name":"n","role":"admin","secret":"ab","sha256":")" + Sha256Hex("x") + "\"}"),
       "field \"secret\" of tokens[0]: unknown"},
      {R"({"tokens":[],"tokens":[]})", "content: name \"tokens\" comes twice"},
      {R"({"certificates":[{"name":"a","role":"admin"},{"name":"a","role":"admin"}]})",
       "certificates[1].name: \"a\""},
      {R"({"jwt":{"jwks":"k","issuer":"i"}})", "jwt.audience: none"},
      {R"({"jwt":{"jwks":"","issuer":"i","audience":"a"}})", "jwt.jwks: a text of 0 bytes"},
      {jwt + R"({"tenant":"/~2"}}})", "jwt.claims.tenant: "},
      {jwt + R"({"role":{"default":"king"}}}})", "jwt.claims.role: \"king\""},
      {jwt + R"({"role":{"map":{}}}}})", "jwt.claims.role.claim: none"},
      {jwt + R"({"name":"x"}}})", "field \"name\" of jwt.claims: unknown"},
      {R"({"quotas":{"lab":{"contexts":1}}})", "field \"contexts\" of quotas[\"lab\"]: unknown"},
      {R"({"quotas":{"lab":{"contexts_max":-1}}})", "quotas[\"lab\"].contexts_max: -1"},
      {R"({"quotas":7})", "quotas: a number"},
  };
  for (const auto& [text, begin] : cases) {
    INFO(text << "\n" << why(text));
    CHECK(absl::StartsWith(why(text), begin));
  }
}

TEST_CASE("what is put into a wrong place of an auth file may be a secret, and is not told") {
  const std::string secret = "f3b1c6d20a9e4b7d8c5f6a7b8c9d0e1f";
  const std::string text = absl::StrCat("\"", secret, "\"");
  const std::string entry = absl::StrCat("{\"", secret, "\":\"admin\"}");
  const auto token = [](absl::string_view sha256, absl::string_view role) {
    return Tokens(
        absl::StrCat(R"({"name":"n","sha256":)", sha256, R"(,"role":)", role, R"(,"tenant":"t"})"));
  };
  const std::string digest = absl::StrCat("\"", Sha256Hex("x"), "\"");
  for (const std::string& file : {
           text,
           entry,
           absl::StrCat("[", text, "]"),
           absl::StrCat("{", text, ":1,", text, ":2}"),
           absl::StrCat(R"({"tokens":)", text, "}"),
           absl::StrCat(R"({"tokens":)", entry, "}"),
           absl::StrCat(R"({"certificates":)", text, "}"),
           absl::StrCat(R"({"jwt":)", entry, "}"),
           absl::StrCat(R"({"jwt":{"jwks":[)", text, "]}}"),
           absl::StrCat(R"({"quotas":)", text, "}"),
           absl::StrCat(R"({"quotas":{"t":{"contexts_max":)", text, "}}}"),
           Tokens(text),
           Tokens(entry),
           token(text, "\"admin\""),
           token(entry, "\"admin\""),
           token(digest, text),
           token(digest, entry),
       }) {
    INFO(file);
    const absl::Status why = ParseAuthFile(file).status();
    INFO(why);
    CHECK(absl::IsInvalidArgument(why));
    CHECK_FALSE(absl::StrContains(why.message(), secret));
    CHECK_FALSE(absl::StrContains(why.message(), secret.substr(0, 8)));
  }
}

std::unique_ptr<Authenticator> Open(const std::string& path) {
  auto opened = Authenticator::Open(path, absl::ZeroDuration());
  INFO(opened.status());
  REQUIRE(opened.ok());
  return *std::move(opened);
}

TEST_CASE("known are the tokens of the file as it is now, and a spoilt one changes nothing") {
  SetLogLevel(LogLevel::kOff);
  const TempFolder folder;
  const std::string path = folder / "auth.json";
  CHECK(absl::IsInvalidArgument(Authenticator::Open(path, absl::ZeroDuration()).status()));
  folder.Write("auth.json", Tokens(TokenEntry("old", "a", "tenant")));
  const auto authenticator = Open(path);
  const auto tenant = [&](absl::string_view token) {
    const auto caller = authenticator->OfToken(token, absl::Now());
    if (!caller.ok()) CHECK(absl::IsUnauthenticated(caller.status()));
    return caller.ok() ? caller->tenant : "(nobody)";
  };
  CHECK(tenant("old") == "a");
  CHECK(tenant("new") == "(nobody)");
  CHECK(tenant("") == "(nobody)");
  CHECK(tenant(std::string(kTokenBytesMax + 1, 'x')) == "(nobody)");
  CHECK(tenant("a.b.c") == "(nobody)");

  folder.Write("auth.json", Tokens(TokenEntry("new", "b", "tenant")));
  CHECK(authenticator->Reload().ok());
  CHECK(tenant("old") == "(nobody)");
  CHECK(tenant("new") == "b");
  CHECK(authenticator->counts().reloads == 1);
  CHECK(authenticator->Reload().ok());
  CHECK(authenticator->counts().reloads == 1);

  folder.Write("auth.json", "{");
  for (int i = 0; i < 3; ++i) CHECK(absl::IsInvalidArgument(authenticator->Reload()));
  CHECK(authenticator->counts().reloads_failed == 1);
  CHECK(tenant("new") == "b");
  fs::remove(path);
  CHECK_FALSE(authenticator->Reload().ok());
  CHECK(tenant("new") == "b");
  CHECK(authenticator->counts().reloads_failed == 2);
  CHECK(authenticator->counts().bad);
  // What was there before is good again, though nothing is read anew.
  folder.Write("auth.json", Tokens(TokenEntry("new", "b", "tenant")));
  CHECK(authenticator->Reload().ok());
  CHECK(authenticator->counts().reloads == 1);
  CHECK_FALSE(authenticator->counts().bad);

  // Where nobody is asked for a certificate, a file of these alone would lock everybody out.
  const std::string alone =
      folder.Write("alone.json",
                   R"({"certificates":[{"name":"a","role":"admin"},{"name":"b","role":"admin"}]})");
  CHECK(Authenticator::Open(alone, absl::ZeroDuration()).ok());
  const absl::Status locked = Authenticator::Open(alone, absl::ZeroDuration(), /*audit=*/nullptr,
                                                  Authenticator::Certificates::kNotAsked)
                                  .status();
  CHECK(absl::IsInvalidArgument(locked));
  CHECK(absl::EndsWith(locked.message(),
                       "certificates: 2, and callers are asked for none; expected tokens or jwt, "
                       "or that callers must show certificates (--tls-client-ca)"));

  folder.Write("auth.json", Tokens(TokenEntry("third", "c", "admin")));
  CHECK(authenticator->Reload().ok());
  CHECK(tenant("third") == "c");
  SetLogLevel(LogLevel::kInfo);
}

TEST_CASE("keys are read again when Kubernetes turns its link to another folder") {
  SetLogLevel(LogLevel::kOff);
  const TempFolder folder;
  const test::Signer first = test::Signer::EdDsa(), second = test::Signer::Es256();
  const std::string auth = R"({"jwt":{"jwks":"jwks.json","issuer":"i","audience":"a"}})";
  for (const auto& [name, signer] : {std::pair("1", &first), {"2", &second}}) {
    REQUIRE(mkdir((folder / name).c_str(), 0700) == 0);
    folder.Write(absl::StrCat(name, "/auth.json"), auth);
    folder.Write(absl::StrCat(name, "/jwks.json"), test::JwksOf(signer->Jwk()));
  }
  REQUIRE(symlink("1", (folder / "..data").c_str()) == 0);
  const auto authenticator = Open(folder / "..data/auth.json");
  const std::string claims = absl::StrCat(R"({"iss":"i","aud":"a","sub":"s","exp":)",
                                          absl::ToUnixSeconds(absl::Now()) + 600, "}");
  const std::string old_token = first.Sign(R"({"alg":"EdDSA"})", claims);
  const std::string new_token = second.Sign(R"({"alg":"ES256"})", claims);
  for (int i = 0; i < 2; ++i) CHECK(authenticator->OfToken(old_token, absl::Now()).ok());
  // A token that was verified is so until it expires only.
  const absl::Time late = absl::Now() + absl::Hours(1);
  CHECK(absl::IsUnauthenticated(authenticator->OfToken(old_token, late).status()));
  CHECK_FALSE(authenticator->OfToken(new_token, absl::Now()).ok());
  REQUIRE(symlink("2", (folder / "..new").c_str()) == 0);
  fs::rename(folder / "..new", folder / "..data");
  CHECK(authenticator->Reload().ok());
  CHECK_FALSE(authenticator->OfToken(old_token, absl::Now()).ok());
  const auto caller = authenticator->OfToken(new_token, absl::Now());
  REQUIRE(caller.ok());
  CHECK(caller->tenant == "s");
  CHECK(caller->role == Role::kTenant);
  SetLogLevel(LogLevel::kInfo);
}

TEST_CASE("the files are looked at by themselves") {
  SetLogLevel(LogLevel::kOff);
  const TempFolder folder;
  folder.Write("auth.json", Tokens(TokenEntry("old", "a", "tenant")));
  const auto authenticator =
      Authenticator::Open(folder / "auth.json", absl::Milliseconds(5)).value();
  folder.Write("auth.json", Tokens(TokenEntry("new", "b", "tenant")));
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  while (!authenticator->OfToken("new", absl::Now()).ok() && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  CHECK(authenticator->OfToken("new", absl::Now()).ok());
  SetLogLevel(LogLevel::kInfo);
}

TEST_CASE("base64url and hex have one spelling") {
  CHECK(FromBase64Url("") == "");
  CHECK(FromBase64Url("_-8") == "\xff\xef");
  for (const char* bad : {"A", "AB", "AAB", "AA==", "A+==", "A/", "A A", "AAAAA"}) {
    INFO(bad);
    CHECK_FALSE(FromBase64Url(bad).has_value());
  }
  CHECK(DigestFromHex(Sha256Hex("abc")) == Sha256("abc"));
  CHECK_FALSE(DigestFromHex(std::string(63, 'a')).has_value());
  CHECK_FALSE(DigestFromHex(std::string(64, 'g')).has_value());
}

TEST_CASE("roles may what the table says") {
  CHECK(RolesThatMay(Access::kRead) == "admin, tenant, reader");
  CHECK(RolesThatMay(Access::kWrite) == "admin, tenant");
  CHECK(RolesThatMay(Access::kJoin) == "admin, worker");
}

TEST_CASE("callers know their tenant's contexts, admins all, and nobody's are the admins'") {
  const Caller admin{"a", "lab", Role::kAdmin};
  const Caller tenant{"t", "lab", Role::kTenant};
  const Caller reader{"r", "lab", Role::kReader};
  const Caller probe{"p", "", Role::kReader};
  for (const char* owner : {"lab", "other", ""}) {
    INFO(owner);
    CHECK(MayKnow(admin, owner));
    CHECK(MayKnow(Caller(), owner));  // where nobody is asked who calls
    CHECK(MayKnow(tenant, owner) == (std::string(owner) == "lab"));
    CHECK(MayKnow(reader, owner) == (std::string(owner) == "lab"));
    CHECK_FALSE(MayKnow(probe, owner));
  }
}

TEST_CASE("callers bring their tenant's quotas, as they are in the file now") {
  TempFolder folder;
  const auto write = [&](int lab_max) {
    folder.Write("auth.json", absl::StrCat(R"({"tokens":[)", TokenEntry("t", "lab", "tenant"), ",",
                                           TokenEntry("u", "other", "tenant"), "],",
                                           R"("quotas":{"default":{"contexts_max":7},)",
                                           R"("lab":{"contexts_max":)", lab_max, "}}}"));
  };
  write(1);
  const auto authenticator =
      Authenticator::Open(folder / "auth.json", absl::ZeroDuration()).value();
  CHECK(authenticator->OfToken("t", absl::Now())->quotas.contexts_max == 1);
  CHECK(authenticator->OfToken("u", absl::Now())->quotas.contexts_max == 7);
  CHECK(authenticator->OfToken("u", absl::Now())->quotas.kv_bytes_max == kNoQuota);
  write(22);
  CHECK(authenticator->Reload().ok());
  CHECK(authenticator->OfToken("t", absl::Now())->quotas.contexts_max == 22);
}

}  // namespace
}  // namespace annulus
