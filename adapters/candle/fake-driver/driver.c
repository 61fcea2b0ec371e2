// The fake driver of relata's own tests, with the other calls that candle makes. No kernel runs.
#include "../../../tests/cuda_fake_driver/libcuda.c"

// The tested program changes the settings while it runs. It knows the fake driver by this function.
int fake_driver_set(const char* name, const char* value) {
    return setenv(name, value, 1);
}

// A module is its image, a function its name.
CUresult cuModuleLoadData(Handle* module, const void* image) {
    BEGIN_PLAIN();
    *module = (Handle)image;
    return SUCCESS;
}
CUresult cuModuleLoad(Handle* module, const char* path) {
    (void)module, (void)path;
    BEGIN_PLAIN();
    return INVALID_VALUE;
}
CUresult cuModuleUnload(Handle module) {
    (void)module;
    BEGIN_PLAIN();
    return SUCCESS;
}
CUresult cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    (void)module;
    BEGIN("cuModuleGetFunction %s", name);
    *function = (Handle)strdup(name);
    return SUCCESS;
}
CUresult cuStreamIsCapturing(Handle stream, int* status) {
    (void)stream;
    BEGIN_PLAIN();
    *status = 0;
    return SUCCESS;
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, Handle there, CUdeviceptr from, Handle here,
                           size_t bytes, Handle stream) {
    (void)to, (void)there, (void)from, (void)here, (void)bytes, (void)stream;
    BEGIN_PLAIN();
    return INVALID_VALUE;
}
CUresult cuCtxDestroy_v2(Handle context) {
    (void)context;
    BEGIN_PLAIN();
    return SUCCESS;
}
