// The bounds of what a context and its calls may be, each named once for all who check it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/pattern.h"

namespace annulus {

// Of a context.
inline constexpr int kLayersMax = 1024;
inline constexpr size_t kTracksMax = 8;
inline constexpr size_t kTrackNameBytesMax = 64;
inline constexpr int64_t kTrackRatioMax = int64_t{1} << 20;
inline constexpr int kHeadsMax = 4096;  // query heads
inline constexpr int kHeadDimMax = 576;
inline constexpr int kReplicasMax = 2;
inline constexpr size_t kContextPatternsBytesMax = 64 << 10;  // of all its layers' texts
inline constexpr int64_t kLeaseMaxS = 366 * 86'400;
inline constexpr int64_t kLeaseDefaultS = 300;
inline constexpr size_t kTenantBytesMax = 128;  // of its owner's name
// Tokens, so that no product of sizes overflows.
inline constexpr int64_t kContextTokensMax = int64_t{1} << 34;

// Positions stay so far below 2^63 that no sum of a few can overflow.
inline constexpr int64_t kPositionMax = int64_t{1} << 48;

// Steps that the workers are sent in one message: longer calls are cut.
inline constexpr int kStepsAtOnceMax = 1024;

// Weights of index heads that one Select brings, so that they fit into a message.
inline constexpr size_t kSelectWeightsMax = size_t{1} << 19;

// Lists that one Attend or step brings, and that it makes.
inline constexpr size_t kListsMax = kPatternListsMax;
inline constexpr size_t kListNameBytesMax = 64;

// Of an Attend's request_id.
inline constexpr size_t kRequestIdBytesMax = 128;

// Of a traceparent, which has 55 in the version of W3C Trace Context that is written here.
inline constexpr size_t kTraceparentBytesMax = 128;

// The largest message of the public protocol that either side accepts: gRPC's default, said aloud.
// A stream's chunk stays below it by kMessageRoomBytes.
inline constexpr int kMessageBytesMax = 4 << 20;
inline constexpr int kMessageRoomBytes = 64 << 10;
// Of one step's message: what is larger goes by Append and Attend, which are streams.
inline constexpr int64_t kStepBytesMax = kMessageBytesMax - kMessageRoomBytes;
// Of one step's answer: what asks for more attends by Attend, whose answer is a stream.
inline constexpr int64_t kStepAnswerBytesMax = int64_t{32} << 20;

// Bytes that a worker holds, may hold or says it has moved: no sum over kWorkersMax overflows.
inline constexpr int64_t kWorkerBytesMax = int64_t{1} << 46;
// Contexts that a worker brings to a coordinator.
inline constexpr int64_t kWorkerContextsMax = 1 << 20;

// Workers that a cluster has ever had at once; and those of one process, of `up` or a client.
inline constexpr int kWorkersMax = 1 << 16;
inline constexpr int kWorkersHereMax = 256;

}  // namespace annulus
