// libcublas.so.13 (and .12): the products of cuBLAS that are called, over the fake driver.
// Sums are in f32, in an order that depends on k only.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "numbers.hpp"
#include "product.hpp"

using namespace numbers;

namespace {

// cublasStatus_t ("cuBLAS, cublasStatus_t").
enum Status {
    Success = 0,
    NotInitialized = 1,
    InvalidValue = 7,
    ExecutionFailed = 13,
    NotSupported = 15,
};
// cublasOperation_t, cublasComputeType_t.
enum { N = 0, T = 1 };
constexpr int COMPUTE_32F = 68;

struct Handle {
    void* stream;
    bool lives;
};

struct Product {
    int transposed_a, transposed_b;
    int m, n, k;
    float alpha, beta;
    uint64_t a, b, c;
    int a_type, b_type, c_type;
    int lda, ldb, ldc;
};

// One row of op(A), or one column of op(B), as k floats.
__attribute__((target_clones("avx2", "default"))) void
gather(const void* matrix, int type, size_t first, size_t step, size_t k, float* to) {
    if (type == R_16BF && step == 1) {
        const uint16_t* from = static_cast<const uint16_t*>(matrix) + first;
        for (size_t i = 0; i < k; ++i) {
            const uint32_t word = uint32_t(from[i]) << 16;
            memcpy(to + i, &word, sizeof(word));
        }
        return;
    }
    for (size_t i = 0; i < k; ++i) {
        to[i] = load(matrix, first + i * step, type);
    }
}

// Sums side by side, so that the compiler makes vectors of them.
__attribute__((target_clones("avx2", "default"))) float dot(const float* a, const float* b,
                                                            size_t k) {
    constexpr size_t LANES = 32;
    float sums[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        for (size_t lane = 0; lane < LANES; ++lane) {
            sums[lane] += a[i + lane] * b[i + lane];
        }
    }
    float sum = 0.0f;
    for (; i < k; ++i) {
        sum += a[i] * b[i];
    }
    for (size_t lane = 0; lane < LANES; ++lane) {
        sum += sums[lane];
    }
    return sum;
}

// Column-major: C = alpha op(A) op(B) + beta C.
void multiply(const void* arguments) {
    Product p;
    memcpy(&p, arguments, sizeof(p));
    const size_t k = size_t(p.k);
    const auto* a = reinterpret_cast<const void*>(p.a);
    const auto* b = reinterpret_cast<const void*>(p.b);
    auto* c = reinterpret_cast<void*>(p.c);
    std::vector<float> row(k), columns(k * size_t(p.n));
    for (size_t j = 0; j < size_t(p.n); ++j) {
        const size_t first = p.transposed_b ? j : j * size_t(p.ldb);
        gather(b, p.b_type, first, p.transposed_b ? size_t(p.ldb) : 1, k, &columns[j * k]);
    }
    for (size_t i = 0; i < size_t(p.m); ++i) {
        const size_t first = p.transposed_a ? i * size_t(p.lda) : i;
        gather(a, p.a_type, first, p.transposed_a ? 1 : size_t(p.lda), k, row.data());
        for (size_t j = 0; j < size_t(p.n); ++j) {
            const size_t at = i + j * size_t(p.ldc);
            const float old = p.beta == 0.0f ? 0.0f : p.beta * load(c, at, p.c_type);
            store(c, at, p.c_type, p.alpha * dot(row.data(), &columns[j * k], k) + old);
        }
    }
}

Status refuse(const char* call, const char* what) {
    fprintf(stderr, "fake GPU: %s: %s\n", call, what);
    return InvalidValue;
}

// Bytes from the first element of a matrix to its last's end.
size_t extent(int rows, int columns, int stride, int type) {
    return (size_t(columns - 1) * size_t(stride) + size_t(rows)) * size_of(type);
}

}  // namespace

extern "C" {

// What a script has the call return.
#define MAY_FAIL()                                   \
    if (const int error = sconce_fake_fault(__func__)) { \
        return error;                                \
    }

int cublasCreate_v2(void** handle) {
    MAY_FAIL();
    *handle = new Handle{nullptr, true};
    return Success;
}

int cublasDestroy_v2(void* handle) {
    MAY_FAIL();
    auto* own = static_cast<Handle*>(handle);
    if (own == nullptr || !own->lives) {
        return refuse("cublasDestroy_v2", "this is no handle"), NotInitialized;
    }
    // Never reused: a second call is then seen.
    own->lives = false;
    return Success;
}

int cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return Success;
}

int cublasGetVersion_v2(void*, int* version) {
    *version = 130'100;
    return Success;
}

int cublasGetStream_v2(void* handle, void** stream) {
    *stream = static_cast<Handle*>(handle)->stream;
    return Success;
}

int cublasSetWorkspace_v2(void*, void* workspace, size_t) {
    if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
        return refuse("cublasSetWorkspace_v2", "the workspace must be aligned to 256 bytes");
    }
    return Success;
}

int cublasGemmEx(void* handle, int operation_a, int operation_b, int m, int n, int k,
                 const void* alpha, const void* a, int a_type, int lda, const void* b, int b_type,
                 int ldb, const void* beta, void* c, int c_type, int ldc, int compute, int) {
    MAY_FAIL();
    auto* own = static_cast<Handle*>(handle);
    if (own == nullptr || !own->lives) {
        return NotInitialized;
    }
    const bool transposed_a = operation_a != N, transposed_b = operation_b != N;
    if (compute != COMPUTE_32F || a_type != b_type || !is_known(a_type) || !is_known(c_type)) {
        refuse("cublasGemmEx", "only products of f32, f16 or bf16 summed in f32 are emulated");
        return NotSupported;
    }
    const int a_rows = transposed_a ? k : m, a_columns = transposed_a ? m : k;
    const int b_rows = transposed_b ? n : k, b_columns = transposed_b ? k : n;
    if (m < 0 || n < 0 || k < 0 || lda < a_rows || ldb < b_rows || ldc < m) {
        return refuse("cublasGemmEx", "a dimension is negative, or a leading one too small");
    }
    if (m == 0 || n == 0) {
        return Success;
    }
    auto address = [](const void* at) { return uint64_t(reinterpret_cast<uintptr_t>(at)); };
    const Product product{transposed_a, transposed_b, m, n, k,
                          *static_cast<const float*>(alpha), *static_cast<const float*>(beta),
                          address(a), address(b), address(c), a_type, b_type, c_type, lda, ldb,
                          ldc};
    const sconce_fake_operand operands[] = {
        {product.a, extent(a_rows, a_columns, lda, a_type), "A"},
        {product.b, extent(b_rows, b_columns, ldb, b_type), "B"},
        {product.c, extent(m, n, ldc, c_type), "C"},
    };
    uint64_t bytes = 0;
    for (const auto& operand : operands) {
        bytes += operand.bytes;
    }
    const sconce_fake_work work{"cublasGemmEx", operands, 3, 2 * uint64_t(m) * uint64_t(n) * uint64_t(k),
                                bytes, multiply, &product, sizeof(product)};
    // cuBLAS tells no more of the driver's errors.
    return sconce_fake_enqueue(own->stream, &work) == 0 ? Success : ExecutionFailed;
}

const char* cublasGetStatusName(int status) {
    return status == Success ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS of the fake GPU";
}
const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

}  // extern "C"
