// What a container runtime asks of the plug-in, and the line that asks the agent for it.
//
// Invariant: what is not understood is an error of the CNI specification's, never a guess.  No I/O; no memory but the caller's.
#pragma once

#include "json.h"

#define MAX_INPUT_BYTES (1024 * 1024)
#define MAX_LINE_BYTES (256 * 1024) // nodeproxy/model/cni.py
#define MAX_ADDRESSES 64            // the same
#define LATEST_VERSION "1.1.0"

// CNI specification 1.1, "Error"
enum code {
    NO_ERROR = 0,
    INCOMPATIBLE_VERSION = 1,
    INVALID_ENVIRONMENT = 4,
    IO_FAILURE = 5,
    NOT_DECODED = 6,
    INVALID_CONFIG = 7,
    TRY_AGAIN_LATER = 11,
    UNAVAILABLE = 50,
    LIMITED = 51,
};

enum command { NO_COMMAND, ADD, DEL, CHECK, GC, STATUS, VERSION };

struct environment {
    const char *command, *container_id, *netns, *ifname, *args; // each may be NULL
};

struct request {
    enum command command;
    const char *container_id, *netns, *ifname;         // "" where the command has none
    struct span pod_namespace, pod_name, pod_uid;      // of CNI_ARGS
    struct span version;                               // of the protocol; what stands in the quotes
    struct span previous, valid;                       // values as they are written; empty where the command has none
    struct span socket, namespaces_file, exempt;       // our own settings: strings without quotes, an array or empty
};

struct failure {
    enum code code;
    char message[1024];
    char details[512];
};

// A growing text in memory of the caller's; once something did not fit it is `full`, and no text.
struct line {
    char *data;
    size_t size, length;
    bool full;
};

void line_add(struct line *line, const char *text);
void line_add_span(struct line *line, struct span text);
void line_add_string(struct line *line, struct span text); // with quotes, escaped

struct span text_of(const char *text);

// Which command, by name.
enum command read_command(const char *name);

// Whether we speak that version.
bool version_known(struct span version);

// Reads it all; false: `failure` says why.
bool read_request(const struct environment *environment, struct span input, struct request *request, struct failure *failure);

// What the agent is asked, with its line's end; false: it is longer than the agent takes, or the result before ours is not one.
bool write_call(const struct request *request, struct line *line, struct failure *failure);

// Of a result before ours: what stands before and after the version in it, which is replaced by ours.
void split_result(const struct request *request, struct span *before, struct span *after, const char **joint);
