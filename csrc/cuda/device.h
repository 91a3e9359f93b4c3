// What the kernels take of a GPU, beyond C++: threads, barriers, shuffles, shared memory, asynchronous copies,
// matrix products. Here is the GPU's version of each; with another compiler than nvcc the same kernels run on the host,
// and tests/cuda_on_host/emulator.h has a version that runs a block's threads one after the other and checks their use.
//
// Kernels reach global memory through load, store, copy_bulk and store_bulk only, and shared memory through
// shared_memory.
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

// n neighbouring elements, moved 16 bytes at a time where there are so many.
template <typename T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Vector {
  T at[n];
};

// The two elements of a word.
template <typename T>
__device__ inline Vector<float, 2> widened_pair(uint32_t word) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {{__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)}};
  } else {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
    return {{pair.x, pair.y}};
  }
}

// From here on the compiler does not know what is in a word, and does not keep what it has made of it.
__device__ inline void forget(uint32_t& word) { asm volatile("" : "+r"(word)); }

// The reverse, in one instruction.
template <typename T>
__device__ inline uint32_t narrowed_word(const Vector<float, 2>& pair) {
  uint32_t word;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(pair.at[1]), "f"(pair.at[0]));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(pair.at[1]), "f"(pair.at[0]));
  return word;
}

template <int n, typename T>
__device__ inline Vector<T, n> load(const T* global) {
  return *reinterpret_cast<const Vector<T, n>*>(global);
}
template <typename T, int n>
__device__ inline void store(T* global, const Vector<T, n>& values) {
  *reinterpret_cast<Vector<T, n>*>(global) = values;
}

// Blocks of a cluster run at the same time, and read each other's shared memory.
__device__ inline int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Where the block `rank` has what lies at `shared` here.
template <typename T>
__device__ inline const T* in_block(const T* shared, int rank) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<const T*>(address);
}

// In shared memory: counts the bytes of bulk copies, turn by turn. A turn is over when as many have come as were said
// to be expected in it, by one thread.
struct Arrival {
  uint64_t word;
};

__device__ inline uint32_t shared_address(const void* shared) { return uint32_t(__cvta_generic_to_shared(shared)); }

__device__ inline void begin(Arrival& arrival) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrival)) : "memory");
}
// Bulk copies that are asked for after the next barrier come after this thread's accesses of shared memory.
__device__ inline void order_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void expect_bytes(Arrival& arrival, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrival)), "r"(bytes)
               : "memory");
}
// Copies from global to shared memory in the background; addresses and `bytes` are multiples of 16.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, Arrival& arrival) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&arrival))
               : "memory");
}
// The reverse. What a thread has asked for has left shared memory after its wait_stores.
__device__ inline void store_bulk(void* global, const void* shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
}
__device__ inline void wait_stores() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Until turn `turn` is over, of which the one before is.
__device__ inline void wait(Arrival& arrival, int turn) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;\n"
      "}" ::"r"(shared_address(&arrival)),
      "r"(turn & 1)
      : "memory");
}

// Four 8 × 8 matrices of 16-bit elements from shared memory. Lane i gives the address of row i % 8 of matrix i / 8, and
// receives from each matrix elements 2·(i % 4) and 2·(i % 4) + 1 of row i / 4; of column i / 4 when transposed.
template <bool transposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* shared_row) {
  const uint32_t address = shared_address(shared_row);
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

// The reverse of load_matrices<false>.
__device__ inline void store_matrices(const uint32_t (&from)[4], void* shared_row) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared_row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
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

// Launches `blocks` in clusters of `cluster`, and does not wait.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int cluster, int threads, int64_t shared_bytes,
            Stream stream, Arguments... arguments) {
  constexpr int64_t kMaxBlocks = 0x7fffffff, kWithoutAsking = 48 << 10;
  if (blocks > kMaxBlocks) throw std::runtime_error("more blocks than a grid may have");
  if (shared_bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes), config.stream = stream;
  cudaLaunchAttribute in_clusters{};
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim = {unsigned(cluster), 1, 1};
  config.attrs = &in_clusters, config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace hsta::cuda

#endif
