// What every probe needs: checked calls, a deadline, random data, timing, and results as
// one line of JSON each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>
#include <vector>

using bf16 = __nv_bfloat16;

constexpr size_t KIB = 1024;
constexpr size_t MIB = 1024 * KIB;
constexpr size_t GIB = 1024 * MIB;

// A result: printed as one line of JSON when the statement that builds it ends.
class Line {
    std::string text;

    static std::string quoted(const std::string& word) {
        std::string out = "\"";
        for (const char c : word) {
            if (c == '"' || c == '\\') {
                out += '\\';
            }
            out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
        }
        return out + '"';
    }

public:
    Line(const std::string& probe, const std::string& name) {
        text = "{\"probe\":" + quoted(probe) + ",\"case\":" + quoted(name);
    }
    Line(const Line&) = delete;
    Line& operator=(const Line&) = delete;

    Line& number(const char* key, double value) {
        char digits[40] = "null";
        if (std::isfinite(value)) {
            std::snprintf(digits, sizeof digits, "%.6g", value);
        }
        text += ",\"" + std::string(key) + "\":" + digits;
        return *this;
    }
    Line& word(const char* key, const std::string& value) {
        text += ",\"" + std::string(key) + "\":" + quoted(value);
        return *this;
    }
    Line& truth(const char* key, bool value) {
        text += ",\"" + std::string(key) + "\":" + (value ? "true" : "false");
        return *this;
    }
    ~Line() {
        std::printf("%s}\n", text.c_str());
        std::fflush(stdout);
    }
};

inline const char*& probe_name() {
    static const char* name = "";
    return name;
}

// Ends the probe, with the error as its last line: after a failed launch nothing that
// follows on this context means anything.
inline void check(cudaError_t error, const char* call, int line) {
    if (error != cudaSuccess) {
        Line(probe_name(), "error")
            .word("error", cudaGetErrorString(error))
            .word("call", call)
            .number("line", line);
        std::_Exit(1);
    }
}
#define CHECK(call) check((call), #call, __LINE__)

inline double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// The device and this probe's time. `begin` first, before any other call.
struct Machine {
    cudaDeviceProp device{};
    int sms = 0;
    double started = 0;

    static Machine& get() {
        static Machine machine;
        return machine;
    }
    // Kills the process after 18 s whatever it waits for: a hanging kernel too. The probe's own
    // time begins once the device is ready.
    static Machine& begin(const char* name) {
        probe_name() = name;
        alarm(18);
        Machine& machine = get();
        const double from = now();
        CHECK(cudaSetDevice(0));
        CHECK(cudaFree(nullptr));
        machine.started = now();
        CHECK(cudaGetDeviceProperties(&machine.device, 0));
        machine.sms = machine.device.multiProcessorCount;
        int clock = 0;
        CHECK(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
        Line(name, "device")
            .word("name", machine.device.name)
            .number("start_seconds", machine.started - from)
            .number("multiprocessors", machine.sms)
            .number("l2_bytes", machine.device.l2CacheSize)
            .number("shared_bytes_a_block",
                    static_cast<double>(machine.device.sharedMemPerBlockOptin))
            .number("maximum_clock_hertz", clock * 1e3);
        return machine;
    }
    // Time that is not the probe's: libraries being loaded.
    void forgive(double seconds) { started += std::min(seconds, 4.0); }
    // False once a case more could pass the ten seconds a probe may take.
    bool in_time() const { return now() - started < 8.5; }
    bool hopper() const { return device.major >= 9; }
};

// Says that what was left had no time. True if so.
inline bool out_of_time(const std::string& name) {
    if (Machine::get().in_time()) {
        return false;
    }
    Line(probe_name(), name).word("skipped", "no time left");
    return true;
}

// The hash lowbias32 of Chris Wellons' hash prospector (public domain).
__host__ __device__ inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

__host__ __device__ inline uint32_t mix(uint64_t index, uint32_t seed) {
    return mix(static_cast<uint32_t>(index) ^ mix(static_cast<uint32_t>(index >> 32) + seed));
}

// In [-1, 1).
__host__ __device__ inline float uniform(uint64_t index, uint32_t seed) {
    return static_cast<float>(static_cast<int32_t>(mix(index, seed))) * 0x1p-31f;
}

static __global__ void fill_words(uint32_t* out, size_t count, uint32_t seed) {
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step) {
        out[i] = mix(i, seed);
    }
}

static __global__ void fill_bf16(bf16* out, size_t count, float scale, uint32_t seed) {
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step) {
        out[i] = __float2bfloat16_rn(scale * uniform(i, seed));
    }
}

// Device memory that lives as long as the probe.
template <typename T> T* allocate(size_t count) {
    void* out = nullptr;
    CHECK(cudaMalloc(&out, count * sizeof(T)));
    return static_cast<T*>(out);
}

inline uint32_t* random_words(size_t count, uint32_t seed) {
    auto* out = allocate<uint32_t>(count);
    fill_words<<<1024, 256>>>(out, count, seed);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return out;
}

inline bf16* random_bf16(size_t count, float scale, uint32_t seed) {
    auto* out = allocate<bf16>(count);
    fill_bf16<<<1024, 256>>>(out, count, scale, seed);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return out;
}

template <typename T> std::vector<T> read_back(const T* device, size_t count) {
    std::vector<T> out(count);
    CHECK(cudaMemcpy(out.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
}

// The median of `repeats` timings by events of what `enqueue(stream)` puts on the stream,
// after two untimed ones.
template <typename F> double median_seconds(cudaStream_t stream, int repeats, F&& enqueue) {
    enqueue(stream);
    enqueue(stream);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamSynchronize(stream));
    cudaEvent_t from, to;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        CHECK(cudaEventRecord(from, stream));
        enqueue(stream);
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, from, to));
        seconds.push_back(ms * 1e-3);
    }
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
    return seconds[repeats / 2];
}

// A captured graph of what `enqueue(stream)` puts on the stream. Runs it once before, so
// that no module is loaded during capture.
class Graph {
    cudaGraph_t graph{};
    cudaGraphExec_t exec{};

public:
    template <typename F> Graph(cudaStream_t stream, F&& enqueue) {
        enqueue(stream);
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        enqueue(stream);
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&exec, graph, 0));
        CHECK(cudaGraphUpload(exec, stream));
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() {
        CHECK(cudaGraphExecDestroy(exec));
        CHECK(cudaGraphDestroy(graph));
    }
    void launch(cudaStream_t stream) const { CHECK(cudaGraphLaunch(exec, stream)); }
    // Edges that are programmatic, that is whether PDL kept its meaning in the capture; of
    // at most 1,024 edges.
    double programmatic_edges() const {
        size_t count = 1024;
        std::vector<cudaGraphNode_t> from(count), to(count);
        std::vector<cudaGraphEdgeData> data(count);
        if (cudaGraphGetEdges(graph, from.data(), to.data(), data.data(), &count) != cudaSuccess) {
            cudaGetLastError();
            return NAN;
        }
        return static_cast<double>(
            std::count_if(data.begin(), data.begin() + std::min<size_t>(count, data.size()),
                          [](const cudaGraphEdgeData& edge) {
                              return edge.type == cudaGraphDependencyTypeProgrammatic;
                          }));
    }
};

// Seconds a replay of a graph of what `enqueue(stream)` puts on the stream.
template <typename F> double graph_seconds(cudaStream_t stream, int repeats, F&& enqueue) {
    const Graph graph(stream, enqueue);
    return median_seconds(stream, repeats, [&](cudaStream_t s) { graph.launch(s); });
}

// 16 bytes from global memory that no other thread of the SM will want: they take no
// place in L1.
__device__ __forceinline__ uint4 load_stream(const uint4* from) {
    uint4 out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

// 16 bytes from L2, past L1.
__device__ __forceinline__ uint4 load_l2(const uint4* from) {
    uint4 out;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

__device__ __forceinline__ uint32_t sum(const uint4& x) { return x.x + x.y + x.z + x.w; }

__device__ __forceinline__ uint64_t nanoseconds() {
    uint64_t out;
    asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(out));
    return out;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// D += A * B for a 16x8x16 tile (PTX ISA, "mma.m16n8k16", bf16).
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A template, so that programs that do not ask for it have none.
template <typename Word> __global__ void sum_words(const Word* from, size_t count, Word* out) {
    Word total = 0;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step) {
        total += from[i];
    }
    atomicAdd(out, total);
}

// What kernels that read all of it must find. `out` is one word on the device.
template <typename Word> Word sum_on_device(const Word* from, size_t count, Word* out) {
    CHECK(cudaMemset(out, 0, sizeof(Word)));
    sum_words<<<1024, 256>>>(from, count, out);
    CHECK(cudaGetLastError());
    return read_back(out, 1)[0];
}
