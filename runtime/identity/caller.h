// Caller: who makes a call, and what callers of a role may do. The server finds the caller out
// before it reserves or reads anything, and hands it on with the call (runtime/service/service.h).
// Plain values; thread-safe functions.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "runtime/identity/quotas.h"

namespace annulus {

// What callers may do is the table below (May), and which access a call needs is a column of the
// table of calls (runtime/service/calls.h). Whose contexts a caller may touch: MayKnow.
enum class Role {
  kAdmin,   // everything
  kTenant,  // makes, fills, asks and releases contexts
  kReader,  // describes, lists, asks for status and attends, and changes nothing
  kWorker,  // joins the cluster, and nothing else
};
inline constexpr Role kRoles[] = {Role::kAdmin, Role::kTenant, Role::kReader, Role::kWorker};

// "admin", "tenant", "reader", "worker".
constexpr absl::string_view Name(Role role) {
  constexpr absl::string_view kNames[] = {"admin", "tenant", "reader", "worker"};
  return kNames[static_cast<int>(role)];
}

inline constexpr char kRolesText[] = "admin, tenant, reader or worker";  // as errors name them

// nullopt: no role has this name.
inline absl::optional<Role> RoleOf(absl::string_view name) {
  for (const Role role : kRoles) {
    if (Name(role) == name) return role;
  }
  return absl::nullopt;
}

// What a call does to the service.
enum class Access {
  kRead,   // changes no context
  kWrite,  // changes contexts
  kJoin,   // becomes a part of the cluster
};

constexpr bool May(Role role, Access access) {
  switch (access) {
    case Access::kRead:
      return role != Role::kWorker;
    case Access::kWrite:
      return role == Role::kAdmin || role == Role::kTenant;
    case Access::kJoin:
      return role == Role::kAdmin || role == Role::kWorker;
  }
  return false;
}

// Roles that may, for people: "admin, tenant".
inline std::string RolesThatMay(Access access) {
  std::string names;
  for (const Role role : kRoles) {
    if (!May(role, access)) continue;
    if (!names.empty()) names += ", ";
    names.append(Name(role).data(), Name(role).size());
  }
  return names;
}

// The default is the caller where authentication is off, and of calls that come through no door:
// those of the process itself.
struct Caller {
  std::string name;    // for logs
  std::string tenant;  // whose contexts are meant; empty: nobody's in particular
  Role role = Role::kAdmin;
  absl::Time expires = absl::InfiniteFuture();  // the caller must prove itself again by then
  TenantQuotas quotas = {};                     // its tenant's, as they are now
  std::string client = {};                      // where the call came from, as gRPC says it
};

// Admins are held to no quota, and neither is whoever calls for nobody in particular.
inline bool HasQuotas(const Caller& caller) {
  return caller.role != Role::kAdmin && !caller.tenant.empty();
}

// Whether the caller may know that a context of this owner is there. What is nobody's is the
// admins'.
inline bool MayKnow(const Caller& caller, absl::string_view owner) {
  if (caller.role == Role::kAdmin) return true;
  return !caller.tenant.empty() && caller.tenant == owner;
}

}  // namespace annulus
