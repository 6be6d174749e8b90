#include "base/utf8.h"

#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("utf8: what RFC 3629 calls well-formed, and nothing else") {
  for (const absl::string_view text :
       {"", "plain", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xe2\x86\x92z"}) {
    CAPTURE(text);
    CHECK(IsUtf8(text));
  }
  for (const absl::string_view text :
       {"\xff\xfe", "\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc2", "\xe2\x86", "a\xe2(z",
        "\xf0\x90\x80z"}) {
    CAPTURE(text);
    CHECK_FALSE(IsUtf8(text));
  }
}

}  // namespace
}  // namespace annulus
