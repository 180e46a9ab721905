// What the host sides use of CANN's tiling/platform/platform_ascendc.h: a 910B2 of 24 cube cores, or a 910A of 32.
#ifndef SIMULATOR_PLATFORM_ASCENDC_H
#define SIMULATOR_PLATFORM_ASCENDC_H

#include <cstdint>

namespace platform_ascendc {
enum class SocVersion { ASCEND910 = 0, ASCEND910B };
inline SocVersion pretended = SocVersion::ASCEND910B;

class PlatformAscendC {
public:
    explicit PlatformAscendC(void*) {}
    SocVersion GetSocVersion() const { return pretended; }
    uint32_t GetCoreNumAic() const { return pretended == SocVersion::ASCEND910 ? 32 : 24; }
    uint32_t GetLibApiWorkSpaceSize() const { return 16 * 1024 * 1024; }
};
}  // namespace platform_ascendc

#endif
