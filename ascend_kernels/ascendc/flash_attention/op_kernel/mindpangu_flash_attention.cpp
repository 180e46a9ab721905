// The forward operator's kernel, for the chip that it is compiled for. Never run on an NPU; see README.md.
#include "attention_tiling.h"
#if MINDPANGU_COUPLED
#include "coupled_forward.h"
#else
#include "split_forward.h"
#endif

extern "C" __global__ __aicore__ void mindpangu_flash_attention(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR o, GM_ADDR lse,
                                                                GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(AttentionTiling);
    GET_TILING_DATA(data, tiling);
    AscendC::TPipe pipe;
#if MINDPANGU_COUPLED
    attention::CoupledForward(q, k, v, o, lse, data, pipe).process();
#else
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
    GM_ADDR user = AscendC::GetUserWorkspace(workspace);
    if (data.half_scores) {
        attention::Forward<DTYPE_Q, half>(q, k, v, o, lse, user, data, pipe).process();
    } else {
        attention::Forward<DTYPE_Q, float>(q, k, v, o, lse, user, data, pipe).process();
    }
#endif
}
