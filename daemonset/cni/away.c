#include "away.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

static bool is_exempt(const struct request *request) {
    struct span rest = request->exempt, each;
    while (json_next(&rest, &each)) {
        struct span name = json_inside(each);
        if (json_is_string(each) && span_length(name) == span_length(request->pod_namespace) &&
            memcmp(name.at, request->pod_namespace.at, span_length(name)) == 0)
            return true;
    }
    return false;
}

static int open_list(const struct request *request) {
    char path[PATH_MAX];
    size_t length = span_length(request->namespaces_file);
    if (length >= sizeof path) return -1;
    memcpy(path, request->namespaces_file.at, length);
    path[length] = '\0';
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

// Whether a line of the file is `name`; -1: it can't be read.
static int is_listed(int descriptor, struct span name) {
    char block[16384];
    size_t length = span_length(name), column = 0;
    bool same = true;
    for (;;) {
        ssize_t got = read(descriptor, block, sizeof block);
        if (got < 0) return -1;
        if (got == 0) return same && column == length;
        for (ssize_t each = 0; each < got; each++) {
            if (block[each] != '\n') {
                same = same && column < length && block[each] == name.at[column];
                column++;
                continue;
            }
            if (same && column == length) return 1;
            same = true;
            column = 0;
        }
    }
}

enum verdict verdict_of(const struct request *request) {
    if (span_length(request->pod_namespace) == 0) return START_NO_POD;
    if (is_exempt(request)) return START_EXEMPT;
    int descriptor = open_list(request);
    if (descriptor < 0) return HOLD_UNKNOWN;
    int listed = is_listed(descriptor, request->pod_namespace);
    close(descriptor);
    return listed < 0 ? HOLD_UNKNOWN : listed > 0 ? HOLD_IN_MESH : START_OUTSIDE;
}

bool has_list(const struct request *request) {
    int descriptor = open_list(request);
    if (descriptor >= 0) close(descriptor);
    return descriptor >= 0;
}
