// What the tests of the command line share: running it here or as the real program, and tensors in
// files. One thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/dtype.h"
#include "base/rng.h"
#include "runtime/cli/commands.h"
#include "tests/temp_folder.h"

namespace annulus::test {

struct Outcome {
  int code = 0;  // exit code; 128 + n for signal n
  std::string out;
  std::string err;
};

using Variables = std::map<std::string, std::string>;

// RunCli in this process, with these environment variables and no others, but ANNULUS_CLUSTER: a
// file that says nothing, unless ANNULUS_CALIBRATION is among them.
Outcome RunHere(const Arguments& args, const Variables& given = {});

// The program `annulus` beside this one, as its own process.
class Program {
 public:
  // `out`: a path that its stdout goes to instead of here.
  explicit Program(const Arguments& args, const std::string& out = "");
  ~Program();  // kill -9, unless it was waited for

  pid_t pid() const { return pid_; }
  std::string ReadLine();   // of its stdout
  std::string err() const;  // its stderr so far
  int HttpPort() const;     // of its --http-listen; waits until it has logged that
  void Signal(int signal);
  Outcome Wait();  // until it ends by itself

 private:
  std::string err_path_;
  pid_t pid_ = 0;
  int stdout_fd_ = -1;
  bool running_ = true;
};

Outcome RunProgram(const Arguments& args);
Outcome RunProgramTo(const std::string& out, const Arguments& args);

// Whether `outcome` is a refusal as promised: exit 2, nothing on stdout, one printable line.
bool IsRefusal(const Outcome& outcome);

// A tensor in memory, values normal, exact in `dtype`.
struct TestTensor {
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;
  std::vector<float> values;

  static TestTensor Random(Rng& rng, DType dtype, std::vector<int64_t> shape);
  std::string Bytes() const;  // the values, as they are stored
  std::string Npy(int version = 1) const;
};

// The bytes of a .safetensors file.
std::string Safetensors(const std::map<std::string, TestTensor>& tensors);

void WriteBytes(const std::string& path, absl::string_view bytes);
std::string ReadBytes(const std::string& path);
// The values of a .npy file that this program wrote; its shape must be this.
std::vector<float> ReadF32(const std::string& path, const std::vector<int64_t>& shape);

// Whether it is `done` within that time; asked every `period`.
template <typename Done>
bool Within(absl::Duration patience, Done done, absl::Duration period = absl::Milliseconds(20)) {
  const absl::Time deadline = absl::Now() + patience;
  while (!done()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(period);
  }
  return true;
}

// Some bytes of `text` changed, dropped, doubled or cut off.
std::string Mutated(Rng& rng, std::string text);

}  // namespace annulus::test
