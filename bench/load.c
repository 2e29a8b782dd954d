/* The load: clients of an echo server, and what they measure of it.  Prints one line of JSON.
 *
 * Usage: load MODE PORT PID CONNECTIONS SIZE DEPTH WARM_UP SECONDS TLS
 *
 *   messages  Each of CONNECTIONS sends DEPTH messages of SIZE bytes at once, and begins again
 *             when all their bytes are back.
 *   lines     The same; each message is a line.
 *   lengths   The same; each message is behind its length, of HEADER_SIZE bytes, which SIZE counts.
 *   greedy    The same, beside one more client that sends empty lines as fast as it can.
 *   connect   CONNECTIONS threads each connect, read the banner and close, over and over.
 *   idle      CONNECTIONS are opened, one after the other, and stay silent.
 *
 * PID is the server's: its CPU clock and its resident memory are read at the very moments between
 * which messages are counted.  TLS is 0 or 1.
 *
 * Payload is 'x' and, if a message is a line, its end; the prefix contains neither. So payload
 * is counted in any pieces in which it comes back, and every other byte must belong to a whole prefix;
 * if a message has a length, to a whole length and a whole prefix (so the byte 'x' or '\n' must not be
 * in the length).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define BANNER "Welcome to the server. Type something and hit enter\n"
#define BANNER_SIZE (sizeof BANNER - 1)
#define PREFIX_SIZE 5
#define HEADER_SIZE 4
#define EVENTS 256
#define READ_SIZE (256 * 1024)
/* How much longer than asked for this may run, in seconds: then it ends itself. */
#define PATIENCE 60
/* Each destination has 28,000 client ports and keeps one for a minute: spread over addresses. */
#define SOURCES 16

static struct {
    const char *mode;
    int port, pid, connections, depth, tls;
    size_t size;
    double warm_up, seconds;
} options;

struct connection {
    int descriptor;
    uint32_t interest;
    /* Of the round trip under way: payload bytes not sent and not back yet, other bytes that
     * came, and when it began, in nanoseconds. */
    size_t unsent, awaited, other;
    uint64_t started;
#ifdef WITH_TLS
    SSL *tls;
#endif
};

static struct {
    uint64_t messages, pieces, round_trips;
} counts;

static char *payload, *incoming;
/* How many payload bytes a round trip has, and the size of what is beside them in each reply. */
static size_t payload_bytes, beside;
static int poller;

static atomic_int dying;

static void die(const char *format, ...)
{
    char words[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    /* Once, in one piece, whichever thread is the first. */
    if (!atomic_exchange(&dying, 1))
        fprintf(stderr, "load: %s\n", words);
    _exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* ---- The server, seen from outside. */

/* All its threads' CPU time, user and system, in nanoseconds. */
static uint64_t server_cpu(void)
{
    clockid_t clock;
    struct timespec time;
    if (clock_getcpuclockid(options.pid, &clock) || clock_gettime(clock, &time))
        die("the server is gone");
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Its resident memory, in bytes. */
static long server_memory(void)
{
    char path[64], line[256];
    long kilobytes = -1;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", options.pid);
    FILE *file = fopen(path, "r");
    if (!file)
        die("the server is gone");
    while (fgets(line, sizeof line, file) && sscanf(line, "Rss: %ld", &kilobytes) != 1)
        ;
    fclose(file);
    return kilobytes * 1024;
}

/* ---- Latencies: 64 buckets for each power of two of nanoseconds, so within 1.6 %. */

#define SUB_BITS 6
static uint64_t histogram[64 << SUB_BITS];

static unsigned bucket_of(uint64_t value)
{
    if (value < 1 << SUB_BITS)
        return value;
    unsigned shift = 63 - __builtin_clzll(value) - SUB_BITS;
    return (shift << SUB_BITS) + (value >> shift);
}

static double bucket_middle(unsigned bucket)
{
    if (bucket < 2 << SUB_BITS)
        return bucket;
    unsigned shift = (bucket >> SUB_BITS) - 1;
    uint64_t lowest = (uint64_t)((bucket & ((1 << SUB_BITS) - 1)) | 1 << SUB_BITS) << shift;
    return lowest + (1ull << shift) / 2.0;
}

/* In microseconds. */
static double percentile(double fraction)
{
    uint64_t seen = 0, wanted = counts.round_trips * fraction;
    for (unsigned bucket = 0; bucket < sizeof histogram / sizeof *histogram; bucket++)
        if ((seen += histogram[bucket]) > wanted)
            return bucket_middle(bucket) / 1000;
    return 0;
}

/* ---- One connection. */

#ifdef WITH_TLS
static SSL_CTX *tls_context;

/* One version and one cipher suite, so that all servers do the same work. */
static void prepare_tls(void)
{
    tls_context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(tls_context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_mode(tls_context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

static void start_tls(struct connection *one)
{
    one->tls = SSL_new(tls_context);
    SSL_set_fd(one->tls, one->descriptor);
    if (SSL_connect(one->tls) != 1)
        die("TLS handshake failed: %s", ERR_reason_error_string(ERR_get_error()));
}

/* Let `errno` say what a plain socket's call would have said. */
static ssize_t tls_result(struct connection *one, int result)
{
    if (result > 0)
        return result;
    switch (SSL_get_error(one->tls, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        errno = EPROTO;
        return -1;
    }
}
#endif

static ssize_t receive(struct connection *one, void *bytes, size_t size)
{
#ifdef WITH_TLS
    if (one->tls)
        return tls_result(one, SSL_read(one->tls, bytes, size));
#endif
    return recv(one->descriptor, bytes, size, 0);
}

static ssize_t transmit(struct connection *one, const void *bytes, size_t size)
{
#ifdef WITH_TLS
    if (one->tls)
        return tls_result(one, SSL_write(one->tls, bytes, size));
#endif
    return send(one->descriptor, bytes, size, MSG_NOSIGNAL);
}

static void connect_from(int descriptor, unsigned source)
{
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    int on = 1;
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + source % SOURCES);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(options.port);
    setsockopt(descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(descriptor, (struct sockaddr *)&from, sizeof from))
        die("cannot bind: %s", strerror(errno));
    if (connect(descriptor, (struct sockaddr *)&to, sizeof to))
        die("cannot connect: %s", strerror(errno));
}

static int has_length(void)
{
    return !strcmp(options.mode, "lengths");
}

static void read_banner(struct connection *one)
{
    char expected[HEADER_SIZE + BANNER_SIZE], banner[sizeof expected];
    uint32_t length = htonl(BANNER_SIZE);
    size_t held = 0, size = has_length() ? HEADER_SIZE : 0;
    memcpy(expected, &length, size);
    memcpy(expected + size, BANNER, BANNER_SIZE);
    size += BANNER_SIZE;
    while (held < size) {
        ssize_t count = receive(one, banner + held, size - held);
        if (count <= 0)
            die("no banner: %s", count ? strerror(errno) : "end of stream");
        held += count;
        if (memcmp(banner, expected, held))
            die("instead of the banner: %.*s", (int)held, banner);
    }
}

/* Connect, blocking, and read the banner; return 0 where no descriptor is left. */
static int open_connection(struct connection *one, unsigned source)
{
    memset(one, 0, sizeof *one);
    one->descriptor = socket(AF_INET, SOCK_STREAM, 0);
    if (one->descriptor < 0) {
        if (errno == EMFILE || errno == ENFILE)
            return 0;
        die("cannot make a socket: %s", strerror(errno));
    }
    connect_from(one->descriptor, source);
#ifdef WITH_TLS
    if (options.tls)
        start_tls(one);
#endif
    read_banner(one);
    return 1;
}

static void close_connection(struct connection *one)
{
#ifdef WITH_TLS
    if (one->tls) {
        SSL_shutdown(one->tls);
        SSL_free(one->tls);
    }
#endif
    close(one->descriptor);
}

/* ---- Mode messages. */

static void watch(struct connection *one, int operation, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = one};
    if (interest == one->interest)
        return;
    one->interest = interest;
    if (epoll_ctl(poller, operation, one->descriptor, &event))
        die("epoll_ctl: %s", strerror(errno));
}

static void send_rest(struct connection *one)
{
    while (one->unsent) {
        ssize_t count = transmit(one, payload, one->unsent);
        if (count < 0 && errno == EAGAIN)
            break;
        if (count <= 0)
            die("the server closed a connection: %s", strerror(errno));
        one->unsent -= count;
    }
    watch(one, EPOLL_CTL_MOD, one->unsent ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void begin_round_trip(struct connection *one)
{
    one->unsent = options.size * options.depth;
    one->awaited = payload_bytes;
    one->other = 0;
    one->started = now();
    send_rest(one);
}

static void end_round_trip(struct connection *one)
{
    /* A prefix comes before its payload: with the last payload byte, all prefixes are whole. */
    if (!one->other || one->other % beside)
        die("%zu bytes came back beside the payload: not whole prefixes", one->other);
    counts.pieces += one->other / beside;
    histogram[bucket_of(now() - one->started)]++;
    counts.round_trips++;
    counts.messages += options.depth;
    begin_round_trip(one);
}

static size_t count_payload(const char *bytes, size_t size)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        count += bytes[i] == 'x' || bytes[i] == '\n';
    return count;
}

/* One read; return whether there may be more that epoll does not tell of. */
static int take(struct connection *one)
{
    ssize_t count = receive(one, incoming, READ_SIZE);
    if (count < 0 && errno == EAGAIN)
        return 0;
    if (count <= 0)
        die("the server closed a connection: %s", count ? strerror(errno) : "end of stream");
    size_t back = count_payload(incoming, count);
    if (back > one->awaited)
        die("the server sent back more than it was sent");
    one->other += count - back;
    one->awaited -= back;
    if (!one->awaited)
        end_round_trip(one);
    return options.tls;
}

static void turn(int milliseconds)
{
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(poller, events, EVENTS, milliseconds);
    for (int i = 0; i < ready; i++) {
        struct connection *one = events[i].data.ptr;
        if (events[i].events & EPOLLOUT)
            send_rest(one);
        if (events[i].events & ~EPOLLOUT)
            while (take(one))
                ;
    }
}

static void run_for(double seconds)
{
    uint64_t end = now() + seconds * 1e9;
    while (now() < end)
        turn(10);
}

/* The greedy client: one thread that sends, one that takes what comes back, until the end. */

static void *send_lines(void *connection)
{
    char lines[READ_SIZE];
    memset(lines, '\n', sizeof lines);
    while (transmit(connection, lines, sizeof lines) > 0)
        ;
    die("the server closed the greedy connection: %s", strerror(errno));
    return NULL;
}

static void *discard(void *connection)
{
    static char back[READ_SIZE];
    while (receive(connection, back, sizeof back) > 0)
        ;
    die("the server closed the greedy connection: %s", strerror(errno));
    return NULL;
}

static void be_greedy(void)
{
    static struct connection greedy;
    pthread_t sender, receiver;
    if (!open_connection(&greedy, 0) || pthread_create(&sender, NULL, send_lines, &greedy) ||
        pthread_create(&receiver, NULL, discard, &greedy))
        die("cannot be greedy: %s", strerror(errno));
}

static void prepare_payload(void)
{
    int is_line = !strcmp(options.mode, "lines") || !strcmp(options.mode, "greedy");
    size_t header = has_length() ? HEADER_SIZE : 0;
    uint32_t length = htonl(options.size - header);
    payload = malloc(options.size * options.depth);
    memset(payload, 'x', options.size * options.depth);
    for (int i = 0; i < options.depth; i++) {
        char *message = payload + options.size * i;
        memcpy(message, &length, header);
        if (is_line)
            message[options.size - 1] = '\n';
    }
    beside = header + PREFIX_SIZE;
    payload_bytes = (options.size - header) * options.depth;
}

static void run_messages(struct connection *all)
{
    poller = epoll_create1(0);
    prepare_payload();
    incoming = malloc(READ_SIZE);
    for (int i = 0; i < options.connections; i++) {
        if (!open_connection(&all[i], i))
            die("too few descriptors for %d connections", options.connections);
        fcntl(all[i].descriptor, F_SETFL, O_NONBLOCK);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
    }
    if (!strcmp(options.mode, "greedy"))
        be_greedy();
    for (int i = 0; i < options.connections; i++)
        begin_round_trip(&all[i]);
    run_for(options.warm_up);
    memset(&counts, 0, sizeof counts);
    memset(histogram, 0, sizeof histogram);
    uint64_t started = now(), cpu = server_cpu();
    run_for(options.seconds);
    double seconds = (now() - started) / 1e9, cpu_seconds = (server_cpu() - cpu) / 1e9;
    if (!counts.messages)
        die("not one message came back in %g seconds", options.seconds);
    printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"messages\": %lu, \"pieces\": %lu, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           seconds, cpu_seconds, counts.messages, counts.pieces, percentile(0.5),
           percentile(0.99), percentile(1 - 1e-12));
}

/* ---- Mode connect. */

static atomic_ulong connected;
static atomic_int stopping;

static void *connect_repeatedly(void *number)
{
    struct connection one;
    for (unsigned source = (uintptr_t)number; !stopping; source++) {
        if (!open_connection(&one, source))
            die("out of descriptors");
        close_connection(&one);
        connected++;
    }
    return NULL;
}

static void sleep_for(double seconds)
{
    usleep(seconds * 1e6);
}

static void run_connect(void)
{
    pthread_t *threads = calloc(options.connections, sizeof *threads);
    for (int i = 0; i < options.connections; i++)
        if (pthread_create(&threads[i], NULL, connect_repeatedly, (void *)(uintptr_t)i))
            die("cannot start a thread");
    sleep_for(options.warm_up);
    uint64_t started = now(), cpu = server_cpu();
    unsigned long before = connected;
    sleep_for(options.seconds);
    unsigned long count = connected - before;
    double seconds = (now() - started) / 1e9, cpu_seconds = (server_cpu() - cpu) / 1e9;
    stopping = 1;
    for (int i = 0; i < options.connections; i++)
        pthread_join(threads[i], NULL);
    printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"connections\": %lu}\n", seconds,
           cpu_seconds, count);
}

/* ---- Mode idle. */

static int open_idle(struct connection *all, int count)
{
    int opened = 0;
    while (opened < count && open_connection(&all[opened], opened))
        opened++;
    return opened;
}

static void run_idle(struct connection *all)
{
    /* The first connections carry costs of the program itself. */
    int first = open_idle(all, options.connections < 20 ? 1 : 20);
    for (int i = 0; i < first; i++)
        close_connection(&all[i]);
    sleep_for(options.warm_up);
    long before = server_memory();
    int opened = open_idle(all, options.connections);
    sleep_for(options.warm_up);
    printf("{\"connections\": %d, \"memory_before\": %ld, \"memory_after\": %ld}\n", opened, before,
           server_memory());
}

/* ---- */

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void read_options(int count, char **arguments)
{
    if (count != 10)
        die("usage: load MODE PORT PID CONNECTIONS SIZE DEPTH WARM_UP SECONDS TLS");
    options.mode = arguments[1];
    options.port = atoi(arguments[2]);
    options.pid = atoi(arguments[3]);
    options.connections = atoi(arguments[4]);
    options.size = strtoul(arguments[5], NULL, 10);
    options.depth = atoi(arguments[6]);
    options.warm_up = atof(arguments[7]);
    options.seconds = atof(arguments[8]);
    options.tls = atoi(arguments[9]);
    if (options.port < 1 || options.connections < 1 || options.size < 1 || options.depth < 1)
        die("PORT, CONNECTIONS, SIZE and DEPTH are whole numbers above 0");
}

int main(int count, char **arguments)
{
    read_options(count, arguments);
    raise_descriptor_limit();
    alarm(options.warm_up + options.seconds + PATIENCE);
#ifdef WITH_TLS
    if (options.tls)
        prepare_tls();
#else
    if (options.tls)
        die("built without TLS");
#endif
    struct connection *all = calloc(options.connections, sizeof *all);
    if (!strcmp(options.mode, "messages") || !strcmp(options.mode, "lines") ||
        !strcmp(options.mode, "lengths") || !strcmp(options.mode, "greedy"))
        run_messages(all);
    else if (!strcmp(options.mode, "connect"))
        run_connect();
    else if (!strcmp(options.mode, "idle"))
        run_idle(all);
    else
        die("no such mode: %s", options.mode);
    return 0;
}
