// Values as messages: the descriptions of runtime/fields are those of annulus.proto, what is
// written is what protobuf writes, and a new field has few places to be named at.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include <google/protobuf/descriptor.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/convert.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// Whether protobuf's type of a field is that of a member.
template <typename T>
bool HasType(const google::protobuf::FieldDescriptor& field) {
  using Proto = google::protobuf::FieldDescriptor;
  if constexpr (IsVector<T>::value) {
    return field.is_repeated() && HasType<typename T::value_type>(field);
  } else if constexpr (IsOptional<T>::value) {
    return HasType<typename T::value_type>(field);
  } else if constexpr (Described<T>) {
    return field.type() == Proto::TYPE_MESSAGE &&
           field.message_type()->name() ==
               std::string(DescriptionOf(static_cast<const T*>(nullptr)).name);
  } else if constexpr (std::is_same_v<T, absl::Status>) {
    return field.type() == Proto::TYPE_MESSAGE && field.message_type()->name() == "StepFailure";
  } else if constexpr (HasTextForm<T>) {
    return field.type() == Proto::TYPE_STRING;
  } else if constexpr (std::is_same_v<T, std::string>) {
    return field.type() == Proto::TYPE_STRING || field.type() == Proto::TYPE_BYTES;
  } else {
    const Proto::Type expected = std::is_same_v<T, bool>       ? Proto::TYPE_BOOL
                                 : std::is_same_v<T, float>    ? Proto::TYPE_FLOAT
                                 : std::is_same_v<T, double>   ? Proto::TYPE_DOUBLE
                                 : std::is_same_v<T, int>      ? Proto::TYPE_INT32
                                 : std::is_same_v<T, int64_t>  ? Proto::TYPE_INT64
                                 : std::is_same_v<T, uint64_t> ? Proto::TYPE_UINT64
                                                               : Proto::TYPE_GROUP;
    return field.type() == expected;
  }
}

// Every field of the message is described, but for its tensors.
template <typename T>
void Agrees(const google::protobuf::Descriptor* message, std::set<std::string> tensors = {}) {
  INFO(message->full_name());
  CHECK(message->name() == std::string(DescriptionOf(static_cast<const T*>(nullptr)).name));
  std::set<std::string> described = std::move(tensors);
  ForEachField<T>([&](const auto& field, size_t) {
    const std::string name(field.name);
    INFO(name);
    const auto* declared = message->FindFieldByNumber(field.number);
    REQUIRE(declared != nullptr);
    CHECK(declared->name() == name);
    CHECK(HasType<std::decay_t<decltype(std::declval<T>().*field.member)>>(*declared));
    described.insert(name);
  });
  for (int i = 0; i < message->field_count(); ++i) {
    INFO(message->field(i)->name());
    CHECK(described.count(message->field(i)->name()) == 1);
  }
}

TEST_CASE("values are described as the public protocol declares them") {
  Agrees<ContextSpec>(v1::ContextSpec::descriptor());
  Agrees<RequestKey>(v1::RequestKey::descriptor());
  Agrees<ContextInfo>(v1::ContextInfo::descriptor());
  Agrees<AppendGrant>(v1::AppendGrant::descriptor());
  Agrees<AppendResult>(v1::AppendResult::descriptor());
  Agrees<AppendRequest>(v1::AppendHeader::descriptor(), {"k", "v", "piece_tokens"});
  Agrees<AttendRequest>(v1::AttendHeader::descriptor(),
                        {"q", "data", "lists", "weights", "index", "compress"});
  Agrees<CompressRequest>(v1::CompressHeader::descriptor());
  Agrees<KeepRule>(v1::KeepRule::descriptor());
  Agrees<AttendStats>(v1::AttendStats::descriptor());
  Agrees<WorkerShare>(v1::WorkerShare::descriptor());
  Agrees<TraceSpan>(v1::TraceSpan::descriptor());
  Agrees<AttendResult>(v1::AttendReplyHeader::descriptor(),
                       {"out", "lse", "data", "lists", "tokens"});
  Agrees<WorkerStatus>(v1::WorkerStatus::descriptor());
  Agrees<NotRenewed>(v1::NotRenewed::descriptor());
  Agrees<DirectAppend>(v1::DirectAppend::descriptor());
}

TEST_CASE("the table of calls is the public protocol's, and its values are its messages") {
  const auto* service = v1::ContextSpec::descriptor()->file()->FindServiceByName("Annulus");
  REQUIRE(service != nullptr);
  int calls = 0;
  ForEachCall([&](const auto& call) {
    using Call = std::decay_t<decltype(call)>;
    const std::string name = std::string(call.name) == "Step" ? "Steps" : call.name;
    INFO(name);
    ++calls;
    const auto* method = service->FindMethodByName(name);
    REQUIRE(method != nullptr);
    CHECK(method->client_streaming() == (Call::kForm == Form::kStream));
    if constexpr (Call::kForm == Form::kUnary) {
      Agrees<typename Call::Request>(method->input_type());
      Agrees<typename Call::Answer>(method->output_type());
    }
  });
  CHECK(calls == service->method_count());
}

TEST_CASE("values of all sizes are each other's messages") {
  ContextInfo info;
  info.id = UINT64_MAX;
  info.spec = {.layers = 3, .heads = 8, .kv_heads = 4, .head_dim = 64, .v_head_dim = 32};
  info.spec.patterns = {"causal", "", std::string(20'000, ' ') + "full"};
  info.tokens = {0, 127, int64_t{1} << 34};
  info.kv_bytes = INT64_MAX;
  info.state = "ok";
  v1::ContextInfo message;
  REQUIRE(ToProto(info, &message).ok());
  CHECK(message.context() == UINT64_MAX);
  CHECK(message.spec().dtype() == "bf16");
  CHECK(message.spec().partition() == "block-cyclic:64");
  CHECK(message.spec().patterns(2).size() == 20'004);
  CHECK(message.tokens(2) == int64_t{1} << 34);
  const absl::StatusOr<ContextInfo> back = FromProto<ContextInfo>(message);
  INFO(back.status());
  REQUIRE(back.ok());
  CHECK(back->spec.patterns == info.spec.patterns);
  CHECK(back->tokens == info.tokens);
  CHECK(BytesOf(*back) == BytesOf(info));
  // What another program leaves out, or sends beside what is known.
  message.mutable_spec()->set_replicas(0);
  CHECK(FromProto<ContextInfo>(message)->spec.replicas == 1);
  CHECK(ValueOf<ContextInfo>(BytesOf(info) + std::string("\xf8\x06\x01", 3), "").ok());
  message.mutable_spec()->set_head_dim(577);
  CHECK(FromProto<ContextInfo>(message).status().message() ==
        "spec.head_dim: 577; expected a multiple of 8 from 8 to 576");
  message.mutable_spec()->set_dtype("int8");
  CHECK(FromProto<ContextInfo>(message).status().message() ==
        "spec.dtype: \"int8\"; expected f32, f16 or bf16");
  // Numbers of other widths and signs, and what is no UTF-8.
  ListRequest list{.after = 1, .limit = -5};
  v1::ListRequest list_message;
  REQUIRE(ToProto(list, &list_message).ok());
  CHECK(list_message.limit() == -5);
  CHECK(FromProto<ListRequest>(list_message)->limit == -5);
  CHECK(ValueOf<ListRequest>(std::string("\x10\x80\x80\x80\x80\x10", 6), "").status().message() ==
        "limit: 4294967296; expected a number of 32 bits");
  AttendRequest attend;
  attend.sinks = {1.5f, -0.0f, -std::numeric_limits<float>::infinity()};
  v1::AttendHeader header;
  REQUIRE(ToProto(attend, &header).ok());
  CHECK(header.sinks_size() == 3);
  CHECK(header.SerializeAsString() == BytesOf(attend));
  CHECK(FromProto<AttendRequest>(header)->sinks == attend.sinks);
  CHECK(ValueOf<AttendRequest>(std::string("\x7a\x03\0\0\0", 5), "").status().message() ==
        "sinks: does not parse; expected protobuf");
  CHECK(ValueOf<AttendRequest>(std::string("\x7d\0\0\x80\x3f\x7d\0\0\0\x40", 10), "")->sinks ==
        std::vector<float>{1, 2});
  header.mutable_sinks()->Resize(4097, 0);
  CHECK(FromProto<AttendRequest>(header).status().message() ==
        "sinks: 4097 elements; expected at most 4096");
  ForkRequest fork{.context = 1, .tokens = 0};
  v1::ForkRequest fork_message;
  REQUIRE(ToProto(fork, &fork_message).ok());
  CHECK(fork_message.has_tokens());
  info.state = "\xff";
  CHECK(absl::IsInternal(ToProto(info, &message)));
}

TEST_CASE("a lease is none, or so long that its context's creator hears of it") {
  ContextSpec spec = {.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 8, .v_head_dim = 8};
  const auto refusal = [&](double lease) {
    spec.lease = lease;
    v1::ContextSpec message;
    message.ParseFromString(BytesOf(spec));
    return std::string(FromProto<ContextSpec>(message).status().message());
  };
  for (const double good : {0.0, 0.1, 300.0, 366 * 86'400.0}) CHECK(refusal(good) == "");
  CHECK(refusal(1e-300) ==
        "lease: 1e-300; expected 0, for a context that stays, or 0.1 to 31622400");
  for (const double bad :
       {-1.0, -1e-300, 0.09, 1e300, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK(absl::StartsWith(refusal(bad), "lease: "));
  }
}

// The sources in these folders, but for examples, that hold a text. A folder's own files only
// where "." ends it.
std::set<std::string> FilesNaming(const char* text, const std::vector<std::string>& folders,
                                  const std::string& but = "examples") {
  namespace fs = std::filesystem;
  const fs::path sources(ANNULUS_SOURCES);
  std::set<std::string> naming;
  for (const std::string& folder : folders) {
    for (auto entry = fs::recursive_directory_iterator((sources / folder).lexically_normal());
         entry != fs::recursive_directory_iterator(); ++entry) {
      if (entry->is_directory() && folder.back() == '.') entry.disable_recursion_pending();
      const fs::path path = entry->path();
      const std::string kind = path.extension();
      if (kind != ".h" && kind != ".cc" && kind != ".proto") continue;
      if (absl::StrContains(path.string(), but)) continue;
      std::stringstream content;
      content << std::ifstream(path).rdbuf();
      if (absl::StrContains(content.str(), text)) naming.insert(path.lexically_relative(sources));
    }
  }
  return naming;
}

TEST_CASE("every state is named where states are documented") {
  const std::vector<std::vector<const char*>> places = {
      {"runtime/protocol/public/annulus.proto", "runtime/protocol/public/values.proto"},
      {"runtime/telemetry/metrics.h"},
      {"runtime/client/README.md"}};
  for (const std::vector<const char*>& files : places) {
    std::stringstream content;
    for (const char* file : files) {
      content << std::ifstream(std::filesystem::path(ANNULUS_SOURCES) / file).rdbuf();
    }
    const std::string mark = absl::EndsWith(files[0], ".md") ? "`" : "\"";
    const auto named = [&](absl::string_view name) {
      INFO(files[0] << " " << name);
      CHECK(absl::StrContains(content.str(), absl::StrCat(mark, name, mark)));
    };
    for (const ContextState state : kContextStates) named(Name(state));
    for (const WorkerState state : kWorkerStates) named(Name(state));
  }
}

// CONTRIBUTING, "Adding a field" and "Adding a call".
TEST_CASE("a field is named in three files and by those that it matters to") {
  // Of what both protocols and the client consist of.
  CHECK(FilesNaming("replicas",
                    {"base/api", "runtime/.", "runtime/fields", "runtime/service",
                     "runtime/protocol", "runtime/context", "runtime/client", "runtime/server"}) ==
        std::set<std::string>{"base/api/annulus/types.h", "runtime/fields/values.h",
                              "runtime/protocol/public/annulus.proto"});
}

TEST_CASE("a call is named in five files, one of which carries it out") {
  // What the cluster's state decides beside is the core's.
  CHECK(FilesNaming("KeepAlive", {"base/api", "runtime"}, "coordinator/core") ==
        std::set<std::string>{"base/api/annulus/client.h", "runtime/client/client.cc",
                              "runtime/coordinator/coordinator.cc",
                              "runtime/protocol/public/annulus.proto", "runtime/service/calls.h"});
}

}  // namespace
}  // namespace annulus
