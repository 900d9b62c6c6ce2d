// The threads of kernels on a processor with Linux. Every thread of a block is a fiber, made when the thread begins and given
// to the next once it ends, so that a kernel without barriers needs one. Barriers and warp operations switch fibers. Blocks
// run one after another, threads in order or in reverse.
//
// Found out and reported: a barrier or a warp operation that some threads do not reach, or reach at another line. Shared
// memory holds NaN when a block begins.

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

namespace sim {

enum State { Unborn, Ready, AtBarrier, AtWarp, Done };

struct Context {
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t uc;
#endif
    void* fake = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
};

struct Fiber {
    Context context;
    char* stack = nullptr;
    bool begun = false;
};

struct Thread {
    uint3 idx;
    State state;
    int line;
    unsigned mask;
    unsigned source;
    uint64_t value, result;
    Fiber* fiber;
};

struct Launch {
    unsigned grid[3], block[3];
    unsigned reversed;
};

const unsigned most_threads = 1024;
const size_t stack_bytes = 256 << 10;

static Thread threads[most_threads];
static Fiber fibers[most_threads];
static unsigned free_fibers[most_threads], free_count, made_count;
static unsigned order[most_threads], count, next_unborn;
static unsigned ready[2 * most_threads], ready_from, ready_to;
static Context scheduler;
static Fiber* running;
static void (*body)(void**);
static void** arguments;
static thread_local char fault[512];
static std::mutex turn;
Thread* current;
uint3 block_index;
dim3 block_extent, grid_extent;

#if defined(__x86_64__)
extern "C" void lgm_sim_switch(void** save, void* load);
asm(R"(
    .text
    .type lgm_sim_switch, @function
lgm_sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

static void change(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
#if defined(__x86_64__)
    lgm_sim_switch(&from.sp, to.sp);
#else
    swapcontext(&from.uc, &to.uc);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

// What a fiber runs: thread after thread.
static void live() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
    for (;;) {
        while (next_unborn < count) {
            current = &threads[order[next_unborn++]];
            current->fiber = running;
            current->state = Ready;
            body(arguments);
            current->state = Done;
        }
        free_fibers[free_count++] = (unsigned)(running - fibers);
        change(running->context, scheduler);
    }
}

static void begin(Fiber& fiber) {
    if (!fiber.stack) {
        void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) abort();
        fiber.stack = (char*)stack;
    }
    fiber.context.bottom = fiber.stack;
    fiber.context.size = stack_bytes;
    fiber.context.fake = nullptr;
#if defined(__x86_64__)
    // As if `live` were about to be returned to, from six saved registers; its own return address is never used.
    void** top = (void**)(fiber.stack + stack_bytes) - 2;
    top[0] = (void*)live;
    top[1] = nullptr;
    memset(top - 6, 0, 6 * sizeof(void*));
    fiber.context.sp = top - 6;
#else
    getcontext(&fiber.context.uc);
    fiber.context.uc.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc.uc_stack.ss_size = stack_bytes;
    fiber.context.uc.uc_link = nullptr;
    makecontext(&fiber.context.uc, live, 0);
#endif
    fiber.begun = true;
}

static void enter(Fiber& fiber) {
    running = &fiber;
    change(scheduler, fiber.context);
}

static unsigned linear(const Thread* t) { return (unsigned)(t - threads); }

static void wait(State state, int line) {
    Thread* self = current;
    self->state = state;
    self->line = line;
    change(self->fiber->context, scheduler);
    current = self;
}

static void wake(unsigned t) {
    threads[t].state = Ready;
    ready[ready_to++ % (2 * most_threads)] = t;
}

// Releases the lanes of a warp operation if the current thread is the last to come; whether it was.
static bool meet(unsigned mask) {
    const unsigned first = linear(current) / 32 * 32;
    const unsigned lanes = count - first < 32 ? count - first : 32;
    for (unsigned l = 0; l < lanes; ++l) {
        const Thread& t = threads[first + l];
        const bool here = &t == current || (t.state == AtWarp && t.line == current->line && t.mask == mask);
        if ((mask >> l & 1) && !here) return false;
    }
    for (unsigned k = 0; k < lanes; ++k) {
        const unsigned l = order[0] == 0 ? k : lanes - 1 - k;
        Thread& t = threads[first + l];
        const bool known = t.source < lanes && (mask >> t.source & 1);
        if (mask >> l & 1) {
            t.result = known ? threads[first + t.source].value : t.value;
            wake(first + l);
        }
    }
    return true;
}

static uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line) {
    Thread* self = current;
    self->mask = mask;
    self->value = value;
    self->source = source;
    self->line = line;
    // Even who comes last waits its turn, so that the order of threads stays as asked.
    wait(meet(mask) ? Ready : AtWarp, line);
    return self->result;
}

static const char* complain(const char* format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(fault, sizeof fault, format, list);
    va_end(list);
    // Fibers that were left in the middle begin anew next time.
    for (unsigned f = 0; f < made_count; ++f) fibers[f].begun = false;
    free_count = 0;
    for (unsigned f = made_count; f > 0; --f) free_fibers[free_count++] = f - 1;
    return fault;
}

static const char* stuck() {
    const Thread* waiting = nullptr;
    const Thread* other = nullptr;
    for (unsigned t = 0; t < count; ++t) {
        if (threads[t].state == AtBarrier || threads[t].state == AtWarp) waiting = &threads[t];
    }
    for (unsigned t = 0; t < count; ++t) {
        if (threads[t].state != waiting->state || threads[t].line != waiting->line) other = &threads[t];
    }
    const char* what = waiting->state == AtBarrier ? "__syncthreads" : "a warp operation";
    if (!other) return complain("thread %u waits in %s at line %d for ever", linear(waiting), what, waiting->line);
    return complain(
        "thread %u waits in %s at line %d, which thread %u does not reach: it %s at line %d", linear(waiting), what,
        waiting->line, linear(other), other->state == Done ? "ended, after waiting last" : "waits", other->line
    );
}

extern "C" char __start_lgm_sim_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_lgm_sim_shared[] __attribute__((weak, visibility("hidden")));

static const char* run_block() {
    next_unborn = ready_from = ready_to = 0;
    for (unsigned t = 0; t < count; ++t) {
        Thread& thread = threads[t];
        thread.state = Unborn;
        thread.line = 0;
        thread.idx = {t % block_extent.x, t / block_extent.x % block_extent.y, t / block_extent.x / block_extent.y};
    }
    if (__start_lgm_sim_shared) {
        memset(__start_lgm_sim_shared, 0xff, (size_t)(__stop_lgm_sim_shared - __start_lgm_sim_shared));
    }
    for (;;) {
        if (ready_from != ready_to) {
            current = &threads[ready[ready_from++ % (2 * most_threads)]];
            enter(*current->fiber);
        } else if (next_unborn < count) {
            if (free_count == 0) free_fibers[free_count++] = made_count++;
            Fiber& fiber = fibers[free_fibers[--free_count]];
            if (!fiber.begun) begin(fiber);
            enter(fiber);
        } else {
            unsigned done = 0, waiting = 0;
            for (unsigned t = 0; t < count; ++t) {
                done += threads[t].state == Done;
                waiting += threads[t].state == AtBarrier && threads[t].line == threads[0].line;
            }
            if (done == count) return nullptr;
            if (waiting != count) return stuck();
            for (unsigned t = 0; t < count; ++t) wake(order[t]);
        }
    }
}

// One launch at a time: the threads above are all there are, however often and by whom the library is opened.
static const char* launch(const Launch& l, void (*run)(void**), void** args) {
    const std::lock_guard<std::mutex> mine(turn);
    block_extent = {l.block[0], l.block[1], l.block[2]};
    grid_extent = {l.grid[0], l.grid[1], l.grid[2]};
    body = run;
    arguments = args;
    const uint64_t size = (uint64_t)l.block[0] * l.block[1] * l.block[2];
    if (size == 0 || size > most_threads) return complain("a block of %llu threads", (unsigned long long)size);
    count = (unsigned)size;
    for (unsigned t = 0; t < count; ++t) order[t] = l.reversed ? count - 1 - t : t;
    const uint64_t blocks = (uint64_t)l.grid[0] * l.grid[1] * l.grid[2];
    for (uint64_t b = 0; b < blocks; ++b) {
        const uint64_t at = l.reversed ? blocks - 1 - b : b;
        block_index = {
            (unsigned)(at % l.grid[0]), (unsigned)(at / l.grid[0] % l.grid[1]),
            (unsigned)(at / l.grid[0] / l.grid[1])
        };
        if (const char* what = run_block()) return what;
    }
    return nullptr;
}

// The types of a kernel's parameters, a letter each.
template <typename T> struct Letter;
template <typename T> struct Letter<T*> { static const char value = 'p'; };
template <> struct Letter<int> { static const char value = 'i'; };
template <> struct Letter<unsigned> { static const char value = 'u'; };
template <> struct Letter<long long> { static const char value = 'l'; };
template <> struct Letter<unsigned long long> { static const char value = 'm'; };
template <> struct Letter<float> { static const char value = 'f'; };

template <auto kernel> struct Call;
template <typename... A, void (*kernel)(A...)> struct Call<kernel> {
    static constexpr char signature[sizeof...(A) + 1] = {Letter<A>::value..., 0};
    template <size_t... i> static void unpack(void** args, std::index_sequence<i...>) {
        kernel(*static_cast<A*>(args[i])...);
    }
    static void run(void** args) { unpack(args, std::index_sequence_for<A...>()); }
};

struct Entry {
    const char* name;
    const char* signature;
    void (*run)(void**);
};

template <typename T> static uint64_t pack(T v) {
    static_assert(sizeof(T) <= 8, "a warp exchanges values of up to 64 bits");
    uint64_t out = 0;
    memcpy(&out, &v, sizeof v);
    return out;
}

template <typename T> static T unpack(uint64_t v) {
    T out;
    memcpy(&out, &v, sizeof out);
    return out;
}

static unsigned lane() { return linear(current) % 32; }

// The votes of the lanes of a mask that exist.
static unsigned votes(unsigned mask, bool vote, int line) {
    unsigned out = 0;
    for (unsigned l = 0; l < 32; ++l) {
        const bool exists = linear(current) / 32 * 32 + l < count;
        const uint64_t theirs = exchange(mask, vote, l, line);
        if (exists && (mask >> l & 1) && theirs) out |= 1u << l;
    }
    return out;
}

} // namespace sim
