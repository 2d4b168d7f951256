// The driver's error codes by name.
#pragma once

#include <string>

namespace fake {

// "CUDA_ERROR_..."; null where the code is unknown here.
const char* error_name(int code);
// 0 where there is none of that name.
int error_of_name(const std::string& name);

}  // namespace fake
