// What cannot be written is known before work, and what is written is whole.
#include "base/write_file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "base/quoted.h"
#include "tests/catch.h"

namespace annulus {
namespace {

namespace fs = std::filesystem;

struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "annulus-write-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  size_t Files() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }

  fs::path path;
};

void Put(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}
std::string Get(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void CheckRefused(const absl::Status& status, const std::string& part) {
  INFO(status.message() << " should name " << part);
  CHECK(absl::IsInvalidArgument(status));
  CHECK(absl::StrContains(status.message(), part));
}

TEST_CASE("a path that no file can be written at is refused, by the system's word") {
  const Folder folder;
  CHECK(CheckWritable(folder / "new").ok());
  Put(folder / "old", "x");
  CHECK(CheckWritable(folder / "old").ok());
  CheckRefused(CheckWritable(folder / "no/file"), "No such file or directory");
  CheckRefused(CheckWritable(folder / "old/file"), "Not a directory");
  CheckRefused(CheckWritable(folder.path.string()), "not a regular file");
  CheckRefused(CheckWritable(folder / "folder/"), "no file name");
  CheckRefused(CheckWritable(""), "no file name");
  CheckRefused(CheckWritable("/dev/full"), "not a regular file");
  CheckRefused(CheckWritable(std::string("a\0b", 3)), "NUL");
  CheckRefused(CheckWritable(folder / std::string(250, 'n')), "too long");
  REQUIRE(mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CheckRefused(CheckWritable(folder / "fifo"), "not a regular file");
  fs::create_symlink("/dev/full", folder / "link_to_full");
  CheckRefused(CheckWritable(folder / "link_to_full"), "not a regular file");
  fs::create_symlink(folder / "no/file", folder / "link_to_nowhere");
  CheckRefused(CheckWritable(folder / "link_to_nowhere"), "No such file or directory");
  fs::create_symlink("self", folder / "self");
  CHECK(!CheckWritable(folder / "self").ok());
  if (geteuid() != 0) {  // root may write everywhere
    REQUIRE(chmod((folder / "old").c_str(), 0400) == 0);
    CheckRefused(CheckWritable(folder / "old"), "Permission denied");
  }
}

TEST_CASE("outputs that are one file, or an input, are refused under every name of the file") {
  const Folder folder;
  Put(folder / "in", "x");
  fs::create_hard_link(folder / "in", folder / "hard");
  fs::create_symlink("in", folder / "soft");
  fs::create_symlink("new", folder / "soft_new");
  fs::create_directory(folder / "sub");
  const std::vector<NamedPath> inputs = {{"--q", folder / "in"}, {"--v", {}}};
  CHECK(CheckOutputs({{"--out", folder / "out"}, {"--lse", folder / "lse"}, {"--svg", {}}}, inputs)
            .ok());
  for (const char* name : {"in", "hard", "soft", "sub/../in", "./in"}) {
    CAPTURE(name);
    const absl::Status status = CheckOutputs({{"--out", folder / name}}, inputs);
    CheckRefused(status, "--out");
    CheckRefused(status, ", the file of --q; expected");
  }
  for (const char* name : {"new", "soft_new", "sub/../new"}) {
    CAPTURE(name);
    CheckRefused(CheckOutputs({{"--out", folder / "new"}, {"--lse", folder / name}}, inputs),
                 ", the file of --out; expected");
  }
}

TEST_CASE("a file is written whole or not at all") {
  const Folder folder;
  Put(folder / "file", "before");
  fs::create_symlink("file", folder / "link");
  REQUIRE(WriteFile(folder / "link", {"af", "", "ter"}).ok());
  CHECK(Get(folder / "file") == "after");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(folder.Files() == 2);

  // A disk that is full.
  rlimit before = {};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1 << 16;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const absl::Status full = WriteFile(folder / "file", {"some", std::string(1 << 17, 'x')});
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, ignored);
  CHECK(absl::IsUnavailable(full));
  CHECK(absl::StrContains(full.message(), "File too large"));
  CHECK(Get(folder / "file") == "after");
  CHECK(folder.Files() == 2);
}

TEST_CASE("errors keep the end of a long path") {
  CHECK(QuotedEnd("short") == "\"short\"");
  CHECK(QuotedEnd("0123456789", 4) == "…\"6789\"");
  const std::string path =
      absl::StrCat("/", std::string(100, 'a'), "/", std::string(200, 'b'), "/the-file.npy");
  CHECK(absl::StrContains(MappedFile::Open(path).status().message(), "the-file.npy"));
  CHECK(absl::StrContains(CheckWritable(path).message(), "the-file.npy"));
  CHECK(absl::StrContains(WriteFile(path, {}).message(), "the-file.npy"));
}

}  // namespace
}  // namespace annulus
