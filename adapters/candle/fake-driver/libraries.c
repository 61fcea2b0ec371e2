// A fake cuBLAS and cuRAND, for which a candle device makes handles, and a fake for the rest of the
// toolkit, which it never calls. Nothing is computed.
#include <stddef.h>
#include <stdint.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 15 };

int cublasCreate_v2(void** handle) {
    static int made;
    *handle = &made;
    return SUCCESS;
}
int cublasSetStream_v2(void* handle, void* stream) {
    (void)handle, (void)stream;
    return SUCCESS;
}
int cublasDestroy_v2(void* handle) {
    (void)handle;
    return SUCCESS;
}
int cublasDgemmStridedBatched(void) { return NOT_SUPPORTED; }
int cublasGemmStridedBatchedEx(void) { return NOT_SUPPORTED; }

int curandCreateGenerator(void** generator, int kind) {
    static int made;
    (void)kind;
    *generator = &made;
    return SUCCESS;
}
int curandSetPseudoRandomGeneratorSeed(void* generator, unsigned long long seed) {
    (void)generator, (void)seed;
    return SUCCESS;
}
int curandSetStream(void* generator, void* stream) {
    (void)generator, (void)stream;
    return SUCCESS;
}
int curandDestroyGenerator(void* generator) {
    (void)generator;
    return SUCCESS;
}
int curandGenerateUniform(void) { return NOT_SUPPORTED; }
int curandGenerateUniformDouble(void) { return NOT_SUPPORTED; }
int curandGenerateNormal(void) { return NOT_SUPPORTED; }
int curandGenerateNormalDouble(void) { return NOT_SUPPORTED; }
