#include "fatbin.hpp"

#include <cstring>

#include <elf.h>

namespace fake {
namespace {

constexpr uint32_t MAGIC = 0xba55ed50;
constexpr uint16_t PTX = 1, CUBIN = 2;
// Flags of an entry that is for one architecture only (sm_90a).
constexpr uint64_t OF_ONE_ARCHITECTURE = 0x200000;
// The header's byte that CUDA 13's cubins have there; those before had 0x33.
constexpr unsigned char OS_ABI_OF_CUDA_13 = 0x41;
// Attributes of a kernel's .nv.info section.
constexpr unsigned char MAX_THREADS = 0x05, PARAMETER = 0x17;
constexpr unsigned char IS_BYTES = 4;
// Of a parameter's third word, the bits before its bytes.
constexpr int BEFORE_BYTES = 18;

struct Header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};

struct Entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, unknown;
    uint16_t minor, major;
    uint32_t architecture;
    uint64_t name;
    uint64_t flags;
};

template <typename T> T at(const unsigned char* data, size_t offset) {
    T value;
    memcpy(&value, data + offset, sizeof(T));
    return value;
}

// What a kernel's .nv.info says.
void read_info(const unsigned char* data, size_t bytes, KernelImage& kernel) {
    for (size_t offset = 0; offset + 4 <= bytes;) {
        const unsigned char format = data[offset], attribute = data[offset + 1];
        const auto value = at<uint16_t>(data, offset + 2);
        offset += 4;
        if (format == IS_BYTES) {
            // One parameter; where it is aligned to, its place among the constants may begin later.
            if (attribute == PARAMETER && value >= 12 && offset + 12 <= bytes) {
                kernel.params_bytes = at<uint32_t>(data, offset + 8) >> BEFORE_BYTES;
            }
            if (attribute == MAX_THREADS && value >= 12 && offset + 12 <= bytes) {
                kernel.max_threads = at<uint32_t>(data, offset) * at<uint32_t>(data, offset + 4) *
                                     at<uint32_t>(data, offset + 8);
            }
            offset += value;
        }
    }
}

Bad read_cubin(const unsigned char* data, size_t bytes, int driver_version, Image& image,
               std::string& why) {
    if (bytes < sizeof(Elf64_Ehdr) || memcmp(data, ELFMAG, SELFMAG) != 0) {
        why = "the cubin is no ELF file";
        return Bad::NotAnImage;
    }
    const auto header = at<Elf64_Ehdr>(data, 0);
    if (header.e_ident[EI_OSABI] == OS_ABI_OF_CUDA_13 && driver_version < 13000) {
        why = "the code is of CUDA 13, the driver of CUDA " +
              std::to_string(driver_version / 1000) + "." +
              std::to_string(driver_version % 1000 / 10);
        return Bad::TooNew;
    }
    const size_t table = size_t(header.e_shnum) * sizeof(Elf64_Shdr);
    if (header.e_shoff > bytes || table > bytes - header.e_shoff ||
        header.e_shstrndx >= header.e_shnum) {
        why = "the cubin's sections are beyond its end";
        return Bad::Cut;
    }
    auto section = [&](unsigned i) {
        return at<Elf64_Shdr>(data, header.e_shoff + i * sizeof(Elf64_Shdr));
    };
    const Elf64_Shdr names = section(header.e_shstrndx);
    for (unsigned i = 0; i < header.e_shnum; ++i) {
        const Elf64_Shdr one = section(i);
        const bool has_bytes = one.sh_type != SHT_NOBITS && one.sh_type != SHT_NULL;
        if ((has_bytes && (one.sh_offset > bytes || one.sh_size > bytes - one.sh_offset)) ||
            one.sh_name >= names.sh_size) {
            why = "a section of the cubin is beyond its end";
            return Bad::Cut;
        }
        const std::string name(reinterpret_cast<const char*>(data) + names.sh_offset +
                               one.sh_name);
        auto of = [&](const char* prefix) {
            const size_t length = strlen(prefix);
            return name.compare(0, length, prefix) == 0 ? name.substr(length) : std::string();
        };
        if (const std::string kernel = of(".nv.info."); !kernel.empty()) {
            read_info(data + one.sh_offset, one.sh_size, image.kernels[kernel]);
        }
        if (const std::string kernel = of(".nv.shared."); !kernel.empty()) {
            image.kernels[kernel].shared_bytes = one.sh_size;
        }
    }
    return Bad::Nothing;
}

}  // namespace

Bad read_fatbin(const unsigned char* data, int major, int minor, int driver_version, Image& image,
                std::string& why) {
    const auto header = at<Header>(data, 0);
    if (header.magic != MAGIC) {
        why = "it is neither a fatbin, a cubin nor PTX";
        return Bad::NotAnImage;
    }
    const size_t end = header.header_bytes + header.bytes;
    Entry best{};
    size_t best_at = 0;
    std::string found;
    for (size_t offset = header.header_bytes; offset < end;) {
        // Nothing tells the container's real length; one that was cut has no entry here.
        const auto entry = at<Entry>(data, offset);
        if (end - offset < sizeof(Entry) || entry.header_bytes < sizeof(Entry) ||
            (entry.kind != PTX && entry.kind != CUBIN) ||
            entry.bytes > end - offset - entry.header_bytes) {
            why = "the fatbin is cut short at byte " + std::to_string(offset);
            return Bad::Cut;
        }
        const int architecture = int(entry.architecture);
        const bool one_only = (entry.flags & OF_ONE_ARCHITECTURE) != 0;
        const int device = major * 10 + minor;
        const bool fits = entry.kind == PTX ? architecture <= device && !one_only
                          : one_only        ? architecture == device
                                            : architecture / 10 == major && architecture <= device;
        found += (found.empty() ? "" : ", ") + std::string(entry.kind == PTX ? "compute_" : "sm_") +
                 std::to_string(architecture) + (one_only ? "a" : "");
        const bool is_better = best_at == 0 || entry.kind > best.kind ||
                               (entry.kind == best.kind && architecture > int(best.architecture));
        if (fits && is_better) {
            best = entry;
            best_at = offset;
        }
        offset += entry.header_bytes + entry.bytes;
    }
    if (best_at == 0) {
        why = "it has code for " + found + ", the device is sm_" + std::to_string(major * 10 + minor);
        return Bad::NoBinary;
    }
    image.is_ptx = best.kind == PTX;
    image.what = (image.is_ptx ? "compute_" : "sm_") + std::to_string(best.architecture);
    if (!image.is_ptx) {
        return read_cubin(data + best_at + best.header_bytes, best.bytes, driver_version, image, why);
    }
    // PTX ISA 8.x came with CUDA 12, 9.x with CUDA 13.
    if (best.major >= 9 && driver_version < 13000) {
        why = "its PTX is of ISA " + std::to_string(best.major) + "." + std::to_string(best.minor) +
              ", which the driver does not know";
        return Bad::TooNew;
    }
    return Bad::Nothing;
}

}  // namespace fake
