// Serves launches: reads one after another from standard input, with the buffers
// that its parameters point to, and writes what the buffers hold afterwards. The
// format is src/lib.rs's, little endian.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "launch.hpp"
#include "shim.hpp"

namespace {

template <typename T> bool read(T& value) { return fread(&value, sizeof(T), 1, stdin) == 1; }

void read_bytes(void* to, size_t bytes) {
    if (bytes > 0 && fread(to, 1, bytes, stdin) != bytes) {
        fprintf(stderr, "the launch was cut off\n");
        exit(2);
    }
}

template <typename T> T expect() {
    T value;
    read_bytes(&value, sizeof(value));
    return value;
}

struct Buffer {
    void* data;
    size_t bytes;
};

}  // namespace

int main() {
    uint32_t name_bytes;
    while (read(name_bytes)) {
        shim::Launch launch;
        launch.kernel.resize(name_bytes);
        read_bytes(launch.kernel.data(), name_bytes);
        launch.seed = expect<uint64_t>();
        read_bytes(launch.grid, sizeof(launch.grid));
        launch.threads = expect<uint32_t>();
        launch.shared_bytes = expect<uint64_t>();
        std::vector<Buffer> buffers(expect<uint32_t>());
        for (Buffer& buffer : buffers) {
            buffer.bytes = expect<uint64_t>();
            // Of exactly its size: a byte beyond is an error.
            if (posix_memalign(&buffer.data, 256, buffer.bytes) != 0) {
                fprintf(stderr, "no memory\n");
                return 2;
            }
            read_bytes(buffer.data, buffer.bytes);
        }
        std::vector<unsigned char> params(expect<uint32_t>());
        read_bytes(params.data(), params.size());
        for (uint32_t left = expect<uint32_t>(); left > 0; --left) {
            const uint32_t offset = expect<uint32_t>();
            const Buffer& buffer = buffers.at(expect<uint32_t>());
            const char* address = static_cast<char*>(buffer.data) + expect<uint64_t>();
            memcpy(params.data() + offset, &address, sizeof(address));
        }
        if (shim::find_kernel(launch.kernel) == nullptr) {
            fprintf(stderr, "%s: no such kernel\n", launch.kernel.c_str());
            // What src/lib.rs knows it by. A return would have LeakSanitizer end the process with
            // a code of its own, for the buffers.
            _Exit(4);
        }
        shim::launch(launch, params.data(), params.size());
        for (Buffer& buffer : buffers) {
            fwrite(buffer.data, 1, buffer.bytes, stdout);
            free(buffer.data);
        }
        fflush(stdout);
    }
    return 0;
}
