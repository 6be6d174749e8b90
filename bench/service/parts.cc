#include "bench/service/parts.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/ucx/ucx_fabric.h"
#include "runtime/rpc/annulus.grpc.pb.h"
#include "runtime/rpc/protocol/channel.h"

namespace annulus {
namespace {

constexpr absl::Duration kPollMax = absl::Milliseconds(50);

class EchoService final : public v1::Annulus::Service {
 public:
  explicit EchoService(int64_t reply_bytes) : bytes_(static_cast<size_t>(reply_bytes), 'x') {}

  grpc::Status Attend(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::AttendReplyPart, v1::AttendPart>* stream) override {
    v1::AttendPart part;
    while (stream->Read(&part)) {
    }
    v1::AttendReplyPart reply;
    reply.set_data(bytes_);
    stream->Write(reply);
    return grpc::Status::OK;
  }

  grpc::Status Steps(grpc::ServerContext*,
                     grpc::ServerReaderWriter<v1::StepsReply, v1::StepBatch>* stream) override {
    v1::StepBatch request;
    v1::StepsReply reply;
    reply.add_answers()->mutable_out()->set_data(bytes_);
    while (stream->Read(&request)) stream->Write(reply);
    return grpc::Status::OK;
  }

 private:
  const std::string bytes_;
};

// One side of the UCX echo, polled by a thread of its own as the service's processes are.
class EchoPeer {
 public:
  static absl::StatusOr<std::unique_ptr<EchoPeer>> Create() {
    auto peer = std::unique_ptr<EchoPeer>(new EchoPeer);
    ANNULUS_ASSIGN_OR_RETURN(peer->fabric_, UcxFabric::Create());
    return peer;
  }
  ~EchoPeer() {
    stopping_ = true;
    messenger().Wake();
    if (thread_.joinable()) thread_.join();
  }

  Messenger& messenger() { return fabric_->messenger(); }

  void Run() {
    thread_ = std::thread([this] {
      while (!stopping_) messenger().Poll(kPollMax);
    });
  }

 private:
  std::unique_ptr<UcxFabric> fabric_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace

Samples::Samples(std::vector<double> seconds) : sorted_s_(std::move(seconds)) {
  std::sort(sorted_s_.begin(), sorted_s_.end());
}

Samples Samples::Of(int rounds, const std::function<void()>& action, int warm_ups) {
  std::vector<double> seconds;
  for (int i = -warm_ups; i < rounds; ++i) {
    const absl::Time begin = absl::Now();
    action();
    if (i >= 0) seconds.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
  }
  return Samples(std::move(seconds));
}

double Samples::Quantile(double q) const {
  const auto at = static_cast<size_t>(q * static_cast<double>(sorted_s_.size()));
  return sorted_s_[std::min(at, sorted_s_.size() - 1)];
}

absl::StatusOr<Samples> MeasureGrpcEcho(const CallBytes& bytes, bool stream, int rounds) {
  EchoService service(bytes.reply);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("cannot listen on 127.0.0.1");
  const auto stub = v1::Annulus::NewStub(MakeChannel(absl::StrCat("127.0.0.1:", port)));
  const std::string data(static_cast<size_t>(bytes.request), 'x');
  bool good = true;
  if (stream) {
    grpc::ClientContext context;
    const auto steps = stub->Steps(&context);
    v1::StepBatch request;
    request.add_steps()->mutable_q()->set_data(data);
    v1::StepsReply reply;
    const Samples samples =
        Samples::Of(rounds, [&] { good = good && steps->Write(request) && steps->Read(&reply); });
    steps->WritesDone();
    if (good && steps->Finish().ok()) return samples;
  } else {
    v1::AttendPart part;
    part.set_data(data);
    v1::AttendReplyPart reply;
    const Samples samples = Samples::Of(rounds, [&] {
      grpc::ClientContext context;
      const auto call = stub->Attend(&context);
      good = good && call->Write(part) && call->WritesDone();
      while (call->Read(&reply)) {
      }
      good = call->Finish().ok() && good;
    });
    if (good) return samples;
  }
  return absl::InternalError("the bare gRPC call failed");
}

absl::StatusOr<Samples> MeasureUcxEcho(const CallBytes& bytes, int rounds) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<EchoPeer> there, EchoPeer::Create());
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<EchoPeer> here, EchoPeer::Create());
  const Buffer reply(static_cast<size_t>(bytes.reply));
  there->messenger().SetHandlers({.on_message =
                                      [&](PeerId from, Message) {
                                        (void)there->messenger().Send(from, {1, "", reply});
                                      },
                                  .on_peer_down = [](PeerId, absl::Status) {}});
  bool answered = false;
  bool down = false;
  here->messenger().SetHandlers({.on_message = [&](PeerId, Message) { answered = true; },
                                 .on_peer_down = [&](PeerId, absl::Status) { down = true; }});
  there->Run();
  ANNULUS_ASSIGN_OR_RETURN(const PeerId peer,
                           here->messenger().Connect(there->messenger().address()));
  const Buffer request(static_cast<size_t>(bytes.request));
  const Samples samples = Samples::Of(rounds, [&] {
    answered = false;
    if (!here->messenger().Send(peer, {1, "", request}).ok()) down = true;
    while (!answered && !down) here->messenger().Poll(kPollMax);
  });
  if (down) return absl::InternalError("the bare UCX peer went down");
  return samples;
}

Samples MeasureWakeUps(int rounds) {
  std::mutex mutex;
  std::condition_variable changed;
  enum class Turn { kHere, kThere, kOver } turn = Turn::kHere;
  std::thread other([&] {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return turn != Turn::kHere; });
      if (turn == Turn::kOver) return;
      turn = Turn::kHere;
      changed.notify_one();
    }
  });
  const Samples samples = Samples::Of(rounds, [&] {
    std::unique_lock<std::mutex> lock(mutex);
    turn = Turn::kThere;
    changed.notify_one();
    changed.wait(lock, [&] { return turn == Turn::kHere; });
  });
  {
    const std::lock_guard<std::mutex> lock(mutex);
    turn = Turn::kOver;
  }
  changed.notify_one();
  other.join();
  return samples;
}

}  // namespace annulus
