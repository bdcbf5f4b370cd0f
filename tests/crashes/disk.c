/* A disk that remembers and that fails: preloaded into a process, it stands between it and libc.
 *
 * disk_record(log, root) writes down, in order, whatever changes files below `root`, and what goes into pipes;
 * disk_fault(...) makes chosen calls fail, come short, or be the process's last. Both are off until called, and
 * a child inherits them. x86-64 and aarch64 Linux, where off_t has 64 bits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct record { /* then the path, the second path, and the data */
    uint8_t kind, pad[3];
    uint16_t path, other;
    uint32_t size;
    int32_t pad2;
    int64_t offset;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char root[PATH_MAX];

static char fault_kinds[16], fault_pattern[PATH_MAX];
static long fault_first = -1, fault_last, fault_calls;
static int fault_action, fault_errno;

enum { FAIL, SHORT, KILL_BEFORE, KILL_AFTER };

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

void disk_record(const char *log, const char *below) {
    log_fd = REAL(open64)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    snprintf(root, sizeof root, "%s", below);
}

void disk_fault(const char *kinds, const char *pattern, long first, long last, int action, int error) {
    snprintf(fault_kinds, sizeof fault_kinds, "%s", kinds);
    snprintf(fault_pattern, sizeof fault_pattern, "%s", pattern);
    fault_first = first, fault_last = last, fault_action = action, fault_errno = error, fault_calls = 0;
}

long disk_calls(void) { return fault_calls; }

/* Paths ----------------------------------------------------------------------------------------------------- */

static int of_fd(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = 0;
    return size > 0;
}

static void at(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') base[0] = 0;
    else if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else of_fd(folder, base);
    if (snprintf(path, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", name) >= PATH_MAX) path[0] = 0;
}

static int watched(const char *path) {
    size_t size = strlen(root);
    return size && !strncmp(path, root, size) && (path[size] == '/' || path[size] == 0);
}

/* Faults ---------------------------------------------------------------------------------------------------- */

/* Returns whether this call is a chosen one; kinds: o(pen) w(rite) s(ync) n(ame). */
static int chosen(char kind, const char *path) {
    if (fault_first < 0 || !strchr(fault_kinds, kind) || !strstr(path, fault_pattern)) return 0;
    long call = __atomic_fetch_add(&fault_calls, 1, __ATOMIC_SEQ_CST);
    if (call < fault_first || call > fault_last) return 0;
    if (fault_action == KILL_BEFORE) kill(getpid(), SIGKILL), pause();
    return 1;
}

static void after(int is_chosen) {
    if (is_chosen && fault_action == KILL_AFTER) kill(getpid(), SIGKILL), pause();
}

static int fails(int is_chosen) {
    if (!is_chosen || fault_action != FAIL) return 0;
    errno = fault_errno;
    return 1;
}

/* The log --------------------------------------------------------------------------------------------------- */

static void note(char kind, const char *path, const char *other, int64_t offset, const struct iovec *parts,
                 int count, size_t size) {
    if (log_fd < 0) return;
    int saved = errno;
    struct record head = {.kind = (uint8_t)kind, .path = (uint16_t)strlen(path), .offset = offset,
                          .other = (uint16_t)strlen(other), .size = (uint32_t)size};
    struct iovec all[3 + 64];
    int used = 0;
    all[used++] = (struct iovec){&head, sizeof head};
    all[used++] = (struct iovec){(void *)path, head.path};
    all[used++] = (struct iovec){(void *)other, head.other};
    for (int i = 0; i < count && i < 64 && size; i++) {
        size_t part = parts[i].iov_len < size ? parts[i].iov_len : size;
        all[used++] = (struct iovec){parts[i].iov_base, part};
        size -= part;
    }
    pthread_mutex_lock(&mutex);
    if (REAL(writev)(log_fd, all, used) < 0) kill(getpid(), SIGABRT);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void plain(char kind, const char *path, int64_t offset) { note(kind, path, "", offset, NULL, 0, 0); }

/* Calls ----------------------------------------------------------------------------------------------------- */

static int open_file(int folder, const char *name, int flags, mode_t mode) {
    int (*next)(int, const char *, int, ...) = REAL(openat64);
    if (log_fd < 0 && fault_first < 0) return next(folder, name, flags, mode);
    char path[PATH_MAX];
    struct stat before;
    at(folder, name, path);
    int new = (flags & O_CREAT) && stat(path, &before) != 0;
    int is_chosen = watched(path) && chosen('o', path);
    if (fails(is_chosen)) return -1;
    int fd = next(folder, name, flags, mode);
    if (fd >= 0 && watched(path)) {
        if (new) plain('C', path, 0);
        else if ((flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY) plain('T', path, 0);
    }
    after(is_chosen);
    return fd;
}

#define OPEN(name, folder_parameter, folder)                              \
    int name(folder_parameter const char *path, int flags, ...) {         \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                     \
        return open_file(folder, path, flags, mode);                      \
    }
#define NOTHING
#define FOLDER int folder,
OPEN(open, NOTHING, AT_FDCWD)
OPEN(open64, NOTHING, AT_FDCWD)
OPEN(openat, FOLDER, folder)
OPEN(openat64, FOLDER, folder)

/* offset < 0: where the file stands. */
static ssize_t write_parts(int fd, const struct iovec *parts, int count, int64_t offset) {
    char path[PATH_MAX];
    struct stat status;
    int idle = (log_fd < 0 && fault_first < 0) || fd == log_fd;
    struct iovec half;
    if (!idle && !fstat(fd, &status) && S_ISREG(status.st_mode) && of_fd(fd, path) && watched(path)) {
        int is_chosen = chosen('w', path);
        if (fails(is_chosen)) return -1;
        if (is_chosen && fault_action == SHORT && parts[0].iov_len > 1) {
            half = (struct iovec){parts[0].iov_base, parts[0].iov_len / 2};
            parts = &half, count = 1;
        }
        int64_t place = offset;
        if (offset < 0)
            place = (fcntl(fd, F_GETFL) & O_APPEND) ? status.st_size : lseek(fd, 0, SEEK_CUR);
        ssize_t done = offset < 0 ? REAL(writev)(fd, parts, count) : pwritev(fd, parts, count, offset);
        if (done > 0) note('W', path, "", place, parts, count, (size_t)done);
        after(is_chosen);
        return done;
    }
    if (!idle && log_fd >= 0 && !fstat(fd, &status) && S_ISFIFO(status.st_mode)) {
        size_t size = 0; /* noted before: whoever reads may act on it at once */
        for (int i = 0; i < count; i++) size += parts[i].iov_len;
        note('P', "", "", 0, parts, count, size);
    }
    return offset < 0 ? REAL(writev)(fd, parts, count) : pwritev(fd, parts, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_parts(fd, parts, count, -1); }

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return write_parts(fd, &part, 1, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct iovec part = {(void *)data, size};
    return write_parts(fd, &part, 1, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    struct iovec part = {(void *)data, size};
    return write_parts(fd, &part, 1, offset);
}

static int truncate_file(int fd, off64_t size) {
    char path[PATH_MAX];
    int known = (log_fd >= 0 || fault_first >= 0) && of_fd(fd, path) && watched(path);
    int is_chosen = known && chosen('w', path);
    if (fails(is_chosen)) return -1;
    int result = REAL(ftruncate64)(fd, size);
    if (known && result == 0) plain('T', path, size);
    after(is_chosen);
    return result;
}

int ftruncate(int fd, off_t size) { return truncate_file(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_file(fd, size); }

static int sync_file(int fd, int (*next)(int)) {
    char path[PATH_MAX];
    int known = (log_fd >= 0 || fault_first >= 0) && of_fd(fd, path) && watched(path);
    int is_chosen = known && chosen('s', path);
    if (fails(is_chosen)) {
        plain('F', path, 0);
        return -1;
    }
    int result = next(fd);
    if (known) plain(result == 0 ? 'S' : 'F', path, 0);
    after(is_chosen);
    return result;
}

int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

static int named(char kind, int folder, const char *name, int other_folder, const char *other, int flags) {
    char path[PATH_MAX] = "", second[PATH_MAX] = "";
    int known = log_fd >= 0 || fault_first >= 0;
    if (known) {
        at(folder, name, path);
        if (other) at(other_folder, other, second);
        known = watched(path);
    }
    int is_chosen = known && chosen('n', path);
    if (fails(is_chosen)) return -1;
    int result;
    if (kind == 'R') result = REAL(renameat)(folder, name, other_folder, other);
    else if (kind == 'M') result = REAL(mkdirat)(folder, name, (mode_t)flags);
    else result = REAL(unlinkat)(folder, name, flags);
    if (known && result == 0) note(flags & AT_REMOVEDIR && kind == 'U' ? 'D' : kind, path, second, 0, NULL, 0, 0);
    after(is_chosen);
    return result;
}

int rename(const char *path, const char *other) { return named('R', AT_FDCWD, path, AT_FDCWD, other, 0); }
int renameat(int folder, const char *path, int other_folder, const char *other) {
    return named('R', folder, path, other_folder, other, 0);
}
int renameat2(int folder, const char *path, int other_folder, const char *other, unsigned flags) {
    if (flags && (log_fd >= 0 || fault_first >= 0)) return errno = EINVAL, -1;
    return named('R', folder, path, other_folder, other, 0);
}
int mkdir(const char *path, mode_t mode) { return named('M', AT_FDCWD, path, 0, NULL, (int)mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return named('M', folder, path, 0, NULL, (int)mode); }
int unlink(const char *path) { return named('U', AT_FDCWD, path, 0, NULL, 0); }
int unlinkat(int folder, const char *path, int flags) { return named('U', folder, path, 0, NULL, flags); }
int rmdir(const char *path) { return named('U', AT_FDCWD, path, 0, NULL, AT_REMOVEDIR); }
