#include "json.h"

#include <string.h>

static bool skip_value(struct span *in, int depth);

size_t span_length(struct span text) { return (size_t)(text.end - text.at); }

bool span_is(struct span text, const char *other) {
    return span_length(text) == strlen(other) && memcmp(text.at, other, span_length(text)) == 0;
}

static void skip_space(struct span *in) {
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r')) in->at++;
}

static bool take(struct span *in, char wanted) {
    if (in->at == in->end || *in->at != wanted) return false;
    in->at++;
    return true;
}

static bool take_word(struct span *in, const char *word) {
    size_t length = strlen(word);
    if (span_length(*in) < length || memcmp(in->at, word, length) != 0) return false;
    in->at += length;
    return true;
}

static bool is_hex(char each) {
    return (each >= '0' && each <= '9') || (each >= 'a' && each <= 'f') || (each >= 'A' && each <= 'F');
}

static bool skip_escape(struct span *in) {
    if (in->at == in->end) return false;
    char kind = *in->at++;
    if (kind != 'u') return kind != '\0' && strchr("\"\\/bfnrt", kind) != NULL;
    for (int digit = 0; digit < 4; digit++, in->at++)
        if (in->at == in->end || !is_hex(*in->at)) return false;
    return true;
}

static bool skip_string(struct span *in) {
    if (!take(in, '"')) return false;
    while (in->at < in->end) {
        unsigned char each = (unsigned char)*in->at++;
        if (each == '"') return true;
        if (each < 0x20 || (each == '\\' && !skip_escape(in))) return false;
    }
    return false;
}

static bool skip_digits(struct span *in) {
    const char *from = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9') in->at++;
    return in->at != from;
}

static bool skip_number(struct span *in) {
    take(in, '-');
    if (!take(in, '0') && !skip_digits(in)) return false;
    if (take(in, '.') && !skip_digits(in)) return false;
    if (take(in, 'e') || take(in, 'E')) {
        if (!take(in, '+')) take(in, '-');
        return skip_digits(in);
    }
    return true;
}

// A name and its colon, with what is around them.
static bool skip_name(struct span *in, struct span *name) {
    skip_space(in);
    name->at = in->at;
    if (!skip_string(in)) return false;
    name->end = in->at;
    skip_space(in);
    return take(in, ':');
}

static bool skip_list(struct span *in, bool named, char close, int depth) {
    struct span name;
    in->at++;
    skip_space(in);
    if (take(in, close)) return true;
    do {
        if (named && !skip_name(in, &name)) return false;
        if (!skip_value(in, depth + 1)) return false;
        skip_space(in);
    } while (take(in, ','));
    return take(in, close);
}

static bool skip_value(struct span *in, int depth) {
    skip_space(in);
    if (in->at == in->end || depth > MAX_DEPTH) return false;
    switch (*in->at) {
    case '{': return skip_list(in, true, '}', depth);
    case '[': return skip_list(in, false, ']', depth);
    case '"': return skip_string(in);
    case 't': return take_word(in, "true");
    case 'f': return take_word(in, "false");
    case 'n': return take_word(in, "null");
    default: return skip_number(in);
    }
}

bool json_valid(struct span text) {
    if (!skip_value(&text, 0)) return false;
    skip_space(&text);
    return text.at == text.end;
}

struct span json_trim(struct span text) {
    skip_space(&text);
    struct span value = text;
    skip_value(&text, 0);
    value.end = text.at;
    return value;
}

bool json_is_object(struct span value) { return value.at < value.end && *value.at == '{'; }
bool json_is_array(struct span value) { return value.at < value.end && *value.at == '['; }
bool json_is_string(struct span value) { return value.at < value.end && *value.at == '"'; }

struct span json_inside(struct span string) { return (struct span){string.at + 1, string.end - 1}; }

bool json_member(struct span object, const char *name, struct span *value) {
    bool found = false;
    struct span key, each;
    if (!json_is_object(object)) return false;
    do {
        object.at++; // the bracket, or a comma
        if (!skip_name(&object, &key)) break; // it is empty
        skip_space(&object);
        each.at = object.at;
        if (!skip_value(&object, 0)) break;
        each.end = object.at;
        if (span_is(json_inside(key), name)) {
            *value = each;
            found = true;
        }
        skip_space(&object);
    } while (object.at < object.end && *object.at == ',');
    return found;
}

bool json_next(struct span *rest, struct span *element) {
    if (rest->at == rest->end || (*rest->at != '[' && *rest->at != ',')) return false;
    rest->at++;
    skip_space(rest);
    element->at = rest->at;
    if (!skip_value(rest, 0)) return false; // the end of an empty one
    element->end = rest->at;
    skip_space(rest);
    return true;
}
