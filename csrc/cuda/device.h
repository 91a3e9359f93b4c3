// What the kernels take of a GPU, beyond C++: threads, barriers, shuffles, shared memory, asynchronous copies, matrix
// products. Here is the GPU's version of each; with another compiler than nvcc the same kernels run on the host, and
// tests/cuda_on_host/emulator.h has a version that runs a block's threads one after the other and checks their use.
//
// Kernels reach global memory through load, store and copy_async only, and shared memory through shared_memory.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../common/dtype.h"

#ifndef __CUDACC__
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace hsta::cuda {

__device__ inline int thread_index() { return int(threadIdx.x); }
__device__ inline int thread_count() { return int(blockDim.x); }
__device__ inline int64_t block_index() { return blockIdx.x; }

// Dynamic shared memory, aligned to 16 bytes.
template <typename T>
__device__ inline T* shared_memory() {
  extern __shared__ uint4 bytes[];
  return reinterpret_cast<T*>(bytes);
}

__device__ inline void block_barrier() { __syncthreads(); }
__device__ inline void warp_barrier() { __syncwarp(); }
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ inline float widened(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
__device__ inline T narrowed(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ inline Float16 narrowed<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ inline float narrowed<float>(float x) {
  return x;
}

// n neighbouring elements, moved 16 bytes at a time where there are so many.
template <typename T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Vector {
  T at[n];
};

template <int n, typename T>
__device__ inline Vector<T, n> load(const T* global) {
  return *reinterpret_cast<const Vector<T, n>*>(global);
}
template <typename T, int n>
__device__ inline void store(T* global, const Vector<T, n>& values) {
  *reinterpret_cast<Vector<T, n>*>(global) = values;
}

// Copies 16 bytes from global to shared memory in the background, or writes zeros where not `valid`. Copies of a thread
// are gathered into groups by commit_copies; wait_copies<n> returns when all but the last n groups have arrived.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements from shared memory. Lane i gives the address of row i % 8 of matrix i / 8, and
// receives from each matrix elements 2·(i % 4) and 2·(i % 4) + 1 of row i / 4; of column i / 4 when transposed.
template <bool transposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* shared_row) {
  const auto address = uint32_t(__cvta_generic_to_shared(shared_row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

// sum += a · b, (16 × 16) · (16 × 8), in the fragment layouts of mma.m16n8k16.
__device__ inline void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BFloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

using Stream = cudaStream_t;

inline void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here: nobody else shall find it
  throw std::runtime_error(cudaGetErrorString(status));
}

// Bytes of shared memory that a block may have on the current device.
inline int64_t shared_memory_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Launches and does not wait.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Stream stream,
            Arguments... arguments) {
  constexpr int64_t kMaxBlocks = 0x7fffffff, kWithoutAsking = 48 << 10;
  if (blocks > kMaxBlocks) throw std::runtime_error("more blocks than a grid may have");
  if (shared_bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes), config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace hsta::cuda

#endif
