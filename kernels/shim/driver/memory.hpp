// The device's memory: one range of addresses that the host cannot touch. An allocation
// is made accessible only while work runs that was given it; around it lie pages that
// nobody can touch, and an address is never given out twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "work.hpp"

namespace fake {

// What a context takes for itself.
constexpr size_t CONTEXT_BYTES = size_t(512) << 20;

struct Allocation {
    uintptr_t begin;
    size_t bytes;
    uintptr_t first_page;
    size_t mapped_bytes;
    uint64_t number;
    // What the stream's order has come to.
    enum class State { NotYet, Live, Freed } state;
    // Whether the host has asked for its end, in the stream's order or at once.
    bool free_was_called;
};

class Memory {
public:
    // Takes the range of addresses.
    void start(size_t device_bytes);
    // Memory that is there once `come_alive` is called; null where there is not enough.
    Allocation* allocate(size_t bytes);
    void come_alive(Allocation& allocation);
    // The host's call; the memory goes when `retire` is called.
    void free_is_called(Allocation& allocation);
    void retire(Allocation& allocation);

    bool contains(uintptr_t address) const;
    // The last one that begins at or before the address.
    Allocation* before(uintptr_t address);
    // The one that begins there.
    Allocation* at(uintptr_t address);
    // An address, in words.
    std::string describe(uintptr_t address);
    // What is wrong with work being given this now, or nothing.
    std::string amiss(const Span& span);
    // What is wrong with asking for work on this, whenever it runs: it is freed by then.
    std::string is_gone(const Span& span);

    // Makes what the spans lie in accessible, or not.
    void open(const std::vector<Span>& spans, bool accessible);

    void set_release_threshold(size_t bytes) { release_threshold = bytes; }
    size_t get_release_threshold() const { return release_threshold; }
    // Gives back what the pool keeps beyond this, and what is in use.
    void trim(size_t keep);
    size_t total() const { return device_bytes; }
    size_t free() const;
    size_t used() const { return in_use; }
    size_t reserved() const { return pooled; }
    uint64_t count() const { return numbered; }

private:
    uintptr_t base = 0, next = 0, end = 0;
    size_t device_bytes = 0, in_use = 0, pooled = 0, release_threshold = 0;
    uint64_t numbered = 0;
    std::map<uintptr_t, Allocation> allocations;
};

}  // namespace fake
