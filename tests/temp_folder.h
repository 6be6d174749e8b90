// A folder of a test's own, gone afterwards.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/write_file.h"

namespace annulus::test {

class TempFolder {
 public:
  TempFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "annulus-test-XXXXXX").string();
    ANNULUS_CHECK(mkdtemp(path.data()) != nullptr);
    path_ = path;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

  // The file's path.
  std::string Write(absl::string_view name, absl::string_view text) const {
    ANNULUS_CHECK(WriteFile(*this / name, {text}).ok());
    return *this / name;
  }

 private:
  std::string path_;
};

}  // namespace annulus::test
