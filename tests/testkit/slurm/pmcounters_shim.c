/*
 * Redirects /sys/cray/pm_counters/NAME to $FAKE_PM_COUNTERS/NAME.
 *
 * Preloaded into slurmd, it feeds Slurm's own plugin acct_gather_energy/pm_counters from ordinary files, so that sacct
 * shows a ConsumedEnergy that the test knows. Files hold one line, as on a Cray: "123456 J" in energy (cumulative) and
 * "250 W" in power.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "/sys/cray/pm_counters/";

FILE *fopen(const char *path, const char *mode)
{
    static FILE *(*real_fopen)(const char *, const char *);
    const char *folder = getenv("FAKE_PM_COUNTERS");
    char redirected[4096];

    if (!real_fopen)
        real_fopen = (FILE *(*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    if (folder && path && !strncmp(path, prefix, sizeof(prefix) - 1)) {
        snprintf(redirected, sizeof(redirected), "%s/%s", folder, path + sizeof(prefix) - 1);
        path = redirected;
    }
    return real_fopen(path, mode);
}
