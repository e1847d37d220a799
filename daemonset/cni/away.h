// What becomes of a pod while nobody can say whether it belongs into the mesh.
//
// Invariant: what can't be read holds back.  It must not know why the agent is away.
#pragma once

#include "request.h"

enum verdict {
    START_NO_POD,   // the runtime names no pod: no kubelet's, so it is never in the mesh
    START_EXEMPT,   // the configuration says that its namespace never waits
    START_OUTSIDE,  // its namespace is not in the mesh
    HOLD_IN_MESH,   // its namespace is, or pods of it
    HOLD_UNKNOWN,   // there is no list of namespaces that are
};

enum verdict verdict_of(const struct request *request);

// Whether there is a list of the mesh's namespaces.
bool has_list(const struct request *request);
