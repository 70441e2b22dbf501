/*
 * The fast path of every plugin: hands one call to the daemon cni-bridged and prints its reply, or runs the one-shot
 * program in its place. Parses nothing. cni_bridge/shim.py is the same in Python, step for step.
 *
 * A call is served once. Until the kernel has taken the last byte of the request the daemon cannot have begun, and the
 * one-shot program may run; from then on it may have, and whatever goes wrong is an error that the runtime repeats.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

enum {
    GREETING = 8,           /* "cnib", version, 0, u16: seconds to wait for the reply */
    PREFIX = 4,             /* u32: length of the request */
    REPLY = 9,              /* u32, u32, status: lengths of what goes to standard output and error */
    DECLINED = 255,         /* the status that says: run it yourself */
    PATIENCE = 300,         /* milliseconds for the greeting: with socket activation a stopped daemon accepts too */
    STDIN_LIMIT = 16 << 20, /* bytes; one more is read, for whoever serves the request to refuse */
    REPLY_LIMIT = 64 << 20,
};

enum why { UNASKED, UNANSWERED, DECLINING };

static const char *name; /* the plugin: what this program was called as */
static const char *run_directory;
static char socket_path[PATH_MAX];
static unsigned char *request; /* its length, the name and the environment, standard input; null while it is unread */
static size_t head, length;    /* where standard input begins in it and ends */

static const char *variable(const char *key)
{
    const char *value = getenv(key);
    return value ? value : "";
}

static int64_t now(void) /* milliseconds */
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* What the descriptor is ready for; 0 when the time is up. */
static short await(int fd, short events, int64_t deadline)
{
    struct pollfd waiting = {.fd = fd, .events = events};
    for (;;) {
        int64_t left = deadline - now();
        int ready = left > 0 ? poll(&waiting, 1, left < INT_MAX ? (int)left : INT_MAX) : 0;
        if (ready >= 0 || errno != EINTR)
            return ready > 0 ? waiting.revents : 0;
    }
}

static bool write_all(int fd, const unsigned char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t written = write(fd, bytes, count);
        if (written >= 0) {
            bytes += written;
            count -= (size_t)written;
        } else if (errno == EAGAIN) {
            await(fd, POLLOUT, INT64_MAX); /* the caller made its pipe non-blocking */
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

/* Each character that JSON would want escaped, or that may be no UTF-8, becomes a question mark. */
static const char *printable(char *text)
{
    for (char *each = text; *each; each++)
        if (*each < ' ' || *each > '~' || *each == '"' || *each == '\\')
            *each = '?';
    return text;
}

/* Print a CNI error of code 11, "try again later"; the exit status. */
__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...)
{
    char message[3 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    printf("{\"cniVersion\": \"1.1.0\", \"code\": 11, \"msg\": \"%s\", ", printable(message));
    printf("\"details\": \"see its log: journalctl -u cni-bridged; %s\"}\n", printable(socket_path));
    return 1;
}

/* A closed descriptor 0, 1 or 2 would be given to the socket, and read or written as if it were the caller's. */
static void fill_standard_descriptors(void)
{
    int fd;
    do /* closed on exec: the one-shot program gets what the caller gave */
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

static void read_stdin(void)
{
    size_t most = isatty(STDIN_FILENO) ? head : head + STDIN_LIMIT + 1;
    while (length < most) {
        ssize_t count = read(STDIN_FILENO, request + length, most - length);
        if (count > 0)
            length += (size_t)count;
        else if (count < 0 && errno == EAGAIN)
            await(STDIN_FILENO, POLLIN, INT64_MAX);
        else if (count == 0 || errno != EINTR)
            return;
    }
}

/* Read the whole request; its bytes are one piece. What standard input does not fill of it is never touched. */
static bool read_request(void)
{
    size_t size = PREFIX + strlen(name) + 2;
    for (char **each = environ; *each; each++)
        size += strlen(*each) + 1;
    request = malloc(size + STDIN_LIMIT + 1);
    if (!request)
        return false;
    char *end = stpcpy((char *)request + PREFIX, name) + 1;
    for (char **each = environ; *each; each++)
        if (strchr(*each, '=')) /* an empty text would end the environment */
            end = stpcpy(end, *each) + 1;
    *end++ = '\0';
    length = head = (size_t)((unsigned char *)end - request);
    read_stdin();
    uint32_t body = (uint32_t)(length - PREFIX);
    for (int each = 0; each < PREFIX; each++)
        request[each] = (unsigned char)(body >> (24 - 8 * each));
    return true;
}

static bool is_file_name(const char *text)
{
    return *text && *text != '.' && !strchr(text, '/');
}

static uint64_t fnv1a(const unsigned char *bytes, size_t count)
{
    uint64_t hash = 0xcbf29ce484222325;
    while (count-- > 0)
        hash = (hash ^ *bytes++) * 0x100000001b3;
    return hash;
}

/*
 * Leave the request where the daemon finds it when it is back: a runtime may not repeat a DEL, and the container's
 * addresses and rules would stay. Names are taken within a directory that is no link, and the draft is new.
 */
static bool keep_request(void)
{
    const char *container = variable("CNI_CONTAINERID"), *ifname = variable("CNI_IFNAME");
    if (!is_file_name(container) || !is_file_name(ifname) || (!request && !read_request()))
        return false;
    char path[PATH_MAX], draft[NAME_MAX + 1]; /* the draft has a dot before the name */
    snprintf(path, sizeof path, "%s/undelivered", run_directory);
    uint64_t hash = fnv1a(request + head, length - head);
    if (snprintf(draft, sizeof draft, ".%s:%s:%016" PRIx64, container, ifname, hash) >= (int)sizeof draft)
        return false;
    umask(0);
    mkdir(run_directory, 0755);
    mkdir(path, 0700);
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0)
        return false;
    unlinkat(directory, draft, 0); /* of a client that was killed */
    int file = openat(directory, draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return false;
    if (write_all(file, request + PREFIX, length - PREFIX) && renameat(directory, draft, directory, draft + 1) == 0)
        return true;
    unlinkat(directory, draft, 0);
    return false;
}

/* Standard input once more, for the one-shot program: what was read of it. */
static bool rewind_stdin(void)
{
    int file = memfd_create("stdin", MFD_CLOEXEC | MFD_NOEXEC_SEAL); /* hardened kernels insist on the seal */
    if (file < 0)
        file = memfd_create("stdin", MFD_CLOEXEC); /* and those before 6.3 do not know it */
    return file >= 0 && write_all(file, request + head, length - head) && lseek(file, 0, SEEK_SET) == 0 &&
           dup2(file, STDIN_FILENO) == STDIN_FILENO;
}

/* Become the one-shot program, which stands beside this one; returns the exit status where it cannot. */
static int fall_back(enum why why)
{
    char path[PATH_MAX + 32] = "";
    if (readlink("/proc/self/exe", path, PATH_MAX - 1) < 0)
        strcpy(path, "/"); /* and never a path that begins where the caller stands */
    strcpy(strrchr(path, '/') + 1, "cni-bridge-oneshot");
    if (request && !rewind_stdin())
        return fail("standard input cannot be handed on to %s: %s; try again", path, strerror(errno));
    execv(path, (char *[]){path, (char *)name, NULL});

    char reason[96] = "is not there";
    if (errno != ENOENT)
        snprintf(reason, sizeof reason, "cannot be executed (%s)", strerror(errno));
    /* What the daemon declined is not for it to do, and no other call than DEL can wait. */
    bool kept = why == UNANSWERED && strcmp(variable("CNI_COMMAND"), "DEL") == 0 && keep_request();
    const char *then = kept ? "the DEL is kept and done when the daemon is back" : "try again";
    if (why == UNASKED)
        return fail("CNI_COMMAND is not set, and %s %s to tell more", path, reason);
    return fail("cni-bridged %s at %s, and %s %s to serve the request without it; %s",
                why == DECLINING ? "declines" : "does not answer", socket_path, path, reason, then);
}

/* Whether that many bytes came in time. */
static bool receive(int daemon, unsigned char *bytes, size_t count, int64_t deadline)
{
    while (count > 0 && await(daemon, POLLIN, deadline)) {
        ssize_t got = recv(daemon, bytes, count, MSG_DONTWAIT);
        if (got > 0) {
            bytes += got;
            count -= (size_t)got;
        } else if (got == 0 || (errno != EINTR && errno != EAGAIN)) {
            return false;
        }
    }
    return count == 0;
}

/* A connection on which the daemon greeted, with its seconds; -1 where there is none. */
static int connect_to_daemon(int *seconds)
{
    int64_t deadline = now() + PATIENCE;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, socket_path);
    int daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_usec = PATIENCE * 1000}; /* a connection waits as long as the backlog is full */
    unsigned char greeting[GREETING];
    if (daemon < 0 || setsockopt(daemon, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 ||
        connect(daemon, (struct sockaddr *)&address, sizeof address) < 0 ||
        !receive(daemon, greeting, sizeof greeting, deadline) || memcmp(greeting, "cnib\1", 5) != 0) {
        close(daemon);
        return -1;
    }
    *seconds = greeting[6] << 8 | greeting[7];
    return daemon;
}

/* The container's namespace; -1 where it is gone, or is anything that opening might wake, such as a FIFO. */
static int open_netns(void)
{
    struct stat status;
    char path[64];
    int place = open(variable("CNI_NETNS"), O_PATH | O_CLOEXEC);
    if (place < 0 || fstat(place, &status) < 0 || !S_ISREG(status.st_mode))
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", place);
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* Whether the kernel took the whole request. The namespaces ride with its first bytes. */
static bool send_request(int daemon, int own_netns, int64_t deadline)
{
    int descriptors[] = {own_netns, open_netns()};
    size_t size = descriptors[1] < 0 ? sizeof(int) : 2 * sizeof(int);
    union {
        char bytes[CMSG_SPACE(sizeof descriptors)];
        struct cmsghdr aligned;
    } control = {.bytes = {0}};
    struct iovec piece = {.iov_base = request, .iov_len = length};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(size);
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(rights), descriptors, size);

    while (piece.iov_len > 0) {
        short ready = await(daemon, POLLIN | POLLOUT, deadline);
        if (!ready || ready & POLLIN) /* a daemon that refuses answers early and reads no further */
            return false;
        ssize_t sent = sendmsg(daemon, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            piece.iov_base = (char *)piece.iov_base + sent;
            piece.iov_len -= (size_t)sent;
            message.msg_control = NULL;
            message.msg_controllen = 0;
        } else if (errno != EINTR && errno != EAGAIN) {
            return false;
        }
    }
    return true;
}

static uint32_t number(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* The status of the reply, which is printed once it is complete; -1 where none came. */
static int relay_reply(int daemon, int64_t deadline)
{
    unsigned char start[REPLY];
    if (!receive(daemon, start, sizeof start, deadline))
        return -1;
    uint64_t out = number(start), all = out + number(start + 4);
    unsigned char *texts = all > REPLY_LIMIT ? NULL : malloc(all + 1);
    if (!texts || !receive(daemon, texts, all, deadline))
        return -1;
    if (start[8] == DECLINED)
        return DECLINED;
    signal(SIGPIPE, SIG_IGN); /* who closed one of the two still gets the other, and the status */
    bool printed = write_all(STDOUT_FILENO, texts, out);
    write_all(STDERR_FILENO, texts + out, all - out);
    return printed ? start[8] : 1;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    name = slash ? slash + 1 : argc > 0 ? argv[0] : "";
    name = *name ? name : "cni-bridge";
    run_directory = *variable("CNI_BRIDGE_RUN_DIR") ? variable("CNI_BRIDGE_RUN_DIR") : "/run/cni-bridge";
    snprintf(socket_path, sizeof socket_path, "%s/cni-bridged.sock", run_directory);
    fill_standard_descriptors();

    if (!*variable("CNI_COMMAND"))
        return fall_back(UNASKED);
    int seconds;
    int daemon = connect_to_daemon(&seconds);
    int own_netns = daemon < 0 ? -1 : open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own_netns < 0 || !read_request())
        return fall_back(UNANSWERED);

    bool handed_over = send_request(daemon, own_netns, now() + seconds * 1000);
    int64_t deadline = now() + (handed_over ? seconds * 1000 : PATIENCE);
    int status = relay_reply(daemon, deadline);
    if (status == DECLINED)
        return fall_back(DECLINING);
    if (status >= 0)
        return status;
    if (!handed_over)
        return fall_back(UNANSWERED);
    if (now() >= deadline)
        return fail("cni-bridged took the request and did not answer within %d s; try again", seconds);
    return fail("cni-bridged took the request and ended before it answered; try again");
}
