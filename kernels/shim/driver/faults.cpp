#include "faults.hpp"

#include <fstream>
#include <sstream>

#include "errors.hpp"

namespace fake {
namespace {

bool parse(const std::string& word, uint64_t& number) {
    if (word.empty() || word.find_first_not_of("0123456789") != std::string::npos) {
        return false;
    }
    number = std::stoull(word);
    return true;
}

}  // namespace

bool Faults::changes_results(const Fault& fault) {
    return fault.kind == Kind::Nan || fault.kind == Kind::Wrong;
}

std::string Faults::read(const std::string& path) {
    std::ifstream file(path);
    if (!file) {
        return "it cannot be read";
    }
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
        std::istringstream words(line.substr(0, line.find('#')));
        std::string kind, more;
        if (!(words >> kind)) {
            continue;
        }
        Fault fault{Kind::Fail, "", 0, false, "", 0};
        std::string n, value;
        bool good = true;
        if (kind == "fail") {
            words >> fault.call >> n >> value;
        } else if (kind == "skip" || kind == "again") {
            fault.kind = kind == "skip" ? Kind::Skip : Kind::Again;
            words >> fault.call >> n;
            if (n == "after") {
                words >> fault.after;
                words.clear();
            }
            value = "0";
        } else if (kind == "hang") {
            fault.kind = Kind::Hang;
            words >> n;
            value = "0";
        } else if (kind == "stale") {
            fault.kind = Kind::Stale;
            words >> value >> fault.call;
            n = "0";
        } else {
            fault.kind = kind == "sticky"  ? Kind::Sticky
                         : kind == "nan"   ? Kind::Nan
                         : kind == "wrong" ? Kind::Wrong
                                           : Kind::Slow;
            good = fault.kind != Kind::Slow || kind == "slow";
            words >> n >> value;
            if (changes_results(fault)) {
                words >> fault.call;
            }
        }
        const bool is_of_calls = fault.kind == Kind::Fail || fault.kind == Kind::Skip;
        fault.is_after_failure = fault.kind == Kind::Skip && n == "after" && fault.after.empty();
        const bool may_be_all = is_of_calls || (changes_results(fault) && !fault.call.empty());
        good = good && (parse(n, fault.n) || (n == "*" && may_be_all) || (fault.kind == Kind::Skip && n == "after"));
        if (fault.kind == Kind::Fail || fault.kind == Kind::Sticky) {
            const int error = error_of_name(value);
            if (error > 0) {
                value = std::to_string(error);
            }
        }
        good = good && parse(value, fault.value) && !(words >> more);
        if (!good) {
            return "line " + std::to_string(number) + " is no fault: " + line;
        }
        faults.push_back(fault);
    }
    return {};
}

Faults::Answer Faults::of_call(const char* name) {
    if (faults.empty()) {
        return {};
    }
    const uint64_t n = ++calls[name];
    for (const Fault& fault : faults) {
        const bool is_of_calls =
            fault.kind == Kind::Fail || fault.kind == Kind::Skip || fault.kind == Kind::Again;
        if (is_of_calls && fault.call == name && (fault.n == 0 || fault.n == n) &&
            (has_failed || !fault.is_after_failure) &&
            (fault.after.empty() || calls[fault.after] > 0)) {
            has_failed |= fault.kind == Kind::Fail;
            return {int(fault.value), fault.kind == Kind::Skip, fault.kind == Kind::Again};
        }
    }
    return {};
}

Faults::Launch Faults::of_launch(const std::string& name) {
    Launch launch;
    launch.number = ++launches;
    const uint64_t of_name = ++launches_of[name];
    for (const Fault& fault : faults) {
        const bool is_of_name = changes_results(fault) && !fault.call.empty();
        const bool is_other = fault.n != 0 && fault.n != of_name;
        if (is_of_name ? fault.call != name || is_other : fault.n != launches) {
            continue;
        }
        if (fault.kind == Kind::Sticky) {
            launch.sticky = int(fault.value);
        } else if (fault.kind == Kind::Hang) {
            launch.hangs = true;
        } else if (fault.kind == Kind::Nan) {
            launch.nan_at_pointer = fault.value;
        } else if (fault.kind == Kind::Wrong) {
            launch.wrong_at_pointer = fault.value;
        }
    }
    return launch;
}

uint64_t Faults::of_captured(const std::string& name) const {
    for (const Fault& fault : faults) {
        if (fault.kind == Kind::Stale && fault.call == name) {
            return fault.value;
        }
    }
    return 0;
}

uint64_t Faults::of_copy() {
    ++copies;
    for (const Fault& fault : faults) {
        if (fault.kind == Kind::Slow && fault.n == copies) {
            return fault.value;
        }
    }
    return 1;
}

}  // namespace fake
