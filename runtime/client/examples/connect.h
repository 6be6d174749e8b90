// What the examples share: the client that a command line asks for.
#pragma once

#include <annulus/client.h>

#include <cstring>
#include <memory>

// [HOST:PORT [--tls-ca F] [--tls-cert F] [--tls-key F] [--token-file F]]; without arguments a
// service inside this process. INVALID_ARGUMENT names what is not understood.
inline absl::StatusOr<std::unique_ptr<annulus::Client>> ConnectByArguments(
    int argc, char** argv, const annulus::InProcessOptions& otherwise) {
  if (argc < 2) return annulus::Client::InProcess(otherwise);
  annulus::ClientOptions options{.endpoint = argv[1]};
  const struct {
    const char* name;
    std::string* value;
  } flags[] = {{"--tls-ca", &options.tls_ca},
               {"--tls-cert", &options.tls_cert},
               {"--tls-key", &options.tls_key},
               {"--token-file", &options.token_file}};
  for (int i = 2; i < argc; i += 2) {
    std::string* value = nullptr;
    for (const auto& flag : flags) {
      if (std::strcmp(argv[i], flag.name) == 0) value = flag.value;
    }
    if (value == nullptr || i + 1 == argc) {
      return absl::InvalidArgumentError(
          std::string(argv[i]) +
          ": unknown, or without a file; expected --tls-ca, --tls-cert, --tls-key or "
          "--token-file, each with a file");
    }
    *value = argv[i + 1];
  }
  return annulus::Client::Connect(options);
}
