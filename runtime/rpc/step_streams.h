// StepStreams: the server's side of Annulus.Steps, streams of decode steps that stay open. The
// threads of one stream take turns: one reads while the others, up to step_batches_max, work on
// what they have read and answer it, so that no batch is handed from thread to thread and a
// cancellation is read while the batch it is for runs. Thread-safe.
#pragma once

#include <mutex>
#include <set>

#include "absl/status/status.h"
#include "runtime/coordinator/service.h"
#include "runtime/rpc/admission.h"

namespace grpc {
class ServerContext;
template <class W, class R>
class ServerReaderWriter;
}  // namespace grpc

namespace annulus {
namespace v1 {
class StepsReply;
class StepsRequest;
}  // namespace v1

class StepStreams {
 public:
  using Stream = grpc::ServerReaderWriter<v1::StepsReply, v1::StepsRequest>;

  // Both pointers outlive this.
  StepStreams(Service* service, Admission* admission, int streams_max, int batches_max)
      : service_(service),
        admission_(admission),
        streams_max_(streams_max),
        batches_max_(batches_max) {}

  // Serves one stream to its end. RESOURCE_EXHAUSTED names step_streams_max.
  absl::Status Serve(grpc::ServerContext* context, Stream* stream);

  // From now on new batches are refused with UNAVAILABLE, and a stream is closed as soon as it has
  // none under way: one that is merely open must not hold up a shutdown.
  void Drain();

 private:
  class OpenStream;

  Service* const service_;
  Admission* const admission_;
  const int streams_max_;
  const int batches_max_;
  std::mutex mutex_;
  bool draining_ = false;
  std::set<OpenStream*> open_;
};

}  // namespace annulus
