/*
 * Jobs whose CPU time is known, to compare clocks of process trees with.  Built by tests/testkit/workload.py.
 *
 *   workload short N MS      N children of MS ms of CPU, one after another, waited for
 *   workload unreaped N MS   the same with SIGCHLD ignored: the kernel reaps them
 *   workload daemon S        double fork + setsid; the orphan burns S seconds
 *   workload daemons N MS    such an orphan runs 'short N MS'
 *   workload threads N S     N threads burn S seconds each
 *
 * Every process appends the CPU seconds that it has used, as a double, to the file $TRUTH; what it takes to fork and
 * to end is not in them.  With $CGROUP the job first enters that control group.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 64

static double cpu_seconds(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void append(const char *path, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_APPEND);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t) count) {
        perror(path);
        _exit(3);
    }
    close(fd);
}

static void finish(void)
{
    double used = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
    append(getenv("TRUTH"), &used, sizeof used);
    _exit(0);
}

static void *burn(void *seconds)
{
    volatile unsigned long sink = 0;
    while (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) < *(double *) seconds)
        for (int i = 0; i < 20000; i++)
            sink += i;
    return NULL;
}

static void run_children(int count, double seconds)
{
    for (int i = 0; i < count; i++) {
        if (fork() == 0) {
            burn(&seconds);
            finish();
        }
        wait(NULL); /* with SIGCHLD ignored: blocks, then fails */
    }
}

static void become_daemon(void)
{
    if (fork())
        finish();
    setsid();
    if (fork())
        finish();
}

static void run_threads(int count, double seconds)
{
    pthread_t threads[THREADS_MAX];
    for (int i = 0; i < count && i < THREADS_MAX; i++)
        pthread_create(&threads[i], NULL, burn, &seconds);
    for (int i = 0; i < count && i < THREADS_MAX; i++)
        pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "", *group = getenv("CGROUP");
    double first = argc > 2 ? atof(argv[2]) : 0, second = argc > 3 ? atof(argv[3]) : 0;

    if (group)
        append(group, "0", 1); /* 0 is the writer itself */
    if (!strcmp(mode, "short")) {
        run_children(first, second / 1000);
    } else if (!strcmp(mode, "unreaped")) {
        signal(SIGCHLD, SIG_IGN);
        run_children(first, second / 1000);
    } else if (!strcmp(mode, "daemon")) {
        become_daemon();
        burn(&first);
    } else if (!strcmp(mode, "daemons")) {
        become_daemon();
        run_children(first, second / 1000);
    } else if (!strcmp(mode, "threads")) {
        run_threads(first, second);
    } else {
        fprintf(stderr, "usage: workload short|unreaped|daemons N MS | daemon S | threads N S\n");
        return 2;
    }
    finish();
}
