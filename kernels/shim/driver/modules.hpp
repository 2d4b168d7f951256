// Modules and their functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fatbin.hpp"
#include "shim.hpp"

namespace fake {

struct Function {
    std::string name;
    const shim::Kernel* kernel;
    KernelImage image;
    // Whether `image` says what its parameters are.
    bool has_image;
    // Dynamic shared memory that a launch may have.
    int max_dynamic_shared;
};

struct Module {
    Image image;
    std::vector<std::unique_ptr<Function>> functions;
};

// Null where the handle is none.
Function* function_of(const void* handle);

}  // namespace fake
