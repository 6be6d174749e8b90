// Callers of a service that something happens to: they keep their contexts, come what may, and
// count what they are told.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/rng.h"
#include "runtime/client/client.h"
#include "tests/cli/question.h"

namespace annulus::test {

// Whether it will pass by itself.
inline bool IsPassing(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// Asks the same of one context, which is never uploaded again, until told to stop.
struct Reader {
  Reader(Client& client, uint64_t seed, const std::atomic<bool>& stop) {
    Rng rng(seed);
    question = std::make_unique<Question>(rng);
    context = question->Upload(client);
    if (!context.ok()) return;
    thread = std::thread([this, &client, &stop] {
      while (!stop) {
        const auto answer =
            client.Attend(question->Ask(*context), {.timeout = absl::Milliseconds(500)});
        if (answer.ok()) {
          ++(question->IsRight(*answer) ? right : wrong);
          last_right = absl::GetCurrentTimeNanos();
        } else {
          ++(IsPassing(answer.status()) ? passing : odd);
          absl::SleepFor(absl::Milliseconds(2));
        }
      }
    });
  }

  std::unique_ptr<Question> question;
  absl::StatusOr<ContextId> context = absl::UnknownError("not uploaded");
  std::atomic<int> right{0}, wrong{0}, passing{0}, odd{0};
  std::atomic<int64_t> last_right{0};
  std::thread thread;
};

// Appends token by token, and repeats what got no answer under the same key.
struct Writer {
  Writer(Client& client, const std::atomic<bool>& stop) : question(rng) {
    const auto created = client.CreateContext(Question::Spec(/*replicas=*/1));
    if (!created.ok()) return;
    context = created->id;
    thread = std::thread([this, &client, &stop] {
      while (!stop && tokens < Question::kTokens) {
        AppendRequest request;
        request.context = context;
        request.start = tokens;
        request.k = question.k.view().Tokens(tokens, 1);
        request.v = question.v.view().Tokens(tokens, 1);
        request.key = {7, static_cast<uint64_t>(tokens) + 1};
        const auto appended = client.Append(request, {.timeout = absl::Milliseconds(500)});
        if (appended.ok() && appended->tokens == tokens + 1) {
          ++tokens;
          absl::SleepFor(absl::Milliseconds(1));
        } else {
          ++(appended.ok() || !IsPassing(appended.status()) ? odd : passing);
          absl::SleepFor(absl::Milliseconds(2));
        }
      }
    });
  }

  Rng rng{17};
  Question question;
  ContextId context = 0;
  std::atomic<int64_t> tokens{0};  // acknowledged
  std::atomic<int> passing{0}, odd{0};
  std::thread thread;
};

}  // namespace annulus::test
