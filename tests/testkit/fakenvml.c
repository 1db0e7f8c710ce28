/*
 * A programmable stand-in for libnvidia-ml.so.1: NVML without a GPU, for tests.
 *
 * Implements the part of NVML's public C interface that power meters use.  The
 * file named by $FAKE_NVML_STATE describes the GPUs; it is looked at in every
 * call, so a test changes the hardware by replacing the file (rename(2) another
 * into its place).  Lines are KEY = VALUE; '#' starts a comment; GPU keys start with the
 * GPU's index N or with '*' for all.  Built by tests/testkit/nvml.py.
 *
 *   count                     number of GPUs, at most 16 (1)
 *   driver, nvml              version texts
 *   now                       stops the clock at this many seconds of the trace
 *   epoch                     Unix time of the trace's second 0 (the process's nvmlInit)
 *   reload                    a number; when it changes the driver was reloaded: nothing answers until nvmlInit
 *   error.FUNCTION            error of that function: NVML's name without NVML_ERROR_, or a number
 *   N.error, N.error.FUNCTION error of every call, or of one function, for GPU N
 *   N.name, N.uuid            identity
 *   N.power_mw                constant power (60000)
 *   N.trace                   SECOND:MILLIWATTS, ...: power as a step function; energy is its integral
 *   N.energy_mj               energy counter at second 0 (0)
 *   N.stuck_mj                the energy counter stands at this value
 *   N.update_ms               power and energy advance in such steps (0: continuously)
 *   N.limit_mw, N.limit_min_mw, N.limit_max_mw   power limit and its range (350000, 100000, 350000)
 *   N.util                    GPU,MEMORY in percent
 *   N.memory_total, N.memory_used   bytes
 *   N.procs, N.graphics       PID:BYTES:SM_PERCENT[:MEMORY_PERCENT], ...
 *   N.mig, N.mig_devices      MIG mode CURRENT,PENDING (absent: not supported), number of MIG devices (at most 7)
 *   N.mig.M.slices, N.mig.M.procs   compute slices (1) and processes of MIG device M
 *   N.temperature, N.compute_mode, N.architecture   numbers
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define MAX_GPUS 16
#define MAX_MIG 7
#define EXPORT __attribute__((visibility("default")))

typedef unsigned int uint;
typedef unsigned long long ull;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, UNKNOWN = 999
};

static const struct { int code; const char *name, *text; } errors[] = {
    {0, "SUCCESS", "Success"},
    {1, "UNINITIALIZED", "Uninitialized"},
    {2, "INVALID_ARGUMENT", "Invalid Argument"},
    {3, "NOT_SUPPORTED", "Not Supported"},
    {4, "NO_PERMISSION", "Insufficient Permissions"},
    {5, "ALREADY_INITIALIZED", "Already Initialized"},
    {6, "NOT_FOUND", "Not Found"},
    {7, "INSUFFICIENT_SIZE", "Insufficient Size"},
    {8, "INSUFFICIENT_POWER", "Insufficient External Power"},
    {9, "DRIVER_NOT_LOADED", "Driver Not Loaded"},
    {10, "TIMEOUT", "Timeout"},
    {11, "IRQ_ISSUE", "Interrupt Request Issue"},
    {12, "LIBRARY_NOT_FOUND", "NVML Shared Library Not Found"},
    {13, "FUNCTION_NOT_FOUND", "Function Not Found"},
    {15, "GPU_IS_LOST", "GPU is lost"},
    {16, "RESET_REQUIRED", "GPU requires restart"},
    {18, "LIB_RM_VERSION_MISMATCH", "Driver/library version mismatch"},
    {19, "IN_USE", "In use by another client"},
    {20, "MEMORY", "Insufficient Memory"},
    {21, "NO_DATA", "No data"},
    {999, "UNKNOWN", "Unknown Error"},
};

/* A handle points to one of these; mig < 0 is the GPU itself. */
typedef struct { int index, mig; } device;

static device gpus[MAX_GPUS], migs[MAX_GPUS][MAX_MIG];
static int initialised, loaded;
static double started;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, state_lock = PTHREAD_MUTEX_INITIALIZER;

/* ------------------------------------------------------------- state file */

static double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static char *trim(char *text)
{
    while (isspace((unsigned char) *text))
        text++;
    for (char *end = text + strlen(text); end > text && isspace((unsigned char) end[-1]);)
        *--end = 0;
    return text;
}

/* The state file's text, read again when another file has its name; "" without one. Needs state_lock. */
static const char *state(void)
{
    static char text[1 << 16];
    static struct stat known;
    struct stat found;
    const char *path = getenv("FAKE_NVML_STATE");

    if (!path || stat(path, &found))
        return "";
    if (found.st_ino != known.st_ino || found.st_size != known.st_size ||
        found.st_mtim.tv_sec != known.st_mtim.tv_sec || found.st_mtim.tv_nsec != known.st_mtim.tv_nsec) {
        FILE *file = fopen(path, "re");
        text[file ? fread(text, 1, sizeof(text) - 1, file) : 0] = 0;
        if (file)
            fclose(file);
        known = found;
    }
    return text;
}

/* Last value of the key (formatted), or the fallback; 1 when the key is there. */
static int lookup(char *value, size_t size, const char *fallback, const char *format, ...)
{
    char key[256], line[8192];
    int found = 0;
    va_list args;

    va_start(args, format);
    vsnprintf(key, sizeof(key), format, args);
    va_end(args);
    snprintf(value, size, "%s", fallback);
    pthread_mutex_lock(&state_lock);
    for (const char *begin = state(), *end; *begin; begin = *end ? end + 1 : end) {
        end = strchrnul(begin, '\n');
        snprintf(line, sizeof(line), "%.*s", (int) (end - begin), begin);
        char *equals = strchr(line, '='), *hash = strchr(line, '#');
        if (hash)
            *hash = 0;
        if (!equals || (hash && hash < equals))
            continue;
        *equals = 0;
        if (!strcmp(trim(line), key)) {
            snprintf(value, size, "%s", trim(equals + 1));
            found = 1;
        }
    }
    pthread_mutex_unlock(&state_lock);
    return found;
}

/* A GPU's own value, else the one given for all GPUs, else the fallback. */
static int gpu_text(const device *d, const char *key, char *value, size_t size,
                    const char *fallback)
{
    char common[8192];
    int found = lookup(common, sizeof(common), fallback, "*.%s", key);
    return lookup(value, size, common, "%d.%s", d->index, key) || found;
}

static double gpu_number(const device *d, const char *key, double fallback)
{
    char text[256];
    return gpu_text(d, key, text, sizeof(text), "") ? atof(text) : fallback;
}

static int error_code(const char *name)
{
    if (!strncmp(name, "NVML_ERROR_", 11))
        name += 11;
    for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
        if (!strcmp(errors[i].name, name))
            return errors[i].code;
    return isdigit((unsigned char) *name) ? atoi(name) : UNKNOWN;
}

/* The error programmed for this call: error.FUNCTION, INDEX.error.FUNCTION or INDEX.error. */
static int programmed(const char *function, const device *d)
{
    char text[64], key[128];
    char base[96];

    snprintf(base, sizeof(base), "%s", function);
    char *version = strrchr(base, '_'); /* nvmlInit_v2 also answers to error.nvmlInit */
    if (version && version[1] == 'v')
        *version = 0;
    for (int plain = 0; plain < 2; plain++) {
        const char *name = plain ? base : function;
        if (lookup(text, sizeof(text), "", "error.%s", name))
            return error_code(text);
        snprintf(key, sizeof(key), "error.%s", name);
        if (d && gpu_text(d, key, text, sizeof(text), ""))
            return error_code(text);
    }
    return d && gpu_text(d, "error", text, sizeof(text), "") ? error_code(text) : SUCCESS;
}

static int driver_load(void)
{
    char text[16];
    return lookup(text, sizeof(text), "", "reload") ? atoi(text) : 0;
}

static int enter(const char *function, const device *d, int needs_device)
{
    if (!initialised || loaded != driver_load())
        return UNINITIALIZED;
    if (needs_device && !d)
        return INVALID_ARGUMENT;
    return programmed(function, d);
}

#define ENTER(d) do { int rc_ = enter(__func__, d, 1); if (rc_) return rc_; } while (0)
#define ENTER_SYSTEM() do { int rc_ = enter(__func__, NULL, 0); if (rc_) return rc_; } while (0)
#define NEEDS(p) do { if (!(p)) return INVALID_ARGUMENT; } while (0)
#define NO_MIG(d) do { if ((d)->mig >= 0) return NOT_SUPPORTED; } while (0)

static int copy(char *target, uint length, const char *text)
{
    if (!target)
        return INVALID_ARGUMENT;
    if (length < strlen(text) + 1)
        return INSUFFICIENT_SIZE;
    strcpy(target, text);
    return SUCCESS;
}

/* --------------------------------------------------------- power and energy */

/* Seconds since the trace began: 'now' (a stopped clock), else since 'epoch', else since init. */
static double trace_time(const device *d)
{
    char text[64];
    double seconds, step = gpu_number(d, "update_ms", 0) / 1000;

    if (lookup(text, sizeof(text), "", "now"))
        seconds = atof(text);
    else
        seconds = clock_now() - (lookup(text, sizeof(text), "", "epoch") ? atof(text) : started);
    if (step > 0) /* real counters advance in steps of 20 to 100 ms */
        seconds = (double) (long long) (seconds / step) * step;
    return seconds > 0 ? seconds : 0;
}

/*
 * 'trace' is a step function "0:100000,10:350000": mW from that second on;
 * 'power_mw' is a constant.  Returns the power now; *millijoules the integral.
 */
static double power_now(const device *d, double *millijoules)
{
    char trace[4096], *next = trace;
    double now = trace_time(d), power = gpu_number(d, "power_mw", 60000), from = 0, energy = 0;

    gpu_text(d, "trace", trace, sizeof(trace), "");
    while (*next) {
        char *colon;
        double at = strtod(next, &colon);
        if (*colon != ':' || at > now)
            break;
        energy += power * (at - from);
        power = strtod(colon + 1, &next);
        from = at;
        while (*next == ',' || isspace((unsigned char) *next))
            next++;
    }
    *millijoules = gpu_number(d, "energy_mj", 0) + energy + power * (now - from);
    *millijoules = gpu_number(d, "stuck_mj", *millijoules);
    return power;
}

static uint power_limit(const device *d)
{
    /* A limit that was set is kept beside the state file, for all processes. */
    char path[4096];
    uint limit = (uint) gpu_number(d, "limit_mw", 350000);
    snprintf(path, sizeof(path), "%s.limit.%d", getenv("FAKE_NVML_STATE") ?: "", d->index);
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%u", &limit) != 1)
            limit = 0;
        fclose(file);
    }
    return limit;
}

/* -------------------------------------------------------- library and system */

static int gpu_count(void)
{
    char text[16];
    lookup(text, sizeof(text), "1", "count");
    int count = atoi(text);
    return count < 0 ? 0 : count > MAX_GPUS ? MAX_GPUS : count;
}

static int start(const char *function)
{
    int rc = programmed(function, NULL);
    if (rc)
        return rc;
    pthread_mutex_lock(&lock);
    if (!initialised++) {
        loaded = driver_load();
        started = clock_now();
        for (int i = 0; i < MAX_GPUS; i++) {
            gpus[i] = (device) {i, -1};
            for (int m = 0; m < MAX_MIG; m++)
                migs[i][m] = (device) {i, m};
        }
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return start("nvmlInit_v2"); }
EXPORT int nvmlInit(void) { return start("nvmlInit"); }
EXPORT int nvmlInitWithFlags(uint flags) { (void) flags; return start("nvmlInit_v2"); }

EXPORT int nvmlShutdown(void)
{
    if (!initialised)
        return UNINITIALIZED;
    pthread_mutex_lock(&lock);
    initialised--;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int code)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
        if (errors[i].code == code)
            return errors[i].text;
    return "Unknown Error";
}

static int system_text(const char *function, const char *key, const char *fallback, char *out,
                       uint length)
{
    char text[128];
    int rc = enter(function, NULL, 0);
    if (rc)
        return rc;
    lookup(text, sizeof(text), fallback, "%s", key);
    return copy(out, length, text);
}

EXPORT int nvmlSystemGetDriverVersion(char *out, uint length)
{
    return system_text(__func__, "driver", "550.54.15", out, length);
}

EXPORT int nvmlSystemGetNVMLVersion(char *out, uint length)
{
    return system_text(__func__, "nvml", "12.550.54.15", out, length);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ENTER_SYSTEM();
    NEEDS(version);
    *version = 12040;
    return SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT int nvmlSystemGetProcessName(uint pid, char *out, uint length)
{
    char path[64], name[256] = "";
    ENTER_SYSTEM();
    snprintf(path, sizeof(path), "/proc/%u/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NOT_FOUND;
    if (!fgets(name, sizeof(name), file))
        name[0] = 0;
    fclose(file);
    return copy(out, length, trim(name));
}

/* -------------------------------------------------------------- enumeration */

EXPORT int nvmlDeviceGetCount_v2(uint *count)
{
    ENTER_SYSTEM();
    NEEDS(count);
    *count = (uint) gpu_count();
    return SUCCESS;
}

EXPORT int nvmlDeviceGetCount(uint *count) { return nvmlDeviceGetCount_v2(count); }

EXPORT int nvmlDeviceGetHandleByIndex_v2(uint index, device **d)
{
    ENTER_SYSTEM();
    if (!d || (int) index >= gpu_count())
        return INVALID_ARGUMENT;
    *d = &gpus[index];
    return enter(__func__, *d, 1);
}

EXPORT int nvmlDeviceGetHandleByIndex(uint index, device **d)
{
    return nvmlDeviceGetHandleByIndex_v2(index, d);
}

static void uuid_of(const device *d, char *text, size_t size)
{
    char fallback[96];
    snprintf(fallback, sizeof(fallback), "GPU-00000000-0000-0000-0000-%012d", d->index);
    gpu_text(d, "uuid", text, size, fallback);
    if (d->mig >= 0)
        snprintf(text, size, "MIG-00000000-0000-0000-%04d-%012d", d->mig, d->index);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, device **d)
{
    char text[96];
    ENTER_SYSTEM();
    NEEDS(uuid && d);
    for (int i = 0; i < gpu_count(); i++)
        for (int m = -1; m < MAX_MIG; m++) {
            device *candidate = m < 0 ? &gpus[i] : &migs[i][m];
            uuid_of(candidate, text, sizeof(text));
            if (!strcmp(text, uuid)) {
                *d = candidate;
                return SUCCESS;
            }
        }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetIndex(device *d, uint *index)
{
    ENTER(d);
    NEEDS(index);
    *index = (uint) (d->mig < 0 ? d->index : d->mig);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMinorNumber(device *d, uint *minor)
{
    ENTER(d);
    NEEDS(minor);
    *minor = (uint) d->index;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetName(device *d, char *out, uint length)
{
    char text[96], name[128];
    ENTER(d);
    gpu_text(d, "name", text, sizeof(text), "NVIDIA Fake GPU");
    snprintf(name, sizeof(name), d->mig < 0 ? "%s" : "%s MIG 1g.10gb", text);
    return copy(out, length, name);
}

EXPORT int nvmlDeviceGetUUID(device *d, char *out, uint length)
{
    char text[96];
    ENTER(d);
    uuid_of(d, text, sizeof(text));
    return copy(out, length, text);
}

/* nvmlPciInfo_t: busIdLegacy[16], domain, bus, device, pciDeviceId, pciSubSystemId, busId[32] */
typedef struct {
    char legacy[16];
    uint domain, bus, device, device_id, subsystem;
    char id[32];
} pci_info;

EXPORT int nvmlDeviceGetPciInfo_v3(device *d, pci_info *info)
{
    ENTER(d);
    NEEDS(info);
    memset(info, 0, sizeof(*info));
    info->bus = (uint) d->index + 1;
    snprintf(info->legacy, sizeof(info->legacy), "0000:%02X:00.0", info->bus);
    snprintf(info->id, sizeof(info->id), "00000000:%02X:00.0", info->bus);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device **d)
{
    uint domain, bus;
    ENTER_SYSTEM();
    NEEDS(id && d);
    if (sscanf(id, "%x:%x:", &domain, &bus) != 2 || !bus || (int) bus > gpu_count())
        return NOT_FOUND;
    *d = &gpus[bus - 1];
    return SUCCESS;
}

/* ---------------------------------------------------------- power and limits */

EXPORT int nvmlDeviceGetPowerUsage(device *d, uint *milliwatts)
{
    double energy;
    ENTER(d);
    NEEDS(milliwatts);
    NO_MIG(d);
    *milliwatts = (uint) power_now(d, &energy);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(device *d, ull *millijoules)
{
    double energy;
    ENTER(d);
    NEEDS(millijoules);
    NO_MIG(d);
    power_now(d, &energy);
    *millijoules = (ull) energy;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPowerManagementMode(device *d, uint *enabled)
{
    ENTER(d);
    NEEDS(enabled);
    *enabled = 1;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPowerManagementLimit(device *d, uint *limit)
{
    ENTER(d);
    NEEDS(limit);
    NO_MIG(d);
    *limit = power_limit(d);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(device *d, uint *limit)
{
    ENTER(d);
    NEEDS(limit);
    NO_MIG(d);
    *limit = power_limit(d);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPowerManagementDefaultLimit(device *d, uint *limit)
{
    ENTER(d);
    NEEDS(limit);
    NO_MIG(d);
    *limit = (uint) gpu_number(d, "limit_mw", 350000);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(device *d, uint *least, uint *most)
{
    ENTER(d);
    NEEDS(least && most);
    NO_MIG(d);
    *least = (uint) gpu_number(d, "limit_min_mw", 100000);
    *most = (uint) gpu_number(d, "limit_max_mw", 350000);
    return SUCCESS;
}

EXPORT int nvmlDeviceSetPowerManagementLimit(device *d, uint limit)
{
    char path[4096];
    ENTER(d);
    NO_MIG(d);
    if (limit < gpu_number(d, "limit_min_mw", 100000) ||
        limit > gpu_number(d, "limit_max_mw", 350000))
        return INVALID_ARGUMENT;
    snprintf(path, sizeof(path), "%s.limit.%d", getenv("FAKE_NVML_STATE") ?: "", d->index);
    FILE *file = fopen(path, "we");
    if (!file)
        return NO_PERMISSION;
    fprintf(file, "%u\n", limit);
    fclose(file);
    return SUCCESS;
}

/* nvmlFieldValue_t */
typedef struct {
    uint field, scope;
    long long timestamp, latency;
    uint type;
    int status;
    union { double d; uint ui; ull ull; } value;
} field_value;

enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };

EXPORT int nvmlDeviceGetFieldValues(device *d, int count, field_value *values)
{
    ENTER(d);
    NEEDS(values);
    NO_MIG(d);
    for (int i = 0; i < count; i++) {
        double energy, power = power_now(d, &energy);
        values[i].timestamp = (long long) (clock_now() * 1e6);
        values[i].status = SUCCESS;
        if (values[i].field == FIELD_TOTAL_ENERGY) {
            values[i].type = 3; /* NVML_VALUE_TYPE_UNSIGNED_LONG_LONG */
            values[i].value.ull = (ull) energy;
        } else if (values[i].field == FIELD_POWER_AVERAGE ||
                   values[i].field == FIELD_POWER_INSTANT) {
            values[i].type = 1; /* NVML_VALUE_TYPE_UNSIGNED_INT */
            values[i].value.ui = (uint) power;
        } else {
            values[i].status = NOT_SUPPORTED;
        }
    }
    return SUCCESS;
}

/* ------------------------------------------------- utilisation and processes */

static int mig_mode(const device *d) /* the driver has no utilisation of a GPU in MIG mode */
{
    return gpu_number(d, "mig", 0) == 1;
}

typedef struct { uint gpu, memory; } utilization;

EXPORT int nvmlDeviceGetUtilizationRates(device *d, utilization *rates)
{
    char text[64];
    ENTER(d);
    NEEDS(rates);
    NO_MIG(d);
    if (mig_mode(d))
        return NOT_SUPPORTED;
    gpu_text(d, "util", text, sizeof(text), "0,0");
    rates->gpu = rates->memory = 0;
    sscanf(text, "%u,%u", &rates->gpu, &rates->memory);
    return SUCCESS;
}

typedef struct { ull total, free, used; } memory_info;

EXPORT int nvmlDeviceGetMemoryInfo(device *d, memory_info *memory)
{
    ENTER(d);
    NEEDS(memory);
    memory->total = (ull) gpu_number(d, "memory_total", 80.0 * (1 << 30));
    memory->used = (ull) gpu_number(d, "memory_used", 0);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

typedef struct { uint pid; ull memory; uint gpu_instance, compute_instance; } process_info;
typedef struct { uint pid; ull timestamp; uint sm, memory, encoder, decoder; } process_sample;

/* 'procs' (or 'graphics'): PID:BYTES:SM_PERCENT[:MEMORY_PERCENT], comma-separated. */
static int next_process(char **cursor, uint *pid, ull *bytes, uint *sm, uint *memory)
{
    char *entry = strsep(cursor, ",");
    *bytes = *sm = *memory = 0;
    return entry && sscanf(entry, " %u:%llu:%u:%u", pid, bytes, sm, memory) >= 1;
}

/* The value of a MIG device, which has none in common with its GPU; else that of the GPU. */
static void mig_text(const device *d, const char *key, char *value, size_t size,
                     const char *fallback)
{
    char own[64];
    if (d->mig >= 0)
        snprintf(own, sizeof(own), "mig.%d.%s", d->mig, key);
    else
        snprintf(own, sizeof(own), "%s", key);
    gpu_text(d, own, value, size, fallback);
}

static int running(const device *d, const char *key, uint *count, process_info *out)
{
    char text[4096], *cursor = text;
    uint pid, sm, memory, room = out ? *count : 0, found = 0;
    ull bytes;

    mig_text(d, key, text, sizeof(text), "");
    while (next_process(&cursor, &pid, &bytes, &sm, &memory)) {
        if (found < room)
            out[found] = (process_info) {pid, bytes, 0xFFFFFFFF, 0xFFFFFFFF};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device *d, uint *count, process_info *out)
{
    ENTER(d);
    NEEDS(count);
    return running(d, "procs", count, out);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(device *d, uint *count, process_info *out)
{
    ENTER(d);
    NEEDS(count);
    return running(d, "procs", count, out);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(device *d, uint *count, process_info *out)
{
    ENTER(d);
    NEEDS(count);
    return running(d, "graphics", count, out);
}

EXPORT int nvmlDeviceGetProcessUtilization(device *d, process_sample *out, uint *count, ull since)
{
    char text[4096], *cursor = text;
    uint pid, sm, memory, room, found = 0;
    ull bytes, now = (ull) (clock_now() * 1e6);

    ENTER(d);
    NEEDS(count);
    NO_MIG(d);
    if (mig_mode(d))
        return NOT_SUPPORTED;
    room = out ? *count : 0;
    gpu_text(d, "procs", text, sizeof(text), "");
    while (next_process(&cursor, &pid, &bytes, &sm, &memory)) {
        if (!sm) /* only processes that used the GPU have samples */
            continue;
        if (found < room)
            out[found] = (process_sample) {pid, now, sm, memory, 0, 0};
        found++;
    }
    *count = found;
    if (!found || since >= now)
        return NOT_FOUND; /* as the driver: no sample since then */
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* ---------------------------------------------------------------------- MIG */

EXPORT int nvmlDeviceGetMigMode(device *d, uint *current, uint *pending)
{
    char text[32];
    ENTER(d);
    NEEDS(current && pending);
    if (!gpu_text(d, "mig", text, sizeof(text), ""))
        return NOT_SUPPORTED; /* as GPUs before Ampere */
    *current = *pending = 0;
    if (sscanf(text, "%u,%u", current, pending) == 1)
        *pending = *current;
    return SUCCESS;
}

static int mig_count(const device *d)
{
    int count = (int) gpu_number(d, "mig_devices", 0);
    return count < 0 ? 0 : count > MAX_MIG ? MAX_MIG : count;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(device *d, uint *count)
{
    ENTER(d);
    NEEDS(count);
    *count = mig_count(d) ? MAX_MIG : 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(device *d, uint index, device **mig)
{
    ENTER(d);
    NEEDS(mig);
    if ((int) index >= mig_count(d))
        return NOT_FOUND;
    *mig = &migs[d->index][index];
    return SUCCESS;
}

/* nvmlDeviceAttributes_t */
typedef struct {
    uint multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    ull memory_megabytes;
} attributes;

EXPORT int nvmlDeviceGetAttributes_v2(device *d, attributes *out)
{
    char text[16];
    ENTER(d);
    if (!out || d->mig < 0)
        return INVALID_ARGUMENT;
    mig_text(d, "slices", text, sizeof(text), "1");
    memset(out, 0, sizeof(*out));
    out->gpu_slices = out->compute_slices = (uint) atoi(text);
    return SUCCESS;
}

EXPORT int nvmlDeviceIsMigDeviceHandle(device *d, uint *is_mig)
{
    ENTER(d);
    NEEDS(is_mig);
    *is_mig = d->mig >= 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device *mig, device **d)
{
    ENTER(mig);
    if (!d || mig->mig < 0)
        return INVALID_ARGUMENT;
    *d = &gpus[mig->index];
    return SUCCESS;
}

/* ------------------------------------------------------------- miscellaneous */

EXPORT int nvmlDeviceGetTemperature(device *d, int sensor, uint *celsius)
{
    ENTER(d);
    NEEDS(celsius);
    (void) sensor;
    *celsius = (uint) gpu_number(d, "temperature", 45);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPersistenceMode(device *d, uint *mode)
{
    ENTER(d);
    NEEDS(mode);
    *mode = 1;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeMode(device *d, uint *mode)
{
    ENTER(d);
    NEEDS(mode);
    *mode = (uint) gpu_number(d, "compute_mode", 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetArchitecture(device *d, uint *architecture)
{
    ENTER(d);
    NEEDS(architecture);
    *architecture = (uint) gpu_number(d, "architecture", 9); /* NVML_DEVICE_ARCH_HOPPER */
    return SUCCESS;
}
