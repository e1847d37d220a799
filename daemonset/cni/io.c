#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES 4096 // a pipe that poll() calls writable takes as much without waiting, however it was opened: PIPE_BUF, pipe(7)
#define RETRY_MS 5       // as long as the agent's queue of connections is full

long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static bool wait_for(int descriptor, short events, long long deadline_ms) {
    for (;;) {
        long long left_ms = deadline_ms - now_ms();
        struct pollfd one = {descriptor, events, 0};
        int ready = left_ms > 0 ? poll(&one, 1, (int)left_ms) : 0;
        if (ready > 0) return true;
        if (ready == 0) errno = ETIMEDOUT;
        if (ready == 0 || errno != EINTR) return false;
    }
}

ssize_t read_all(int descriptor, char *data, size_t size, long long deadline_ms) {
    size_t length = 0;
    while (length < size) {
        if (!wait_for(descriptor, POLLIN, deadline_ms)) return -1;
        ssize_t got = read(descriptor, data + length, size - length);
        if (got == 0) break;
        if (got < 0 && errno != EINTR && errno != EAGAIN) return -1;
        if (got > 0) length += (size_t)got;
    }
    return (ssize_t)length;
}

bool write_all(int descriptor, struct span text, long long deadline_ms) {
    while (text.at < text.end) {
        if (!wait_for(descriptor, POLLOUT, deadline_ms)) return false;
        ssize_t done = write(descriptor, text.at, span_length(text) < PIECE_BYTES ? span_length(text) : PIECE_BYTES);
        if (done < 0 && errno != EINTR && errno != EAGAIN) return false;
        if (done > 0) text.at += done;
    }
    return true;
}

static bool connect_to(int descriptor, struct span path, long long deadline_ms) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (span_length(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return false;
    }
    memcpy(address.sun_path, path.at, span_length(path));
    while (connect(descriptor, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno != EAGAIN && errno != EINTR) return false;
        if (now_ms() >= deadline_ms) {
            errno = ETIMEDOUT;
            return false;
        }
        poll(NULL, 0, RETRY_MS);
    }
    return true;
}

ssize_t exchange(struct span path, struct span call, char *answer, size_t size, long long deadline_ms) {
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -1;
    ssize_t length = -1;
    if (connect_to(descriptor, path, deadline_ms) && write_all(descriptor, call, deadline_ms))
        length = read_all(descriptor, answer, size, deadline_ms);
    int error = errno;
    close(descriptor);
    errno = error;
    return length;
}
