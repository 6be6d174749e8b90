#include "bench/service/parts.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/ucx/ucx_fabric.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"

namespace annulus {
namespace {

constexpr absl::Duration kPollMax = absl::Milliseconds(50);

class EchoService final : public v1::Annulus::Service {
 public:
  EchoService(int64_t reply_bytes, std::function<void()> work)
      : bytes_(static_cast<size_t>(reply_bytes), 'x'), work_(std::move(work)) {}

  grpc::Status Attend(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::AttendReplyPart, v1::AttendPart>* stream) override {
    v1::AttendPart part;
    while (stream->Read(&part)) {
    }
    if (work_) work_();
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
    while (stream->Read(&request)) {
      if (work_) work_();
      stream->Write(reply);
    }
    return grpc::Status::OK;
  }

 private:
  const std::string bytes_;
  const std::function<void()> work_;
};

// One side of the UCX echo.
class EchoPeer {
 public:
  static absl::StatusOr<std::unique_ptr<EchoPeer>> Create() {
    auto peer = std::unique_ptr<EchoPeer>(new EchoPeer);
    ANNULUS_ASSIGN_OR_RETURN(peer->fabric_, UcxFabric::Create());
    peer->messenger().SetDoor(PeerDoor::kOpen);
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

class GrpcEchoOverLoopback final : public GrpcEcho {
 public:
  GrpcEchoOverLoopback(const CallBytes& bytes, bool stream, std::function<void()> work)
      : stream_(stream),
        service_(bytes.reply, std::move(work)),
        data_(static_cast<size_t>(bytes.request), 'x') {}

  ~GrpcEchoOverLoopback() override {
    if (steps_ == nullptr) return;
    steps_->WritesDone();
    (void)steps_->Finish();
  }

  absl::Status Start() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("cannot listen on 127.0.0.1");
    stub_ = v1::Annulus::NewStub(MakeChannel(absl::StrCat("127.0.0.1:", port)));
    if (stream_) steps_ = stub_->Steps(&steps_context_);
    return absl::OkStatus();
  }

  bool Call() override {
    if (stream_) {
      v1::StepBatch batch;
      batch.add_steps()->mutable_q()->set_data(data_);
      v1::StepsReply reply;
      return steps_->Write(batch) && steps_->Read(&reply);
    }
    v1::AttendPart part;
    part.set_data(data_);
    grpc::ClientContext context;
    const auto call = stub_->Attend(&context);
    const bool sent = call->Write(part) && call->WritesDone();
    v1::AttendReplyPart reply;
    while (call->Read(&reply)) {
    }
    return call->Finish().ok() && sent;
  }

 private:
  const bool stream_;
  EchoService service_;
  const std::string data_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Annulus::Stub> stub_;
  grpc::ClientContext steps_context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepBatch, v1::StepsReply>> steps_;
};

class UcxEchoOverLoopback final : public UcxEcho {
 public:
  UcxEchoOverLoopback(const CallBytes& bytes, std::function<void()> work)
      : request_(static_cast<size_t>(bytes.request)),
        reply_(static_cast<size_t>(bytes.reply)),
        work_(std::move(work)) {}

  absl::Status Start() {
    ANNULUS_ASSIGN_OR_RETURN(here_, EchoPeer::Create());
    ANNULUS_ASSIGN_OR_RETURN(there_, EchoPeer::Create());
    there_->messenger().SetHandlers({.on_message =
                                         [this](PeerId from, Message) {
                                           if (work_) work_();
                                           (void)there_->messenger().Send(from, {1, "", reply_});
                                         },
                                     .on_peer_down = [](PeerId, absl::Status) {}});
    here_->messenger().SetHandlers(
        {.on_message = [this](PeerId, Message) { answered_ = true; },
         .on_peer_down = [this](PeerId, absl::Status) { down_ = true; }});
    there_->Run();
    ANNULUS_ASSIGN_OR_RETURN(peer_, here_->messenger().Connect(there_->messenger().address()));
    return absl::OkStatus();
  }

  bool Call() override {
    answered_ = false;
    if (!here_->messenger().Send(peer_, {1, "", request_}).ok()) down_ = true;
    while (!answered_ && !down_) here_->messenger().Poll(kPollMax);
    return !down_;
  }

 private:
  const Buffer request_;
  const Buffer reply_;
  const std::function<void()> work_;
  std::unique_ptr<EchoPeer> there_;
  std::unique_ptr<EchoPeer> here_;
  PeerId peer_ = 0;
  bool answered_ = false;
  bool down_ = false;
};

}  // namespace

Samples::Samples(std::vector<double> seconds) : seconds_(std::move(seconds)), sorted_s_(seconds_) {
  std::sort(sorted_s_.begin(), sorted_s_.end());
}

double Samples::MedianBeside(const Samples& other) const {
  std::vector<double> ratios;
  for (size_t i = 0; i < seconds_.size(); ++i) {
    ratios.push_back(seconds_[i] / other.seconds_.at(i));
  }
  return Samples(std::move(ratios)).p50();
}

Samples Samples::Of(int rounds, const std::function<void()>& action, int warm_ups) {
  return InTurn(rounds, {action}, warm_ups)[0];
}

std::vector<Samples> Samples::InTurn(int rounds, const std::vector<std::function<void()>>& actions,
                                     int warm_ups) {
  std::vector<std::vector<double>> seconds(actions.size());
  for (int i = -warm_ups; i < rounds; ++i) {
    for (size_t which = 0; which < actions.size(); ++which) {
      const absl::Time begin = absl::Now();
      actions[which]();
      if (i >= 0) seconds[which].push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    }
  }
  std::vector<Samples> samples;
  for (std::vector<double>& each : seconds) samples.emplace_back(std::move(each));
  return samples;
}

double Samples::Quantile(double q) const {
  const auto at = static_cast<size_t>(q * static_cast<double>(sorted_s_.size()));
  return sorted_s_[std::min(at, sorted_s_.size() - 1)];
}

absl::StatusOr<std::unique_ptr<GrpcEcho>> GrpcEcho::Start(const CallBytes& bytes, bool stream,
                                                          std::function<void()> work) {
  auto echo = std::make_unique<GrpcEchoOverLoopback>(bytes, stream, std::move(work));
  ANNULUS_RETURN_IF_ERROR(echo->Start());
  return echo;
}

absl::StatusOr<std::unique_ptr<UcxEcho>> UcxEcho::Start(const CallBytes& bytes,
                                                        std::function<void()> work) {
  auto echo = std::make_unique<UcxEchoOverLoopback>(bytes, std::move(work));
  ANNULUS_RETURN_IF_ERROR(echo->Start());
  return echo;
}

}  // namespace annulus
