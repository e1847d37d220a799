// nodeproxy's chained CNI plug-in: asks the node's agent to put a new pod into the mesh before its first packet, and hands the result of
// the plug-ins before it on as it is.
//
// Invariant: it makes nothing and keeps nothing, so that DEL has nothing to undo and always succeeds.  The agent decides; only when it is
// away, or does not know yet, the list of the mesh's namespaces that it left decides (away.c).
// gcc -std=gnu11 -O2 -static -Wall -Wextra -Werror -o nodeproxy-cni daemonset/cni/*.c
#include "away.h"
#include "io.h"
#include "request.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TIME_LIMIT_MS 15000      // the agent answers within 12 s; the kubelet gives a pod's network two minutes
#define OUTPUT_LIMIT_MS 5000     // for what is said then, however long all before has taken: a runtime reads at once
#define AGAIN_MS 20              // how often who hangs up is asked again
#define NS_GET_NSTYPE 0xb703     // <linux/nsfs.h>
#define CLONE_NEWNET 0x40000000  // <linux/sched.h>

static char input[MAX_INPUT_BYTES + 1], call[MAX_LINE_BYTES], answer[16384], output[65536];

enum outcome { ANSWERED, UNDECIDED, AWAY };

struct reply {
    enum outcome outcome;
    long code;
    struct span message, details; // as they stand in JSON's strings
    bool hangs;                   // of AWAY: somebody is there, and says nothing
    char why[256];                // of AWAY
};

static long long deadline_ms; // for the call and the agent's answer

static int print(struct line *line) {
    struct span text = {line->data, line->data + line->length};
    return !line->full && write_all(STDOUT_FILENO, text, now_ms() + OUTPUT_LIMIT_MS) ? 0 : 1;
}

// The specification's error; the version is the caller's if it is one of ours.
static int print_error(const struct request *request, long code, struct span message, struct span details, bool escaped) {
    struct line line = {output, sizeof output, 0, false};
    char number[32];
    snprintf(number, sizeof number, ",\"code\":%ld,\"msg\":", code);
    line_add(&line, "{\"cniVersion\":");
    line_add_string(&line, version_known(request->version) ? request->version : text_of(LATEST_VERSION));
    line_add(&line, number);
    if (escaped) {
        line_add(&line, "\"");
        line_add_span(&line, message);
        line_add(&line, "\",\"details\":\"");
        line_add_span(&line, details);
        line_add(&line, "\"}\n");
    } else {
        line_add_string(&line, message);
        line_add(&line, ",\"details\":");
        line_add_string(&line, details);
        line_add(&line, "}\n");
    }
    print(&line);
    return 1;
}

static int print_failure(const struct request *request, const struct failure *failure) {
    return print_error(request, failure->code, text_of(failure->message), text_of(failure->details), false);
}

static int print_versions(struct span config) {
    struct line line = {output, sizeof output, 0, false};
    struct span version, value;
    version = text_of(LATEST_VERSION);
    if (json_valid(config) && json_member(json_trim(config), "cniVersion", &value) && json_is_string(value) && version_known(json_inside(value)))
        version = json_inside(value);
    line_add(&line, "{\"cniVersion\":");
    line_add_string(&line, version);
    line_add(&line, ",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n");
    return print(&line);
}

static int print_result(const struct request *request) {
    struct line line = {output, sizeof output, 0, false};
    struct span before, after;
    const char *joint;
    split_result(request, &before, &after, &joint);
    line_add_string(&line, request->version);
    line_add(&line, joint);
    const struct span parts[] = {before, {output, output + line.length}, after, text_of("\n")};
    long long until_ms = now_ms() + OUTPUT_LIMIT_MS;
    for (size_t each = 0; each < sizeof parts / sizeof *parts; each++)
        if (line.full || !write_all(STDOUT_FILENO, parts[each], until_ms)) return 1;
    return 0;
}

static struct reply ask(const struct request *request, struct span question) {
    struct reply reply = {.outcome = AWAY};
    ssize_t length = exchange(request->socket, question, answer, sizeof answer, deadline_ms);
    while ((length == 0 || (length < 0 && (errno == ECONNRESET || errno == EPIPE))) && now_ms() < deadline_ms) {
        poll(NULL, 0, AGAIN_MS); // it hung up: another one takes over, or nobody listens any more
        length = exchange(request->socket, question, answer, sizeof answer, deadline_ms);
    }
    struct span text = {answer, answer + (length > 0 ? length : 0)}, value, code;
    if (length <= 0 || !json_valid(text) || !json_member(json_trim(text), "code", &code)) {
        const char *problem = length < 0 ? strerror(errno) : length == 0 ? "it ended without an answer" : "its answer makes no sense";
        reply.hangs = length < 0 && errno == ETIMEDOUT;
        snprintf(reply.why, sizeof reply.why, "%.*s: %s", (int)span_length(request->socket), request->socket.at, problem);
        return reply;
    }
    text = json_trim(text);
    reply.outcome = json_member(text, "decided", &value) && span_is(value, "false") ? UNDECIDED : ANSWERED;
    reply.code = strtol(code.at, NULL, 10);
    reply.message = reply.details = text_of("");
    if (json_member(text, "message", &value) && json_is_string(value)) reply.message = json_inside(value);
    if (json_member(text, "details", &value) && json_is_string(value)) reply.details = json_inside(value);
    return reply;
}

// Why nobody decided.
static const char *state_of(const struct reply *reply) {
    if (reply->outcome == UNDECIDED) return "does not know yet who is in the mesh";
    return reply->hangs ? "does not answer in time" : "is away";
}

// Nobody decided: a pod that may belong into the mesh waits for somebody who can.
static int go_by_the_list(const struct request *request, const struct reply *reply) {
    enum verdict verdict = verdict_of(request);
    if (verdict <= START_OUTSIDE) return request->command == ADD ? print_result(request) : 0;
    struct failure failure = {.code = TRY_AGAIN_LATER};
    struct line line = {failure.message, sizeof failure.message - 1, 0, false};
    line_add(&line, "nodeproxy's agent on this node ");
    line_add(&line, state_of(reply));
    line_add(&line, verdict == HOLD_IN_MESH ? ", and pods of namespace " : ", and whether pods of namespace ");
    line_add_span(&line, request->pod_namespace);
    line_add(&line, verdict == HOLD_IN_MESH ? " belong into the mesh" : " belong into the mesh is not known");
    line_add(&line, ": the pod waits for it and is tried again by itself; look after the nodeproxy pod of this node");
    if (reply->outcome == AWAY) {
        snprintf(failure.details, sizeof failure.details, "%s", reply->why);
        return print_failure(request, &failure);
    }
    snprintf(failure.details, sizeof failure.details, "%.*s", (int)span_length(reply->message), reply->message.at);
    return print_failure(request, &failure);
}

static int report_status(const struct request *request, const struct reply *reply) {
    if (reply->outcome == ANSWERED && reply->code == NO_ERROR) return 0;
    if (reply->outcome != ANSWERED && has_list(request)) return 0; // pods outside the mesh start
    struct failure failure = {reply->outcome == AWAY ? LIMITED : UNAVAILABLE, "", ""};
    snprintf(failure.message, sizeof failure.message, "nodeproxy's agent on this node %s, and the list of the mesh's namespaces is missing: pods wait",
             state_of(reply));
    snprintf(failure.details, sizeof failure.details, "%s", reply->why);
    return print_failure(request, &failure);
}

static bool check_netns(const struct request *request, struct failure *failure) {
    if (request->command != ADD && request->command != CHECK) return true;
    int descriptor = open(request->netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int kind = descriptor < 0 ? -1 : ioctl(descriptor, NS_GET_NSTYPE);
    const char *problem = descriptor < 0 ? strerror(errno) : "it is no network namespace";
    if (descriptor >= 0) close(descriptor);
    if (kind == CLONE_NEWNET) return true;
    failure->code = INVALID_ENVIRONMENT;
    snprintf(failure->message, sizeof failure->message, "nodeproxy-cni: CNI_NETNS %.512s: %s", request->netns, problem);
    return false;
}

static int serve(const struct environment *environment, struct span config) {
    static struct request request;
    struct failure failure = {NO_ERROR, "", ""};
    struct line line = {call, sizeof call, 0, false};
    if (!read_request(environment, config, &request, &failure) || !check_netns(&request, &failure) || !write_call(&request, &line, &failure))
        return request.command == DEL ? 0 : print_failure(&request, &failure);
    struct reply reply = ask(&request, (struct span){call, call + line.length});
    if (request.command == STATUS) return report_status(&request, &reply);
    if (request.command == DEL || (request.command == GC && reply.outcome != ANSWERED)) return 0;
    if (reply.outcome != ANSWERED) return go_by_the_list(&request, &reply);
    if (reply.code != NO_ERROR) return print_error(&request, reply.code, reply.message, reply.details, true);
    return request.command == ADD ? print_result(&request) : 0;
}

int main(void) {
    struct environment environment = {getenv("CNI_COMMAND"), getenv("CNI_CONTAINERID"), getenv("CNI_NETNS"), getenv("CNI_IFNAME"), getenv("CNI_ARGS")};
    signal(SIGPIPE, SIG_IGN); // an agent that ends while it is asked is one that is away
    deadline_ms = now_ms() + TIME_LIMIT_MS;
    ssize_t length = read_all(STDIN_FILENO, input, sizeof input, deadline_ms);
    struct request nothing = {.version = text_of("")};
    if (length < 0 || length > MAX_INPUT_BYTES) {
        struct failure failure = {length < 0 ? IO_FAILURE : NOT_DECODED, "nodeproxy-cni: standard input can't be read", ""};
        snprintf(failure.details, sizeof failure.details, "%s", length < 0 ? strerror(errno) : "more than 1 MiB");
        return read_command(environment.command) == DEL ? 0 : print_failure(&nothing, &failure);
    }
    struct span config = {input, input + length};
    if (read_command(environment.command) == VERSION) return print_versions(config);
    return serve(&environment, config);
}
