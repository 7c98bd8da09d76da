// Both ends of a proxy in one thread: a client that asks, and the upstream that answers, so that each exchange can be
// followed by its number: asked once, seen by the upstream at most once, answered exactly once, and by its own answer.
//
//   exchanges LISTEN_FD PORT CONNECTIONS REQUESTS SECONDS PATH ...
//
// LISTEN_FD is the upstream's listening socket, inherited; PORT the proxy's on the loopback interface. Exchange number
// n asks for the (n modulo count)th PATH with n at its end. Ends after so many requests or seconds (0: no such end), or
// at SIGTERM; then waits for what is under way. Writes a line of JSON every second and one more at the end: totals for
// each path. Whether an exchange was filtered shows in the header `x-wasm-processed: Yes`, of requests at the upstream
// and of responses at the client. Understands HTTP/1.1 messages with a content-length or without a body.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 1024
#define MAX_PATHS 16
#define MAX_EXCHANGES (1u << 27)
#define BUFFER_BYTES 8192
#define TIMEOUT_NS 30000000000u // an exchange that takes longer is stuck
#define LINGER_NS 200000000u    // after the last answer, for what may come twice
#define SECOND_NS 1000000000u
#define NOTHING UINT64_MAX

enum { SENT = 1, SEEN = 2, ANSWERED = 4 };
enum kind { LISTENER, UPSTREAM, CLIENT };

struct peer {
    enum kind kind;
    int fd;
    uint64_t number; // of the exchange that is under way; client only
    uint64_t sent_ns;
    size_t have;
    char bytes[BUFFER_BYTES + 1];
};

struct totals {
    // At the client.
    uint64_t sent, filtered, unfiltered, refused, late, other, broken, stuck, twice, wrong, unseen, slowest_us;
    // At the upstream.
    uint64_t seen, seen_twice, seen_unfiltered, strange;
};

static struct totals totals[MAX_PATHS];
static char **paths;
static uint64_t path_count, next_number, request_limit;
static uint8_t *state; // of each exchange
static struct sockaddr_in proxy;
static int epoll;
static bool ending;
static volatile sig_atomic_t told_to_end;

static void on_signal(int number) {
    (void)number;
    told_to_end = 1;
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND_NS + (uint64_t)time.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "exchanges: %s: %s\n", what, strerror(errno));
    exit(2);
}

static struct totals *of(uint64_t number) {
    return &totals[number % path_count];
}

static void watch(struct peer *peer) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event) != 0) die("epoll_ctl");
}

// The value of a header of a message's head, which ends in an empty line; NULL if there is none. Names in lower case.
static const char *header(const char *head, const char *end, const char *name) {
    size_t size = strlen(name);
    for (const char *line = memchr(head, '\n', (size_t)(end - head)); line != NULL && line + 1 < end;
         line = memchr(line + 1, '\n', (size_t)(end - line - 1))) {
        if ((size_t)(end - line - 1) > size + 2 && memcmp(line + 1, name, size) == 0 && line[1 + size] == ':') {
            return line + 1 + size + 2;
        }
    }
    return NULL;
}

static bool is_marked(const char *head, const char *end) {
    const char *value = header(head, end, "x-wasm-processed");
    return value != NULL && strncmp(value, "Yes\r\n", 5) == 0;
}

// Size of the first message in a buffer, 0 if it is not whole, SIZE_MAX if it never can be.
static size_t message_size(const struct peer *peer, const char **head_end) {
    const char *end = memmem(peer->bytes, peer->have, "\r\n\r\n", 4);
    if (end == NULL) return peer->have == BUFFER_BYTES ? SIZE_MAX : 0;
    *head_end = end + 2;
    const char *length = header(peer->bytes, *head_end, "content-length");
    size_t head = (size_t)(end + 4 - peer->bytes);
    size_t body = length != NULL ? strtoull(length, NULL, 10) : 0;
    if (body > BUFFER_BYTES - head) return SIZE_MAX;
    return peer->have >= head + body ? head + body : 0;
}

static void consume(struct peer *peer, size_t size) {
    memmove(peer->bytes, peer->bytes + size, peer->have - size);
    peer->have -= size;
    peer->bytes[peer->have] = 0;
}

// ---- client

static void ask(struct peer *peer) {
    char request[1024];
    peer->number = NOTHING;
    if (ending || next_number >= MAX_EXCHANGES || (request_limit != 0 && next_number >= request_limit)) return;
    peer->number = next_number++;
    state[peer->number] = SENT;
    of(peer->number)->sent++;
    peer->sent_ns = now_ns();
    int size = snprintf(request, sizeof request, "GET %s%llu HTTP/1.1\r\nhost: soak.local\r\n\r\n",
                        paths[peer->number % path_count], (unsigned long long)peer->number);
    // Far smaller than an empty socket buffer: written whole, or the connection is gone, which its end tells.
    if (send(peer->fd, request, (size_t)size, MSG_NOSIGNAL) != size) shutdown(peer->fd, SHUT_RDWR);
}

static void connect_client(struct peer *peer) {
    int yes = 1;
    peer->kind = CLIENT;
    peer->have = 0;
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer->fd < 0) die("socket");
    if (connect(peer->fd, (struct sockaddr *)&proxy, sizeof proxy) != 0) die("connect");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    watch(peer);
    ask(peer);
}

static void reconnect(struct peer *peer) {
    close(peer->fd);
    connect_client(peer);
}

static void take_answer(struct peer *peer, const char *head_end) {
    struct totals *sum = of(peer->number);
    uint64_t taken_us = (now_ns() - peer->sent_ns) / 1000;
    if (taken_us > sum->slowest_us) sum->slowest_us = taken_us;
    state[peer->number] |= ANSWERED;
    long status = strtol(peer->bytes + sizeof "HTTP/1.1", NULL, 10);
    if (status == 200) {
        const char *number = header(peer->bytes, head_end, "x-number");
        if (number == NULL || strtoull(number, NULL, 10) != peer->number) sum->wrong++;
        if (!(state[peer->number] & SEEN)) sum->unseen++;
        if (is_marked(peer->bytes, head_end)) sum->filtered++;
        else sum->unfiltered++;
    } else if (status == 503) sum->refused++;
    else if (status == 504) sum->late++;
    else sum->other++;
}

static void take_answers(struct peer *peer) {
    const char *head_end = NULL;
    size_t size = message_size(peer, &head_end);
    if (size == 0) return;
    if (peer->number == NOTHING || size == SIZE_MAX) {
        // Bytes that nobody asked for, or that are no answer.
        totals[0].twice += peer->number == NOTHING;
        if (peer->number != NOTHING) of(peer->number)->broken++;
        reconnect(peer);
        return;
    }
    take_answer(peer, head_end);
    const char *connection = header(peer->bytes, head_end, "connection");
    bool closes = connection != NULL && strncmp(connection, "close", 5) == 0;
    consume(peer, size);
    if (peer->have != 0) of(peer->number)->twice++;
    if (peer->have != 0 || closes) reconnect(peer);
    else ask(peer);
}

// ---- upstream

static void accept_upstream(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    struct peer *peer = calloc(1, sizeof *peer);
    if (peer == NULL) die("calloc");
    peer->kind = UPSTREAM;
    peer->fd = fd;
    watch(peer);
}

static void answer_requests(struct peer *peer) {
    const char *head_end = NULL;
    char answer[256];
    for (size_t size; (size = message_size(peer, &head_end)) != 0; consume(peer, size)) {
        const char *end = memmem(peer->bytes, peer->have, " HTTP/1.1\r\n", 11);
        const char *slash = end == NULL ? NULL : memrchr(peer->bytes, '/', (size_t)(end - peer->bytes));
        uint64_t number = slash == NULL ? NOTHING : strtoull(slash + 1, NULL, 10);
        if (size == SIZE_MAX || number >= next_number) {
            totals[0].strange++;
            shutdown(peer->fd, SHUT_RDWR);
            return;
        }
        struct totals *sum = of(number);
        sum->seen++;
        sum->seen_twice += (state[number] & SEEN) != 0;
        sum->seen_unfiltered += !is_marked(peer->bytes, head_end);
        state[number] |= SEEN;
        int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-number: %llu\r\n\r\nok\n",
                              (unsigned long long)number);
        if (send(peer->fd, answer, (size_t)length, MSG_NOSIGNAL) != length) shutdown(peer->fd, SHUT_RDWR);
    }
}

// ---- both

static void receive(struct peer *peer) {
    ssize_t got = recv(peer->fd, peer->bytes + peer->have, BUFFER_BYTES - peer->have, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0 && peer->kind == UPSTREAM) {
        close(peer->fd);
        free(peer);
    } else if (got <= 0) {
        if (peer->number != NOTHING) of(peer->number)->broken++;
        reconnect(peer);
    } else {
        peer->have += (size_t)got;
        peer->bytes[peer->have] = 0;
        if (peer->kind == UPSTREAM) answer_requests(peer);
        else take_answers(peer);
    }
}

// Gives up what is stuck; returns how many exchanges are under way.
static long look_after(struct peer *clients, long count) {
    long busy = 0;
    uint64_t now = now_ns();
    for (long index = 0; index < count; index++) {
        if (clients[index].number == NOTHING) continue;
        busy++;
        if (now - clients[index].sent_ns < TIMEOUT_NS) continue;
        of(clients[index].number)->stuck++;
        reconnect(&clients[index]);
    }
    return busy;
}

#define NUMBER(field) printf("%s\"" #field "\": %llu", separator, (unsigned long long)sum->field), separator = ", "

static void report(bool last) {
    printf("{\"last\": %s, \"paths\": {", last ? "true" : "false");
    for (uint64_t index = 0; index < path_count; index++) {
        const struct totals *sum = &totals[index];
        const char *separator = "";
        printf("%s\"%s\": {", index == 0 ? "" : ", ", paths[index]);
        NUMBER(sent), NUMBER(filtered), NUMBER(unfiltered), NUMBER(refused), NUMBER(late);
        NUMBER(other), NUMBER(broken), NUMBER(stuck), NUMBER(twice), NUMBER(wrong), NUMBER(unseen), NUMBER(slowest_us);
        NUMBER(seen), NUMBER(seen_twice), NUMBER(seen_unfiltered), NUMBER(strange);
        printf("}");
    }
    printf("}}\n");
    fflush(stdout);
}

static void set_up(int argc, char **argv) {
    if (argc < 7 || argc - 6 > MAX_PATHS) {
        fprintf(stderr, "usage: exchanges LISTEN_FD PORT CONNECTIONS REQUESTS SECONDS PATH ...\n");
        exit(2);
    }
    proxy = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(argv[2], NULL, 10))};
    proxy.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    request_limit = strtoull(argv[4], NULL, 10);
    paths = argv + 6;
    path_count = (uint64_t)(argc - 6);
    state = calloc(MAX_EXCHANGES, 1); // pages come as they are touched
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (state == NULL || epoll < 0) die("set-up");
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
}

int main(int argc, char **argv) {
    set_up(argc, argv);
    long count = strtol(argv[3], NULL, 10);
    uint64_t length_ns = strtoull(argv[5], NULL, 10) * SECOND_NS;
    if (count < 1 || count > MAX_CONNECTIONS) die("CONNECTIONS");
    struct peer listener = {.kind = LISTENER, .fd = (int)strtol(argv[1], NULL, 10)};
    struct peer *clients = calloc((size_t)count, sizeof *clients);
    if (clients == NULL) die("calloc");
    watch(&listener);
    uint64_t start = now_ns(), said = start, quiet = 0;
    for (long index = 0; index < count; index++) connect_client(&clients[index]);
    for (;;) {
        struct epoll_event events[128];
        int ready = epoll_wait(epoll, events, 128, 50);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int index = 0; index < ready; index++) {
            struct peer *peer = events[index].data.ptr;
            if (peer->kind == LISTENER) accept_upstream(peer->fd);
            else receive(peer);
        }
        uint64_t now = now_ns();
        if (told_to_end || (length_ns != 0 && now - start > length_ns) || next_number >= MAX_EXCHANGES) ending = true;
        if (ready <= 0 || now - said > SECOND_NS) {
            bool done = ending || (request_limit != 0 && next_number >= request_limit);
            if (look_after(clients, count) != 0 || !done) quiet = 0;
            else if (quiet == 0) quiet = now;
            else if (now - quiet > LINGER_NS) break;
        }
        if (now - said > SECOND_NS) {
            said = now;
            report(false);
        }
    }
    report(true);
    return 0;
}
