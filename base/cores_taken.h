// Which share of this machine's cores others had since an object was made, in [0, 1]: other
// processes, and other guests of the host as far as it tells. 0 where the system does not say.
#pragma once

#include <optional>

namespace annulus {

class CoresTaken {
 public:
  CoresTaken();

  double Share() const;

 private:
  struct Times {
    double all = 0;   // seconds of all cores
    double used = 0;  // that were not idle
    double own = 0;   // of this process
  };
  static std::optional<Times> Now();

  const std::optional<Times> begin_;
};

}  // namespace annulus
