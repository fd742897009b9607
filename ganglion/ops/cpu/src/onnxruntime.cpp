// The scan as a custom operator of onnxruntime, `ganglion::scan2d`, for files of `export_model(..., native=True)`:
//
//   (x, proj, dt_weight, dt_bias, A, D, size, routes) -> y      as Scan of scan.h; size (H, W) and routes (K,) are int64
//
// onnxruntime's C interface is a table of functions whose order never changes: what is used of it is declared here, so
// that no header of onnxruntime is needed to build this library, and one build serves every version since 1.8.

#include <cstddef>
#include <limits>
#include <memory>

#include "elements.h"
#include "scan.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#define CALL __stdcall
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALL
#endif

extern "C" {
int32_t ganglion_scan_runs(int32_t index);
int64_t ganglion_scan_workspace(int32_t index, const Scan* scan);
void ganglion_scan_forward(int32_t index, const Scan* scan);
}

namespace {

constexpr uint32_t INTERFACE = 8;  // of onnxruntime 1.8
enum ElementKind : int { FLOAT = 1, INT64 = 7 };

struct ApiBase {
    void* const*(CALL* get)(uint32_t version);
};

// Places of functions in the table. Each returns a status, null for success.
enum Place {
    CREATE_STATUS = 0,
    CREATE_DOMAIN = 26,
    ADD_TO_DOMAIN = 27,
    ADD_DOMAIN = 28,
    TENSOR_DATA = 51,
    DIMENSION_COUNT = 61,
    DIMENSIONS = 62,
    TYPE_AND_SHAPE = 65,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_TYPE_AND_SHAPE = 99,
};

template <typename... Arguments>
void* call(void* const* api, Place place, Arguments... arguments) {
    return reinterpret_cast<void*(CALL*)(Arguments...)>(api[place])(arguments...);
}

enum Input : size_t { X, PROJ, DT_WEIGHT, DT_BIAS, A, D, SIZE, ROUTES, INPUTS };

struct Tensor {
    void* data = nullptr;
    size_t rank = 0;
    int64_t sides[3] = {1, 1, 1};
};

Tensor input(void* const* api, void* context, size_t index) {
    void *value = nullptr, *info = nullptr;
    Tensor found;
    call(api, INPUT, context, index, &value);
    call(api, TENSOR_DATA, value, &found.data);
    call(api, TYPE_AND_SHAPE, value, &info);
    call(api, DIMENSION_COUNT, info, &found.rank);
    if (found.rank <= 3) call(api, DIMENSIONS, info, static_cast<int64_t*>(found.sides), found.rank);
    reinterpret_cast<void(CALL*)(void*)>(api[RELEASE_TYPE_AND_SHAPE])(info);
    return found;
}

// The fastest instruction set that runs here.
int32_t fastest() {
    int32_t index = 0;
    while (!ganglion_scan_runs(index)) index++;
    return index;
}

bool fits(const Scan& scan, const Tensor (&in)[INPUTS]) {
    const auto is = [&](size_t i, int64_t a, int64_t b, int64_t c) {
        return in[i].sides[0] == a && in[i].sides[1] == b && in[i].sides[2] == c;
    };
    const int64_t K = scan.routes, pixels = scan.pixels();
    return scan.height > 0 && scan.width > 0 && is(X, scan.batch, pixels, scan.channels) &&
           is(PROJ, scan.batch, pixels, K * scan.per_route()) && is(DT_WEIGHT, K, scan.channels, scan.rank) &&
           is(DT_BIAS, K, scan.channels, 1) && is(A, K, scan.channels, scan.state) && is(D, K, scan.channels, 1);
}

void CALL compute(void* kernel, void* context) {
    const auto api = static_cast<void* const*>(kernel);
    Tensor in[INPUTS];
    for (size_t i = 0; i < INPUTS; i++) in[i] = input(api, context, i);
    void *output = nullptr, *y = nullptr;
    call(api, OUTPUT, context, size_t(0), static_cast<const int64_t*>(in[X].sides), size_t(3), &output);
    call(api, TENSOR_DATA, output, &y);

    Scan scan{};
    const auto size = static_cast<const int64_t*>(in[SIZE].data);
    scan.batch = in[X].sides[0], scan.height = size[0], scan.width = size[1], scan.channels = in[X].sides[2];
    scan.routes = in[ROUTES].sides[0], scan.rank = in[DT_WEIGHT].sides[2], scan.state = in[A].sides[2];
    scan.threads = 1;
#if defined(_OPENMP)
    scan.threads = omp_get_max_threads();
#endif
    scan.groups = scan.slices = 1;
    scan.element = FLOAT32;
    scan.codes = static_cast<const int64_t*>(in[ROUTES].data);
    scan.x = in[X].data, scan.proj = in[PROJ].data;
    scan.dt_weight = static_cast<float*>(in[DT_WEIGHT].data), scan.dt_bias = static_cast<float*>(in[DT_BIAS].data);
    scan.A = static_cast<float*>(in[A].data), scan.D = static_cast<float*>(in[D].data);
    scan.y = y;
    const int64_t numbers = in[X].sides[0] * in[X].sides[1] * in[X].sides[2];
    if (!fits(scan, in)) {  // there is no status to return: no result can be taken for one
        for (int64_t i = 0; i < numbers; i++) static_cast<float*>(y)[i] = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    if (!numbers) return;
    static const int32_t isa = fastest();
    const std::unique_ptr<float[]> carry(
        new float[scan.batch * scan.routes * scan.chunks() * scan.state * scan.channels]);
    const std::unique_ptr<float[]> workspace(new float[ganglion_scan_workspace(isa, &scan)]);
    scan.carry = carry.get(), scan.workspace = workspace.get();
    ganglion_scan_forward(isa, &scan);
}

// A custom operator as onnxruntime reads it: a version of the interface, then functions in this order.
struct CustomOp {
    uint32_t version;
    void*(CALL* create)(const CustomOp*, void* const* api, const void* info);
    const char*(CALL* name)(const CustomOp*);
    const char*(CALL* provider)(const CustomOp*);
    int(CALL* input_type)(const CustomOp*, size_t index);
    size_t(CALL* inputs)(const CustomOp*);
    int(CALL* output_type)(const CustomOp*, size_t index);
    size_t(CALL* outputs)(const CustomOp*);
    void(CALL* compute)(void* kernel, void* context);
    void(CALL* destroy)(void* kernel);
    int(CALL* input_optional)(const CustomOp*, size_t index);
    int(CALL* output_optional)(const CustomOp*, size_t index);
};

// What its kernel keeps is the table alone.
void* CALL create(const CustomOp*, void* const* api, const void*) { return const_cast<void**>(api); }
const char* CALL name(const CustomOp*) { return "scan2d"; }
const char* CALL provider(const CustomOp*) { return nullptr; }  // the CPU's
int CALL input_type(const CustomOp*, size_t index) { return index < SIZE ? FLOAT : INT64; }
size_t CALL inputs(const CustomOp*) { return INPUTS; }
int CALL output_type(const CustomOp*, size_t) { return FLOAT; }
size_t CALL outputs(const CustomOp*) { return 1; }
void CALL destroy(void*) {}
int CALL required(const CustomOp*, size_t) { return 0; }

const CustomOp scan2d{INTERFACE, create,  name,    provider, input_type, inputs,
                      output_type, outputs, compute, destroy,  required,   required};

}  // namespace

// Called by onnxruntime when the library is registered with a session's options.
EXPORT void* CALL RegisterCustomOps(void* options, const ApiBase* base) {
    void* const* api = base->get(INTERFACE);
    void *domain = nullptr, *failed = nullptr;
    if ((failed = call(api, CREATE_DOMAIN, static_cast<const char*>("ganglion"), &domain))) return failed;
    if ((failed = call(api, ADD_TO_DOMAIN, domain, &scan2d))) return failed;
    return call(api, ADD_DOMAIN, options, domain);
}
