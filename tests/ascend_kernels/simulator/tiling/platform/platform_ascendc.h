// What the host sides use of CANN's tiling/platform/platform_ascendc.h: a 910B2 of 24 cube cores.
#ifndef SIMULATOR_PLATFORM_ASCENDC_H
#define SIMULATOR_PLATFORM_ASCENDC_H

#include <cstdint>

namespace platform_ascendc {
class PlatformAscendC {
public:
    explicit PlatformAscendC(void*) {}
    uint32_t GetCoreNumAic() const { return 24; }
    uint32_t GetLibApiWorkSpaceSize() const { return 16 * 1024 * 1024; }
};
}  // namespace platform_ascendc

#endif
