// The order in which blocks see one another's stores. A block sees a store of another block only if
// the other one has a fence between the store and its ticket, and it has a fence of its own between
// its ticket and the load.
#include "seeded_bugs.cuh"

namespace {

// Every thread writes the double of its input to its slot. The slots lie behind one result for each
// thread, for which the last block adds the slots of all blocks.
DEVICE void fences(const Arguments& arguments) {
    SHARED_ARRAY(unsigned, last, 1);
    const unsigned thread = threadIdx.x, bug = arguments.bug;
    float* slots = &output<float>(arguments, THREADS);
    const auto store = [&] {
        const unsigned at = blockIdx.x * THREADS + thread;
        slots[at] = 2 * input<float>(arguments, at);
    };
    if (bug != 4 || thread > 0) store();
    if (bug != 5) block_barrier();
    if (thread == 0) {
        if (bug != 1 && bug != 3) fence();
        if (bug == 4) store();
        const unsigned ticket = atomic_increment(arguments.counter, gridDim.x - 1);
        if (bug != 2) fence();
        last[0] = ticket == gridDim.x - 1;
    }
    block_barrier();
    if (last[0] == 0) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) {
        const unsigned block = bug == 6 ? (blockIdx.x + i) % gridDim.x : i;
        sum += slots[block * THREADS + thread];
    }
    output<float>(arguments, thread) = sum;
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_fences, THREADS, 1, Arguments, fences);
