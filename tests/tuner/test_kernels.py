"""Names as torch's own profiler gave them on an H100 and an H200 (torch 2.11), on an A100 and on a
CPU, shortened only where template arguments go on."""

from __future__ import annotations

import pytest

from tuner.kernels import WorkClass, work_class
from tuner.protocol import TracedOp

CUTLASS_FP8 = (
    "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel"
    "::GemmUniversal<cute::tuple<int, int, int, int>, cutlass::gemm::collective::CollectiveMma<"
    "cutlass::gemm::MainloopSm90TmaGmmaWarpSpecializedFP8<4>>>>>(...)"
)
KERNELS: list[tuple[WorkClass, str]] = [
    ("matmul", "nvjet_tst_192x192_64x4_1x2_h_bz_coopB_bias_TNN"),
    ("matmul", "nvjet_qqtst_128x256_128x6_2x1_v_bz_coopA_algo2_TNT"),
    ("matmul", CUTLASS_FP8),
    ("matmul", "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_cublas"),
    ("matmul", "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"),
    ("matmul", "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>(...)"),
    ("matmul", "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, float>(...)"),
    ("matmul", "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)"),
    ("matmul", "triton_tem_fused__scaled_mm_addmm_3"),
    ("matmul", "triton_tem_fused_mm_7"),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128"),
    ("attention", "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<>>"),
    ("attention", "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<>>>"),
    ("attention", "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(...)"),
    ("attention", "void qk_int_sv_f8_attn_kernel<128u, 64u, 32u, 64u, 128u>(...)"),
    ("attention", "_attn_fwd"),
    ("attention", "triton_tem_fused_flex_attention_0"),
    ("attention", "void (anonymous namespace)::softmax_warp_forward<float, float, float, 9>(...)"),
    ("convolution", "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize"),
    ("convolution", "void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1>(...)"),
    ("convolution", "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>(...)"),
    ("convolution", "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized>"),
    ("normalisation", "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<>"),
    ("normalisation", "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>"),
    ("elementwise", "triton_red_fused__to_copy_add_mul_native_layer_norm_0"),
    ("elementwise", "triton_poi_fused_convolution_silu_3"),
    ("elementwise", "triton_per_fused__scaled_mm_abs_amax_clamp_2"),
    ("elementwise", "void at::native::vectorized_elementwise_kernel<4, at::native::gelu>(...)"),
    ("elementwise", "void at::native::elementwise_kernel<128, 4, at::native::copy_kernel>(...)"),
    ("elementwise", "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>(...)"),
    ("elementwise", "void at::native::reduce_kernel<512, 1, at::native::NormTwoOps<float>>(...)"),
    ("elementwise", "void at::native::(anonymous namespace)::CatArrayBatchedCopy<>(...)"),
    ("elementwise", "void QuantInt8Kernel<128u, true, __nv_bfloat16>(...)"),
    ("other", "something_of_tomorrow"),
]
OPERATORS: list[tuple[WorkClass, str]] = [
    ("matmul", "aten::addmm"),
    ("matmul", "aten::_int_mm"),
    ("matmul", "aten::mm"),
    ("matmul", "mkldnn::_linear_pointwise"),
    ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    ("convolution", "aten::mkldnn_convolution"),
    ("normalisation", "aten::native_layer_norm"),
    ("normalisation", "aten::_fused_rms_norm"),
    ("elementwise", "## Call CompiledFxGraph ffgb2udrbcb7ukwz3q3ezbhibojigpxu53ignyxae ##"),
    ("elementwise", "aten::copy_"),
    ("elementwise", "aten::mul"),
    ("elementwise", "aten::cat"),
    ("overhead", "aten::as_strided"),
    ("overhead", "aten::t"),
    ("overhead", "aten::empty_like"),
    ("overhead", "TorchDynamo Cache Lookup"),
    ("overhead", "Torch-Compiled Region: 1/1"),
    ("overhead", "AOTDispatcher Runtime Wrapper Prologue"),
    ("other", "a range of the app's own"),
]


def op(name: str, category: str) -> TracedOp:
    return TracedOp(name=name, category=category, calls=1, total_us=1.0, own_us=1.0)


@pytest.mark.parametrize(("expected", "name"), KERNELS)
def test_a_kernel_is_known_by_its_name(expected: WorkClass, name: str) -> None:
    assert work_class(op(name, "kernel")) == expected


@pytest.mark.parametrize(("expected", "name"), OPERATORS)
def test_an_operator_is_known_by_its_name(expected: WorkClass, name: str) -> None:
    assert work_class(op(name, "cpu_op")) == expected


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("copies", "Memcpy HtoD (Pinned -> Device)"),
        ("copies", "Memcpy HtoD (Pageable -> Device)"),
        ("copies", "Memcpy DtoH (Device -> Pageable)"),
        ("elementwise", "Memcpy DtoD (Device -> Device)"),
    ],
)
def test_only_copies_over_the_link_are_copies(expected: WorkClass, name: str) -> None:
    assert work_class(op(name, "gpu_memcpy")) == expected


def test_clearing_memory_is_elementwise() -> None:
    assert work_class(op("Memset (Device)", "gpu_memset")) == "elementwise"
