/* What runs in the pods of the simulated kubelet: one small static program, for an interpreter in each of 1,000 pods would be the
 * load of the test.
 *
 *   run PROCS NETNS PROGRAM ...   what a container runtime does: enter a cgroup, then a network namespace ("-": stay), then become
 *                                 PROGRAM; "pod" is this file.  So PROGRAM is in both before its first instruction.
 *   pause                         nothing, until a signal
 *   serve PORT WORDS              says WORDS to each connection, a line, then what it hears; WORDS are http: a web server
 *   connect ADDRESS PORT WORDS    its first instructions are a connection; what came of it is its output: "SAID microseconds"
 *   load ADDRESS PORT RATE        RATE new connections a second until SIGTERM; then "made MADE failed FAILED first ERROR at SECOND"
 *   hold ADDRESS PORT             one connection, on which a byte goes and comes each 100 ms; its end is its output
 *   probe http|tcp ADDRESS PORT   what a kubelet asks; exit status 0: it is well
 *   sleep MILLISECONDS STATUS     ends then
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_US 5000000
#define MAX_OPEN 8192

static volatile sig_atomic_t ending;

static void on_end(int number)
{
    (void)number;
    ending = 1;
}

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(125);
}

static socklen_t address_of(const char *text, const char *port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (void *)out;
    struct sockaddr_in6 *v6 = (void *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1)
        fail(text);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(atoi(port));
    return sizeof *v6;
}

static int run(char **argv)
{
    if (strcmp(argv[0], "-") != 0) {
        int procs = open(argv[0], O_WRONLY | O_CLOEXEC);
        if (procs < 0 || write(procs, "0", 1) != 1)
            fail(argv[0]);
    }
    if (strcmp(argv[1], "-") != 0) {
        int netns = open(argv[1], O_RDONLY | O_CLOEXEC);
        if (netns < 0 || setns(netns, CLONE_NEWNET) != 0)
            fail(argv[1]);
    }
    if (strcmp(argv[2], "pod") == 0)
        execv("/proc/self/exe", argv + 2);
    else
        execvp(argv[2], argv + 2);
    fail(argv[2]);
    return 1;
}

static int pause_(void)
{
    while (!ending)
        pause();
    return 0;
}

static int serve(const char *port, const char *words)
{
    struct epoll_event events[64];
    struct sockaddr_in6 where = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port)), .sin6_addr = in6addr_any};
    int yes = 1, no = 0, listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), poller = epoll_create1(0);
    char buffer[4096], page[512], greeting[256];
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (bind(listener, (void *)&where, sizeof where) != 0 || listen(listener, 4096) != 0)
        fail("listen");
    snprintf(page, sizeof page, "HTTP/1.0 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(words), words);
    snprintf(greeting, sizeof greeting, "%s\n", words);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
    while (!ending) {
        int count = epoll_wait(poller, events, 64, -1);
        for (int each = 0; each < count; each++) {
            int sock = events[each].data.fd;
            if (sock == listener) {
                while ((sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    struct epoll_event added = {.events = EPOLLIN, .data.fd = sock};
                    epoll_ctl(poller, EPOLL_CTL_ADD, sock, &added);
                    if (strcmp(words, "http") != 0)
                        send(sock, greeting, strlen(greeting), MSG_NOSIGNAL); /* of a reset one the poller will tell */
                }
                continue;
            }
            ssize_t got = recv(sock, buffer, sizeof buffer, 0);
            if (got <= 0) {
                if (got == 0 || errno != EAGAIN)
                    close(sock);
            } else if (got > 4 && memcmp(buffer, "GET ", 4) == 0) {
                send(sock, page, strlen(page), MSG_NOSIGNAL);
                shutdown(sock, SHUT_WR);
            } else if (send(sock, buffer, got, MSG_NOSIGNAL) < 0) {
                close(sock);
            }
        }
    }
    return 0;
}

static int dial(const char *address, const char *port)
{
    struct sockaddr_storage where;
    struct timeval timeout = {.tv_sec = TIMEOUT_US / 1000000};
    socklen_t length = address_of(address, port, &where);
    int sock = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    if (connect(sock, (void *)&where, length) == 0)
        return sock;
    close(sock);
    return -1;
}

static int connect_(const char *address, const char *port, const char *words)
{
    int64_t began = now_us();
    char said[256];
    int sock = dial(address, port);
    ssize_t got = -1;
    if (sock >= 0 && send(sock, words, strlen(words), MSG_NOSIGNAL) > 0)
        got = recv(sock, said, sizeof said - 1, 0);
    if (got <= 0) {
        printf("error %s\n", got == 0 ? "end" : strerrorname_np(errno));
        return 1;
    }
    said[got] = 0;
    said[strcspn(said, "\n")] = 0;
    printf("%s %lld\n", said, (long long)(now_us() - began));
    return 0;
}

static int hold(const char *address, const char *port)
{
    char buffer[256];
    int sock = dial(address, port);
    if (sock < 0 || recv(sock, buffer, sizeof buffer, 0) <= 0) {
        printf("error %s\n", strerrorname_np(errno));
        return 1;
    }
    int64_t began = now_us();
    for (long told = 0; !ending; told++) {
        ssize_t got = send(sock, "x", 1, MSG_NOSIGNAL) == 1 ? recv(sock, buffer, sizeof buffer, 0) : -1;
        if (got <= 0 && !ending) {
            printf("ended after %.3f s: %s\n", (now_us() - began) / 1e6, got == 0 ? "end" : strerrorname_np(errno));
            return 1;
        }
        usleep(100000);
    }
    printf("well after %.3f s\n", (now_us() - began) / 1e6);
    return 0;
}

/* Connections by descriptor; those that wait are looked through for the oldest each 100 ms. */
static int64_t since[MAX_OPEN];

struct load {
    long made, failed;
    const char *first;
    double first_s;
};

static void settle(struct load *load, int sock, const char *error, int64_t began)
{
    if (error != NULL && load->failed++ == 0) {
        load->first = error;
        load->first_s = (now_us() - began) / 1e6;
    }
    since[sock] = 0;
    close(sock);
}

static int load_(const char *address, const char *port, double rate)
{
    struct sockaddr_storage where;
    struct epoll_event events[256];
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    socklen_t length = address_of(address, port, &where);
    struct load load = {.first = "none"};
    int poller = epoll_create1(EPOLL_CLOEXEC);
    int64_t began = now_us(), looked = began;
    char buffer[256];
    long started = 0, settled = 0;
    while (!ending || settled < started) {
        int64_t now = now_us();
        while (!ending && started < (now - began) / 1e6 * rate) {
            int sock = socket(where.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            struct epoll_event wanted = {.events = EPOLLIN, .data.fd = sock};
            if (sock < 0 || sock >= MAX_OPEN)
                fail("too many connections wait");
            started++;
            since[sock] = now;
            if (connect(sock, (void *)&where, length) != 0 && errno != EINPROGRESS) {
                settle(&load, sock, strerrorname_np(errno), began), settled++;
                continue;
            }
            epoll_ctl(poller, EPOLL_CTL_ADD, sock, &wanted);
        }
        int count = epoll_wait(poller, events, 256, 1);
        for (int each = 0; each < count; each++) {
            int sock = events[each].data.fd;
            ssize_t got = recv(sock, buffer, sizeof buffer, 0);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got > 0) {
                load.made++;
                /* Without TIME_WAIT: 500 a second would use up the ports of one address in a minute. */
                setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            }
            settle(&load, sock, got > 0 ? NULL : got == 0 ? "end" : strerrorname_np(errno), began), settled++;
        }
        if (now - looked > 100000) {
            looked = now;
            for (int sock = 0; sock < MAX_OPEN; sock++)
                if (since[sock] && now - since[sock] > TIMEOUT_US)
                    settle(&load, sock, "timeout", began), settled++;
        }
    }
    printf("made %ld failed %ld first %s at %.3f\n", load.made, load.failed, load.first, load.first_s);
    return load.failed != 0;
}

static int probe(const char *kind, const char *address, const char *port)
{
    static const char request[] = "GET /healthz HTTP/1.0\r\nUser-Agent: kube-probe/1.36\r\nConnection: close\r\n\r\n";
    char answer[256];
    int sock = dial(address, port);
    if (sock < 0)
        return 1;
    if (strcmp(kind, "tcp") == 0)
        return 0;
    if (send(sock, request, sizeof request - 1, MSG_NOSIGNAL) < 0)
        return 1;
    ssize_t got = recv(sock, answer, sizeof answer, 0);
    return !(got > 12 && memcmp(answer, "HTTP/1.", 7) == 0 && (answer[9] == '2' || answer[9] == '3'));
}

int main(int count, char **argv)
{
    const char *mode = count > 1 ? argv[1] : "";
    struct sigaction end = {.sa_handler = on_end};
    if (strcmp(mode, "connect") == 0 && count == 5) /* first, and before all else */
        return connect_(argv[2], argv[3], argv[4]);
    if (strcmp(mode, "run") == 0 && count > 4)
        return run(argv + 2);
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGINT, &end, NULL);
    if (strcmp(mode, "pause") == 0)
        return pause_();
    if (strcmp(mode, "serve") == 0 && count == 4)
        return serve(argv[2], argv[3]);
    if (strcmp(mode, "load") == 0 && count == 5)
        return load_(argv[2], argv[3], atof(argv[4]));
    if (strcmp(mode, "hold") == 0 && count == 4)
        return hold(argv[2], argv[3]);
    if (strcmp(mode, "probe") == 0 && count == 5)
        return probe(argv[2], argv[3], argv[4]);
    if (strcmp(mode, "sleep") == 0 && count == 4) {
        usleep(atoi(argv[2]) * 1000);
        return atoi(argv[3]);
    }
    fprintf(stderr, "pod: no such mode: %s\n", mode);
    return 125;
}
