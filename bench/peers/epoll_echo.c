/* The lower bound: an echo server that is nothing but epoll, read and write.
 *
 * Usage: epoll_echo PORT READ_SIZE
 *
 * One thread, level-triggered, one read and one write a turn. Data that cannot be written at once is
 * kept, and the connection is not read until it is sent, as in any server that bounds its memory.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BANNER "Welcome to the server. Type something and hit enter\n"
#define PREFIX "OK..."
#define PREFIX_SIZE (sizeof PREFIX - 1)
#define EVENTS 256

/* The data that a connection still has to write; made when it is first needed. */
struct unsent {
    size_t start, end;
    char bytes[];
};

static struct unsent **unsent_of; /* by descriptor */
static int known_descriptors;
static int poller;
static size_t read_size;
static char *buffer; /* the prefix, then what was read */

static void die(const char *what)
{
    fprintf(stderr, "epoll_echo: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("cannot listen");
    return listener;
}

static void watch(int operation, int descriptor, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.fd = descriptor};
    if (epoll_ctl(poller, operation, descriptor, &event))
        die("epoll_ctl");
}

static void remember(int descriptor)
{
    if (descriptor < known_descriptors)
        return;
    int count = (descriptor + 1) * 2;
    unsent_of = realloc(unsent_of, count * sizeof *unsent_of);
    if (!unsent_of)
        die("realloc");
    memset(unsent_of + known_descriptors, 0, (count - known_descriptors) * sizeof *unsent_of);
    known_descriptors = count;
}

static void close_connection(int descriptor)
{
    free(unsent_of[descriptor]);
    unsent_of[descriptor] = NULL;
    close(descriptor);
}

static void accept_all(int listener)
{
    int on = 1, descriptor;
    while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        remember(descriptor);
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (write(descriptor, BANNER, sizeof BANNER - 1) < 0) {
            close(descriptor);
            continue;
        }
        watch(EPOLL_CTL_ADD, descriptor, EPOLLIN);
    }
}

static void keep(int descriptor, const char *bytes, size_t size)
{
    struct unsent *rest = malloc(sizeof *rest + size);
    if (!rest)
        die("malloc");
    rest->start = 0;
    rest->end = size;
    memcpy(rest->bytes, bytes, size);
    unsent_of[descriptor] = rest;
    watch(EPOLL_CTL_MOD, descriptor, EPOLLOUT);
}

static void answer(int descriptor)
{
    ssize_t count = read(descriptor, buffer + PREFIX_SIZE, read_size);
    if (count <= 0) {
        if (count == 0 || errno != EAGAIN)
            close_connection(descriptor);
        return;
    }
    ssize_t size = count + PREFIX_SIZE, sent = write(descriptor, buffer, size);
    if (sent < 0 && errno != EAGAIN)
        close_connection(descriptor);
    else if (sent < size)
        keep(descriptor, buffer + (sent < 0 ? 0 : sent), sent < 0 ? size : size - sent);
}

static void write_on(int descriptor)
{
    struct unsent *rest = unsent_of[descriptor];
    ssize_t sent = write(descriptor, rest->bytes + rest->start, rest->end - rest->start);
    if (sent < 0) {
        if (errno != EAGAIN)
            close_connection(descriptor);
        return;
    }
    rest->start += sent;
    if (rest->start == rest->end) {
        free(rest);
        unsent_of[descriptor] = NULL;
        watch(EPOLL_CTL_MOD, descriptor, EPOLLIN);
    }
}

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: epoll_echo PORT READ_SIZE\n");
        return 2;
    }
    read_size = strtoul(arguments[2], NULL, 10);
    buffer = malloc(PREFIX_SIZE + read_size);
    poller = epoll_create1(0);
    if (!buffer || poller < 0)
        die("cannot start");
    memcpy(buffer, PREFIX, PREFIX_SIZE);
    int listener = listen_on(atoi(arguments[1]));
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == listener)
                accept_all(listener);
            else if (unsent_of[descriptor])
                write_on(descriptor);
            else
                answer(descriptor);
        }
    }
}
