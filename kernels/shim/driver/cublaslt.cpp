// libcublasLt.so.13: products of e4m3 with e4m3, and of two bytes with two bytes, as they are
// called, over the fake driver. Sums are in f32, in an order that depends on k only.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <cuda.h>

#include "numbers.hpp"
#include "product.hpp"

using namespace numbers;

namespace {

// cublasStatus_t.
enum Status { Success = 0, NotInitialized = 1, InvalidValue = 7, ExecutionFailed = 13, NotSupported = 15 };
// cublasOperation_t, cublasComputeType_t.
enum { N = 0, T = 1 };
constexpr int COMPUTE_32F = 68;
// cublasLtMatmulDescAttributes_t, cublasLtMatmulMatrixScale_t, cublasLtMatmulPreferenceAttributes_t.
enum { TRANSA = 3, TRANSB = 4, A_SCALES = 17, B_SCALES = 18, A_MODE = 31, B_MODE = 32 };
enum { SCALAR = 0, VECTOR = 3 };
enum { MAX_WORKSPACE_BYTES = 1 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Description {
    int transposed[2];
    int modes[2];
    uint64_t scales[2];
};

// As the library declares it.
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

struct Product {
    size_t m, n, k, ldc;
    float beta;
    uint64_t a, b, c, a_scales, b_scales;
    int type, c_type;
};

float widen(uint8_t bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float size = (bits & 0x7f) == 0x7f ? std::nanf("")
                       : exponent == 0       ? std::ldexp(float(mantissa), -9)
                                             : std::ldexp(float(8 + mantissa), exponent - 10);
    return bits & 0x80 ? -size : size;
}

// Sums side by side, so that the compiler makes vectors of them.
__attribute__((target_clones("avx2", "default"))) float dot(const float* a, const float* b,
                                                            size_t k) {
    constexpr size_t LANES = 16;
    float sums[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        for (size_t lane = 0; lane < LANES; ++lane) {
            sums[lane] += a[i + lane] * b[i + lane];
        }
    }
    for (size_t lane = 0; i + lane < k; ++lane) {
        sums[lane] += a[i + lane] * b[i + lane];
    }
    float sum = 0.0f;
    for (float of_lane : sums) {
        sum += of_lane;
    }
    return sum;
}

// Column-major: C = A^T B, each sum times the scales of its row of A^T and column of B, + beta C.
void multiply(const void* arguments) {
    Product p;
    memcpy(&p, arguments, sizeof(p));
    float table[256];
    for (int bits = 0; bits < 256; ++bits) {
        table[bits] = widen(uint8_t(bits));
    }
    const auto widened = [&](uint64_t at, size_t len) {
        std::vector<float> numbers(len);
        for (size_t i = 0; i < len; ++i) {
            numbers[i] = p.type == R_8F_E4M3 ? table[reinterpret_cast<const uint8_t*>(at)[i]]
                                             : load(reinterpret_cast<const void*>(at), i, p.type);
        }
        return numbers;
    };
    const auto a = widened(p.a, p.m * p.k), b = widened(p.b, p.n * p.k);
    const auto* of_a = reinterpret_cast<const float*>(p.a_scales);
    const auto* of_b = reinterpret_cast<const float*>(p.b_scales);
    auto* c = reinterpret_cast<void*>(p.c);
    for (size_t j = 0; j < p.n; ++j) {
        for (size_t i = 0; i < p.m; ++i) {
            float sum = dot(&a[i * p.k], &b[j * p.k], p.k);
            sum *= (of_a == nullptr ? 1.0f : of_a[i]) * (of_b == nullptr ? 1.0f : of_b[j]);
            const size_t at = i + j * p.ldc;
            const float old = p.beta == 0.0f ? 0.0f : p.beta * load(c, at, p.c_type);
            store(c, at, p.c_type, sum + old);
        }
    }
}

Status refuse(const char* what, Status status = InvalidValue) {
    fprintf(stderr, "fake GPU: cublasLt: %s\n", what);
    return status;
}

int capability() {
    int major = 0, minor = 0;
    cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0);
    cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0);
    return major * 10 + minor;
}

// What the library's documentation asks of such products ("cublasLtMatmul", FP8 kernels).
Status check(const Description& how, const Layout& a, const Layout& b, const Layout& c) {
    const bool is_narrow = a.type == R_8F_E4M3;
    if (is_narrow && capability() < 89) {
        return refuse("no tensor core of this device multiplies e4m3", NotSupported);
    }
    if (a.type != b.type || !(is_narrow || a.type == R_16F || a.type == R_16BF) || !is_known(c.type)) {
        return refuse("only products of e4m3 with e4m3, and of two bytes, are emulated", NotSupported);
    }
    if (how.transposed[0] != T || how.transposed[1] != N) {
        return refuse("A is to be transposed and B not", NotSupported);
    }
    if (is_narrow && (a.rows % 16 != 0 || a.columns % 16 != 0)) {
        return refuse("dimensions of e4m3 are no multiples of 16", NotSupported);
    }
    if (a.rows != b.rows || a.columns != c.rows ||
        b.columns != c.columns || a.stride != int64_t(a.rows) || b.stride != int64_t(b.rows) ||
        c.stride < int64_t(c.rows)) {
        return refuse("dimensions do not fit", NotSupported);
    }
    for (int i = 0; i < 2; ++i) {
        if (how.modes[i] == VECTOR && (capability() != 90 || how.scales[i] == 0)) {
            return refuse("rows and columns are scaled on compute capability 9.0, by pointers",
                          NotSupported);
        }
        if (how.modes[i] == SCALAR && how.scales[i] != 0) {
            return refuse("one scale for all is not emulated", NotSupported);
        }
    }
    return Success;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130'100; }

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns,
                               int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return Success;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return Success;
}

int cublasLtMatmulDescCreate(void** description, int compute, int scale_type) {
    if (compute != COMPUTE_32F || scale_type != R_32F) {
        return refuse("sums are in f32", NotSupported);
    }
    *description = new Description{};
    return Success;
}
int cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return Success;
}
int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* from,
                                   size_t bytes) {
    auto& how = *static_cast<Description*>(description);
    void* to = attribute == TRANSA || attribute == TRANSB ? &how.transposed[attribute - TRANSA]
               : attribute == A_MODE || attribute == B_MODE
                   ? static_cast<void*>(&how.modes[attribute - A_MODE])
               : attribute == A_SCALES || attribute == B_SCALES
                   ? static_cast<void*>(&how.scales[attribute - A_SCALES])
                   : nullptr;
    const size_t size = attribute == A_SCALES || attribute == B_SCALES ? 8 : 4;
    if (to == nullptr || bytes != size) {
        return refuse("an attribute that is not emulated, or of another size");
    }
    memcpy(to, from, bytes);
    return Success;
}

int cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = new size_t(0);
    return Success;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<size_t*>(preference);
    return Success;
}
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* from,
                                         size_t bytes) {
    if (attribute != MAX_WORKSPACE_BYTES || bytes != sizeof(size_t)) {
        return refuse("a preference that is not emulated");
    }
    memcpy(preference, from, bytes);
    return Success;
}

int cublasLtMatmulAlgoGetHeuristic(void*, void* description, void* a, void* b, void* c, void* d,
                                   void*, int wanted, Heuristic* found, int* num_found) {
    if (const int error = sconce_fake_fault(__func__)) {
        return error;
    }
    *num_found = 0;
    const auto layout = [](void* at) { return *static_cast<const Layout*>(at); };
    if (c != d || wanted < 1) {
        return refuse("C and D are to be one");
    }
    const Status status = check(*static_cast<Description*>(description), layout(a), layout(b), layout(c));
    if (status != Success) {
        return status;
    }
    // Two that differ in nothing but their names.
    *num_found = wanted < 2 ? wanted : 2;
    for (int i = 0; i < *num_found; ++i) {
        found[i] = {};
        found[i].algorithm[0] = layout(a).columns;
        found[i].algorithm[1] = uint64_t(i);
    }
    return Success;
}

int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const void* algorithm, void* workspace, size_t,
                   void* stream) {
    if (const int error = sconce_fake_fault(__func__)) {
        return error;
    }
    const auto& how = *static_cast<const Description*>(description);
    const auto layout = [](void* at) { return *static_cast<const Layout*>(at); };
    const Layout of_a = layout(a_layout), of_b = layout(b_layout), of_c = layout(c_layout);
    const Status status = check(how, of_a, of_b, of_c);
    if (status != Success) {
        return status;
    }
    auto address = [](const void* at) { return uint64_t(reinterpret_cast<uintptr_t>(at)); };
    if (c != d || c_layout != d_layout || *static_cast<const float*>(alpha) != 1.0f) {
        return refuse("C and D are to be one, and alpha 1");
    }
    if (address(a) % 16 != 0 || address(b) % 16 != 0 || address(c) % 16 != 0 ||
        address(workspace) % 256 != 0) {
        return refuse("a pointer is not aligned");
    }
    if (static_cast<const uint64_t*>(algorithm)[0] != of_a.columns) {
        return refuse("the algorithm is of another product");
    }
    const size_t m = of_a.columns, n = of_b.columns, k = of_a.rows;
    const Product product{m, n, k, size_t(of_c.stride), *static_cast<const float*>(beta),
                          address(a), address(b), address(c), how.scales[0], how.scales[1],
                          of_a.type, of_c.type};
    const size_t element = of_a.type == R_8F_E4M3 ? 1 : size_of(of_a.type);
    sconce_fake_operand operands[5] = {
        {product.a, m * k * element, "A"},
        {product.b, n * k * element, "B"},
        {product.c, ((n - 1) * product.ldc + m) * size_of(of_c.type), "C"},
    };
    size_t num_operands = 3;
    if (how.modes[0] == VECTOR) {
        operands[num_operands++] = {how.scales[0], m * sizeof(float), "A's scales"};
    }
    if (how.modes[1] == VECTOR) {
        operands[num_operands++] = {how.scales[1], n * sizeof(float), "B's scales"};
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < num_operands; ++i) {
        bytes += operands[i].bytes;
    }
    // Of e4m3 twice as fast as of two bytes.
    const sconce_fake_work work{"cublasLtMatmul", operands, num_operands,
                                uint64_t(m) * n * k * element, bytes, multiply, &product, sizeof(product)};
    return sconce_fake_enqueue(stream, &work) == 0 ? Success : ExecutionFailed;
}

const char* cublasLtGetStatusName(int status) {
    return status == Success ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS of the fake GPU";
}
const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

}  // extern "C"
