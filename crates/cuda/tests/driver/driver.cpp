// A driver, an NVRTC and a cuBLAS of the host's memory, for a test of the code that calls NVIDIA's. Kernels are those of the
// simulated device, whose library KERNELS names. What is put on a stream is done as late as may be: when somebody waits
// for it. Whatever NVIDIA forbids or leaves undefined ends the process.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

typedef uint64_t Address;

[[noreturn]] static void forbid(const char* format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "the test's driver: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    abort();
}

struct Stream;

// Work, or, where `after` is given, the wait for another stream's first `count` pieces of work.
struct Work {
    std::function<void()> run;
    Stream* after = nullptr;
    uint64_t count = 0;
};

struct Stream {
    std::deque<Work> queue;
    uint64_t done = 0, put = 0;
    bool recording = false;
    std::thread::id recorder;
    std::vector<Work> recorded;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t count = 0;
    bool timed;
};

struct Blas {
    void* stream;
};

struct Kernel {
    std::string signature;
    void (*run)(void**);
};

typedef std::vector<Work> Graph;

static int context, retained;
static thread_local void* current;
static std::set<Stream*> streams;
static std::set<Event*> events;
static std::set<Graph*> graphs, executables;
static std::set<void*> modules;
static std::set<Blas*> handles;
static std::map<std::string, Kernel> kernels;
static std::map<Address, size_t> device, pinned;

// The simulated device's library.
struct SimLaunch {
    uint32_t grid[3], block[3], reversed;
};
struct SimEntry {
    const char *name, *signature;
    void (*run)(void**);
};
static const char* (*sim_launch)(const SimLaunch*, void (*)(void**), void**);

static bool recording_here() {
    for (Stream* s : streams)
        if (s->recording && s->recorder == std::this_thread::get_id()) return true;
    return false;
}

static void in_context(const char* call) {
    if (!current || !retained) forbid("%s without a context", call);
}

static void not_recording(const char* call) {
    in_context(call);
    if (recording_here()) forbid("%s while work is being recorded", call);
}

static void within(const std::map<Address, size_t>& blocks, Address at, size_t bytes, const char* what) {
    auto next = blocks.upper_bound(at);
    if (next == blocks.begin()) forbid("%s: no block holds %llx", what, (unsigned long long)at);
    auto [start, size] = *--next;
    if (at + bytes > start + size) forbid("%s: %zu bytes leave their block", what, bytes);
}

static void run(Stream* s, uint64_t count) {
    while (s->done < count && !s->queue.empty()) {
        Work work = s->queue.front();
        s->queue.pop_front();
        if (work.after) run(work.after, work.count);
        else work.run();
        s->done++;
    }
}

static void put(void* stream, Work work) {
    Stream* s = (Stream*)stream;
    if (!streams.count(s)) forbid("work for a stream that is not there");
    if (s->recording) {
        if (work.after) forbid("a wait between streams while work is being recorded");
        if (s->recorder != std::this_thread::get_id()) forbid("a recording of another thread gets work");
        s->recorded.push_back(work);
        return;
    }
    s->queue.push_back(work);
    s->put++;
}

static void run_all(const char* call) {
    for (Stream* s : streams) {
        if (s->recording) forbid("%s waits for the whole device while work is being recorded", call);
        run(s, s->put);
    }
}

template <typename T> static void erase(std::set<T>& all, T one, const char* what) {
    if (!all.erase(one)) forbid("%s that is not there is given back", what);
}

extern "C" {

int cuDriverGetVersion(int* v) { return *v = 13000, 0; }
int cuInit(unsigned) { return 0; }
int cuGetErrorName(int, const char** text) { return *text = "CUDA_ERROR_TEST", 0; }
int cuGetErrorString(int, const char** text) { return *text = "of a test", 0; }
int cuDeviceGetCount(int* n) { return *n = 1, 0; }
int cuDeviceGet(int* out, int) { return *out = 7, 0; }
int cuDeviceGetName(char* name, int room, int) { return snprintf(name, room, "Test GPU"), 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = (size_t)1 << 30, 0; }
int cuDeviceGetAttribute(int* v, int number, int) { return *v = number == 75 ? 9 : number == 76 ? 0 : 1024, 0; }

int cuDevicePrimaryCtxRetain(void** out, int) { return retained++, *out = &context, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return retained--, 0; }
int cuCtxSetCurrent(void* c) { return current = c, 0; }

int cuStreamCreate(void** out, unsigned flags) {
    not_recording(__func__);
    if (flags != 1) forbid("a stream that waits for the legacy stream");
    return *out = *streams.insert(new Stream).first, 0;
}
int cuStreamDestroy_v2(void* s) { return run((Stream*)s, ((Stream*)s)->put), erase(streams, (Stream*)s, "a stream"), 0; }
int cuStreamSynchronize(void* s) { return not_recording(__func__), run((Stream*)s, ((Stream*)s)->put), 0; }
int cuStreamWaitEvent(void* s, void* event, unsigned) {
    in_context(__func__);
    Event* e = (Event*)event;
    if (e->stream) put(s, {nullptr, e->stream, e->count});
    return 0;
}

int cuEventCreate(void** out, unsigned flags) {
    in_context(__func__);
    Event* e = new Event;
    e->timed = flags == 0;
    return *out = e, events.insert(e), 0;
}
int cuEventDestroy_v2(void* e) { return erase(events, (Event*)e, "an event"), 0; }
int cuEventRecord(void* event, void* stream) {
    in_context(__func__);
    Event* e = (Event*)event;
    e->stream = (Stream*)stream;
    if (e->stream->recording) forbid("an event set while work is being recorded");
    return e->count = e->stream->put, 0;
}
int cuEventQuery(void* event) {
    not_recording(__func__);
    Event* e = (Event*)event;
    return !e->stream || e->stream->done >= e->count ? 0 : 600;
}
int cuEventSynchronize(void* event) {
    not_recording(__func__);
    Event* e = (Event*)event;
    if (e->stream) run(e->stream, e->count);
    return 0;
}
int cuEventElapsedTime(float* ms, void* a, void* b) {
    return *ms = 1, ((Event*)a)->timed && ((Event*)b)->timed ? 0 : 400;
}

static int block(std::map<Address, size_t>& blocks, void** out, size_t bytes) {
    if (bytes == 0) return 1;
    if (bytes > (size_t)1 << 40 || posix_memalign(out, 512, bytes)) return 2;
    memset(*out, 0xff, bytes);
    return blocks[(Address)*out] = bytes, 0;
}
static int give_back(std::map<Address, size_t>& blocks, void* at, const char* call) {
    not_recording(call);
    run_all(call);
    if (!blocks.erase((Address)at)) forbid("%s of memory that is not there", call);
    return free(at), 0;
}
int cuMemAlloc_v2(Address* at, size_t bytes) { return not_recording(__func__), block(device, (void**)at, bytes); }
int cuMemFree_v2(Address at) { return give_back(device, (void*)at, __func__); }
int cuMemHostAlloc(void** at, size_t bytes, unsigned) { return not_recording(__func__), block(pinned, at, bytes); }
int cuMemFreeHost(void* at) { return give_back(pinned, at, __func__); }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *total = *free = (size_t)1 << 30, 0; }

static int copy(const char* call, Address to, Address from, size_t bytes, void* stream, bool from_host, bool to_host) {
    in_context(call);
    if (bytes == 0) forbid("%s of nothing", call);
    if ((from_host || to_host) && ((Stream*)stream)->recording) forbid("%s while work is being recorded", call);
    auto check = [=] {
        within(from_host ? pinned : device, from, bytes, call);
        within(to_host ? pinned : device, to, bytes, call);
    };
    check();
    put(stream, {[=] { check(), memcpy((void*)to, (void*)from, bytes); }});
    return 0;
}
int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* s) {
    return copy(__func__, to, (Address)from, bytes, s, true, false);
}
int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* s) {
    return copy(__func__, (Address)to, from, bytes, s, false, true);
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* s) {
    return copy(__func__, to, from, bytes, s, false, false);
}
int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* s) {
    in_context(__func__);
    within(device, to, bytes, "cuMemset");
    return put(s, {[=] { within(device, to, bytes, "cuMemset"), memset((void*)to, value, bytes); }}), 0;
}
int cuMemsetD32Async(Address to, unsigned value, size_t words, void* s) {
    if (value != 0 || to % 4 != 0) forbid("cuMemsetD32Async of %u at %llx", value, (unsigned long long)to);
    return cuMemsetD8Async(to, 0, 4 * words, s);
}

int cuModuleLoadData(void** out, const void* image) {
    not_recording(__func__);
    if (!sim_launch) {
        void* library = dlopen(KERNELS, RTLD_NOW);
        if (!library) forbid("%s", dlerror());
        sim_launch = (decltype(sim_launch))dlsym(library, "lgm_sim_launch");
        const SimEntry* e = (const SimEntry*)dlsym(library, "lgm_sim_entries");
        for (; e->run; ++e) kernels[e->name] = {e->signature, e->run};
    }
    return *out = new std::string((const char*)image), modules.insert(*out), 0;
}
int cuModuleUnload(void* m) { return not_recording(__func__), run_all(__func__), erase(modules, m, "a module"), 0; }
int cuModuleGetFunction(void** out, void*, const char* name) {
    auto found = kernels.find(name);
    return found == kernels.end() ? 500 : (*out = &found->second, 0);
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void* stream, void** arguments, void**) {
    in_context(__func__);
    const Kernel* kernel = (const Kernel*)function;
    // Arguments are copied when a kernel is launched, each by its own size.
    std::vector<uint64_t> values;
    for (size_t i = 0; i < kernel->signature.size(); ++i) {
        uint64_t value = 0;
        memcpy(&value, arguments[i], strchr("pml", kernel->signature[i]) ? 8 : 4);
        values.push_back(value);
    }
    const SimLaunch launch = {{gx, gy, gz}, {bx, by, bz}, 1};
    put(stream, {[=]() mutable {
        std::vector<void*> pointers;
        for (size_t i = 0; i < values.size(); ++i) {
            if (kernel->signature[i] == 'p' && values[i]) within(device, values[i], 0, "an argument");
            pointers.push_back(&values[i]);
        }
        if (const char* said = sim_launch(&launch, kernel->run, pointers.data())) forbid("%s", said);
    }});
    return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) {
    in_context(__func__);
    Stream* s = (Stream*)stream;
    // Other threads go on allocating and copying meanwhile.
    if (mode != 1 || s->recording) forbid("a recording in mode %d", mode);
    return s->recording = true, s->recorder = std::this_thread::get_id(), s->recorded.clear(), 0;
}
int cuStreamEndCapture(void* stream, void** out) {
    Stream* s = (Stream*)stream;
    if (!s->recording) return 901;
    return s->recording = false, *out = *graphs.insert(new Graph(s->recorded)).first, 0;
}
int cuGraphGetNodes(void* graph, void**, size_t* n) { return *n = ((Graph*)graph)->size(), 0; }
int cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) {
    return not_recording(__func__), *out = *executables.insert(new Graph(*(Graph*)graph)).first, 0;
}
int cuGraphUpload(void*, void*) { return 0; }
int cuGraphLaunch(void* executable, void* stream) {
    in_context(__func__);
    if (!executables.count((Graph*)executable)) forbid("a graph that is not there is launched");
    for (const Work& work : *(Graph*)executable) put(stream, work);
    return 0;
}
int cuGraphExecDestroy(void* e) { return erase(executables, (Graph*)e, "an executable graph"), 0; }
int cuGraphDestroy(void* g) { return erase(graphs, (Graph*)g, "a graph"), 0; }

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
const char* nvrtcGetErrorString(int) { return "of a test"; }
int nvrtcGetNumSupportedArchs(int* n) { return *n = 1, 0; }
int nvrtcGetSupportedArchs(int* list) { return *list = 90, 0; }
int nvrtcCreateProgram(void** out, const char*, const char*, int, const char* const*, const char* const*) {
    return *out = malloc(1), 0;
}
int nvrtcDestroyProgram(void** program) { return free(*program), 0; }
int nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
int nvrtcGetCUBINSize(void*, size_t* bytes) { return *bytes = 5, 0; }
int nvrtcGetCUBIN(void*, char* cubin) { return memcpy(cubin, "code", 5), 0; }
int nvrtcGetProgramLogSize(void*, size_t* bytes) { return *bytes = 1, 0; }
int nvrtcGetProgramLog(void*, char* log) { return *log = 0, 0; }

const char* cublasGetStatusName(int) { return "CUBLAS_STATUS_TEST"; }
const char* cublasGetStatusString(int) { return "of a test"; }
int cublasGetProperty(int kind, int* v) { return *v = kind == 0 ? 13 : 0, 0; }
int cublasCreate_v2(void** out) { return not_recording(__func__), *out = *handles.insert(new Blas).first, 0; }
int cublasDestroy_v2(void* h) { return run_all(__func__), erase(handles, (Blas*)h, "a handle"), 0; }
int cublasSetStream_v2(void* h, void* stream) { return ((Blas*)h)->stream = stream, 0; }
int cublasSetWorkspace_v2(void*, void* at, size_t bytes) { return within(device, (Address)at, bytes, "workspace"), 0; }
int cublasSetAtomicsMode(void*, int) { return 0; }
int cublasSetMathMode(void*, int) { return 0; }

// A number of a matrix in single precision (type 0) or bf16 (14).
static float get(Address at, int64_t i, int type) {
    if (type == 0) return ((float*)at)[i];
    const uint32_t bits = (uint32_t)((uint16_t*)at)[i] << 16;
    float value;
    return memcpy(&value, &bits, 4), value;
}
static void set(Address at, int64_t i, int type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (type == 0) ((float*)at)[i] = value;
    else ((uint16_t*)at)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Column by column, as all of cuBLAS.
int cublasGemmStridedBatchedEx_64(
    void* h, int ta, int tb, int64_t m, int64_t n, int64_t k, const float* alpha, Address a, int a_type, int64_t lda,
    int64_t a_step, Address b, int b_type, int64_t ldb, int64_t b_step, const float* beta, Address c, int c_type,
    int64_t ldc, int64_t c_step, int64_t batch, int, int
) {
    in_context(__func__);
    if (a_type != b_type || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    // The factors lie with the host, which may change them once this returns.
    const float by = *alpha, keep = *beta;
    put(((Blas*)h)->stream, {[=] {
        for (int64_t j = 0; j < batch * n * m; ++j) {
            const int64_t item = j / (n * m), column = j / m % n, row = j % m;
            double sum = 0;
            for (int64_t i = 0; i < k; ++i) {
                sum += (double)get(a, item * a_step + (ta ? row * lda + i : i * lda + row), a_type) *
                       get(b, item * b_step + (tb ? i * ldb + column : column * ldb + i), b_type);
            }
            const int64_t at = item * c_step + column * ldc + row;
            set(c, at, c_type, (float)(by * sum + (keep == 0 ? 0 : keep * get(c, at, c_type))));
        }
    }});
    return 0;
}
int cublasGemmEx_64(
    void* h, int ta, int tb, int64_t m, int64_t n, int64_t k, const float* alpha, Address a, int a_type, int64_t lda,
    Address b, int b_type, int64_t ldb, const float* beta, Address c, int c_type, int64_t ldc, int compute, int way
) {
    return cublasGemmStridedBatchedEx_64(
        h, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute, way
    );
}
}
