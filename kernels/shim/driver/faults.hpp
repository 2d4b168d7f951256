// Faults that a script asks for, one a line; # begins a comment:
//   fail CALL N ERROR      the N-th call of a function (of the driver, or cublasCreate_v2,
//                          cublasDestroy_v2, cublasGemmEx, cublasLtMatmul,
//                          cublasLtMatmulAlgoGetHeuristic, curandCreateGenerator,
//                          curandDestroyGenerator) fails, with the error's number or its
//                          name (CUDA_ERROR_OUT_OF_MEMORY); N is * for all
//   skip CALL N            the N-th call does nothing and says that it succeeded, as if the
//                          program had left it out; N is * for all, and "after" for those
//                          after the first call that was made to fail, or with a further
//                          CALL after the first of that. For functions that give nothing back
//   again CALL N           the N-th call gives what the one before it gave, as if the program
//                          had one where it needs two: of cuMemHostAlloc
//   sticky N ERROR         the N-th launch fails when it runs, and takes the context along
//   hang N                 the N-th launch never ends
//   nan N K [NAME]         after the N-th launch the memory that its K-th pointer points
//                          to holds NaN in its first 64 bytes; with a name, after the N-th
//                          of a kernel or product of that name; N is * for all
//   wrong N K [NAME]       the same, but the memory's first 64 bytes hold other numbers than
//                          the launch left there
//   slow N FACTOR          the N-th copy takes so many times its time
//   stale K NAME           launches of that kernel are captured with a K-th pointer that is 256
//                          bytes off, as if what it points to had been moved since
// Launches (matrix products among them) and copies are counted as they are asked for,
// from 1; those of a graph each time that it is launched.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fake {

class Faults {
public:
    // What is wrong with the file, or nothing.
    std::string read(const std::string& path);

    struct Answer {
        // The error that the call must return, or 0.
        int error = 0;
        bool is_skipped = false;
        bool is_again = false;
    };
    // What happens to this call of the function.
    Answer of_call(const char* name);
    struct Launch {
        int sticky = 0;
        bool hangs = false;
        // From 1; 0 is none.
        uint64_t nan_at_pointer = 0;
        uint64_t wrong_at_pointer = 0;
        // Which it is, from 1.
        uint64_t number = 0;
    };
    // What happens to the next launch, which is of this kernel or product.
    Launch of_launch(const std::string& name);
    // Which pointer of a captured launch of this kernel is off, from 1; 0 is none.
    uint64_t of_captured(const std::string& name) const;
    // What the next copy's time is multiplied with.
    uint64_t of_copy();

private:
    enum class Kind { Fail, Skip, Again, Sticky, Hang, Nan, Wrong, Slow, Stale };
    struct Fault {
        Kind kind;
        std::string call;
        // 0: all.
        uint64_t n;
        // Only those after a call that failed by a fault, or after one of this function.
        bool is_after_failure;
        std::string after;
        uint64_t value;
    };
    static bool changes_results(const Fault& fault);
    std::vector<Fault> faults;
    std::map<std::string, uint64_t> calls, launches_of;
    uint64_t launches = 0, copies = 0;
    bool has_failed = false;
};

}  // namespace fake
