// Modules, functions, launches.
#include <cstring>
#include <set>

#include "launch.hpp"
#include "modules.hpp"
#include "streams.hpp"
#include "times.hpp"

namespace fake {
namespace {

constexpr const char* MODULES = "Module Management";
constexpr const char* EXECUTION = "Execution Control";
// What a block may have without asking ("CUDA C++ Programming Guide, Shared Memory").
constexpr int PLAIN_SHARED = 48 << 10;

std::set<Module*>& modules() {
    static auto* all = new std::set<Module*>;
    return *all;
}

CUresult error_of(Bad bad, bool is_ptx) {
    switch (bad) {
        case Bad::Nothing: return CUDA_SUCCESS;
        case Bad::NoBinary: return CUDA_ERROR_NO_BINARY_FOR_GPU;
        case Bad::TooNew:
            return is_ptx ? CUDA_ERROR_UNSUPPORTED_PTX_VERSION : CUDA_ERROR_INVALID_IMAGE;
        default: return CUDA_ERROR_INVALID_IMAGE;
    }
}

CUresult no_function() {
    return refuse(CUDA_ERROR_INVALID_HANDLE, "this is no function, or its module was unloaded",
                  EXECUTION);
}

CUresult wrong(const Function& function, const std::string& what,
               CUresult error = CUDA_ERROR_INVALID_VALUE) {
    return refuse(error, function.name + ": " + what, EXECUTION);
}

// What in a kernel's parameters is an address of the device's memory.
std::vector<Span> addresses(const std::vector<unsigned char>& params) {
    std::vector<Span> spans;
    for (size_t at = 0; at + sizeof(uintptr_t) <= params.size(); at += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, params.data() + at, sizeof(word));
        if (device().memory.contains(word)) {
            spans.push_back({word, 0, "the address at byte " + std::to_string(at) +
                                          " of its parameters"});
        }
    }
    return spans;
}

CUresult check_launch(const Function& function, const unsigned (&grid)[3],
                      const unsigned (&block)[3], unsigned shared) {
    const Profile& profile = device().settings.profile;
    constexpr unsigned GRID[] = {0x7fffffff, 65535, 65535}, BLOCK[] = {1024, 1024, 64};
    for (int i = 0; i < 3; ++i) {
        if (grid[i] == 0 || grid[i] > GRID[i] || block[i] == 0 || block[i] > BLOCK[i]) {
            return wrong(function, "a grid of " + std::to_string(grid[0]) + " x " +
                                       std::to_string(grid[1]) + " x " + std::to_string(grid[2]) +
                                       " blocks of " + std::to_string(block[0]) + " x " +
                                       std::to_string(block[1]) + " x " + std::to_string(block[2]) +
                                       " threads is empty or over the limits");
        }
    }
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    const unsigned most = std::min(function.image.max_threads, function.kernel->max_threads);
    if (threads > 1024) {
        return wrong(function, std::to_string(threads) + " threads a block are over the limit");
    }
    if (threads > most) {
        return wrong(function,
                     std::to_string(threads) + " threads a block, of which its launch bounds allow " +
                         std::to_string(most),
                     CUDA_ERROR_INVALID_VALUE);
    }
    if (block[1] != 1 || block[2] != 1) {
        return wrong(function, "blocks of more than one dimension are not emulated",
                     CUDA_ERROR_NOT_SUPPORTED);
    }
    if (shared > unsigned(function.max_dynamic_shared)) {
        return wrong(function, std::to_string(shared) +
                                   " bytes of dynamic shared memory, of which it is allowed " +
                                   std::to_string(function.max_dynamic_shared) +
                                   " (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)");
    }
    const size_t all = shared + function.image.shared_bytes;
    if (all > size_t(profile.shared_opt_in)) {
        return wrong(function, std::to_string(all) + " bytes of shared memory, of which a block of " +
                                   profile.product + " has " + std::to_string(profile.shared_opt_in));
    }
    return CUDA_SUCCESS;
}

}  // namespace

Function* function_of(const void* handle) {
    for (const Module* module : modules()) {
        for (const auto& function : module->functions) {
            if (function.get() == handle) {
                return function.get();
            }
        }
    }
    return nullptr;
}

}  // namespace fake

using namespace fake;

extern "C" {

CUresult cuModuleLoadData(CUmodule* result, const void* data) {
    CALL(Context);
    Device& d = device();
    const CUresult forbidden = forbidden_in_capture(nullptr, "the loading of a module");
    if (forbidden != CUDA_SUCCESS) {
        return forbidden;
    }
    auto module = std::make_unique<Module>();
    const auto* bytes = static_cast<const unsigned char*>(data);
    const char* text = static_cast<const char*>(data);
    // PTX is text: it begins with a comment or a directive.
    if (text != nullptr && (*text == '/' || *text == '.' || *text == '\n')) {
        module->image.is_ptx = true;
    } else {
        std::string why = "there is no image";
        const Profile& profile = d.settings.profile;
        const Bad bad = bytes == nullptr
                            ? Bad::NotAnImage
                            : read_fatbin(bytes, profile.major, profile.minor,
                                          d.settings.driver_version, module->image, why);
        if (bad != Bad::Nothing) {
            return refuse(error_of(bad, module->image.is_ptx), why, MODULES);
        }
    }
    modules().insert(module.get());
    *result = reinterpret_cast<CUmodule>(module.release());
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule handle) {
    CALL(Context);
    auto* module = reinterpret_cast<Module*>(handle);
    if (modules().erase(module) == 0) {
        return refuse(CUDA_ERROR_INVALID_HANDLE, "this is no module", MODULES);
    }
    delete module;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* result, CUmodule handle, const char* name) {
    CALL(Context);
    auto* module = reinterpret_cast<Module*>(handle);
    if (modules().count(module) == 0) {
        return refuse(CUDA_ERROR_INVALID_HANDLE, "this is no module", MODULES);
    }
    const auto image = module->image.kernels.find(name);
    const bool has_image = image != module->image.kernels.end();
    if (!has_image && !module->image.is_ptx) {
        return refuse(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel ") + name,
                      MODULES);
    }
    const shim::Kernel* kernel = shim::find_kernel(name);
    if (kernel == nullptr) {
        return refuse(CUDA_ERROR_NOT_FOUND,
                      std::string("the fake GPU has no kernel ") + name +
                          ": it runs those of kernels/cuda",
                      MODULES);
    }
    auto function = std::make_unique<Function>();
    function->name = name;
    function->kernel = kernel;
    function->has_image = has_image;
    function->image = has_image ? image->second : KernelImage{};
    function->max_dynamic_shared = PLAIN_SHARED - int(function->image.shared_bytes);
    *result = reinterpret_cast<CUfunction>(function.get());
    module->functions.push_back(std::move(function));
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    CALL(Context);
    Function* const function = function_of(handle);
    if (function == nullptr) {
        return no_function();
    }
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        return CUDA_SUCCESS;
    }
    const Profile& profile = device().settings.profile;
    const int most = profile.shared_opt_in - int(function->image.shared_bytes);
    if (value < 0 || value > most) {
        return wrong(*function, std::to_string(value) +
                                    " bytes of dynamic shared memory are asked for; a block of " +
                                    profile.product + " can have " + std::to_string(most));
    }
    function->max_dynamic_shared = value;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
    CALL(Context);
    const Function* const function = function_of(handle);
    if (function == nullptr) {
        return no_function();
    }
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
            *value = int(function->image.max_threads);
            return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
            *value = int(function->image.shared_bytes);
            return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *value = function->max_dynamic_shared;
            return CUDA_SUCCESS;
        default: return wrong(*function, "this attribute is not emulated");
    }
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream_handle, void** params, void** extra) {
    CALL(Context);
    Device& d = device();
    const Function* const function = function_of(handle);
    Stream* const stream = stream_of(stream_handle);
    if (function == nullptr || stream == nullptr) {
        return function == nullptr
                   ? no_function()
                   : refuse(CUDA_ERROR_INVALID_HANDLE, "this is no stream", EXECUTION);
    }
    const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
    const CUresult checked = check_launch(*function, grid, block, shared);
    if (checked != CUDA_SUCCESS) {
        return checked;
    }
    const size_t bytes = function->kernel->params_bytes;
    if (function->has_image && function->image.params_bytes != bytes) {
        return wrong(*function, "the module's kernel has " +
                                    std::to_string(function->image.params_bytes) +
                                    " bytes of parameters, the source that runs here " +
                                    std::to_string(bytes));
    }
    if (params == nullptr || params[0] == nullptr || extra != nullptr) {
        return wrong(*function, "its parameter is not given, or given by `extra`");
    }
    const auto* begin = static_cast<const unsigned char*>(params[0]);
    std::vector<unsigned char> frozen(begin, begin + bytes);
    if (stream->capture != nullptr) {
        if (const uint64_t pointer = d.settings.faults.of_captured(function->name)) {
            constexpr uint64_t OFF = 256;
            uint64_t word;
            unsigned char* const at = frozen.data() + (pointer - 1) * sizeof(word);
            memcpy(&word, at, sizeof(word));
            word += OFF;
            memcpy(at, &word, sizeof(word));
        }
    }
    shim::Launch launch{function->name, d.random(), {grid_x, grid_y, grid_z}, block_x, shared};
    Op op;
    op.name = "cuLaunchKernel of " + function->name;
    op.spans = addresses(frozen);
    op.run = [launch, frozen] { shim::launch(launch, frozen.data(), frozen.size()); };
    op.ns = d.settings.slower * kernel_ns(d.settings.profile, function->name, uint64_t(grid_x) * grid_y * grid_z);
    return ask_launch(*stream, std::move(op));
}

// Counted, and made to fail, as cuLaunchKernel. A kernel that may start early does not: here
// kernels run one after another.
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** params, void** extra) {
    const Function* const function = function_of(handle);
    for (unsigned i = 0; function != nullptr && i < config->numAttrs; ++i) {
        if (config->attrs[i].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
            return wrong(*function, "this attribute of a launch is not emulated", CUDA_ERROR_NOT_SUPPORTED);
        }
        if (device().settings.profile.major < 9) {
            return wrong(*function, "dependent launches begin with compute capability 9.0");
        }
    }
    return cuLaunchKernel(handle, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                          config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->hStream,
                          params, extra);
}

}  // extern "C"
