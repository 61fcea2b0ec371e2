// A fake of NVIDIA's driver: the calls that the crate and cudarc make. It writes each call to a log
// and fails where a test wants it to. Streams, events and copies are as late as those of a GPU may
// be: see streams.h. No kernel runs. Settings are environment variables:
//
//   FAKE_DRIVER_LOG         a line per call is appended to this file
//   FAKE_DRIVER_FAIL        name:code[:nth][,...]   that call, or its nth, fails with this CUresult
//   FAKE_DRIVER_GPUS        how many GPUs there are (1)
//   FAKE_DRIVER_VERSION     the result of cuDriverGetVersion (13000)
//   FAKE_DRIVER_CAPABILITY  the GPUs' compute capability (90)
//   FAKE_DRIVER_PTX         the compute capability that their kernels were compiled for (the same)
//   FAKE_DRIVER_F64         how many times slower than f32 their f64 is (2)
//   FAKE_DRIVER_POOLS       whether they have memory pools (1)
//   FAKE_DRIVER_STAGES      whether copies are done with host memory when the call returns, as with
//                           memory that is not pinned on most machines (0)
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef uintptr_t Handle;
typedef unsigned long long CUdeviceptr;

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };

static long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value ? strtol(value, NULL, 10) : otherwise;
}

static void record(const char* format, ...) {
    const char* path = getenv("FAKE_DRIVER_LOG");
    FILE* log = path ? fopen(path, "a") : NULL;
    if (!log) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(log, format, arguments);
    va_end(arguments);
    fputc('\n', log);
    fclose(log);
}

// The code that FAKE_DRIVER_FAIL has for this call, or SUCCESS.
static CUresult scripted(const char* call) {
    static struct { char name[64]; int calls; } counts[64];
    int seen = 0;
    for (int i = 0; i < 64; i++) {
        if (counts[i].name[0] && strcmp(counts[i].name, call)) continue;
        snprintf(counts[i].name, sizeof counts[i].name, "%s", call);
        seen = ++counts[i].calls;
        break;
    }
    const char* script = getenv("FAKE_DRIVER_FAIL");
    for (const char* at = script; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char name[64];
        int code = 0, nth = 0;
        if (sscanf(at, "%63[^:]:%d:%d", name, &code, &nth) >= 2 && !strcmp(name, call) && (!nth || nth == seen))
            return code;
    }
    return SUCCESS;
}

#define BEGIN(...)                                  \
    do {                                            \
        record(__VA_ARGS__);                        \
        const CUresult code_ = scripted(__func__);  \
        if (code_ != SUCCESS) return code_;         \
    } while (0)
#define BEGIN_PLAIN() BEGIN("%s", __func__)

// For the calls that the driver refuses on a thread without a context.
#define BEGIN_IN_CONTEXT(...)                       \
    do {                                            \
        BEGIN(__VA_ARGS__);                         \
        if (!current) return INVALID_CONTEXT;       \
    } while (0)

static int gpus(void) { return (int)setting("FAKE_DRIVER_GPUS", 1); }
static _Thread_local Handle current;

#include "streams.h"

CUresult cuInit(unsigned flags) {
    (void)flags;
    BEGIN_PLAIN();
    return gpus() ? SUCCESS : NO_DEVICE;
}
CUresult cuDriverGetVersion(int* version) {
    BEGIN_PLAIN();
    *version = (int)setting("FAKE_DRIVER_VERSION", 13000);
    return SUCCESS;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
    (void)code;
    *text = "the text of the fake driver";
    return SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
    BEGIN_PLAIN();
    *count = gpus();
    return SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN_PLAIN();
    if (ordinal < 0 || ordinal >= gpus()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
CUresult cuDeviceGetName(char* name, int bytes, CUdevice device) {
    BEGIN_PLAIN();
    snprintf(name, (size_t)bytes, "fake GPU %d", device);
    return SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    (void)device;
    BEGIN_PLAIN();
    const int capability = (int)setting("FAKE_DRIVER_CAPABILITY", 90);
    switch (attribute) {
        case 16: *value = 132; break;                               // multiprocessors
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 87: *value = (int)setting("FAKE_DRIVER_F64", 2); break;   // the rate of f32 over that of f64
        case 97: *value = 232448; break;                            // shared memory by opt-in
        case 115: *value = (int)setting("FAKE_DRIVER_POOLS", 1); break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}

// The primary context of GPU n is 0x1000 + n.
CUresult cuDevicePrimaryCtxRetain(Handle* context, CUdevice device) {
    BEGIN_PLAIN();
    *context = 0x1000 + (Handle)device;
    return SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    (void)device;
    BEGIN_PLAIN();
    return SUCCESS;
}
CUresult cuCtxGetCurrent(Handle* context) {
    BEGIN_PLAIN();
    *context = current;
    return SUCCESS;
}
CUresult cuCtxSetCurrent(Handle context) {
    BEGIN("cuCtxSetCurrent %#lx", (unsigned long)context);
    current = context;
    return SUCCESS;
}
// A context's number is its handle and how often it was made: see cuDevicePrimaryCtxReset_v2.
static int resets;
CUresult cuCtxGetId(Handle context, unsigned long long* id) {
    BEGIN_PLAIN();
    if (!context && !current) return INVALID_CONTEXT;
    *id = (context ? context : current) + 0x10000ull * (unsigned)resets;
    return SUCCESS;
}
// Ends the primary context. The next one has the same handle.
CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
    (void)device;
    BEGIN_PLAIN();
    resets++;
    return SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
    BEGIN_PLAIN();
    *device = (CUdevice)(current - 0x1000);
    return SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    BEGIN_IN_CONTEXT("cuMemAlloc_v2 %zu", bytes);
    return allocate(address, bytes, 0);
}
CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemAllocAsync %zu stream %#lx", bytes, (unsigned long)stream);
    const CUresult result = allocate(address, bytes, 1);
    if (result == SUCCESS) enqueue(__func__, stream, (Operation){.kind = TOUCH, .touched = {*address}});
    return result;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    BEGIN_IN_CONTEXT("%s", __func__);
    if (!may_free(address)) return INVALID_VALUE;
    wait_for_context();
    enqueue(__func__, LEGACY, (Operation){.kind = RELEASE, .to = address, .touched = {address}});
    wait_for_context();
    return SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr address, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemFreeAsync stream %#lx", (unsigned long)stream);
    if (!may_free(address)) return INVALID_VALUE;
    enqueue(__func__, stream, (Operation){.kind = RELEASE, .to = address, .touched = {address}});
    return SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemsetD8Async %zu stream %#lx", bytes, (unsigned long)stream);
    enqueue(__func__, stream,
            (Operation){.kind = FILL, .to = address, .bytes = bytes, .value = value, .touched = {address}});
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemcpyHtoDAsync_v2 %zu stream %#lx", bytes, (unsigned long)stream);
    enqueue(__func__, stream,
            (Operation){.kind = TO_GPU, .to = to, .from = (uintptr_t)from, .bytes = bytes,
                        .staged = copy_of(from, bytes), .touched = {to}});
    return SUCCESS;
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemcpyDtoHAsync_v2 %zu stream %#lx", bytes, (unsigned long)stream);
    enqueue(__func__, stream,
            (Operation){.kind = FROM_GPU, .to = (uintptr_t)to, .from = from, .bytes = bytes, .touched = {from}});
    return SUCCESS;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, Handle stream) {
    BEGIN_IN_CONTEXT("cuMemcpyDtoDAsync_v2 %zu stream %#lx", bytes, (unsigned long)stream);
    enqueue(__func__, stream,
            (Operation){.kind = ON_GPU, .to = to, .from = from, .bytes = bytes, .touched = {to, from}});
    return SUCCESS;
}
CUresult cuPointerGetAttribute(void* value, int attribute, CUdeviceptr address) {
    BEGIN_PLAIN();
    CUresult result = SUCCESS;
    pthread_mutex_lock(&streams_lock);
    const Block* block = block_at(address);
    if (!block || block->freed) result = INVALID_VALUE;
    else if (attribute == 1) *(Handle*)value = block->pooled ? 0 : block->context;
    else if (attribute == 9) *(int*)value = (int)(block->context - 0x1000);
    else result = INVALID_VALUE;
    pthread_mutex_unlock(&streams_lock);
    return result;
}

CUresult cuStreamSynchronize(Handle stream) {
    BEGIN_IN_CONTEXT("cuStreamSynchronize stream %#lx", (unsigned long)stream);
    wait_for_stream(stream);
    return SUCCESS;
}
CUresult cuStreamCreate(Handle* stream, unsigned flags) {
    enum { NON_BLOCKING = 1 };
    BEGIN_IN_CONTEXT("%s", __func__);
    *stream = new_stream(!(flags & NON_BLOCKING));
    return SUCCESS;
}
CUresult cuStreamDestroy_v2(Handle stream) {
    (void)stream;
    BEGIN_PLAIN();
    return SUCCESS;
}
CUresult cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuStreamWaitEvent stream %#lx", (unsigned long)stream);
    stream_waits_for_event(stream, event);
    return SUCCESS;
}
CUresult cuCtxSynchronize(void) {
    BEGIN_IN_CONTEXT("%s", __func__);
    wait_for_context();
    return SUCCESS;
}
CUresult cuEventCreate(Handle* event, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("%s", __func__);
    *event = new_event();
    return SUCCESS;
}
CUresult cuEventDestroy_v2(Handle event) {
    (void)event;
    BEGIN_PLAIN();
    return SUCCESS;
}
CUresult cuEventRecord(Handle event, Handle stream) {
    BEGIN_IN_CONTEXT("cuEventRecord stream %#lx", (unsigned long)stream);
    record_event(event, stream);
    return SUCCESS;
}
CUresult cuEventSynchronize(Handle event) {
    BEGIN_PLAIN();
    wait_for_event(event);
    return SUCCESS;
}

// A library is its image, a kernel its name.
CUresult cuLibraryLoadData(Handle* library, const void* image, const void* a, const void* b, unsigned c, const void* d,
                           const void* e, unsigned f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    const int fatbin = *(const uint32_t*)image == 0xBA55ED50;
    BEGIN("cuLibraryLoadData %s", fatbin ? "fatbin" : "ptx");
    if (!fatbin && !strstr(image, "\n.version ")) return 200;  // CUDA_ERROR_INVALID_IMAGE
    *library = (Handle)image;
    return SUCCESS;
}
CUresult cuLibraryGetKernel(Handle* kernel, Handle library, const char* name) {
    BEGIN("cuLibraryGetKernel %s library %#lx", name, (unsigned long)library);
    *kernel = (Handle)strdup(name);
    return SUCCESS;
}
CUresult cuKernelGetFunction(Handle* function, Handle kernel) {
    BEGIN_PLAIN();
    *function = kernel;
    return SUCCESS;
}
CUresult cuKernelGetAttribute(int* value, int attribute, Handle kernel, CUdevice device) {
    (void)kernel, (void)device;
    BEGIN_PLAIN();
    switch (attribute) {
        case 1: *value = 200; break;  // static shared memory
        case 5: *value = (int)setting("FAKE_DRIVER_PTX", setting("FAKE_DRIVER_CAPABILITY", 90)); break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
CUresult cuKernelSetAttribute(int attribute, int value, Handle kernel, CUdevice device) {
    (void)attribute, (void)device;
    BEGIN("cuKernelSetAttribute %s %d", (const char*)kernel, value);
    return SUCCESS;
}
// A kernel of relata has one parameter, a struct that begins with two addresses.
static const CUdeviceptr* first_words(Handle function, void** parameters) {
    static const CUdeviceptr none[2];
    return strncmp((const char*)function, "relata_", 7) ? none : parameters[0];
}
CUresult cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, Handle stream, void** parameters, void** extra) {
    (void)extra;
    const CUdeviceptr* words = first_words(function, parameters);
    BEGIN("cuLaunchKernel %s grid %u %u %u block %u %u %u shared %u stream %#lx of %#llx %#llx", (const char*)function,
          gx, gy, gz, bx, by, bz, shared, (unsigned long)stream, words[0], words[1]);
    if (!current) return INVALID_CONTEXT;
    enqueue((const char*)function, stream, (Operation){.kind = TOUCH, .touched = {words[0], words[1]}});
    return SUCCESS;
}

typedef struct { int id; char pad[4]; union { char pad[64]; int word; } value; } Attribute;
typedef struct {
    unsigned gx, gy, gz, bx, by, bz, shared;
    Handle stream;
    const Attribute* attributes;
    unsigned count;
} Config;
CUresult cuLaunchKernelEx(const Config* at, Handle function, void** parameters, void** extra) {
    (void)extra;
    const CUdeviceptr* words = first_words(function, parameters);
    char attributes[64] = "";
    for (unsigned i = 0; i < at->count; i++)
        snprintf(attributes + strlen(attributes), sizeof attributes - strlen(attributes), " attribute %d %d",
                 at->attributes[i].id, at->attributes[i].value.word);
    BEGIN("cuLaunchKernelEx %s grid %u %u %u block %u %u %u shared %u stream %#lx of %#llx %#llx%s", (const char*)function,
          at->gx, at->gy, at->gz, at->bx, at->by, at->bz, at->shared, (unsigned long)at->stream, words[0], words[1],
          attributes);
    if (!current) return INVALID_CONTEXT;
    enqueue((const char*)function, at->stream, (Operation){.kind = TOUCH, .touched = {words[0], words[1]}});
    return SUCCESS;
}
