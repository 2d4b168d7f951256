// Runs a grid: see shim.hpp.
#include "shim.hpp"

#include <map>
#include <memory>
#include <random>

#include <sys/mman.h>

#include "fiber.hpp"
#include "launch.hpp"
#include "tensor_map.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

Dim3 thread_index, block_index, block_dim, grid_dim;
unsigned char* dynamic_shared;
void (*on_failure)(const char* message);

namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
// Of `fiber_main` and of what it calls last.
constexpr size_t FIRST_FRAMES_BYTES = 4096;
// Of so many turns one is a box's that lands.
constexpr unsigned BOX_LANDS = 16;
// Of a kernel's parameters, the most that a device wants.
constexpr size_t PARAMS_ALIGNMENT = 128;

enum class State { Ready, AtBlock, AtWarp, Waits, Done };

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

// A box of a tensor that has not landed.
struct Box {
    unsigned char* to;
    TensorMap map;
    int64_t column, row;
    std::function<void(uint32_t)> tell;
};

struct Fiber {
    Context context;
    unsigned char* stack;
    unsigned thread;
    State state;
    uint32_t mask;
    unsigned meetings;
    bool has_awaited_previous;
    // Of one that waits.
    std::function<bool()> is_so;
    void* fake_stack;
    // Groups of copies that have not landed, oldest first; the last is still open.
    std::vector<std::vector<Copy>> copies;
};

struct Warp {
    unsigned char slots[32 * 64];
    unsigned char met[2][32 * 64];
    unsigned char made[2][32 * 16];
    // Which of the block's meetings that is of, counted from one.
    unsigned made_at[2];
    // Lanes that wait for all of the warp, those that wait for some, and those that have ended.
    unsigned waiting, waiting_for_some, ended;
};

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Barriers of some of a block's threads, by their numbers: who came, and how often all have.
struct Barrier {
    unsigned threads, arrived, phase;
};
std::map<int, Barrier> barriers;

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<unsigned> ready;
std::vector<Box> boxes;
unsigned num_threads, waiting, done;
Fiber* current;
Context scheduler;
std::map<const void*, std::unique_ptr<unsigned char[]>> static_shared;
std::mt19937_64 shuffle;
const Kernel* running;
const void* running_params;
std::string running_name;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack;
size_t scheduler_stack_bytes;
void* scheduler_fake_stack;
#endif

void to_fiber(Fiber& fiber) {
    current = &fiber;
    thread_index = {fiber.thread, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK_BYTES);
#endif
    scheduler.switch_to(fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void to_scheduler(bool for_good) {
    Fiber& fiber = *current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    fiber.context.switch_to(scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
    (void)for_good;
}

void release(Fiber& fiber) {
    fiber.state = State::Ready;
    ready.push_back(fiber.thread);
}

void release_block_if_all_wait() {
    if (waiting == 0 || waiting + done < num_threads) {
        return;
    }
    waiting = 0;
    for (unsigned i = 0; i < num_threads; ++i) {
        if (fibers[i]->state == State::AtBlock) {
            release(*fibers[i]);
        }
    }
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    running->body(running_params);
    for (const auto& group : current->copies) {
        if (!group.empty()) {
            fail("a thread ended before its asynchronous copies were waited for");
        }
    }
    if (!current->has_awaited_previous) {
        fail("a thread ended without a wait for the kernels before it");
    }
    current->state = State::Done;
    ++warps[current->thread / 32].ended;
    ++done;
    release_block_if_all_wait();
    to_scheduler(true);
}

void land(std::vector<Copy>& group) {
    for (const Copy& copy : group) {
        if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    group.clear();
}

// One of the boxes, any of them.
void land_box() {
    std::swap(boxes[shuffle() % boxes.size()], boxes.back());
    const Box box = boxes.back();
    boxes.pop_back();
    const TensorMap& map = box.map;
    const size_t bytes = map.box_columns * sizeof(uint16_t);
    for (int64_t row = 0; row < map.box_rows; ++row) {
        for (size_t piece = 0; piece < bytes; piece += 16) {
            const int64_t from_row = box.row + row, from_column = box.column + int64_t(piece / sizeof(uint16_t));
            const auto at = reinterpret_cast<uintptr_t>(box.to + row * bytes + piece);
            auto* const to = reinterpret_cast<void*>(at ^ (at >> 3 & 0x70));
            if (from_row < 0 || uint64_t(from_row) >= map.rows || from_column < 0 || from_column >= map.columns) {
                memset(to, 0, 16);
            } else {
                memcpy(to, reinterpret_cast<const uint16_t*>(map.address) + from_row * map.columns + from_column, 16);
            }
        }
    }
    box.tell(uint32_t(map.box_rows * bytes));
}

void run_block() {
    waiting = done = 0;
    ready.clear();
    boxes.clear();
    static_shared.clear();
    barriers.clear();
    for (Warp& warp : warps) {
        warp.made_at[0] = warp.made_at[1] = 0;
        warp.waiting = warp.waiting_for_some = warp.ended = 0;
    }
    for (unsigned i = 0; i < num_threads; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.thread = i;
        fiber.meetings = 0;
        fiber.has_awaited_previous = false;
        fiber.copies.assign(1, {});
#if defined(__SANITIZE_ADDRESS__)
        // The thread that had this stack before never left its first frames.
        __asan_unpoison_memory_region(fiber.stack + STACK_BYTES - FIRST_FRAMES_BYTES,
                                      FIRST_FRAMES_BYTES);
#endif
        fiber.context.begin(fiber.stack, STACK_BYTES, fiber_main);
        release(fiber);
    }
    while (!ready.empty() || (!boxes.empty() && done < num_threads)) {
        if (!boxes.empty() && (ready.empty() || shuffle() % BOX_LANDS == 0)) {
            land_box();
            continue;
        }
        std::swap(ready[shuffle() % ready.size()], ready.back());
        Fiber& fiber = *fibers[ready.back()];
        ready.pop_back();
        to_fiber(fiber);
    }
    if (!boxes.empty()) {
        fail("the block ended before the boxes that it asked for had landed");
    }
    if (done < num_threads) {
        unsigned at_warp = 0, others = 0;
        for (unsigned i = 0; i < num_threads; ++i) {
            at_warp += fibers[i]->state == State::AtWarp;
            others += fibers[i]->state == State::Waits;
        }
        fail(std::to_string(waiting) + " threads wait for their block, " + std::to_string(at_warp) +
             " for their warp, " + std::to_string(others) + " for some of their block, and " + std::to_string(done) + " have ended: nobody can go on");
    }
}

}  // namespace

void fail(const std::string& message) {
    char text[512];
    snprintf(text, sizeof(text), "%s, block (%u, %u, %u), thread %u: %s", running_name.c_str(),
             block_index.x, block_index.y, block_index.z, current ? current->thread : 0,
             message.c_str());
    if (on_failure != nullptr) {
        on_failure(text);
    }
    fprintf(stderr, "%s\n", text);
    exit(3);
}

bool register_kernel(const char* name, Kernel kernel) {
    return kernels().emplace(name, kernel).second;
}

const Kernel* find_kernel(const std::string& name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

void* shared_at(const void* place, size_t bytes) {
    auto& memory = static_shared[place];
    if (memory == nullptr) {
        memory.reset(new unsigned char[bytes]);
        memset(memory.get(), 0xff, bytes);
    }
    return memory.get();
}

unsigned lane() { return current->thread % 32; }

unsigned char* warp_slot(unsigned lane) {
    return warps[current->thread / 32].slots + lane % 32 * 64;
}

void sync_block() {
    current->state = State::AtBlock;
    ++waiting;
    release_block_if_all_wait();
    to_scheduler(false);
}

void wait_until(const std::function<bool()>& is_so) {
    while (!is_so()) {
        current->is_so = is_so;
        current->state = State::Waits;
        to_scheduler(false);
    }
}

void tell() {
    for (unsigned i = 0; i < num_threads; ++i) {
        if (fibers[i]->state == State::Waits && fibers[i]->is_so()) {
            release(*fibers[i]);
        }
    }
}

void sync_threads(int number, unsigned threads, bool waits) {
    Barrier& barrier = barriers.emplace(number, Barrier{threads, 0, 0}).first->second;
    if (barrier.threads != threads) {
        fail("a barrier's threads differ in how many they are");
    }
    const unsigned phase = barrier.phase;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.phase;
        tell();
    }
    if (waits) {
        wait_until([&barrier, phase] { return barrier.phase != phase; });
    }
}

int sync_and_count(bool vote) {
    static int votes = 0;
    // The count before is read by all, and put back.
    sync_block();
    votes += vote;
    sync_block();
    const int count = votes;
    sync_block();
    votes = 0;
    return count;
}

void await_previous() { current->has_awaited_previous = true; }

void sync_warp(uint32_t mask) {
    Fiber& own = *current;
    Warp& warp = warps[own.thread / 32];
    own.state = State::AtWarp;
    own.mask = mask;
    const unsigned first = own.thread / 32 * 32;
    const bool is_whole = mask == 0xffffffffu;
    unsigned& waiting_so = is_whole ? warp.waiting : warp.waiting_for_some;
    ++waiting_so;
    // Nobody looks for the others where all wait for all.
    if (is_whole && warp.waiting < 32 && warp.waiting_for_some == 0 && warp.ended == 0 && first + 32 <= num_threads) {
        to_scheduler(false);
        return;
    }
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) {
            continue;
        }
        const unsigned thread = first + lane;
        if (thread >= num_threads || fibers[thread]->state == State::Done) {
            fail("a warp instruction waits for a lane that has ended or is not there");
        }
        const Fiber& other = *fibers[thread];
        if (other.state == State::AtWarp && other.mask != mask) {
            fail("lanes of a warp reached its instruction with different masks");
        }
        all = all && other.state == State::AtWarp;
    }
    if (!all) {
        to_scheduler(false);
        return;
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1 && first + lane != own.thread) {
            release(*fibers[first + lane]);
        }
    }
    waiting_so -= unsigned(__builtin_popcount(mask));
    own.state = State::Ready;
}

const unsigned char* make_once(const unsigned char* met, void (*make)(const unsigned char* met, void* made)) {
    Warp& warp = warps[current->thread / 32];
    const unsigned meeting = current->meetings, place = (meeting - 1) % 2;
    if (warp.made_at[place] != meeting) {
        make(met, warp.made[place]);
        warp.made_at[place] = meeting;
    }
    return warp.made[place];
}

const unsigned char* meet(const void* value, size_t bytes) {
    // A lane comes to its next meeting but one only when all have left this one.
    unsigned char* met = warps[current->thread / 32].met[current->meetings++ % 2];
    memcpy(met + lane() * 64, value, bytes);
    sync_warp(0xffffffffu);
    return met;
}

void copy_async(void* shared, const void* global, bool valid) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
        (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
        fail("an asynchronous copy to or from an address that is no multiple of 16");
    }
    current->copies.back().push_back({shared, global, valid});
}

void copy_async_commit() { current->copies.emplace_back(); }

void copy_async_wait(int still_under_way) {
    auto& groups = current->copies;
    const size_t committed = groups.size() - 1;
    const size_t landing = committed - min(committed, size_t(still_under_way));
    for (size_t i = 0; i < landing; ++i) {
        land(groups[i]);
    }
    groups.erase(groups.begin(), groups.begin() + landing);
}

void copy_box(void* shared, const void* map_at, int column, int row, const std::function<void(uint32_t)>& tell) {
    TensorMap map;
    memcpy(&map, map_at, sizeof(map));
    if (reinterpret_cast<uintptr_t>(map_at) % 64 != 0 || map.mark != TENSOR_MAP_MARK) {
        fail("a box is asked for by what is no map of a tensor");
    }
    if (reinterpret_cast<uintptr_t>(shared) % 128 != 0) {
        fail("a swizzled box goes to an address that is no multiple of 128");
    }
    if (column % 8 != 0 || map.columns % 8 != 0) {
        fail("boxes that begin or end within a piece of 16 bytes are not emulated");
    }
    // What was there is lost from now on.
    memset(shared, 0xff, size_t(map.box_rows) * map.box_columns * sizeof(uint16_t));
    boxes.push_back({static_cast<unsigned char*>(shared), map, column, row, tell});
}

void launch(const Launch& launch, const void* params, size_t params_bytes) {
    running_name = launch.kernel;
    current = nullptr;
    running = find_kernel(launch.kernel);
    if (running == nullptr) {
        fail("no such kernel");
    }
    if (params_bytes != running->params_bytes) {
        fail("its parameters have " + std::to_string(running->params_bytes) + " bytes, not " +
             std::to_string(params_bytes));
    }
    num_threads = launch.threads;
    if (num_threads > running->max_threads) {
        fail("it was compiled for fewer threads a block");
    }
    void* own_params = nullptr;
    if (posix_memalign(&own_params, PARAMS_ALIGNMENT, params_bytes) != 0) {
        fail("no memory");
    }
    memcpy(own_params, params, params_bytes);
    running_params = own_params;
    shuffle.seed(launch.seed);
    block_dim = {num_threads, 1, 1};
    grid_dim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    while (fibers.size() < num_threads) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers.back()->stack = static_cast<unsigned char*>(
            mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    warps.resize((num_threads + 31) / 32);
    std::vector<Dim3> blocks;
    for (unsigned z = 0; z < grid_dim.z; ++z) {
        for (unsigned y = 0; y < grid_dim.y; ++y) {
            for (unsigned x = 0; x < grid_dim.x; ++x) {
                blocks.push_back({x, y, z});
            }
        }
    }
    std::shuffle(blocks.begin(), blocks.end(), shuffle);
    for (const Dim3& block : blocks) {
        block_index = block;
        void* shared = nullptr;
        if (launch.shared_bytes > 0 && posix_memalign(&shared, 128, launch.shared_bytes) != 0) {
            fail("no memory");
        }
        dynamic_shared = static_cast<unsigned char*>(shared);
        if (shared != nullptr) {
            memset(shared, 0xff, launch.shared_bytes);
        }
        run_block();
        free(shared);
    }
    free(own_params);
}

}  // namespace shim
