/* Sits between a process and its files, by LD_PRELOAD. Of the files below $DISK_ROOT it
   - appends every change and every sync to $DISK_LOG, in the order in which they happened, with the data;
   - has calls fail, as `disk_fail` is told: "w" (write) or "s" (sync), the number from now on of the first call that
     fails, how many do, and the errno: "w:12:5:28". A write that meets a full disk first writes the half that fits.
   Writes to what is called *.acks always succeed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 4096
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_length;
static int log_fd = -1, fail_error;
static char fail_kind, tracked[MOST];
static long fail_from, fail_count, writes, syncs;

struct record { char kind; char pad[7]; uint64_t inode, offset, path_length, other_length, data_length; };

__attribute__((constructor)) static void start(void) {
    root = getenv("DISK_ROOT");
    if (!root) return;
    root_length = strlen(root);
    const char *path = getenv("DISK_LOG");
    if (path) log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

void disk_fail(const char *plan) {
    pthread_mutex_lock(&lock);
    writes = syncs = fail_kind = 0;
    sscanf(plan, "%c:%ld:%ld:%d", &fail_kind, &fail_from, &fail_count, &fail_error);
    pthread_mutex_unlock(&lock);
}

static int below(const char *path) { return root && path && !strncmp(path, root, root_length); }
static int is_tracked(int fd) { return fd >= 0 && fd < MOST && tracked[fd]; }

static void put(const void *data, size_t length) {
    const char *at = data;
    while (length) {
        long done = syscall(SYS_write, log_fd, at, length);
        if (done <= 0) abort();
        at += done, length -= done;
    }
}

static void note(char kind, int fd, uint64_t offset, const char *path, const char *other, const void *data, size_t n) {
    if (log_fd < 0) return;
    struct record r = {.kind = kind, .offset = offset, .data_length = n};
    struct stat facts;
    char name[64], found[PATH_MAX + 1] = "";
    if (fd >= 0 && !fstat(fd, &facts)) r.inode = facts.st_ino;
    if (!path && fd >= 0) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(name, found, PATH_MAX);
        found[length > 0 ? length : 0] = 0;
        path = found;
    }
    r.path_length = path ? strlen(path) : 0;
    r.other_length = other ? strlen(other) : 0;
    put(&r, sizeof r);
    if (r.path_length) put(path, r.path_length);
    if (r.other_length) put(other, r.other_length);
    if (n) put(data, n);
}

static int fails(char kind, long number) {
    return fail_kind == kind && number >= fail_from && number < fail_from + fail_count;
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&lock);
    int ours = below(path), was_there = ours && !access(path, F_OK);
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    int error = errno;
    if (fd >= 0 && fd < MOST) {
        size_t length = strlen(path);
        tracked[fd] = ours ? 1 + (length > 5 && !strcmp(path + length - 5, ".acks")) : 0;
        if (ours && !was_there) note('C', fd, 0, path, NULL, NULL, 0);
        if (ours && was_there && (flags & O_TRUNC)) note('T', fd, 0, path, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(last) mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }

int close(int fd) {
    if (fd >= 0 && fd < MOST) tracked[fd] = 0;
    return syscall(SYS_close, fd);
}

static ssize_t written(int fd, const void *data, size_t length, off_t offset, int positioned) {
    if (!is_tracked(fd))
        return positioned ? syscall(SYS_pwrite64, fd, data, length, offset) : syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    long number = tracked[fd] == 1 ? ++writes : 0;
    if (number && fails('w', number)) {
        if (number > fail_from || fail_error != ENOSPC || length < 2) {
            pthread_mutex_unlock(&lock);
            errno = fail_error;
            return -1;
        }
        length /= 2;
    }
    off_t at = positioned ? offset : lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t done = positioned ? syscall(SYS_pwrite64, fd, data, length, at) : syscall(SYS_write, fd, data, length);
    int error = errno;
    if (done > 0) note('W', fd, at, NULL, NULL, data, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return written(fd, data, length, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) { return written(fd, data, length, at, 1); }

static int truncated(int fd, off_t length) {
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_ftruncate, fd, length), error = errno;
    if (!result && is_tracked(fd)) note('T', fd, length, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

static int synced(int fd) {
    if (!is_tracked(fd)) return 0; /* nothing else is of interest, and the disk is slow */
    pthread_mutex_lock(&lock);
    int failed = fails('s', ++syncs);
    if (!failed) note('S', fd, 0, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = fail_error;
    return failed ? -1 : 0;
}
int fsync(int fd) { return synced(fd); }
int fdatasync(int fd) { return synced(fd); }

#define NAMED(kind, path, other, call) \
    pthread_mutex_lock(&lock); \
    int result = call, error = errno; \
    if (!result && below(path)) note(kind, -1, 0, path, other, NULL, 0); \
    pthread_mutex_unlock(&lock); \
    errno = error; \
    return result;
int renameat(int a, const char *from, int b, const char *to) { NAMED('R', from, to, syscall(SYS_renameat, a, from, b, to)) }
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int unlinkat(int folder, const char *path, int flags) { NAMED('U', path, NULL, syscall(SYS_unlinkat, folder, path, flags)) }
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
