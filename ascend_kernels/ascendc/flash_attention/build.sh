#!/usr/bin/env bash
# Builds the operator package for Ascend 910B, or for the chips that MINDPANGU_CHIPS names (ascend910: the 910A): build_out/custom_opp_*.run, which installs itself. Needs CANN; never run
# with it by us. `build.sh --install` also installs it for this user's CANN.
set -euo pipefail
cd "$(dirname "$0")"

lacking=()
[ -n "${ASCEND_HOME_PATH:-}" ] || lacking+=("CANN's environment (ASCEND_HOME_PATH is not set: source CANN's set_env.sh)")
command -v cmake >/dev/null 2>&1 || lacking+=("cmake 3.19 or later")
command -v make >/dev/null 2>&1 || lacking+=("make")
if [ -n "${ASCEND_HOME_PATH:-}" ]; then
    [ -d "$ASCEND_HOME_PATH/compiler/tikcpp/ascendc_kernel_cmake" ] ||
        lacking+=("CANN's build functions (compiler/tikcpp/ascendc_kernel_cmake; CANN 8.3 or later has them)")
fi
if [ ${#lacking[@]} -gt 0 ]; then
    printf 'mindpangu: the attention kernels cannot be built here; missing: %s\n' "$(IFS=';'; echo "${lacking[*]}")" >&2
    exit 2
fi

export MINDPANGU_CHIPS="${MINDPANGU_CHIPS:-ascend910b;ascend910_93}"
unset ASCEND_CUSTOM_OPP_PATH  # packages that are installed already are not the build's business
cmake --preset default
cmake --build build_out --target binary package -j"$(nproc)"
package=$(ls build_out/custom_opp_*.run)
echo "mindpangu: built $package"
if [ "${1:-}" = --install ]; then
    "./$package" --quiet
    echo "mindpangu: installed; MindSpore finds the operators through ASCEND_OPP_PATH"
fi
