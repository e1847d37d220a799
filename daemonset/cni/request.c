#define _GNU_SOURCE // strchrnul
#include "request.h"

#include <stdio.h>
#include <string.h>

static const char *const COMMANDS[] = {"", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"};
// Those before have no result of a plug-in before ours, so no chains.
static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { SINCE_CHECK = 2, SINCE_GC = 4 }; // of VERSIONS

struct span text_of(const char *text) { return (struct span){text, text + strlen(text)}; }

void line_add_span(struct line *line, struct span text) {
    size_t length = span_length(text);
    if (line->full || length > line->size - line->length) {
        line->full = true;
        return;
    }
    memcpy(line->data + line->length, text.at, length);
    line->length += length;
}

void line_add(struct line *line, const char *text) { line_add_span(line, text_of(text)); }

// How many bytes the character that the text begins with has in UTF-8; 0: it is none (RFC 3629, section 4).
static size_t character_length(struct span text) {
    unsigned char first = (unsigned char)*text.at, second = span_length(text) > 1 ? (unsigned char)text.at[1] : 0;
    size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length > span_length(text)) return 0;
    for (size_t each = 1; each < length; each++)
        if (((unsigned char)text.at[each] & 0xc0) != 0x80) return 0;
    bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
    bool surrogate = first == 0xed && second > 0x9f, beyond = first == 0xf4 && second > 0x8f;
    return overlong || surrogate || beyond ? 0 : length;
}

// Paths and what the environment says need not be UTF-8, nor a text that was cut, but JSON must be (RFC 8259, section 8.1).
void line_add_string(struct line *line, struct span text) {
    line_add(line, "\"");
    while (text.at < text.end) {
        unsigned char each = (unsigned char)*text.at;
        size_t length = character_length(text);
        char escaped[8];
        if (each < 0x20 || length == 0) {
            snprintf(escaped, sizeof escaped, "\\u%04x", length == 0 ? 0xfffd : each);
            line_add(line, escaped);
            text.at++;
            continue;
        }
        if (each == '"' || each == '\\') line_add(line, "\\");
        line_add_span(line, (struct span){text.at, text.at + length});
        text.at += length;
    }
    line_add(line, "\"");
}

static bool fail(struct failure *failure, enum code code, const char *message, const char *details) {
    failure->code = code;
    snprintf(failure->message, sizeof failure->message, "nodeproxy-cni: %s", message);
    snprintf(failure->details, sizeof failure->details, "%s", details);
    return false;
}

enum command read_command(const char *name) {
    for (enum command each = ADD; name != NULL && each <= VERSION; each++)
        if (strcmp(name, COMMANDS[each]) == 0) return each;
    return NO_COMMAND;
}

static int version_number(struct span version) {
    for (size_t each = 0; each < sizeof VERSIONS / sizeof *VERSIONS; each++)
        if (span_is(version, VERSIONS[each])) return (int)each;
    return -1;
}

bool version_known(struct span version) { return version_number(version) >= 0; }

static bool is_letter_or_digit(char each) {
    return (each >= '0' && each <= '9') || (each >= 'a' && each <= 'z') || (each >= 'A' && each <= 'Z');
}

// "A unique plaintext identifier for a container … Must start with an alphanumeric character, optionally followed by any combination
// of one or more alphanumeric characters, underscore (), dot (.) or hyphen (-)."  (CNI specification 1.1, "Parameters")
static bool is_container_id(const char *id) {
    if (!is_letter_or_digit(*id)) return false;
    for (; *id != '\0'; id++)
        if (!is_letter_or_digit(*id) && strchr("_.-", *id) == NULL) return false;
    return true;
}

// "must not be empty, must not be "." or "..", be more than 15 characters in length, contain / or : or any whitespace characters"
static bool is_ifname(const char *name) {
    size_t length = strlen(name);
    return length > 0 && length < 16 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strpbrk(name, "/: \t\n\v\f\r") == NULL;
}

// K1=V1;K2=V2, what the kubelet wants to be known of the pod; other keys are other plug-ins'.
static struct span argument(const char *args, const char *key) {
    size_t length = strlen(key);
    while (args != NULL && *args != '\0') {
        const char *end = strchrnul(args, ';');
        if ((size_t)(end - args) > length && memcmp(args, key, length) == 0 && args[length] == '=')
            return (struct span){args + length + 1, end};
        args = *end == ';' ? end + 1 : end;
    }
    return (struct span){key, key};
}

static bool read_environment(const struct environment *environment, struct request *request, struct failure *failure) {
    request->container_id = environment->container_id != NULL ? environment->container_id : "";
    request->ifname = environment->ifname != NULL ? environment->ifname : "";
    request->netns = environment->netns != NULL ? environment->netns : "";
    request->pod_namespace = argument(environment->args, "K8S_POD_NAMESPACE");
    request->pod_name = argument(environment->args, "K8S_POD_NAME");
    request->pod_uid = argument(environment->args, "K8S_POD_UID");
    if (request->command == GC || request->command == STATUS) return true;
    if (!is_container_id(request->container_id))
        return fail(failure, INVALID_ENVIRONMENT, "CNI_CONTAINERID is missing or no container's identifier", request->container_id);
    if (!is_ifname(request->ifname))
        return fail(failure, INVALID_ENVIRONMENT, "CNI_IFNAME is missing or no interface's name", request->ifname);
    if (request->command != DEL && *request->netns == '\0')
        return fail(failure, INVALID_ENVIRONMENT, "CNI_NETNS is missing", "");
    return true;
}

static bool read_version(struct span config, struct request *request, struct failure *failure) {
    struct span value;
    request->version = text_of("");
    if (json_member(config, "cniVersion", &value) && json_is_string(value)) request->version = json_inside(value);
    int version = version_number(request->version);
    int needed = request->command == CHECK ? SINCE_CHECK : request->command == GC || request->command == STATUS ? SINCE_GC : 0;
    if (version >= needed) return true;
    char details[128];
    snprintf(details, sizeof details, "%s needs cniVersion %s to %s", COMMANDS[request->command], VERSIONS[needed], LATEST_VERSION);
    return fail(failure, INCOMPATIBLE_VERSION, "incompatible CNI version", details);
}

// A setting that is a path: without escapes, for it is written by `nodeproxy cni install`.
static bool read_path(struct span config, const char *name, struct span *path, struct failure *failure) {
    struct span value;
    if (!json_member(config, name, &value) || !json_is_string(value) || *json_inside(value).at != '/' ||
        memchr(value.at, '\\', span_length(value)) != NULL)
        return fail(failure, INVALID_CONFIG, "the network configuration lacks a setting of ours, an absolute path", name);
    *path = json_inside(value);
    return true;
}

bool read_request(const struct environment *environment, struct span input, struct request *request, struct failure *failure) {
    memset(request, 0, sizeof *request);
    request->version = text_of("");
    request->command = read_command(environment->command);
    if (request->command == NO_COMMAND)
        return fail(failure, INVALID_ENVIRONMENT, "CNI_COMMAND is missing or unknown", environment->command ? environment->command : "");
    if (!json_valid(input) || !json_is_object(json_trim(input)))
        return fail(failure, NOT_DECODED, "the network configuration on standard input is no JSON object", "");
    struct span config = json_trim(input);
    if (!read_version(config, request, failure) || !read_environment(environment, request, failure)) return false;
    if (!read_path(config, "socket", &request->socket, failure)) return false;
    if (!read_path(config, "namespacesFile", &request->namespaces_file, failure)) return false;
    if (!json_member(config, "exemptNamespaces", &request->exempt) || !json_is_array(request->exempt)) request->exempt = text_of("");
    if (request->command == ADD || request->command == CHECK) {
        if (!json_member(config, "prevResult", &request->previous) || !json_is_object(request->previous))
            return fail(failure, INVALID_CONFIG, "it must come after another plug-in of a chain: there is no prevResult", "");
    }
    if (request->command == GC && !json_member(config, "cni.dev/valid-attachments", &request->valid))
        return fail(failure, INVALID_CONFIG, "GC without cni.dev/valid-attachments", "");
    return true;
}

// An address of the result, without its prefix length.
static bool add_address(struct line *line, struct span ip, bool is_first) {
    struct span value;
    if (!json_member(ip, "address", &value) || !json_is_string(value)) return false;
    value = json_inside(value);
    const char *slash = memchr(value.at, '/', span_length(value));
    if (slash != NULL) value.end = slash;
    if (!is_first) line_add(line, ",");
    line_add_string(line, value);
    return true;
}

static bool add_addresses(struct line *line, struct span previous) {
    struct span ips, ip;
    int count = 0;
    if (!json_member(previous, "ips", &ips)) return true;
    for (; json_next(&ips, &ip); count++)
        if (count == MAX_ADDRESSES || !add_address(line, ip, count == 0)) return false;
    return true;
}

static void add_pod(struct line *line, const struct request *request) {
    const struct {
        const char *name;
        struct span value;
    } fields[] = {
        {"{\"container_id\":", text_of(request->container_id)},
        {",\"netns\":", text_of(request->netns)},
        {",\"ifname\":", text_of(request->ifname)},
        {",\"namespace\":", request->pod_namespace},
        {",\"name\":", request->pod_name},
        {",\"pod_uid\":", request->pod_uid},
    };
    for (size_t each = 0; each < sizeof fields / sizeof *fields; each++) {
        line_add(line, fields[each].name);
        line_add_string(line, fields[each].value);
    }
}

static bool add_attachments(struct line *line, struct span valid) {
    struct span each, id, ifname;
    if (!json_is_array(valid) && !span_is(valid, "null")) return false; // Go writes null for a list of none
    for (bool is_first = true; json_next(&valid, &each); is_first = false) {
        if (!json_member(each, "containerID", &id) || !json_member(each, "ifname", &ifname)) return false;
        if (!json_is_string(id) || !json_is_string(ifname)) return false;
        line_add(line, is_first ? "{\"container_id\":" : ",{\"container_id\":");
        line_add_span(line, id);
        line_add(line, ",\"ifname\":");
        line_add_span(line, ifname);
        line_add(line, "}");
    }
    return true;
}

bool write_call(const struct request *request, struct line *line, struct failure *failure) {
    line_add(line, "{\"command\":");
    line_add_string(line, text_of(COMMANDS[request->command]));
    if (request->command == ADD || request->command == DEL || request->command == CHECK) {
        line_add(line, ",\"pod\":");
        add_pod(line, request);
        line_add(line, ",\"addresses\":[");
        if (request->command != DEL && !add_addresses(line, request->previous))
            return fail(failure, NOT_DECODED, "prevResult has an address that is none, or too many", "");
        line_add(line, "]}");
    }
    line_add(line, ",\"valid\":[");
    if (request->command == GC && !add_attachments(line, request->valid))
        return fail(failure, NOT_DECODED, "cni.dev/valid-attachments is no list of containerID and ifname", "");
    line_add(line, "]}\n");
    return !line->full || fail(failure, INVALID_CONFIG, "the call is longer than the agent takes", "");
}

void split_result(const struct request *request, struct span *before, struct span *after, const char **joint) {
    struct span version, result = request->previous;
    if (json_member(result, "cniVersion", &version)) {
        *before = (struct span){result.at, version.at};
        *after = (struct span){version.end, result.end};
        *joint = "";
        return;
    }
    struct span rest = {result.at + 1, result.end};
    *before = text_of("{\"cniVersion\":");
    *after = rest;
    *joint = json_is_string(json_trim(rest)) ? "," : ""; // else it is empty
}
