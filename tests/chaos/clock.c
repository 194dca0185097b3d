/* A wall clock that jumps. Preloaded, it moves what every process of a job is told of the time of day, by another
 * amount in each period; what measures time that passes (CLOCK_MONOTONIC) stays as it is. The offset follows from the
 * machine's uptime, so that all processes see the same. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int told(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return real(clock, at);
}

static long setting(const char *name) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

static time_t offset(void) {
    static long most_s, period_ms, seed;
    if (!period_ms) {
        most_s = setting("CLOCK_MOST_S");
        seed = setting("CLOCK_SEED");
        period_ms = setting("CLOCK_PERIOD_MS") ?: 1;
    }
    struct timespec up;
    told(CLOCK_MONOTONIC, &up);
    uint64_t x = seed + (up.tv_sec * 1000 + up.tv_nsec / 1000000) / period_ms;
    x = (x + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
    return (time_t)((x ^ (x >> 31)) % (2 * most_s + 1)) - most_s;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = told(clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
