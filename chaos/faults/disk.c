/* LD_PRELOAD: a disk under one process's files that is full, broken or slow, as a mapped file says.
 *
 * Concerned are the files whose path begins with CHAOS_DISK_PATH, and of them what reaches the disk: writes
 * at an offset (as databases write) and syncs. A full disk has no room for overwriting either, as one that
 * copies on write; it syncs what it took before. A broken one fails both; a slow one takes its time to sync.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WELL, FULL, BROKEN, SLOW };
struct trouble {
    int64_t kind, sync_ms;
};

static const struct trouble none = {WELL, 0};
static volatile const struct trouble *trouble = &none;
static const char *prefix;

__attribute__((constructor)) static void map_trouble(void) {
    const char *path = getenv("CHAOS_DISK_FILE");
    prefix = getenv("CHAOS_DISK_PATH");
    int file = path && prefix ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *trouble, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) trouble = mapped;
}

static int concerned(int file) {
    char link[40], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, prefix, strlen(prefix)) == 0;
}

static int refused(int file, int error) {
    if (!concerned(file)) return 0;
    errno = error;
    return 1;
}

static int write_refused(int file) {
    switch (trouble->kind) {
        case FULL: return refused(file, ENOSPC);
        case BROKEN: return refused(file, EIO);
        default: return 0;
    }
}

static int sync_refused(int file) {
    int64_t kind = trouble->kind, sync_ms = trouble->sync_ms;
    if (kind == BROKEN) return refused(file, EIO);
    if (kind == SLOW && concerned(file)) {
        struct timespec left = {sync_ms / 1000, sync_ms % 1000 * 1000000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
    }
    return 0;
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return write_refused(file) ? -1 : real(file, bytes, count, offset);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    return write_refused(file) ? -1 : real(file, bytes, count, offset);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    return sync_refused(file) ? -1 : real(file);
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return sync_refused(file) ? -1 : real(file);
}
