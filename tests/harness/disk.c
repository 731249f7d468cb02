/* A full disk, for one process: preloaded (LD_PRELOAD), it fails every write that would make a file below the folder
 * TIDEMARK_TEST_DISK longer, with the system's own error, as long as the file TIDEMARK_TEST_DISK_FULL exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int below(int fd) {
    char link[64], path[4096];
    const char *folder = getenv("TIDEMARK_TEST_DISK"), *full = getenv("TIDEMARK_TEST_DISK_FULL");
    if (!folder || !full || access(full, F_OK))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && (path[length] = 0, !strncmp(path, folder, strlen(folder)));
}

/* Whether so many bytes at an offset (-1: where the file is open at) have no room. */
static int no_room(int fd, off_t at, size_t bytes) {
    int before = errno, none = 0;
    struct stat file;
    if (below(fd) && !fstat(fd, &file) && S_ISREG(file.st_mode)) {
        if (at < 0)
            at = fcntl(fd, F_GETFL) & O_APPEND ? file.st_size : lseek(fd, 0, SEEK_CUR);
        none = at + (off_t)bytes > file.st_size;
    }
    errno = none ? ENOSPC : before;
    return none;
}

static size_t all(const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += parts[i].iov_len;
    return bytes;
}

#define WRITER(type, name, declared, given, at, bytes, refused) \
    type name declared { \
        static type(*real) declared; \
        if (!real) \
            *(void **)&real = dlsym(RTLD_NEXT, #name); \
        return no_room(fd, at, bytes) ? refused : real given; \
    }

WRITER(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), -1, n, -1)
WRITER(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), at, n, -1)
WRITER(ssize_t, pwrite64, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), at, n, -1)
WRITER(ssize_t, writev, (int fd, const struct iovec *from, int n), (fd, from, n), -1, all(from, n), -1)
WRITER(ssize_t, pwritev, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at), at, all(from, n), -1)
WRITER(ssize_t, pwritev64, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at), at, all(from, n), -1)
WRITER(int, posix_fallocate, (int fd, off_t at, off_t n), (fd, at, n), at, (size_t)n, ENOSPC)
WRITER(int, posix_fallocate64, (int fd, off_t at, off_t n), (fd, at, n), at, (size_t)n, ENOSPC)
WRITER(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), at, (size_t)n, -1)
WRITER(int, fallocate64, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), at, (size_t)n, -1)
