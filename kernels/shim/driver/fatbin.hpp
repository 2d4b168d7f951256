// Just enough of NVIDIA's containers of machine code: a fatbin's entries, and what a
// cubin (an ELF file) says of its kernels. Neither format is documented by NVIDIA beyond
// "CUDA Binary Utilities"; the layout is as nvcc 13.0 writes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fake {

struct KernelImage {
    size_t params_bytes = 0;
    size_t shared_bytes = 0;
    // Of __launch_bounds__.
    unsigned max_threads = 1024;
};

struct Image {
    // The architecture that was chosen, in words.
    std::string what;
    // Of a cubin; PTX is taken as it is, with any kernel's name.
    std::map<std::string, KernelImage> kernels;
    bool is_ptx = false;
};

enum class Bad { Nothing, Cut, NotAnImage, NoBinary, TooNew };

// Chooses an image for a device and a driver as the driver does: a cubin of the same
// major revision and no later minor one, else PTX for an earlier architecture ("CUDA C++
// Programming Guide, Binary Compatibility, PTX Compatibility").
Bad read_fatbin(const unsigned char* data, int major, int minor, int driver_version, Image& image,
                std::string& why);

}  // namespace fake
