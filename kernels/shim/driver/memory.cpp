#include "memory.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

namespace fake {
namespace {

constexpr size_t PAGE = 4096;
// Of what a launch is given first, so that numbers among parameters are not taken for
// addresses: no count or size has these upper bits.
constexpr uintptr_t BASE = 0x5ace'0000'0000;
constexpr size_t RANGE = size_t(8) << 40;
// Fresh memory up to this size holds NaN; what is larger is not touched until it is used.
constexpr size_t POISONED_BYTES = size_t(4) << 20;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void protect(const Allocation& allocation, int protection) {
    if (mprotect(reinterpret_cast<void*>(allocation.first_page), allocation.mapped_bytes,
                 protection) != 0) {
        perror("fake GPU: mprotect");
        abort();
    }
}

std::string name_of(const Allocation& allocation) {
    return "device allocation " + std::to_string(allocation.number) + " of " +
           std::to_string(allocation.bytes) + " bytes";
}

}  // namespace

void Memory::start(size_t bytes) {
    if (base != 0) {
        return;
    }
    void* range = mmap(reinterpret_cast<void*>(BASE), RANGE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (range == MAP_FAILED) {
        perror("fake GPU: no addresses for the device's memory");
        abort();
    }
    base = next = BASE;
    end = BASE + RANGE;
    device_bytes = bytes;
}

Allocation* Memory::allocate(size_t bytes) {
    // At its end, so that what is read or written beyond it is not accessible.
    const size_t aligned = round_up(bytes, 256);
    const size_t mapped = round_up(aligned, PAGE);
    if (aligned < bytes || mapped > end - next - PAGE || aligned > device_bytes - CONTEXT_BYTES ||
        in_use + aligned > device_bytes - CONTEXT_BYTES) {
        return nullptr;
    }
    in_use += aligned;
    pooled = std::max(pooled, in_use);
    const uintptr_t first_page = next;
    next += mapped + PAGE;
    const uintptr_t begin = first_page + mapped - aligned;
    const Allocation allocation{begin,      bytes, first_page,
                                mapped,     ++numbered, Allocation::State::NotYet,
                                false};
    return &allocations.emplace(begin, allocation).first->second;
}

void Memory::come_alive(Allocation& allocation) {
    allocation.state = Allocation::State::Live;
    if (allocation.mapped_bytes <= POISONED_BYTES) {
        protect(allocation, PROT_READ | PROT_WRITE);
        memset(reinterpret_cast<void*>(allocation.first_page), 0xff, allocation.mapped_bytes);
        protect(allocation, PROT_NONE);
    }
}

void Memory::free_is_called(Allocation& allocation) {
    allocation.free_was_called = true;
    in_use -= round_up(allocation.bytes, 256);
}

void Memory::retire(Allocation& allocation) {
    allocation.state = Allocation::State::Freed;
    madvise(reinterpret_cast<void*>(allocation.first_page), allocation.mapped_bytes,
            MADV_DONTNEED);
}

bool Memory::contains(uintptr_t address) const { return address >= base && address < end && base; }

Allocation* Memory::before(uintptr_t address) {
    auto after = allocations.upper_bound(address);
    return after == allocations.begin() ? nullptr : &std::prev(after)->second;
}

Allocation* Memory::at(uintptr_t address) {
    const auto found = allocations.find(address);
    return found == allocations.end() ? nullptr : &found->second;
}

std::string Memory::describe(uintptr_t address) {
    const Allocation* allocation = before(address);
    if (allocation == nullptr) {
        return "no device allocation";
    }
    const size_t offset = address - allocation->begin;
    const char* state = allocation->state == Allocation::State::Live  ? ""
                        : allocation->state == Allocation::State::Freed ? ", which is freed"
                                                                        : ", which is not there yet";
    if (offset < allocation->bytes) {
        return "byte " + std::to_string(offset) + " of " + name_of(*allocation) + state;
    }
    return std::to_string(offset - allocation->bytes) + " bytes beyond " + name_of(*allocation) +
           state;
}

std::string Memory::amiss(const Span& span) {
    const Allocation* allocation = before(span.at);
    // A list without elements may begin where memory ends.
    const bool fits = allocation != nullptr && span.at <= allocation->begin + allocation->bytes &&
                      span.bytes <= allocation->begin + allocation->bytes - span.at;
    if (!fits) {
        return span.what + " (" + std::to_string(span.bytes) + " bytes) is outside all memory: " +
               describe(span.at);
    }
    if (allocation->state == Allocation::State::Freed) {
        return span.what + " is in freed memory: " + describe(span.at);
    }
    if (allocation->state == Allocation::State::NotYet) {
        return span.what + " is used before the allocation in its stream's order: " +
               describe(span.at);
    }
    return {};
}

std::string Memory::is_gone(const Span& span) {
    const Allocation* allocation = before(span.at);
    if (allocation != nullptr && allocation->free_was_called &&
        span.at < allocation->begin + allocation->bytes) {
        return span.what + " is memory that was freed: " + name_of(*allocation);
    }
    return {};
}

void Memory::open(const std::vector<Span>& spans, bool accessible) {
    for (const Span& span : spans) {
        const Allocation* allocation = before(span.at);
        if (allocation != nullptr && allocation->state == Allocation::State::Live &&
            span.at <= allocation->begin + allocation->bytes) {
            protect(*allocation, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
        }
    }
}

void Memory::trim(size_t keep) { pooled = std::max(in_use, std::min(pooled, keep)); }

size_t Memory::free() const { return device_bytes - CONTEXT_BYTES - pooled; }

}  // namespace fake
