// The part of AscendC (CANN 8 and 9, basic API) that our kernels use, for g++, written from its documentation, its
// signatures held against the official ones (signatures.tsv), for either of two generations of chips: the
// kernels' very sources compile against this header and run on a CPU, and what the documentation forbids ends the run
// with a message. One thread for each core; they take turns, and every wait is a turn.
//
// Kept: types that each instruction takes; capacities, alignment and bounds of each memory; that no number is read
// before it was written or after its buffer was freed; queues and flags in pairs; and the order of instructions. A core's
// pipes (MTE2, V, M, …) run side by side: two accesses of one place, of which one writes, must be ordered by a queue,
// a flag or a barrier. That is checked with vector clocks, not with luck.
//
// Not kept: time, rounding inside the cube unit, what bisheng accepts beyond this header.
#ifndef MINDPANGU_SIMULATOR_H
#define MINDPANGU_SIMULATOR_H

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

// 2201: the 910B, whose cube and vector cores are apart. 1001: the 910A, whose cores are both.
#ifndef __NPU_ARCH__
#define __NPU_ARCH__ 2201
#endif

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR __gm__ uint8_t*
using half = _Float16;
#if __NPU_ARCH__ == 2201
struct bfloat16_t {
    uint16_t bits = 0;
    bfloat16_t() = default;
    template <typename Number>
    explicit bfloat16_t(Number) = delete;  // the compiler's own type is not made of an integer
    explicit bfloat16_t(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = std::isnan(value) ? 0x7fff : static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    explicit operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

#endif

#if __NPU_ARCH__ == 2201
enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };
#else
enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL = 7 };
#endif

namespace AscendC {
enum class TPosition { GM, A1, B1, A2, B2, CO1, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;
}  // namespace AscendC

namespace sim {

using AscendC::TPosition;
constexpr uint32_t PIPES = 7, GRAIN = 32, PAIRED_FLAGS = 11, MOST_SETS = 15;
constexpr const char* PIPE_NAMES[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL"};

// Types of 16 bits that the chip multiplies.
#if __NPU_ARCH__ == 2201
template <typename T>
constexpr bool NARROW = std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t>;
#else
template <typename T>
constexpr bool NARROW = std::is_same_v<T, half>;
#endif

struct Aborted {};

[[noreturn]] inline void fail(const char* format, ...) {
    char text[600];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    throw std::runtime_error(text);
}

using Clock = std::vector<uint32_t>;  // for each pipe of each core: how many of its instructions are known to be over

inline void merge(Clock& into, const Clock& other) {
    for (size_t i = 0; i < into.size(); ++i) {
        into[i] = std::max(into[i], other[i]);
    }
}

struct Event {  // an instruction: which pipe of which core, and its number there; 0: none yet
    uint32_t pipe = 0, number = 0;
};

struct Grain {  // 32 bytes
    Event write;
    std::vector<Event> reads, adds;
    bool written = false;
};

// Any memory: its bytes and who touched what.
struct Memory {
    std::string name;
    uint8_t* bytes = nullptr;
    size_t size = 0;
    std::vector<Grain> grains;
    std::vector<bool> stored;  // an output's bytes that were written: each once
    enum Kind { LOCAL, INPUT, OUTPUT, WORKSPACE } kind = LOCAL;
};

enum class Unit { UB, L1, L0A, L0B, L0C };
constexpr bool COUPLED = __NPU_ARCH__ == 1001;  // one core is cube and vector core
constexpr size_t CAPACITY[] = {COUPLED ? 248 * 1024 : 184 * 1024 - 256, COUPLED ? 1024 * 1024 : 512 * 1024 - 256,
                               64 * 1024, 64 * 1024, COUPLED ? 256 * 1024 : 128 * 1024};
constexpr uint32_t ALIGNMENT[] = {32, 32, 512, 512, 64};
constexpr uint32_t CORES_OF_BLOCK = COUPLED ? 1 : 3;
constexpr const char* UNIT_NAMES[] = {"UB", "L1", "L0A", "L0B", "L0C"};

constexpr Unit unit_of(TPosition p) {
    return p == TPosition::A1 || p == TPosition::B1 ? Unit::L1
           : p == TPosition::A2                     ? Unit::L0A
           : p == TPosition::B2                     ? Unit::L0B
           : p == TPosition::CO1                    ? Unit::L0C
                                                    : Unit::UB;
}

struct Buffer {
    enum State { FREE, TAKEN, QUEUED, LASTING } state = FREE;
    std::string name;
    Memory* memory = nullptr;
    size_t start = 0, size = 0;
    Clock ready;  // known when it was last enqueued or freed
    std::optional<std::pair<pipe_t, pipe_t>> held;  // an event id that waits with it, of this HardEvent
};

struct Device;

struct Core {
    Device* device = nullptr;
    uint32_t index = 0, block = 0, sub = 0;  // sub: 0 and 1 for vector cores
    bool cube = false, done = false, adds = false;  // adds: what goes to global memory is added to what is there
    std::function<bool()> waits_for;
    std::string waiting;
    std::array<std::vector<uint8_t>, 5> storage;
    std::array<Memory, 5> units;
    std::array<size_t, 5> used{};
    std::array<uint32_t, PIPES> issued{};
    std::array<Clock, PIPES> known;
    std::map<std::pair<int, int>, Clock> events;  // set and not waited for: (event, id)
    std::map<std::pair<pipe_t, pipe_t>, uint32_t> ids;  // held by buffers of queues and by AllocEventID
    std::map<int, std::vector<int>> allocated;           // by event: the ids that AllocEventID gave
    std::vector<std::unique_ptr<Buffer>> buffers;

    uint32_t pipe_id(pipe_t p) const { return index * PIPES + p; }

    // What is over as seen from a pipe, with all that it has issued itself.
    Clock all_of(pipe_t p) const {
        Clock clock = known[p];
        clock[pipe_id(p)] = issued[p];
        return clock;
    }

    Event issue(pipe_t p) {
        merge(known[p], known[PIPE_S]);
        return Event{pipe_id(p), ++issued[p]};
    }

    bool over(pipe_t p, const Event& other) const { return other.number == 0 || known[p][other.pipe] >= other.number; }
};

inline thread_local Core* self = nullptr;
inline Core& core() { return *self; }

// Event ids of each HardEvent, and those that TPipe keeps: a buffer of a queue holds one from FreeTensor to the next
// AllocTensor, and from EnQue to DeQue. Where none is left the chip waits for ever.
constexpr uint32_t EVENT_IDS = COUPLED ? 4 : 8;
constexpr uint32_t kept_ids(pipe_t from, pipe_t to) { return !COUPLED && from == PIPE_M && to == PIPE_MTE1 ? 3 : 0; }

inline void take_id(const std::string& who, pipe_t from, pipe_t to) {
    uint32_t& ids = core().ids[{from, to}];
    if (ids + kept_ids(from, to) == EVENT_IDS) {
        fail("%s: all %u event ids of %s_%s are held", who.c_str(), EVENT_IDS, PIPE_NAMES[from], PIPE_NAMES[to]);
    }
    ++ids;
}

inline void release(Buffer& buffer) {
    if (buffer.held) {
        --core().ids[*buffer.held];
        buffer.held.reset();
    }
}

inline void hold(Buffer& buffer, pipe_t from, pipe_t to) {
    release(buffer);
    take_id(buffer.name, from, to);
    buffer.held = {from, to};
}

struct Device {
    std::mutex mutex;
    std::condition_variable turn_passed;
    std::vector<std::unique_ptr<Core>> cores;
    std::map<uint8_t*, std::unique_ptr<Memory>> global;  // by address
    std::vector<std::array<std::deque<Clock>, PAIRED_FLAGS>> flags;  // by core: those that it may wait for
    std::mt19937 random;
    uint32_t turn = 0, blocks = 0, synced = 0;
    Clock met;  // what the cores knew when they met
    bool failed = false;
    std::string error;

    Memory& at(const void* address) {
        auto* bytes = static_cast<uint8_t*>(const_cast<void*>(address));
        auto after = global.upper_bound(bytes);
        if (after == global.begin()) {
            fail("an address outside global memory");
        }
        Memory& memory = *std::prev(after)->second;
        if (bytes > memory.bytes + memory.size) {
            fail("an address outside global memory");
        }
        return memory;
    }

    void add(const char* name, void* address, size_t size, Memory::Kind kind) {
        auto memory = std::make_unique<Memory>();
        memory->name = name;
        memory->bytes = static_cast<uint8_t*>(address);
        memory->size = size;
        memory->kind = kind;
        if (kind == Memory::WORKSPACE) {
            memory->grains.resize(size / GRAIN + 1);
        }
        if (kind == Memory::OUTPUT) {
            memory->stored.resize(size);
        }
        if (kind != Memory::INPUT) {
            std::memset(address, 0xff, size);
        }
        global[memory->bytes] = std::move(memory);
    }

    // The turn goes to a core, chosen by chance, that can go on.
    void pass_turn() {
        std::vector<uint32_t> able;
        bool all_done = true;
        for (auto& c : cores) {
            all_done = all_done && c->done;
            if (!c->done && (!c->waits_for || c->waits_for())) {
                able.push_back(c->index);
            }
        }
        if (able.empty() && !all_done && !failed) {
            failed = true;
            error = "deadlock:";
            for (auto& c : cores) {
                if (!c->done) {
                    error += " block " + std::to_string(c->block) + (c->cube ? " cube" : " vector " + std::to_string(c->sub)) +
                             " waits for " + c->waiting + ";";
                }
            }
        }
        turn = able.empty() ? uint32_t(-1) : able[random() % able.size()];
        turn_passed.notify_all();
    }
};

inline void wait_until(std::function<bool()> able, std::string what) {
    Device& device = *core().device;
    std::unique_lock<std::mutex> lock(device.mutex);
    core().waits_for = std::move(able);
    core().waiting = std::move(what);
    device.pass_turn();
    device.turn_passed.wait(lock, [&] { return device.failed || device.turn == core().index; });
    core().waits_for = nullptr;
    if (device.failed) {
        throw Aborted{};
    }
}

// ---- accesses ----

// `adds`: an atomic addition, which may happen beside others but not beside reads and writes.
inline void touch(Memory& memory, const std::string& name, size_t from, size_t size, pipe_t pipe, const Event& now,
                  bool writes, const char* what, bool adds = false) {
    if (size == 0) {
        return;
    }
    if (from + size > memory.size) {
        fail("%s: bytes %zu to %zu of %s, which has %zu", what, from, from + size, name.c_str(), memory.size);
    }
    if (memory.kind == Memory::INPUT) {
        if (writes) {
            fail("%s writes to the input %s", what, name.c_str());
        }
        return;
    }
    if (memory.kind == Memory::OUTPUT) {
        if (!writes || adds) {
            fail("%s reads the output %s", what, name.c_str());
        }
        for (size_t i = from; i < from + size; ++i) {
            if (memory.stored[i]) {
                fail("%s writes byte %zu of %s a second time", what, i, name.c_str());
            }
            memory.stored[i] = true;
        }
        return;
    }
    const Core& c = core();
    for (size_t g = from / GRAIN; g <= (from + size - 1) / GRAIN; ++g) {
        Grain& grain = memory.grains[g];
        if ((!writes || adds) && !grain.written) {
            fail("%s reads %s at byte %zu, which nothing has written", what, name.c_str(), g * GRAIN);
        }
        if (!(grain.write.pipe == now.pipe && grain.write.number == now.number) && !c.over(pipe, grain.write)) {
            fail("%s %s %s at byte %zu, which pipe %s of core %u may still be writing", what, writes ? "writes" : "reads",
                 name.c_str(), g * GRAIN, PIPE_NAMES[grain.write.pipe % PIPES], grain.write.pipe / PIPES);
        }
        if (!adds) {
            for (const Event& add : grain.adds) {
                if (!c.over(pipe, add)) {
                    fail("%s %s %s at byte %zu, to which pipe %s of core %u may still be adding", what,
                         writes ? "writes" : "reads", name.c_str(), g * GRAIN, PIPE_NAMES[add.pipe % PIPES],
                         add.pipe / PIPES);
                }
            }
        }
        if (writes) {
            for (const Event& read : grain.reads) {
                if (!(read.pipe == now.pipe && read.number == now.number) && !c.over(pipe, read)) {
                    fail("%s writes %s at byte %zu, which pipe %s of core %u may still be reading", what, name.c_str(),
                         g * GRAIN, PIPE_NAMES[read.pipe % PIPES], read.pipe / PIPES);
                }
            }
            if (adds) {
                grain.adds.push_back(now);
                continue;
            }
            grain.write = now;
            grain.written = true;
            grain.reads.clear();
            grain.adds.clear();
        } else {
            bool found = false;
            for (Event& read : grain.reads) {
                if (read.pipe == now.pipe) {
                    read = now;
                    found = true;
                }
            }
            if (!found) {
                grain.reads.push_back(now);
            }
        }
    }
}

template <typename T>
float to_float(T value) {
    return static_cast<float>(value);
}

}  // namespace sim

namespace AscendC {

template <typename T, typename U>
using IsSameType = std::is_same<T, U>;

template <typename T>
class GlobalTensor {
public:
    void SetGlobalBuffer(T* address, uint64_t count) {
        memory_ = &sim::core().device->at(address);
        start_ = reinterpret_cast<uint8_t*>(address) - memory_->bytes;
        count_ = count;
        if (start_ + count * sizeof(T) > memory_->size) {
            sim::fail("SetGlobalBuffer: %zu bytes from %zu of %s, which has %zu", size_t(count * sizeof(T)), start_,
                      memory_->name.c_str(), memory_->size);
        }
    }
    GlobalTensor operator[](uint64_t offset) const {
        GlobalTensor other = *this;
        other.start_ += offset * sizeof(T);
        other.count_ = offset < count_ ? count_ - offset : 0;
        return other;
    }
    T* use(uint64_t offset, uint64_t count, pipe_t pipe, const sim::Event& now, bool writes, const char* what,
           bool adds = false) const {
        if (offset + count > count_) {
            sim::fail("%s: %llu numbers from %llu of %s, whose tensor has %llu", what, (unsigned long long)count,
                      (unsigned long long)offset, memory_->name.c_str(), (unsigned long long)count_);
        }
        const size_t from = start_ + offset * sizeof(T);
        sim::touch(*memory_, memory_->name, from, count * sizeof(T), pipe, now, writes, what, adds);
        return reinterpret_cast<T*>(memory_->bytes + from);
    }

private:
    sim::Memory* memory_ = nullptr;
    size_t start_ = 0;
    uint64_t count_ = 0;
};

template <typename T>
class LocalTensor {
public:
    LocalTensor() = default;
    LocalTensor(sim::Buffer* buffer, TPosition position, size_t start, size_t bytes)
        : buffer_(buffer), position_(position), start_(start), bytes_(bytes) {}

    LocalTensor operator[](uint32_t offset) const {
        const size_t bytes = offset * sizeof(T);
        return LocalTensor(buffer_, position_, start_ + bytes, bytes < bytes_ ? bytes_ - bytes : 0);
    }
    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        return LocalTensor<U>(buffer_, position_, start_, bytes_);
    }
    uint32_t GetSize() const { return bytes_ / sizeof(T); }

    sim::Buffer* buffer() const { return buffer_; }
    TPosition position() const { return position_; }
    size_t start() const { return start_; }

    void in(sim::Unit unit, const char* what) const {
        if (buffer_ == nullptr) {
            sim::fail("%s: a tensor that was never allocated", what);
        }
        if (sim::unit_of(position_) != unit) {
            sim::fail("%s: %s lies in %s, and %s is needed", what, buffer_->name.c_str(),
                      sim::UNIT_NAMES[int(sim::unit_of(position_))], sim::UNIT_NAMES[int(unit)]);
        }
        if (start_ % sim::ALIGNMENT[int(unit)] != 0) {
            sim::fail("%s: %s begins at byte %zu, not a multiple of %u", what, buffer_->name.c_str(), start_,
                      sim::ALIGNMENT[int(unit)]);
        }
    }
    T* use(uint64_t offset, uint64_t count, pipe_t pipe, const sim::Event& now, bool writes, const char* what) const {
        if (buffer_->state == sim::Buffer::FREE || buffer_->state == sim::Buffer::QUEUED) {
            sim::fail("%s uses %s, which is %s", what, buffer_->name.c_str(),
                      buffer_->state == sim::Buffer::FREE ? "free" : "enqueued");
        }
        if ((offset + count) * sizeof(T) > bytes_) {
            sim::fail("%s: numbers %llu to %llu of %s, which has %zu", what, (unsigned long long)offset,
                      (unsigned long long)(offset + count), buffer_->name.c_str(), bytes_ / sizeof(T));
        }
        const size_t from = start_ + offset * sizeof(T);
        sim::touch(*buffer_->memory, buffer_->name, from, count * sizeof(T), pipe, now, writes, what);
        return reinterpret_cast<T*>(buffer_->memory->bytes + from);
    }

private:
    sim::Buffer* buffer_ = nullptr;
    TPosition position_ = TPosition::VECCALC;
    size_t start_ = 0, bytes_ = 0;
};

// ---- memory ----

class TPipe;

enum class HardEvent {
    MTE2_V, V_MTE2, V_MTE3, MTE3_V, MTE2_MTE1, MTE1_MTE2, MTE1_M, M_MTE1, MTE3_MTE2, M_V, V_M, MTE3_MTE1, MTE1_MTE3,
#if __NPU_ARCH__ == 2201
    M_FIX, FIX_M
#endif
};
using TEventID = int8_t;

namespace internal {
constexpr std::pair<pipe_t, pipe_t> ends(HardEvent e) {
    constexpr std::pair<pipe_t, pipe_t> ALL[] = {
        {PIPE_MTE2, PIPE_V},    {PIPE_V, PIPE_MTE2},    {PIPE_V, PIPE_MTE3},    {PIPE_MTE3, PIPE_V},
        {PIPE_MTE2, PIPE_MTE1}, {PIPE_MTE1, PIPE_MTE2}, {PIPE_MTE1, PIPE_M},    {PIPE_M, PIPE_MTE1},
        {PIPE_MTE3, PIPE_MTE2}, {PIPE_M, PIPE_V},       {PIPE_V, PIPE_M},       {PIPE_MTE3, PIPE_MTE1},
        {PIPE_MTE1, PIPE_MTE3},
#if __NPU_ARCH__ == 2201
        {PIPE_M, PIPE_FIX},     {PIPE_FIX, PIPE_M}
#endif
    };
    return ALL[int(e)];
}
}  // namespace internal

template <TPosition POSITION, int32_t DEPTH>
class TQue {
#if __NPU_ARCH__ == 2201
    static constexpr pipe_t DRAINS = PIPE_FIX;  // what takes products from L0C
#else
    static constexpr pipe_t DRAINS = PIPE_V;
#endif
    static constexpr pipe_t FILLS = POSITION == TPosition::VECOUT                                 ? PIPE_V
                                    : POSITION == TPosition::A2 || POSITION == TPosition::B2     ? PIPE_MTE1
                                    : POSITION == TPosition::CO1                                 ? PIPE_M
                                                                                                 : PIPE_MTE2;
    static constexpr pipe_t EMPTIES = POSITION == TPosition::VECIN                               ? PIPE_V
                                      : POSITION == TPosition::VECOUT                            ? PIPE_MTE3
                                      : POSITION == TPosition::A1 || POSITION == TPosition::B1   ? PIPE_MTE1
                                      : POSITION == TPosition::CO1                               ? DRAINS
                                                                                                 : PIPE_M;

public:
    template <typename T>
    LocalTensor<T> AllocTensor() {
        sim::Core& c = sim::core();
        if (buffers_.empty()) {
            sim::fail("AllocTensor: a queue without InitBuffer");
        }
        sim::Buffer* buffer = buffers_[next_ % buffers_.size()];
        if (buffer->state != sim::Buffer::FREE) {
            sim::fail("AllocTensor: all %zu buffers of %s are in use", buffers_.size(), buffer->name.c_str());
        }
        ++next_;
        sim::release(*buffer);
        buffer->state = sim::Buffer::TAKEN;
        sim::merge(c.known[FILLS], buffer->ready);
        return LocalTensor<T>(buffer, POSITION, buffer->start, buffer->size);
    }
    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        sim::Buffer* buffer = tensor.buffer();
        if (buffer->state != sim::Buffer::TAKEN) {
            sim::fail("EnQue: %s was not allocated", buffer->name.c_str());
        }
        if (queued_.size() >= size_t(DEPTH)) {
            sim::fail("EnQue: %s is beyond the queue's depth of %d", buffer->name.c_str(), DEPTH);
        }
        sim::hold(*buffer, FILLS, EMPTIES);
        buffer->state = sim::Buffer::QUEUED;
        buffer->ready = sim::core().all_of(FILLS);
        queued_.push_back(buffer);
        return true;
    }
    template <typename T>
    LocalTensor<T> DeQue() {
        if (queued_.empty()) {
            sim::fail("DeQue: nothing is enqueued");
        }
        sim::Buffer* buffer = queued_.front();
        queued_.pop_front();
        sim::release(*buffer);
        buffer->state = sim::Buffer::TAKEN;
        sim::merge(sim::core().known[EMPTIES], buffer->ready);
        return LocalTensor<T>(buffer, POSITION, buffer->start, buffer->size);
    }
    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor) {
        sim::Buffer* buffer = tensor.buffer();
        if (buffer->state != sim::Buffer::TAKEN) {
            sim::fail("FreeTensor: %s is not in use", buffer->name.c_str());
        }
        sim::hold(*buffer, EMPTIES, FILLS);
        buffer->state = sim::Buffer::FREE;
        buffer->ready = sim::core().all_of(EMPTIES);
        std::memset(buffer->memory->bytes + buffer->start, 0xff, buffer->size);
        for (size_t g = buffer->start / sim::GRAIN; g < (buffer->start + buffer->size) / sim::GRAIN; ++g) {
            buffer->memory->grains[g].written = false;
        }
    }

private:
    friend class TPipe;
    static constexpr TPosition position = POSITION;
    std::vector<sim::Buffer*> buffers_;
    std::deque<sim::Buffer*> queued_;
    size_t next_ = 0;
};

template <TPosition POSITION>
class TBuf {
    static_assert(sim::unit_of(POSITION) == sim::Unit::UB || (sim::COUPLED && POSITION == TPosition::A1),
                  "a TBuf in UB, and in L1 where cores are coupled");

public:
    template <typename T>
    LocalTensor<T> Get() {
        if (buffer_ == nullptr) {
            sim::fail("Get: a TBuf without InitBuffer");
        }
        return LocalTensor<T>(buffer_, POSITION, buffer_->start, buffer_->size);
    }

private:
    friend class TPipe;
    sim::Buffer* buffer_ = nullptr;
};

class TPipe {
public:
    template <class QUEUE>
    bool InitBuffer(QUEUE& queue, uint8_t count, uint32_t bytes) {
        for (uint8_t i = 0; i < count; ++i) {
            queue.buffers_.push_back(make(QUEUE::position, bytes, sim::Buffer::FREE));
        }
        return true;
    }
    template <TPosition POSITION>
    bool InitBuffer(TBuf<POSITION>& buffer, uint32_t bytes) {
        buffer.buffer_ = make(POSITION, bytes, sim::Buffer::LASTING);
        return true;
    }
    // An event id of one's own for SetFlag and WaitFlag, until it is given back.
    template <HardEvent EVENT>
    TEventID AllocEventID() {
        const auto [from, to] = internal::ends(EVENT);
        sim::take_id("AllocEventID", from, to);
        auto& given = sim::core().allocated[int(EVENT)];
        given.push_back(int(sim::EVENT_IDS) - 1 - int(given.size()));
        return static_cast<TEventID>(given.back());
    }
    template <HardEvent EVENT>
    void ReleaseEventID(TEventID id) {
        auto& given = sim::core().allocated[int(EVENT)];
        if (given.empty() || given.back() != id) {
            sim::fail("ReleaseEventID: %d was not given last", int(id));
        }
        given.pop_back();
        --sim::core().ids[internal::ends(EVENT)];
    }
    // After it another TPipe may divide the same memory, and has all event ids.
    void Destroy() {
        sim::core().used.fill(0);
        for (const auto& buffer : sim::core().buffers) {
            sim::release(*buffer);
        }
    }

private:
    static sim::Buffer* make(TPosition position, uint32_t bytes, sim::Buffer::State state) {
        sim::Core& c = sim::core();
        const int unit = int(sim::unit_of(position));
        if (!sim::COUPLED && c.cube == (unit == int(sim::Unit::UB))) {
            sim::fail("InitBuffer: a %s core has no %s", c.cube ? "cube" : "vector", sim::UNIT_NAMES[unit]);
        }
        if (bytes == 0 || bytes % 32 != 0) {
            sim::fail("InitBuffer: %u bytes, not a positive multiple of 32", bytes);
        }
        const size_t start = (c.used[unit] + sim::ALIGNMENT[unit] - 1) / sim::ALIGNMENT[unit] * sim::ALIGNMENT[unit];
        if (start + bytes > sim::CAPACITY[unit]) {
            sim::fail("InitBuffer: %zu bytes of %s in use, %u more asked, %zu there", start, sim::UNIT_NAMES[unit], bytes,
                      sim::CAPACITY[unit]);
        }
        c.used[unit] = start + bytes;
        auto buffer = std::make_unique<sim::Buffer>();
        buffer->state = state;
        buffer->name = std::string(sim::UNIT_NAMES[unit]) + " buffer " + std::to_string(c.buffers.size());
        buffer->memory = &c.units[unit];
        buffer->start = start;
        buffer->size = bytes;
        buffer->ready.assign(c.known[0].size(), 0);
        c.buffers.push_back(std::move(buffer));
        return c.buffers.back().get();
    }
};

// ---- cores, flags, barriers ----

inline int64_t GetBlockIdx() {
    return sim::COUPLED || sim::core().cube ? sim::core().block : sim::core().block * 2 + sim::core().sub;
}
inline int64_t GetSubBlockIdx() { return sim::core().sub; }
inline int64_t GetSubBlockNum() { return sim::COUPLED || sim::core().cube ? 1 : 2; }
inline int64_t GetBlockNum() { return sim::core().device->blocks; }
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

template <pipe_t PIPE>
void PipeBarrier() {
    sim::Core& c = sim::core();
    if constexpr (PIPE == PIPE_ALL) {
        for (uint32_t p = 0; p < sim::PIPES; ++p) {
            sim::merge(c.known[PIPE_S], c.all_of(pipe_t(p)));
        }
    } else {
        c.known[PIPE][c.pipe_id(PIPE)] = c.issued[PIPE];
    }
}

template <HardEvent EVENT>
void SetFlag(int32_t id) {
    const auto& given = sim::core().allocated[int(EVENT)];
    if (std::find(given.begin(), given.end(), id) == given.end()) {
        sim::fail("SetFlag: event id %d, which AllocEventID has not given", id);
    }
    if (!sim::core().events.emplace(std::make_pair(int(EVENT), id), sim::core().all_of(internal::ends(EVENT).first)).second) {
        sim::fail("SetFlag: event %d is set already", id);
    }
}

template <HardEvent EVENT>
void WaitFlag(int32_t id) {
    auto found = sim::core().events.find({int(EVENT), id});
    if (found == sim::core().events.end()) {
        sim::fail("WaitFlag: event %d, which nothing has set", id);
    }
    sim::merge(sim::core().known[internal::ends(EVENT).second], found->second);
    sim::core().events.erase(found);
}

namespace internal {
inline void check_flag(uint16_t id, const char* what) {
    if (id >= sim::PAIRED_FLAGS) {
        sim::fail("%s: flag %u; 0 to %u are there", what, id, sim::PAIRED_FLAGS - 1);
    }
}
}  // namespace internal

#if __NPU_ARCH__ == 2201

// What goes to global memory from now on is added to what is there, or again takes its place.
template <typename T>
void SetAtomicAdd() {
    static_assert(std::is_same_v<T, float>, "float is simulated");
    sim::core().adds = true;
}
inline void SetAtomicNone() { sim::core().adds = false; }

// All cores of all blocks wait for each other, and for all that each has issued.
template <bool ONLY_VECTOR = true>
void SyncAll() {
    static_assert(!ONLY_VECTOR, "only all cores together are simulated");
    sim::Core& c = sim::core();
    for (uint32_t p = 0; p < sim::PIPES; ++p) {
        sim::merge(c.known[PIPE_S], c.all_of(pipe_t(p)));
    }
    sim::Device& device = *c.device;
    const uint32_t all = device.cores.size(), until = (device.synced / all + 1) * all;
    device.synced += 1;
    device.met.resize(c.known[PIPE_S].size());
    sim::merge(device.met, c.known[PIPE_S]);
    sim::wait_until([&device, until] { return device.synced >= until; }, "all cores");
    sim::merge(c.known[PIPE_S], device.met);
}

// Mode 2: a cube core and its two vector cores. Each of these two gets the cube's flag; the cube waits for both.
template <uint8_t MODE, pipe_t PIPE>
void CrossCoreSetFlag(uint16_t id) {
    static_assert(MODE == 2, "only paired flags are simulated");
    sim::Core& c = sim::core();
    internal::check_flag(id, "CrossCoreSetFlag");
    const sim::Clock clock = c.all_of(PIPE);
    // By core of the setter: a cube's flag goes to both vector cores, a vector core's into its own place at the cube's.
    for (uint32_t sub = 0; sub < 2; ++sub) {
        const uint32_t place = c.block * 4 + (c.cube ? 2 + sub : c.sub);
        if (!c.cube && sub > 0) {
            break;
        }
        auto& queue = c.device->flags[place][id];
        if (queue.size() == sim::MOST_SETS) {
            sim::fail("CrossCoreSetFlag: flag %u is set %u times already", id, sim::MOST_SETS);
        }
        queue.push_back(clock);
    }
}

template <uint8_t MODE = 0, pipe_t PIPE = PIPE_S>
void CrossCoreWaitFlag(uint16_t id) {
    static_assert(PIPE == PIPE_S, "only waits of the scalar unit are simulated");
    sim::Core& c = sim::core();
    internal::check_flag(id, "CrossCoreWaitFlag");
    std::vector<std::deque<sim::Clock>*> awaited;
    for (uint32_t sub = 0; sub < (c.cube ? 2 : 1); ++sub) {
        awaited.push_back(&c.device->flags[c.block * 4 + (c.cube ? sub : 2 + c.sub)][id]);
    }
    sim::wait_until([awaited] { return std::all_of(awaited.begin(), awaited.end(), [](auto* q) { return !q->empty(); }); },
                    "flag " + std::to_string(id));
    for (auto* queue : awaited) {
        sim::merge(c.known[PIPE_S], queue->front());
        queue->pop_front();
    }
}

#endif

// ---- moving ----

#if __NPU_ARCH__ == 1001

// Blocks of blockLen times 32 bytes; strides: 32 bytes between one block's end and the next one's beginning.
struct DataCopyParams {
    DataCopyParams() = default;
    DataCopyParams(uint16_t count, uint16_t length, uint16_t source, uint16_t target)
        : blockCount(count), blockLen(length), srcStride(source), dstStride(target) {}
    uint16_t blockCount = 1, blockLen = 0, srcStride = 0, dstStride = 0;
};

enum class BlockMode : uint8_t { BLOCK_MODE_NORMAL, BLOCK_MODE_MATRIX, BLOCK_MODE_VECTOR };
struct DataCopyEnhancedParams {
    BlockMode blockMode = BlockMode::BLOCK_MODE_NORMAL;
};

namespace internal {
constexpr size_t WORDS = 32;

inline void check_copy(const DataCopyParams& p) {
    if (p.blockCount < 1 || p.blockCount > 4095 || p.blockLen < 1) {
        sim::fail("DataCopy: blockCount %u (1 to 4095), blockLen %u (at least 1)", p.blockCount, p.blockLen);
    }
}

template <typename To, typename From>
void copy_blocks(const To& dst, const From& src, const DataCopyParams& p, size_t item, size_t unit, pipe_t pipe) {
    check_copy(p);
    const sim::Event now = sim::core().issue(pipe);
    const size_t count = p.blockLen * unit / item;
    for (size_t i = 0; i < p.blockCount; ++i) {
        const auto* from = src.use(i * (p.blockLen + p.srcStride) * unit / item, count, pipe, now, false, "DataCopy");
        auto* to = dst.use(i * (p.blockLen * unit + p.dstStride * WORDS) / item, count, pipe, now, true, "DataCopy");
        std::memcpy(to, from, count * item);
    }
}
}  // namespace internal

// From global memory to UB or L1.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& p) {
    dst.in(sim::unit_of(dst.position()) == sim::Unit::L1 ? sim::Unit::L1 : sim::Unit::UB, "DataCopy");
    internal::copy_blocks(dst, src, p, sizeof(T), internal::WORDS, PIPE_MTE2);
}

// From UB to global memory.
template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p) {
    src.in(sim::Unit::UB, "DataCopy");
    internal::copy_blocks(dst, src, p, sizeof(T), internal::WORDS, PIPE_MTE3);
}

// From UB to L1.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p) {
    src.in(sim::Unit::UB, "DataCopy");
    dst.in(sim::Unit::L1, "DataCopy");
    internal::copy_blocks(dst, src, p, sizeof(T), internal::WORDS, PIPE_MTE3);
}

// From L0C to UB, by the vector unit: fractals of 16 x 16, of which blockLen and srcStride are numbers.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p,
              const DataCopyEnhancedParams& how) {
    static_assert(std::is_same_v<T, float>, "float is simulated");
    src.in(sim::Unit::L0C, "DataCopy");
    dst.in(sim::Unit::UB, "DataCopy");
    if (how.blockMode != BlockMode::BLOCK_MODE_MATRIX) {
        sim::fail("DataCopy: from L0C blockMode must be BLOCK_MODE_MATRIX");
    }
    internal::copy_blocks(dst, src, p, sizeof(T), 256 * sizeof(T), PIPE_V);
}

#else

struct DataCopyExtParams {
    DataCopyExtParams() = default;
    DataCopyExtParams(uint16_t count, uint32_t length, uint32_t source, uint32_t target, uint32_t reserved)
        : blockCount(count), blockLen(length), srcStride(source), dstStride(target), rsv(reserved) {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;  // bytes; gaps: bytes in global memory, 32 bytes in UB
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool pads, uint8_t left, uint8_t right, T value)
        : isPad(pads), leftPadding(left), rightPadding(right), paddingValue(value) {}
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};

namespace internal {
inline void check_copy(const DataCopyExtParams& p, size_t item) {
    if (p.blockCount < 1 || p.blockCount > 4095 || p.blockLen == 0 || p.blockLen % item != 0 || p.rsv != 0) {
        sim::fail("DataCopyPad: blockCount %u (1 to 4095), blockLen %u (whole numbers of %zu bytes), rsv %u (0)",
                  p.blockCount, p.blockLen, item, p.rsv);
    }
}
}  // namespace internal

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad) {
    internal::check_copy(p, sizeof(T));
    if (pad.isPad) {
        sim::fail("DataCopyPad: padding is not simulated");
    }
    dst.in(sim::Unit::UB, "DataCopyPad");
    const sim::Event now = sim::core().issue(PIPE_MTE2);
    const size_t count = p.blockLen / sizeof(T), filled = (p.blockLen + 31) / 32 * 32;
    for (size_t i = 0; i < p.blockCount; ++i) {
        const T* from = src.use(i * (p.blockLen + p.srcStride) / sizeof(T), count, PIPE_MTE2, now, false, "DataCopyPad");
        T* to = dst.use(i * (filled + p.dstStride * 32) / sizeof(T), filled / sizeof(T), PIPE_MTE2, now, true,
                        "DataCopyPad");
        std::memcpy(to, from, p.blockLen);
    }
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p) {
    internal::check_copy(p, sizeof(T));
    src.in(sim::Unit::UB, "DataCopyPad");
    const sim::Event now = sim::core().issue(PIPE_MTE3);
    const size_t count = p.blockLen / sizeof(T), filled = (p.blockLen + 31) / 32 * 32;
    for (size_t i = 0; i < p.blockCount; ++i) {
        const T* from =
            src.use(i * (filled + p.srcStride * 32) / sizeof(T), count, PIPE_MTE3, now, false, "DataCopyPad");
        T* to = dst.use(i * (p.blockLen + p.dstStride) / sizeof(T), count, PIPE_MTE3, now, true, "DataCopyPad");
        std::memcpy(to, from, p.blockLen);
    }
}

struct Nd2NzParams {
    Nd2NzParams() = default;
    Nd2NzParams(uint16_t matrices, uint16_t n, uint16_t d, uint16_t stride, uint16_t source, uint16_t c0, uint16_t rows,
                uint16_t target)
        : ndNum(matrices), nValue(n), dValue(d), srcNdMatrixStride(stride), srcDValue(source), dstNzC0Stride(c0),
          dstNzNStride(rows), dstNzMatrixStride(target) {}
    uint16_t ndNum = 0, nValue = 0, dValue = 0, srcNdMatrixStride = 0, srcDValue = 0, dstNzC0Stride = 0,
             dstNzNStride = 0, dstNzMatrixStride = 0;
};

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& p) {
    static_assert(sizeof(T) == 2, "16-bit tiles");
    dst.in(sim::Unit::L1, "DataCopy");
    if (p.ndNum != 1 || p.nValue < 1 || p.nValue > 16384 || p.srcDValue < p.dValue || p.dstNzC0Stride < p.nValue ||
        p.dstNzC0Stride > 16384 || p.dstNzNStride != 1) {
        sim::fail("DataCopy: ndNum %u (1 is simulated), nValue %u (1 to 16384), dValue %u of srcDValue %u, dstNzC0Stride "
                  "%u (nValue to 16384), dstNzNStride %u (1)",
                  p.ndNum, p.nValue, p.dValue, p.srcDValue, p.dstNzC0Stride, p.dstNzNStride);
    }
    const sim::Event now = sim::core().issue(PIPE_MTE2);
    for (uint32_t row = 0; row < p.nValue; ++row) {
        const T* from = src.use(uint64_t(row) * p.srcDValue, p.dValue, PIPE_MTE2, now, false, "DataCopy");
        for (uint32_t column = 0; column < p.dValue; column += 16) {
            const uint32_t count = std::min(16u, p.dValue - column);
            T* to = dst.use(column * p.dstNzC0Stride + row * 16, count, PIPE_MTE2, now, true, "DataCopy");
            std::memcpy(to, from + column, count * sizeof(T));
        }
    }
}

template <typename T>
struct InitConstValueParams {
    InitConstValueParams() = default;
    InitConstValueParams(uint16_t repeats, uint16_t blocks, uint16_t gap, T value)
        : repeatTimes(repeats), blockNum(blocks), dstGap(gap), initValue(value) {}
    uint16_t repeatTimes = 0, blockNum = 0, dstGap = 0;
    T initValue{};
};

template <typename T, typename = T>
void InitConstValue(const LocalTensor<T>& dst, const InitConstValueParams<T>& p) {
    static_assert(sim::NARROW<T>, "types that InitConstValue takes");
    dst.in(sim::Unit::L1, "InitConstValue");
    if (p.repeatTimes > 32767 || p.blockNum > 32767 || p.dstGap > 32767) {
        sim::fail("InitConstValue: repeatTimes %u, blockNum %u, dstGap %u; 0 to 32767", p.repeatTimes, p.blockNum, p.dstGap);
    }
    const sim::Event now = sim::core().issue(PIPE_MTE2);
    for (uint32_t i = 0; i < p.repeatTimes; ++i) {
        T* to = dst.use(i * (p.blockNum + p.dstGap) * 16, p.blockNum * 16, PIPE_MTE2, now, true, "InitConstValue");
        std::fill_n(to, p.blockNum * 16, p.initValue);
    }
}

#endif

// ---- the cube ----

struct LoadData2DParams {
    LoadData2DParams() = default;
    LoadData2DParams(uint16_t start, uint8_t repeats, uint16_t stride, uint8_t id, uint16_t gap, bool transposes,
                     uint8_t mode)
        : startIndex(start), repeatTimes(repeats), srcStride(stride), sid(id), dstGap(gap), ifTranspose(transposes),
          addrMode(mode) {}
    uint16_t startIndex = 0;
    uint8_t repeatTimes = 0;
    uint16_t srcStride = 0;
    uint8_t sid = 0;
    uint16_t dstGap = 0;
    bool ifTranspose = false;
    uint8_t addrMode = 0;
};

template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& p) {
    src.in(sim::Unit::L1, "LoadData");
    dst.in(sim::unit_of(dst.position()) == sim::Unit::L0B ? sim::Unit::L0B : sim::Unit::L0A, "LoadData");
    if (p.repeatTimes < 1) {
        sim::fail("LoadData: repeatTimes %u; 1 to 255", p.repeatTimes);
    }
    if (p.ifTranspose && !std::is_same_v<T, half>) {
        sim::fail("LoadData: ifTranspose is for half and 16-bit integers");
    }
    const sim::Event now = sim::core().issue(PIPE_MTE1);
    for (uint32_t i = 0; i < p.repeatTimes; ++i) {
        const T* from = src.use((p.startIndex + i * p.srcStride) * 256, 256, PIPE_MTE1, now, false, "LoadData");
        T* to = dst.use(i * (1 + p.dstGap) * 256, 256, PIPE_MTE1, now, true, "LoadData");
        for (uint32_t row = 0; row < 16; ++row) {
            for (uint32_t column = 0; column < 16; ++column) {
                to[row * 16 + column] = p.ifTranspose ? from[column * 16 + row] : from[row * 16 + column];
            }
        }
    }
}

struct MmadParams {
    MmadParams() = default;
    MmadParams(uint16_t rows, uint16_t columns, uint16_t inner, uint8_t flag, bool source, bool starts)
        : m(rows), n(columns), k(inner), unitFlag(flag), cmatrixSource(source), cmatrixInitVal(starts) {}
    uint16_t m = 0, n = 0, k = 0;
    uint8_t unitFlag = 0;
    bool cmatrixSource = false, cmatrixInitVal = true;
};

// c (m × n, Nz) = or += a (m × k, zZ) · b (k × n, Zn).
template <typename C, typename T, typename U>
void Mmad(const LocalTensor<C>& c, const LocalTensor<T>& a, const LocalTensor<U>& b, const MmadParams& p) {
    static_assert(std::is_same_v<T, U> && std::is_same_v<C, float> && sim::NARROW<T>, "16 bits in, float out");
    a.in(sim::Unit::L0A, "Mmad");
    b.in(sim::Unit::L0B, "Mmad");
    c.in(sim::Unit::L0C, "Mmad");
    if (c.start() % 1024 != 0) {
        sim::fail("Mmad: the product begins at byte %zu of L0C, not a multiple of 1024", c.start());
    }
    if (p.m == 0 || p.n == 0 || p.k == 0 || p.m > 4095 || p.n > 4095 || p.k > 4095 || p.m % 16 || p.n % 16 || p.k % 16) {
        sim::fail("Mmad: m %u, n %u, k %u; multiples of 16 up to 4095 are simulated", p.m, p.n, p.k);
    }
    if (p.unitFlag || p.cmatrixSource) {
        sim::fail("Mmad: unitFlag and cmatrixSource are not simulated");
    }
    const uint32_t m = p.m, n = p.n, k = p.k;
    const sim::Event now = sim::core().issue(PIPE_M);
    const T* left = a.use(0, m * k, PIPE_M, now, false, "Mmad");
    const T* right = b.use(0, k * n, PIPE_M, now, false, "Mmad");
    if (!p.cmatrixInitVal) {
        c.use(0, m * n, PIPE_M, now, false, "Mmad");
    }
    float* out = c.use(0, m * n, PIPE_M, now, true, "Mmad");
    std::vector<float> wide(size_t(k) * n), line(n);
    for (uint32_t i = 0; i < k; ++i) {
        for (uint32_t j = 0; j < n; ++j) {
            wide[i * n + j] = sim::to_float(right[(i / 16 * (n / 16) + j / 16) * 256 + j % 16 * 16 + i % 16]);
        }
    }
    for (uint32_t row = 0; row < m; ++row) {
        std::fill(line.begin(), line.end(), 0.0f);
        for (uint32_t i = 0; i < k; ++i) {
            const float x = sim::to_float(left[(row / 16 * (k / 16) + i / 16) * 256 + row % 16 * 16 + i % 16]);
            const float* y = wide.data() + i * n;
            for (uint32_t j = 0; j < n; ++j) {
                line[j] += x * y[j];
            }
        }
        for (uint32_t j = 0; j < n; ++j) {
            float& to = out[j / 16 * m * 16 + row * 16 + j % 16];
            to = p.cmatrixInitVal ? line[j] : to + line[j];
        }
    }
}

#if __NPU_ARCH__ == 2201

enum class CO2Layout : uint8_t { NZ, ROW_MAJOR, COLUMN_MAJOR };
struct FixpipeConfig {
    CO2Layout format;
};
constexpr FixpipeConfig CFG_ROW_MAJOR{CO2Layout::ROW_MAJOR};

}  // namespace AscendC

enum QuantMode_t { NoQuant, F322F16, F322BF16 };

namespace AscendC {

struct FixpipeParamsV220 {
    FixpipeParamsV220() = default;
    uint16_t nSize = 0, mSize = 0, srcStride = 0;
    uint32_t dstStride = 0;
    QuantMode_t quantPre = QuantMode_t::NoQuant;
    bool reluEn = false;
    uint16_t ndNum = 1, srcNdStride = 0, dstNdStride = 0;
    uint8_t unitFlag = 0;
};

template <typename T, typename C, const FixpipeConfig& CONFIG = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<T>& dst, const LocalTensor<C>& src, const FixpipeParamsV220& p) {
    static_assert(std::is_same_v<C, float> && CONFIG.format == CO2Layout::ROW_MAJOR, "float in, rows out");
    src.in(sim::Unit::L0C, "Fixpipe");
    const QuantMode_t needed = std::is_same_v<T, float>  ? QuantMode_t::NoQuant
                               : std::is_same_v<T, half> ? QuantMode_t::F322F16
                                                         : QuantMode_t::F322BF16;
    if (p.quantPre != needed) {
        sim::fail("Fixpipe: quantPre %d does not make the target's type", int(p.quantPre));
    }
    if (p.nSize < 1 || p.nSize > 4095 || p.mSize < 1 || p.mSize > 8192 || p.srcStride < p.mSize || p.srcStride % 16 ||
        p.ndNum != 1 || p.dstStride < p.nSize || p.reluEn || p.unitFlag) {
        sim::fail("Fixpipe: nSize %u (1 to 4095), mSize %u (1 to 8192), srcStride %u (whole fractals), ndNum %u (1), "
                  "dstStride %u, reluEn, unitFlag (off)",
                  p.nSize, p.mSize, p.srcStride, p.ndNum, p.dstStride);
    }
    const sim::Event now = sim::core().issue(PIPE_FIX);
    for (uint32_t row = 0; row < p.mSize; ++row) {
        const bool adds = sim::core().adds;
        T* to = dst.use(uint64_t(row) * p.dstStride, p.nSize, PIPE_FIX, now, true, "Fixpipe", adds);
        for (uint32_t column = 0; column < p.nSize; column += 16) {
            const uint32_t count = std::min(16u, p.nSize - column);
            const C* from = src.use(column * p.srcStride + row * 16, count, PIPE_FIX, now, false, "Fixpipe");
            for (uint32_t i = 0; i < count; ++i) {
                to[column + i] = T(from[i] + (adds ? sim::to_float(to[column + i]) : 0.0f));
            }
        }
    }
}

#endif

// ---- the vector unit ----

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(uint8_t db, uint8_t ab, uint8_t bb, uint8_t dr, uint8_t ar, uint8_t br)
        : dstBlkStride(db), src0BlkStride(ab), src1BlkStride(bb), dstRepStride(dr), src0RepStride(ar), src1RepStride(br) {}
    uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1;
    uint8_t dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(uint16_t block, uint16_t repeat) : dstBlkStride(block), dstRepStride(repeat) {}
    uint16_t dstBlkStride = 1, dstRepStride = 8;
};

enum class RoundMode { CAST_NONE, CAST_RINT };
enum class ReduceOrder { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };

namespace internal {

template <typename T>
constexpr void check_type() {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, half>, "vector arithmetic takes half and float");
}

inline void check_count(int32_t count, const char* what) {
    if (count < 1) {
        sim::fail("%s: %d numbers", what, count);
    }
}

template <typename T>
void check_repeats(uint64_t mask, uint32_t repeats, const char* what) {
    if (mask < 1 || mask > 256 / sizeof(T) || repeats < 1 || repeats > 255) {
        sim::fail("%s: mask %llu (1 to %zu), repeatTimes %u (1 to 255)", what, (unsigned long long)mask, 256 / sizeof(T),
                  repeats);
    }
}

template <typename T, typename F>
void unary(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count, const char* what, F f) {
    check_type<T>();
    check_count(count, what);
    dst.in(sim::Unit::UB, what);
    src.in(sim::Unit::UB, what);
    const sim::Event now = sim::core().issue(PIPE_V);
    const T* a = src.use(0, count, PIPE_V, now, false, what);
    T* to = dst.use(0, count, PIPE_V, now, true, what);
    for (int32_t i = 0; i < count; ++i) {
        to[i] = f(a[i]);
    }
}

template <typename T, typename F>
void binary(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, int32_t count,
            const char* what, F f) {
    check_type<T>();
    check_count(count, what);
    for (const LocalTensor<T>* tensor : {&dst, &src0, &src1}) {
        tensor->in(sim::Unit::UB, what);
    }
    const sim::Event now = sim::core().issue(PIPE_V);
    const T* a = src0.use(0, count, PIPE_V, now, false, what);
    const T* b = src1.use(0, count, PIPE_V, now, false, what);
    T* to = dst.use(0, count, PIPE_V, now, true, what);
    for (int32_t i = 0; i < count; ++i) {
        to[i] = f(a[i], b[i]);
    }
}

template <typename T, typename F>
void binary(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask,
            uint8_t repeats, const BinaryRepeatParams& p, const char* what, F f) {
    check_type<T>();
    check_repeats<T>(mask, repeats, what);
    for (const LocalTensor<T>* tensor : {&dst, &src0, &src1}) {
        tensor->in(sim::Unit::UB, what);
    }
    constexpr uint32_t BLOCK = 32 / sizeof(T);
    const sim::Event now = sim::core().issue(PIPE_V);
    for (uint32_t r = 0; r < repeats; ++r) {
        for (uint32_t i = 0; i < mask; i += BLOCK) {
            const uint32_t count = std::min<uint32_t>(BLOCK, mask - i), block = i / BLOCK;
            const T* a = src0.use((r * p.src0RepStride + block * p.src0BlkStride) * BLOCK, count, PIPE_V, now, false, what);
            const T* b = src1.use((r * p.src1RepStride + block * p.src1BlkStride) * BLOCK, count, PIPE_V, now, false, what);
            T* to = dst.use((r * p.dstRepStride + block * p.dstBlkStride) * BLOCK, count, PIPE_V, now, true, what);
            for (uint32_t j = 0; j < count; ++j) {
                to[j] = f(a[j], b[j]);
            }
        }
    }
}

template <typename T, typename F>
void reduce(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask, int32_t repeats, int32_t to_stride,
            int32_t block_stride, int32_t repeat_stride, const char* what, F f) {
    check_type<T>();
    check_repeats<T>(mask, repeats, what);
    dst.in(sim::Unit::UB, what);
    src.in(sim::Unit::UB, what);
    constexpr uint32_t BLOCK = 32 / sizeof(T);
    const sim::Event now = sim::core().issue(PIPE_V);
    for (int32_t r = 0; r < repeats; ++r) {
        T value{};
        for (int32_t i = 0; i < mask; i += BLOCK) {
            const int32_t count = std::min<int32_t>(BLOCK, mask - i);
            const T* a = src.use((r * repeat_stride + i / BLOCK * block_stride) * BLOCK, count, PIPE_V, now, false, what);
            for (int32_t j = 0; j < count; ++j) {
                value = i + j == 0 ? a[j] : f(value, a[j]);
            }
        }
        *dst.use(r * to_stride, 1, PIPE_V, now, true, what) = value;
    }
}

}  // namespace internal

#define MINDPANGU_BINARY(NAME, EXPRESSION)                                                                         \
    template <typename T>                                                                                           \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                     \
              const int32_t& count) {                                                                               \
        internal::binary(dst, src0, src1, count, #NAME, [](T a, T b) -> T { return EXPRESSION; });                  \
    }                                                                                                               \
    template <typename T, bool SETS_MASK = true>                                                                    \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask,     \
              uint8_t repeats, const BinaryRepeatParams& p) {                                                       \
        internal::binary(dst, src0, src1, mask, repeats, p, #NAME, [](T a, T b) -> T { return EXPRESSION; });       \
    }
MINDPANGU_BINARY(Add, a + b)
MINDPANGU_BINARY(Sub, a - b)
MINDPANGU_BINARY(Mul, a* b)
MINDPANGU_BINARY(Div, a / b)
MINDPANGU_BINARY(Max, a > b || std::isnan(float(a)) ? a : b)
#undef MINDPANGU_BINARY

template <typename T, bool SETS_MASK = true>
void Muls(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const int32_t& count) {
    internal::unary(dst, src, count, "Muls", [scalar](T a) { return a * scalar; });
}
template <typename T, bool SETS_MASK = true>
void Adds(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const int32_t& count) {
    internal::unary(dst, src, count, "Adds", [scalar](T a) { return a + scalar; });
}
#if __NPU_ARCH__ == 2201
template <typename T, bool SETS_MASK = true>
void Mins(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const int32_t& count) {
    internal::unary(dst, src, count, "Mins", [scalar](T a) { return a < scalar ? a : scalar; });
}
#endif
template <typename T>
void Exp(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count) {
    internal::unary(dst, src, count, "Exp", [](T a) { return T(std::exp(float(a))); });
}
template <typename T>
void Ln(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count) {
    internal::unary(dst, src, count, "Ln", [](T a) { return T(std::log(float(a))); });
}

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& value, const int32_t& count) {
    internal::check_type<T>();
    internal::check_count(count, "Duplicate");
    dst.in(sim::Unit::UB, "Duplicate");
    const sim::Event now = sim::core().issue(PIPE_V);
    std::fill_n(dst.use(0, count, PIPE_V, now, true, "Duplicate"), count, value);
}

template <typename T, bool SETS_MASK = true>
void Duplicate(const LocalTensor<T>& dst, const T& value, uint64_t mask[], uint8_t repeats, uint16_t block,
               uint8_t repeat) {
    internal::check_type<T>();
    internal::check_repeats<T>(1, repeats, "Duplicate");
    dst.in(sim::Unit::UB, "Duplicate");
    constexpr uint32_t BLOCK = 32 / sizeof(T);
    if (mask[1] != 0 && sizeof(T) == 4) {
        sim::fail("Duplicate: a mask for more than 64 floats");
    }
    const sim::Event now = sim::core().issue(PIPE_V);
    for (uint32_t r = 0; r < repeats; ++r) {
        for (uint32_t i = 0; i < 256 / sizeof(T); ++i) {
            if (mask[i / 64] >> (i % 64) & 1) {
                *dst.use((r * repeat + i / BLOCK * block) * BLOCK + i % BLOCK, 1, PIPE_V, now, true, "Duplicate") = value;
            }
        }
    }
}

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode, uint32_t count) {
    constexpr bool narrows = std::is_same_v<U, float> && sim::NARROW<T>;
    constexpr bool widens = std::is_same_v<T, float> && sim::NARROW<U>;
    static_assert(narrows || widens, "types that Cast takes");
    constexpr RoundMode NARROWS = sim::COUPLED ? RoundMode::CAST_NONE : RoundMode::CAST_RINT;
    if ((narrows && mode != NARROWS) || (widens && mode != RoundMode::CAST_NONE)) {
        sim::fail("Cast: CAST_RINT to 16 bits (on a 910A CAST_NONE), CAST_NONE from them");
    }
    dst.in(sim::Unit::UB, "Cast");
    src.in(sim::Unit::UB, "Cast");
    const sim::Event now = sim::core().issue(PIPE_V);
    const U* a = src.use(0, count, PIPE_V, now, false, "Cast");
    T* to = dst.use(0, count, PIPE_V, now, true, "Cast");
    for (uint32_t i = 0; i < count; ++i) {
        to[i] = T(float(a[i]));
    }
}

#if __NPU_ARCH__ == 2201

template <typename T, bool SETS_MASK = true>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask, int32_t repeats, int32_t to,
                    int32_t block, int32_t repeat, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {
    if (order != ReduceOrder::ORDER_ONLY_VALUE) {
        sim::fail("WholeReduceMax: ORDER_ONLY_VALUE is simulated");
    }
    internal::reduce(dst, src, mask, repeats, to, block, repeat, "WholeReduceMax",
                     [](T a, T b) { return a > b || std::isnan(float(a)) ? a : b; });
}

template <typename T, bool SETS_MASK = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t mask, int32_t repeats, int32_t to,
                    int32_t block, int32_t repeat) {
    internal::reduce(dst, src, mask, repeats, to, block, repeat, "WholeReduceSum", [](T a, T b) { return T(a + b); });
}

template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint8_t repeats, const BrcbRepeatParams& p) {
    dst.in(sim::Unit::UB, "Brcb");
    src.in(sim::Unit::UB, "Brcb");
    if (repeats < 1) {
        sim::fail("Brcb: repeatTime %u; 1 to 255", repeats);
    }
    constexpr uint32_t BLOCK = 32 / sizeof(T);
    const sim::Event now = sim::core().issue(PIPE_V);
    const T* a = src.use(0, repeats * 8, PIPE_V, now, false, "Brcb");
    for (uint32_t i = 0; i < repeats * 8u; ++i) {
        T* to = dst.use((i / 8 * p.dstRepStride + i % 8 * p.dstBlkStride) * BLOCK, BLOCK, PIPE_V, now, true, "Brcb");
        std::fill_n(to, BLOCK, a[i]);
    }
}

#else

// A fractal of 16 x 16 numbers, rows and columns changed.
template <typename T>
void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src) {
    static_assert(sizeof(T) == 2, "16 bits");
    dst.in(sim::Unit::UB, "Transpose");
    src.in(sim::Unit::UB, "Transpose");
    const sim::Event now = sim::core().issue(PIPE_V);
    const T* from = src.use(0, 256, PIPE_V, now, false, "Transpose");
    T* to = dst.use(0, 256, PIPE_V, now, true, "Transpose");
    for (uint32_t i = 0; i < 256; ++i) {
        to[i % 16 * 16 + i / 16] = from[i];
    }
}

#endif

}  // namespace AscendC

#if __NPU_ARCH__ == 2201
#define ASCEND_IS_AIC (sim::core().cube)
#define ASCEND_IS_AIV (!sim::core().cube)
#define KERNEL_TASK_TYPE_DEFAULT(TYPE) (void)0
#endif
#define REGISTER_TILING_DEFAULT(TYPE) using TilingOfKernel = TYPE
#define GET_TILING_DATA(NAME, ADDRESS) const TilingOfKernel& NAME = *reinterpret_cast<const TilingOfKernel*>(ADDRESS)

namespace sim {

// Runs `kernel` on `blocks` cube cores with two vector cores each, or on as many coupled ones. The device knows its global memory. Returns what went
// wrong, or nothing.
inline std::string run(Device& device, uint32_t blocks, uint32_t seed, const std::function<void()>& kernel) {
    device.blocks = blocks;
    device.random.seed(seed);
    device.flags.resize(blocks * 4);
    const uint32_t cores = blocks * CORES_OF_BLOCK;
    const size_t pipes = cores * PIPES;
    for (uint32_t i = 0; i < cores; ++i) {
        auto c = std::make_unique<Core>();
        c->device = &device;
        c->index = i;
        c->block = i / CORES_OF_BLOCK;
        c->cube = i % CORES_OF_BLOCK == 0;
        c->sub = i % CORES_OF_BLOCK == 2;
        for (auto& clock : c->known) {
            clock.assign(pipes, 0);
        }
        for (int unit = 0; unit < 5; ++unit) {
            if (COUPLED || c->cube != (unit == int(Unit::UB))) {
                c->storage[unit].assign(CAPACITY[unit], 0xff);
                c->units[unit].name = UNIT_NAMES[unit];
                c->units[unit].bytes = c->storage[unit].data();
                c->units[unit].size = CAPACITY[unit];
                c->units[unit].grains.resize(CAPACITY[unit] / GRAIN);
            }
        }
        device.cores.push_back(std::move(c));
    }
    std::vector<std::thread> threads;
    for (auto& c : device.cores) {
        threads.emplace_back([&device, &kernel, c = c.get()] {
            self = c;
            std::string wrong;
            try {
                {
                    std::unique_lock<std::mutex> lock(device.mutex);
                    device.turn_passed.wait(lock, [&] { return device.failed || device.turn == c->index; });
                    if (device.failed) {
                        throw Aborted{};
                    }
                }
                kernel();
                for (auto& buffer : c->buffers) {
                    if (buffer->state == Buffer::TAKEN || buffer->state == Buffer::QUEUED) {
                        fail("the kernel ends, and %s is still %s", buffer->name.c_str(),
                             buffer->state == Buffer::TAKEN ? "in use" : "enqueued");
                    }
                }
                for (const auto& [event, given] : c->allocated) {
                    if (!given.empty()) {
                        fail("the kernel ends, and event id %d was not given back", given.back());
                    }
                }
                if (!c->events.empty()) {
                    fail("the kernel ends, and event %d is still set", c->events.begin()->first.second);
                }
            } catch (const Aborted&) {
            } catch (const std::exception& error) {
                wrong = error.what();
            }
            std::lock_guard<std::mutex> lock(device.mutex);
            c->done = true;
            if (!wrong.empty() && !device.failed) {
                device.failed = true;
                device.error = wrong;
            }
            device.pass_turn();
        });
    }
    {
        std::lock_guard<std::mutex> lock(device.mutex);
        device.pass_turn();
    }
    for (auto& thread : threads) {
        thread.join();
    }
    if (!device.failed) {
        for (uint32_t place = 0; place < device.flags.size(); ++place) {
            for (uint32_t id = 0; id < PAIRED_FLAGS; ++id) {
                if (!device.flags[place][id].empty()) {
                    return "the kernel ends, and flag " + std::to_string(id) + " of block " + std::to_string(place / 4) +
                           " is still set";
                }
            }
        }
        for (auto& [address, memory] : device.global) {
            for (size_t i = 0; i < memory->stored.size(); ++i) {
                if (!memory->stored[i]) {
                    return "byte " + std::to_string(i) + " of " + memory->name + " was never written";
                }
            }
        }
    }
    return device.error;
}

}  // namespace sim

#endif
