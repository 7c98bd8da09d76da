// A load generator for HTTP/1.1 over loopback: N keep-alive connections, one request in flight on each, one thread.
//
//   load HOST PORT PATH CONNECTIONS SECONDS PAUSE_US [NAME:VALUE ...]
//
// A connection sends its next request so long after the last answer: with 0 at once, which loads the machine fully; with
// more, latencies are not those of a queue that the generator itself made.
// Prints one line of JSON: how many exchanges ended within the time, how many were not 200 or broke, and the latency at
// some percentiles in microseconds. Understands responses with a content-length or in chunks (without trailers), which is
// all that the benchmark's listeners send; anything else counts as broken. Linux only (epoll).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 4096
#define MAX_RESPONSE_BYTES 65536
#define MAX_REQUEST_BYTES 4096
#define MAX_SAMPLES (1u << 23)

struct connection {
    int fd;
    uint64_t sent_ns;
    uint64_t due_ns; // when the next request is sent; 0: one is in flight
    size_t have; // bytes of the response so far
    char response[MAX_RESPONSE_BYTES];
};

struct totals {
    uint64_t done, failed, broken;
    uint32_t *latency_us_x10; // one per exchange, in tenths of a microsecond
};

static struct sockaddr_in address;
static char request[MAX_REQUEST_BYTES];
static size_t request_size;
static uint64_t pause_ns;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void append(const char *text) {
    size_t size = strlen(text);
    if (size > MAX_REQUEST_BYTES - request_size) {
        fprintf(stderr, "load: the request is too long\n");
        exit(2);
    }
    memcpy(request + request_size, text, size);
    request_size += size;
}

static void write_request(const char *path, char **headers, int count) {
    append("GET ");
    append(path);
    append(" HTTP/1.1\r\nhost: bench.local\r\n");
    for (int index = 0; index < count; index++) {
        append(headers[index]);
        append("\r\n");
    }
    append("\r\n");
}

static void open_connection(struct connection *connection, int epoll) {
    int yes = 1;
    connection->have = 0;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) die("socket");
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) != 0) die("connect");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) die("epoll_ctl");
}

static void send_request(struct connection *connection) {
    connection->have = 0;
    connection->due_ns = 0;
    connection->sent_ns = now_ns();
    // The request is far smaller than an empty socket buffer, so it is written whole or the connection is gone.
    if (send(connection->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) connection->sent_ns = 0;
}

// The same for a body in chunks; the last one ends the response, for nothing was asked for after it.
static size_t chunked_size(const struct connection *connection, size_t head) {
    if (memmem(connection->response, head, "\r\ntransfer-encoding: chunked\r\n", 30) == NULL) return SIZE_MAX;
    const char *end = connection->response + connection->have;
    if (connection->have - head >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0) return connection->have;
    return connection->have == MAX_RESPONSE_BYTES ? SIZE_MAX : 0;
}

// Size of the whole response, 0 if it cannot be told yet, SIZE_MAX if it never can.
static size_t response_size(const struct connection *connection) {
    const char *end = memmem(connection->response, connection->have, "\r\n\r\n", 4);
    if (end == NULL) return connection->have == MAX_RESPONSE_BYTES ? SIZE_MAX : 0;
    size_t head = (size_t)(end - connection->response) + 4;
    const char *length = memmem(connection->response, head, "\r\ncontent-length: ", 18);
    if (length == NULL) return chunked_size(connection, head);
    uint64_t body = strtoull(length + 18, NULL, 10); // ends at the CR at the latest
    return body > MAX_RESPONSE_BYTES - head ? SIZE_MAX : head + (size_t)body;
}

static bool is_200(const struct connection *connection) {
    return connection->have > 12 && memcmp(connection->response + 8, " 200", 4) == 0;
}

static void finish(struct connection *connection, struct totals *totals) {
    uint64_t latency = (now_ns() - connection->sent_ns) / 100;
    if (totals->done < MAX_SAMPLES) totals->latency_us_x10[totals->done] = (uint32_t)latency;
    totals->done++;
    totals->failed += !is_200(connection);
    if (pause_ns == 0) send_request(connection);
    else connection->due_ns = now_ns() + pause_ns;
}

static void send_due(struct connection *all, long count) {
    uint64_t now = now_ns();
    for (long index = 0; index < count; index++) {
        if (all[index].due_ns != 0 && all[index].due_ns <= now) send_request(&all[index]);
    }
}

static void restart(struct connection *connection, struct totals *totals, int epoll) {
    totals->broken++;
    close(connection->fd);
    open_connection(connection, epoll);
    send_request(connection);
}

static void receive(struct connection *connection, struct totals *totals, int epoll) {
    size_t room = MAX_RESPONSE_BYTES - connection->have;
    ssize_t got = recv(connection->fd, connection->response + connection->have, room, 0);
    if (got <= 0 || connection->sent_ns == 0) {
        restart(connection, totals, epoll);
        return;
    }
    connection->have += (size_t)got;
    size_t size = response_size(connection);
    if (size == SIZE_MAX) restart(connection, totals, epoll);
    else if (size != 0 && connection->have >= size) finish(connection, totals);
}

static int compare(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static double percentile(const struct totals *totals, uint64_t count, double part) {
    if (count == 0) return 0;
    uint64_t index = (uint64_t)(part * (double)count);
    return totals->latency_us_x10[index < count ? index : count - 1] / 10.0;
}

static void report(struct totals *totals, double seconds) {
    uint64_t count = totals->done < MAX_SAMPLES ? totals->done : MAX_SAMPLES;
    qsort(totals->latency_us_x10, count, sizeof *totals->latency_us_x10, compare);
    printf("{\"seconds\": %.3f, \"requests\": %llu, \"failed\": %llu, \"broken\": %llu, ", seconds,
           (unsigned long long)totals->done, (unsigned long long)totals->failed, (unsigned long long)totals->broken);
    printf("\"rps\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f}\n", (double)totals->done / seconds,
           percentile(totals, count, 0.50), percentile(totals, count, 0.90), percentile(totals, count, 0.99));
}

int main(int argc, char **argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: load HOST PORT PATH CONNECTIONS SECONDS PAUSE_US [NAME:VALUE ...]\n");
        return 2;
    }
    long connections = strtol(argv[4], NULL, 10);
    double seconds = strtod(argv[5], NULL);
    pause_ns = strtoull(argv[6], NULL, 10) * 1000u;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(argv[2], NULL, 10))};
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 || connections < 1 || connections > MAX_CONNECTIONS) {
        fprintf(stderr, "load: HOST must be an IPv4 address, CONNECTIONS 1 to %d\n", MAX_CONNECTIONS);
        return 2;
    }
    write_request(argv[3], argv + 7, argc - 7);

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    struct totals totals = {.latency_us_x10 = malloc(MAX_SAMPLES * sizeof(uint32_t))};
    if (epoll < 0 || all == NULL || totals.latency_us_x10 == NULL) die("set-up");
    for (long index = 0; index < connections; index++) open_connection(&all[index], epoll);

    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9);
    // Spread over the pause, or all would ask at the same moment for ever.
    for (long index = 0; index < connections; index++) {
        all[index].due_ns = start + pause_ns * (uint64_t)index / (uint64_t)connections;
    }
    while (now_ns() < end) {
        struct epoll_event events[256];
        send_due(all, connections);
        int ready = epoll_wait(epoll, events, 256, pause_ns ? 1 : 100);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int index = 0; index < ready; index++) receive(events[index].data.ptr, &totals, epoll);
    }
    report(&totals, (double)(now_ns() - start) / 1e9);
    return 0;
}
