#include "base/utf8.h"

#include <cstddef>

namespace annulus {
namespace {

unsigned char ByteAt(absl::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

// Of a character that begins with this byte; 0: none does.
size_t BytesOf(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return 2;
  if (first >= 0xe0 && first <= 0xef) return 3;
  return first >= 0xf0 && first <= 0xf4 ? 4 : 0;
}

// Whether the second byte makes no character longer than it must be, no surrogate, and none
// beyond U+10FFFF.
bool IsSecond(unsigned char first, unsigned char second) {
  switch (first) {
    case 0xe0:
      return second >= 0xa0;
    case 0xed:
      return second <= 0x9f;
    case 0xf0:
      return second >= 0x90;
    case 0xf4:
      return second <= 0x8f;
    default:
      return true;
  }
}

}  // namespace

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const size_t bytes = BytesOf(ByteAt(text, 0));
    if (bytes == 0 || bytes > text.size()) return false;
    for (size_t i = 1; i < bytes; ++i) {
      if ((ByteAt(text, i) & 0xc0) != 0x80) return false;
    }
    if (bytes > 1 && !IsSecond(ByteAt(text, 0), ByteAt(text, 1))) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

}  // namespace annulus
