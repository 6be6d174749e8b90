// Signed tokens: the vectors of the RFCs, and everything that makes a token one that is not ours.
#include "runtime/identity/jwt.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/identity/encoding.h"
#include "tests/catch.h"
#include "tests/identity/signer.h"

namespace annulus {
namespace {

using test::JwksOf;
using test::Signer;
using test::ToBase64Url;

// RFC 7515, A.2.
constexpr char kRfcRsaKey[] =
    R"({"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-)"
    R"(4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OM)"
    R"(g0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3q)"
    R"(Co5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW)"
    R"(yuXpoQ","e":"AQAB"})";
constexpr char kRfcRsaToken[] =
    "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv"
    "bS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm"
    "4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6"
    "xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqv"
    "hJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
// RFC 7515, A.3.
constexpr char kRfcEcKey[] =
    R"({"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",)"
    R"("y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})";
constexpr char kRfcEcToken[] =
    "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv"
    "bS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxf"
    "KTUJqPP3-Kg6NU1Q";
// RFC 8037, A.2 and A.4.
constexpr char kRfcEdKey[] =
    R"({"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})";
constexpr char kRfcEdToken[] =
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg"
    "3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

struct Vector {
  const char* algorithm;
  const char* key;
  const char* token;
};
constexpr Vector kVectors[] = {{"RS256", kRfcRsaKey, kRfcRsaToken},
                               {"ES256", kRfcEcKey, kRfcEcToken},
                               {"EdDSA", kRfcEdKey, kRfcEdToken}};

KeySet Keys(absl::string_view keys) {
  auto parsed = KeySet::Parse(JwksOf(keys));
  INFO(parsed.status());
  REQUIRE(parsed.ok());
  return *std::move(parsed);
}

TEST_CASE("the vectors of RFC 7515 and RFC 8037 verify, and no byte of them may change") {
  for (const Vector& vector : kVectors) {
    INFO(vector.algorithm);
    const KeySet keys = Keys(vector.key);
    const absl::string_view token = vector.token;
    const size_t dot = token.rfind('.');
    const absl::string_view text = token.substr(0, dot);
    const std::string signature = FromBase64Url(token.substr(dot + 1)).value();
    CHECK(keys.Signed(vector.algorithm, absl::nullopt, text, signature));
    CHECK_FALSE(keys.Signed(vector.algorithm, "a", text, signature));
    for (const Vector& other : kVectors) {
      if (other.algorithm == vector.algorithm) continue;
      CHECK_FALSE(keys.Signed(other.algorithm, absl::nullopt, text, signature));
    }
    for (size_t i = 0; i < signature.size(); i += 7) {
      std::string spoilt = signature;
      spoilt[i] = static_cast<char>(spoilt[i] ^ 1);
      CHECK_FALSE(keys.Signed(vector.algorithm, absl::nullopt, text, spoilt));
    }
    for (size_t size = 0; size < signature.size(); size += 13) {
      CHECK_FALSE(keys.Signed(vector.algorithm, absl::nullopt, text, signature.substr(0, size)));
    }
    CHECK_FALSE(keys.Signed(vector.algorithm, absl::nullopt, text, signature + '\0'));
    CHECK_FALSE(keys.Signed(vector.algorithm, absl::nullopt, absl::StrCat(text, "A"), signature));
  }
}

// What Kubernetes puts into a projected service account token.
constexpr char kClaims[] =
    R"({"aud":["annulus"],"exp":2000000600,"iat":2000000000,"nbf":2000000000,)"
    R"("iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:lab:trainer",)"
    R"("kubernetes.io":{"namespace":"lab","serviceaccount":{"name":"trainer"}}})";

JwtRules Rules() {
  JwtRules rules;
  rules.issuer = "https://kubernetes.default.svc";
  rules.audience = "annulus";
  rules.tenant = {.claim = "/kubernetes.io/namespace"};
  rules.role = {.claim = "sub",
                .map = {{"system:serviceaccount:annulus:worker", "worker"}},
                .otherwise = "tenant"};
  return rules;
}

const absl::Time kNow = absl::FromUnixSeconds(2'000'000'300);

std::string With(absl::string_view from, absl::string_view to) {
  const std::string claims = absl::StrReplaceAll(kClaims, {{from, to}});
  REQUIRE(claims != kClaims);
  return claims;
}

TEST_CASE("a projected service account token tells its tenant and role") {
  for (const Signer& signer : {Signer::Rs256(), Signer::Es256(), Signer::EdDsa()}) {
    INFO(signer.algorithm());
    const KeySet keys = Keys(signer.Jwk(R"("kid":"a","use":"sig",)"));
    const auto caller = VerifyJwt(signer.SignAs("a", kClaims), keys, Rules(), kNow);
    INFO(caller.status());
    REQUIRE(caller.ok());
    CHECK(caller->name == "system:serviceaccount:lab:trainer");
    CHECK(caller->tenant == "lab");
    CHECK(caller->role == Role::kTenant);
    CHECK(caller->expires == absl::FromUnixSeconds(2'000'000'600) + kJwtLeeway);
    const std::string worker = With("lab:trainer", "annulus:worker");
    CHECK(VerifyJwt(signer.SignAs("a", worker), keys, Rules(), kNow)->role == Role::kWorker);
  }
}

TEST_CASE("a token is refused for each thing that is not as it must be") {
  const Signer signer = Signer::Es256();
  const KeySet keys = Keys(signer.Jwk(R"("kid":"a",)"));
  const auto why = [&](const std::string& token) {
    const auto caller = VerifyJwt(token, keys, Rules(), kNow);
    CHECK(absl::IsInvalidArgument(caller.status()));
    return std::string(caller.status().message());
  };
  const auto claims = [&](absl::string_view from, absl::string_view to) {
    return why(signer.SignAs("a", With(from, to)));
  };
  CHECK(VerifyJwt(signer.SignAs("a", kClaims), keys, Rules(), kNow).ok());
  CHECK(absl::StartsWith(claims(R"(["annulus"])", R"(["other","annulus2"])"), "aud: "));
  CHECK(absl::StartsWith(claims(R"(["annulus"])", R"("other")"), "aud: "));
  CHECK(absl::StartsWith(claims(R"("aud":["annulus"],)", ""), "aud: none"));
  CHECK(absl::StartsWith(claims("default.svc", "default.svc.evil"), "iss: "));
  CHECK(absl::StartsWith(claims("2000000600", "2000000294"), "exp: "));
  CHECK(absl::StartsWith(claims("2000000600", "\"2000000600\""), "exp: "));
  CHECK(absl::StartsWith(claims("2000000600", "1e300"), "exp: "));
  CHECK(absl::StartsWith(claims("2000000600", "-1"), "exp: "));
  CHECK(absl::StartsWith(claims(R"("exp":2000000600,)", ""), "exp: none"));
  CHECK(absl::StartsWith(claims(R"("nbf":2000000000)", R"("nbf":2000000400)"), "nbf: "));
  CHECK(
      absl::StartsWith(claims(R"("namespace":"lab")", R"("namespace":7)"), "tenant by the claim"));
  CHECK(absl::StartsWith(claims(R"("namespace":"lab")", R"("namespace":"")"), "tenant: \"\""));
  CHECK(absl::StartsWith(
      claims(R"("namespace":"lab")", absl::StrCat(R"("namespace":")", std::string(129, 'x'), "\"")),
      "tenant: \"xxx"));
  CHECK(absl::StartsWith(claims(R"("iat":)", R"("exp":9,"iat":)"),
                         "claims: name \"exp\" comes twice"));
  CHECK(absl::StartsWith(why(signer.SignAs("b", kClaims)), "signature: "));
  CHECK(absl::StartsWith(why(signer.Sign(R"({"alg":"ES256"})", kClaims)), "signature: "));
  CHECK(absl::StartsWith(why(signer.Sign(R"({"alg":"RS256","kid":"a"})", kClaims)), "signature: "));
  CHECK(absl::StartsWith(why(signer.Sign(R"({"kid":"a"})", kClaims)), "alg: none"));
  CHECK(absl::StartsWith(why(signer.Sign(R"({"alg":"ES256","kid":"a","crit":["b64"]})", kClaims)),
                         "crit: "));
  CHECK(absl::StartsWith(why(Signer::Es256().SignAs("a", kClaims)), "signature: "));
  const std::string good = signer.SignAs("a", kClaims);
  CHECK(absl::StartsWith(why(good + "="), "signature: "));
  CHECK(absl::StartsWith(why(good + ".x"), "token: 4 parts"));
  CHECK(absl::StartsWith(why(""), "token: 1 parts"));
  CHECK(absl::StartsWith(why(".."), "header: "));
}

TEST_CASE("alg none and HS256 with the public key are refused") {
  const Signer signer = Signer::Rs256();
  const std::string jwk = signer.Jwk();
  const KeySet keys = Keys(jwk);
  const std::string none =
      absl::StrCat(ToBase64Url(R"({"alg":"none"})"), ".", ToBase64Url(kClaims), ".");
  CHECK_FALSE(VerifyJwt(none, keys, Rules(), kNow).ok());

  for (const char* alg : {"HS256", "RS256"}) {
    const std::string text = absl::StrCat(ToBase64Url(absl::StrCat(R"({"alg":")", alg, R"("})")),
                                          ".", ToBase64Url(kClaims));
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    REQUIRE(HMAC(EVP_sha256(), jwk.data(), static_cast<int>(jwk.size()),
                 reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest,
                 &size) != nullptr);
    const std::string signature(reinterpret_cast<const char*>(digest), size);
    const std::string token = absl::StrCat(text, ".", ToBase64Url(signature));
    CHECK_FALSE(VerifyJwt(token, keys, Rules(), kNow).ok());
  }
}

TEST_CASE("clocks may differ by the leeway") {
  const Signer signer = Signer::EdDsa();
  const KeySet keys = Keys(signer.Jwk());
  const std::string token = signer.Sign(R"({"alg":"EdDSA"})", kClaims);
  const absl::Time from = absl::FromUnixSeconds(2'000'000'000) - kJwtLeeway;
  const absl::Time until = absl::FromUnixSeconds(2'000'000'600) + kJwtLeeway;
  CHECK_FALSE(VerifyJwt(token, keys, Rules(), from - absl::Milliseconds(1)).ok());
  CHECK(VerifyJwt(token, keys, Rules(), from).ok());
  CHECK(VerifyJwt(token, keys, Rules(), until - absl::Milliseconds(1)).ok());
  CHECK_FALSE(VerifyJwt(token, keys, Rules(), until).ok());
}

TEST_CASE("of a key set what cannot sign for us is left out, and what is spoilt is named") {
  const std::string good = Signer::EdDsa().Jwk(R"("kid":"a",)");
  const char* const others[] = {R"({"kty":"oct","k":"c2VjcmV0"})",
                                R"({"kty":"EC","crv":"P-384","x":"AA","y":"AA"})",
                                R"({"kty":"RSA","alg":"RS512","n":"AA","e":"AQAB"})",
                                R"({"kty":"OKP","crv":"X25519","x":"AA"})",
                                R"({"kty":"RSA","use":"enc","n":"AA","e":"AQAB"})"};
  for (const char* other : others) {
    CHECK(Keys(absl::StrCat(other, ",", good)).size() == 1);
    CHECK_FALSE(KeySet::Parse(JwksOf(other)).ok());
  }
  const auto why = [](const std::string& keys) {
    return std::string(KeySet::Parse(keys).status().message());
  };
  CHECK(absl::StartsWith(why(JwksOf(good + "," + good)), "keys[1].kid: \"a\""));
  CHECK(absl::StartsWith(why(JwksOf(Signer::Rs256(1024).Jwk())), "keys[0].n: "));
  CHECK(absl::StartsWith(why(JwksOf(R"({"kty":"OKP","crv":"Ed25519","x":"A"})")), "keys[0].x: "));
  CHECK(absl::StartsWith(why(JwksOf(absl::StrReplaceAll(kRfcEcKey, {{"x_FEzRu9", "x_FEzRu8"}}))),
                         "keys[0].x: "));
  CHECK(absl::StartsWith(why(JwksOf("7")), "keys[0]: a number"));
  CHECK(absl::StartsWith(why(JwksOf(R"({"kty":7})")), "keys[0].kty: a number"));
  for (const char* text : {"", "[]", "{}", R"({"keys":{}})", "{\"keys\":[]}", "\xff"}) {
    CHECK(absl::StartsWith(why(text), "keys: "));
  }
  // A private key in the set is not told, whatever is wrong with it.
  const std::string d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
  for (const char* key :
       {R"({"d":"$"})", R"({"kty":"","d":"$"})", R"({"kty":["$"]})", R"({"kty":"RSA","n":"$+"})",
        R"({"kty":"OKP","crv":"Ed25519","x":"$="})", R"("$")", R"(["$"])",
        R"({"kty":"OKP","crv":"Ed25519","alg":{"d":"$"}})", R"({"$":1,"$":2})"}) {
    const std::string told = why(JwksOf(absl::StrReplaceAll(key, {{"$", d}})));
    INFO(told);
    CHECK(absl::StartsWith(told, "keys"));
    CHECK_FALSE(absl::StrContains(told, d.substr(0, 8)));
  }
}

}  // namespace
}  // namespace annulus
