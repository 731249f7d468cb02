/* A wall clock that is wrong, for one process: preloaded (LD_PRELOAD), it adds to the time of day the milliseconds that
 * stood in the file TIDEMARK_TEST_CLOCK when the process started. Clocks that only measure how long things take stay
 * right. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long wrong_by;

__attribute__((constructor)) static void set(void) {
    const char *path = getenv("TIDEMARK_TEST_CLOCK");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file || fscanf(file, "%ld", &wrong_by) != 1) {
        fputs("clock.c: no milliseconds in the file TIDEMARK_TEST_CLOCK\n", stderr);
        exit(1);
    }
    fclose(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, clock, at);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return (int)failed;
    long millis = at->tv_sec * 1000 + at->tv_nsec / 1000000 + wrong_by;
    at->tv_nsec = millis % 1000 * 1000000 + at->tv_nsec % 1000000;
    at->tv_sec = millis / 1000;
    return 0;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    if (at) {
        clock_gettime(CLOCK_REALTIME, &now);
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
