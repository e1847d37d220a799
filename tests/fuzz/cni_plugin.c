// Feeds the CNI plug-in's parsers with a configuration that is changed at random, each in memory that ends where the text ends, so that
// AddressSanitizer sees a byte read too much.  What was read must lie within the text, and what is called JSON must be so to itself.
// usage: cni_plugin SEED ROUNDS < configuration
#include "request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned long long state;

static unsigned chance(unsigned below) { // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (unsigned)((state * 2685821657736338717ULL) >> 33) % below;
}

static const char *const PIECES[] = {"{", "}", "[", "]", ",", ":", "\"", "\\", "\\u00", "null", "-", "0", "1e", ".", "\"ips\":", "\x01", "\xff",
                                     "{\"address\":\"", "\"cniVersion\":", "/", "\"prevResult\":{", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["};

static size_t change(char *text, size_t length, size_t room) {
    for (unsigned times = 1 + chance(6); times > 0 && length > 0; times--) {
        size_t at = chance((unsigned)length);
        const char *piece = PIECES[chance(sizeof PIECES / sizeof *PIECES)];
        size_t count = strlen(piece), cut = chance(12);
        switch (chance(4)) {
        case 0: text[at] = (char)chance(256); break;
        case 1: length = chance(8) == 0 ? at : length; break;
        case 2:
            cut = cut > length - at ? length - at : cut;
            memmove(text + at, text + at + cut, length - at - cut);
            length -= cut;
            break;
        default:
            if (length + count > room) break;
            memmove(text + at + count, text + at, length - at);
            memcpy(text + at, piece, count);
            length += count;
        }
    }
    return length;
}

static void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

static bool within(struct span part, struct span whole) { return part.at >= whole.at && part.end <= whole.end && part.at <= part.end; }

static bool look(struct span text) {
    static const char *const COMMANDS[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", NULL};
    static char out[4096];
    struct environment environment = {COMMANDS[chance(8)], "c0ffee", "/proc/self/ns/net", "eth0", "K8S_POD_NAMESPACE=a;;K8S_POD_UID;=;K8S_POD_NAME=b"};
    struct request request;
    struct failure failure;
    struct line line = {out, chance(sizeof out), 0, false};
    if (!read_request(&environment, text, &request, &failure)) return false;
    require(within(request.socket, text) && within(request.namespaces_file, text) && within(request.version, text), "settings");
    bool written = write_call(&request, &line, &failure);
    require(line.length <= line.size, "a line that fits");
    if (written) require(json_valid((struct span){out, out + line.length}) && out[line.length - 1] == '\n', "the call is JSON");
    if (request.command != ADD) return written;
    struct span before, after;
    const char *joint;
    split_result(&request, &before, &after, &joint);
    char *result = malloc(span_length(before) + span_length(after) + 16);
    int length = sprintf(result, "%.*s\"1.0.0\"%s%.*s", (int)span_length(before), before.at, joint, (int)span_length(after), after.at);
    require(json_valid((struct span){result, result + length}), "the result is JSON");
    free(result);
    return written;
}

int main(int count, char **argv) {
    static char seed[65536], changed[sizeof seed + 4096];
    size_t length = fread(seed, 1, sizeof seed, stdin);
    state = count > 1 ? strtoull(argv[1], NULL, 10) * 2 + 1 : 1;
    unsigned long understood = 0;
    for (long round = count > 2 ? atol(argv[2]) : 1; round > 0; round--) {
        memcpy(changed, seed, length);
        size_t now = round % 4 == 0 ? length : change(changed, length, sizeof changed);
        char *exact = malloc(now + (now == 0));
        memcpy(exact, changed, now);
        understood += look((struct span){exact, exact + now});
        free(exact);
    }
    printf("%lu\n", understood);
    return 0;
}
