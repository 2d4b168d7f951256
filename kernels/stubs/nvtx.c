// What kernels/src/ranges.rs calls: NVTX is a header, and inline.
#include <nvtx3/nvToolsExt.h>

void sconce_range_push(const char *name) { nvtxRangePushA(name); }
void sconce_range_pop(void) { nvtxRangePop(); }
