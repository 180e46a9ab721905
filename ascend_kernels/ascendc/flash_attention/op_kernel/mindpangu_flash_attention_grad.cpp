// The backward operator's kernel, for the chip that it is compiled for. Never run on an NPU; see README.md.
#include "attention_tiling.h"
#if MINDPANGU_COUPLED
#include "coupled_backward.h"
#else
#include "split_backward.h"
#endif

extern "C" __global__ __aicore__ void mindpangu_flash_attention_grad(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad,
                                                                     GM_ADDR lse, GM_ADDR delta, GM_ADDR dq, GM_ADDR dk,
                                                                     GM_ADDR dv, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(AttentionTiling);
    GET_TILING_DATA(data, tiling);
#if MINDPANGU_COUPLED
    attention::run_coupled(q, k, v, grad, lse, delta, dq, dk, dv, data);
#else
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
    const attention::Arguments arguments{q, k, v, grad, lse, delta, dq, dk, dv, AscendC::GetUserWorkspace(workspace)};
    if (data.half_scores) {
        attention::run<DTYPE_Q, half>(arguments, data);
    } else {
        attention::run<DTYPE_Q, float>(arguments, data);
    }
#endif
}
