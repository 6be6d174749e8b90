// The two error macros. Expected failure travels as absl::Status / absl::StatusOr; these only
// save the reader the plumbing.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ANNULUS_INTERNAL_CONCAT_(a, b) a##b
#define ANNULUS_INTERNAL_CONCAT(a, b) ANNULUS_INTERNAL_CONCAT_(a, b)

// Evaluates `expr` (an absl::Status) and returns it from the enclosing function unless it is OK.
#define ANNULUS_RETURN_IF_ERROR(expr)                                                      \
  do {                                                                                     \
    if (absl::Status annulus_status = (expr); !annulus_status.ok()) return annulus_status; \
  } while (false)

// Evaluates `expr` (an absl::StatusOr<T>), returns its status on error, else assigns to `lhs`,
// which may be a declaration: ANNULUS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Parse(text, 4));
#define ANNULUS_ASSIGN_OR_RETURN(lhs, ...)                                     \
  auto ANNULUS_INTERNAL_CONCAT(annulus_or_, __LINE__) = (__VA_ARGS__);         \
  if (!ANNULUS_INTERNAL_CONCAT(annulus_or_, __LINE__).ok())                    \
    return std::move(ANNULUS_INTERNAL_CONCAT(annulus_or_, __LINE__)).status(); \
  lhs = *std::move(ANNULUS_INTERNAL_CONCAT(annulus_or_, __LINE__))
