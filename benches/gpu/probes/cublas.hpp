// cuBLAS and cuBLASLt, found at run time where the loader looks (LD_LIBRARY_PATH): the
// few calls that the probes make, declared here since the toolkit package has no headers
// of theirs. Constants and signatures as in cuBLAS 13's cublas_api.h and cublasLt.h.
#pragma once

#include "probe.cuh"

#include <dlfcn.h>
#include <library_types.h>

// One product Y = X W^T: W [n, k], X [m, k] and Y [m, n], row-major bf16, summed in f32.
struct Product {
    int n, m, k;
};

class Cublas {
    using Status = int;
    using Handle = void*;

    struct Algo {
        uint64_t data[8];
    };

public:
    // A heuristic's proposal; an algorithm, with what it takes.
    struct Proposal {
        Algo algo;
        size_t workspace;
        Status state;
        float waves;
        int reserved[4];
    };

private:
    Status (*create)(Handle*) = nullptr;
    Status (*set_stream)(Handle, cudaStream_t) = nullptr;
    Status (*set_workspace)(Handle, void*, size_t) = nullptr;
    Status (*gemm_ex)(Handle, int, int, int, int, int, const void*, const void*, cudaDataType, int,
                      const void*, cudaDataType, int, const void*, void*, cudaDataType, int, int,
                      int) = nullptr;
    Status (*lt_create)(Handle*) = nullptr;
    size_t (*lt_version)() = nullptr;
    Status (*desc_create)(void**, int, cudaDataType) = nullptr;
    Status (*desc_set)(void*, int, const void*, size_t) = nullptr;
    Status (*desc_destroy)(void*) = nullptr;
    Status (*layout_create)(void**, cudaDataType, uint64_t, uint64_t, int64_t) = nullptr;
    Status (*layout_destroy)(void*) = nullptr;
    Status (*preference_create)(void**) = nullptr;
    Status (*preference_set)(void*, int, const void*, size_t) = nullptr;
    Status (*preference_destroy)(void*) = nullptr;
    Status (*heuristic)(Handle, void*, void*, void*, void*, void*, void*, int, Proposal*,
                        int*) = nullptr;
    Status (*algo_get)(const Algo*, int, void*, size_t, size_t*) = nullptr;
    Status (*algo_check)(Handle, void*, void*, void*, void*, void*, const Algo*,
                         Proposal*) = nullptr;
    Status (*matmul)(Handle, void*, const void*, const void*, void*, const void*, void*,
                     const void*, const void*, void*, void*, void*, const Algo*, void*, size_t,
                     cudaStream_t) = nullptr;

    static constexpr int TRANSPOSED = 1, PLAIN = 0, COMPUTE_F32 = 68, DEFAULT_ALGORITHM = -1;
    static constexpr int DESC_TRANSA = 3;
    static constexpr int PREF_WORKSPACE = 1, PREF_REDUCTION = 3;
    static constexpr int ALGO_ID = 0, ALGO_TILE = 1, ALGO_SPLIT_K = 2, ALGO_STAGES = 6;

    Handle handle = nullptr;
    Handle lt = nullptr;
    void* workspace = nullptr;
    std::string wrong;

    template <typename F> void find(void* library, F& function, const char* name) {
        function = library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
        if (!function && wrong.empty()) {
            wrong = std::string("no ") + name;
        }
    }
    void expect(Status status, const char* what) {
        if (status != 0 && wrong.empty()) {
            wrong = std::string(what) + " gave status " + std::to_string(status);
        }
    }

public:
    static constexpr size_t WORKSPACE = 64 * MIB;
    static constexpr uint32_t ANY_REDUCTION = 7, NO_SPLIT_K = 0;

    // A product's descriptors.
    class Plan {
        friend class Cublas;
        Cublas& owner;
        void *desc = nullptr, *w = nullptr, *x = nullptr, *y = nullptr;

    public:
        Plan(Cublas& owner, const Product& p) : owner(owner) {
            const int op = TRANSPOSED;
            owner.expect(owner.desc_create(&desc, COMPUTE_F32, CUDA_R_32F),
                         "cublasLtMatmulDescCreate");
            owner.expect(owner.desc_set(desc, DESC_TRANSA, &op, sizeof op),
                         "cublasLtMatmulDescSetAttribute");
            owner.expect(owner.layout_create(&w, CUDA_R_16BF, p.k, p.n, p.k),
                         "cublasLtMatrixLayoutCreate");
            owner.expect(owner.layout_create(&x, CUDA_R_16BF, p.k, p.m, p.k),
                         "cublasLtMatrixLayoutCreate");
            owner.expect(owner.layout_create(&y, CUDA_R_16BF, p.n, p.m, p.n),
                         "cublasLtMatrixLayoutCreate");
        }
        Plan(const Plan&) = delete;
        Plan& operator=(const Plan&) = delete;
        ~Plan() {
            owner.layout_destroy(y);
            owner.layout_destroy(x);
            owner.layout_destroy(w);
            owner.desc_destroy(desc);
        }
    };

    // `why()` says what is missing, if anything; then nothing else may be called.
    explicit Cublas(cudaStream_t stream) {
        const double from = now();
        load(stream);
        Machine::get().forgive(now() - from);
    }

    // What was missing or refused so far, if anything.
    const std::string& why() const { return wrong; }
    size_t version() const { return lt_version(); }

    // What the runtime calls: cublasGemmEx with the default algorithm, on the
    // constructor's stream.
    void gemm(const Product& p, const bf16* w, const bf16* x, bf16* y) {
        const float one = 1, zero = 0;
        expect(gemm_ex(handle, TRANSPOSED, PLAIN, p.n, p.m, p.k, &one, w, CUDA_R_16BF, p.k, x,
                       CUDA_R_16BF, p.k, &zero, y, CUDA_R_16BF, p.n, COMPUTE_F32,
                       DEFAULT_ALGORITHM),
               "cublasGemmEx");
    }

    // Up to `count` proposals, those that the heuristic thinks fastest first.
    std::vector<Proposal> proposals(Plan& plan, int count, uint32_t reductions) {
        std::vector<Proposal> out(count);
        const uint64_t bytes = WORKSPACE;
        int found = 0;
        void* preference = nullptr;
        expect(preference_create(&preference), "cublasLtMatmulPreferenceCreate");
        expect(preference_set(preference, PREF_WORKSPACE, &bytes, sizeof bytes),
               "cublasLtMatmulPreferenceSetAttribute");
        expect(preference_set(preference, PREF_REDUCTION, &reductions, sizeof reductions),
               "cublasLtMatmulPreferenceSetAttribute");
        if (heuristic(lt, plan.desc, plan.w, plan.x, plan.y, plan.y, preference, count, out.data(),
                      &found) != 0) {
            found = 0;
        }
        preference_destroy(preference);
        out.resize(found);
        out.erase(
            std::remove_if(out.begin(), out.end(), [](const Proposal& p) { return p.state != 0; }),
            out.end());
        return out;
    }

    // Whether this algorithm can do another product.
    bool can(Plan& plan, const Proposal& proposal) {
        Proposal result{};
        return algo_check(lt, plan.desc, plan.w, plan.x, plan.y, plan.y, &proposal.algo, &result) ==
                   0 &&
               result.state == 0 && result.workspace <= WORKSPACE;
    }

    // False if cuBLASLt refuses.
    bool run(Plan& plan, const Proposal& proposal, const bf16* w, const bf16* x, bf16* y,
             cudaStream_t stream) {
        const float one = 1, zero = 0;
        return matmul(lt, plan.desc, &one, w, plan.w, x, plan.x, &zero, y, plan.y, y, plan.y,
                      &proposal.algo, workspace, WORKSPACE, stream) == 0;
    }

    int split_k(const Proposal& proposal) { return config(proposal, ALGO_SPLIT_K); }
    std::string describe(const Proposal& proposal) {
        return "id " + std::to_string(config(proposal, ALGO_ID)) + ", tile " +
               std::to_string(config(proposal, ALGO_TILE)) + ", stages " +
               std::to_string(config(proposal, ALGO_STAGES)) + ", split-K " +
               std::to_string(config(proposal, ALGO_SPLIT_K));
    }

private:
    void load(cudaStream_t stream) {
        void* lt_library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_GLOBAL);
        void* library = lt_library ? dlopen("libcublas.so.13", RTLD_NOW) : nullptr;
        if (!library) {
            const char* error = dlerror();
            wrong = error ? error : "dlopen failed";
            return;
        }
        find(library, create, "cublasCreate_v2");
        find(library, set_stream, "cublasSetStream_v2");
        find(library, set_workspace, "cublasSetWorkspace_v2");
        find(library, gemm_ex, "cublasGemmEx");
        find(lt_library, lt_create, "cublasLtCreate");
        find(lt_library, lt_version, "cublasLtGetVersion");
        find(lt_library, desc_create, "cublasLtMatmulDescCreate");
        find(lt_library, desc_set, "cublasLtMatmulDescSetAttribute");
        find(lt_library, desc_destroy, "cublasLtMatmulDescDestroy");
        find(lt_library, layout_create, "cublasLtMatrixLayoutCreate");
        find(lt_library, layout_destroy, "cublasLtMatrixLayoutDestroy");
        find(lt_library, preference_create, "cublasLtMatmulPreferenceCreate");
        find(lt_library, preference_set, "cublasLtMatmulPreferenceSetAttribute");
        find(lt_library, preference_destroy, "cublasLtMatmulPreferenceDestroy");
        find(lt_library, heuristic, "cublasLtMatmulAlgoGetHeuristic");
        find(lt_library, algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
        find(lt_library, algo_check, "cublasLtMatmulAlgoCheck");
        find(lt_library, matmul, "cublasLtMatmul");
        if (!wrong.empty()) {
            return;
        }
        workspace = allocate<char>(WORKSPACE);
        expect(create(&handle), "cublasCreate");
        if (wrong.empty()) {
            // The workspace after the stream: a new stream takes the default one back.
            expect(set_stream(handle, stream), "cublasSetStream");
            expect(set_workspace(handle, workspace, WORKSPACE), "cublasSetWorkspace");
            expect(lt_create(&lt), "cublasLtCreate");
        }
    }

    int config(const Proposal& proposal, int attribute) {
        int value = -1;
        size_t written = 0;
        return algo_get(&proposal.algo, attribute, &value, sizeof value, &written) == 0 ? value
                                                                                        : -1;
    }
};
