// StepService: the server's side of Annulus.Steps, streams of decode steps that stay open. A stream
// has one thread, which reads a batch, has it carried out and answers it, so that nothing is handed
// from thread to thread. Thread-safe.
#pragma once

#include "absl/status/status.h"
#include "runtime/server/door.h"
#include "runtime/server/limits.h"
#include "runtime/service/service.h"

namespace grpc {
class ByteBuffer;
class ServerContext;
template <class W, class R>
class ServerReaderWriter;
}  // namespace grpc

namespace annulus {
namespace v1 {
class StepsReply;
}  // namespace v1
struct StepCount;

class StepService {
 public:
  using Stream = grpc::ServerReaderWriter<v1::StepsReply, grpc::ByteBuffer>;

  // All pointers outlive this.
  StepService(Service* service, Door* door, RpcBounds* bounds)
      : service_(service), door_(door), bounds_(bounds) {}

  // Serves one stream to its end. RESOURCE_EXHAUSTED names step_streams_max or
  // the quota streams_max, INVALID_ARGUMENT what is no batch. A stream whose caller is not known
  // any more, since its token has expired or was taken back, ends with UNAUTHENTICATED and a retry
  // hint: a fresh token opens another one.
  absl::Status Serve(grpc::ServerContext* context, Stream* stream);

  // From now on new batches are refused with UNAVAILABLE, and a stream is closed as soon as it has
  // none under way: one that is merely open must not hold up a shutdown.
  void Drain() { bounds_->step_streams.Drain(); }

 private:
  struct Batches;  // of one stream

  bool Read(grpc::ServerContext* context, Stream* stream, const Caller& caller,
            grpc::ByteBuffer* bytes);
  StepResults Answer(grpc::ServerContext* context, const Caller& caller, Admission::Peer* peer,
                     const StepCount& count, Batches* batches);

  Service* const service_;
  Door* const door_;
  RpcBounds* const bounds_;
};

}  // namespace annulus
