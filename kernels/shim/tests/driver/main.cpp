// Runs the case that the first argument names.
#include "driver.hpp"

#include <map>

namespace {

std::map<std::string, void (*)()>& cases() {
    static std::map<std::string, void (*)()> all;
    return all;
}

}  // namespace

bool add_case(const char* name, void (*run)()) { return cases().emplace(name, run).second; }

int main(int argc, char** argv) {
    const auto found = cases().find(argc == 2 ? argv[1] : "");
    if (found == cases().end()) {
        fprintf(stderr, "no such case\n");
        return 2;
    }
    found->second();
    return 0;
}
