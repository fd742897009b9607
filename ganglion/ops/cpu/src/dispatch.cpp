// The C interface: the instruction sets that were compiled in and run here, and the kernels of each.

#include "convolution.h"
#include "depthwise.h"
#include "elements.h"
#include "pointwise.h"
#include "scan.h"
#include "selective_scan.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(SCAN_X86) && defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

enum class Level { BASELINE, AVX2, AVX512 };

// The processor has the instructions and the operating system saves their registers.
bool runs(Level level) {
#if !defined(SCAN_X86)
    return level == Level::BASELINE;
#elif defined(_MSC_VER) && !defined(__clang__)
    if (level == Level::BASELINE) return true;
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    const bool fma = leaf1[2] >> 12 & 1, osxsave = leaf1[2] >> 27 & 1, avx2 = leaf7[1] >> 5 & 1;
    const unsigned long long saved = osxsave ? _xgetbv(0) : 0;
    if (level == Level::AVX2) return fma && avx2 && (saved & 0x06) == 0x06;
    const bool f = leaf7[1] >> 16 & 1, dq = leaf7[1] >> 17 & 1, bw = leaf7[1] >> 30 & 1, vl = leaf7[1] >> 31 & 1;
    return f && dq && bw && vl && (saved & 0xe6) == 0xe6;
#else
    __builtin_cpu_init();
    if (level == Level::AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == Level::AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return true;
#endif
}

// The first touch of fresh memory costs a page fault, on large maps half of the time of the scan. Huge pages make it
// 512 times fewer.
void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t first = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + bytes) / page * page;
    if (first + page < end) madvise((void*)first, end - first, MADV_HUGEPAGE);
#endif
}

// Everything that a call writes.
void prepare_memory(const Scan& scan, const Kernels& kernels) {
    const int64_t pixels = scan.batch * scan.pixels(), size = scan.element == FLOAT32 ? 4 : 2;
    prefer_huge_pages(scan.workspace, kernels.workspace(scan) * 4);
    prefer_huge_pages(scan.backward() ? scan.grad_x : scan.y, pixels * scan.channels * size);
    if (scan.backward()) prefer_huge_pages(scan.grad_proj, pixels * scan.routes * scan.per_route() * size);
}

void prepare_memory(const SelectiveScan& scan, const SelectiveScanKernels& kernels) {
    const auto prepare = [&](const Sequence& written) {
        const int64_t size = written.element == FLOAT32 ? 4 : 2;
        if (written.data) prefer_huge_pages(written.data, scan.batch * scan.channels * scan.length * size);
    };
    prefer_huge_pages(scan.workspace, kernels.workspace(scan) * 4);
    if (!scan.backward()) {
        prepare(scan.y);
        prefer_huge_pages(scan.carry, scan.batch * scan.chunks() * scan.state * scan.channels * 4);
    } else {
        prepare(scan.grad_u), prepare(scan.grad_delta), prepare(scan.grad_z);
        const int64_t weights = scan.batch * scan.groups * scan.state * scan.length * 4;
        if (!scan.B.constant) prefer_huge_pages(scan.grad_B, weights);
        if (!scan.C.constant) prefer_huge_pages(scan.grad_C, weights);
    }
}

struct Variant {
    const char* name;
    Level level;
    const Kernels* kernels;
    const SelectiveScanKernels* selective_scan;
    DepthwiseKernel* depthwise;
    ConvolutionKernel* convolution;
    PointwiseKernel* pointwise;
};

// From fast to slow.
constexpr Variant variants[] = {
#if defined(SCAN_X86)
    {"avx512", Level::AVX512, &kernels_avx512, &selective_scan_avx512, depthwise_avx512, convolution_avx512,
     pointwise_avx512},
    {"avx2", Level::AVX2, &kernels_avx2, &selective_scan_avx2, depthwise_avx2, convolution_avx2, pointwise_avx2},
#endif
    {"baseline", Level::BASELINE, &kernels_baseline, &selective_scan_baseline, depthwise_baseline, convolution_baseline,
     pointwise_baseline},
};
constexpr int32_t variant_count = sizeof variants / sizeof *variants;

}  // namespace

// The name of instruction set `index`, fastest first; null past the end.
EXPORT const char* ganglion_scan_name(int32_t index) {
    return index >= 0 && index < variant_count ? variants[index].name : nullptr;
}

EXPORT int32_t ganglion_scan_runs(int32_t index) { return runs(variants[index].level); }

// Size of `Scan`, so that a caller can tell that it was built from the same source.
EXPORT int64_t ganglion_scan_size() { return sizeof(Scan); }

// Nonzero if the library was built with OpenMP; without, every call runs on one thread.
EXPORT int32_t ganglion_scan_threaded() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

// Floats that `workspace` must have. The direction is backward if grad_y is given.
EXPORT int64_t ganglion_scan_workspace(int32_t index, const Scan* scan) {
    return variants[index].kernels->workspace(*scan);
}

EXPORT void ganglion_scan_forward(int32_t index, const Scan* scan) {
    prepare_memory(*scan, *variants[index].kernels);
    variants[index].kernels->forward(*scan);
}
EXPORT void ganglion_scan_backward(int32_t index, const Scan* scan) {
    prepare_memory(*scan, *variants[index].kernels);
    variants[index].kernels->backward(*scan);
}

EXPORT int64_t ganglion_selective_scan_size() { return sizeof(SelectiveScan); }

// Floats that `workspace` must have. The direction is backward if grad_y is given.
EXPORT int64_t ganglion_selective_scan_workspace(int32_t index, const SelectiveScan* scan) {
    return variants[index].selective_scan->workspace(*scan);
}

EXPORT void ganglion_selective_scan_forward(int32_t index, const SelectiveScan* scan) {
    prepare_memory(*scan, *variants[index].selective_scan);
    variants[index].selective_scan->forward(*scan);
}
EXPORT void ganglion_selective_scan_backward(int32_t index, const SelectiveScan* scan) {
    prepare_memory(*scan, *variants[index].selective_scan);
    variants[index].selective_scan->backward(*scan);
}

EXPORT int64_t ganglion_depthwise_size() { return sizeof(Depthwise); }

// Floats that `workspace` must have.
EXPORT int64_t ganglion_depthwise_workspace(const Depthwise* call) { return call->workspace_size(); }

EXPORT void ganglion_depthwise_grad_weight(int32_t index, const Depthwise* call) { variants[index].depthwise(*call); }

EXPORT int64_t ganglion_convolution_size() { return sizeof(Convolution); }

// Floats that `workspace` must have.
EXPORT int64_t ganglion_convolution_workspace(const Convolution* call) { return call->workspace_size(); }

EXPORT void ganglion_convolution_forward(int32_t index, const Convolution* call) {
    const int64_t outputs = call->batch * call->out_height() * call->out_width() * call->channels;
    prefer_huge_pages(call->y, outputs * (call->element == FLOAT32 ? 4 : 2));
    variants[index].convolution(*call);
}

EXPORT int64_t ganglion_pointwise_size() { return sizeof(Pointwise); }

EXPORT void ganglion_pointwise_forward(int32_t index, const Pointwise* call) { variants[index].pointwise(*call); }
