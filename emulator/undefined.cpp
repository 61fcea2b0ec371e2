// The handlers that the compiler's checks call when a kernel does something that C++ leaves
// undefined: a misaligned load or store (a fault on a GPU), an index beyond an array in registers,
// a division by 0. They replace the runtime library of UndefinedBehaviorSanitizer. Builds with the
// sanitizers have that library instead of this file.
#include "emulator.h"

#include <cstdio>
#include <cstdlib>

namespace {

// The first fields of the data that every handler gets.
struct Location {
    const char* file;
    uint32_t line, column;
};

[[noreturn]] void report(const void* data, const char* what) {
    const auto* location = static_cast<const Location*>(data);
    if (emulator::current()) emulator::fail(location->file, location->line, what);
    fprintf(stderr, "%s:%u: %s\n", location->file, location->line, what);
    abort();
}

}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(const void* data, uintptr_t address) {
    report(data, address == 0 ? "null is read or written" : "a load or store at an address that is not aligned to its type");
}
void __ubsan_handle_out_of_bounds(const void* data, uintptr_t) { report(data, "an index beyond the end of an array"); }
void __ubsan_handle_divrem_overflow(const void* data, uintptr_t, uintptr_t) { report(data, "a division by 0"); }
}
