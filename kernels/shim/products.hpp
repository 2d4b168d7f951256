// Products of warp groups, as `warpgroup.cuh` has them of a device: they happen when they are
// waited for, so that what is read before, or overwritten meanwhile, shows. Each warp's part
// is computed on its own; that a group's warps come together is not checked.
#pragma once

#include <map>

namespace shim {

// Where a matrix lies in shared memory (PTX ISA, "Matrix descriptor"): from one unit of eight
// rows to the next, and from one block of 64 columns to the next, in bytes.
struct Matrix {
    const unsigned char* at;
    uint32_t between;
    uint32_t blocks;
};

// An element of two bytes; pieces of 16 bytes are XORed with their row of 128 bytes, by
// their addresses.
inline uint16_t swizzled_element(const unsigned char* at) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    uint16_t element;
    memcpy(&element, reinterpret_cast<const void*>(address ^ (address >> 3 & 0x70)), sizeof(element));
    return element;
}

struct Product {
    // The lane's accumulators, of `tiles` tiles of eight columns.
    float (*d)[4];
    int tiles;
    // Bits of the lane's two rows of A, where it came from registers.
    uint16_t rows[2][16];
    Matrix a;
    bool of_registers;
    Matrix b;
    // Whether a row of B has what is summed over, or a column's.
    bool is_transposed;
    bool adds;
    void (*multiply)(const Product& product, std::vector<float>& sums);
};

struct Products {
    // Committed groups, oldest first; the last is still open.
    std::vector<std::vector<Product>> groups{1};
    // What accumulators held when their first product was asked for.
    std::map<float (*)[4], std::vector<float>> held;
};

// Of the thread that runs.
inline Products& products() {
    static std::map<unsigned, Products> of_threads;
    return of_threads[thread_index.x];
}

inline void ask(const Product& product) {
    Products& own = products();
    if (own.held.find(product.d) == own.held.end()) {
        own.held[product.d].assign(product.d[0], product.d[0] + product.tiles * 4);
        std::fill(product.d[0], product.d[0] + product.tiles * 4, std::nanf(""));
    }
    own.groups.back().push_back(product);
}

// The lane's sums, in order of k.
template <typename M> void multiply(const Product& product, std::vector<float>& sums) {
    const unsigned warp = thread_index.x / 32 % 4;
    const auto number = [](uint16_t bits) { return to_float(M{bits}); };
    float left[2][16];
    for (unsigned half = 0; half < 2; ++half) {
        const unsigned of_group = warp * 16 + lane() / 4 + half * 8;
        const unsigned char* const row = product.a.at + of_group / 8 * product.a.between + of_group % 8 * 128;
        for (unsigned k = 0; k < 16; ++k) {
            left[half][k] = number(product.of_registers ? product.rows[half][k] : swizzled_element(row + k * 2));
        }
    }
    for (int n = 0; n < product.tiles; ++n) {
        for (unsigned e = 0; e < 2; ++e) {
            const unsigned column = n * 8 + lane() % 4 * 2 + e;
            float right[16];
            for (unsigned k = 0; k < 16; ++k) {
                const unsigned char* const at =
                    product.is_transposed
                        ? product.b.at + column / 64 * product.b.blocks + k / 8 * product.b.between + k % 8 * 128 +
                              column % 64 * 2
                        : product.b.at + column / 8 * product.b.between + column % 8 * 128 + k * 2;
                right[k] = number(swizzled_element(at));
            }
            for (unsigned half = 0; half < 2; ++half) {
                float& sum = sums[n * 4 + half * 2 + e];
                sum = product.adds ? sum : 0.0f;
                for (unsigned k = 0; k < 16; ++k) {
                    sum += left[half][k] * right[k];
                }
            }
        }
    }
}

}  // namespace shim

using shim::Matrix;

inline Matrix matrix(const void* at, uint32_t between, uint32_t blocks) {
    return {static_cast<const unsigned char*>(at), between, blocks};
}
inline shim::Matrix moved(shim::Matrix matrix, uint32_t bytes) {
    return {matrix.at + bytes, matrix.between, matrix.blocks};
}
inline uint32_t shared_address(const void* at) { return uint32_t(reinterpret_cast<uintptr_t>(at)); }
inline void publish_shared() {}
inline void begin_products() {}
inline void commit_products() { shim::products().groups.emplace_back(); }

template <int N> void await_products() {
    shim::Products& own = shim::products();
    const size_t committed = own.groups.size() - 1;
    const size_t done = committed - std::min(committed, size_t(N));
    for (size_t i = 0; i < done; ++i) {
        for (const shim::Product& product : own.groups[i]) {
            product.multiply(product, own.held[product.d]);
        }
    }
    own.groups.erase(own.groups.begin(), own.groups.begin() + done);
    for (auto held = own.held.begin(); held != own.held.end();) {
        const auto& [d, sums] = *held;
        bool is_under_way = false;
        for (const auto& group : own.groups) {
            for (const shim::Product& product : group) {
                is_under_way = is_under_way || product.d == d;
            }
        }
        if (is_under_way) {
            ++held;
        } else {
            std::copy(sums.begin(), sums.end(), d[0]);
            held = own.held.erase(held);
        }
    }
}

template <int TILES> void pin(float (&)[TILES][4]) {}
template <int STEPS> void pin(uint32_t (&)[STEPS][4]) {}
inline void pin(uint32_t&) {}
inline void settle(float (&)[2]) {}

template <typename M> void multiply_shared(float (&d)[8][4], shim::Matrix a, shim::Matrix b, int adds) {
    shim::ask({d, 8, {}, a, false, b, false, adds != 0, shim::multiply<M>});
}

namespace shim {
// The same of A in registers.
template <typename M, int TILES>
void multiply_fragments(float (&d)[TILES][4], const uint32_t (&a)[4], Matrix b, bool is_transposed, bool adds) {
    struct Fragment {
        uint32_t a[4];
    } own;
    memcpy(own.a, a, sizeof(own.a));
    Product product = {d, TILES, {}, {}, true, b, is_transposed, adds, multiply<M>};
    together(own, [&](auto of) {
        for (unsigned half = 0; half < 2; ++half) {
            for (unsigned k = 0; k < 16; ++k) {
                const Fragment from = of(lane() / 4 * 4 + k % 8 / 2);
                product.rows[half][k] = uint16_t(from.a[k / 8 * 2 + half] >> k % 2 * 16);
            }
        }
        return 0;
    });
    ask(product);
}
}  // namespace shim

template <typename M>
void multiply_rows(float (&d)[8][4], const uint32_t (&a)[4], shim::Matrix b, int adds) {
    shim::multiply_fragments<M>(d, a, b, false, adds != 0);
}

template <typename M, int TILES>
void multiply_registers(float (&d)[TILES][4], const uint32_t (&a)[4], shim::Matrix b) {
    shim::multiply_fragments<M>(d, a, b, true, true);
}

inline bool is_elected() { return shim::lane() == 0; }

// Arrivals at a place in shared memory, in phases; one that expects bytes ends when they have come
// too.
struct Barrier {
    uint8_t arrivals, left;
    uint16_t phase;
    int32_t bytes;

    void begin(uint32_t number) {
        arrivals = left = uint8_t(number);
        phase = 0;
        bytes = 0;
    }

    void arrive() {
        if (left == 0) {
            shim::fail("more arrivals at a barrier than a phase has");
        }
        --left;
        end_phase();
    }

    void expect(uint32_t more) {
        bytes += int32_t(more);
        if (bytes > MOST_BYTES) {
            shim::fail("a barrier expects more bytes than it can count");
        }
    }

    // A device counts bytes that come before they are expected; here they are a mistake.
    void come(uint32_t some) {
        bytes -= int32_t(some);
        if (bytes < 0) {
            shim::fail("more bytes have come than a barrier expects");
        }
        end_phase();
    }

    void await(uint32_t parity) {
        shim::wait_until([this, parity] { return phase % 2 != parity; });
    }

private:
    // PTX ISA, "mbarrier", "Size and alignment".
    static constexpr int32_t MOST_BYTES = (1 << 20) - 1;

    void end_phase() {
        if (left == 0 && bytes == 0) {
            left = arrivals;
            ++phase;
            shim::tell();
        }
    }
};
static_assert(sizeof(Barrier) == sizeof(uint64_t), "as a device has it");

// Brings the map of a tensor near.
struct TileMap;
inline void prefetch_map(const TileMap&) {}
inline void copy_box(void* to, const TileMap& map, int column, int row, Barrier& barrier) {
    shim::copy_box(to, &map, column, row, [&barrier](uint32_t bytes) { barrier.come(bytes); });
}

inline void sync_threads(int barrier, unsigned threads) { shim::sync_threads(barrier, threads, true); }
inline void arrive_threads(int barrier, unsigned threads) { shim::sync_threads(barrier, threads, false); }
template <int REGISTERS> void give_registers_back() {}
template <int REGISTERS> void take_registers() {}
