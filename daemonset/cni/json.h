// Looks things up in JSON text without copying it or asking for memory.
//
// Invariant: `json_valid` first; all else is for text that it has called valid, and never leaves it.  Numbers and strings stay as they
// are written.  It must not know what CNI is.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define MAX_DEPTH 64 // of arrays and objects in one another; a chain's result has six

struct span {
    const char *at;
    const char *end;
};

// Exactly one value, with white space around it at most (RFC 8259; of UTF-8 only the bytes below 0x20 are judged).
bool json_valid(struct span text);

// The value itself, without white space around it.
struct span json_trim(struct span text);

bool json_is_object(struct span value);
bool json_is_array(struct span value);
bool json_is_string(struct span value);

// The member of that name, the last one if there are several as everywhere in Go; false: none.  A name that is written with escapes is
// not found.
bool json_member(struct span object, const char *name, struct span *value);

// Takes the next element off `rest`, which begins as an array; false: there is none.
bool json_next(struct span *rest, struct span *element);

// What stands between the quotes of a string, as it is written.
struct span json_inside(struct span string);

bool span_is(struct span text, const char *other);
size_t span_length(struct span text);
