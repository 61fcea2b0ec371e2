// The fake driver's streams and memory. A stream is a queue: an operation waits there until
// something waits for it, and runs as late as a GPU may run it. So a copy whose source has ended, and
// two streams that nothing orders, are seen:
//
// - a line "changed ..." in the log: the source of a copy to the GPU was overwritten before the copy;
// - a line "unordered ...": an operation on memory that an operation of another stream uses, and
//   nothing makes one of the two wait for the other.
//
// Of a kernel it knows the first two addresses alone. It doesn't know which of them are written.
#include <pthread.h>

enum { MOST_TOUCHED = 2, MOST_STREAMS = 256 };

typedef struct { CUdeviceptr address; size_t bytes; int pooled, freed; Handle context; } Block;

typedef enum { TOUCH, FILL, TO_GPU, FROM_GPU, ON_GPU, RELEASE, WAIT } Kind;

typedef struct {
    Kind kind;
    CUdeviceptr to, from;
    size_t bytes;
    unsigned char value;      // of FILL
    void* staged;             // of TO_GPU: the source as it was when the driver was called
    int stream;               // of WAIT
    size_t count;             // of WAIT: that stream's first operations must have run
    CUdeviceptr touched[MOST_TOUCHED];
} Operation;

// How many operations of each stream something waits for, itself or through others.
typedef struct { size_t of[MOST_STREAMS]; } Clock;

typedef struct {
    Handle handle, context;
    int thread;               // of the per-thread stream
    int blocking;             // it and the legacy stream wait for each other
    Operation* operations;
    size_t count, done;
    Clock waits;
} Stream;

typedef struct { int stream; size_t count; Clock waits; } Event;

enum { LEGACY = 0, ALSO_LEGACY = 1, PER_THREAD = 2 };

static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;
static Block* blocks;
static Stream streams[MOST_STREAMS];
static Event* events;
static int block_count, stream_count, event_count, created_streams;

// Makes room for one more element of an array, with zeros.
#define GROW(array, count)                                                        \
    do {                                                                          \
        (array) = realloc((array), ((size_t)(count) + 1) * sizeof *(array));      \
        if (!(array)) abort();                                                    \
        memset(&(array)[(count)], 0, sizeof *(array));                            \
    } while (0)

static int this_thread(void) {
    static int threads;
    static _Thread_local int number;
    if (!number) number = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED);
    return number;
}

// The stream that the calling thread means by this handle.
static int stream_of(Handle handle) {
    if (handle == ALSO_LEGACY) handle = LEGACY;
    const int thread = handle == PER_THREAD ? this_thread() : 0;
    for (int i = 0; i < stream_count; i++)
        if (streams[i].handle == handle && streams[i].thread == thread &&
            (streams[i].context == current || handle > PER_THREAD))
            return i;
    if (stream_count == MOST_STREAMS) abort();
    streams[stream_count].handle = handle;
    streams[stream_count].context = current;
    streams[stream_count].thread = thread;
    streams[stream_count].blocking = handle == PER_THREAD;
    return stream_count++;
}

static Block* block_at(CUdeviceptr address) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].address && address - blocks[i].address < blocks[i].bytes) return &blocks[i];
    return NULL;
}

static void run(int stream, size_t count);

static void run_one(const Operation* at) {
    void* to = (void*)(uintptr_t)at->to;
    const void* from = (const void*)(uintptr_t)at->from;
    switch (at->kind) {
        case TOUCH: break;
        case FILL: memset(to, at->value, at->bytes); break;
        case TO_GPU:
            if (setting("FAKE_DRIVER_STAGES", 0)) from = at->staged;
            else if (memcmp(from, at->staged, at->bytes)) record("changed the source of %zu bytes", at->bytes);
            memcpy(to, from, at->bytes);
            free(at->staged);
            break;
        case FROM_GPU:
        case ON_GPU: memcpy(to, from, at->bytes); break;
        case RELEASE: {
            block_at(at->to)->address = 0;
            free(to);
            break;
        }
        case WAIT: run(at->stream, at->count); break;
    }
}

// Runs the first `count` operations of a stream, as far as they have not run.
static void run(int stream, size_t count) {
    while (streams[stream].done < count) {
        const Operation operation = streams[stream].operations[streams[stream].done];
        run_one(&operation);
        streams[stream].done++;
    }
}

static void append(int stream, Operation operation) {
    GROW(streams[stream].operations, streams[stream].count);
    streams[stream].operations[streams[stream].count++] = operation;
}

// Makes later operations of `stream` wait for the first `count` of `other`, which wait for `waits`.
static void append_wait(int stream, int other, size_t count, const Clock* waits) {
    if (stream == other || streams[other].done >= count) return;
    append(stream, (Operation){.kind = WAIT, .stream = other, .count = count});
    size_t* of = streams[stream].waits.of;
    if (of[other] < count) of[other] = count;
    for (int i = 0; i < MOST_STREAMS; i++)
        if (of[i] < waits->of[i]) of[i] = waits->of[i];
}

static void report_unordered(const char* call, int stream, const Operation* operation) {
    for (int t = 0; t < MOST_TOUCHED; t++) {
        const Block* mine = block_at(operation->touched[t]);
        for (int s = 0; mine && s < stream_count; s++) {
            for (size_t i = streams[s].done; s != stream && i < streams[s].count; i++) {
                const Operation* other = &streams[s].operations[i];
                int same = 0;
                for (int o = 0; o < MOST_TOUCHED; o++) same |= block_at(other->touched[o]) == mine;
                if (!same || streams[stream].waits.of[s] > i) continue;
                record("unordered %s stream %#lx on %zu bytes of stream %#lx", call,
                       (unsigned long)streams[stream].handle, mine->bytes, (unsigned long)streams[s].handle);
                break;
            }
        }
    }
}

// Puts an operation in a stream.
static void enqueue(const char* call, Handle handle, Operation operation) {
    pthread_mutex_lock(&streams_lock);
    const int stream = stream_of(handle);
    for (int other = 0; other < stream_count; other++) {
        const int legacy = streams[stream].handle == LEGACY && streams[other].blocking;
        const int blocking = streams[stream].blocking && streams[other].handle == LEGACY;
        if ((legacy || blocking) && streams[other].context == streams[stream].context)
            append_wait(stream, other, streams[other].count, &streams[other].waits);
    }
    report_unordered(call, stream, &operation);
    append(stream, operation);
    // A copy to memory that the driver must stage has ended when the call returns.
    if (operation.kind == FROM_GPU && setting("FAKE_DRIVER_STAGES", 0)) run(stream, streams[stream].count);
    pthread_mutex_unlock(&streams_lock);
}

static void wait_for_stream(Handle handle) {
    pthread_mutex_lock(&streams_lock);
    const int stream = stream_of(handle);
    run(stream, streams[stream].count);
    pthread_mutex_unlock(&streams_lock);
}

static void wait_for_context(void) {
    pthread_mutex_lock(&streams_lock);
    for (int i = 0; i < stream_count; i++)
        if (streams[i].context == current) run(i, streams[i].count);
    pthread_mutex_unlock(&streams_lock);
}

static Handle new_stream(int blocking) {
    pthread_mutex_lock(&streams_lock);
    const Handle handle = 0x2000 + 0x10 * (Handle)created_streams++;
    streams[stream_of(handle)].blocking = blocking;
    pthread_mutex_unlock(&streams_lock);
    return handle;
}

// An event is 0x3000 and its number.
static Handle new_event(void) {
    pthread_mutex_lock(&streams_lock);
    GROW(events, event_count);
    const Handle handle = 0x3000 + (Handle)event_count++;
    pthread_mutex_unlock(&streams_lock);
    return handle;
}

static void record_event(Handle event, Handle handle) {
    pthread_mutex_lock(&streams_lock);
    const int stream = stream_of(handle);
    events[event - 0x3000] = (Event){stream, streams[stream].count, streams[stream].waits};
    pthread_mutex_unlock(&streams_lock);
}

static void stream_waits_for_event(Handle handle, Handle event) {
    pthread_mutex_lock(&streams_lock);
    const Event* at = &events[event - 0x3000];
    if (at->count) append_wait(stream_of(handle), at->stream, at->count, &at->waits);
    pthread_mutex_unlock(&streams_lock);
}

static void wait_for_event(Handle event) {
    pthread_mutex_lock(&streams_lock);
    const Event* at = &events[event - 0x3000];
    if (at->count) run(at->stream, at->count);
    pthread_mutex_unlock(&streams_lock);
}

static CUresult allocate(CUdeviceptr* address, size_t bytes, int pooled) {
    void* memory = NULL;
    if (!bytes || posix_memalign(&memory, 256, bytes)) return INVALID_VALUE;
    memset(memory, 0xFF, bytes);
    *address = (CUdeviceptr)(uintptr_t)memory;
    pthread_mutex_lock(&streams_lock);
    int at = 0;
    while (at < block_count && blocks[at].address) at++;
    if (at == block_count) {
        GROW(blocks, block_count);
        block_count++;
    }
    blocks[at] = (Block){*address, bytes, pooled, 0, current};
    pthread_mutex_unlock(&streams_lock);
    return SUCCESS;
}

// Whether the current context may free this address now. Nobody may free it twice.
static int may_free(CUdeviceptr address) {
    pthread_mutex_lock(&streams_lock);
    Block* block = block_at(address);
    const int may = block && block->address == address && !block->freed && block->context == current;
    if (may) block->freed = 1;
    pthread_mutex_unlock(&streams_lock);
    return may;
}

static void* copy_of(const void* from, size_t bytes) {
    void* copy = malloc(bytes ? bytes : 1);
    if (!copy) abort();
    return memcpy(copy, from, bytes);
}
