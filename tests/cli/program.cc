#include "tests/cli/program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "runtime/cli/cli.h"
#include "tests/catch.h"

namespace annulus::test {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

}  // namespace

namespace {

// A file for --cluster that holds nothing, so that no test measures the machine unless it says so.
const std::string& PlainCluster() {
  static const TempFolder folder;
  static const std::string path = [] {
    const std::string file = folder / "cluster.json";
    WriteBytes(file, "{}");
    return file;
  }();
  return path;
}

}  // namespace

Outcome RunHere(const Arguments& args, const Variables& given) {
  Variables variables = given;
  if (variables.count("ANNULUS_CALIBRATION") == 0) {
    variables.emplace("ANNULUS_CLUSTER", PlainCluster());
  }
  std::ostringstream out;
  std::ostringstream err;
  Console console{[&](const std::string& name) -> const char* {
                    const auto found = variables.find(name);
                    return found == variables.end() ? nullptr : found->second.c_str();
                  },
                  &out, &err};
  for (const auto& [name, value] : variables) console.variables.push_back(name);
  const int code = RunCli(args, console);
  return {code, out.str(), err.str()};
}

Program::Program(const Arguments& args, const std::string& out) {
  const std::string path =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "annulus").string();
  err_path_ = (std::filesystem::temp_directory_path() / "annulus-test-err-XXXXXX").string();
  const int err_fd = mkostemp(err_path_.data(), O_CLOEXEC);
  int ends[2];
  ANNULUS_CHECK(err_fd >= 0 && pipe2(ends, O_CLOEXEC) == 0);
  std::vector<char*> argv = {const_cast<char*>("annulus")};
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (out.empty()) {
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY, 0);
  }
  posix_spawn_file_actions_adddup2(&actions, err_fd, STDERR_FILENO);
  setenv("ANNULUS_CLUSTER", PlainCluster().c_str(), /*replace=*/0);
  const int error = posix_spawn(&pid_, path.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  close(err_fd);
  stdout_fd_ = ends[0];
  INFO(path << ": " << strerror(error));
  REQUIRE(error == 0);
}

Program::~Program() {
  if (running_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(stdout_fd_);
  unlink(err_path_.c_str());
}

std::string Program::ReadLine() {
  std::string line;
  char c = 0;
  while (read(stdout_fd_, &c, 1) == 1 && c != '\n') line.push_back(c);
  return line;
}

std::string Program::err() const {
  return ReadBytes(err_path_);
}

int Program::HttpPort() const {
  const std::string mark = "event=http port=";
  int port = 0;
  REQUIRE(Within(absl::Seconds(20), [&] {
    const std::string told = err();
    const size_t at = told.find(mark);
    if (at == std::string::npos || told.find('\n', at) == std::string::npos) return false;
    port = std::atoi(told.c_str() + at + mark.size());
    return true;
  }));
  return port;
}

void Program::Signal(int signal) {
  kill(pid_, signal);
}

Outcome Program::Wait() {
  Outcome outcome;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(stdout_fd_, buffer, sizeof(buffer))) > 0;) {
    outcome.out.append(buffer, static_cast<size_t>(got));
  }
  int status = 0;
  ANNULUS_CHECK(waitpid(pid_, &status, 0) == pid_);
  running_ = false;
  outcome.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  outcome.err = err();
  return outcome;
}

Outcome RunProgram(const Arguments& args) {
  Program program(args);
  return program.Wait();
}

Outcome RunProgramTo(const std::string& out, const Arguments& args) {
  Program program(args, out);
  return program.Wait();
}

bool IsRefusal(const Outcome& outcome) {
  const absl::string_view err = outcome.err;
  const auto is_control = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  };
  return outcome.code == 2 && outcome.out.empty() && err.size() > 10 && err.size() < 3000 &&
         err.back() == '\n' && std::none_of(err.begin(), err.end() - 1, is_control);
}

TestTensor TestTensor::Random(Rng& rng, DType dtype, std::vector<int64_t> shape) {
  TestTensor tensor{std::move(shape), dtype, {}};
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  for (int64_t i = 0; i < count; ++i) {
    float value = rng.Normal();
    uint16_t rounded = 0;
    if (dtype != DType::kF32) {
      Convert(&value, DType::kF32, &rounded, dtype, 1);
      Convert(&rounded, dtype, &value, DType::kF32, 1);
    }
    tensor.values.push_back(value);
  }
  return tensor;
}

std::string TestTensor::Bytes() const {
  std::string bytes(values.size() * SizeOf(dtype), '\0');
  Convert(values.data(), DType::kF32, bytes.data(), dtype, static_cast<int64_t>(values.size()));
  return bytes;
}

std::string TestTensor::Npy(int version) const {
  const std::string header =
      absl::StrCat("{'descr': '", dtype == DType::kF32 ? "<f4" : "<f2",
                   "', 'fortran_order': False, 'shape': ", ShapeText(shape), ", }   \n");
  std::string file = "\x93NUMPY";
  file.push_back(static_cast<char>(version));
  file.push_back('\0');
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) {
    file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  }
  return file + header + Bytes();
}

std::string Safetensors(const std::map<std::string, TestTensor>& tensors) {
  std::string data;
  std::string header = "{\"__metadata__\": {\"format\": \"pt\"}";
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += tensor.Bytes();
    const char* dtype = tensor.dtype == DType::kF32   ? "F32"
                        : tensor.dtype == DType::kF16 ? "F16"
                                                      : "BF16";
    absl::StrAppend(&header, ", \"", name, "\": {\"dtype\": \"", dtype, "\", \"shape\": [",
                    absl::StrJoin(tensor.shape, ", "), "], \"data_offsets\": [", begin, ", ",
                    data.size(), "]}");
  }
  header += "}";
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return file + header + data;
}

void WriteBytes(const std::string& path, absl::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ANNULUS_CHECK(file.good());
}

std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

std::vector<float> ReadF32(const std::string& path, const std::vector<int64_t>& shape) {
  const std::string file = ReadBytes(path);
  const std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': ", ShapeText(shape), ", }");
  REQUIRE(file.substr(10, header.size()) == header);
  const size_t begin = 10 + static_cast<unsigned char>(file[8]);
  CHECK(begin % 64 == 0);
  std::vector<float> values((file.size() - begin) / sizeof(float));
  std::memcpy(values.data(), file.data() + begin, file.size() - begin);
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  REQUIRE(static_cast<int64_t>(values.size()) == count);
  return values;
}

std::string Mutated(Rng& rng, std::string text) {
  for (int64_t i = rng.Between(1, 4); i > 0 && !text.empty(); --i) {
    const size_t at = rng.Below(text.size());
    switch (rng.Below(5)) {
      case 0:
        text[at] = static_cast<char>(rng.Next());
        break;
      case 1:
        text[at] = "0123456789-,:()[]{}'\"<>=|& \n"[rng.Below(28)];
        break;
      case 2:
        text.erase(at, rng.Between(1, 8));
        break;
      case 3:
        text.insert(at, text.substr(rng.Below(text.size()), rng.Between(1, 16)));
        break;
      default:
        if (rng.Below(8) == 0) text.resize(at);
    }
  }
  return text;
}

}  // namespace annulus::test
