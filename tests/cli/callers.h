// Callers of a service that something happens to: they keep their contexts, come what may, and
// count what they are told.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "base/rng.h"
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

// What callers were told, in all.
struct Told {
  int right = 0;
  int wrong = 0;
  int passing = 0;
  int odd = 0;
};

// Readers and a writer of one service, each with a context of its own.
class Callers {
 public:
  static constexpr int kReaders = 3;

  explicit Callers(Client& client) : writer_(client, stop_) {
    for (int i = 0; i < kReaders; ++i) {
      readers_.push_back(std::make_unique<Reader>(client, 20 + i, stop_));
    }
  }
  ~Callers() { Stop(); }

  bool uploaded() const {
    return std::all_of(readers_.begin(), readers_.end(),
                       [](const auto& reader) { return reader->context.ok(); });
  }
  int answers() const {
    int right = 0;
    for (const auto& reader : readers_) right += reader->right;
    return right;
  }
  const Writer& writer() const { return writer_; }
  const std::vector<std::unique_ptr<Reader>>& readers() const { return readers_; }

  // Whether every reader has had a right answer since `since`.
  bool AllAnswered(absl::Time since) const {
    return std::all_of(readers_.begin(), readers_.end(), [since](const auto& reader) {
      return reader->last_right > absl::ToUnixNanos(since);
    });
  }

  Told Stop() {
    stop_ = true;
    if (writer_.thread.joinable()) writer_.thread.join();
    Told told{.odd = writer_.odd};
    for (const auto& reader : readers_) {
      if (reader->thread.joinable()) reader->thread.join();
      told.right += reader->right;
      told.wrong += reader->wrong;
      told.passing += reader->passing;
      told.odd += reader->odd;
    }
    return told;
  }

 private:
  std::atomic<bool> stop_ = false;
  std::vector<std::unique_ptr<Reader>> readers_;
  Writer writer_;
};

}  // namespace annulus::test
