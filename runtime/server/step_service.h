// StepService: the server's side of Annulus.Steps, streams of decode steps that stay open. A stream
// has one thread, which reads a batch, has it carried out and answers it, so that nothing is handed
// from thread to thread. Thread-safe.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "runtime/server/admission.h"
#include "runtime/server/door.h"
#include "runtime/server/stall_watch.h"
#include "runtime/service/service.h"

namespace grpc {
class ServerContext;
template <class W, class R>
class ServerReaderWriter;
}  // namespace grpc

namespace annulus {
namespace v1 {
class StepBatch;
class StepsReply;
}  // namespace v1

class StepService {
 public:
  using Stream = grpc::ServerReaderWriter<v1::StepsReply, v1::StepBatch>;

  // All pointers outlive this.
  StepService(Service* service, Door* door, Admission* admission, StallWatch* stalls,
              int streams_max)
      : service_(service),
        door_(door),
        admission_(admission),
        stalls_(stalls),
        streams_max_(streams_max) {}

  // Serves one stream to its end. RESOURCE_EXHAUSTED names step_streams_max. A stream whose caller
  // is not known any more, since its token has expired or was taken back, ends with UNAUTHENTICATED
  // and a retry hint: a fresh token opens another one.
  absl::Status Serve(grpc::ServerContext* context, Stream* stream);

  // From now on new batches are refused with UNAVAILABLE, and a stream is closed as soon as it has
  // none under way: one that is merely open must not hold up a shutdown.
  void Drain();

 private:
  absl::Status Open(grpc::ServerContext* context);
  // Says that a batch of the stream begins or has ended; false: the server is shutting down.
  bool SetBusy(grpc::ServerContext* context, bool busy);
  bool Read(grpc::ServerContext* context, Stream* stream, const Caller& caller,
            v1::StepBatch* batch);
  StepResults Answer(grpc::ServerContext* context, const Caller& caller,
                     const v1::StepBatch& batch);

  Service* const service_;
  Door* const door_;
  Admission* const admission_;
  StallWatch* const stalls_;
  const int streams_max_;
  std::mutex mutex_;
  bool draining_ = false;
  std::map<grpc::ServerContext*, bool> open_;  // and whether a batch is under way
};

}  // namespace annulus
