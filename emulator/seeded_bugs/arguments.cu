// Structs that differ from their declaration in Rust: two fields are swapped, a field has another
// type, or two fields of an inner struct are swapped. All have the size that Rust expects.
#include "seeded_bugs.cuh"

namespace {

struct Range {
    uint32_t first;
    uint32_t count;
};
ARGUMENTS(Range, first, count);

struct SwappedRange {
    uint32_t count;
    uint32_t first;
};
ARGUMENTS(SwappedRange, count, first);

// The right one.
struct Scale {
    const float* input;
    float* output;
    Range ranges[2];
    float factor;
    uint32_t padding;
};
ARGUMENTS(Scale, input, output, ranges, factor, padding);

struct SwappedScale {
    float* output;
    const float* input;
    Range ranges[2];
    float factor;
    uint32_t padding;
};
ARGUMENTS(SwappedScale, output, input, ranges, factor, padding);

struct IntegerScale {
    const float* input;
    float* output;
    Range ranges[2];
    uint32_t factor;
    uint32_t padding;
};
ARGUMENTS(IntegerScale, input, output, ranges, factor, padding);

struct ScaleOfSwapped {
    const float* input;
    float* output;
    SwappedRange ranges[2];
    float factor;
    uint32_t padding;
};
ARGUMENTS(ScaleOfSwapped, input, output, ranges, factor, padding);

// Multiplies both ranges of the input.
template <typename Arguments>
DEVICE void scale(const Arguments& arguments) {
    const auto& range = arguments.ranges[threadIdx.x % 2];
    const uint32_t i = threadIdx.x / 2;
    if (i < range.count) arguments.output[range.first + i] = arguments.factor * arguments.input[range.first + i];
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_scale, THREADS, 1, Scale, scale<Scale>);
EXPORT_KERNEL(seeded_bugs_swapped_scale, THREADS, 1, SwappedScale, scale<SwappedScale>);
EXPORT_KERNEL(seeded_bugs_integer_scale, THREADS, 1, IntegerScale, scale<IntegerScale>);
EXPORT_KERNEL(seeded_bugs_scale_of_swapped, THREADS, 1, ScaleOfSwapped, scale<ScaleOfSwapped>);
