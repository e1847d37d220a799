// Reading and writing until a deadline, and the exchange with the agent.
//
// Invariant: nothing waits longer than that.  It must not know what is asked, nor what becomes of an answer.
#pragma once

#include "json.h"

#include <sys/types.h>

// Milliseconds of a clock that nobody sets.
long long now_ms(void);

// How much was read before the other side had said all, at most `size`; -1: errno, ETIMEDOUT among others.
ssize_t read_all(int descriptor, char *data, size_t size, long long deadline_ms);

// Whether all could be written.
bool write_all(int descriptor, struct span text, long long deadline_ms);

// Says `call` at the Unix socket `path` and reads what comes back, at most `size`.  -1: errno.
ssize_t exchange(struct span path, struct span call, char *answer, size_t size, long long deadline_ms);
